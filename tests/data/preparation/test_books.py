"""EPUB, DOCX and PDF come out line for line, and bombs, locks and damage are refused by name."""

import io
import sys
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from html import escape
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from read_texts import PLAY, SPEECHES, reading_of, written

from chatgot.data.preparation.reader import UnreadableError
from chatgot.data.preparation.readers.docx import DOCX
from chatgot.data.preparation.readers.epub import EPUB
from chatgot.data.preparation.readers.pdf import PDF
from chatgot.data.preparation.readers.refused import REFUSED

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaaaaaaaaaaaa">' + "".join(
    f'<!ENTITY {name} "{f"&{inner};" * 10}">' for inner, name in pairwise("abcdefghij")
)
AES = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"
FONTS = "http://www.idpf.org/2008/embedding"


def epub_of(chapters: list[str]) -> bytes:
    """Return a book whose table of contents gives the chapters' titles."""
    from ebooklib import epub

    book = epub.EpubBook()
    book.set_identifier("a")
    book.set_title("The Lamp")
    book.set_language("en")
    items = []
    for number, chapter in enumerate(chapters, start=1):
        item = epub.EpubHtml(title=f"Scene {number}", file_name=f"c{10 - number}.xhtml")
        item.content = f"<html><head><title/></head><body>{chapter}</body></html>"
        book.add_item(item)
        items.append(item)
    cover = epub.EpubHtml(title="Cover", file_name="cover.xhtml", content="<p>The Lamp</p>")
    book.add_item(cover)
    book.toc = items
    book.add_item(epub.EpubNcx())
    book.add_item(epub.EpubNav())
    book.spine = [cover, "nav", *items]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        epub.write_epub(file, book)
    return file.getvalue()


def spoken_chapters() -> list[str]:
    return [
        "".join(f"<p><b>{name}:</b> {as_html(line)}</p>" for name, line in scene)
        + '<p id="x">[Exit]<a epub:type="noteref" href="#n">1</a></p>'
        + '<aside epub:type="footnote" id="n">A note: no.</aside>'
        for scene in PLAY
    ]


def as_html(text: str) -> str:
    return escape(text).replace("\n", "<br/>")


