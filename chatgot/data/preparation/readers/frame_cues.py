"""The subtitles of MicroDVD, MPL2 and TMP files, which pysubs2 reads.

Lines that it would stumble over are mended or left out before.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from chatgot.data.preparation.reader import Findings, UnreadableError
from chatgot.data.preparation.readers.cues import LONGEST_CUE, Cue

LARGEST_BYTES = 64 << 20  # pysubs2 holds the whole file in memory
FRAME_RATE = 25.0  # where a file does not say its own
FRAME_RATES = (5.0, 240.0)
SHOWN_FRAMES = 75  # where a file does not say when a subtitle ends

MICRODVD_LINE = re.compile(r"[ \t]*\{[ \t]*(\d{1,8})[ \t]*\}[ \t]*\{[ \t]*(\d{0,8})[ \t]*\}(.+)")
MPL2_LINE = re.compile(r"[ \t]*\[(\d{1,8})\][ \t]*\[(\d{0,8})\](.+)")
TMP_LINE = re.compile(r"[ \t]*(\d{1,2}:\d{2}:\d{2})[:=](.+)")


@dataclass(frozen=True)
class LineFormat:
    """A format with one subtitle a line.

    key: pysubs2's name for it.
    mended: a line as pysubs2 reads it; None: it is no subtitle.
    """

    key: str
    mended: Callable[[str], str | None]


def _mended_microdvd(line: str) -> str | None:
    match = MICRODVD_LINE.match(line)
    if match is None:
        return None
    start, end, text = match.groups()
    return f"{{{start}}}{{{end or int(start) + SHOWN_FRAMES}}}{text}"


def _mended_mpl2(line: str) -> str | None:
    match = MPL2_LINE.match(line)
    if match is None:
        return None
    start, end, text = match.groups()
    return f"[{start}][{end or int(start) + SHOWN_FRAMES}]{text}"


def _mended_tmp(line: str) -> str | None:
    match = TMP_LINE.match(line)
    return None if match is None else f"{match[1]}:{match[2]}"


MICRODVD = LineFormat("microdvd", _mended_microdvd)
MPL2 = LineFormat("mpl2", _mended_mpl2)
TMP = LineFormat("tmp", _mended_tmp)


def frame_cues(
    lines: Iterable[str], size: int, line_format: LineFormat, findings: Findings
) -> Iterator[Cue]:
    """Yield the subtitles of a file. Raises: UnreadableError."""
    from pysubs2 import SSAFile
    from pysubs2.exceptions import Pysubs2Error

    if size > LARGEST_BYTES:
        limit = f"{LARGEST_BYTES >> 20} MB"
        raise UnreadableError(f"it has {size >> 20} MB; subtitles of its kind may have {limit}")
    mended = []
    for line in lines:
        if len(line) > LONGEST_CUE:
            findings.left_out["overlong subtitles"] += 1
            continue
        good = line_format.mended(line)
        if good is not None:
            mended.append(good)
        elif line.strip():
            findings.left_out["lines that are no subtitles"] += 1
    fps = None
    if line_format is MICRODVD:
        fps = _frame_rate(mended, findings)
    try:
        subtitles = SSAFile.from_string("\n".join(mended), line_format.key, fps=fps)
    except (Pysubs2Error, ValueError, ArithmeticError) as error:
        raise UnreadableError(f"its subtitles cannot be read: {error}") from error
    for event in subtitles:
        text = event.text.replace("|", "\\N")
        yield Cue(event.start, event.end, text)


def _frame_rate(lines: list[str], findings: Findings) -> float:
    """Return the frame rate that the first subtitle tells, and remove that subtitle."""
    match = MICRODVD_LINE.match(lines[0]) if lines else None
    if match is not None and int(match[1]) <= 1:
        try:
            rate = float(match[3].strip().replace(",", "."))
        except ValueError:
            rate = 0.0
        if FRAME_RATES[0] <= rate <= FRAME_RATES[1]:
            del lines[0]
            return rate
    findings.remark(f"no frame rate is given, {FRAME_RATE:g} frames a second were assumed")
    return FRAME_RATE
