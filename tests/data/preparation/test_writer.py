"""How pieces become a text: the layout, the documents, names that are safe, and no byte changed."""

import io

import harness
import pytest

from chatgot.data.corpus import fetch_default_text
from chatgot.data.encoding import CHUNK_BYTES
from chatgot.data.preparation import prepare as preparing
from chatgot.data.preparation.pieces import DocumentStart, Passage, Piece, PlainText, Speech
from chatgot.data.preparation.prepare import Preparation, prepare
from chatgot.data.preparation.safe_pieces import safe_name, safe_pieces
from chatgot.data.preparation.writer import Nowhere, Writer
from chatgot.data.prompts import is_speaker_name
from chatgot.errors import ConfigError, StorageError

END = "<|endoftext|>\n"
NEXT = DocumentStart()


def written(*pieces: Piece) -> str:
    file = io.BytesIO()
    writer = Writer(file)
    for piece in safe_pieces(iter(pieces)):
        writer.write(piece)
    writer.end_document()
    content = file.getvalue()
    assert writer.size == len(content)
    assert writer.characters == len(content.decode())
    return content.decode()


ANN = Speech("ANN", "Good day.\nHow are you?")
BOB = Speech("BOB", "Well.")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([ANN, BOB], "ANN:\nGood day.\nHow are you?\n\nBOB:\nWell.\n\n"),
        ([Passage("A room.\n\nNight."), BOB], "A room.\n\nNight.\n\nBOB:\nWell.\n\n"),
        ([BOB, NEXT, BOB], f"BOB:\nWell.\n\n{END}BOB:\nWell.\n\n"),
        ([PlainText("a"), PlainText("b\n\nc")], "ab\n\nc"),
        ([PlainText("a"), NEXT, PlainText("b\n")], f"a\n{END}b\n"),
        ([PlainText("a\n"), NEXT, BOB], f"a\n{END}BOB:\nWell.\n\n"),
        ([PlainText("a"), BOB], "a\n\nBOB:\nWell.\n\n"),
        ([PlainText("a\n\n"), BOB], "a\n\nBOB:\nWell.\n\n"),
        # an input's own token is not doubled
        ([PlainText(f"a\n{END}"), NEXT, PlainText("b")], f"a\n{END}b"),
        ([PlainText(f"a\n{END[:-1]}"), NEXT, PlainText("b")], f"a\n{END}b"),
        ([PlainText("a"), NEXT, PlainText(f"{END}b")], f"a\n{END}b"),
        ([PlainText(f"not {END}"), NEXT, PlainText("b")], f"not {END}{END}b"),
        ([PlainText(END), NEXT, PlainText("b")], "b"),
        # documents without text leave no trace, wherever they are
        ([NEXT, NEXT, BOB, NEXT], "BOB:\nWell.\n\n"),
        ([PlainText(" \n"), PlainText("\n"), NEXT, BOB], "BOB:\nWell.\n\n"),
        ([BOB, NEXT, PlainText(" \n"), NEXT, BOB], f"BOB:\nWell.\n\n{END}BOB:\nWell.\n\n"),
        ([PlainText(" \n"), PlainText("a")], " \na"),
        # what no speech can be
        ([Speech("ANN", "  \n "), Passage("\n\n"), BOB], "BOB:\nWell.\n\n"),
        ([Speech("ANN", "\n\n  a\n\n \nb\r\nc\r")], "ANN:\na\nb\nc\n\n"),
        ([Speech("A\ud800", "b\udc00c")], "A\ufffd:\nb\ufffdc\n\n"),
        ([PlainText("a\ud800")], "a\ufffd"),
    ],
)
def test_pieces_become_the_layout_of_a_text(pieces, text):
    assert written(*pieces) == text


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("KING HENRY", "KING HENRY"),
        ("Dr: Who", "Dr Who"),
        ("two\nlines\t", "two lines"),
        ("\u200eAnn\u202c", "Ann"),
        ("Ann\u00a0B", "Ann B"),
        ("x" * 99, "x" * 40),
        ("x" * 39 + " y", "x" * 39),
        (":::", "Unnamed"),
        ("\x00", "Unnamed"),
        ("", "Unnamed"),
        ("李四", "李四"),
        ("🐉", "🐉"),
    ],
)
def test_name_is_made_safe(name, safe):
    assert safe_name(name) == safe
    assert is_speaker_name(safe_name(name))


