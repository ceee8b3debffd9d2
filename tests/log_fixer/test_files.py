"""The log fixer repairs what is broken in a log exactly, or makes it visible."""

import codecs
import io
import os
import random
import stat
import tarfile
import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatgot.errors import ConfigError, StorageError
from chatgot.log_fixer.cleaning import (
    CONTROL,
    STRAY_RETURN,
    LogCleaner,
    clean_ansi_escape_sequences,
)
from chatgot.log_fixer.decoding import LogDecoder
from chatgot.log_fixer.files import FixReport, Options, detect_encoding, fix_log_file, fix_stream

FRENCH = (
    "Le mois dernier, le château était fermé à cause de la grêle; "
    "l'été, ça ira mieux, naïve élève.\n"
)
RUSSIAN = (
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
)
TABLE = "┌──────────┬─────┐\n│ Größe    │ 10  │\n└──────────┴─────┘\n"


def fix(content: bytes, **options) -> bytes:
    """Return the fixed bytes of a log."""
    return fix_and_report(content, **options)[0]


def fix_and_report(content: bytes, **options) -> tuple[bytes, FixReport]:
    """Return the fixed bytes of a log, and the report on it."""
    out = io.BytesIO()
    report = FixReport("log")
    fix_stream(io.BytesIO(content), out, report, Options(**options))
    return out.getvalue(), report


def fix_in_parts(
    content: bytes, read_bytes: int, line_bytes: int = 1 << 22, held: int = 1 << 22
) -> bytes:
    """Return the fixed bytes of a log that is read in small parts."""
    decoder = LogDecoder(io.BytesIO(content), read_bytes, line_bytes)
    cleaner = LogCleaner(held=held)
    texts = [
        cleaner.feed(text.characters, text.is_guess)
        for piece in decoder.pieces()
        for text in decoder.texts(piece)
    ]
    return "".join([*texts, cleaner.end()]).encode()


def misread(text: str, times: int = 1) -> str:
    """Return mojibake: UTF-8 read as cp1252, `times` times over."""
    for _ in range(times):
        # What cp1252 lacks becomes a control character, as in most programs
        text = text.encode().decode("sloppy-windows-1252")
    return text


# Mixtures: broken logs whose original text is known

PLAIN = "INFO step 12 | loss 1.25 | tokens/s 3,204"
LINES = [
    PLAIN,
    "",
    "  indented\tby a tab",
    "naïve café: 20 °C, 5 €",
    "→ done ✓ 日本語",
    "Größe │ ½ « été »",
    "Ещё раз",
]
LATIN_LINES = [PLAIN, "", "déjà vu, Größe 10", "C:\\Temp\\log – “x” → y", "{'a': [1, 2]}"]
SEQUENCES = [
    "\x1b[31m",
    "\x1b[0m",
    "\x1b[38;5;196m",
    "\x1b[2K",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x/\x1b\\",
    "\x1b(B",
]
SEQUENCES += [
    "\x1b]2;é\x1b\\",
    "\x1bP1$r0m\x1b\\",
    "\x1b7",
    "\x1b=",
    "\x9b1;31m",
    "\x9d0;t\x07",
    "\x1b[?25l",
]
STATES = ["", "  0%|          |", " 50%|#####     |", " 99%|█████████▉|", "\x1b[32m 12%\x1b[0m"]
line_ends = st.sampled_from(["\n", "\r\n"])


@st.composite
def with_sequences(draw):
    line = draw(st.sampled_from(LINES))
    end = draw(line_ends)
    places = sorted(draw(st.lists(st.integers(0, len(line)), min_size=1, max_size=3)), reverse=True)
    broken = line
    for place in places:
        broken = broken[:place] + draw(st.sampled_from(SEQUENCES)) + broken[place:]
    return (broken + end).encode(), line + end


