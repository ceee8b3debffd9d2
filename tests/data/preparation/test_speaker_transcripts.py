"""Which texts are transcripts of speakers, and what of their lines is said by whom."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgot.data.preparation.detect import source_of, surest_reader
from chatgot.data.preparation.pieces import Passage, Speech
from chatgot.data.preparation.reader import Findings, ReadingOptions
from chatgot.data.preparation.readers import speaker_lines
from chatgot.data.preparation.readers.plain_text import PLAIN_TEXT
from chatgot.data.preparation.readers.speaker_lines import SPEAKER_LINES, read, turn_of

ANN_AND_BOB = [("Ann", "hello"), ("Bob", "hi: you"), ("Ann", "at 10:30"), ("Bob", "http://a.b")]


@pytest.fixture
def speeches(tmp_path):
    """Return a function that reads a text, and returns names and texts; None: another reads it."""

    def read_text(text: str, name: str = "a.txt", **options):
        (tmp_path / name).write_text(text, encoding="utf-8")
        source, _ = source_of(name, tmp_path / name)
        if surest_reader(source, (SPEAKER_LINES, PLAIN_TEXT)) is not SPEAKER_LINES:
            return None
        pieces = read(source, ReadingOptions(**options), Findings())
        return [(piece.name if isinstance(piece, Speech) else "", piece.text) for piece in pieces]

    return read_text


@pytest.mark.parametrize(
    "shape",
    [
        "{name}: {text}\n",
        "{name}: {text}\n\n",
        "{name} (V.O.): {text}\n",
        "{name} (CONT'D): {text}\n",
        "[00:01:02] {name}: {text}\n",
        "[00:01:02.345] {name}: {text}\n",
        "(01:02) {name}: {text}\n",
        "00:01:02 {name}: {text}\n",
        "00:01:02 - 00:01:09 {name}: {text}\n",
        "2024-05-01 12:00:03 {name}: {text}\n",
        "{name} [00:12]: {text}\n",
        "{name} (00:12): {text}\n",
        "{name} 00:12: {text}\n",
        "{name}  0:12\n{text}\n\n",
        "[0:12 PM] {name}\n{text}\n",
        "**{name}:** {text}\n\n",
        "**{name}**: {text}\n",
        "    {name}:\t{text}\n",
        "{name}：{text}\n",
    ],
)
def test_usual_shapes_of_transcripts_are_read(speeches, shape):
    text = "".join(shape.format(name=name, text=text) for name, text in ANN_AND_BOB)
    assert speeches(text) == ANN_AND_BOB


def test_lines_without_a_speaker_go_on_with_the_speech(speeches):
    lines = "Ann: one\ntwo: three\n\n  four\nBob: yes\nno\nAnn: so\nBob: good\n"
    assert speeches(lines) == [
        ("Ann", "one\ntwo: three\nfour"),
        ("Bob", "yes\nno"),
        ("Ann", "so"),
        ("Bob", "good"),
    ]


SCENES = (
    "[Scene: A room.]\nAnn (laughing): one\n(They sit down.)\nBob: two\nAnn: three\nBob: four\n"
)


def test_scenes_and_directions_are_kept_or_dropped(speeches):
    kept = speeches(SCENES)
    assert kept[:4] == [
        ("", "[Scene: A room.]"),
        ("Ann", "(laughing) one"),
        ("", "(They sit down.)"),
        ("Bob", "two"),
    ]
    dropped = speeches(SCENES, scenes="drop", directions="drop")
    assert dropped == [("Ann", "one"), ("Bob", "two"), ("Ann", "three"), ("Bob", "four")]
    assert speeches(SCENES, scenes="drop")[0] == ("Ann", "(laughing) one")


def test_somebody_who_speaks_once_is_a_speaker_too(speeches):
    lines = "Ann: one\nBob: two\nAnn: three\nBob: four\nOld Man: wait\nand so on: what\nAnn: five\n"
    assert speeches(lines)[-2:] == [("Old Man", "wait\nand so on: what"), ("Ann", "five")]


def test_word_before_a_colon_within_a_wrapped_speech_is_no_speaker(speeches):
    lines = "Ann: one\ntwo\nthree\nRemember: four\nBob: five\nsix\nseven\n" * 2
    assert [name for name, _ in speeches(lines.replace("Remember", "Again", 1))] == [
        *["Ann", "Bob"] * 2
    ]


def test_headings_are_nobodys_text(speeches):
    lines = "THE VISIT\n\nAnn: one\nBob: two\nAct 2\nAnn: three\nBob: four\n\nTHE END\n"
    assert [text for name, text in speeches(lines) if not name] == ["THE VISIT", "Act 2", "THE END"]


PROSE = (
    "He said one thing: no. At 10:30 he left for https://example.org/a: it was late.\n"
    "Nobody came. The rest is known: nothing happened, and nobody was there to see it.\n\n"
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (PROSE * 9, "a.txt"),
        ("ANN:\nOne.\n\nBOB:\nTwo.\n\n" * 4, "a.txt"),  # the layout that it would become
        ("From: a\nTo: b\nSubject: c\n\ntext\n" * 9, "a.txt"),
        ("INFO: a\nWARNING: b\nERROR: c\n" * 9, "a.txt"),
        ("name: Ann\nage: 5\n" * 9, "a.yaml"),
        ("http://a.b: x\nhttps://a.b: y\n" * 9, "a.txt"),
        ("12:30: x\n12:40: y\n" * 9, "a.txt"),
        ("Ann: once\nBob: once\n", "a.txt"),
        ("Ann: " + "x" * 1_000_000, "a.txt"),
        (" " * 100_000 + "\n", "a.txt"),
        ("A" + " " * 100_000 + ":\n", "a.txt"),
    ],
)
def test_other_texts_with_colons_are_no_transcripts(speeches, text, name):
    assert speeches(text, name) is None


def test_time_with_a_date_is_that_of_the_speech():
    first = turn_of("2024-05-01 12:00:03 Ann: hello")
    later = turn_of("[2024-05-01T12:00:05] Ann: hello")
    assert later.time - first.time == 2
    assert turn_of("2024-15-41 12:00:03 Ann: hello").time is None
    assert turn_of("[00:01:02] Ann: hello").time is None


def test_endless_speech_comes_in_parts(speeches, monkeypatch):
    monkeypatch.setattr(speaker_lines, "LONGEST_SPEECH", 10)
    said = speeches("Ann: one\nBob: two\nAnn: three\nBob: " + "four five\n" * 5)
    assert said[3:] == [("Bob", "four five\nfour five")] * 2 + [("Bob", "four five")]


@given(st.text(alphabet="Ab: 1[](){}*.-\n\t：", max_size=200))
def test_any_lines_are_read_without_an_error_and_without_losing_words(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    Path(path).write_text(text)
    source, _ = source_of("lines.txt", path)
    assert 0 <= SPEAKER_LINES.certainty(source) < 0.9
    pieces = list(read(source, ReadingOptions(), Findings()))
    assert all(isinstance(piece, Speech | Passage) and piece.text.strip() for piece in pieces)
    said = "".join(getattr(piece, "name", "") + piece.text for piece in pieces)
    assert {*said} >= {*text} & {*"b"}
