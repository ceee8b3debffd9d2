r"""Is a text on a terminal's row a newer state of the text that it replaces?

A progress bar, a counter or a spinner replaces itself many times. Another message that is written
on the same row is no newer state, and both are kept. The words of the two texts decide, and the
signs of progress: a percentage, a bar, `3/10`, a spinner. Units such as `MB/s` are no words.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

# An address names somebody; all other numbers count something
WORD = re.compile(
    r"[Nn]/[Aa]\b|[^\W\d_]+(?:[-'][^\W\d_]+)*|(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"
)
UNITS = re.compile("n/a|[kmgt]?i?b|[kmgshd]|ms|us|min|secs?|its?|eta|in|at|of")
BAR = "━╸╺█▏▎▍▌▋▊▉▐░▒▓■□▪▫▰▱⣿⣀⠿"
SIGN = re.compile(
    r"\d\s?%"
    rf"|[{BAR}]{{2,}}"
    rf"|[\[|<(][#=\-.>*+ {BAR}]{{3,}}[\]|>)]|[#=]{{4,}}"
    r"|(?<![\w/.:-])\d+(?:[.,]\d+)?\s?(?:[kKMGT]?i?B)?\s?/\s?~?\d+(?![\d]*[/:-])"
    r"|--:--|--\.-|\b[Pp]rogress\b\D*\d"
    r"|^\s*[\u2801-\u28ff◐◓◑◒◴◷◶◵◜◠◝◞◡◟✔✓✖✗✘✅❌⏳⌛](?=\s|$)|^\s*[-|/\\](?=\s|$)"
    r"|\s[-|/\\\u2801-\u28ff]\s*$"
)
# A date or a time of day at the beginning: a record, not a bar
STAMP = re.compile(
    r"^\W{0,3}(?:\d{4}[-/.]\d\d[-/.]\d\d|\d\d?[./]\d\d?[./]\d{4}|[A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d"
    r"|\d\d:\d\d:\d\d\b)"
)
NAME = re.compile(r"^\W*(?=[\w./-]*[^\W\d_])(?:[\w./-]+:(?=\s)|(?=[^\s\d]*\d)[\w./-]+)")
# What such a word stands in is never a state that may go
ALARM = re.compile(
    r"fail|error|warn|fatal|denied|refused|exception|panic|critical|traceback|abort|corrupt"
    r"|unable|cannot|invalid|killed|timeout"
)
SHARE_OF_WORDS = 0.6  # of a row's words that its newer state still has
REMEMBERED = 256  # texts
LONGEST_REMEMBERED = 512  # characters
Fact = TypeVar("Fact")


def _remember(fact: Callable[[str], Fact]) -> Callable[[str], Fact]:
    """Make a function of a text remember its last results; each state is compared several times."""
    remembered = lru_cache(maxsize=REMEMBERED)(fact)

    @wraps(fact)
    def look_up(text: str) -> Fact:
        return remembered(text) if len(text) <= LONGEST_REMEMBERED else fact(text)

    return look_up


@_remember
def words(text: str) -> list[str]:
    """Return a text's words, without numbers and units, in lower case."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    found = (word.lower() for word in WORD.findall(text))
    return [word for word in found if not UNITS.fullmatch(word)]


@_remember
def has_sign(text: str) -> bool:
    """Return whether a text has a sign of progress."""
    return SIGN.search(text) is not None


@_remember
def has_alarm(text: str) -> bool:
    """Return whether a text has a word of a failure: it never is a state that may go."""
    return ALARM.search(text.lower()) is not None


@_remember
def is_record(text: str) -> bool:
    """Return whether a text begins as a log's records do: with a date or a time of day."""
    return STAMP.match(text) is not None


def is_bar(text: str) -> bool:
    """Return whether a text is a bar, a counter or a spinner without any word."""
    return has_sign(text) and not words(text)


def is_state(text: str) -> bool:
    """Return whether a text only tells how far something is, and may go when it is done."""
    return has_sign(text) and not is_record(text) and not has_alarm(text)


def keeps_alarms(old: str, new: str) -> bool:
    """Return whether each alarming word of the old text is also in the new one."""
    if not has_alarm(old):
        return True
    left = words(new)
    return all(word in left for word in words(old) if ALARM.search(word))


def is_alike(old: str, new: str, needs_sign: bool = False) -> bool:
    """Return whether `new` is plainly a newer state of `old`: nothing but numbers may be lost.

    needs_sign: only if they have signs of progress.
    """
    if not (old.isascii() and new.isascii()):
        old = unicodedata.normalize("NFC", old)
        new = unicodedata.normalize("NFC", new)
    if old.strip() in new and not (needs_sign and not has_sign(new)):
        return True
    if not keeps_alarms(old, new):
        return False
    old_words = words(old)
    new_words = words(new)
    are_signed = has_sign(old) and has_sign(new)
    if old_words == new_words[: len(old_words)] and (old_words or not new_words):
        return has_sign(old) or not (needs_sign or is_record(old) or has_alarm(old))
    if not are_signed or is_record(old):
        return False
    if old_words[:1] == new_words[:1]:
        return True
    return _label(old) == _label(new)


def is_newer_row(old: str, new: str) -> bool:
    """Return whether `new` may replace `old` on a row that a program went back to on purpose.

    Rows of a table or of a list of tasks change their words: `a1: Waiting`, `a1: Pull complete`.
    """
    if is_alike(old, new):
        return True
    if is_record(old) or not keeps_alarms(old, new):
        return False
    old_words = words(old)
    new_words = words(new)
    if is_state(old) or "" != _key(old).lstrip() == _key(new).lstrip():
        return True
    kept = sum(word in new_words for word in old_words)
    return len(old_words) > 1 and kept >= SHARE_OF_WORDS * len(old_words)


def _label(text: str) -> list[str]:
    """Return the words before the first sign of progress."""
    sign = SIGN.search(text)
    return words(text[: sign.start()] if sign else text)


def _key(text: str) -> str:
    """Return what names a row of a list: its first word, if that ends in a colon or has a digit."""
    first = NAME.search(text)
    return first[0] if first else ""