@st.composite
def with_states(draw):
    line = draw(st.sampled_from([text for text in LINES if text]))
    end = draw(line_ends)
    states = draw(st.lists(st.sampled_from(STATES), min_size=1, max_size=4))
    after = draw(st.sampled_from(["", "\r\x1b[0m", "\r\r"] if end == "\r\n" else ["", "\r\x1b[0m"]))
    return ("".join(state + "\r" for state in states) + line + after + end).encode(), line + end


@st.composite
def with_nuls(draw):
    line = draw(st.sampled_from([text for text in LINES if text]))
    end = draw(line_ends)
    place = draw(st.integers(1, len(line)))
    mark = r"\x00" if place < len(line) else ""
    broken = line[:place] + "\0" * draw(st.integers(1, 3)) + line[place:]
    return (broken + end).encode(), line[:place] + mark + line[place:] + end


@st.composite
def as_mojibake(draw):
    line = draw(
        st.sampled_from(
            [
                "naïve café: 20 °C, 5 €",
                "Größe, Übermut, Straße",
                "l’été “fini” – déjà",
                "señor, mañana",
            ]
        )
    )
    return misread(line + "\n", draw(st.integers(1, 2))).encode(), line + "\n"


@st.composite
def as_utf16(draw):
    lines = draw(st.lists(st.sampled_from(LATIN_LINES), min_size=1, max_size=4))
    text = PLAIN + "\r\n" + "".join(line + "\r\n" for line in lines)
    return text.encode("utf-16-le"), text


@st.composite
def as_marked_utf16(draw):
    encoding = draw(st.sampled_from(["utf-16-le", "utf-16-be"]))
    text = "".join(
        line + "\r\n" for line in draw(st.lists(st.sampled_from(LINES), min_size=1, max_size=4))
    )
    return ("\ufeff" + text).encode(encoding), text


@st.composite
def cut_off(draw):
    character = draw(st.sampled_from(["é", "→", "語", "😀"])).encode()
    left = character[: draw(st.integers(1, len(character) - 1))]
    return "日本 ".encode() + left + b"\n", "日本 " + "".join(
        rf"\x{byte:02x}" for byte in left
    ) + "\n"


as_it_is = st.tuples(st.sampled_from(LINES), line_ends).map(
    lambda pair: ("".join(pair).encode(), "".join(pair))
)
marked_utf8 = as_it_is.map(lambda pair: (codecs.BOM_UTF8 + pair[0], pair[1]))
cp1252 = st.just((FRENCH.encode("cp1252"), FRENCH))
table = st.sampled_from(["cp437", "cp850"]).map(lambda encoding: (TABLE.encode(encoding), TABLE))
parts = [
    as_it_is,
    marked_utf8,
    cp1252,
    table,
    with_sequences(),
    with_states(),
    with_nuls(),
    as_mojibake(),
]
parts += [as_utf16(), as_marked_utf16(), cut_off()]


def big_endian(text: str) -> tuple[bytes, str]:
    return ("\ufeff" + text).encode("utf-16-be"), text


@settings(max_examples=300, deadline=None)
@example([big_endian("INFO step 12\r\n"), (b"\n", "\n"), big_endian("→ done\r\n")], "")
@given(
    st.lists(st.one_of(parts), max_size=8), st.sampled_from(["", "a last line without an end é"])
)
def test_the_original_text_comes_back_from_any_mixture(mixture, last):
    broken = b"".join(broken for broken, _ in mixture) + last.encode()
    original = "".join(original for _, original in mixture) + last
    fixed, report = fix_and_report(broken)
    assert fixed.decode() == original
    assert report.changed == (fixed != broken)
    again, report = fix_and_report(fixed)
    assert again == fixed
    assert not report.changed


# Any bytes: fixing twice changes nothing, and it does not matter how they are read

