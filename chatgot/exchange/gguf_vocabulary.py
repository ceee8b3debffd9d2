"""What does a GGUF file say of our tokens? That they are those of a byte-level BPE.

A character is a token whose merges join its bytes, and no others: so each character of a text
becomes its token, wherever llama.cpp cuts the text into words.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from chatgot.data.vocabulary import Characters, Vocabulary
from chatgot.errors import ExportImpossible
from chatgot.exchange.byte_level_bpe import (
    CONTROL,
    IGNORES_MERGES,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    WORDS,
    letters_of_bytes,
)

PRE_OF_CHARACTERS = "qwen2"  # its words never end within a character
# llama.cpp wants one merge at least. This one joins two bytes that are in no text.
NO_MERGE = "\N{LATIN SMALL LETTER Y WITH DIAERESIS} \N{LATIN SMALL LETTER Y WITH DIAERESIS}"
SHOWN = 60  # characters of an odd regex in a message
SHOWN_CHARACTERS = 8


@dataclass(frozen=True)
class TokensInGguf:
    """The tokens as a GGUF file has them (see ByteLevelBpe), and what the user should know."""

    names: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    remarks: list[str]


def tokens_in_gguf(vocabulary: Vocabulary) -> TokensInGguf:
    """Return what a GGUF says of a vocabulary.

    Raises: ExportImpossible for a tokenizer that has no name in llama.cpp.
    """
    if isinstance(vocabulary, Characters):
        return _characters(vocabulary)
    # only subwords have a file of their own
    return _subwords(json.loads(vocabulary.json), vocabulary.tokens)  # type: ignore[attr-defined]


def padded(tokens: TokensInGguf, rows: int) -> TokensInGguf:
    """Return the tokens with one more for each further row of the embedding: llama.cpp wants that.

    Their names are those that llama.cpp's own conversion gives them.
    """
    names = list(tokens.names)
    while len(names) < rows:
        names.append(padding_name(len(names)))
    types = tokens.types + [UNUSED] * (len(names) - len(tokens.names))
    return replace(tokens, names=names, types=types)


def padding_name(i: int) -> str:
    """Return the name of an id that stands for nothing."""
    return f"[PAD{i}]"


def _characters(vocabulary: Characters) -> TokensInGguf:
    letters = letters_of_bytes()
    end_of_text, *characters = vocabulary.tokens
    spelt = [[letters[byte] for byte in character.encode()] for character in characters]
    merges: dict[str, None] = {}  # in order, each once
    for parts in spelt:
        for joined, part in zip(accumulate(parts), parts[1:], strict=False):
            merges[f"{joined} {part}"] = None
    remarks = [
        "llama.cpp and Ollama leave out characters that the vocabulary does not have, and do not "
        "say so"
    ]
    long = "".join(c for c, parts in zip(characters, spelt, strict=True) if len(parts) > 2)
    if long:
        remarks.append(
            "older versions of Ollama, which did not run llama.cpp for every model, also leave out "
            f"characters such as {long[:SHOWN_CHARACTERS]}: update Ollama"
        )
    return TokensInGguf(
        names=[end_of_text, *map("".join, spelt)],
        types=[CONTROL, *[NORMAL] * len(spelt)],
        merges=list(merges) or [NO_MERGE],
        pre=PRE_OF_CHARACTERS,
        remarks=remarks,
    )


def _subwords(tokenizer: dict[str, Any], names: Sequence[str]) -> TokensInGguf:
    """Return what a GGUF says of a byte-level tokenizer.json, which was checked as it came in."""
    pre = _pre(tokenizer)
    added = {token["content"]: token for token in tokenizer.get("added_tokens") or []}
    types = [NORMAL] * len(names)
    for i, name in enumerate(names):
        if name in added:
            types[i] = CONTROL if added[name].get("special") else USER_DEFINED
    merges = tokenizer["model"]["merges"]
    joined = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    remarks = []
    if tokenizer.get("normalizer"):
        remarks.append(
            "llama.cpp does not compose accents (Unicode's NFC), as the tokenizer does: a text "
            "with separate accents gets other tokens there"
        )
    return TokensInGguf(list(names), types, joined or [NO_MERGE], pre, remarks)


def _pre(tokenizer: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer cuts a text into words.

    Raises: ExportImpossible.
    """
    regexes = _regexes(tokenizer.get("pre_tokenizer") or {})
    ignores_merges = bool(tokenizer["model"].get("ignore_merges"))
    for name, known in WORDS.items():
        if known == regexes and (name in IGNORES_MERGES) == ignores_merges:
            return name
    shown = " then ".join(regexes)
    raise ExportImpossible(
        f"the tokenizer cuts text into words by {shown[:SHOWN]!r}"
        f"{', taking known words whole' if ignores_merges else ''}: it has no name in a GGUF; "
        f"known are {', '.join(WORDS)}"
    )


def _regexes(pre_tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """Return the regexes of a pre-tokenizer, in order; what is none is its type in brackets."""
    regexes: list[str] = []
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        kind = step.get("type")
        if kind == "Split":
            regexes.append(str(step["pattern"].get("Regex")))
        elif kind == "Digits" and step.get("individual_digits"):
            regexes.append(WORDS["smollm"][0])
        elif kind != "ByteLevel":
            regexes.append(f"[{kind}]")
        elif step.get("use_regex", True):
            regexes.append(WORDS["gpt-2"][0])
    return tuple(regexes)
