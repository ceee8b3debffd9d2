"""What a user wants mended, and what mending found."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chatgot.data.preparation.reader import Findings
from chatgot.errors import ConfigError

MOST_PAIRS = 20  # documents that are named with the one that they repeat


@dataclass(frozen=True)
class CleaningOptions:
    """What is mended besides Unicode's normal form NFC, which every text gets.

    normalize_quotes: write quotes, dashes, ellipses and odd spaces in ASCII.
    drop_duplicates: leave out recaps, duplicate documents and repeated long passages; they are
    found and counted anyway.
    merge: {name: the name it gets}, of speakers.
    anonymize: replace names of speakers, phone numbers, mail addresses and links.
    """

    normalize_quotes: bool = False
    drop_duplicates: bool = False
    merge: Mapping[str, str] = field(default_factory=dict)
    anonymize: bool = False


@dataclass(frozen=True)
class Repeat:
    """A document that says what an earlier one says.

    is_exact: to the character; else nearly.
    """

    title: str
    earlier: str
    is_exact: bool


@dataclass
class CleaningFindings(Findings):
    """What mending found in the whole text.

    changed: how many things of a kind were replaced: {"quotes, dashes and spaces": 1200}.
    repeated: how many things of a kind were there before: {"recaps": 3}. They are in `left_out`
    too if they were dropped.
    repeats: the first MOST_PAIRS documents that repeat another.
    """

    changed: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    repeats: list[Repeat] = field(default_factory=list)


def merge_of(arguments: Sequence[str]) -> dict[str, str]:
    """Return {name: the name it gets} of arguments such as `ALICE=Alice,alice_99`.

    Raises: ConfigError for an argument without names, and for a name that would get two others.
    """
    merge: dict[str, str] = {}
    for argument in arguments:
        target, equals, names = argument.partition("=")
        target = target.strip()
        others = [name.strip() for name in names.split(",") if name.strip()]
        if not (equals and target and others):
            raise ConfigError(
                f"--merge {argument}: expected NAME=OTHER,OTHER: the name to use, and those that "
                "it replaces"
            )
        for other in others:
            if merge.setdefault(other, target) != target:
                raise ConfigError(
                    f"--merge: {other} is to become {merge[other]} and {target}; leave one out"
                )
    merge = {other: target for other, target in merge.items() if other != target}
    for other, target in merge.items():
        if target in merge:
            raise ConfigError(
                f"--merge: {other} is to become {target}, and {target} is to become "
                f"{merge[target]}; give all names at once: {merge[target]}={other},{target}"
            )
    return merge