NASTY = [
    *(
        bytes([byte])
        for byte in b"\x1b[]\\\r\n\0m31;P \x07\x9b\xc2\xff\xfe\xc3\xa9\xe2\x82\xac\x8d\x9d\x9c\x01"
    ),
    *("é", "\x9b", "\x9d", "\ufeff", "日本", "Ã©", "â€\x9d", "Ã ", "hello there, world", "中文上"),
    *(
        b"\x9b31m",
        b"\x9d0;t\x9c",
        b"\xe9\n",
        b"\xff\xfe",
        b"\xfe\xff",
        b"a\0",
        b"\0a",
        b"\n\0",
        b"\0\n",
        b"\xc4\xc4\xc4",
        b"\xed\xa0\x80",
    ),
    *(" hi\r\n".encode("utf-16-le"), "Zoë→".encode("utf-16-le"), "中文上\n".encode("utf-16-le")),
]
nasty = st.lists(
    st.sampled_from([token.encode() if isinstance(token, str) else token for token in NASTY]),
    max_size=24,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(st.one_of(nasty, nasty, nasty, st.binary(max_size=80)), st.integers(1, 9))
def test_any_bytes_become_the_same_visible_text_however_they_are_read(content, read_bytes):
    fixed, report = fix_and_report(content)
    text = fixed.decode()
    assert not CONTROL.search(text)
    assert not STRAY_RETURN.search(text)
    assert "\ufeff" not in text
    assert report.changed == (fixed != content)
    assert fix(fixed) == fixed
    assert fix_in_parts(content, read_bytes) == fixed
    kept = fix(content, remove_ansi=False)
    assert fix(kept, remove_ansi=False) == kept
    assert b"\r" not in fix(content, newline="\n")
    cleaned = clean_ansi_escape_sequences(content.decode(errors="replace"))
    assert clean_ansi_escape_sequences(cleaned) == cleaned
    assert "\x1b" not in cleaned


@settings(max_examples=150, deadline=None)
@example(b"Z o \xeb \x92!\r\xa9\xc3\x83 -N\x87e\n", 1, 16, 2)
@example(b"hello there, world Z o \xeb \x92!\xc3\x83 -N\x87e\n", 1, 23, 2)
@given(nasty, st.integers(1, 9), st.integers(16, 30), st.integers(2, 12))
def test_lines_too_long_for_memory_come_out_alike_however_they_are_read(
    content, read_bytes, line_bytes, held
):
    assert fix_in_parts(content, read_bytes, line_bytes, held) == fix_in_parts(
        content, 1000, line_bytes, held
    )


def test_clean_text_in_any_script_stays_byte_for_byte():
    text = "".join(line + "\n" for line in LINES) + FRENCH + RUSSIAN + TABLE
    text += "À Â Ã Ä Å\r\nSÃO PAULO, MAÇÃ\nHÔTEL «Ã»\n┌─┬─┐ ▁▂▃▄▅▆▇█ ░▒▓\n"
    text += "Αθήνα ½ ¼\ntiếng Việt\n\u200e \u200d🙂\nשלום\nno end"
    for content in (text, text.replace("\r", "").replace("\n", "\r\n"), "", "\n", "\t\n"):
        fixed, report = fix_and_report(content.encode())
        assert fixed == content.encode()
        assert (report.changed, report.summary()) == (False, "clean")


# Encodings


@pytest.mark.parametrize("before", ["", "ab", "abc", "no line end", "é\n", "x\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_switches_from_utf8_to_utf16_and_back_are_recognised(before, mark):
    wide = "line one – “é”\r\nline two\r\n"
    after = "utf-8 again é\nок\n"
    content = before.encode() + (mark + wide).encode("utf-16-le") + after.encode()
    assert fix(content).decode() == before + wide + after
    assert fix(content + (mark + wide).encode("utf-16-le")).decode() == before + wide + after + wide


def test_utf16_without_a_last_line_end_ends_where_8_bit_text_begins():
    content = (
        "progress: 10 %, Größe".encode("utf-16-le") + "here the next program begins: é\n".encode()
    )
    assert fix(content).decode() == "progress: 10 %, Größehere the next program begins: é\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("before", ["line one\r\n", ""])
def test_utf16_with_a_mark_that_was_cut_off_ends_where_8_bit_text_begins(encoding, missing, before):
    after = "2026-01-01 10:00:00 - INFO - loss 2.51\n" * 50
    wide = f"\ufeff{before}epoch 3\n".encode(encoding)
    content = wide[: len(wide) - missing] + after.encode()
    for fixed in (fix(content), fix_in_parts(content, 7)):
        text = fixed.decode()
        assert text.endswith(after)
        assert text.removesuffix(after) in (before + "epoch 3\n", before + "epoch 3")


def test_utf16_may_be_in_any_script_with_a_mark_or_with_latin_lines():
    for encoding in ("utf-16-le", "utf-16-be"):
        text = "中文上海\r\n一上\r\n" + RUSSIAN
        assert (
            fix(("\ufeff" + text).encode(encoding) + b"short\nutf-8\n").decode()
            == text + "short\nutf-8\n"
        )
    text = "started, all is well\r\n中文上海\r\nПривет\r\ndone\r\n"
    assert fix(text.encode("utf-16-le") + "ende é\n".encode()).decode() == text + "ende é\n"


def test_whole_utf16_and_utf32_files_are_read():
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"):
        assert fix(FRENCH.encode(encoding)).decode() == FRENCH


def test_russian_letters_that_look_like_a_byte_order_mark_stay_letters():
    text = ("Сияющая заря, сияющий день; моя любимая яюшка.\n" + RUSSIAN) * 3
    assert fix(text.encode("cp1251")).decode() == text


def test_undecodable_lines_of_a_segment_are_judged_together():
    lines = [FRENCH, "10 £ each.\n", "plain\n", "ça ira\n"]
    content = b"".join(line.encode("cp1252") for line in lines) + "utf-8: é\n".encode()
    assert fix(content).decode() == "".join(lines) + "utf-8: é\n"
    cyrillic = RUSSIAN.encode("koi8-r") + b"plain\n" + "Да\n".encode("koi8-r")
    assert fix(cyrillic).decode() == RUSSIAN + "plain\nДа\n"


def test_segments_between_utf16_are_judged_separately():
    between = "a line of UTF-16\r\n"
    content = RUSSIAN.encode("koi8-r") + between.encode("utf-16-le") + FRENCH.encode("cp1252")
    fixed, report = fix_and_report(content)
    assert fixed.decode() == RUSSIAN + between + FRENCH
    assert set(report.encodings) == {"koi8-r", "utf-16-le", "cp1252"}


def test_an_unsure_guess_is_replaced_by_cp1252_with_escapes():
    fixed, report = fix_and_report(b"ok\n\x81 caf\xe9\n")
    assert fixed.decode() == "ok\n\\x81 café\n"
    assert (report.undecodable_bytes, report.first_undecodable_offset) == (1, 3)


def test_the_first_escape_is_counted_from_the_beginning_of_the_file():
    for before in (b"x" * 5, "é\n".encode() * 100_000, "日本語\n".encode("utf-16")):
        _, report = fix_and_report(before + "日本\n".encode()[:-2] + b"\n")
        assert (report.undecodable_bytes, report.first_undecodable_offset) == (2, len(before) + 3)
    _, report = fix_and_report("\ufeffab\ud800c\n".encode("utf-16-le", "surrogatepass"))
    assert (report.undecodable_bytes, report.first_undecodable_offset) == (2, 6)


def test_dos_box_drawings_are_recognised_among_other_encodings():
    tree = "├───chatgot\n│   └───tests\n└───docs\n"
    bars = "████████▒▒▒▒ 60%\n"
    content = FRENCH.encode("cp1252") + (tree + bars).encode("cp437") + FRENCH.encode("cp1252")
    assert fix(content).decode() == FRENCH + tree + bars + FRENCH
    letters = "│ São João │ Ó │\n"
    assert fix(letters.encode("cp850")).decode() == letters


@pytest.mark.parametrize(
    "drawing",
    [
        "┌───┬──┐\n│ a │ b│\n├───┼──┤\n│ 1 │ 2│\n└───┴──┘\n",
        "│Name│Value│\n",
        "║ x ║ y║\n",
        "╔═╗\n║x║\n╠═╣\n╚═╝\n",
        "┌─┐ ┌─┐\r\n└─┘ └─┘\r\n",
        "╔══ Title ══╗\n",
        "╒═══╕\n",
        "─── part ───\n",
        "├───Übung\n│   └───x\n",
    ],
)
def test_each_line_of_a_box_drawing_is_recognised_alone(drawing):
    assert fix(drawing.encode("cp437")).decode() == drawing


def test_cyrillic_words_made_of_box_drawing_bytes_stay_words():
    words = (
        "ИНН: 7700000\nДАННЫЕ\nБАННЕР (ИНН)\nсимметрия\nиммунитет\nподдон, МММ-клуб, ИММУНИТЕТ\n"
    )
    for encoding in ("cp1251", "koi8-r"):
        text = RUSSIAN * 3 + words
        assert fix(text.encode(encoding)).decode() == text


def test_detect_encoding_names_the_encoding_of_most_of_the_file(tmp_path):
    path = tmp_path / "a.log"
    for content, encoding in [
        (b"ascii\n", "utf-8"),
        (FRENCH.encode(), "utf-8"),
        (FRENCH.encode("utf-16-le"), "utf-16-le"),
    ]:
        path.write_bytes(content)
        assert detect_encoding(path) == (encoding, 1.0)
    path.write_bytes(RUSSIAN.encode("koi8-r") * 5)
    encoding, confidence = detect_encoding(path)
    assert encoding == "koi8-r"
    assert 0.15 <= confidence <= 1
    path.write_bytes(FRENCH.encode() + "x é\n".encode("cp1252"))
    encoding, confidence = detect_encoding(path)
    assert encoding == "utf-8"
    assert 0.9 < confidence < 1


# Escape sequences, progress bars, controls


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]0;title\x1b\\text", "text"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b(B\x1b)0text\x1b#8", "text"),
        ("\x9b31mred\x9b0m \x9d0;t\x9cx", "red x"),
        ("\x1bP+q\x1b\\a\x1b_b\x1b\\c\x1bM\x1b7", "ac"),
        ("a\x1b[", "a\\x1b["),
        ("a\x1b[3\nb", "a\\x1b[3\nb"),
        ("\x1b]0;no end", "\\x1b]0;no end"),
        ("\x1b\x1b[31m[0m", "\\x1b[0m"),
        ("\x1b[3\x1b[0m1m", "\\x1b[31m"),
        ("\x9b\x1b[31m0m", "\\x9b0m"),
        ("Ä\x9bm is mojibake of ě", "Ä\x9bm is mojibake of ě"),
        ("two\nlines\r\n", "two\nlines\r\n"),
    ],
)
def test_complete_escape_sequences_go_and_cut_off_ones_stay_visible(text, cleaned):
    assert clean_ansi_escape_sequences(text) == cleaned


