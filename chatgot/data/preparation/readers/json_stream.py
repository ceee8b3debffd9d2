"""A large JSON text, read value by value from front to back."""

import json
import re
from collections.abc import Iterator

from chatgot.data.preparation.reader import UnreadableError

LONGEST_VALUE = 1 << 22  # characters of what is read at once
BLANK = re.compile(r"[ \t\n\r]*")
# Up to the next character that opens or ends something
STRUCTURE = re.compile(r'[^"\[\]{}]*')
STRING_PART = re.compile(r'[^"\\]*')
UNFINISHED = re.compile(r"[a-z]{0,4}|-|\\u?[0-9A-Fa-f]{0,3}")  # what may be at the cut
OPENING = frozenset("[{")


class JsonStream:
    """One JSON value in pieces of text.

    Its memory is bounded: the caller descends with `members` and `values` to what is small.
    Every method raises UnreadableError where the text is not JSON, with the place.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._decode = json.JSONDecoder(strict=False).raw_decode
        self._text = ""
        self._at = 0
        self._dropped = 0  # characters before the text
        self._is_whole = False  # all pieces were read
        self._is_due = False  # a value comes next that nobody has read yet

    def next_character(self) -> str:
        """Return the first character of what comes next; empty at the end of the text."""
        while True:
            blank = BLANK.match(self._text, self._at)
            assert blank is not None, "the pattern matches anything"
            self._at = blank.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def value(self) -> object:
        """Return the value that comes next, whole."""
        self._is_due = False
        self.next_character()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._may_read_on():
                    continue
                raise self._refusal(error) from error
            except (RecursionError, ValueError) as error:
                raise UnreadableError(
                    f"odd JSON at character {self._place():,}: {error}"
                ) from error
            # A number at the end of what was read may go on
            if end == len(self._text) and not self._is_whole and self._may_read_on():
                continue
            self._at = end
            return value

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that comes next.

        After each, the caller reads the value, or leaves it and it is skipped.
        """
        self._is_due = False
        self._expect("{")
        while self.next_character() != "}":
            key = self.value()
            if not isinstance(key, str):
                raise UnreadableError(f"odd JSON at character {self._place():,}: no key")
            self._expect(":")
            self._is_due = True
            yield key
            if self._is_due:
                self.skip()
            if self.next_character() != "}":
                self._expect(",")
        self._at += 1

    def elements(self) -> Iterator[str]:
        """Yield the first character of each element of the array that comes next.

        After each, the caller reads the element, or leaves it and it is skipped.
        """
        self._is_due = False
        self._expect("[")
        while (first := self.next_character()) != "]":
            self._is_due = True
            yield first
            if self._is_due:
                self.skip()
            if self.next_character() != "]":
                self._expect(",")
        self._at += 1

    def values(self) -> Iterator[object]:
        """Yield the elements of the array that comes next; nothing where no array comes."""
        if self.next_character() != "[":
            self.skip()
            return
        for _ in self.elements():
            yield self.value()

    def skip(self) -> None:
        """Pass by the value that comes next, of any size."""
        self._is_due = False
        first = self.next_character()
        if first == '"':
            self._pass_string()
        elif first in OPENING:
            self._pass_nested()
        else:
            self.value()

    def _pass_nested(self) -> None:
        depth = 0
        while True:
            self._pass_over(STRUCTURE)
            character = self._text[self._at]
            if character == '"':
                self._pass_string()
                continue
            self._at += 1
            depth += 1 if character in OPENING else -1
            if depth == 0:
                return

    def _pass_string(self) -> None:
        self._at += 1
        while True:
            self._pass_over(STRING_PART)
            if self._text[self._at] == '"':
                self._at += 1
                return
            self._at += 1
            if self._at >= len(self._text) and not self._read_on():
                raise self._cut_off()
            self._at += 1

    def _pass_over(self, pattern: re.Pattern[str]) -> None:
        """Go on to the first character that does not fit."""
        while True:
            passed = pattern.match(self._text, self._at)
            assert passed is not None, "the pattern matches anything"
            self._at = passed.end()
            if self._at < len(self._text):
                return
            if not self._read_on():
                raise self._cut_off()

    def _expect(self, character: str) -> None:
        found = self.next_character()
        if not found:
            raise self._cut_off()
        if found != character:
            raise UnreadableError(
                f"odd JSON at character {self._place():,}: expected {character}, found {found!r}"
            )
        self._at += 1

    def _may_read_on(self) -> bool:
        """Read on, unless the value is too long to be one of a messenger."""
        return len(self._text) - self._at <= LONGEST_VALUE and self._read_on()

    def _read_on(self) -> bool:
        """Read a piece more and forget what was passed; return whether there was one."""
        piece = next(self._pieces, "")
        if not piece:
            self._is_whole = True
            return False
        self._dropped += self._at
        self._text = self._text[self._at :] + piece
        self._at = 0
        return True

    def _place(self) -> int:
        return self._dropped + self._at + 1

    def _refusal(self, error: json.JSONDecodeError) -> UnreadableError:
        if not self._is_whole:
            return UnreadableError(
                f"the value at character {self._place():,} does not end within "
                f"{LONGEST_VALUE:,} characters"
            )
        rest = self._text[error.pos :].strip()
        if UNFINISHED.fullmatch(rest) or error.msg.startswith("Unterminated string"):
            return self._cut_off()
        return UnreadableError(
            f"odd JSON at character {self._dropped + error.pos + 1:,}: {error.msg}"
        )

    def _cut_off(self) -> UnreadableError:
        length = self._dropped + len(self._text)
        return UnreadableError(f"its JSON is cut off after {length:,} characters; export it again")
