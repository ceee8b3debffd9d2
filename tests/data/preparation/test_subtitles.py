"""Subtitles come out line for line, in whatever state their files are."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_play import (
    ENGLISH,
    GERMAN,
    PLAY,
    RUSSIAN,
    Reading,
    as_ass,
    as_srt,
    as_vtt,
    clock,
    source_of,
    subtitles,
    truth,
)

from chatgot.data.preparation.known_readers import READERS
from chatgot.data.preparation.pieces import DocumentStart, Passage, Speech
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.ass_cues import ass_cues
from chatgot.data.preparation.readers.cues import Damage, cues_of
from chatgot.data.preparation.readers.subtitles import (
    ASS,
    MICRODVD_SUBTITLES,
    MPL2_SUBTITLES,
    SRT,
    TMP_SUBTITLES,
    VTT,
)

READERS_HERE = (VTT, SRT, ASS, MICRODVD_SUBTITLES, MPL2_SUBTITLES, TMP_SUBTITLES)
BLOCKS = re.compile(r"\n\n")


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name="e01.srt", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
        return path

    return write


def srt_of(*texts: str, gap: int = 100) -> str:
    """Return subtitles of two seconds each, with pauses of `gap` milliseconds."""
    step = 2000 + gap
    return "".join(
        f"{n + 1}\n{clock(n * step)} --> {clock(n * step + 2000)}\n{text}\n\n"
        for n, text in enumerate(texts)
    )


@pytest.mark.parametrize(
    ("reader", "render"), [(SRT, as_srt), (VTT, as_vtt), (ASS, as_ass)], ids=["srt", "vtt", "ass"]
)
def test_a_play_comes_out_line_for_line(write, reader, render):
    read = Reading(reader, write(render()))
    assert read.said == truth()
    assert read.titles == ["e01"]
    assert read.certainty > 0.9
    assert not read.findings.left_out
    assert not read.findings.remarks


# --------------------------------------------------------------------------------------------------
# Damage


def shuffled(text: str) -> str:
    blocks = BLOCKS.split(text.strip())
    random.Random(7).shuffle(blocks)
    return "\n\n".join(blocks)


def doubled(text: str) -> str:
    """Return subtitles each of which comes twice, at overlapping times."""
    return re.sub(r"(\d+\n.*?\n\n)", r"\1\1", text, flags=re.DOTALL)


TIMES = re.compile(r"(\d\d:\d\d:\d\d),(\d\d\d)")
DAMAGES = {
    "windows line ends": lambda text: text.replace("\n", "\r\n"),
    "old line ends": lambda text: text.replace("\n", "\r"),
    "byte order mark": lambda text: "\ufeff" + text,
    "points": lambda text: TIMES.sub(r"\1.\2", text),
    "no milliseconds": lambda text: TIMES.sub(r"\1", text),
    "no hours": lambda text: TIMES.sub(lambda m: m[0][3:], text),
    "short hours": lambda text: TIMES.sub(lambda m: m[0][1:], text),
    "coordinates": lambda text: TIMES.sub(r"\1,\2", re.sub(r"(-->.*)", r"\1  X1:40 X2:600", text)),
    "odd arrows": lambda text: text.replace("-->", "->"),
    "translated by a machine": lambda text: TIMES.sub(
        lambda m: m[0].replace(":", ": ").replace(",", ", "), text
    ).replace("-->", "->"),
    "no blank lines": lambda text: text.replace("\n\n", "\n"),
    "many blank lines": lambda text: text.replace("\n", "\n\n"),
    "blanks at line ends": lambda text: text.replace("\n", "  \t\n"),
    "all numbers alike": lambda text: re.sub(r"(?m)^\d+$", "1", text),
    "numbers from behind": lambda text: re.sub(r"(?m)^\d+$", lambda m: str(99 - int(m[0])), text),
    "no numbers": lambda text: re.sub(r"(?m)^\d+\n", "", text),
    "not in order": shuffled,
    "doubled": doubled,
    "tags": lambda text: re.sub(
        r"(?m)^([^\d\n].*)$", r'{\\an8}<font color="#ffff00"><I>\1</i></font>', text
    ),
    "really WebVTT": lambda text: "WEBVTT\n\n" + TIMES.sub(r"\1.\2", text),
    "invisible marks": lambda text: re.sub(r"(?m)^([^\d\n].*)$", "\u202b\\1\u202c", text),
    "cut off": lambda text: text.rstrip() + "\n\n99\n00:01",
    "no end": lambda text: text.rstrip(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_subtitles_come_out_line_for_line(write, damage):
    path = write(DAMAGES[damage](as_srt()), "e01.txt")
    source = source_of(path)
    reader = max(READERS_HERE, key=lambda reader: reader.certainty(source))
    assert reader is (VTT if damage == "really WebVTT" else SRT)
    read = Reading(reader, path)
    assert read.said == truth()
    repeats = len(list(subtitles())) if damage == "doubled" else 0
    assert read.findings.left_out["repeated subtitles"] == repeats


@pytest.mark.parametrize(
    ("play", "encoding"),
    [
        (PLAY, "utf-16"),
        (PLAY, "utf-8-sig"),
        (GERMAN, "cp1252"),
        (RUSSIAN, "cp1251"),
        (ENGLISH, "ascii"),
    ],
)
def test_subtitles_in_any_encoding_come_out_line_for_line(write, play, encoding):
    assert Reading(SRT, write(as_srt(play), encoding=encoding)).said == truth(play)


def test_our_own_parsers_agree_with_pysubs2():
    from pysubs2 import SSAFile

    for kind, text in (("srt", as_srt()), ("vtt", as_vtt().replace("NOTE a remark\n\n", ""))):
        ours = [cue[:2] for cue in cues_of([text], kind == "vtt", Damage())]
        assert ours == [(event.start, event.end) for event in SSAFile.from_string(text, kind)]
    cues = list(ass_cues(as_ass().split("\n"), Damage(), Findings().left_out))
    theirs = SSAFile.from_string(as_ass(), "ass")
    expected = [(event.start, event.end, event.text, event.name) for event in theirs]
    assert [cue[:4] for cue in cues] == expected


def test_a_text_cut_anywhere_gives_the_same_subtitles():
    text = as_srt(ENGLISH)
    whole = list(cues_of([text], False, Damage()))
    for size in (1, 2, 7, 100):
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(cues_of(chunks, False, Damage())) == whole


# --------------------------------------------------------------------------------------------------
# Who says what


def said(write, *texts: str, gap: int = 100, **options) -> list[tuple[str, str]]:
    return Reading(SRT, write(srt_of(*texts, gap=gap)), **options).said


def test_dashes_are_two_speakers(write):
    texts = "- Where are you\ngoing?\n- Home.", "-Already?\n-Yes.", "How?\n- By bus.", "-5 degrees!"
    lines = "Where are you going?", "Home.", "Already?", "Yes.", "How?", "By bus.", "-5 degrees!"
    assert said(write, *texts) == [("", "\n".join(lines))]
    named = said(write, "- ANNA: No.\n- BEN (V.O.): Yes,", "and no.")
    assert named == [("ANNA", "No."), ("BEN", "Yes, and no.")]


def test_a_sentence_over_several_subtitles_is_one_line(write):
    texts = "I never thought", "I would see you,", "my friend.", "But I...", "...did.", "Who", "A"
    expected = "I never thought\nI would see you, my friend.\nBut I... did.\nWho\nA"
    assert said(write, *texts) == [("", expected)]


def test_a_pause_begins_a_paragraph(write):
    assert said(write, "One.", "Two.", gap=3900) == [("", "One.\nTwo.")]
    assert said(write, "One.", "Two.", gap=4100) == [("", "One."), ("", "Two.")]


def test_names_before_a_colon_are_speakers(write):
    texts = ["Anna: Hello: you.", "Ben: It is 10:30.", "Listen: no.", "and so", "Anna: Yes."]
    assert said(write, *texts) == [
        ("Anna", "Hello: you."),
        ("Ben", "It is 10:30."),
        ("Listen", "no.\nand so"),
        ("Anna", "Yes."),
    ]
    rare = [*["So it is."] * 30, "Listen: no.", "MAN ON TV: Rain.", "So.", "Listen: no."]
    speeches = said(write, *(f"{text} {n}." for n, text in enumerate(rare)))
    assert [name for name, _ in speeches] == ["", "MAN ON TV", ""]


def test_sounds_and_songs_are_kept_or_dropped(write):
    texts = [
        "[door slams]",
        "Stop!\n(music\nplays)",
        "♪ La la\nla la ♪",
        "ANNA (crying): No. *sighs*",
        "# We are the ones #",
        "BEN: We are #1 (one).",
    ]
    assert said(write, *texts) == [
        ("", "[door slams]\nStop!\n(music plays)\n♪ La la la la ♪"),
        ("ANNA", "(crying) No. *sighs*"),
        ("", "# We are the ones #"),
        ("BEN", "We are #1 (one)."),
    ]
    read = Reading(SRT, write(srt_of(*texts)), directions="drop")
    assert read.said == [("", "Stop!"), ("ANNA", "No."), ("BEN", "We are #1 .")]
    assert read.findings.left_out["sound descriptions"] == 5
    assert read.findings.left_out["lines of songs"] == 3


ADS = (
    "Subtitles by EXPLOSIVE\nskull",
    "Downloaded from www.somewhere.net",
    "Synced and corrected by someone",
    "Sync & corrections by <i>n17t01</i>",
    "Advertise your product or brand here\ncontact www.OpenSubtitles.org today",
    "www.example.com",
    "Untertitel von Stephanie",
    "Sous-titrage : Société",
    "Subtítulos por aRGENTeaM",
    "Субтитры сделал Игорь",
    "Translated by: somebody",
    "字幕：某人",
)
NO_ADS = (
    "I read the subtitles.",
    "We must sync our watches by noon.",
    "Who translated it?",
    "Look at www.example.com and you will see.",
    "Captain!",
)


@pytest.mark.parametrize("text", ADS)
def test_an_advertisement_is_left_out_and_counted(write, text):
    read = Reading(SRT, write(srt_of("Hello.", text, "Bye.")))
    assert read.said == [("", "Hello.\nBye.")]
    assert read.findings.left_out == {"advertisements and credits of subtitles": 1}


def test_a_line_about_subtitles_is_no_advertisement(write):
    assert said(write, *NO_ADS) == [("", "\n".join(NO_ADS))]


def test_rolling_captions_are_said_once(write):
    lines = [f"caption number {n} of the talk" for n in range(40)]
    blocks = ["WEBVTT\n\n"]
    for n, line in enumerate(lines):
        before = lines[n - 1] if n else " "
        start = n * 3000
        timed = line.replace(" of", "<00:00:01.000><c> of</c>")
        times = f"{clock(start, '.')} --> {clock(start + 2990, '.')}"
        still = f"{clock(start + 2990, '.')} --> {clock(start + 3000, '.')}"
        blocks.append(f"{times}\n{before}\n{timed}\n\n{still}\n{line}\n \n\n")
    read = Reading(VTT, write("".join(blocks)))
    assert read.said == [("", "\n".join(lines))]


def test_the_same_words_said_again_are_kept(write):
    assert said(write, "No!", "No!", "Never.", "No!") == [("", "No!\nNo!\nNever.\nNo!")]


def test_a_subtitle_repeated_while_it_is_shown_is_said_once(write):
    times = ("00,000 --> 00:00:09,000", "01,000 --> 00:00:02,000", "03,000 --> 00:00:09,000")
    texts = ("Wait.", "No.", "Wait.")
    blocks = (f"00:00:{at}\n{text}\n" for at, text in zip(times, texts, strict=True))
    assert Reading(SRT, write("\n".join(blocks))).said == [("", "Wait.\nNo.")]


def test_voices_of_webvtt_are_speakers(write):
    text = (
        "WEBVTT\n\nid-1\n00:01.000 --> 00:02.000\n<v Anna>It is &lt;here&gt;,</v>\n\n"
        "id 2\n00:02.000 --> 00:03.000\n<v Anna>you see.</v> <v.x Ben>No.</v>\n\n"
        "00:03.000 --> 00:04.000\n- <v Anna>Yes!\n- <v Ben>So.\n\n00:04.000 --> 00:05.000\nHm.\n"
    )
    assert Reading(VTT, write(text)).said == [
        ("Anna", "It is <here>, you see."),
        ("Ben", "No."),
        ("Anna", "Yes!"),
        ("Ben", "So."),
        ("", "Hm."),
    ]


def events(*rows: str) -> str:
    return "[Script Info]\n\n[Events]\n" + "".join(f"{row}\n" for row in rows)


def test_ass_drops_drawings_comments_and_effects(write):
    text = events(
        "Format: Start, End, Style, Actor, Effect, Text",
        "Dialogue: 0:00:03.00,0:00:04.00,Default,Ben,,Later, \\hhe {\\i1}said{\\i0}.",
        r"Dialogue: 0:00:01.00,0:00:02.00,Default,Anna,,{\k20}Hel{\k9}lo\N{to}there",
        r"Dialogue: 0:00:01.50,0:00:02.00,Default,,,{\an7\p1}m 0 0 l 9 9{\p0}",
        "Comment: 0:00:01.00,0:00:02.00,Default,,,hidden",
        "Dialogue: 0:00:01.00,0:00:02.00,Default,,fx,la",
        "Dialogue: 0:00:02.00,0:00:03.00,Sign,,,SHOP",
        "Dialogue: nonsense",
    )
    read = Reading(ASS, write(text))
    assert read.said == [("Anna", "Hello there"), ("", "SHOP"), ("Ben", "Later, he said.")]
    assert read.findings.left_out == {"comments in the file": 1, "karaoke effects": 1}
    read = Reading(ASS, write(text), directions="drop")
    assert read.said == [("Anna", "Hello there"), ("Ben", "Later, he said.")]


def test_styles_of_ass_are_speakers_where_names_are_missing(write):
    row = "Dialogue: 0,0:00:0{0}.00,0:00:0{0}.90,{1},,0,0,0,,{2}"
    rows = [
        (1, "Anna", "A."),
        (2, "Ben", "B."),
        (3, "Anna", "C."),
        (4, "Ben", "D."),
        (5, "Default", "E."),
    ]
    read = Reading(ASS, write(events(*(row.format(*fields) for fields in rows))))
    assert [name for name, _ in read.said] == ["Anna", "Ben", "Anna", "Ben", ""]


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (MICRODVD_SUBTITLES, "{1}{1}25.0\n{25}{50}{y:i}Hello|to you.\n{60}{}Bye.\nrest\n{x}{1}y\n"),
        (MICRODVD_SUBTITLES, "{25}{50}{Y:b}Hello|to you.\n{60}{80}Bye.\n"),
        (MPL2_SUBTITLES, "[10][30]/Hello|to you.\n[31][50]Bye.\n"),
        (TMP_SUBTITLES, "00:00:01:Hello|to you.\n00:00:03:Bye.\n"),
        (SRT, "0:00:01.000,0:00:02.000\nHello\nto you.\n\n0:00:03.000,0:00:04.000\nBye.\n"),
    ],
)
def test_rare_formats_are_read(write, reader, text):
    read = Reading(reader, write(text))
    assert read.said == [("", "Hello to you.\nBye.")]
    assert read.certainty >= 0.6


def test_joined_files_are_several_documents(write):
    read = Reading(SRT, write(as_srt(ENGLISH) + as_srt(GERMAN)))
    assert read.titles == ["e01", "e01, part 2"]
    assert read.said == truth(ENGLISH + GERMAN)


# --------------------------------------------------------------------------------------------------
# What is no subtitle file

OTHERS = {
    "prose": "It was a dark night, at 10:30 --> the clock said. He left.\n" * 40,
    "our layout": "".join(f"{name}:\n{text}\n\n" for name, text in truth()),
    "python": 'import re\n\nTIME = "00:00:01,000 --> 00:00:02,000"\n' + "x = {1: 2}\n" * 40,
    "chat": "12/31/23, 10:15 - Anna: hello\n" * 9,
    "log": "00:00:01 INFO started\n00:00:02 INFO done: 1\n" * 9,
    "transcript": "[00:01:02] Anna: hello\n[00:01:05] Ben: no\n" * 9,
    "lists": "[1][2] see there\nand {1}{2} text\n" + "more\n" * 9,
    "empty": "",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_texts_are_not_taken_for_subtitles(write, kind):
    source = source_of(write(OTHERS[kind]))
    assert max(reader.certainty(source) for reader in READERS_HERE) < 0.2


def test_all_readers_of_subtitles_are_known():
    assert set(READERS_HERE) <= set(READERS)


@pytest.mark.parametrize("reader", READERS_HERE, ids=lambda reader: reader.kind)
def test_a_file_without_subtitles_is_refused(write, reader):
    with pytest.raises(UnreadableError, match="no subtitles"):
        Reading(reader, write("Only words.\n"))
    with pytest.raises(UnreadableError, match="not text"):
        Reading(reader, write(b"\x00\xff\xfe\x00\x81" * 99))


FRAGMENTS = st.sampled_from(
    [
        *("-->", "\n", "\n\n", "1", "00:00:01,000", " --> ", "00:00:02,000\n", ":", "WEBVTT\n\n"),
        *("{", "}", "<v ", ">", "{\\p1}", "[", "]", "(", "♪", "- ", "...", "ANNA: ", "\x01", "\0"),
        *(
            "Dialogue: 0,0:00:01.00,0:00:02.00,Default,",
            "[Script Info]\n",
            "Format: text,start,end\n",
        ),
        *(
            "{1}{1}",
            "nan",
            "0",
            "9" * 20,
            "{5}{}",
            "[1][2]",
            "00:00:01:x\n",
            "\ud7ff",
            "字幕",
            "subs by",
        ),
    ]
)


@settings(max_examples=30, deadline=2000)
@given(parts=st.lists(FRAGMENTS | st.text(max_size=9), max_size=40))
def test_hostile_text_is_read_or_refused(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "hostile.srt"
    path.write_bytes("".join(parts).encode("utf-8", "surrogatepass"))
    source = source_of(path)
    for reader in READERS_HERE:
        assert 0 <= reader.certainty(source) <= 1
        for directions in ("keep", "drop"):
            options = ReadingOptions(directions=directions)
            try:
                pieces = list(reader.read(source, options, Findings()))
            except UnreadableError:
                continue
            assert all(isinstance(p, DocumentStart) or p.text.strip() for p in pieces)
            assert all(p.name for p in pieces if isinstance(p, Speech))
            assert all("\n\n" not in p.text for p in pieces if isinstance(p, Speech | Passage))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "-->" * 50_000,
        "[a" * 50_000,
        "{\\p1" * 50_000,
        "00:01 " * 50_000,
        "1\n" * 99_999,
        "<v " * 50_000,
    ],
    ids=["arrows", "brackets", "drawings", "times", "numbers", "voices"],
)
def test_monstrous_files_end_soon(write, text):
    start = "1\n00:00:01,000 --> 00:00:02,000\n"
    for reader, head in (
        (SRT, start),
        (VTT, f"WEBVTT\n\n{start}"),
        (ASS, events() + "Dialogue: 0,0:00:01.00,0:00:02.00,,,,,,,"),
    ):
        read = Reading(reader, write(head + text))
        assert sum(len(text) for _, text in read.said) <= 60_000
