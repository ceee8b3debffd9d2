"""Web pages come out paragraph by paragraph, without what surrounds their text."""

import time
import tracemalloc
from contextlib import suppress
from html import escape
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from read_texts import PLAY, SPEECHES, reading_of, written

from chatgot.data.preparation.pieces import DocumentStart
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.web_page import WEB_PAGE

PAGE = """<!DOCTYPE html><html><head><title>The Lamp &amp; I</title><style>p {color: red}</style>
<script>if (a < b) document.write("<p>no</p>")</script></head><body>
<header><h1>Our site</h1></header><nav><ul><li>Home</ul></nav>
<main><h1>Chapter 1</h1><p>It was <b>late</b>,
  caf&eacute; and all.<br>Very&nbsp;late.<p hidden>No.<p>Then&shy;ce.
<ul><li>One<li>Two</ul><pre>  a  b
    c</pre><table><tr><th>Day<th>Ships<th>Sails<tr><td>1<td>2<td>3</table>
Loose words.<!-- no --></main><aside>Buy!</aside><footer>(c)</footer></body></html>"""
TEXTS = [
    *("Chapter 1", "It was late, café and all.\nVery late.", "Thence.", "One", "Two"),
    *("  a  b\n    c", "Day | Ships | Sails", "1 | 2 | 3", "Loose words."),
]


