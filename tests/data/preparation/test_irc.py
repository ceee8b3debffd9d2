"""Logs of IRC come out line for line, from the programs that write them."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messenger_chats import Reading, source_of

from chatgot.data.preparation.pieces import DocumentStart, Passage
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.irc import IRC

LINES = [
    ("anna", "are you there?", 22, 58),
    ("bjørn_[x]", "yes: in a minute <3", 22, 59),
    ("anna", "\x0304,01red\x03 \x02bold\x02", 23, 1),
    ("مريم", "أهلا 👋", 0, 5),
]
TRUTH = [
    ("anna", "are you there?"),
    ("bjørn_[x]", "yes in a minute <3".replace("yes", "yes:")),
    ("anna", "red bold"),
    ("مريم", "أهلا 👋"),
]
WAVES = ("anna", "waves at you", 0, 6)


def log(head: str, said: str, done: str, notices: list[str], new_day: str) -> str:
    """Return a log; in head and notices, H, M, S and D stand for the time and date."""

    def stamped(text: str, hour: int, minute: int) -> str:
        day = "01" if hour > 12 else "02"
        start = head.replace("HH", f"{hour:02}").replace("MM", f"{minute:02}")
        return start.replace("SS", "07").replace("DD", day) + text

    lines = [stamped(notice, 22, 57) for notice in notices]
    for nick, text, hour, minute in LINES:
        if hour == 0 and new_day:
            lines.append(new_day)
        lines.append(stamped(said.format(nick=nick, text=text), hour, minute))
    nick, text, hour, minute = WAVES
    lines.append(stamped(done.format(nick=nick, text=text), hour, minute))
    return "\n".join(lines) + "\n"


ANGLE = "<{nick}> {text}"
STAR = "* {nick} {text}"
# program: (file name, log, notices in it)
LOGS = {
    "irssi": (
        "chan.log",
        "--- Log opened Wed Jan 01 22:00:00 2020\n"
        + log(
            "HH:MM ",
            "<@{nick}> {text}",
            " * {nick} {text}",
            ["-!- anna [~a@b.c] has joined #chan", "-!- mode/#chan [+o anna] by x"],
            "--- Day changed Thu Jan 02 2020",
        ),
        4,
    ),
    "weechat": (
        "irc.chan.weechatlog",
        log(
            "2020-01-DD HH:MM:SS\t",
            "@{nick}\t{text}",
            " *\t{nick} {text}",
            ["-->\tanna (~a@b.c) has joined #chan", "<--\tx (y@z) has quit (bye)", "--\tTopic: t"],
            "",
        ),
        3,
    ),
    "znc": (
        "2020-01-01.log",
        log("[HH:MM:SS] ", ANGLE, STAR, ["*** Joins: anna (~a@b.c)", "*** Quits: x (y@z)"], ""),
        2,
    ),
    "eggdrop": (
        "chan.log.20200101",
        log("[HH:MM] ", ANGLE, "Action: {nick} {text}", ["anna (~a@b.c) joined #chan."], ""),
        1,
    ),
    "mirc": (
        "#chan.txt",
        "Session Start: Wed Jan 01 22:00:00 2020\n"
        + log("[HH:MM] ", ANGLE, STAR, ["* anna (~a@b.c) has joined #chan"], ""),
        2,
    ),
    "hexchat": (
        "chan-2020-01-01.log",
        "**** BEGIN LOGGING AT Wed Jan  1 22:00:00 2020\n\n"
        + log("Jan DD HH:MM:SS ", "<{nick}>\t{text}", "*\t{nick} {text}", ["-x-\thello"], ""),
        2,
    ),
    "iso": ("log.txt", log("2020-01-DDTHH:MM:SS ", ANGLE, STAR, [], ""), 0),
}
FIRST = 1577919480.0  # 2020-01-01 22:58


@pytest.fixture
def read_log(tmp_path):
    def read_log(name, text, options=None) -> Reading:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return Reading(IRC, path, options)

    return read_log


@pytest.mark.parametrize("program", LOGS)
def test_a_log_of_each_program_comes_out_line_for_line(read_log, program):
    name, text, notices = LOGS[program]
    read = read_log(name, text)
    assert read.lines == TRUTH
    minutes = [int(time - FIRST) // 60 for *_, time in read.speeches]
    assert minutes == [0, 1, 3, 67]
    assert read.pieces[-1] == Passage("anna waves at you", read.speeches[-1][2] + 60)
    assert read.findings.left_out["joins, parts and notices"] == notices
    assert read.findings.left_out["odd lines"] == 0
    assert read.titles == ["2020-01-01"]
    assert read.certainty > 0.8


def test_actions_are_dropped_with_directions(read_log):
    name, text, _ = LOGS["znc"]
    read = read_log(name, text, ReadingOptions(directions="drop"))
    assert not any(isinstance(piece, Passage) for piece in read.pieces)
    assert read.findings.left_out["actions"] == 1


def test_a_log_without_dates_has_pauses_but_no_times(read_log):
    read = read_log("log.txt", "[10:00] <a> one\n[11:00] <b> two\n[23:00] <a> three\n")
    assert [time for *_, time in read.speeches] == [None] * 3
    starts = [isinstance(piece, DocumentStart) for piece in read.pieces]
    assert starts == [True, False, False, True, False]
    assert read.titles == ["", ""]


def test_nicks_that_only_a_blank_divides_are_read_where_they_recur(read_log):
    lines = ["anna hello", "ben hi there", "anna how are you", "ben fine", "anna good", "ben ok"]
    text = "".join(f"2020-01-01 12:34:0{i} {line}\n" for i, line in enumerate(lines))
    read = read_log("log.txt", text)
    assert read.lines == [tuple(line.split(" ", 1)) for line in lines]
    assert 0.2 < read.certainty < 0.5


OTHERS = {
    "prose": "It was a dark night.\n" * 20,
    "log": "2020-01-01 12:34:56 INFO started\n2020-01-01 12:34:57 DEBUG done now\n" * 20,
    "syslog": "Jan 01 12:34:56 host sshd[12]: it failed\n" * 20,
    "whatsapp": "31.12.23, 22:15 - Anna: hi\n" * 9,
    "transcript": "ANNA:\nHello\n\n" * 20,
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nHello <i>you</i>\n\n" * 9,
    "table": "12:34\t5\n12:35\t6\n",
    "empty": " ",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_texts_are_not_taken_for_irc(write, kind):
    assert IRC.certainty(source_of(write(OTHERS[kind].encode()))) < 0.3


PART = st.sampled_from(
    [
        "[12:34] ",
        "99:99 ",
        "2020-13-45 12:34:56\t",
        "<a> ",
        "* ",
        "\t",
        "--- Day changed ",
        "x ",
        "\n",
    ]
)


@settings(max_examples=50, deadline=None)
@given(st.lists(PART | st.text(max_size=9), max_size=30))
def test_no_log_makes_the_reader_fail_otherwise(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "odd_irc.log"
    path.write_bytes("".join(parts).encode("utf-8", "surrogatepass") or b" ")
    source = source_of(path)
    assert 0 <= IRC.certainty(source) <= 1
    with suppress(UnreadableError):
        for _ in IRC.read(source, ReadingOptions(), Findings()):
            pass
