"""A log is cut where its width changes: 8-bit text, UTF-16 and UTF-32, with and without marks."""

import codecs
import io
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgot.log_fixer.pieces import EIGHT_BIT, pieces

LINES = {
    "english": ("step 12, loss 1.25", "all is well"),
    "russian": ("Ошибка: файл не найден", "Запуск сервера завершён, порт 8080"),
    "capitals": ("ПАНИКА", "ОТКАЗ НА ДИСКЕ"),
    "greek": ("Σφάλμα: το αρχείο δεν βρέθηκε", "Έναρξη διακομιστή"),
    "chinese": ("错误：找不到文件", "服务器已启动，一切正常上线"),
    "japanese": ("エラー: ファイルが見つかりません", "サーバーを起動しました。"),
    "korean": ("오류: 파일을 찾을 수 없습니다", "서버가 시작되었습니다"),
    "thai": ("ข้อผิดพลาด: ไม่พบไฟล์", "เซิร์ฟเวอร์เริ่มทำงานแล้ว"),
    "arabic": ("خطأ: الملف غير موجود", "تم تشغيل الخادم"),
    "hebrew": ("שגיאה: הקובץ לא נמצא", "השרת הופעל"),
    "hindi": ("त्रुटि: फ़ाइल नहीं मिली", "सर्वर प्रारंभ हुआ"),
    "punjabi": ("ਗਲਤੀ: ਫਾਈਲ ਨਹੀਂ ਮਿਲੀ", "ਸਰਵਰ ਚਾਲੂ ਹੋਇਆ"),
    "georgian": ("შეცდომა: ფაილი ვერ მოიძებნა", "სერვერი ჩაირთო"),
    "vietnamese": ("Lỗi: không tìm thấy tệp", "Máy chủ đã khởi động"),
    "emoji": ("🚀 deploy 🎉 done", "⏳ 再試行 ✅"),
}
WIDE = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
UTF8 = "2026-01-01 10:00:00 INFO größer → fertig\nkurz\n"


def text_of(content: bytes, read_bytes: int = 1 << 20, line_bytes: int = 1 << 21) -> str:
    """Return the text of all pieces, without marks."""
    parts = []
    for piece in pieces(io.BytesIO(content), 0, read_bytes, line_bytes):
        codec = "utf-8" if piece.kind == EIGHT_BIT else piece.kind
        parts.append(piece.data.decode(codec, "backslashreplace"))
    return "".join(parts).replace("\ufeff", "")


def kinds_of(content: bytes, read_bytes: int, line_bytes: int = 1 << 21) -> list[tuple[str, int]]:
    """Return the kinds in their order with their numbers of bytes."""
    runs: list[tuple[str, int]] = []
    for piece in pieces(io.BytesIO(content), 0, read_bytes, line_bytes):
        length = len(piece.data)
        if runs and runs[-1][0] == piece.kind:
            runs[-1] = (piece.kind, runs[-1][1] + length)
        else:
            runs.append((piece.kind, length))
    return runs


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("language", LINES)
def test_whole_wide_logs_are_read_in_every_script(language, encoding, end):
    for times in (1, 300):
        text = "".join(line + end for line in LINES[language]) * times
        assert text_of(text.encode(encoding)) == text
        assert text_of(("\ufeff" + text).encode(encoding)) == text


@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("language", LINES)
def test_wide_lines_between_utf8_lines_are_read(language, encoding, mark):
    text = "".join(line + "\r\n" for line in LINES[language])
    wide = (mark + text).encode(encoding)
    for before in ("", UTF8, "xyz\n", "привет\n"):
        content = before.encode() + wide + UTF8.encode() + wide
        assert text_of(content) == before + text + UTF8 + text
        assert kinds_of(content, 7) == kinds_of(content, 1 << 20)


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("language", LINES)
def test_wide_lines_with_line_feeds_alone_are_read_after_utf8(language, encoding):
    text = "".join(line + "\n" for line in LINES[language]) * 3
    content = UTF8.encode() + text.encode(encoding) + UTF8.encode()
    assert text_of(content) == UTF8 + text + UTF8