def test_document_can_be_dropped_after_it_was_written():
    file = io.BytesIO()
    writer = Writer(file)
    for piece in (PlainText("first"), NEXT, PlainText("again " * 9), ANN):
        writer.write(piece)
    writer.drop_document()
    for piece in (NEXT, BOB):
        writer.write(piece)
    writer.end_document()
    assert file.getvalue().decode() == f"first\n{END}BOB:\nWell.\n\n"
    assert writer.documents == 2
    assert writer.size == writer.characters == len(file.getvalue())


def test_first_document_that_is_dropped_leaves_nothing():
    file = io.BytesIO()
    writer = Writer(file)
    writer.write(ANN)
    writer.drop_document()
    writer.end_document()
    assert (file.getvalue(), writer.documents) == (b"", 0)


def test_dry_run_counts_what_it_does_not_write():
    writer = Writer(Nowhere())
    for piece in (ANN, NEXT, BOB, NEXT):
        writer.write(piece)
    assert (writer.documents, writer.size) == (2, len(written(ANN, NEXT, BOB)))


@pytest.mark.parametrize(
    "text",
    [
        "ANN:\nGood day.\n\nBOB:\nWell: so it is.\n\n",
        f"  indented\n\n\nlines\t\n{END}{END}\n\n more: a\n",
        "no line end",
        f"{END}a\n{END}",
    ],
)
@pytest.mark.parametrize(
    ("encoding", "mark"), [("utf-8", ""), ("utf-8", "\ufeff"), ("utf-16", ""), ("cp1252", "")]
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_plain_text_comes_out_as_it_is(tmp_path, text, encoding, mark, line_end):
    """But for its encoding, its byte order mark and its line ends."""
    text = f"Café déjà vu, où êtes-vous né?\n{text}"
    given = tmp_path / "in.txt"
    given.write_bytes((mark + text.replace("\n", line_end)).encode(encoding))
    prepare(Preparation((str(given),)), tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == text.encode()


def test_plain_text_of_several_chunks_comes_out_as_it_is(tmp_path):
    lines = f"ROMEO:\n{'a line é ' * 99}\n\n" * 6_000
    assert len(lines) > CHUNK_BYTES
    (tmp_path / "in.txt").write_bytes(lines.replace("\n", "\r\n").encode())
    prepare(Preparation((str(tmp_path / "in.txt"),)), tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == lines.encode()


def test_text_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a text")
    output = tmp_path / "new folder" / "out.txt"

    def crash(self):
        raise RuntimeError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(preparing.Writer, "end_document", crash)
        with pytest.raises(RuntimeError):
            prepare(Preparation((str(tmp_path / "a.txt"),)), output)
    assert list(output.parent.iterdir()) == []
    prepare(Preparation((str(tmp_path / "a.txt"),)), output)
    assert output.read_text() == "a text"


def test_output_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    preparation = Preparation((str(tmp_path / "a.txt"),))
    with pytest.raises(ConfigError, match="a folder; --output takes the name of a file"):
        prepare(preparation, tmp_path)
    with pytest.raises(StorageError, match=r"cannot be written: .*; give another --output"):
        prepare(preparation, tmp_path / "a.txt" / "out.txt")


def test_dry_run_writes_no_file(tmp_path):
    given = tmp_path / "a.txt"
    given.write_text("a text")
    told = prepare(Preparation((str(given),)), None)
    assert (told.characters, told.documents) == (6, 1)
    assert list(tmp_path.iterdir()) == [given]


@pytest.mark.network
def test_default_text_comes_out_unchanged(tmp_path):
    path = tmp_path / "shakespeare.txt"
    fetch_default_text(path)
    prepare(Preparation((str(path),)), tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == path.read_bytes()


def test_text_in_the_layout_of_the_default_one_comes_out_unchanged(tmp_path):
    path = tmp_path / "plays.txt"
    path.write_text(harness.make_text(200_000), encoding="utf-8")
    prepare(Preparation((str(path),)), tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == path.read_bytes()
