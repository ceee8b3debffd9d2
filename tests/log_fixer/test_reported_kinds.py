"""What users of other log tools report: each kind mended, and promises held by mixes of all."""

import io
import os
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatgot.data.ebcdic import is_ebcdic
from chatgot.data.encoding import Undecodable
from chatgot.data.encoding import detect_encoding as detect_text_encoding
from chatgot.errors import ConfigError
from chatgot.log_fixer.cleaning import LogCleaner
from chatgot.log_fixer.decoding import LogDecoder
from chatgot.log_fixer.docker_stream import text_of
from chatgot.log_fixer.files import FixReport, Options, detect_encoding, fix_log_file, fix_stream


def fix_and_report(content: bytes, **options) -> tuple[bytes, FixReport]:
    out = io.BytesIO()
    report = FixReport("log")
    fix_stream(io.BytesIO(content), out, report, Options(**options))
    return out.getvalue(), report


def fix(content: str | bytes, **options) -> str:
    data = content.encode() if isinstance(content, str) else content
    return fix_and_report(data, **options)[0].decode()


def fix_in_parts(content: bytes, read_bytes: int) -> str:
    decoder = LogDecoder(text_of(io.BytesIO(content)), read_bytes, 1 << 22)
    cleaner = LogCleaner(held=1 << 22)
    texts = [
        cleaner.feed(text.characters, text.is_guess)
        for piece in decoder.pieces()
        for text in decoder.texts(piece)
    ]
    return "".join([*texts, cleaner.end()])


def frames(*texts: bytes, streams: bytes = b"\x01") -> bytes:
    """Return a raw stream of Docker."""
    return b"".join(
        bytes([streams[number % len(streams)], 0, 0, 0]) + len(text).to_bytes(4, "big") + text
        for number, text in enumerate(texts)
    )


RUSSIAN = "Ошибка: я не нашёл файл, каждая семья имя, я\nСоединение прервано, моя\n" * 2


# Terminals


@pytest.mark.parametrize(
    ("log", "fixed"),
    [
        (
            "\x1b(0lqqk\x1b(B\n\x1b(0x\x1b(B a \x1b(0x\x1b(B\n\x1b(0mqqj\x1b(B\n",
            "┌──┐\n│ a │\n└──┘\n",
        ),
        ("\x1b(0tqnqu\x1b[m\x1b(B lqk\n", "├─┼─┤ lqk\n"),
        ("\x1b(0\x1b[34mx\x1b[0m\x1b(B 5\x1b(0f\x1b(BC\n", "│ 5°C\n"),
        ("\x1b)0\x0elqk\x0f text\n", "┌─┐ text\n"),
        ("\x1b(0mqqj\r\nlog\n", "└──┘\r\nlog\n"),
        ("\x1b(0q\x1b[6b\x1b(B|\n", "───────|\n"),
        # words stay words
        ("\x1b(0done\x1b(B\n\x1b(0hello\n\x0eelement\x0f\n", "done\nhello\n\\x0eelement\\x0f\n"),
        ("\x1b[1mbold\x1b[m\x0f text\x0f\n", "bold text\\x0f\n"),
    ],
)
def test_lines_drawn_by_letters_are_lines(log, fixed):
    assert fix(log) == fixed
    assert fix(fixed) == fixed


@pytest.mark.parametrize(
    ("log", "fixed"),
    [
        ("-\x1b[9b|\n", "----------|\n"),
        ("\x1b[31m=\x1b[3b\x1b[0m end\n", "==== end\n"),
        ("日\x1b[2b\n", "日日日\n"),
        ("\x1b[5bnothing before\n", "nothing before\n"),
        ("a\n\x1b[3bb\n", "a\nb\n"),
        ("name\x1b[2Isize\n", "name            size\n"),
        ("12345678abc\x1b[Zxyz\n", "12345678xyz\n12345678abc\n"),
    ],
)
def test_repeated_characters_and_tabs_of_the_cursor_are_shown(log, fixed):
    assert sorted(fix(log).split("\n")) == sorted(fixed.split("\n"))


def test_a_repetition_without_end_costs_no_more_than_a_wide_line():
    assert len(fix("x\x1b[999999999b" * 200 + "\n")) < 8192


