"""What no text should have in it is counted and said, or refused, before hours are spent on it."""

import codecs

import numpy as np
import pytest

from chatgot.config import Config
from chatgot.data.configured_text import check_parts, load_text, text_path
from chatgot.data.encoding import Undecodable, decoded_chunks, detect_encoding
from chatgot.data.text_file import text_chunks
from chatgot.data.token_cache import Tokens, load_tokens
from chatgot.data.vocabulary import Characters
from chatgot.errors import ConfigError

PROSE = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n"


def config_of(path, **data) -> Config:
    """Return the configuration of a tiny model that trains on this file."""
    return Config.model_validate(
        {
            "model": {"d_model": 8, "n_layers": 1, "n_head": 1, "max_seq_length": 8},
            "training": {"max_steps": 1, "batch_size": 1},
            "data": {"path": str(path), **data},
            "paths": {"cache": str(path.parent / "cache")},
        }
    )


# Characters that no text has


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_control_characters_are_named_with_count_and_place(write, tmp_path, caplog, encoding):
    text = PROSE + "wait\x1b[0m\x07\x07\x0b\x1a" + PROSE + "\x85\ufffe\ufffd"
    path = write(text.encode(encoding))
    tokens = load_tokens(path, tmp_path / "cache")
    assert tokens.vocabulary.decode(tokens.ids.tolist()) == text
    words = caplog.text
    assert "U+001B ESC once (line 3" in words
    assert "U+0007 BEL 2 times" in words
    for name in ("U+000B", "U+001A", "U+0085", "U+FFFE", "U+FFFD"):
        assert name in words
    place = text.index("\x1b")
    assert f"character {place + 1:,}" in words


def test_the_warning_comes_from_the_cache_too(write, tmp_path, caplog):
    path = write(f"{PROSE}\0\0{PROSE}".encode())
    load_tokens(path, tmp_path / "cache")
    first = caplog.messages
    caplog.clear()
    load_tokens(path, tmp_path / "cache")
    assert caplog.messages == first
    assert "U+0000 NUL 2 times" in caplog.text


def test_tabs_form_feeds_and_direction_marks_belong_to_texts(write, tmp_path, caplog):
    load_tokens(write("שלום\u200f\tab\f\r\nc\u200d😀\u2028d\n".encode()), tmp_path / "cache")
    assert caplog.text == ""


def test_megabytes_of_nuls_are_counted_quickly_and_once(write, tmp_path, caplog):
    load_tokens(write(PROSE.encode() + b"\0" * (9 << 20)), tmp_path / "cache")
    assert f"U+0000 NUL {9 << 20:,} times (first in line 3" in caplog.text
    assert len(caplog.records) == 1


# A part without variety


@pytest.mark.parametrize("content", [b"\0" * 4000, b"a" * 4000, "é".encode() * 4000])
def test_a_text_of_one_character_is_refused(write, content):
    path = write(content)
    with pytest.raises(ConfigError, match="only one character"):
        load_text(config_of(path), path)


@pytest.mark.parametrize(
    ("content", "test_split", "part"),
    [
        (PROSE * 9 + "\0" * 400, 0.2, "held-out"),
        (PROSE * 9 + "-" * 400, 0.2, "held-out"),
        (" " * 1000 + PROSE * 3, 0.2, "training"),
    ],
)
def test_a_part_of_one_character_is_refused(write, content, test_split, part):
    path = write(content.encode())
    with pytest.raises(ConfigError) as refused:
        load_text(config_of(path, test_split=test_split), path)
    assert part in str(refused.value)


def test_a_part_may_repeat_one_character_nearly_always(write):
    path = write((PROSE * 9 + "-" * 399 + "\n").encode())
    load_text(config_of(path, test_split=0.2), path)


def test_the_parts_are_looked_at_piece_by_piece(write, tmp_path):
    ids = np.zeros(1 << 20, dtype=np.uint16)
    ids[0] = 1
    ids[-1] = 1
    tokens = Tokens(ids, Characters("a"), "", "utf-8")
    check_parts(tokens, 0.5, tmp_path)
    ids[-1] = 0
    with pytest.raises(ConfigError, match="held-out"):
        check_parts(tokens, 0.5, tmp_path)


