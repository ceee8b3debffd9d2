"""The encoding of a text file is detected, or the file is refused with the place of the error."""

import codecs
import random
import re
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatgot.data.encoding import Undecodable, decoded_chunks, detect_encoding
from chatgot.data.encoding_guess import guess_encoding
from chatgot.data.text_file import text_chunks
from chatgot.errors import ConfigError

TEXTS = {
    "english": "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n",
    "french": "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, "
    "mes yeux\nse fermaient si vite que je n’avais pas le temps de me dire: «Je m’endors.» Et, une "
    "demi-heure après, la pensée\n"
    "qu’il était temps de chercher le sommeil m’éveillait.\n",
    "polish": "Litwo! Ojczyzno moja! ty jesteś jak zdrowie; ile cię trzeba cenić, ten tylko się "
    "dowie,\n"
    "kto cię stracił. Dziś piękność twą w całej ozdobie widzę i opisuję, bo tęsknię po tobie.\n",
    "russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива "
    "по-своему.\nВсё смешалось в доме Облонских. Жена узнала, что муж был в связи с бывшею в их "
    "доме француженкою.\n",
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ\nต่างมีเหตุผลและมโนธรรม\n",
    "japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
    "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。\n",
    "chinese": "道可道，非常道。名可名，非常名。无名天地之始；有名万物之母。\n"
    "故常无欲，以观其妙；常有欲，以观其徼。"
    "此两者，同出而异名，同谓之玄。玄之又玄，众妙之门。一生二，二生三，三生万物。\n",
    "korean": "나랏말싸미 중국과 달라 문자와로 서로 사맛디 아니할세 이런 전차로 어린 백성이\n"
    "니르고자 할 바가 있어도\n",
}
LEGACY = [
    ("french", "cp1252"),
    ("polish", "cp1250"),
    ("polish", "iso8859-2"),
    ("russian", "cp1251"),
    ("russian", "koi8-r"),
    ("russian", "cp866"),
    ("russian", "iso8859-5"),
    ("thai", "cp874"),
    ("japanese", "shift_jis"),
    ("japanese", "euc-jp"),
    ("chinese", "gb18030"),
    ("korean", "euc-kr"),
]
WIDE = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


def read(path) -> str:
    """Return a file's text, in the encoding that is detected."""
    return "".join(text_chunks(path, detect_encoding(path)))


# Detecting the encoding


@pytest.mark.parametrize("language", TEXTS)
def test_utf8_is_detected_as_utf8(write, language):
    assert detect_encoding(write(TEXTS[language].encode())) == "utf-8"


@pytest.mark.parametrize("language", TEXTS)
def test_a_byte_order_mark_decides_the_encoding(write, language):
    marks = [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE]
    for mark, encoding in zip(marks, WIDE, strict=True):
        path = write(mark + TEXTS[language].encode(encoding))
        assert detect_encoding(path) == encoding
        assert read(path) == TEXTS[language]
    path = write(codecs.BOM_UTF8 + TEXTS[language].encode())
    assert detect_encoding(path) == "utf-8-sig"
    assert read(path) == TEXTS[language]


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("language", TEXTS)
def test_utf16_and_utf32_without_a_mark_are_detected_by_structure(write, language, encoding):
    path = write(TEXTS[language].encode(encoding))
    assert detect_encoding(path) == encoding
    assert read(path) == TEXTS[language]


@pytest.mark.parametrize("encoding", WIDE)
def test_one_short_word_in_utf16_or_utf32_is_enough(write, encoding):
    assert detect_encoding(write("Hello".encode(encoding))) == encoding


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be"])
def test_ideographs_without_spaces_are_enough_in_utf32(write, encoding):
    assert detect_encoding(write("道可道非常道".encode(encoding))) == encoding


def test_the_byte_order_with_fewer_unicode_blocks_wins_a_tie(write):
    assert detect_encoding(write("ं क".encode("utf-16-le"))) == "utf-16-le"


