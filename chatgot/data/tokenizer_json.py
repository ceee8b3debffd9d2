r"""Which tokenizer.json is read, and as what?

Byte-level BPE alone, the kind of GPT-2, Llama 3 and Qwen: its tokens are bytes, so that it can
write any text. Nothing of a file reaches the package `tokenizers` but what is known here; above
all, no regex of a stranger, which could run for years.
"""

import json
from dataclasses import dataclass
from typing import Any

from chatgot.data.vocabulary import END_OF_TEXT

MOST_CHARACTERS = 1 << 25  # of a file; the largest that is known has 28 million
MOST_TOKENS = 1 << 20
MOST_PARTS = 1 << 20  # lists and objects; a merge is one
MOST_VALUES = 1 << 22
# Without other bytes, a few control characters and rare scripts cannot be written
NEEDED_BYTES = frozenset({ord("\n"), *range(0x20, 0x7F), *range(0x80, 0xC0)})
BYTES_OF_TEXT = frozenset({*range(0xC0), *range(0xC2, 0xF5)})  # in UTF-8
LONGEST_VALUE = 60  # characters of an odd value in a message

# How a text is cut into words before the merges, and each of them byte by byte.
# Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = (
    r"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{end}"
    r"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{end}"
    r"|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UNCASED = (
    _CONTRACTIONS + r"|[^\r\n\p{{L}}\p{{N}}]?{letters}+"
    r"|{numbers}| ?[^\s{no_symbols}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Source: https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py, and what the
# models' own files say
QWEN2_WORDS = _UNCASED.format(letters=r"\p{L}", numbers=r"\p{N}", no_symbols=r"\p{L}")
QWEN35_WORDS = _UNCASED.format(letters=r"[\p{L}\p{M}]", numbers=r"\p{N}", no_symbols=r"\p{L}\p{M}")
LLAMA3_WORDS = _UNCASED.format(letters=r"\p{L}", numbers=r"\p{N}{1,3}", no_symbols=r"\p{L}")
GPT4O_WORDS = _CASED.format(end=f"{_CONTRACTIONS}?", numbers=r"\p{N}{1,3}")
TEKKEN_WORDS = _CASED.format(end="", numbers=r"\p{N}")
# In these a run of white space that ends with line feeds is one word. With GPT-2's, its last line
# feed is a word of its own.
WORDS_WITH_ALL_LINE_FEEDS = frozenset(
    {QWEN2_WORDS, QWEN35_WORDS, LLAMA3_WORDS, GPT4O_WORDS, TEKKEN_WORDS}
)


@dataclass(frozen=True)
class ByteLevelTokenizer:
    """What a tokenizer.json says, as far as it matters here.

    tokens: the name of each id, as in the file.
    added: the ids of the tokens that are no bytes of a text; special: those that show nothing.
    copy: the tokenizer.json that encodes; no special token is in it.
    splits_before_line_feed: a text may be cut before a line feed, or else after it.
    is_plain_qwen2: its words are those of QWEN2_WORDS, and nothing else changes or cuts a text.
    bytes: those that have a token, and so can be written in any word.
    """

    tokens: list[str]
    added: frozenset[int]
    special: frozenset[int]
    copy: str
    splits_before_line_feed: bool
    is_plain_qwen2: bool
    bytes: frozenset[int]


def read_tokenizer_json(text: str) -> ByteLevelTokenizer:
    """Return what a tokenizer.json says. Raises: ValueError where it is of another kind."""
    check_size(text)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON that can be read") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {_shown(content)}")
    model = _model(content.get("model"))
    normalizer = _normalizer(content.get("normalizer"))
    pre_tokenizer, before = _pre_tokenizer(content.get("pre_tokenizer"))
    _expect("decoder", _type(content.get("decoder")), None, "ByteLevel")
    added = _added_tokens(content.get("added_tokens"))
    known_bytes = _bytes(model["vocab"])
    if normalizer is not None and not known_bytes >= BYTES_OF_TEXT:
        # what it composes may need those bytes, though the text itself does not
        raise ValueError("it composes accents (NFC), but it lacks a few bytes")

    ids: dict[str, int] = model["vocab"]
    names = dict(ids)
    for token in added:
        known = names.setdefault(token["content"], token["id"])
        if known != token["id"]:
            raise ValueError(f"the token {_shown(token['content'])} has two ids")
    tokens = _in_order(names)
    special = {token["content"] for token in added if token["special"]}
    ordinary = [token for token in added if not token["special"]]
    _check_special(special, model)
    _check_ordinary(ordinary)
    model["vocab"] = {name: i for name, i in names.items() if name not in special}
    copy = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": ordinary,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    return ByteLevelTokenizer(
        tokens,
        frozenset(token["id"] for token in added),
        frozenset(names[name] for name in special),
        json.dumps(copy),
        before,
        pre_tokenizer == PLAIN_QWEN2 and normalizer is None and not ordinary,
        known_bytes,
    )