# Byte order marks within a text


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_byte_order_marks_of_joined_files_are_dropped_and_counted(write, tmp_path, caplog, codec):
    mark = b"" if codec == "utf-8-sig" else "\ufeff".encode(codec)
    part = mark + PROSE.encode(codec)
    tokens = load_tokens(write(part * 3), tmp_path / "cache")
    assert tokens.vocabulary.decode(tokens.ids.tolist()) == PROSE * 3
    assert "left out 2 times a byte order mark" in caplog.text


def test_a_mark_at_the_edge_of_a_chunk_is_dropped(write):
    path = write(codecs.BOM_UTF8 + b"ab" + codecs.BOM_UTF8 * 2 + "é".encode())
    for chunk_bytes in range(1, 12):
        assert "".join(text_chunks(path, "utf-8-sig", chunk_bytes)) == "abé"


# A text that ends within a character


@pytest.mark.parametrize(
    ("content", "encoding", "left_over"),
    [
        ("é “so” 漢字".encode()[:-1], "utf-8", 2),
        ("é “so” 漢字".encode()[:-2], "utf-8", 1),
        ("é “so” 🐉".encode()[:-1], "utf-8", 3),
        ("漢字。".encode("utf-16-le")[:-1], "utf-16-le", 1),
        ("漢字🐉".encode("utf-16-le")[:-2], "utf-16-le", 2),
        ("漢字。".encode("gb18030")[:-1], "gb18030", 1),
    ],
)
def test_a_text_cut_within_a_character_is_named_as_such(write, content, encoding, left_over):
    path = write(content)
    with pytest.raises(Undecodable) as refused:
        "".join(decoded_chunks(path, encoding))
    assert refused.value.offset == len(content) - left_over
    words = "byte is" if left_over == 1 else f"{left_over} bytes are"
    assert f"the last {words} a part of a character" in str(refused.value)
    assert "convert" not in str(refused.value)


def test_a_cut_utf8_text_is_refused_as_cut(write, tmp_path):
    with pytest.raises(ConfigError, match="the last 2 bytes are a part of a character"):
        load_tokens(write(("漢字“é”\n" * 9 + "漢").encode()[:-1]), tmp_path / "cache")


# Two encodings in one text


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("words", "codec"),
    [
        ("Größe übel schön\n", "cp1252"),
        ("Zażółć gęślą jaźń\n", "cp1250"),
        ("Привет, мир и дом\n", "cp1251"),
        ("吾輩は猫である。名前はまだ無い。\n", "cp932"),
        ("道可道，非常道。名可名，非常名。\n", "gb18030"),
        ("나랏말싸미 중국과 달라 문자와로\n", "cp949"),
    ],
)
def test_half_utf8_and_half_an_older_encoding_is_refused(write, words, codec, order):
    halves = [(words * 20).encode(), (words * 20).encode(codec)][::order]
    path = write(PROSE.encode() + b"".join(halves))
    with pytest.raises(Undecodable) as refused:
        detect_encoding(path)
    content = path.read_bytes()
    for line in (words.encode(), words.encode(codec)):
        first = next(i for i, byte in enumerate(line) if byte > 127)
        place = content.index(line) + first
        assert f"{place}" in str(refused.value)


def test_alternating_lines_of_two_encodings_are_refused(write):
    line = "Größe übel schön\n"
    with pytest.raises(Undecodable, match=r"data\.encoding"):
        detect_encoding(write((line.encode() + line.encode("cp1252")) * 30))


@pytest.mark.parametrize(
    ("words", "codec"),
    [
        ("Größe übel schön – 5 €\n", "cp1252"),
        ("Привет, мир и дом\n", "cp1251"),
        ("吾輩は猫である。名前はまだ無い。\n", "cp932"),
        ("道可道，非常道。名可名，非常名。\n联通\n", "gb18030"),
        ("나랏말싸미 중국과 달라 문자와로\n", "cp949"),
    ],
)
def test_a_text_in_one_older_encoding_is_not_two(write, words, codec):
    path = write((PROSE + words * 40).encode(codec))
    assert "".join(text_chunks(path, detect_encoding(path))) == PROSE + words * 40


