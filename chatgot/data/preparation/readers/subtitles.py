"""Reads subtitles: SRT, WebVTT, SBV, ASS, SSA, MicroDVD, MPL2 and TMP.

A line that somebody named says is a speech, other lines are paragraphs; a pause of some seconds
begins a new one (dialogue.py). SRT, WebVTT and ASS are read by this project's own code, since
pysubs2 reads 4 MB/s of the first two, and refuses damaged files; it reads the rare formats.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from chatgot.data.preparation.pieces import DocumentStart, Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.ass_cues import ass_cues
from chatgot.data.preparation.readers.bounded_lines import bounded_lines, text_of
from chatgot.data.preparation.readers.cues import ARROW, ODD_LINE, TIME_LINE, Cue, Damage, cues_of
from chatgot.data.preparation.readers.dialogue import Dialogue, Habits
from chatgot.data.preparation.readers.frame_cues import (
    MICRODVD,
    MICRODVD_LINE,
    MPL2,
    MPL2_LINE,
    TMP,
    TMP_LINE,
    LineFormat,
    frame_cues,
)
from chatgot.data.preparation.readers.subtitle_ads import advertisements
from chatgot.data.preparation.readers.subtitle_text import shown_text
from chatgot.data.preparation.source import Source

WINDOW = 20_000  # subtitles that are put in the order of time; more than the longest film has
SIGNATURE = 1.0
SURE = 0.95
LIKELY = 0.7
LEAST_SHARE = 0.1  # of lines with text are lines of times
FIRST_LINES = 4  # in which a file has its first times
MOST_OF_LINES = 0.6  # of a format with one subtitle a line
VTT_MARK = "WEBVTT"
ASS_MARK = re.compile(r"\s*\[script info\]", re.IGNORECASE)
ASS_EVENTS = re.compile(r"^\[(?:events|v4\+? styles\+?)\][ \t]*$", re.IGNORECASE | re.MULTILINE)
ASS_EVENT = re.compile(r"^dialogue:[^,\n]*,[ \t]*\d+:\d+:\d+", re.IGNORECASE | re.MULTILINE)
MARKS = "{<&\\\x00\x01"  # an ASCII text without them is shown as it is
ADS = "advertisements and credits of subtitles"
NOTHING = "it has no subtitles"


# --------------------------------------------------------------------------------------------------
# Which kind


def certainty_vtt(source: Source) -> float:
    """Return how sure it is that a file is WebVTT."""
    text = source.beginning.lstrip()
    is_vtt = text.startswith(VTT_MARK) and not text[len(VTT_MARK) : len(VTT_MARK) + 1].isalnum()
    if not is_vtt:
        return 0.0
    has_times = TIME_LINE.search(text) or ODD_LINE.search(text)
    return SIGNATURE if has_times else LIKELY


def certainty_srt(source: Source) -> float:
    """Return how sure it is that a file is SRT, or SBV, which lacks numbers and the arrow."""
    text = source.beginning
    if certainty_vtt(source):
        return 0.0
    times = len(TIME_LINE.findall(text)) if ARROW in text else 0
    times = times or len(ODD_LINE.findall(text))
    if not times:
        return 0.0
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if times < LEAST_SHARE * len(lines):
        return 0.0
    first = "\n".join(lines[:FIRST_LINES])
    begins = TIME_LINE.search(first) or ODD_LINE.search(first)
    return SURE if begins else LIKELY


def certainty_ass(source: Source) -> float:
    """Return how sure it is that a file is ASS or SSA."""
    text = source.beginning
    if ASS_MARK.match(text):
        return SIGNATURE
    events = len(ASS_EVENT.findall(text))
    if ASS_EVENTS.search(text) and events:
        return SURE
    return LIKELY if 2 * events > text.count("\n") else 0.0


def _is_mostly(pattern: re.Pattern[str], text: str) -> bool:
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if len(lines) > 1:
        lines.pop()  # it may be cut off
    matches = sum(pattern.match(line) is not None for line in lines)
    return matches > 0 and matches >= MOST_OF_LINES * len(lines)


def certainty_microdvd(source: Source) -> float:
    """Return how sure it is that a file is MicroDVD: `{12}{34}text`."""
    return SURE if _is_mostly(MICRODVD_LINE, source.beginning) else 0.0


def certainty_mpl2(source: Source) -> float:
    """Return how sure it is that a file is MPL2: `[12][34]text`."""
    return SURE if _is_mostly(MPL2_LINE, source.beginning) else 0.0


def certainty_tmp(source: Source) -> float:
    """Return how sure it is that a file is TMP: `00:00:12:text`."""
    return LIKELY if _is_mostly(TMP_LINE, source.beginning) else 0.0


# --------------------------------------------------------------------------------------------------
# Reading


def read_timed(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the pieces of SRT, WebVTT or SBV. Raises: UnreadableError."""
    damage = Damage()
    cues = cues_of(text_of(source), source.beginning.lstrip().startswith(VTT_MARK), damage)
    yield from _pieces(cues, source, options, findings)
    _tell(damage, findings)


