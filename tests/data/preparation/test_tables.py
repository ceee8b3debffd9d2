"""Tables of lines come out row for row, however their cells are separated and damaged."""

import csv
import io
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from read_texts import PLAY, SPEECHES, reading_of, written

from chatgot.data.preparation.pieces import Passage, Speech
from chatgot.data.preparation.reader import ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.csv_rows import MOST_CHARACTERS
from chatgot.data.preparation.readers.tables import MOST_COLUMNS, TABLES

HEADER = ["scene", "speaker", "line"]
LIKELY = 0.5


def table(separator=",", header=HEADER, quoting=csv.QUOTE_MINIMAL, rows=None) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\n")
    if header:
        writer.writerow(header)
    for number, scene in enumerate(PLAY, start=1):
        writer.writerows((number, name, line) for name, line in scene)
    writer.writerows(rows or ())
    return file.getvalue()


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("name", ["lines.csv", "lines.txt"])
def test_a_table_comes_out_row_for_row(tmp_path, separator, quoting, name) -> None:
    source = written(tmp_path, table(separator, quoting=quoting), name)
    assert TABLES.certainty(source) > LIKELY
    reading = reading_of(source, TABLES)
    assert reading.speeches == SPEECHES
    assert reading.titles == ["scene 1", "scene 2"]
    assert "column line is taken as the text" in reading.said
    assert "column speaker is taken as the speaker" in reading.said


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: "sep=,\n" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n2,ANN", "\nscene,speaker,line\n2,ANN"),
        lambda text: text.replace("\n2,ANN", "\n\n,,\n2,ANN"),
        lambda text: text.replace("Aye.", "A\0ye."),
        lambda text: text.replace("1,ANN,", "1,ANN ,"),
    ],
    ids=["mark", "sep", "crlf", "header again", "empty rows", "NUL", "blank"],
)
def test_common_oddities_change_no_row(tmp_path, change) -> None:
    source = written(tmp_path, change(table()), "lines.csv")
    assert reading_of(source, TABLES).speeches == SPEECHES


@pytest.mark.parametrize(
    ("names", "speaker", "text"),
    [
        (["Sprecher", "Text"], 0, 1),
        (["Réplique", "Personnage"], 1, 0),
        (["台词", "角色"], 1, 0),
        (["raw_character_text", "spoken_words"], 0, 1),
        (["Имя", "Сообщение"], 0, 1),
        (["characterName", "lineText"], 0, 1),
    ],
)
def test_columns_are_guessed_by_name(tmp_path, names, speaker, text) -> None:
    rows = [("ANN", "Yes."), ("BOB", "A long no, with reasons."), ("ANN", "Oh.")]
    lines = ["\t".join(names)]
    lines += ["\t".join(row if speaker == 0 else row[::-1]) for row in rows]
    assert text == 1 - speaker
    source = written(tmp_path, "\n".join(lines), "lines.tsv")
    assert reading_of(source, TABLES).speeches == rows


def test_columns_without_names_are_guessed_by_their_content(tmp_path) -> None:
    source = written(tmp_path, table(header=None), "lines.csv")
    reading = reading_of(source, TABLES)
    assert reading.speeches == SPEECHES
    assert "column 2 is taken as the speaker" in reading.said


def test_named_columns_win(tmp_path) -> None:
    text = "speaker,alias,text,line\nA,X,no,yes\nB,Y,no,yes\n"
    options = ReadingOptions(speaker_column="alias", text_column="line")
    reading = reading_of(written(tmp_path, text, "l.csv"), TABLES, options)
    assert reading.speeches == [("X", "yes"), ("Y", "yes")]


def test_a_wrong_name_of_a_column_lists_the_columns(tmp_path) -> None:
    source = written(tmp_path, table(), "lines.csv")
    with pytest.raises(UnreadableError, match=r"did you mean speaker\?.*scene, speaker, line"):
        reading_of(source, TABLES, ReadingOptions(speaker_column="speakr"))


def test_rows_without_a_speaker_column_are_documents(tmp_path) -> None:
    source = written(tmp_path, 'review,stars\n"Good, really.",5\nDull.,1\n', "r.csv")
    reading = reading_of(source, TABLES)
    assert reading.texts == ["Good, really.", "Dull."]
    assert len(reading.titles) == 2


def test_a_row_without_a_name_is_a_passage(tmp_path) -> None:
    source = written(tmp_path, "speaker,line\nANN,Hello.\n,They leave.\nBOB,\n", "l.csv")
    reading = reading_of(source, TABLES)
    assert reading.pieces == [Speech("ANN", "Hello."), Passage("They leave.")]
    assert reading.findings.left_out["rows without text"] == 1