@pytest.mark.parametrize(
    ("word", "words", "codec"),
    [
        ("Straße", "Größe ändern für Übung", "cp1252"),
        ("ruïne", "patiënt beëindigd in het café", "cp850"),
        ("pöytä", "Käyttäjä öylätti äiti", "cp437"),
        ("è", "Perché è già più così", "mac-roman"),
        ("šok", "Pühapäeval läksime metsa, põõsad", "cp1257"),
        ("mieście", "Błąd połączenia, użytkownik wyszedł", "cp852"),
        ("я", "Пользователь вышел из системы", "koi8-r"),
        ("雪山", "读取数据库时出错,请稍后再试", "gb18030"),
        ("雪", "しばらくしてからもう一度お試しください", "cp932"),
    ],
)
def test_one_word_in_utf8_among_forty_lines_is_seen(write, word, words, codec):
    others = [f"{number} {words}\n".encode(codec) for number in range(40)]
    path = write(b"".join([*others, word.encode()]))
    with pytest.raises(Undecodable, match="two encodings in one text"):
        detect_encoding(path)


@pytest.mark.parametrize("codec", ["cp1252", "cp850"])
def test_two_encodings_are_seen_between_carriage_returns(write, codec):
    path = write(b"plain\r" + "Größe übel\r".encode() + "Größe übel schön\r".encode(codec) * 3)
    with pytest.raises(Undecodable, match=r"utf-8 at byte offset 8, not utf-8 at byte offset 22"):
        detect_encoding(path)


@pytest.mark.parametrize(
    ("words", "chance", "codec"),
    [
        ("Грешка при четене от базата данни", "ЩЕ ТЕ ЧЕ", "iso8859-5"),
        ("Пользователь вышел из системы", "её", "koi8-r"),
        ("Не удалось открыть файл", "так", "cp866"),
    ],
)
def test_lines_that_are_utf8_by_chance_are_no_other_encoding(write, words, chance, codec):
    lines = [words, chance, words, chance, words]
    path = write("\n".join(lines).encode(codec))
    assert "".join(text_chunks(path, detect_encoding(path))) == "\n".join(lines)


# data.encoding


@pytest.mark.parametrize("name", ["cp1250", "latin2", "ISO-8859-2", "windows-1250", "utf-16-le"])
def test_data_encoding_reads_the_text_as_it_says(write, name):
    text = "Zażółć gęślą jaźń, mówił\n" * 40
    path = write(text.encode(name))
    tokens = load_text(config_of(path, encoding=name), path)
    assert tokens.vocabulary.decode(tokens.ids.tolist()) == text


def test_each_encoding_of_one_file_has_its_own_cache(write):
    path = write("é à è ù\n".encode("cp1252") * 40)
    read = {
        name: load_text(config_of(path, encoding=name), path).vocabulary.characters
        for name in ("cp1252", "cp1251", "cp1252")
    }
    assert read["cp1252"] != read["cp1251"]
    assert "é" in read["cp1252"]
    assert "й" in read["cp1251"]


def test_a_byte_outside_the_named_encoding_is_refused_with_its_offset(write):
    path = write("Größe\n".encode("cp1252") * 40)
    with pytest.raises(ConfigError, match="not utf-8 at byte offset 2"):
        load_text(config_of(path, encoding="utf-8"), path)


@pytest.mark.parametrize("name", ["klingon", "", "base64", "rot13", "idna", "unicode_escape", "é"])
def test_what_is_no_encoding_is_refused_by_the_configuration(tmp_path, name):
    with pytest.raises(ValueError, match="encoding"):
        config_of(tmp_path / "text.txt", encoding=name)


def test_an_encoding_of_the_default_text_is_refused(tmp_path):
    config = config_of(tmp_path / "text.txt", encoding="cp1250")
    default = config.model_copy(update={"data": config.data.model_copy(update={"path": None})})
    with pytest.raises(ConfigError, match=r"data\.encoding \(cp1250\): the default text is UTF-8"):
        text_path(default)