def test_a_character_cut_off_at_the_end_of_the_sample_does_not_matter(write):
    text = "a" + "道可道，\0非常道。" * 20_000  # the head ends within a character
    assert detect_encoding(write(text.encode())) == "utf-8"


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "\0" * 100,
        "To be, or\0not to be\n" * 50,
        "To be, \0or not to be.\n",
        "To be,\n\0or not to be.\n",
        "ab\0cd\n",
        "ab\0cd\0ef\0",
        "abc\0def\n" * 100,
        "\0après, l\0a pensée\n\0qu’il ét",
        "\0".join(TEXTS["french"].split()),
        "\0".join(TEXTS["russian"].split()),
        "\0".join(TEXTS["chinese"].split()),
    ],
)
def test_utf8_with_nuls_is_still_utf8(write, text):
    path = write(text.encode())
    assert detect_encoding(path) == "utf-8"
    assert read(path) == text


@pytest.mark.parametrize("encoding", ["cp1252", "cp1251", "koi8-r", "gb18030"])
def test_legacy_text_with_nuls_is_not_taken_for_utf16(write, encoding):
    text = TEXTS[{"cp1252": "french", "gb18030": "chinese"}.get(encoding, "russian")]
    for nul in ("\0", " \0", "\n\0"):
        for shift in range(4):
            with pytest.raises(ConfigError, match="control byte 0x00"):
                detect_encoding(write(("a" * shift + text + nul + text).encode(encoding)))


@pytest.mark.parametrize(("language", "encoding"), LEGACY)
def test_legacy_text_is_read_back_exactly(write, language, encoding):
    text = TEXTS[language].replace("’", "'") if encoding == "cp1250" else TEXTS[language]
    path = write(text.encode(encoding))
    assert read(path) == text


@pytest.mark.parametrize(
    "content",
    [
        "之门。一生二，二\0生三，三生万物。\n".encode("gb18030"),
        ", seinen g\0ewölbten, braune\0n Bauch.\0\n".encode("cp1252"),
    ],
)
def test_a_short_legacy_line_with_nuls_is_not_taken_for_utf16(write, content):
    with pytest.raises(ConfigError, match="control byte 0x00"):
        detect_encoding(write(content))


def test_few_legacy_lines_far_into_a_file_are_found(write):
    lines = [TEXTS["english"].encode()] * 50_000  # 4 MB
    for i, line in enumerate(TEXTS["russian"].splitlines(keepends=True)):
        lines[20_000 + 10_000 * i] = line.encode("koi8-r")
    assert detect_encoding(write(b"".join(lines))) == "koi8-r"


@pytest.mark.parametrize("texts", [("french", "town"), ("town", "french")])
def test_legacy_lines_are_judged_together(write, texts):
    town = "L’Haÿ\n".encode("cp1252")
    assert guess_encoding(town).encoding != "cp1252"  # for this line alone
    content = {"town": town, "french": TEXTS["french"].encode("cp1252")}
    assert detect_encoding(write(b"".join(content[name] for name in texts))) == "cp1252"


def test_an_unsure_guess_is_replaced_by_cp1252(write):
    for text in ("naïve", "Ça alors!", "It costs £5", "‘tis", "l’été", "Café Zoë"):
        path = write(text.encode("cp1252"))
        assert (detect_encoding(path), read(path)) == ("cp1252", text)


def test_a_guess_that_does_not_decode_the_whole_file_is_refused_there(write):
    sample = TEXTS["japanese"].encode("shift_jis") * 8000  # longer than the part that is looked at
    assert len(sample) > 1 << 20
    assert detect_encoding(write(sample)) == "cp932"
    with pytest.raises(
        Undecodable,
        match=rf"not UTF-8 at byte offset 0; most of it is cp932, but not at byte offset "
        rf"{len(sample)}.*data\.encoding",
    ):
        detect_encoding(write(sample + b"\x81\n"))


@pytest.mark.parametrize(("language", "encoding"), [("chinese", "gb18030"), ("korean", "euc-kr")])
def test_a_torn_character_is_refused_with_the_name_of_the_guess(write, language, encoding):
    whole = TEXTS[language].encode(encoding)
    torn = whole + b"\xff\xff\xff\n" + whole
    with pytest.raises(Undecodable, match=f"but not at byte offset {len(whole)}") as refusal:
        detect_encoding(write(torn))
    assert refusal.value.offset == len(whole)


def test_a_text_that_two_code_pages_read_alike_well_is_refused(write):
    with pytest.raises(Undecodable, match=r"not UTF-8 at byte offset 3.*data\.encoding") as refusal:
        detect_encoding(write(b"abc\xb9 5\n\xb9 7\n".replace(b"abc", b"a, ")))
    assert refusal.value.offset == 3


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n"])
def test_line_ends_do_not_change_the_encoding_or_the_text(write, ending):
    for language, encoding in [
        ("french", "cp1252"),
        ("russian", "cp1251"),
        ("french", "utf-16-le"),
        ("thai", "utf-8"),
    ]:
        assert (
            read(write(TEXTS[language].replace("\n", ending).encode(encoding))) == TEXTS[language]
        )


