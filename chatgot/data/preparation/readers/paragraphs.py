"""Paragraphs of pages, books and documents as speeches, where most begin with a speaker."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from chatgot.data.preparation.pieces import DocumentStart, Passage, Piece
from chatgot.data.preparation.reader import Findings, ReadingOptions
from chatgot.data.preparation.readers.speeches import passage_of, speech_of

# `NAME: text`, `NAME (aside): text`, and `NAME:` above the text
TURN = re.compile(
    r"[ \t]{0,20}(?P<name>[^\W\d_][^\n\t:：\[\](){}<>\"“”„«»?!;=|]{0,39}?)"
    r"[ \t]{0,9}(?P<direction>\([^()\n]{1,60}\)|\[[^\[\]\n]{1,60}\])?[ \t]{0,9}"
    r"(?:：|:(?=\s|$))[ \t]{0,20}"
)
# In capitals on a line of its own, above the text
NAME_LINE = re.compile(
    r"[ \t]{0,20}(?P<name>[^\W\d_a-z][^\n:()\[\]!?,;a-z]{0,39}?)[.]?[ \t]{0,20}$"
)
BEGINNING = 200  # characters of a line in which its speaker is looked for
IN_BRACKETS = re.compile(r"\[[^\[\]]*\]|\([^()]*\)")
MOST_WORDS = 5  # of a name
LEAST_TURNS = 4  # of speakers that come again
LEAST_NAMES = 2  # that come again
SHARE_OF_PARAGRAPHS = 0.5
SAMPLED_PARAGRAPHS = 500
SAMPLED_CHARACTERS = 1 << 20
# Before a colon, but no speakers
NO_SPEAKERS_WORDS = """
note notes warning tip example examples date source author title by figure table chapter
to from subject see edit update isbn copyright published tags category hint
"""
NO_SPEAKERS = frozenset(NO_SPEAKERS_WORDS.split())


@dataclass(frozen=True, slots=True)
class Paragraph:
    r"""A paragraph of a page or a document.

    text: "\n" between lines.
    name: what may be its speaker: the term of a definition, the first of two cells; empty: none.
    between: what comes between name and text where the name is no speaker.
    """

    text: str
    name: str = ""
    between: str = "\n"
    is_heading: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a paragraph: what one speaker says; name None: nobody does."""

    name: str | None
    text: str


def pieces_of_paragraphs(
    paragraphs: Iterator[Paragraph | DocumentStart], options: ReadingOptions, findings: Findings
) -> Iterator[Piece]:
    """Yield speeches where most paragraphs begin with a speaker that comes again, else passages."""
    sample = []
    size = 0
    for paragraph in paragraphs:
        sample.append(paragraph)
        size += len(paragraph.text) if isinstance(paragraph, Paragraph) else 0
        if len(sample) >= SAMPLED_PARAGRAPHS or size > SAMPLED_CHARACTERS:
            break
    speakers = _speakers(sample)
    if speakers:
        number = len(set(map(str.casefold, speakers)))
        findings.remark(f"paragraphs begin with their speakers: {number} come again")
    writer = _Writer(speakers, options, findings)
    for paragraph in sample:
        yield from writer.pieces_of(paragraph)
    sample.clear()
    for paragraph in paragraphs:
        yield from writer.pieces_of(paragraph)


def _speakers(sample: list[Paragraph | DocumentStart]) -> frozenset[str]:
    """Return the speakers that come again, in small letters and as written; empty: it is prose."""
    counts: Counter[str] = Counter()
    written: Counter[str] = Counter()
    number = 0
    last = ""
    for paragraph in sample:
        if isinstance(paragraph, DocumentStart) or paragraph.is_heading:
            continue
        if IN_BRACKETS.fullmatch(paragraph.text):
            continue
        parts = _parts(paragraph, None)
        names = [part.name.casefold() for part in parts if part.name]
        # A text below `NAME:` belongs to it
        number += 0 if last and not names else max(len(names), 1)
        last = names[-1] if names and not parts[-1].text else ""
        counts.update(names)
        written.update(part.name for part in parts if part.name)
    speakers = frozenset(name for name, count in counts.items() if count > 1)
    turns = sum(counts[name] for name in speakers)
    is_play = turns >= max(LEAST_TURNS, SHARE_OF_PARAGRAPHS * number)
    if not is_play or len(speakers) < LEAST_NAMES:
        return frozenset()
    return speakers | {name for name, count in written.items() if count > 1}


