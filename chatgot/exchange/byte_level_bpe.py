"""How does llama.cpp cut a text into tokens? By byte-level BPE, as a GGUF file describes it.

This is an encoder of its own, from the file's words alone: exports are proven with it.
Sources: https://github.com/openai/gpt-2/blob/master/src/encoder.py (bytes as letters, merges);
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp (names of the regexes).
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from tokenizers import Regex, pre_tokenizers

NORMAL = 1  # types of tokens, as GGUF numbers them
CONTROL = 3  # adds nothing to a text
USER_DEFINED = 4  # a text of its own, which is found before all others
UNUSED = 5  # stands for nothing

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a text is cut into words, by the name that a GGUF has for it: one regex after the other
WORDS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_QWEN2,),
    "llama-bpe": (_QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1),),
}
IGNORES_MERGES = frozenset({"llama-bpe"})  # a word that is a token is taken whole


def letters_of_bytes() -> list[str]:
    """Return the letter that stands for each of the 256 bytes in the names of tokens."""
    as_they_are = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in as_they_are else next(others)) for byte in range(256)]


class ByteLevelBpe:
    """Turns a text into ids.

    names, types: of each token; merges: two names with a space between them, the first ones first;
    pre: a key of WORDS.
    """

    def __init__(
        self, names: Sequence[str], types: Sequence[int], merges: Sequence[str], pre: str
    ) -> None:
        self.pre = pre
        self._id_of = {name: i for i, name in enumerate(names)}
        self._rank_of = {merge: rank for rank, merge in enumerate(merges)}
        self._letters = letters_of_bytes()
        self._words = _splitter(WORDS[pre])
        self._ignores_merges = pre in IGNORES_MERGES
        self._ids_of_word: dict[str, list[int]] = {}
        whole = [
            name
            for name, kind in zip(names, types, strict=True)
            if kind in (CONTROL, USER_DEFINED) and name
        ]
        longest_first = sorted(whole, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises: KeyError for what no token can write."""
        ids: list[int] = []
        end = 0
        for match in self._whole.finditer(text):
            ids += self._encode_words(text[end : match.start()])
            ids.append(self._id_of[match.group()])
            end = match.end()
        return ids + self._encode_words(text[end:])

    def _encode_words(self, text: str) -> list[int]:
        ids: list[int] = []
        for word, _ in self._words.pre_tokenize_str(text):
            if word not in self._ids_of_word:
                self._ids_of_word[word] = self._encode_word(word)
            ids += self._ids_of_word[word]
        return ids

    def _encode_word(self, word: str) -> list[int]:
        parts = [self._letters[byte] for byte in word.encode()]
        if self._ignores_merges and "".join(parts) in self._id_of:
            return [self._id_of["".join(parts)]]
        while True:
            pairs = enumerate(pairwise(parts))
            ranks = [(self._rank_of.get(f"{a} {b}"), place) for place, (a, b) in pairs]
            known = [(rank, place) for rank, place in ranks if rank is not None]
            if not known:
                break
            _, place = min(known)
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        if not all(part in self._id_of for part in parts):
            raise KeyError(word)
        return [self._id_of[part] for part in parts]


def _splitter(regexes: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(regex), "isolated") for regex in regexes]
    )
