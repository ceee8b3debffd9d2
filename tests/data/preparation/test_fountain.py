"""Screenplays in Fountain come out line for line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_play import PLAY, Reading, as_srt, source_of, truth

from chatgot.data.preparation.known_readers import READERS
from chatgot.data.preparation.pieces import DocumentStart
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.fountain import FOUNTAIN


def as_fountain(play=PLAY) -> str:
    parts = [
        "Title: A play\nAuthor: Somebody\n    and nobody\n\n"
        "FADE IN:\n\nINT. HOUSE - NIGHT #12A#\n\n"
    ]
    for name, *lines in play:
        text = "\n".join(lines)
        parts.append(f"{name}\n{text}\n\n")
    parts.append("CUT TO:\n\nEXT. STREET - DAY\n\nRain *falls*.\nMuch rain.\n\n> THE END <\n")
    return "".join(parts)


SCENES = [("", "INT. HOUSE - NIGHT"), ("", "EXT. STREET - DAY")]
KEPT = [
    ("", "FADE IN:"),
    SCENES[0],
    *truth(),
    ("", "CUT TO:"),
    SCENES[1],
    ("", "Rain falls.\nMuch rain."),
    ("", "THE END"),
]


@pytest.fixture
def write(tmp_path):
    def write(content: str, name="play.txt", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content.encode(encoding, "surrogatepass"))
        return path

    return write


def test_a_play_in_fountain_comes_out_line_for_line(write):
    read = Reading(FOUNTAIN, write(as_fountain()))
    assert read.said == KEPT
    assert read.titles == ["play"]
    assert read.certainty > 0.9
    assert read.findings.left_out == {"lines of title pages": 3}


def test_scenes_and_directions_of_fountain_are_dropped_on_request(write):
    path = write(as_fountain())
    read = Reading(FOUNTAIN, path, scenes="drop", directions="drop")
    assert read.said == truth()
    assert read.findings.left_out["scene headings"] == 2
    assert read.findings.left_out["stage directions"] == 4
    assert Reading(FOUNTAIN, path, directions="drop").said == [SCENES[0], *truth(), SCENES[1]]


DAMAGES = {
    "windows line ends": lambda text: text.replace("\n", "\r\n"),
    "byte order mark": lambda text: "\ufeff" + text,
    "more blank lines": lambda text: text.replace("\n\n", "\n\n\n"),
    "blanks at line ends": lambda text: text.replace("\n", " \n"),
    "notes": lambda text: text.replace("ANNA\n", "ANNA [[who?]]\n[[over\nlines]]\n"),
    "boneyard": lambda text: text.replace("BEN\n", "/* GONE\n\nNo.\n\n*/BEN\n"),
    "voices": lambda text: text.replace("BEN\n", "BEN (V.O.) (CONT'D)\n"),
    "forced": lambda text: text.replace("BEN\n", "@BEN ^\n").replace("EXT.", ".EXT."),
    "outline": lambda text: text.replace("ANNA\n", "# Part\n\n= What happens\n\n===\n\nANNA\n", 3),
    "emphasis": lambda text: text.replace("Nobody.", "***No**body*.").replace("nine", "_nine_"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_fountain_in_any_state_comes_out_line_for_line(write, damage):
    read = Reading(FOUNTAIN, write(DAMAGES[damage](as_fountain())))
    assert read.said == KEPT
    assert read.certainty > 0.8


def test_marks_within_speeches_are_read(write):
    text = (
        "INT. A\n\nANNA (to Ben)\n(beat)\nOne.\n  \nTwo *.\n~La la\n\n"
        "She goes.\n\nANNA (CONT'D)\nThree.\n"
    )
    assert Reading(FOUNTAIN, write(text)).said == [
        ("", "INT. A"),
        ("ANNA", "(to Ben)\n(beat)\nOne.\nTwo *.\nLa la"),
        ("", "She goes."),
        ("ANNA", "Three."),
    ]
    read = Reading(FOUNTAIN, write(text), directions="drop")
    assert read.said == [("", "INT. A"), ("ANNA", "One.\nTwo *.\nLa la\nThree.")]
    assert read.findings.left_out == {"stage directions": 3}


def test_a_note_that_is_not_closed_ends_at_a_blank_line(write):
    text = "INT. A\n\nANNA\nOne. [[why\n\nShe goes.\n"
    assert Reading(FOUNTAIN, write(text)).said[1:] == [("ANNA", "One."), ("", "She goes.")]


OTHERS = {
    "prose": "It was a dark night.\n\nTHE END OF IT\nHe left. INT. no.\n\n" * 20,
    "our layout": "".join(f"{name}:\n{text}\n\n" for name, text in truth()),
    "python": 'def f():\n    """Do."""\n\nINT = 1\nEXT = 2\n\nX\nY\n' * 9,
    "chat": "12/31/23, 10:15 - Anna: hello\n" * 9,
    "markdown": "# Heading\n\n* a\n* b\n\n> quote\n\nAPI\nuse it\n\n" * 9,
    "subtitles": as_srt(),
    "empty": "",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_texts_are_not_taken_for_fountain(write, kind):
    assert FOUNTAIN.certainty(source_of(write(OTHERS[kind]))) < 0.2


def test_fountain_is_known():
    assert FOUNTAIN in READERS


def test_a_file_without_text_is_refused(write):
    with pytest.raises(UnreadableError, match="no text"):
        Reading(FOUNTAIN, write("\n\n \n"))


FRAGMENTS = st.sampled_from(
    [
        *(
            "\n",
            "\n\n",
            "ANNA",
            "INT. ",
            ".",
            "@",
            "^",
            "[[",
            "]]",
            "/*",
            "*/",
            "#",
        ),
        *(
            "=",
            "===",
            ">",
            "<",
            "~",
            "!",
            "*",
            "_",
            "\\",
            "(",
            ")",
            "CUT TO:",
            "Title: ",
        ),
        *(
            "  ",
            "\x00",
            "\ud800",
            "a",
            "\x0b",
        ),
    ]
)


@settings(max_examples=40, deadline=2000)
@given(parts=st.lists(FRAGMENTS | st.text(max_size=5), max_size=40))
def test_hostile_fountain_is_read_or_refused(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "hostile.fountain"
    path.write_bytes("".join(parts).encode("utf-8", "replace"))
    source = source_of(path)
    assert 0 <= FOUNTAIN.certainty(source) <= 1
    try:
        pieces = list(FOUNTAIN.read(source, ReadingOptions(), Findings()))
    except UnreadableError:
        return
    assert all(isinstance(p, DocumentStart) or p.text.strip() for p in pieces)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["*a" * 99_999, "[[" * 99_999, "INT. A\n\nANNA\n" + "xxx\n" * 99_999]
)
def test_monstrous_fountain_ends_soon(write, text):
    assert max(len(text) for _, text in Reading(FOUNTAIN, write(text)).said or [("", "")]) < 300_000