@pytest.mark.parametrize(
    ("content", "fixed"),
    [
        (" 10%\r 50%\r100%\n", "100%\n"),
        ("text\r\r\n", "text\r\n"),
        ("text\r\n", "text\r\n"),
        ("100%|####|\r", "100%|####|"),
        ("50%\r100%\r\x1b[0m\n", "100%\n"),
        ("50%\r\x1b[K100%\r\n", "100%\r\n"),
        ("50%\r\r\r\n\n", "50%\r\n\n"),
        ("\r\n\r\n", "\r\n\r\n"),
        ("a\rb\nc\rd", "a\\x0db\nc\\x0dd"),
        ("a\rb\u2028c\n", "a\\x0db\\u2028c\n"),
    ],
)
def test_a_progress_bar_shows_its_last_state(content, fixed):
    assert fix(content.encode()).decode() == fixed


def test_other_control_characters_become_visible_and_are_counted():
    fixed, report = fix_and_report("a\bb\x0c\x07\x7f\x01\tc\x81\n".encode())
    assert fixed.decode() == "b\\x0c\\x07\\x7f\\x01\tc\\x81\n"
    assert report.counts["controls"] == 5
    assert report.counts["backspaces"] == 1


def test_keep_ansi_keeps_whole_sequences_and_nothing_else():
    content = "a\r\x1b[31mred\x1b[0m\b \x1b]0;t\x07\x1b[\r\x1b[0m\n"
    assert (
        fix(content.encode(), remove_ansi=False).decode()
        == "a\\x0d\x1b[31mred\x1b[0m\\x08 \x1b]0;t\x07\\x1b[\x1b[0m\n"
    )