@pytest.mark.parametrize("tail", ["", ',3\n4,BOB,"ok"'])
def test_a_quote_that_never_closes_swallows_one_row(tmp_path, tail) -> None:
    others = "".join(f"3,ANN,Line {number}.\n" for number in range(6_000))
    source = written(tmp_path, f'{table()}3,BOB,"Oh, no{tail}\n{others}', "lines.csv")
    reading = reading_of(source, TABLES)
    spoken = reading.speeches
    assert spoken[: len(SPEECHES)] == SPEECHES
    assert spoken[-6_000:] == [("ANN", f"Line {number}.") for number in range(6_000)]
    assert spoken[len(SPEECHES)][1].startswith("Oh, no")
    assert "broken quotes end with their line (rows: 1, lines 13" in reading.said


def test_quotes_within_quotes_are_kept(tmp_path) -> None:
    source = written(tmp_path, table() + '3,BOB,"He said "no" to me, twice"\n', "lines.csv")
    assert reading_of(source, TABLES).speeches[-1] == ("BOB", 'He said "no" to me, twice')


def test_quotes_after_a_backslash_are_kept(tmp_path) -> None:
    source = written(tmp_path, 'speaker,line\nANN,"\\"Go\\", I say."\nBOB,"a"\n', "lines.csv")
    assert reading_of(source, TABLES).speeches == [("ANN", '"Go", I say.'), ("BOB", "a")]


def test_rows_of_a_wrong_width_are_mended_or_named(tmp_path) -> None:
    text = "speaker,line,stars\nANN,Hello.,1\nBOB,Hi, you,2\nANN,Bye.\nBOB\nANN,So.,3,,\n"
    reading = reading_of(written(tmp_path, text, "lines.csv"), TABLES)
    assert reading.speeches == [("ANN", "Hello."), ("ANN", "Bye."), ("ANN", "So.")]
    assert reading.findings.left_out["rows with a wrong number of cells"] == 2
    assert "lines 3, 5" in reading.said


def test_separators_in_a_last_text_without_quotes_are_kept(tmp_path) -> None:
    source = written(tmp_path, "speaker,line\nANN,Hello, you, there.\nBOB,Hi.\n", "lines.csv")
    assert reading_of(source, TABLES).speeches[0] == ("ANN", "Hello, you, there.")


@pytest.mark.parametrize(
    "text",
    [
        "The cat, who sat, ate.\nThe dog, who ran, slept.\n" * 9,
        "Shall I go,\nOr stay, my love,\nOr wait,\nTill day, till night?\n" * 5,
        "ANN: Hello, you.\nBOB: Hi, there.\n" * 9,
        "First; then | more.\n\nA paragraph, with commas, and more.\n" * 4,
    ],
)
def test_prose_with_commas_is_no_table(tmp_path, text) -> None:
    assert TABLES.certainty(written(tmp_path, text, "a.txt")) < 0.2


def test_a_huge_cell_and_too_many_cells_are_bounded(tmp_path) -> None:
    huge = "x" * 300_000
    source = written(tmp_path, f"speaker,line\nANN,{huge}\nBOB,Hi.\n", "lines.csv")
    assert reading_of(source, TABLES).speeches == [("ANN", huge), ("BOB", "Hi.")]
    source = written(tmp_path, "," * (MOST_COLUMNS + 1) + "\n", "lines.csv")
    with pytest.raises(UnreadableError, match="more than 1,000 cells"):
        reading_of(source, TABLES)
    source = written(tmp_path, table() + '3,ANN,"' + "y" * (2 * MOST_CHARACTERS), "lines.csv")
    assert reading_of(source, TABLES).speeches[: len(SPEECHES)] == SPEECHES


def test_many_broken_quotes_take_no_longer(tmp_path) -> None:
    """Each opens a quote, so that each is read twice, not thousands of times."""
    broken = "".join(f'1,ANN,"oh {number}\n' for number in range(4_000))
    whole = "".join(f"1,ANN,oh {number}\n" for number in range(4_000))
    times = []
    for rows in (whole, broken):
        source = written(tmp_path, table() + rows, "lines.csv")
        start = time.process_time()
        assert len(reading_of(source, TABLES).speeches) == len(SPEECHES) + 4_000
        times.append(time.process_time() - start)
    assert times[1] < 20 * times[0]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet="ab1,;\t|\"'\\\n\0 é", max_size=200), st.sampled_from(["csv", "txt"]))
def test_any_text_is_read_or_refused(tmp_path, text, ending) -> None:
    source = written(tmp_path, text or " ", f"a.{ending}")
    assert 0 <= TABLES.certainty(source) <= 1
    if source.encoding is None:
        return
    pieces = []
    with suppress(UnreadableError):
        pieces = reading_of(source, TABLES).pieces
    for piece in pieces:
        if isinstance(piece, Speech | Passage):
            assert piece.text.strip("\n") == piece.text != ""
        if isinstance(piece, Speech):
            assert piece.name
            assert ":" not in piece.name
            assert "\n\n" not in piece.text