@pytest.mark.parametrize(
    ("log", "fixed"),
    [
        ("\x1bkbash\x1b\\$ ls\n", "$ ls\n"),
        ("a\x1bPtmux;\x1b\x1b]52;c;QUJD\x07\x1b\\b\n", "ab\n"),
        ("a\x1bPtmux;\x1b\x1b_Gm=0;QUJD\x1b\x1b\\\x1b\\b\n", "ab\n"),
        ("a\x1bP\x1b]0;title\x07\x1b\\b\n", "ab\n"),
        ("a\x1bPtmux;\x1b\x1b]52;c;no end\n", "a\\x1bPtmux;\\x1b\\x1b]52;c;no end\n"),
        ("\x1b]P1cc0000\x1b]Rtext\n", "text\n"),
        ("\x1b]P1cc00 short\n", "\\x1b]P1cc00 short\n"),
        ("\x1b]133;A\x07$ \x1b]633;E;ls;n\x07ls\x1b]133;D;0\x1b\\\n", "$ ls\n"),
        (
            "\x1b]8;id=1;https://x.y/a?b\x07page\x1b]8;;\x07 \x1b[38:2::9:8:7mred\x1b[4:3mx\n",
            "page redx\n",
        ),
        ("\x1b[?2004h$ lz\b\x1b[Ks\x1b[?2004l\x1b[200~pasted\x1b[201~\n", "$ lspasted\n"),
        ("a\x1b_Ga=T,f=100,m=1;QUJD\x1b\\b\x1bPq#0!9~-#1~~\x1b\\c\x1b#6\n", "abc\n"),
        ("a\x1b]1337;File=inline=1:" + "QUJD" * 100_000 + "\x07b\n", "ab\n"),
        ("a\x1b]0;never\nends\n", "a\\x1b]0;never\nends\n"),
        ("a\x1b]0;ti\x1b[31mtle\x07b\n", "a\\x1b]0;title\\x07b\n"),
    ],
)
def test_strings_for_the_terminal_go_whole_and_torn_ones_stay(log, fixed):
    assert fix(log) == fixed
    assert fix(fixed) == fixed


# Files of other systems


@pytest.mark.parametrize("end", ["\x1a", "\x1a" * 127, "\x1a\0\0"])
@pytest.mark.parametrize("before", ["", "a\r\nb\r\n", "no line end", "über\n"])
def test_the_marks_at_the_end_of_a_dos_file_go(before, end, tmp_path):
    log = tmp_path / "dos.log"
    log.write_text(before + end, encoding="utf-8", newline="")
    report = fix_log_file(log)
    assert (tmp_path / "dos_fixed.log").read_bytes() == before.encode()
    assert report.counts["end_of_file_marks"] == end.count("\x1a")


def test_a_mark_inside_a_file_stays_visible():
    assert fix("a\x1a\nb\x1ac\n") == "a\\x1a\nb\\x1ac\n"


@pytest.mark.parametrize("page", ["cp037", "cp500", "cp1140", "cp273"])
@pytest.mark.parametrize(
    "text",
    [
        "HELLO WORLD THIS IS A JOB LOG\nJOB 00123 ENDED RC 0004\n",
        "//STEP1 EXEC PGM=SORT".ljust(80) + "IEF142I STEP WAS EXECUTED".ljust(80),
        "the quick brown fox jumps over the lazy dog\n" * 20,
    ],
)
def test_a_log_of_a_mainframe_is_refused_with_the_way_out(page, text, tmp_path):
    log = tmp_path / "job.log"
    log.write_bytes(text.encode(page))
    with pytest.raises(ConfigError, match=r"EBCDIC.*iconv"):
        fix_log_file(log)
    if b"\n" not in log.read_bytes():
        with pytest.raises(Undecodable, match=r"EBCDIC.*iconv"):
            detect_text_encoding(log)


@pytest.mark.parametrize(
    "text",
    [
        "Все счастливые семьи похожи друг на друга\n".encode("koi8-r"),
        "Все@счастливые@семьи@похожи@друг@на@друга@и@так\n".encode("cp1251") * 3,
        "錯誤：無法連接到伺服器\n".encode("big5") * 9,
        "エラー：接続できません@server\n".encode("shift_jis") * 9,
        b"user@example.org root@host\n" * 9,
        b"@@@@@@@@ 12 @@@@@@@@\n" * 9,
    ],
)
def test_no_other_text_is_taken_for_one_of_a_mainframe(text):
    assert not is_ebcdic(text)


# What programs between writer and file add