def changed(archive: bytes, change: Callable[[str, bytes], bytes | None], **added: str) -> bytes:
    """Return a zip whose members are changed; None: dropped."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(info, content)
        for name, content in added.items():
            new.writestr(f"META-INF/{name}.xml", content)
    return file.getvalue()


def docx_of(fill: Callable) -> bytes:
    import docx

    document = docx.Document()
    fill(document)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def spoken_document(document) -> None:
    from docx.oxml import parse_xml

    for number, scene in enumerate(PLAY, start=1):
        document.add_heading(f"Scene {number}", 1)
        for name, line in scene[:-1]:
            document.add_paragraph(f"{name}: {line}")
        table = document.add_table(1, 2)
        table.cell(0, 0).text, table.cell(0, 1).text = scene[-1]
    last = document.add_paragraph("(They ")
    for tag, text in (("del", "delText"), ("ins", "t")):
        run = f"<w:r><w:{text}>{tag}</w:{text}></w:r>"
        last._p.append(parse_xml(f'<w:{tag} {WORD} w:id="1">{run}</w:{tag}>'))
    last.add_run(" wait.)")


def pdf_of(pages: list[list[str]], lock: bytes = b"") -> bytes:
    """Return a PDF with these lines on its pages."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * at) for at in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(pages)),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    for at, lines in enumerate(pages):
        shown = b"".join(b"(%s) Tj T* " % line.encode("cp1252") for line in lines)
        content = b"BT /F1 12 Tf 14 TL 72 720 Td %sET" % shown
        page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents %d 0 R"
        objects.append(page % (5 + 2 * at) + b"/Resources<</Font<</F1 3 0 R>>>>>>")
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(content), content))
    file = b"%PDF-1.4\n"
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(b"%010d 00000 n \n" % len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    count = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (count, b"".join(places))
    trailer = b"trailer<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (count, lock, len(file))
    return file + table + trailer


@pytest.fixture(scope="module")
def epub() -> bytes:
    return epub_of(spoken_chapters())


@pytest.fixture(scope="module")
def docx() -> bytes:
    return docx_of(spoken_document)


@pytest.mark.parametrize("name", ["lamp.epub", "lamp.zip"])
def test_a_book_comes_out_line_for_line(tmp_path, epub, name) -> None:
    source = written(tmp_path, epub, name)
    assert EPUB.certainty(source) > DOCX.certainty(source)
    reading = reading_of(source, EPUB)
    assert reading.speeches == SPEECHES
    assert reading.titles == ["Scene 1", "Scene 2"]
    assert [text for text in reading.texts if "Exit" in text] == ["[Exit]", "[Exit]"]
    assert len(reading.texts) == len(SPEECHES) + 2
    assert reading.findings.left_out["covers and tables of contents"] == 1


def test_a_book_of_prose_becomes_passages(tmp_path) -> None:
    chapters = ["<h1>I</h1><p>It was<br/>late.</p><p>Note: so.</p>", "<p>The end.</p>"]
    reading = reading_of(written(tmp_path, epub_of(chapters), "a.epub"), EPUB)
    assert reading.texts == ["I", "It was\nlate.", "Note: so.", "The end."]
    assert not reading.speeches


@pytest.mark.parametrize(
    ("change", "added", "reason"),
    [
        (lambda name, content: content, {"encryption": AES}, r"encrypted \(DRM\)"),
        (lambda name, content: content, {"rights": ""}, r"encrypted \(DRM\)"),
        (lambda name, content: None if "opf" in name else content, {}, "list of chapters"),
        (lambda name, content: None if "container" in name else content, {}, "container.xml"),
        (
            lambda name, content: b" " * 20_000_000 if "c9" in name else content,
            {},
            "c9.xhtml in it is unpacked to more than",
        ),
        (
            lambda name, content: (
                content.replace(b"?>", b"?>" + ENTITIES.encode() + b"]>", 1)
                if "opf" in name
                else content.replace(b"<p>", b"<p>&j;")
            ),
            {},
            None,
        ),
    ],
    ids=["DRM", "rights", "no list", "no container", "bomb", "entities"],
)
def test_locked_damaged_and_lying_books_are_refused(tmp_path, epub, change, added, reason) -> None:
    algorithm = added.get("encryption", "")
    method = f"<EncryptedData><EncryptionMethod Algorithm='{algorithm}'/></EncryptedData>"
    files = {name: method if name == "encryption" else "" for name in added}
    source = written(tmp_path, changed(epub, change, **files), "a.epub")
    if reason is None:
        assert sum(map(len, reading_of(source, EPUB).texts)) < 2_000
        return
    with pytest.raises(UnreadableError, match=reason):
        reading_of(source, EPUB)


def test_hidden_fonts_lock_no_book(tmp_path, epub) -> None:
    method = f'<EncryptedData><EncryptionMethod Algorithm="{FONTS}"/></EncryptedData>'
    locked = changed(epub, lambda name, content: content, encryption=method)
    assert reading_of(written(tmp_path, locked, "a.epub"), EPUB).speeches == SPEECHES


def test_a_missing_chapter_is_named(tmp_path, epub) -> None:
    cut = changed(epub, lambda name, content: None if "c9" in name else content)
    reading = reading_of(written(tmp_path, cut, "a.epub"), EPUB)
    assert reading.speeches == PLAY[1]
    assert "no EPUB/c9.xhtml" in reading.said


@pytest.mark.parametrize("name", ["lamp.docx", "lamp.zip"])
def test_a_document_comes_out_line_for_line(tmp_path, docx, name) -> None:
    source = written(tmp_path, docx, name)
    assert DOCX.certainty(source) > max(EPUB.certainty(source), REFUSED.certainty(source))
    reading = reading_of(source, DOCX)
    assert reading.speeches == SPEECHES
    assert [text for text in reading.texts if "Scene" in text] == ["Scene 1", "Scene 2"]
    assert reading.texts[-1] == "(They ins wait.)"
    assert reading.findings.left_out["tracked deletions"] == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content + b" " * 20_000_000, "document.xml in it is unpacked to more"),
        (lambda content: None, "lacks a part"),
        (lambda content: content[:-50], "is broken"),
        (
            lambda content: content.replace(b"?>", b"?>" + ENTITIES.encode() + b"]>", 1).replace(
                b"Scene 1", b"&j;"
            ),
            "is broken: .*entity|no text",
        ),
    ],
    ids=["bomb", "no text", "cut", "entities"],
)
def test_damaged_and_lying_documents_are_refused(tmp_path, docx, change, reason) -> None:
    data = changed(docx, lambda name, text: change(text) if "document.xml" in name else text)
    with pytest.raises(UnreadableError, match=reason):
        reading_of(written(tmp_path, data, "a.docx"), DOCX)


