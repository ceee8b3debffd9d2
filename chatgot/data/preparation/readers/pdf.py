"""Reads PDF files with the optional package pypdf: paragraphs without what each page repeats."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import chain

from chatgot.data.preparation.pieces import DocumentStart, Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.paragraphs import (
    Paragraph,
    begins_speech,
    pieces_of_paragraphs,
)
from chatgot.data.preparation.readers.speeches import shown
from chatgot.data.preparation.source import Source

MARK = b"%PDF-"
SURE = 1.0
SAMPLED_PAGES = 60  # to find what each page repeats
LEAST_PAGES = 3
SHARE_OF_PAGES = 0.5
EDGE_LINES = 2  # at the head and foot of a page, that may repeat
LONGEST_PAGE = 1 << 20  # characters
MOST_BYTES = 1 << 28  # of the file, of which pypdf keeps much in memory
DIGITS = re.compile(r"\d+")
PAGE_NUMBER = re.compile(
    r"[-–—\s]*(?:(?:page|seite|p\.)\s*)?(?:\d{1,5}|[ivxlc]{1,8})(?:\s*(?:/|of|von)\s*\d{1,5})?[-–—\s]*",
    re.IGNORECASE,
)
HYPHEN = re.compile(r"(?<=[^\W\d_])[-\xad]$")
SENTENCE_END = (".", "!", "?", ":", '"', "”", "»", "’", "…")
FULL_LINE = 0.7  # of the usual length of lines: one that is shorter ends a paragraph
FULL_LINE_AT_END = 0.92  # the same for one that ends a sentence
FORGOTTEN = 0.98  # the longest line counts for less with each one after it


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a PDF."""
    return SURE if MARK in source.head[:1024] and source.head.lstrip()[:1] == b"%" else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the paragraphs of a PDF as one document. Raises: UnreadableError."""
    if source.size > MOST_BYTES:
        raise UnreadableError(f"a PDF of more than {MOST_BYTES:,} bytes; split it")
    yield from pieces_of_paragraphs(_document(source, findings), options, findings)


def _document(source: Source, findings: Findings) -> Iterator[Paragraph | DocumentStart]:
    pages = _pages(source, findings)
    sample = []
    for page in pages:
        sample.append(page)
        if len(sample) >= SAMPLED_PAGES:
            break
    repeated = _repeated(sample)
    yield DocumentStart()
    lines = chain.from_iterable(
        _without_edges(page, repeated, findings) for page in chain(sample, pages)
    )
    number = 0
    for paragraph in joined_lines(lines):
        number += 1
        yield paragraph
    if not number:
        raise UnreadableError(
            "the PDF has no text: its pages may be scanned pictures; let a program for text "
            "recognition (OCR) make a text of it"
        )


def _pages(source: Source, findings: Findings) -> Iterator[list[str]]:
    """Yield the lines of each page. Raises: UnreadableError."""
    try:
        pypdf = import_module("pypdf")
    except ImportError as error:
        raise UnreadableError(
            'a PDF needs the package pypdf: pip install "chatgot[pdf]", or pip install pypdf'
        ) from error
    # It warns of each small fault in a file; what counts is said below
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        with source.path.open("rb") as file:
            reader = pypdf.PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise UnreadableError("the PDF has a password; save a copy without one")
            for page in reader.pages:
                lines = _lines_of(page, findings)
                if lines:
                    yield lines
    except (UnreadableError, GeneratorExit):
        raise
    except Exception as error:  # whatever pypdf trips over in a broken file
        raise UnreadableError(f"the PDF is broken: {shown(str(error))}") from error


def _lines_of(page: object, findings: Findings) -> list[str]:
    """Return the lines of a page; one that cannot be read is left out."""
    extract = getattr(page, "extract_text", None)
    assert callable(extract), "pypdf's pages have text"
    try:
        text = str(extract())[:LONGEST_PAGE]
    except Exception:  # noqa: BLE001 the same: one broken page spoils no book
        findings.left_out["broken pages"] += 1
        return []
    return [line.strip() for line in text.replace("\0", "").split("\n")]


def _key(line: str) -> str:
    """Return a line as it is on each page: `Page 3` and `Page 4` are one."""
    return DIGITS.sub("#", line).casefold()


def _repeated(pages: list[list[str]]) -> frozenset[str]:
    """Return the lines that most pages begin or end with."""
    if len(pages) < LEAST_PAGES:
        return frozenset()
    counts: Counter[str] = Counter()
    for page in pages:
        lines = [line for line in page if line]
        counts.update({_key(line) for line in lines[:EDGE_LINES] + lines[-EDGE_LINES:]})
    # Left and right pages have headers of their own
    least = max(LEAST_PAGES, SHARE_OF_PAGES * len(pages) * 0.8)
    return frozenset(key for key, count in counts.items() if count >= least)


def _without_edges(page: list[str], repeated: frozenset[str], findings: Findings) -> list[str]:
    """Return the lines of a page without running headers, footers and its number."""
    lines = list(page)
    for end in (0, -1):
        taken = 0
        while lines and taken < EDGE_LINES:
            line = lines[end]
            if line and _key(line) not in repeated and not PAGE_NUMBER.fullmatch(line):
                break
            lines.pop(end)
            if line:
                taken += 1
                findings.left_out["headers, footers and page numbers"] += 1
    return lines


def joined_lines(lines: Iterator[str]) -> Iterator[Paragraph]:
    """Yield paragraphs of lines that were broken to fit a page."""
    usual = 0.0  # length of a full line
    parts: list[str] = []
    length = 0
    last = ""
    for line in lines:
        if parts and (not line or length > LONGEST_PAGE or _ends(last, line, usual)):
            yield Paragraph("".join(parts))
            parts.clear()
            length = 0
        if not line:
            continue
        if parts and HYPHEN.search(last) and line[0].islower():
            parts[-1] = parts[-1][:-1]
        elif parts:
            parts.append(" ")
        parts.append(line)
        length += len(line)
        last = line
        usual = max(usual * FORGOTTEN, len(line))
    if parts:
        yield Paragraph("".join(parts))


def _ends(last: str, line: str, usual: float) -> bool:
    """Return whether a paragraph ends between two lines."""
    share = FULL_LINE_AT_END if last.endswith(SENTENCE_END) else FULL_LINE
    return len(last) < share * usual or begins_speech(line)


PDF = Reader("PDF", certainty, read)
