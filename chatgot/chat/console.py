"""Where does a conversation take place: what does it need of a terminal, or of a pipe?"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol, TextIO

from chatgot.logs.logging_setup import escape_controls
from chatgot.stdout import write_to_stdout

Stopped = Callable[[], bool]  # whether Ctrl-C was pressed


class Leave(Exception):
    """The conversation is over."""


class Console(Protocol):
    """Reads what a person types and shows what is said, as text: no control character passes."""

    def read(self, label: str, hint: str = "", default: str = "") -> str:
        """Return a line; `default` may be edited.

        Raises: EOFError: there are no more; KeyboardInterrupt: the line was given up.
        """

    def ask(self, question: str) -> str:
        """Return the answer to a question; empty: none was given."""

    def note(self, text: str) -> None:
        """Show a line that nobody says."""

    def begin(self, name: str) -> None:
        """Begin a speech; an empty name is not shown."""

    def write(self, text: str, marked: bool = False) -> None:
        """Show the next piece of the speech; marked: so that it stands out."""

    def end(self) -> None:
        """End the speech."""

    def answering(self) -> AbstractContextManager[Stopped]:
        """Let Ctrl-C stop the block, which asks whether it was pressed."""


class Pipe:
    """Reads lines from a pipe; what is said goes to stdout, all else to stderr."""

    def __init__(self, source: TextIO) -> None:
        self._source = source

    def read(self, label: str, hint: str = "", default: str = "") -> str:
        line = self._source.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def ask(self, question: str) -> str:
        self.note(question)
        try:
            return self.read("")
        except EOFError:
            return ""

    def note(self, text: str) -> None:
        with suppress(OSError):  # stderr may be a pipe that nobody reads
            sys.stderr.write(f"{escape_controls(text, chr(10))}\n")
            sys.stderr.flush()

    def begin(self, name: str) -> None:
        if name:
            self.write(f"{name}:\n")

    def write(self, text: str, marked: bool = False) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        shown = escape_controls(f"[[{text}]]" if marked else text, "\n")
        if not write_to_stdout([shown.encode(encoding, "backslashreplace")]):
            raise Leave

    def end(self) -> None:
        self.write("\n\n")

    @contextmanager
    def answering(self) -> Iterator[Stopped]:
        """Leave Ctrl-C as it is: it ends the process."""
        yield lambda: False