def test_a_pdf_comes_out_paragraph_by_paragraph(tmp_path) -> None:
    bodies = [
        [
            "It was a dark and stormy night, when the jan-",
            "itor left the house by its back door and",
        ],
        ["went down to the sea. There he saw the sails.", "They were white."],
        ["A new paragraph begins on the third page, and", "it ends."],
        ["The end."],
    ]
    pages = [["The Lamp", *body, f"Page {number}"] for number, body in enumerate(bodies, start=1)]
    source = written(tmp_path, pdf_of(pages), "a.txt")
    assert PDF.certainty(source) == 1
    reading = reading_of(source, PDF)
    assert reading.texts == [
        "It was a dark and stormy night, when the janitor left the house by its back door and "
        "went down to the sea. There he saw the sails. They were white.",
        "A new paragraph begins on the third page, and it ends.",
        "The end.",
    ]
    assert reading.findings.left_out["headers, footers and page numbers"] == 8


def test_a_play_in_a_pdf_becomes_speeches(tmp_path) -> None:
    spoken = [(name, line.replace("\n", " ")) for name, line in SPEECHES]
    pages = [[f"{name}: {line}" for name, line in spoken]]
    reading = reading_of(written(tmp_path, pdf_of(pages), "a.pdf"), PDF)
    assert reading.speeches == spoken


def test_a_pdf_without_pypdf_names_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(UnreadableError, match=r'pip install "chatgot\[pdf\]"'):
        reading_of(written(tmp_path, pdf_of([["a"]]), "a.pdf"), PDF)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pdf_of([[], []]), "no text: its pages may be scanned"),
        (pdf_of([["a"]])[:200], "is broken"),
        (
            pdf_of(
                [["a"]],
                b"/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/P -1/O<%s>/U<%s>>>"
                % (b"11" * 32, b"22" * 32),
            ),
            "password",
        ),
    ],
    ids=["scanned", "cut", "locked"],
)
def test_pdfs_without_readable_text_are_refused(tmp_path, data, reason) -> None:
    with pytest.raises(UnreadableError, match=reason):
        reading_of(written(tmp_path, data, "a.pdf"), PDF)


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (rb"{\rtf1\ansi Hello}", "a.txt", "RTF document; save it as .docx or .txt"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a.doc", "old Word document"),
        (
            b"PK\x03\x04" + b"\0" * 26 + b"mimetypeapplication/vnd.oasis.opendocument.text",
            "a.odt",
            "OpenDocument file; save it as .docx",
        ),
        (b"PK\x03\x04[Content_Types].xml xl/workbook.xml", "a.xlsx", "save it as .csv"),
    ],
)
def test_other_documents_are_refused_with_advice(tmp_path, data, name, reason) -> None:
    source = written(tmp_path, data, name)
    assert REFUSED.certainty(source) == 1
    with pytest.raises(UnreadableError, match=reason):
        reading_of(source, REFUSED)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([EPUB, DOCX, PDF]), st.integers(0, 1 << 20), st.binary(max_size=9))
def test_any_damage_is_read_or_refused(tmp_path, epub, docx, reader, place, junk) -> None:
    data = {"EPUB": epub, "Word": docx, "PDF": pdf_of([["a", "b"]])}[reader.kind.split()[0]]
    place %= len(data)
    source = written(tmp_path, data[:place] + junk + data[place + len(junk) :], "a.bin")
    assert 0 <= reader.certainty(source) <= 1
    with suppress(UnreadableError):
        assert reading_of(source, reader).texts
