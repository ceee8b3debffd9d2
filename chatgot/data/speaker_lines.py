"""Which lines of a text begin a speech: `NAME:`, before a line with text."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise

from chatgot.data.prompts import SPEAKER
from chatgot.data.vocabulary import CHUNK, Ids, Vocabulary
from chatgot.logs.waiting import Advance

LONG_LINE = 64  # characters; such a line names no speaker, so its rest is not kept
DOCUMENT_END = "\0"  # the line that stands for the end-of-text token
MOST_COUNTED = 100_000  # names; later ones are not counted

Line = tuple[str, int]  # at least its first characters, and the length of the whole line


def lines_of(ids: Ids, vocabulary: Vocabulary, advance: Advance) -> Iterator[Line]:
    """Yield the lines of a text, and an empty one.

    Lengths are in characters, without the line feed. It streams: memory does not grow with the
    text.

    advance: is told the tokens that have been read.
    """
    rest = ""
    cut = 0  # characters of the rest that were not kept
    left = len(ids)
    for text in vocabulary.chunks_of_text(ids, DOCUMENT_END):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line, len(line) + cut
            cut = 0
        cut += len(rest[LONG_LINE:])
        rest = rest[:LONG_LINE]
        advance(min(left, CHUNK))
        left -= CHUNK
    yield rest, len(rest) + cut
    yield "", 0


def begins_speech(line: str, next_line: str, in_speech: bool, known: Collection[str]) -> bool:
    """Return whether a line is a speaker's; within a speech, only that of a known one.

    Many a line of a speech ends with a colon.
    """
    if not is_speaker_line(line, next_line):
        return False
    return not in_speech or line[:-1] in known


def is_speaker_line(line: str, next_line: str) -> bool:
    """Return whether a line names somebody, and the next one has text."""
    if not line.endswith(":"):
        return False
    return SPEAKER.match(f"{line}\n{next_line}") is not None and line.isprintable()


def count_speeches(lines: Iterable[Line], always: Collection[str] = ()) -> Counter[str]:
    """Return how often each name has a speaker's line.

    always: names that are counted even where there are more than MOST_COUNTED.
    """
    speeches: Counter[str] = Counter(dict.fromkeys(always, 0))
    for (line, _), (next_line, _) in pairwise(lines):
        if is_speaker_line(line, next_line):
            name = line[:-1]
            if name in speeches or len(speeches) < MOST_COUNTED:
                speeches[name] += 1
    return speeches
