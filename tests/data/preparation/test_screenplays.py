"""Typed screenplays and plays for the stage come out line for line."""

import re
from textwrap import wrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_play import ENGLISH, PLAY, Reading, as_srt, source_of, truth

from chatgot.data.preparation.known_readers import READERS
from chatgot.data.preparation.pieces import DocumentStart
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.screenplay import SCREENPLAY
from chatgot.data.preparation.readers.stage_play import STAGE_PLAY

ACTION = "He waits for a very long time, until the rain has stopped, and then he opens the door."
SPEECH_WIDTH = 35


def indented(rows: list[str], indent: int) -> str:
    return "".join(f"{' ' * indent}{row}\n" for row in rows)


def as_screenplay(play=PLAY, wraps: bool = True) -> str:
    """Return a play as it is typed; where it wraps, a speech is one paragraph."""
    parts = ["\n\n", indented(["THE DOOR", "by", "Somebody"], 30), "\n     FADE IN:\n\n"]
    parts.append("12   INT. HOUSE - NIGHT                                   12\n\n")
    for name, *lines in play:
        rows = wrap(" ".join(lines), SPEECH_WIDTH) if wraps else lines
        parts.append(f"{' ' * 28}{name}\n{indented(rows, 16)}\n")
    parts.append(f"{indented(wrap(ACTION, 60), 5)}\n{'CUT TO:':>60}\n\n")
    parts.append("     EXT. STREET - DAY\n\n     Rain.\n")
    return "".join(parts)


def kept(play=PLAY, wraps: bool = True) -> list[tuple[str, str]]:
    speeches = [(name, text.replace("\n", " ") if wraps else text) for name, text in truth(play)]
    before = [("", "FADE IN:"), ("", "INT. HOUSE - NIGHT")]
    return [
        *before,
        *speeches,
        ("", ACTION),
        ("", "CUT TO:"),
        ("", "EXT. STREET - DAY"),
        ("", "Rain."),
    ]


@pytest.fixture
def write(tmp_path):
    def write(content: str, name="play.txt"):
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8", "replace"))
        return path

    return write


@pytest.mark.parametrize("wraps", [True, False], ids=["paragraphs", "verses"])
def test_a_typed_screenplay_comes_out_line_for_line(write, wraps):
    read = Reading(SCREENPLAY, write(as_screenplay(wraps=wraps)))
    assert read.said == kept(wraps=wraps)
    assert read.titles == ["play"]
    assert read.certainty > 0.8
    assert read.findings.left_out == {"lines of title pages": 3}


def test_scenes_and_directions_of_a_screenplay_are_dropped_on_request(write):
    read = Reading(SCREENPLAY, write(as_screenplay()), scenes="drop", directions="drop")
    assert read.said == kept()[2:-4]
    assert read.findings.left_out["scene headings"] == 2
    assert read.findings.left_out["stage directions"] == 4


def with_pages(text: str) -> str:
    """Return a screenplay with the marks of page ends, also within a speech."""
    torn = " " * 16 + "A man begins"
    page_end = f"{' ' * 28}(MORE)\n\n{' ' * 60}2.\n     CONTINUED: (2)\n\n"
    more = f"{page_end}{' ' * 28}OLD MAN 2 (CONT'D)\n{torn}"
    assert torn in text
    return re.sub(
        r"\n\n(?= {28}BEN)", "\n\n\f" + " " * 60 + "7.\n\n", text.replace(torn, more), count=2
    )


