"""One input that a reader reads: a file, or a member of a zip."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatgot.data.text_file import text_chunks

SAMPLE_BYTES = 1 << 16
LONGEST_LINE = 1 << 24  # characters that are kept of a line that does not end


@dataclass(frozen=True)
class Source:
    r"""A file that a user gave, or one that was found in a folder or unpacked from a zip.

    name: as messages show it: `season 1/e02.srt`, `chat.zip: _chat.txt`.
    path: where its bytes are; a zip's member is a temporary file.
    encoding: of its text, given or guessed; None: it is no text in any encoding.
    head: its first SAMPLE_BYTES bytes.
    beginning: the text of the head, with "\n" as the only line end; empty where there is no
    encoding. It may end within a line.
    """

    name: str
    path: Path
    size: int
    encoding: str | None
    head: bytes
    beginning: str

    @property
    def ending(self) -> str:
        """The ending of the name, in small letters and without the dot; empty: none."""
        return Path(self.name).suffix.lower().lstrip(".")

    def chunks(self) -> Iterator[str]:
        """Yield the text in large pieces, cut anywhere. Raises: ConfigError."""
        assert self.encoding is not None, "only a text has chunks"
        yield from text_chunks(self.path, self.encoding)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the text, without their line ends; one without end comes in parts.

        Raises: ConfigError.
        """
        rest = ""
        for chunk in self.chunks():
            *lines, rest = (rest + chunk).split("\n")
            yield from lines
            if len(rest) > LONGEST_LINE:
                yield rest
                rest = ""
        if rest:
            yield rest