def test_mojibake_is_mended_line_by_line_and_quotes_stay_curly():
    text = "“quotes” – l’été naïve 10 €\n"
    for broken in (misread(text), misread(text, 2), text.encode().decode("latin-1")):
        assert fix(("é fine\n" + broken).encode()).decode() == "é fine\n" + text


@pytest.mark.parametrize(
    ("content", "fixed", "kept"),
    [
        (b"\x9b31mred\x9b0m ok\n", "red ok\n", "\x9b31mred\x9b0m ok\n"),
        (b"caf\xe9 \x9b1;31mr\x9b0m\n", "café r\n", "café \x9b1;31mr\x9b0m\n"),
        (b"\x9d0;title\x07text\n", "text\n", "\x9d0;title\x07text\n"),
        (b"\x9d0;\xe9\x9ctext\x81\n", "text\\x81\n", "\x9d0;é\x9ctext\\x81\n"),
        (b"\x8bcaf\xe9\x9b menu \x9bm\n", "‹café› menu ›m\n", "‹café› menu ›m\n"),
    ],
)
def test_one_byte_escape_sequences_in_a_code_page_are_recognised(content, fixed, kept):
    out, report = fix_and_report(content)
    assert out.decode() == fixed
    assert ("escape_sequences" in report.counts) == (fixed != kept)
    assert fix(content, remove_ansi=False).decode() == kept