DAMAGES = {
    "windows line ends": lambda text: text.replace("\n", "\r\n"),
    "byte order mark": lambda text: "\ufeff" + text,
    "double spaced": lambda text: text.replace("\n", "\n\n"),
    "tabs": lambda text: text.replace(" " * 8, "\t"),
    "further in": lambda text: re.sub(r"(?m)^(?=.)", " " * 9, text),
    "centred": lambda text: re.sub(r"(?m)^ {28}(.*)$", lambda m: m[1].center(66).rstrip(), text),
    "pages": with_pages,
    "voices": lambda text: text.replace(" BEN\n", " BEN (O.S.)\n"),
    "revisions": lambda text: text.replace("Nobody.\n", "Nobody.                *\n"),
    "blanks at line ends": lambda text: text.replace("\n", "   \n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_screenplay_in_any_state_comes_out_line_for_line(write, damage):
    text = as_screenplay(ENGLISH)
    if damage == "pages":
        text = as_screenplay(ENGLISH).replace(
            "right. A man begins", f"right.\n{' ' * 16}A man begins"
        )
    read = Reading(SCREENPLAY, write(DAMAGES[damage](text)))
    found = [(name, text.replace("\n", " ")) for name, text in read.said]
    assert found == kept(ENGLISH)
    assert read.certainty > 0.8


def test_parentheticals_are_kept_or_dropped(write):
    text = as_screenplay(ENGLISH).replace(
        f"{' ' * 28}ANNA\n",
        f"{' ' * 28}ANNA (to him)\n{' ' * 22}(softly,\n{' ' * 23}then loud)\n",
        1,
    )
    read = Reading(SCREENPLAY, write(text))
    assert read.said[2][1].startswith("(to him)\n(softly, then loud)\nWho is at")
    assert Reading(SCREENPLAY, write(text), directions="drop").said[1][1].startswith("Who is at")


def test_speeches_at_the_left_end_at_a_blank_line(write):
    text = "INT. HOUSE\n\n" + "".join(
        f"{' ' * 20}{name}\n" + "\n".join(lines) + "\n\nA look.\n\n" for name, *lines in ENGLISH
    )
    read = Reading(SCREENPLAY, write(text))
    looks = [("", "INT. HOUSE")]
    for speech in truth(ENGLISH):
        looks += [speech, ("", "A look.")]
    assert read.said == looks


# --------------------------------------------------------------------------------------------------
# Plays for the stage

STAGE = ENGLISH * 2  # a name must come three times


def as_stage_play(form: str) -> str:
    """Return a play with names on lines of their own, or in the line of the speech."""
    parts = ["THE DOOR\n\nACT I\n\nSCENE II. A hall.\n\n Enter ANNA and BEN.\n\n"]
    for name, *lines in STAGE:
        parts.append(form.format(name=name, short=name.title(), text="\n".join(lines)) + "\n\n")
    parts.append(" [_Exeunt all but\n Anna._]\n\nSCENE III\n")
    return "".join(parts)


FORMS = {
    "alone": "{name}.\n{text}",
    "alone without a stop": "{name}\n{text}",
    "alone, in italics": "_{name}._\n{text}",
    "in line": "{short}. {text}",
    "in line, indented": "  {short}. {text}",
    "in line, in capitals": "{name}. {text}",
    "in line, in italics": "_{short}._ {text}",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_play_for_the_stage_comes_out_line_for_line(write, form):
    path = write(as_stage_play(FORMS[form]))
    read = Reading(STAGE_PLAY, path)
    speeches = [(name, text) for name, text in truth(STAGE)]
    if "{short}" in FORMS[form]:
        speeches = [(name.title(), text) for name, text in speeches]
    scenes = [("", "ACT I"), ("", "SCENE II. A hall.")]
    entry = [("", "Enter ANNA and BEN.")]
    assert read.said == [
        *[("", "THE DOOR"), *scenes, *entry, *speeches],
        *[("", "[Exeunt all but Anna.]"), ("", "SCENE III")],
    ]
    assert read.certainty > 0.8
    read = Reading(STAGE_PLAY, path, directions="drop", scenes="drop")
    assert read.said == speeches
    assert read.findings.left_out == {"scene headings": 3, "stage directions": 3}


def test_directions_within_speeches_are_kept_or_dropped(write):
    text = (
        "ACT I\n\n" + "ANNA. [_Aside._] So (he\nlaughs) it [sighs] is.\nExit.\n\nBEN. No.\n\n" * 3
    )
    path = write(text)
    kept = ("ANNA", "[_Aside._]\nSo (he\nlaughs) it [sighs] is.\nExit.".replace("_", ""))
    assert Reading(STAGE_PLAY, path).said[1] == kept
    dropped = Reading(STAGE_PLAY, path, directions="drop")
    assert dropped.said[1] == ("ANNA", "So (he\nlaughs) it is.")
    assert dropped.findings.left_out["stage directions"] == 9


FOOD = "Apple Bread Cheese Dates Egg Fig Grape Ham Ice Jam"
OTHERS = {
    "prose": "    It was a dark night.\n\nHe left. INT. no.\n\n          THE END\n\nmore\n" * 20,
    "our layout": "".join(f"{name}:\n{text}\n\n" for name, text in truth()),
    "python": "class A:\n    def f(self):\n        X = 1\n        if Y:\n            Z\n    A\n"
    * 9,
    "chat": "12/31/23, 10:15 - Anna: hello\n" * 9,
    "poem": "     ODE\n\nWhen I was young\n   I sang a song\n     OF LOVE\nAnd so\n" * 9,
    "glossary": "".join(f"{word}. It is eaten.\n\n" for word in FOOD.split()),
    "novel": "CHAPTER I.\nIt rained. Anna left.\n\nMr. Smith came. No. Yes.\n\nBen. He.\n\n" * 9,
    "table": "    NAME        AGE\n    Anna        12\n        TOTAL\n    Ben  9\n" * 9,
    "subtitles": as_srt(),
    "empty": "",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_texts_are_not_taken_for_screenplays(write, kind):
    source = source_of(write(OTHERS[kind]))
    assert SCREENPLAY.certainty(source) < 0.2
    assert STAGE_PLAY.certainty(source) < 0.2


def test_readers_of_screenplays_are_known():
    assert {SCREENPLAY, STAGE_PLAY} <= set(READERS)


@pytest.mark.parametrize("reader", [SCREENPLAY, STAGE_PLAY], ids=["screen", "stage"])
def test_a_screenplay_without_text_is_refused(write, reader):
    with pytest.raises(UnreadableError, match="no text"):
        Reading(reader, write("\n\n \n"))


FRAGMENTS = st.sampled_from(
    [
        *(
            "\n",
            "\n\n",
            "                            ANNA\n",
            "ANNA.\n",
            "Ham. ",
        ),
        *(
            "[",
            "]",
            "_",
            "ACT I",
            "Exit",
            "                ",
            "     ",
            "INT. A",
        ),
        *(
            "(",
            ")",
            "(MORE)",
            "12",
            "\t",
            "\x0c",
            "CONTINUED:",
            "CUT TO:",
            " *\n",
        ),
        *(
            "\x00",
            "\x0b",
            "ß",
            "'",
            "(CONT'D)",
        ),
    ]
)


@settings(max_examples=40, deadline=2000)
@given(parts=st.lists(FRAGMENTS | st.text(max_size=5), max_size=40))
def test_hostile_screenplays_are_read_or_refused(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "hostile-screenplay.txt"
    path.write_bytes("".join(parts).encode("utf-8", "replace"))
    source = source_of(path)
    for reader in (SCREENPLAY, STAGE_PLAY):
        assert 0 <= reader.certainty(source) <= 1
        try:
            pieces = list(reader.read(source, ReadingOptions(), Findings()))
        except UnreadableError:
            continue
        assert all(isinstance(p, DocumentStart) or p.text.strip() for p in pieces)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["(a " * 99_999, "\t" * 99_999 + "A\n" * 9, "  A\n(b\n" * 9_999])
def test_monstrous_screenplays_end_soon(write, text):
    for reader in (SCREENPLAY, STAGE_PLAY):
        read = Reading(reader, write(as_screenplay() + text))
        assert max(len(text) for _, text in read.said) < 600_000
