"""How usual are a language's letters above ASCII, next to their neighbours?

`alphabets.txt` has the counts, rounded to half a nat; `python -m chatgot.data.count_letters` makes
it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("alphabets.txt")
BOUNDARY = "_"  # stands for a neighbour that is no letter
FOREIGN = 9.5  # nats: a letter that the language does not have
FOREIGN_WESTERN = 8.0  # nats: names and loan words have these in every language
WESTERN_LETTERS = frozenset("àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ")  # ð and þ: Icelandic alone
DOTTED_CAPITAL = 4.5  # nats: İ of Turkish, which is an ASCII letter in lower case
MIXED = 2.0  # nats: the language may change with each letter
UNSEEN_PAIR = 2.5  # nats: a letter of the language, next to a neighbour that it was not seen with
NATS_PER_LEVEL = 0.5
FOREIGN_CHARACTER = 12.0  # nats


@dataclass(frozen=True)
class Alphabet:
    """The surprise of letters, in nats: of each alone, after a neighbour, before a neighbour."""

    letters: Mapping[str, float]
    left: Mapping[str, float]
    right: Mapping[str, float]

    def surprise(self, before: str, letter: str, after: str) -> float:
        """Return the nats of a letter above ASCII between its neighbours, all in lower case."""
        alone = self.letters.get(letter)
        if alone is None:
            if letter == "i" and "ı" in self.letters:
                return DOTTED_CAPITAL
            return FOREIGN_WESTERN if letter in WESTERN_LETTERS else FOREIGN
        unseen = min(FOREIGN, alone + UNSEEN_PAIR)
        left = self.left.get(before + letter, unseen)
        if after > "\x7f":  # counted as the left neighbour of `after`
            return left
        return (left + self.right.get(letter + after, unseen)) / 2


@cache
def alphabet(language: str) -> Alphabet:
    """Return the letters of a language, or of a list of names in all languages of `de+fr+es`."""
    if "+" in language:
        return _mixed_alphabet([alphabet(one) for one in language.split("+")])
    tables = _tables()[language]
    return Alphabet(tables["letters"], tables["left"], tables["right"])


def _mixed_alphabet(alphabets: Sequence[Alphabet]) -> Alphabet:
    return Alphabet(
        _least([one.letters for one in alphabets]),
        _least([one.left for one in alphabets]),
        _least([one.right for one in alphabets]),
    )


def _least(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = {key for table in tables for key in table}
    return {key: MIXED + min(table.get(key, FOREIGN) for table in tables) for key in keys}


@cache
def common_characters(language: str) -> Mapping[str, float]:
    """Return the surprise, in nats, of the usual characters of Chinese, Japanese or Korean."""
    return _tables()[language]["characters"]


@cache
def _tables() -> dict[str, dict[str, dict[str, float]]]:
    """Return language -> table -> letter or pair of letters -> nats."""
    tables: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        language, table, level, entries = line.split(" ")
        width = 2 if table in ("left", "right") else 1
        nats = int(level) * NATS_PER_LEVEL
        tables[language][table].update(
            dict.fromkeys(map("".join, zip(*[iter(entries)] * width, strict=True)), nats)
        )
    return tables