def test_carriage_returns_that_fill_a_long_line_are_each_counted():
    for end in (b"", b"\n"):
        fixed, report = fix_and_report(b"\r" * 3_000_000 + end)
        assert fixed in (b"", b"\r\n")
        assert report.changed


def test_newline_lf_makes_every_line_end_lf():
    fixed, report = fix_and_report(b"a\r\nb\nc\r\r\nd", newline="\n")
    assert fixed == b"a\nb\nc\nd"
    assert report.changed


# Long lines and large files


def test_time_grows_in_proportion_to_the_number_of_non_ascii_words():
    chance = random.Random(0)
    words = ["".join(chance.choices("αβγδεζηθικλμνξοπρστυφχψω", k=8)) + "«é" for _ in range(80_000)]
    content = "".join(" ".join(words[i : i + 10]) + "\n" for i in range(0, len(words), 10)).encode()
    started = time.process_time()
    assert fix(content) == content
    # 0.6 s here; a regular expression with one alternative per word took 10 s
    assert time.process_time() - started < 4


def test_a_progress_state_too_long_for_memory_is_kept_and_its_return_shown():
    state = b"x" * 200_000
    assert fix_in_parts(state + b"\rshort\n", 1 << 16, held=1 << 17) == state + b"\\x0dshort\n"
    bars = b"".join(b"%9d%%\r" % i for i in range(100_000))
    assert fix_in_parts(bars + b"done\n", 1 << 16, held=1 << 12) == b"done\n"
    once = fix_in_parts(state + "\x1b[31mÃ©\r\r\n".encode(), 1 << 16, held=1 << 17)
    assert once == state + "Ã©\r\n".encode()
    assert fix_in_parts(once, 1 << 16, held=1 << 17) == once


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"\x1b[31mword\x1b[0m ", marks=pytest.mark.slow),
        pytest.param(b"10%|###|\r", marks=pytest.mark.slow),
        pytest.param(b"caf\xe9 ", marks=pytest.mark.slow),
        b"w\0o\0r\0d\0 \0",
        "é".encode(),
    ],
)
def test_memory_grows_neither_with_the_file_nor_with_its_lines(tmp_path, line):
    path = tmp_path / "long.log"
    path.write_bytes(line * (40_000_000 // len(line)))
    tracemalloc.start()
    try:
        fix_log_file(path, force=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 38_000_000


# Files


def test_binary_files_are_refused_and_utf16_and_utf32_text_is_not(tmp_path):
    path = tmp_path / "x.log"
    chance = random.Random(0)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("run.log")
        member.size = len(RUSSIAN.encode())
        tar.addfile(member, io.BytesIO(RUSSIAN.encode()))
    picture = b"BM" + (54 + 30_000).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    picture += (40).to_bytes(4, "little") + b"w" * 30_036
    ids = b"".join(
        chance.choice([130, 140, 0x4141, 0x5A55]).to_bytes(2, "little") for _ in range(20_000)
    )
    for content in (archive.getvalue(), picture, ids):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="looks like a binary file"):
            fix_log_file(path)
        assert fix_log_file(path, force=True).output
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
        path.write_bytes(FRENCH.encode(encoding) * 5)
        fix_log_file(path)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "run.log"
    path.write_bytes(b"\x1b[31mred\x1b[0m\n")
    return path


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_default_output_is_next_to_the_input_with_its_permissions(log):
    log.chmod(0o600)
    report = fix_log_file(log)
    output = log.with_name("run_fixed.log")
    assert report.output == str(output)
    assert output.read_bytes() == b"red\n"
    assert log.read_bytes() == b"\x1b[31mred\x1b[0m\n"
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert fix_log_file(log, log.with_name("kept.log"), remove_ansi=False).changed is False


def test_in_place_fix_keeps_earlier_states_and_leaves_a_clean_log_alone(log):
    broken = log.read_bytes()
    log.chmod(0o640)
    assert fix_log_file(log, in_place=True).backup == str(log.with_name("run.log.bak"))
    assert (log.read_bytes(), log.with_name("run.log.bak").read_bytes()) == (b"red\n", broken)
    assert stat.S_IMODE(log.stat().st_mode) == 0o640
    before = log.stat()
    report = fix_log_file(log, in_place=True)
    assert (report.changed, report.output, report.backup) == (False, None, None)
    assert (log.stat().st_ino, log.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    log.write_bytes(b"new\0\n")
    assert fix_log_file(log, in_place=True).backup == str(log.with_name("run.log.bak.1"))
    assert log.with_name("run.log.bak").read_bytes() == broken
    assert names(log.parent) == ["run.log", "run.log.bak", "run.log.bak.1"]


def test_in_place_fix_keeps_a_copy_where_there_are_no_hard_links(log, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    broken = log.read_bytes()
    fix_log_file(log, in_place=True)
    log.write_bytes(broken)
    fix_log_file(log, in_place=True)
    assert names(log.parent) == ["run.log", "run.log.bak", "run.log.bak.1"]
    assert log.with_name("run.log.bak.1").read_bytes() == broken


def test_in_place_fix_mends_the_target_of_a_symlink(log, tmp_path):
    link = tmp_path / "link.log"
    link.symlink_to(log)
    fix_log_file(link, in_place=True)
    assert link.is_symlink()
    assert log.read_bytes() == b"red\n"


def test_check_writes_nothing(log):
    assert fix_log_file(log, check=True).changed
    assert names(log.parent) == ["run.log"]


def test_an_output_that_is_not_a_file_is_refused_and_a_symlink_is_followed(log, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    # No real device: run as root, a broken fixer would replace it
    (tmp_path / "to_pipe").symlink_to("pipe")
    for name in ("pipe", "to_pipe"):
        before = os.lstat(tmp_path / name)
        with pytest.raises(ConfigError, match="is a pipe or a device"):
            fix_log_file(log, tmp_path / name)
        assert os.lstat(tmp_path / name).st_ino == before.st_ino
    for name in ("there.log", "new.log"):
        link = tmp_path / f"to_{name}"
        link.symlink_to(tmp_path / name)
        if name == "there.log":
            (tmp_path / name).write_bytes(b"earlier")
        assert fix_log_file(log, link).output == str(link)
        assert link.is_symlink()
        assert (tmp_path / name).read_bytes() == b"red\n"


def test_the_input_is_never_overwritten_under_another_name(log, tmp_path):
    os.link(log, tmp_path / "same.log")
    (tmp_path / "link.log").symlink_to(log)
    broken = log.read_bytes()
    for output in (log, tmp_path / "same.log", tmp_path / "link.log", tmp_path / "." / "run.log"):
        with pytest.raises(ConfigError, match="same file; use --in-place"):
            fix_log_file(log, output)
    with pytest.raises(ConfigError, match="is a folder"):
        fix_log_file(log, tmp_path)
    assert log.read_bytes() == broken


def test_an_input_that_is_not_a_log_is_refused_by_name(tmp_path):
    chance = random.Random(0)
    for head in (
        b"\x7fELF",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04",
        b"\x1f\x8b",
        chance.randbytes(5000),
        b"\0" * 100,
    ):
        (tmp_path / "x.log").write_bytes(head + chance.randbytes(5000 if head.strip(b"\0") else 0))
        with pytest.raises(ConfigError, match=r"x\.log: looks like a binary file"):
            fix_log_file(tmp_path / "x.log")
        assert names(tmp_path) == ["x.log"]
    assert fix_log_file(tmp_path / "x.log", force=True).changed
    with pytest.raises(ConfigError, match="No such file"):
        fix_log_file(tmp_path / "gone.log")
    for folder in (tmp_path, ".", "/", ""):
        with pytest.raises(ConfigError, match="is a folder"):
            fix_log_file(folder)
    (tmp_path / "loop.log").symlink_to("loop.log")
    for name in ("loop.log", "x" * 300, "a\0b"):
        for options in ({}, {"in_place": True}):
            with pytest.raises(ConfigError, match="cannot be read"):
                fix_log_file(tmp_path / name, **options)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a pipe or a device"):
        fix_log_file(tmp_path / "pipe")


def test_a_log_with_nuls_from_a_power_cut_is_not_taken_for_binary(log):
    log.write_bytes(
        b"line\n" * 100 + b"\0" * 4096 + b"\x1b[31mred\b\x07\x01\n" + FRENCH.encode("utf-16")
    )
    assert fix_log_file(log).changed


def test_a_log_that_is_being_written_is_refused_and_no_file_is_left(log, monkeypatch):
    pieces = LogDecoder.pieces

    def pieces_and_another_line(decoder):
        yield from pieces(decoder)
        with log.open("ab") as file:
            file.write(b"another line\n")

    monkeypatch.setattr(LogDecoder, "pieces", pieces_and_another_line)
    for in_place in (False, True):
        with pytest.raises(ConfigError, match="changed while it was read"):
            fix_log_file(log, in_place=in_place)
    assert names(log.parent) == ["run.log"]


def test_an_unwritable_output_is_refused_and_no_file_is_left(log, tmp_path):
    with pytest.raises(StorageError, match="cannot be written: No such file"):
        fix_log_file(log, tmp_path / "gone" / "x.log")
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        fix_log_file(log, log / "x.log")
    assert names(tmp_path) == ["run.log"]
