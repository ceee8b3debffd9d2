"""Reads web pages: titles, headings, paragraphs, lists and rows of tables."""

import re
from collections.abc import Iterator

from chatgot.data.preparation.pieces import DocumentStart, Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.html_text import HtmlText, paragraphs_of_html
from chatgot.data.preparation.readers.paragraphs import Paragraph, pieces_of_paragraphs
from chatgot.data.preparation.readers.speeches import shown
from chatgot.data.preparation.source import Source

SURE = 0.85  # exports of messengers are surer
LIKELY = 0.6
# A comment or an XML declaration may come first
START = re.compile(
    r"\s*(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!--(?:(?!-->).){0,5000}-->\s*){0,9}<(?:!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
TAG = re.compile(r"</?(?:p|div|br|h[1-6]|body|head|table|tr|td|ul|li|span)\b[^<>]{0,300}>", re.I)
LEAST_TAGS = 4
ENDINGS = ("html", "htm", "xhtml")


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a web page."""
    if source.encoding is None or source.ending == "md":
        return 0.0
    text = source.beginning
    if START.match(text):
        return SURE
    tags = 0
    for _ in TAG.finditer(text):
        tags += 1
        if tags >= LEAST_TAGS:
            break
    is_named = source.ending in ENDINGS
    if is_named and tags:
        return LIKELY
    return LIKELY if tags >= LEAST_TAGS and text.lstrip().startswith("<") else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the paragraphs of a page as one document. Raises: UnreadableError."""
    text = HtmlText()
    number = 0
    for piece in pieces_of_paragraphs(_paragraphs(source, text), options, findings):
        number += not isinstance(piece, DocumentStart)
        yield piece
    if not number:
        raise UnreadableError("the page has no text outside menus and scripts")


def _paragraphs(source: Source, text: HtmlText) -> Iterator[Paragraph | DocumentStart]:
    is_new = True
    for paragraph in paragraphs_of_html(text_of(source), text):
        if is_new:
            is_new = False
            yield DocumentStart(shown(text.title))
        yield paragraph


WEB_PAGE = Reader("web page", certainty, read)
