"""Reads EPUB books: chapters in the order of reading, each a document with its title."""

import posixpath
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from chatgot.data.preparation.pieces import DocumentStart, Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.html_text import (
    HtmlText,
    as_html,
    paragraphs_of_html,
)
from chatgot.data.preparation.readers.paragraphs import Paragraph, pieces_of_paragraphs
from chatgot.data.preparation.readers.speeches import shown
from chatgot.data.preparation.readers.zip_members import CountedMembers, opened_zip
from chatgot.data.preparation.source import Source

if TYPE_CHECKING:
    from zipfile import ZipFile

MARK = b"mimetypeapplication/epub+zip"
ZIP = b"PK\x03\x04"
SURE = 1.0
BY_ENDING = 0.9
# ebooklib holds all chapters in memory
MOST_BYTES = 1 << 27  # of all members that are read
MOST_OF_MEMBER = 1 << 25
ENCRYPTION = "META-INF/encryption.xml"
RIGHTS = ("META-INF/rights.xml", "META-INF/sinf.xml")
ALGORITHM = re.compile(
    rb"""EncryptionMethod[^<>]{0,200}?Algorithm\s*=\s*["']([^"'<>]{1,200})["']"""
)
# These only hide fonts. Source: EPUB 3.3, "font obfuscation"; Adobe's older way
FONT_ALGORITHMS = frozenset(
    (b"http://www.idpf.org/2008/embedding", b"http://ns.adobe.com/pdf/enc#RC")
)
TEXT_ENDINGS = (".xhtml", ".html", ".htm", ".xml", ".opf", ".ncx")
# Names of files without text of the book
COVERS = re.compile(r"(?:^|[/_.-])(?:cover|cov|nav|toc)(?:page)?(?:[/_.-]|\d*\.)", re.IGNORECASE)
COVER_CHARACTERS = 400  # a chapter of more is no cover, whatever it is called
XML_ENCODING = re.compile(
    rb"""^.{0,100}?<\?xml[^>]{0,100}?encoding\s*=\s*["']([\w.:-]{1,40})["']"""
)


def certainty(source: Source) -> float:
    """Return how sure it is that a file is an EPUB."""
    if not source.head.startswith(ZIP):
        return 0.0
    if MARK in source.head[:200]:
        return SURE
    return BY_ENDING if source.ending == "epub" else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the chapters of a book. Raises: UnreadableError."""
    with opened_zip(source.path) as archive:
        _refuse_locked(archive)
        book = _book(source, archive, findings)
    number = 0
    for piece in pieces_of_paragraphs(_chapters(book, findings), options, findings):
        number += not isinstance(piece, DocumentStart)
        yield piece
    if not number:
        raise UnreadableError("the book has no text; are its pages pictures?")


def _refuse_locked(archive: "ZipFile") -> None:
    """Raise UnreadableError for a book whose text is encrypted (DRM)."""
    names = set(archive.namelist())
    members = CountedMembers(archive, MOST_BYTES)
    algorithms = set()
    if ENCRYPTION in names:
        algorithms = set(ALGORITHM.findall(members.read(ENCRYPTION, MOST_OF_MEMBER)))
    is_locked = bool(algorithms - FONT_ALGORITHMS)
    if is_locked or (not names.isdisjoint(RIGHTS) and ENCRYPTION not in names):
        raise UnreadableError("the book is encrypted (DRM), so nobody but its own app can read it")


class _Chapter:
    """A chapter as the book has it.

    title: of the table of contents; empty: it is not in it.
    """

    def __init__(self, name: str, content: bytes, title: str) -> None:
        self.name = name
        self.content = content
        self.title = title


def _book(source: Source, archive: "ZipFile", findings: Findings) -> list[_Chapter]:
    """Return the chapters in the order of the spine. Raises: UnreadableError."""
    from ebooklib import epub

    members = CountedMembers(archive, MOST_BYTES)
    missing: set[str] = set()

    class TextReader(epub.EpubReader):  # type: ignore[misc] # it has no types
        """Reads what is text, with its bytes counted; pictures and sounds stay packed."""

        def read_file(self, name: str) -> bytes:
            """Return a member's bytes. Raises: KeyError, UnreadableError."""
            name = posixpath.normpath(name)
            is_structure = not self.opf_file or name == posixpath.normpath(self.opf_file)
            if not (is_structure or name.lower().endswith(TEXT_ENDINGS)):
                return b""
            try:
                return members.read(name, MOST_OF_MEMBER)
            except KeyError:
                if is_structure:
                    raise
                missing.add(name)
                return b""

    try:
        book = TextReader(str(source.path), {"ignore_ncx": False}).load()
        chapters = _in_order(book)
    except UnreadableError:
        raise
    except KeyError as error:
        raise UnreadableError(f"its zip has no {error.args[0] if error.args else error}") from error
    except Exception as error:  # whatever ebooklib trips over in an odd book
        raise UnreadableError(
            f"its list of chapters cannot be read: {shown(str(error))}"
        ) from error
    for name in sorted(missing)[:5]:
        findings.remark(f"the book has no {shown(name)}, which its list names")
    findings.left_out.update({"missing chapters": len(missing)} if missing else {})
    return chapters


def _in_order(book: object) -> list[_Chapter]:
    """Return the chapters of a book of ebooklib in the order of reading."""
    from ebooklib import epub

    assert isinstance(book, epub.EpubBook)
    titles = _titles(book.toc)
    chapters = []
    for identifier, linear in book.spine:
        item = book.get_item_with_id(identifier)
        if item is None or linear == "no" or isinstance(item, epub.EpubNav | epub.EpubCoverHtml):
            continue
        if isinstance(item, epub.EpubHtml):
            name = str(item.file_name)
            title = titles.get(posixpath.normpath(unquote(name)), "")
            chapters.append(_Chapter(name, bytes(item.content or b""), title))
    return chapters


def _titles(contents: object) -> dict[str, str]:
    """Return the titles in a table of contents by the file that each begins, the first of each."""
    titles: dict[str, str] = {}
    waiting = [contents]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list | tuple):
            waiting.extend(reversed(entry))
            continue
        file = unquote(str(getattr(entry, "href", "") or "").partition("#")[0])
        title = shown(str(getattr(entry, "title", "") or ""))
        if file and title:
            titles.setdefault(posixpath.normpath(file), title)
    return titles


def _chapters(chapters: list[_Chapter], findings: Findings) -> Iterator[Paragraph | DocumentStart]:
    for chapter in chapters:
        text = HtmlText(is_book=True)
        page = as_html(_decoded(chapter.content))
        paragraphs = list(paragraphs_of_html(iter([page]), text))
        length = sum(len(paragraph.text) for paragraph in paragraphs)
        if length <= COVER_CHARACTERS and COVERS.search(chapter.name):
            findings.left_out["covers and tables of contents"] += 1
            continue
        if paragraphs:
            yield DocumentStart(chapter.title or text.heading or shown(text.title))
        yield from paragraphs


def _decoded(content: bytes) -> str:
    """Return the text of a chapter: UTF-8, as nearly all are, or what its first line says."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        match = XML_ENCODING.match(content)
        try:
            return content.decode(match[1].decode("ascii") if match else "cp1252", "replace")
        except (LookupError, ValueError):
            return content.decode("cp1252", "replace")


EPUB = Reader("EPUB book", certainty, read)