def check_size(text: str) -> None:
    """Refuse a file that is too large, or that takes far more memory as JSON than as text.

    Raises: ValueError.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, at most {MOST_CHARACTERS} are read")
    parts = text.count("[") + text.count("{")
    if parts > MOST_PARTS:
        raise ValueError(f"it has {parts} lists and objects, at most {MOST_PARTS} are read")
    values = text.count(",")
    if values > MOST_VALUES:
        raise ValueError(f"it has {values} values, at most {MOST_VALUES} are read")


def byte_letters() -> dict[str, int]:
    """Return the letter that stands for each byte in the names of tokens.

    Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    as_they_are = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in as_they_are]
    letters = {chr(byte): byte for byte in as_they_are}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def name_of_end(tokenizer: ByteLevelTokenizer, asked: str | None) -> str:
    """Return the name of the token that ends a document: END_OF_TEXT, or the one asked for.

    Raises: ValueError where it is no special token.
    """
    specials = {tokenizer.tokens[i] for i in tokenizer.special}
    for name in (END_OF_TEXT, asked):
        if name in specials:
            return name
    if asked is None:
        raise ValueError(
            f"it has no special token {END_OF_TEXT}, and no other token is named that ends a text"
        )
    raise ValueError(f"{_shown(asked)}, which should end a text, is not one of its special tokens")


def _model(model: Any) -> dict[str, Any]:
    """Return the BPE of a tokenizer, with known keys alone. Raises: ValueError."""
    _expect("model", _type(model), "BPE")
    _expect("model.dropout", model.get("dropout"), None)
    _expect("model.byte_fallback", model.get("byte_fallback"), None, False)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        _expect(f"model.{key}", model.get(key), None, "")
    _expect("model.ignore_merges", model.get("ignore_merges"), None, False, True)
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not all(map(_is_name, ids)):
        raise ValueError("model.vocab: expected the id of each token")
    missing = NEEDED_BYTES - _bytes(ids)
    if missing:
        raise ValueError(
            f"model.vocab lacks {len(missing)} of the bytes of ordinary text, such as "
            f"0x{min(missing):02x}"
        )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": bool(model.get("ignore_merges")),
        "vocab": ids,
        "merges": _merges(model.get("merges"), ids),
    }


def _bytes(ids: dict[str, int]) -> frozenset[int]:
    return frozenset(byte for letter, byte in byte_letters().items() if letter in ids)


def _merges(merges: Any, ids: dict[str, int]) -> list[list[str]]:
    """Return the pairs that are merged. Raises: ValueError where one does not make a token."""
    if not isinstance(merges, list):
        raise ValueError("model.merges: expected a list")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(map(_is_name, pair))
        if not is_pair or not {pair[0], pair[1], pair[0] + pair[1]} <= ids.keys():
            raise ValueError(f"model.merges: {_shown(pair)} makes no token of two others")
    return pairs


def _normalizer(normalizer: Any) -> dict[str, str] | None:
    """Return the normalizer: NFC or none. Raises: ValueError."""
    kind = _type(normalizer)
    _expect("normalizer", kind, None, "NFC")
    return None if kind is None else {"type": "NFC"}