def _parts(paragraph: Paragraph, speakers: frozenset[str] | None) -> list[_Part]:
    """Return what is said in a paragraph, and by whom.

    speakers: those that may begin a line within it, as they are written; None: all.
    """
    if paragraph.name:
        name = paragraph.name.strip().rstrip(":：").strip()
        return [_Part(name if _may_be_name(name) else None, paragraph.text)]
    lines = paragraph.text.split("\n")
    parts: list[tuple[str | None, list[str]]] = []
    for at, line in enumerate(lines):
        turn = _turn_of(line, has_text_below=at + 1 < len(lines))
        if turn is not None and (at == 0 or speakers is None or turn[0] in speakers):
            parts.append((turn[0], [turn[1]] if turn[1] else []))
        elif parts:
            parts[-1][1].append(line)
        else:
            parts.append((None, [line]))
    return [_Part(name, "\n".join(texts)) for name, texts in parts]


def _turn_of(line: str, has_text_below: bool) -> tuple[str, str] | None:
    """Return who speaks in a line, and its text; None: nobody begins to speak."""
    beginning = line[:BEGINNING]
    match = TURN.match(beginning)
    if match is not None and _may_be_name(match["name"]):
        text = line[match.end() :].strip()
        return match["name"].strip(), f"{match['direction'] or ''} {text}".strip()
    if has_text_below and len(line) == len(beginning):
        match = NAME_LINE.match(beginning)
        if match is not None and _may_be_name(match["name"]):
            return match["name"].strip(), ""
    return None


def begins_speech(line: str) -> bool:
    """Return whether somebody may begin to speak in a line."""
    return _turn_of(line, has_text_below=False) is not None


def _may_be_name(name: str) -> bool:
    """Return whether a speaker may be called so, whoever reads it alone."""
    words = name.split()
    if not 0 < len(words) <= MOST_WORDS or len(name) > 40 or not any(map(str.isalpha, name)):
        return False
    small = sum(word[0].islower() for word in words)
    return 2 * small <= len(words) and name.casefold() not in NO_SPEAKERS


class _Writer:
    """Turns paragraphs into pieces.

    speakers: in small letters; empty: the text is prose.
    """

    def __init__(
        self, speakers: frozenset[str], options: ReadingOptions, findings: Findings
    ) -> None:
        self._speakers = speakers
        self._options = options
        self._findings = findings
        self._waiting = ""  # who was named, and has not spoken yet

    def pieces_of(self, paragraph: Paragraph | DocumentStart) -> Iterator[Piece]:
        """Yield what a paragraph says."""
        if isinstance(paragraph, DocumentStart):
            self._waiting = ""
            yield paragraph
            return
        if not self._speakers or paragraph.is_heading:
            yield from self._passage(paragraph)
            return
        if IN_BRACKETS.fullmatch(paragraph.text.strip()):
            yield from self._direction(paragraph.text.strip())
            return
        parts = _parts(paragraph, self._speakers)
        if self._waiting and (parts[0].name or "").casefold() not in self._speakers:
            parts = [_Part(None, paragraph.text)]  # `Look: a ship!` below `ANN:`
        for part in parts:
            if paragraph.name and (part.name or "").casefold() not in self._speakers:
                yield from self._passage(paragraph)
            else:
                yield from self._said(part)

    def _passage(self, paragraph: Paragraph) -> Iterator[Piece]:
        self._waiting = ""
        name = f"{paragraph.name}{paragraph.between}" if paragraph.name else ""
        piece = passage_of(name + paragraph.text)
        if piece is not None:
            yield piece

    def _direction(self, text: str) -> Iterator[Piece]:
        if self._options.directions == "drop":
            self._findings.left_out["stage directions"] += 1
        else:
            yield Passage(text)

    def _said(self, part: _Part) -> Iterator[Piece]:
        name = self._waiting if part.name is None else part.name
        self._waiting = "" if part.text.strip() else name
        said = speech_of(name, part.text)
        if said is not None:
            yield said
