"""Where does a line of a speech break on the screen?"""

import re

from prompt_toolkit.utils import get_cwidth

PARTS = re.compile(r"\n|[^\S\n]+|\S+")


class Wrapper:
    """Breaks lines between words, in a text that comes in pieces.

    A word is held back until it is complete; a word longer than a line is left to the terminal.
    """

    def __init__(self, width: int) -> None:
        self._width = max(1, width)
        self._column = 0
        self._word = ""
        self._space = ""  # before the word; dropped where the line breaks

    def feed(self, text: str) -> str:
        """Take the next piece; return what can be shown by now."""
        return "".join(self._place(part) for part in PARTS.findall(text))

    def end(self) -> str:
        """Return the rest."""
        return self._flush()

    def _place(self, part: str) -> str:
        if part == "\n":
            shown = self._flush()
            self._column = 0
            self._space = ""
            return f"{shown}\n"
        if part.isspace():
            shown = self._flush()
            self._space += part
            return shown
        self._word += part
        return ""

    def _flush(self) -> str:
        if not self._word:
            return ""
        space = self._space
        length = get_cwidth(self._word)
        if self._column and self._column + get_cwidth(space) + length > self._width:
            space = "\n"
            self._column = 0
        else:
            self._column += get_cwidth(space)
        shown = space + self._word
        self._column += length
        self._word = ""
        self._space = ""
        return shown