def as_html(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def play_as(speech, around=("", ""), between="<h2>Scene</h2>") -> str:
    scenes = (
        around[0] + "".join(speech(as_html(name), as_html(line)) for name, line in scene)
        for scene in PLAY
    )
    return f"<html><body>{between.join(f'{scene}{around[1]}' for scene in scenes)}</body></html>"


@pytest.mark.parametrize("name", ["page.html", "page.txt"])
def test_a_page_comes_out_paragraph_by_paragraph(tmp_path, name) -> None:
    source = written(tmp_path, PAGE, name)
    assert WEB_PAGE.certainty(source) > 0.5
    reading = reading_of(source, WEB_PAGE)
    assert reading.titles == ["The Lamp & I"]
    assert reading.texts == TEXTS


@pytest.mark.parametrize(
    ("speech", "around"),
    [
        (lambda name, line: f"<p><b>{name}:</b> {line}</p>", ("", "")),
        (lambda name, line: f"<p><strong>{name}</strong>: {line}", ("", "")),
        (lambda name, line: f"<dt>{name}<dd>{line}", ("<dl>", "</dl>")),
        (lambda name, line: f"<dt>{name}:</dt><dd><p>{line}</p></dd>", ("<dl>", "</dl>")),
        (lambda name, line: f"<tr><td>{name}</td><td>{line}</td></tr>", ("<table>", "</table>")),
        (lambda name, line: f"<div>{name}</div>".replace("</div>", f"<br>{line}</div>"), ("", "")),
        (lambda name, line: f"<p><b>{name}:</b></p><p>{line}</p>", ("", "")),
    ],
    ids=["bold", "colon outside", "dl", "dl with p", "table", "name above", "own paragraph"],
)
def test_a_play_on_a_page_becomes_speeches(tmp_path, speech, around) -> None:
    reading = reading_of(written(tmp_path, play_as(speech, around), "play.html"), WEB_PAGE)
    assert reading.speeches == SPEECHES
    assert reading.texts[len(PLAY[0])] == "Scene"


def test_stage_directions_of_a_page_can_be_dropped(tmp_path) -> None:
    page = play_as(lambda name, line: f"<p>{name}: {line}</p>", between="<p>[They wait.]</p>")
    source = written(tmp_path, page, "play.html")
    assert "[They wait.]" in reading_of(source, WEB_PAGE).texts
    reading = reading_of(source, WEB_PAGE, ReadingOptions(directions="drop"))
    assert "[They wait.]" not in reading.texts
    assert reading.findings.left_out["stage directions"] == 1


def test_prose_with_some_colons_has_no_speakers(tmp_path) -> None:
    texts = [
        "Note: wet.",
        "Note: dry.",
        "He said: no.",
        "Tom: a boy.",
        "So.",
        "And so on.",
        "Tom: b",
    ]
    page = "<html><body>" + "".join(f"<p>{text}</p>" for text in texts)
    reading = reading_of(written(tmp_path, page, "a.html"), WEB_PAGE)
    assert not reading.speeches
    assert reading.texts == texts


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_pages_in_other_encodings_are_read(tmp_path, encoding) -> None:
    page = "<html><head><meta charset='latin1'></head><body><p>Ein schöner Abend, größer als sonst"
    reading = reading_of(written(tmp_path, page.encode(encoding), "a.html"), WEB_PAGE)
    assert reading.texts == ["Ein schöner Abend, größer als sonst"]


def test_nothing_outside_a_page_is_read(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    page = (
        f'<!DOCTYPE html [<!ENTITY s SYSTEM "file://{secret}"><!ENTITY a "aaaaaaaa">'
        + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghij"))
        + "]><html><body><p>x &s; &j; y</p></body></html>"
    )
    reading = reading_of(written(tmp_path, page, "a.html"), WEB_PAGE)
    assert "SECRET" not in "".join(reading.texts)
    assert sum(map(len, reading.texts)) < 1_000


def test_a_page_without_text_is_refused(tmp_path) -> None:
    source = written(tmp_path, "<html><body><script>x</script><nav>y</nav></body></html>", "a.html")
    with pytest.raises(UnreadableError, match="no text outside menus and scripts"):
        reading_of(source, WEB_PAGE)


@pytest.mark.parametrize("text", ["Prose.", "a < b and c > d", "# Title\n\n<p>in Markdown", "{}"])
def test_other_texts_are_no_page(tmp_path, text) -> None:
    assert WEB_PAGE.certainty(written(tmp_path, text, "a.txt")) == 0


@pytest.mark.parametrize("start", ["<!---->", "<!-- a --> ", "<", "<p", " "])
def test_telling_a_page_is_fast_whatever_it_begins_with(tmp_path, start) -> None:
    source = written(tmp_path, start * 9_000, "a.txt")
    before = time.process_time()
    assert WEB_PAGE.certainty(source) == 0
    assert time.process_time() - before < 1


def test_a_large_page_takes_little_memory(tmp_path) -> None:
    nested = "<div>" * 9 + "<p>" + "x" * 20_000 + "</div>" * 9
    page = f"<html><body>{nested * 1_500}"
    source = written(tmp_path, page, "a.html")
    tracemalloc.start()
    length = 0
    for piece in WEB_PAGE.read(source, ReadingOptions(), Findings()):
        length += 0 if isinstance(piece, DocumentStart) else len(piece.text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length == 1_500 * 20_000
    assert peak < source.size


def test_a_page_nested_without_end_is_refused(tmp_path) -> None:
    source = written(tmp_path, "<html><body>" + "<div><p>a" * 50_000, "a.html")
    with pytest.raises(UnreadableError, match="more than 3,000 tags are open at once"):
        reading_of(source, WEB_PAGE)


WRITTEN = """
<p> </p> <table> <tr> <td> </td> </table> <dl> <dt> <dd> </dl> <pre> <br> <h1> </h1> <nav> </nav>
<title> </title> <script> <!-- &amp; &#0; &#xD800; <b>A:</b> text ANN: \0 é
"""
TAGS = st.sampled_from(WRITTEN.split())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TAGS | st.text(max_size=3), max_size=30))
def test_any_tags_are_read_or_refused(tmp_path, parts) -> None:
    source = written(tmp_path, "<html>" + " ".join(parts), "a.html")
    if source.encoding is None:
        return
    pieces = []
    with suppress(UnreadableError):
        pieces = reading_of(source, WEB_PAGE).pieces
    assert all(isinstance(p, DocumentStart) or p.text.strip("\n") for p in pieces)