def test_a_single_character_is_text_enough(write):
    assert read(write(b"a")) == "a"
    assert read(write(b"\xe9")) == "\u00e9"


def test_a_guess_that_gives_control_characters_is_refused_there(write):
    content = TEXTS["russian"].encode("iso8859-5") * 8000
    assert detect_encoding(write(content)) == "iso8859-5"
    with pytest.raises(Undecodable, match=f"but not at byte offset {len(content)}"):
        detect_encoding(write(content + b"\x85\n"))


@pytest.mark.slow
def test_memory_grows_neither_with_the_file_nor_with_its_lines(write):
    path = write(
        TEXTS["russian"].replace("\n", " ").encode("cp1251") * 400_000
    )  # 76 MB on one line
    tracemalloc.start()
    try:
        assert detect_encoding(path) == "cp1251"
        assert sum(len(chunk) for chunk in text_chunks(path, "cp1251")) == path.stat().st_size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2


# Refused files


@pytest.mark.parametrize("language", ["french", "russian", "chinese"])
def test_broken_utf8_is_refused_at_its_first_broken_byte(write, language):
    content = TEXTS[language].encode()
    for broken in (b"\xff", b"\xe9", b"\x80", b"\xc3(", b"\xed\xa0\x80", b"\xc0\x80"):
        with pytest.raises(
            ConfigError, match=rf"not utf-8 at byte offset {len(content)}: byte 0x{broken[0]:02X}"
        ):
            detect_encoding(write(content + broken + content))


def test_utf8_cut_off_in_the_middle_of_a_character_is_refused(write):
    content = "道可道".encode()
    for end in (len(content) - 1, len(content) - 2):
        with pytest.raises(ConfigError, match="not utf-8 at byte offset 6"):
            detect_encoding(write(content[:end]))


def test_utf8_broken_after_many_chunks_is_refused_with_its_offset(write):
    content = TEXTS["russian"].encode() * 30_000  # 10 MB
    with pytest.raises(ConfigError, match=f"not utf-8 at byte offset {len(content)}"):
        detect_encoding(write(content + b"\xe9\n"))


def test_one_long_line_of_broken_utf8_is_not_taken_for_legacy_text(write):
    content = TEXTS["chinese"].replace("\n", "").encode() * 10_000
    with pytest.raises(ConfigError, match="not utf-8"):
        detect_encoding(write(content + b"\xe9" + content))


def test_a_lone_surrogate_is_refused(write):
    with pytest.raises(ConfigError, match="not utf-8 at byte offset 4"):
        detect_encoding(write("text\ud800".encode("utf-8", "surrogatepass")))
    text = TEXTS["french"]
    path = write((text + "\ud800!").encode("utf-16-le", "surrogatepass"))
    with pytest.raises(ConfigError, match=f"not utf-16-le at byte offset {2 * len(text)}"):
        read(path)


def test_utf16_that_ends_with_half_a_character_is_refused(write):
    path = write(TEXTS["french"].encode("utf-16")[:-1])
    with pytest.raises(
        ConfigError, match=f"not utf-16-le at byte offset {path.stat().st_size - 1}"
    ):
        read(path)


@pytest.mark.parametrize("control", [b"\x00", b"\x01", b"\x08", b"\x0b", b"\x1b", b"\x1f", b"\x7f"])
def test_legacy_text_with_a_control_byte_is_refused(write, control):
    content = TEXTS["french"].encode("cp1252")
    message = (
        f"does not look like text: control byte 0x{control[0]:02X} at byte offset {len(content)}"
    )
    with pytest.raises(ConfigError, match=message):
        detect_encoding(write(content + control + content))


def test_the_offset_of_a_control_byte_counts_from_the_files_start(write):
    content = TEXTS["french"].encode("cp1252") * 20_000
    assert len(content) > 1 << 22
    with pytest.raises(ConfigError, match=f"control byte 0x01 at byte offset {len(content)}"):
        detect_encoding(write(content + b"\x01"))


def test_tabs_and_form_feeds_are_text(write):
    text = "\tcaf\u00e9\f\r\n"
    assert read(write(text.encode("cp1252"))) == "\tcaf\u00e9\f\n"


