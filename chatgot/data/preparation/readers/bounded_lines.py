"""The lines of a text, none of which is endless."""

from collections.abc import Iterator

from chatgot.data.preparation.reader import Findings, UnreadableError
from chatgot.data.preparation.source import Source
from chatgot.errors import ConfigError

ENDS_OF_FILES = "\0\x1a"  # of torn ones, and of those of DOS
LONGEST_LINE = 1_000_000  # characters; no messenger has messages as long


def text_of(source: Source) -> Iterator[str]:
    """Yield the text of a file in large pieces. Raises: UnreadableError."""
    if source.encoding is None:
        raise UnreadableError("it is not text in any known encoding")
    try:
        yield from source.chunks()
    except ConfigError as error:
        raise UnreadableError(str(error).removeprefix(f"{source.path}: ")) from error


def bounded_lines(source: Source, findings: Findings) -> Iterator[str]:
    """Yield the lines of a text without their ends; a longer one comes in parts.

    Raises: UnreadableError.
    """
    rest = ""
    for chunk in text_of(source):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            if len(line) > LONGEST_LINE:
                yield from _parts(line, findings)
            else:
                yield line
        if len(rest) > LONGEST_LINE:
            *parts, rest = _parts(rest, findings)
            yield from parts
    rest = rest.rstrip(ENDS_OF_FILES)
    if rest:
        yield rest


def _parts(line: str, findings: Findings) -> Iterator[str]:
    findings.remark(f"lines of more than {LONGEST_LINE:,} characters are cut into several")
    for start in range(0, len(line), LONGEST_LINE):
        yield line[start : start + LONGEST_LINE]