def _pre_tokenizer(given: Any) -> tuple[dict[str, Any], bool]:
    """Return how a text is cut into words, and whether it may be cut before a line feed.

    Raises: ValueError.
    """
    steps = [given]
    if _type(given) == "Sequence":
        steps = given.get("pretokenizers")
        if not isinstance(steps, list):
            raise ValueError("pre_tokenizer.pretokenizers: expected a list")
    known = []
    words = set()
    for step in steps:
        kind = _type(step)
        _expect("pre_tokenizer", kind, "Split", "Digits", "ByteLevel")
        if kind == "Digits":
            known.append({"type": kind, "individual_digits": bool(step.get("individual_digits"))})
        elif kind == "Split":
            known.append(_split(step))
            words.add(known[-1]["pattern"]["Regex"])
        else:
            _expect("pre_tokenizer.add_prefix_space", step.get("add_prefix_space"), None, False)
            known.append(_byte_level(bool(step.get("use_regex", True))))
            if known[-1]["use_regex"]:
                words.add(GPT2_WORDS)
    if not known or known[-1]["type"] != "ByteLevel" or len(words) != 1:
        raise ValueError("pre_tokenizer: expected one known regex, and ByteLevel at the end")
    if sum(step["type"] == "ByteLevel" for step in known) > 1:
        raise ValueError("pre_tokenizer: expected ByteLevel once")
    before = not words & WORDS_WITH_ALL_LINE_FEEDS
    return {"type": "Sequence", "pretokenizers": known}, before


def _split(step: dict[str, Any]) -> dict[str, Any]:
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str) or regex not in {GPT2_WORDS, *WORDS_WITH_ALL_LINE_FEEDS}:
        raise ValueError(f"pre_tokenizer: the pattern {_shown(regex)} is not known here")
    _expect("pre_tokenizer.behavior", step.get("behavior"), "Isolated")
    _expect("pre_tokenizer.invert", step.get("invert"), None, False)
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


PLAIN_QWEN2 = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": QWEN2_WORDS},
            "behavior": "Isolated",
            "invert": False,
        },
        _byte_level(use_regex=False),
    ],
}


def _added_tokens(given: Any) -> list[dict[str, Any]]:
    """Return the tokens beside the model's, with known keys alone. Raises: ValueError."""
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(token, dict) for token in given):
        raise ValueError("added_tokens: expected a list of tokens")
    tokens = []
    for token in given:
        name = token.get("content")
        if not _is_name(name) or type(token.get("id")) is not int:
            raise ValueError(f"added_tokens: {_shown(token)} is no token")
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        tokens.append(
            {"id": token["id"], "content": name} | {flag: token.get(flag) is True for flag in flags}
        )
    return tokens


def _in_order(ids: dict[str, int]) -> list[str]:
    """Return the name of each id. Raises: ValueError unless they are 0, 1, 2 and so on."""
    if len(ids) > MOST_TOKENS:
        raise ValueError(f"it has {len(ids)} tokens, at most {MOST_TOKENS} are read")
    name_of = {i: name for name, i in ids.items() if type(i) is int}
    if name_of.keys() != set(range(len(ids))):
        raise ValueError(f"the ids of its {len(ids)} tokens are not 0 to {len(ids) - 1}")
    return [name_of[i] for i in range(len(ids))]


def _check_special(special: set[str], model: dict[str, Any]) -> None:
    """Check that ordinary text makes no special token. Raises: ValueError."""
    ordinary = byte_letters().keys() | {part for pair in model["merges"] for part in pair}
    ordinary |= {pair[0] + pair[1] for pair in model["merges"]}
    both = ordinary & special
    if both:
        raise ValueError(f"its special token {_shown(min(both))} is ordinary text, too")


def _check_ordinary(added: list[dict[str, Any]]) -> None:
    """Check that a text can be cut at line feeds with these tokens in it. Raises: ValueError."""
    for token in added:
        if "\n" in token["content"] or token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise ValueError(
                f"its token {_shown(token['content'])} depends on what is around it in a text"
            )


def _type(part: Any) -> Any:
    """Return the type of a part of a tokenizer; None: there is no such part. Raises: ValueError."""
    if part is not None and not isinstance(part, dict):
        raise ValueError(f"found {_shown(part)}, expected a part with a type")
    return None if part is None else part.get("type")


def _expect(key: str, found: Any, *expected: object) -> None:
    """Check a value. Raises: ValueError."""
    if not any(type(found) is type(value) and found == value for value in expected):
        words = " or ".join(json.dumps(value) for value in expected)
        raise ValueError(f"{key}: found {_shown(found)}, expected {words}")


def _is_name(name: Any) -> bool:
    """Return whether this can be the name of a token: text that UTF-8 can write."""
    if not isinstance(name, str) or not name:
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    text = ascii(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