@pytest.mark.parametrize(
    ("log", "fixed"),
    [
        (b"\xff\xfb\x01\xff\xfd\x03login: bob\r\n", "\\xff\\xfb\\x01\\xff\\xfd\\x03login: bob\r\n"),
        ("größer \n".encode() + b"\xff\xfd\x18caf\xc3\xa9\n", "größer \n\\xff\\xfd\\x18café\n"),
        (
            b"\xff\xfa\x18\x01\xff\xf0Gr\xfc\xdfe aus K\xf6ln\r\n",
            "\\xff\\xfa\\x18\\x01\\xff\\xf0Grüße aus Köln\r\n",
        ),
        (RUSSIAN.encode("cp1251"), RUSSIAN),
    ],
)
def test_commands_of_telnet_are_no_letters(log, fixed):
    assert fix(log) == fixed
    assert fix(fixed) == fixed


STAMP = b"2024-01-02T03:04:05.678901234Z stdout "


@pytest.mark.parametrize("character", ["é", "ж", "日", "🚀", "한"])
@pytest.mark.parametrize("between", [b"", b"an error of another stream\n"])
def test_a_character_split_between_two_records_is_no_other_letter(character, between):
    data = character.encode()
    for cut in range(1, len(data)):
        first = data[:cut]
        rest = data[cut:]
        log = f"F the café opens {character} {character}\n".encode()
        log += STAMP + b"P caf" + first + b"\n" + between + STAMP + b"F " + rest + b" zu\n"
        text = fix(log)
        assert text.isascii() is False
        for byte in data:
            assert rf"\x{byte:02x}" in text
        assert all(c in f"é{character}" or c.isascii() for c in text)


def test_a_split_character_is_seen_without_any_other_above_ascii():
    log = STAMP + b"P caf\xc3\n" + STAMP + b"F \xa9 zu\n"
    assert fix(log).isascii()


@pytest.mark.parametrize(
    ("log", "fixed"),
    [
        ("é\n".encode() + b"caf\xe9\n21.5 \xb0C\n5 \x80\n", "é\ncafé\n21.5 °C\n5 €\n"),
        (b"CAF\xc9\n5 \x80\n", "CAFÉ\n5 €\n"),
        ("é\nцена\n".encode() + b"1 \xe9\n" + b"ok\n" * 9 + b"21.5 \xb0C na\xefve\n", None),
    ],
)
def test_western_lines_after_a_cut_off_one_stay_letters(log, fixed):
    text = fix(log)
    assert "°C" in text or "€" in text
    assert fixed is None or text == fixed


# Streams of Docker


@pytest.mark.parametrize("size", [1, 9, 10, 13, 27, 200, 255, 256, 3000])
def test_headers_of_docker_go_and_all_its_text_stays(size, tmp_path):
    """The size in a header is a line feed, an ESC, or a byte above ASCII."""
    line = ("ü" * (size // 2))[: size // 2].encode() + b"x" * (size % 2)
    assert len(line) == size
    log = tmp_path / "docker.log"
    log.write_bytes(frames(line, b"\n", b"caf\xc3", b"\xa9\n", line, streams=b"\x01\x02"))
    report = fix_log_file(log)
    assert report.counts == {"docker_headers": 5}
    assert (tmp_path / "docker_fixed.log").read_bytes() == line + b"\ncaf\xc3\xa9\n" + line
    assert detect_encoding(log)[0] == "utf-8"


def test_text_after_the_last_header_of_docker_stays_and_faults_have_places():
    content = frames("größer\n".encode(), b"x\n") + "Ende für heute\n".encode()
    assert fix(content) == "größer\nx\nEnde für heute\n"
    torn = "größer é à ".encode() + b"\xff" + " ö\n".encode()
    content = frames(b"one\n", b"two\n", torn)
    _, report = fix_and_report(content)
    assert report.first_undecodable_offset == content.index(b"\xff")


@pytest.mark.parametrize(
    "text", [b"\x01\0\0\0\0\0\0\x06hello", b"\x01\0\0\0abcd", b"\x01\x02 ok\n"]
)
def test_a_file_with_less_than_a_frame_is_no_stream_of_docker(text):
    file = io.BytesIO(text)
    assert text_of(file) is file


def test_a_long_stream_of_docker_is_read_from_any_place():
    texts = [f"line {number} ü\n".encode() * (number % 7 + 1) for number in range(60_000)]
    whole = b"".join(texts)
    stream = text_of(io.BytesIO(frames(*texts)))
    for place in (0, 2_500_000, 17, len(whole) - 5, 1_048_576, len(whole) + 9):
        stream.seek(place)
        assert stream.read(100) == whole[place : place + 100]


# Files


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone gives away")
def test_a_log_mended_in_place_keeps_its_owner_and_mode(tmp_path):
    log = tmp_path / "daemon.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m\n")
    log.chmod(0o640)
    os.chown(log, 1234, 4321)
    fix_log_file(log, in_place=True)
    status = log.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 4321, 0o640)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="extended attributes are those of Linux")