def read_ass(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the pieces of ASS or SSA. Raises: UnreadableError."""
    damage = Damage()
    cues = ass_cues(bounded_lines(source, findings), damage, findings.left_out)
    yield from _pieces(cues, source, options, findings, is_ass=True)
    _tell(damage, findings)


def _frame_reader(kind: str, line_format: LineFormat) -> Reader:
    certainties = {MICRODVD: certainty_microdvd, MPL2: certainty_mpl2, TMP: certainty_tmp}

    def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
        lines = bounded_lines(source, findings)
        cues = frame_cues(lines, source.size, line_format, findings)
        yield from _pieces(cues, source, options, findings, is_ass=True)

    return Reader(kind, certainties[line_format], read)


def _tell(damage: Damage, findings: Findings) -> None:
    if damage.without_time:
        findings.remark(f"{damage.without_time:,} subtitles have no time that can be read")
    if damage.overlong:
        findings.left_out["rests of overlong subtitles"] += damage.overlong


def _pieces(
    cues: Iterable[Cue | None],
    source: Source,
    options: ReadingOptions,
    findings: Findings,
    is_ass: bool = False,
) -> Iterator[Piece]:
    """Yield what the subtitles say, window by window."""
    title = PurePath(source.name).stem
    yield DocumentStart(title)
    dialogue: Dialogue | None = None
    window: list[Cue] = []
    parts = 1
    has_cues = False
    for cue in cues:
        if cue is None:
            dialogue = _take(window, len(window), dialogue, options, findings)
            dialogue.finish()
            yield from _taken(dialogue)
            parts += 1
            yield DocumentStart(f"{title}, part {parts}")
            continue
        has_cues = True
        text = cue.text
        if not text.isascii() or any(mark in text for mark in MARKS):
            text = shown_text(text, is_ass)
        words = _cleaned(text)
        if words:
            window.append(Cue(cue.start, cue.end, words, cue.name, cue.style))
        if len(window) >= 2 * WINDOW:
            dialogue = _take(window, WINDOW, dialogue, options, findings)
            yield from _taken(dialogue)
    if not has_cues:
        raise UnreadableError(NOTHING)
    dialogue = _take(window, len(window), dialogue, options, findings)
    dialogue.finish()
    yield from _taken(dialogue)


def _cleaned(text: str) -> str:
    """Return a text without blanks at the ends of lines, and without empty lines."""
    if "\n" not in text:
        words = text.strip()
        return words if "  " not in words else " ".join(words.split())
    return "\n".join(words for line in text.split("\n") if (words := " ".join(line.split())))


def _take(
    window: list[Cue],
    count: int,
    dialogue: Dialogue | None,
    options: ReadingOptions,
    findings: Findings,
) -> Dialogue:
    """Move the earliest subtitles of the window to the dialogue, without advertisements."""
    window.sort(key=_start)
    first = window[:count]
    del window[:count]
    if dialogue is None:
        dialogue = Dialogue(Habits.of(first), options, findings)
    ads = advertisements([cue.text for cue in first])
    if ads:
        findings.left_out[ADS] += len(ads)
        first = [cue for place, cue in enumerate(first) if place not in ads]
    for cue in first:
        dialogue.add(cue)
    return dialogue


def _start(cue: Cue) -> int:
    return cue.start


def _taken(dialogue: Dialogue) -> Iterator[Piece]:
    pieces = dialogue.pieces
    dialogue.pieces = []
    yield from pieces


VTT = Reader("WebVTT subtitles", certainty_vtt, read_timed)
SRT = Reader("SRT subtitles", certainty_srt, read_timed)
ASS = Reader("ASS subtitles", certainty_ass, read_ass)
MICRODVD_SUBTITLES = _frame_reader("MicroDVD subtitles", MICRODVD)
MPL2_SUBTITLES = _frame_reader("MPL2 subtitles", MPL2)
TMP_SUBTITLES = _frame_reader("TMP subtitles", TMP)