def test_binary_files_are_refused_with_an_offset(write):
    chance = random.Random(0)
    for head in (
        b"",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\x7fELF\x02\x01\x01\0",
        b"PK\x03\x04\x14\0",
        b"\x1f\x8b\x08\0",
    ):
        for size in (500, 5001, 200_000):
            with pytest.raises(ConfigError, match=r"byte offset \d+"):
                read(write(head + chance.randbytes(size)))


def test_bytes_that_no_encoding_decodes_are_refused_with_both_offsets(write):
    with pytest.raises(
        ConfigError,
        match="not UTF-8 at byte offset 3; most of it is cp1252, but not at byte offset 6",
    ):
        detect_encoding(write(b"caf\xe9 \xe9\x81\x8d\x8f"))


def test_an_error_message_is_one_line_that_names_the_file(write):
    for content in (b"caf\xe9 \xe9\x81\x8d\x8f", b"\xe9\x01", "Füße".encode() + b"\xff"):
        with pytest.raises(ConfigError) as refusal:
            detect_encoding(write(content))
        assert "text.txt: " in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        detect_encoding(tmp_path / "gone.txt")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        detect_encoding(tmp_path)


# Decoding

DECODED = ["utf-8", "utf-16-le", "utf-32-be", "cp932", "gb18030", "euc_jis_2004", "cp949", "cp1252"]


@given(
    st.binary(max_size=40),
    st.integers(1, 20),
    st.sampled_from([*DECODED, "utf-8-sig"]),
)
@example(codecs.BOM_UTF8, 1, "utf-8-sig")
@example(codecs.BOM_UTF8 + b"a\xff", 2, "utf-8-sig")
def test_decoding_in_chunks_gives_the_text_or_error_of_decoding_at_once(
    tmp_path_factory, content, size, encoding
):
    path = tmp_path_factory.getbasetemp() / "bytes.txt"
    path.write_bytes(content)
    assert decode_in_chunks(path, encoding, size) == decode_at_once(content, encoding)


def decode_at_once(content: bytes, encoding: str) -> str | int:
    """Return the text with its byte order mark, or the offset of the first broken byte."""
    try:
        return content.decode("utf-8" if encoding == "utf-8-sig" else encoding)
    except UnicodeDecodeError as error:
        return error.start


def decode_in_chunks(path, encoding: str, size: int) -> str | int:
    """Return the text read in chunks, or the offset of the first broken byte."""
    try:
        return "".join(decoded_chunks(path, encoding, size))
    except Undecodable as refusal:
        return refusal.offset


@given(st.binary(max_size=200))
def test_any_bytes_are_read_exactly_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    refusal = ""
    encoding = ""
    text = ""
    try:
        encoding = detect_encoding(path)
        text = "".join(decoded_chunks(path, encoding))
    except ConfigError as error:
        refusal = str(error)
    if refusal:
        assert re.search(r"byte offset \d+", refusal)
    else:
        assert content.removeprefix(codecs.BOM_UTF8).decode(encoding) in (
            text,
            text.removeprefix("\ufeff"),
        )
        assert "\ufffd" not in text or "\ufffd".encode(encoding) in content


# 7-bit encodings with escape sequences


@pytest.mark.parametrize("before", ["", "plain ASCII comes first\n" * 5000])
@pytest.mark.parametrize(
    ("language", "encoding"),
    [
        ("japanese", "iso2022_jp"),
        ("korean", "iso2022_kr"),
        ("chinese", "hz"),
    ],
)
def test_a_seven_bit_encoding_is_no_ascii(write, language, encoding, before):
    text = before + TEXTS[language] * 9
    path = write(text.encode(encoding))
    assert read(path) == text


def test_a_torn_seven_bit_text_is_refused_with_its_offset(write):
    content = (TEXTS["japanese"] * 9).encode("iso2022_jp")
    place = len(content) // 2
    torn = content[:place] + b"\x1b$Z" + content[place:]
    with pytest.raises(Undecodable, match="byte offset"):
        detect_encoding(write(torn + content * 60))


def test_ascii_with_tildes_and_colours_stays_utf8(write):
    text = "T~{a}~} and ~{x} costs\n\x1b[31mred\x1b[0m \x1b(B plain\n"
    assert detect_encoding(write(text.encode())) == "utf-8"
