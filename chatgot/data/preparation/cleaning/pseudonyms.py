r"""Replaces what tells who somebody is: names of speakers, numbers, addresses, links.

A speaker becomes `Person_1`, as a speaker and where somebody mentions them: the whole name, and its
parts (`Alice` of `Alice Smith`), as whole words. A part that several speakers share becomes
`Name_1`. A name of one letter is replaced in speakers' lines only.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from chatgot.data.near_duplicates import WITHOUT_SPACES
from chatgot.data.preparation.cleaning.options import CleaningFindings
from chatgot.data.preparation.cleaning.speakers import speakers_of
from chatgot.data.preparation.pieces import Passage, Piece, PlainText, Speech
from chatgot.data.prompts import LEAST_SPEECHES

MOST_SPEAKERS = 100_000  # with a pseudonym of their own; those who come later share one
MOST_MENTIONED = 5_000  # who are looked for in the text, by the number of their speeches
MOST_NUMBERED = 100_000  # phone numbers, mail addresses and links; later ones get no number
MOST_WORDS = 300_000  # that are counted; then those that came once are forgotten
COUNTED_CHARACTERS = 20_000_000  # of the text, from its beginning
# A name in small letters that is an ordinary word stays: `will`
ORDINARY_COUNT = 20
ORDINARY_RATIO = 2  # times as often as with a capital
LEAST_PART = 3  # characters of a part of a name
LATE_SPEAKER = "Person_0"
WORD = re.compile(r"\w+")
LINK = r"(?:https?://|\bwww\.)[^\s<>\"]+|(?<![\w@.-])(?:[\w-]{1,63}\.){1,8}[a-z]{2,12}/[^\s<>\"]*"
MAIL = r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"
PHONE = r"(?<![\w.,/-])(?:\+|\()?\d[\d \t\u00a0().\u2010-\u2013/-]{5,22}\d(?![\w])"
ADDRESS = re.compile(rf"(?P<link>{LINK})|(?P<mail>{MAIL})|(?P<phone>{PHONE})", re.IGNORECASE)
AFTER_LINK = ".,;:!?)]}'*_\u2019\u201d"  # at its end: these belong to the sentence
DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}\b")
PHONE_DIGITS = range(7, 16)  # E.164 has 15 at most
BARE_DIGITS = 9  # without a sign of a phone number, so many digits are one
GROUPED = re.compile(r"\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}")  # as in North America
KINDS = {"link": "links", "mail": "mail addresses", "phone": "phone numbers"}


class NameCounts:
    """Who speaks, and how often words are in the text: what pseudonyms are made from."""

    def __init__(self) -> None:
        self.speeches: Counter[str] = Counter()  # in the order of the first ones
        self.words: Counter[str] = Counter()
        self._left = COUNTED_CHARACTERS
        self._plain: Counter[str] = Counter()  # lines of plain text that may name a speaker

    def count(self, piece: Piece) -> None:
        """Count what a piece has."""
        counts = self._plain if isinstance(piece, PlainText) else self.speeches
        for name in speakers_of(piece):
            if name in counts or len(counts) < MOST_SPEAKERS:
                counts[name] += 1
        if isinstance(piece, Speech | Passage | PlainText) and self._left > 0:
            self._left -= len(piece.text)
            self.words.update(WORD.findall(piece.text))
            if len(self.words) > MOST_WORDS:
                self.words = Counter({word: n for word, n in self.words.items() if n > 1})

    def speakers(self) -> Counter[str]:
        """Return the speakers with their speeches; in a plain text, a heading is none."""
        often = {name: n for name, n in self._plain.items() if n >= LEAST_SPEECHES}
        return self.speeches + Counter(often)

    def is_ordinary(self, word: str) -> bool:
        """Return whether a name is a word as well, by how often it is in small letters."""
        small = self.words[word.lower()]
        capital = self.words[word.title()] + self.words[word.upper()]
        return small > ORDINARY_COUNT and small > ORDINARY_RATIO * capital


class Pseudonyms:
    """Gives each name, number and address its pseudonym, the same in the whole text."""

    def __init__(self, counts: NameCounts, merge: Mapping[str, str]) -> None:
        """Number the speakers in the order of their first speeches.

        merge: {name: the name it gets}; who is mentioned by the first is the second.
        """
        speakers = counts.speakers()
        self.kept_words: list[str] = []  # names in small letters that stay, as ordinary words
        self.is_full = len(speakers) >= MOST_SPEAKERS
        self.not_mentioned = max(0, len(speakers) - MOST_MENTIONED)
        self._of_name: dict[str, str] = {}
        self._number = 0
        self._taken = set(speakers)
        for name in speakers:
            self._of_name[name] = self._next()
        self._of_phone = {
            digits: self._of_name[name]
            for name in speakers
            if len(digits := _digits(name)) in PHONE_DIGITS
        }
        self._of_address: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
        mentioned = [name for name, _ in speakers.most_common(MOST_MENTIONED)]
        for other, name in merge.items():
            if name in self._of_name:
                self._of_name[other] = self._of_name[name]
                mentioned.append(other)
        self._of_mention = self._mentions(mentioned, counts)
        self._pattern = _pattern_of(self._of_mention)
        lines = "|".join(re.escape(name) for name in mentioned if len(name) == 1)
        self._short = re.compile(rf"^(?:{lines})(?=:$)", re.MULTILINE) if lines else None

    def name(self, name: str) -> str:
        """Return the pseudonym of a speaker."""
        pseudonym = self._of_name.get(name)
        if pseudonym is None:
            if len(self._of_name) >= MOST_SPEAKERS:
                return LATE_SPEAKER
            pseudonym = self._of_name[name] = self._next()
        return pseudonym

    def text(self, text: str, findings: CleaningFindings) -> str:
        """Return a text with pseudonyms for whatever tells who somebody is; counts them."""
        if _may_have_address(text):
            text = ADDRESS.sub(lambda match: self._address(match, findings), text)
        if self._short is not None:
            text = self._short.sub(lambda match: self._of_name[match[0]], text)
        if self._pattern is not None:
            text, count = self._pattern.subn(lambda match: self._of_mention[match[0]], text)
            if count:
                findings.changed["names in the text"] += count
        return text

    def say_limits(self, findings: CleaningFindings) -> None:
        """Remark what was not replaced."""
        if self.kept_words:
            words = ", ".join(self.kept_words[:8])
            findings.remark(
                f"--anonymize: left in small letters, where they are ordinary words: {words}"
            )
        if self.not_mentioned:
            findings.remark(
                f"--anonymize: of {len(self._of_name):,} speakers, only the {MOST_MENTIONED:,} "
                "with most speeches are replaced where others mention them"
            )
        if self.is_full:
            findings.remark(
                f"--anonymize: speakers after the first {MOST_SPEAKERS:,} are all {LATE_SPEAKER}"
            )
        for kind, known in self._of_address.items():
            if len(known) >= MOST_NUMBERED:
                findings.remark(
                    f"--anonymize: {KINDS[kind]} after the first {MOST_NUMBERED:,} have no number"
                )

    def _next(self, word: str = "Person") -> str:
        """Return a pseudonym that nobody is called."""
        while True:
            self._number += 1
            pseudonym = f"{word}_{self._number}"
            if pseudonym not in self._taken:
                return pseudonym

    def _mentions(self, names: list[str], counts: NameCounts) -> dict[str, str]:
        """Return {how somebody is mentioned: pseudonym}; whole names go before parts."""
        mentions: dict[str, str] = {}
        for name in names:
            if len(name) > 1:
                mentions[name] = self._of_name[name]
        for name in names:
            if len(name) > 1:
                self._add_forms(mentions, name, self._of_name[name], counts)
        owners: dict[str, set[str]] = {}
        for name in names:
            for part in _parts_of(name):
                owners.setdefault(part, set()).add(self._of_name[name])
        for part, pseudonyms in owners.items():
            if counts.is_ordinary(part):
                continue
            pseudonym = self._next("Name") if len(pseudonyms) > 1 else min(pseudonyms)
            mentions.setdefault(part, pseudonym)
            self._add_forms(mentions, part, mentions[part], counts)
        return mentions

    def _add_forms(
        self, mentions: dict[str, str], name: str, pseudonym: str, counts: NameCounts
    ) -> None:
        """Add how a name is written with other capitals."""
        forms = [name.upper(), name.title()]
        if counts.is_ordinary(name):
            self.kept_words.append(name.lower())
        else:
            forms.append(name.lower())
        for form in forms:
            mentions.setdefault(form, pseudonym)

    def _address(self, match: re.Match[str], findings: CleaningFindings) -> str:
        kind = match.lastgroup
        assert kind is not None, "each alternative has a name"
        found = match[0]
        after = ""
        key = found.casefold()
        if kind == "link":
            shown = found.rstrip(AFTER_LINK)
            after = found[len(shown) :]
            key = shown
        elif kind == "phone":
            if not _is_phone(found):
                return found
            key = _digits(found)
            if key in self._of_phone:
                findings.changed["names in the text"] += 1
                return self._of_phone[key]
        findings.changed[KINDS[kind]] += 1
        known = self._of_address[kind]
        if key not in known:
            if len(known) >= MOST_NUMBERED:
                return f"[{kind}]{after}"
            known[key] = f"[{kind} {len(known) + 1}]"
        return known[key] + after


def _parts_of(name: str) -> Iterator[str]:
    """Yield the words of a name that stand for it: capitalised, and not the only one."""
    words = WORD.findall(name)
    if len(words) < 2:
        return
    for word in words:
        if len(word) >= LEAST_PART and word[0].isupper():
            yield word


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


def _is_phone(found: str) -> bool:
    """Return whether a run of digits and signs is a phone number, not a date or an amount."""
    digits = len(_digits(found))
    if digits not in PHONE_DIGITS or DATE.match(found):
        return False
    if found[0] in "+0(" or GROUPED.fullmatch(found):
        return True
    return digits == len(found) and digits >= BARE_DIGITS


DIGIT = re.compile(r"\d")


def _may_have_address(text: str) -> bool:
    return "@" in text or "/" in text or "www." in text.lower() or DIGIT.search(text) is not None


# --------------------------------------------------------------------------------------------------
# One pattern for many names: by their first letters, so that a word is not compared with all


def _pattern_of(mentions: Iterable[str]) -> re.Pattern[str] | None:
    """Return the pattern of all mentions, as whole words, the longest first; None: there are none.

    Chinese and the like has no spaces, so there a name is found within a run of letters.
    """
    words = sorted(mention for mention in mentions if not _has_no_spaces(mention))
    others = sorted(mention for mention in mentions if _has_no_spaces(mention))
    patterns = []
    if words:
        patterns.append(rf"(?<!\w)(?:{_alternatives(words)})(?!\w)")
    if others:
        patterns.append(f"(?:{_alternatives(others)})")
    return re.compile("|".join(patterns)) if patterns else None


def _has_no_spaces(name: str) -> bool:
    return any(first <= ord(name[0]) < end for first, end in WITHOUT_SPACES)


def _alternatives(names: list[str]) -> str:
    """Return a pattern for sorted names, the longest first."""
    alternatives = []
    for first, group in groupby(names, key=lambda name: name[0]):
        rests = [name[1:] for name in group]
        longer = [rest for rest in rests if rest]
        pattern = re.escape(first)
        if len(longer) == 1:
            tail = re.escape(longer[0])
            pattern += f"(?:{tail})?" if len(rests) > 1 else tail
        elif longer:
            optional = "?" if len(longer) < len(rests) else ""
            pattern += f"(?:{_alternatives(longer)}){optional}"
        alternatives.append(pattern)
    return "|".join(alternatives)