def test_a_log_mended_in_place_keeps_its_extended_attributes(tmp_path):
    log = tmp_path / "daemon.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m\n")
    try:
        os.setxattr(log, "user.origin", b"collector")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    fix_log_file(log, in_place=True)
    assert os.getxattr(log, "user.origin") == b"collector"


# What is text stays text

TEXTS = [
    "Mar  8 host p[3]: #033[92mINFO#033[0m#011tab\n",
    "^[[31mERROR^[[0m ^M\n",
    '{"log":"\\u001b[32mINFO\\u001b[0m ok\\r\\n","stream":"stdout"}\n',
    '[0.1, "o", "\\u001b[31mhi\\r\\n"]\n',
    "caf=C3=A9 soft=\nGET /caf%C3%A9?q=%1B%5B31m\n",
    "+AGEA6Q- \\x1b[31m \\033[0m b'caf\\xc3'\n",
    "Jan 01 h p[1]: [1.2K blob data]\n",
    "##[group]Run\n::error file=a::b\n##teamcity[message text='caf|0x00E9']\n",
    "👨\u200d👩\u200d👧 🏳️\u200d🌈 ⚠️ \ue0b0 Dampf\u00adschiff\n",
    "SGVsbG8gd29ybGQ=\n",
]


def test_escapes_that_are_text_stay_byte_for_byte():
    for text in [*TEXTS, "".join(TEXTS)]:
        fixed, report = fix_and_report(text.encode())
        assert fixed == text.encode()
        assert not report.changed


# All kinds together

INVISIBLE = [
    *("\x1bktitle\x1b\\", "\x1bPtmux;\x1b\x1b]52;c;QUJD\x07\x1b\\", "\x1bP\x1b]0;t\x07\x1b\\"),
    *("\x1b]P1cc0000", "\x1b]R", "\x1b]133;A\x07", "\x1b]8;;u\x07", "\x1b]8;;\x07", "\x1b#6"),
    *(
        "\x1b[38:2::9:8:7m",
        "\x1b[m\x0f",
        "\x1b[?2004h",
        "\x1b[200~",
        "\x1b_Gm=0;QUJD\x1b\\",
        "\x1b)0",
    ),
    *("\x1b(0x\x1b(B", "\x0eqq\x0f", "\x1b[3b", "\x1b[2I", "\x1bPq#0!9~-\x1b\\", "\x1b(0mqq"),
]
BYTES = [
    b"\xff\xfb\x01",
    b"\xff\xfd\x18",
    b"\xc3",
    b"\xe6\x97",
    b"\xf0\x9f",
    b"\x1a",
    b"\x0c",
    b"\0",
]
ENDS = [b"\n", b"\r\n", b"\r\r\n", b"\n\r", b"\xc2\x85", b"\xe2\x80\xa8"]
WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india"]


@st.composite
def mixes(draw):
    """Return a log of all kinds, and the words in it."""
    content = b""
    words = []
    for number in range(draw(st.integers(1, 6))):
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(st.integers(0, 4))
            if kind <= 1:
                word = f"{draw(st.sampled_from(WORDS))}{number}{len(words)}"
                words.append(word)
                content += b" " + word.encode() + b" "
            elif kind == 2:
                content += draw(st.sampled_from(INVISIBLE)).encode()
            elif kind == 3:
                content += draw(st.sampled_from(BYTES))
            else:
                content += draw(st.sampled_from(["é", "日本", "größer", "🚀", "Ã©"])).encode()
        content += draw(st.sampled_from(ENDS))
    return content, words


@settings(max_examples=600, deadline=None)
@given(mixes(), st.booleans(), st.integers(1, 9))
@example((b" alpha00 \n alpha11 \n\xff\xfb\x01\n\x00 alpha32 \x1b[m\x0f\n", ["alpha32"]), False, 1)
def test_a_mix_of_all_kinds_loses_no_word_and_is_mended_once(mix, is_docker, read_bytes):
    """No visible text is lost, mending is final, and it does not matter how a log is read."""
    content, words = mix
    if is_docker:
        cut = len(content) // 2
        content = frames(content[:cut] or b"-", content[cut:] or b"-", b"\n")
    fixed, report = fix_and_report(content)
    text = fixed.decode()
    for word in words:
        assert word in text
    assert not re.search("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]", text)
    assert report.changed == (fixed != content)
    again, report = fix_and_report(fixed)
    assert again == fixed
    assert not report.changed
    assert fix_in_parts(content, read_bytes) == text
