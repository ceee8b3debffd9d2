"""Reads Word documents (DOCX): paragraphs, headings and rows of tables, in order.

Tracked deletions, comments, footnotes and macros are not taken.
"""

from collections.abc import Iterator
from typing import Protocol

from chatgot.data.preparation.pieces import DocumentStart, Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.paragraphs import Paragraph, pieces_of_paragraphs
from chatgot.data.preparation.readers.speeches import shown
from chatgot.data.preparation.readers.zip_members import CountedMembers, opened_zip
from chatgot.data.preparation.source import Source

ZIP = b"PK\x03\x04"
CONTENT_TYPES = b"[Content_Types].xml"
MARK = b"word/"
SURE = 0.95
BY_ENDING = 0.9
ENDINGS = ("docx", "docm", "dotx")
# python-docx holds all of them in memory, and the tree of the text takes ten times its bytes
MOST_BYTES = 1 << 27
MOST_OF_MEMBER = 1 << 25
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
PARAGRAPH = f"{WORD}p"
TABLE = f"{WORD}tbl"
ROW = f"{WORD}tr"
CELL = f"{WORD}tc"
STYLE = f"{WORD}pPr/{WORD}pStyle"
VALUE = f"{WORD}val"
TEXT = f"{WORD}t"
# Deleted, moved away, in a box beside the text, or a copy for old programs
NOT_TAKEN = frozenset(
    (
        f"{WORD}del",
        f"{WORD}moveFrom",
        f"{WORD}txbxContent",
        f"{WORD}pPr",
        f"{WORD}rPr",
        "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
    )
)
SIGNS = {
    f"{WORD}tab": "\t",
    f"{WORD}br": "\n",
    f"{WORD}cr": "\n",
    f"{WORD}noBreakHyphen": "-",
}
DELETED = f"{WORD}del"
LONGEST_NAME = 60


class Element(Protocol):
    """What is used of an element of lxml."""

    tag: object
    text: str | None

    def __iter__(self) -> Iterator["Element"]: ...
    def get(self, key: str) -> str | None: ...
    def find(self, path: str) -> "Element | None": ...


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a Word document."""
    if not source.head.startswith(ZIP):
        return 0.0
    if CONTENT_TYPES in source.head and MARK in source.head:
        return SURE
    return BY_ENDING if source.ending in ENDINGS else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the paragraphs of a document. Raises: UnreadableError."""
    from docx import Document

    with opened_zip(source.path) as archive:
        CountedMembers(archive, MOST_BYTES).count_all(MOST_OF_MEMBER)
    try:
        document = Document(str(source.path))
        body: Element = document.element.body
        headings = frozenset(
            str(style.style_id)
            for style in document.styles
            if str(style.name).startswith(("Heading", "heading", "Title"))
        )
        title = str(document.core_properties.title or "")
    except KeyError as error:
        raise UnreadableError(f"the document lacks a part: {error}") from error
    except Exception as error:  # whatever python-docx trips over in an odd document
        raise UnreadableError(f"the document is broken: {error}") from error
    if body is None:
        raise UnreadableError("the document is broken: it has no body")
    reader = _Body(headings, findings)
    number = 0
    for piece in pieces_of_paragraphs(_document(reader, body, title), options, findings):
        number += not isinstance(piece, DocumentStart)
        yield piece
    if not number:
        raise UnreadableError("the document has no text")


def _document(reader: "_Body", body: Element, title: str) -> Iterator[Paragraph | DocumentStart]:
    yield DocumentStart(shown(title))
    try:
        yield from reader.paragraphs_of(body)
    except RecursionError as error:
        raise UnreadableError("the document is nested too deeply") from error


class _Body:
    """Walks through the text of a document; headings: the styles of headings."""

    def __init__(self, headings: frozenset[str], findings: Findings) -> None:
        self._headings = headings
        self._findings = findings

    def paragraphs_of(self, parent: Element) -> Iterator[Paragraph]:
        """Yield the paragraphs and rows within an element, in order."""
        for element in parent:
            if element.tag == PARAGRAPH:
                text = self._text(element).strip()
                if text:
                    yield Paragraph(text, is_heading=self._is_heading(element))
            elif element.tag == TABLE:
                yield from self._rows(element)
            elif element.tag == DELETED:
                self._findings.left_out["tracked deletions"] += 1
            elif element.tag not in NOT_TAKEN:
                yield from self.paragraphs_of(element)

    def _rows(self, table: Element) -> Iterator[Paragraph]:
        for row in table:
            if row.tag != ROW:
                continue
            cells = [list(self.paragraphs_of(cell)) for cell in row if cell.tag == CELL]
            cells = [cell for cell in cells if cell]
            texts = ["\n".join(paragraph.text for paragraph in cell) for cell in cells]
            if len(texts) == 2 and len(texts[0]) <= LONGEST_NAME and "\n" not in texts[0]:
                yield Paragraph(texts[1], name=texts[0], between=" | ")
            elif any(len(cell) > 1 for cell in cells):
                for cell in cells:
                    yield from cell
            elif texts:
                yield Paragraph(" | ".join(texts))

    def _text(self, paragraph: Element) -> str:
        parts: list[str] = []
        self._gather(paragraph, parts)
        lines = (line.strip() for line in "".join(parts).split("\n"))
        return "\n".join(line for line in lines if line)

    def _gather(self, element: Element, parts: list[str]) -> None:
        for child in element:
            tag = child.tag
            if tag == TEXT:
                parts.append(child.text or "")
            elif tag in SIGNS:
                parts.append(SIGNS[str(tag)])
            elif tag == DELETED:
                self._findings.left_out["tracked deletions"] += 1
            elif tag not in NOT_TAKEN:
                self._gather(child, parts)

    def _is_heading(self, paragraph: Element) -> bool:
        style = paragraph.find(STYLE)
        return style is not None and style.get(VALUE) in self._headings


DOCX = Reader("Word document (DOCX)", certainty, read)