@pytest.mark.parametrize(
    "after", [UTF8, "OK\n", "привет, мир\nкак дела\n", "日本語のログ\n終わり\n"]
)
@pytest.mark.parametrize(
    "mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE]
)
def test_a_mark_of_an_empty_file_before_utf8_is_only_a_mark(mark, after):
    for times in (1, 200):
        content = mark + (after * times).encode()
        assert text_of(content) == after * times
        assert kinds_of(content, 3) == kinds_of(content, 1 << 20)


@pytest.mark.parametrize("noise", [b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\xff\xfe", b"\xff\xfe\xff"])
@pytest.mark.parametrize("place", ["", "boot ", "boot\n"])
def test_noise_that_looks_like_a_mark_stays_visible(noise, place):
    content = UTF8.encode() + place.encode() + noise + UTF8.encode() * 50
    escapes = "".join(rf"\x{byte:02x}" for byte in noise)
    assert text_of(content) == UTF8 + place + escapes + UTF8 * 50


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("nuls", [1, 2, 3, 4, 7, 100, 101, 102, 103, 70_000, 3_000_000])
@pytest.mark.parametrize("language", ["english", "russian", "chinese"])
def test_nuls_before_within_and_after_a_text_hide_nothing(language, encoding, nuls):
    text = "".join(line + "\r\n" for line in LINES[language])
    hole = b"\0" * nuls
    for codec in (encoding, "utf-8"):
        part = text.encode(codec)
        if codec == "utf-8" or nuls > 64:
            assert text_of(hole + part + hole + part + hole).replace("\0", "") == text * 2


def test_a_nul_after_each_line_makes_no_wide_text():
    for line in (b"msg1\n\0", b"abc\n\0", b"text\0\n", b"a longer message\n\0"):
        assert kinds_of(line * 50, 1 << 20) == [(EIGHT_BIT, 50 * len(line))]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("language", LINES)
def test_the_last_byte_may_be_missing(language, encoding, mark):
    text = "".join(line + "\r\n" for line in LINES[language])
    content = (mark + text).encode(encoding)[:-1]
    assert text_of(content).startswith(text.rstrip("\r\n"))


def test_very_long_lines_are_read_in_every_script():
    for encoding in WIDE:
        for words in LINES.values():
            text = " ".join(words) * 400 + "\r\n"
            content = ("\ufeff" + text).encode(encoding) + UTF8.encode()
            assert text_of(content) == text + UTF8


tokens = st.one_of(
    st.sampled_from([UTF8, "OK\n", "x", "привет\n"]).map(str.encode),
    st.sampled_from([b"\xff\xfe", b"\xfe\xff", b"\0" * 70, b"\0", b"\n", b"\n\0", b"\0\n"]),
    st.tuples(
        st.sampled_from([line for lines in LINES.values() for line in lines]),
        st.sampled_from(["\r\n", "\n", ""]),
        st.sampled_from([*WIDE, "utf-16-le", "utf-16", "gb18030"]),
    ).map(lambda parts: (parts[0] + parts[1]).encode(parts[2])),
    st.binary(max_size=6),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(tokens, max_size=10).map(b"".join), st.integers(1, 40))
def test_kinds_do_not_depend_on_how_many_bytes_are_read(content, read_bytes):
    kinds = kinds_of(content, read_bytes)
    assert kinds == kinds_of(content, 1 << 20)


def test_memory_grows_neither_with_nuls_nor_with_lines():
    for unit in (b"\0", "語".encode("utf-16-le"), "語".encode("utf-32-be")):
        content = io.BytesIO(codecs.BOM_UTF16_LE + unit * (15_000_000 // len(unit)))
        tracemalloc.start()
        try:
            for _ in pieces(content):
                pass
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 12_000_000
