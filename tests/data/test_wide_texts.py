"""A mark of UTF-16 or UTF-32 is checked against the text, and so is the rest of a wide text."""

import codecs

import pytest

from chatgot.data.encoding import Undecodable, detect_encoding
from chatgot.data.text_file import text_chunks

TEXTS = {
    "russian": "Ошибка: файл не найден\nЗапуск завершён\n",
    "greek": "Σφάλμα: το αρχείο δεν βρέθηκε\nΈναρξη διακομιστή\n",
    "chinese": "错误：找不到文件。\n服务器已启动，一切正常。\n",
    "japanese": "ファイルが見つかりません。\nサーバーを起動しました。\n",
    "korean": "파일을 찾을 수 없습니다\n서버가 시작되었습니다\n",
    "thai": "ไม่พบไฟล์\nเซิร์ฟเวอร์เริ่มทำงานแล้ว\n",
    "arabic": "خطأ: الملف غير موجود\nتم التشغيل\n",
    "hebrew": "שגיאה: הקובץ לא נמצא\nהשרת הופעל\n",
    "hindi": "त्रुटि: फ़ाइल नहीं मिली\nसर्वर प्रारंभ हुआ\n",
}
WIDE = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
MARKS = [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE]
PROSE = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("language", TEXTS)
def test_two_lines_in_any_script_are_read_with_and_without_a_mark(write, language, encoding, mark):
    for times in (1, 400):
        text = TEXTS[language] * times
        path = write((mark + text).encode(encoding))
        assert "".join(text_chunks(path, detect_encoding(path))) == text


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("text", [PROSE, "OK\n", TEXTS["russian"], TEXTS["chinese"] * 300])
def test_a_mark_before_other_text_is_refused_with_its_offset(write, mark, text):
    with pytest.raises(Undecodable, match="byte order mark") as refused:
        detect_encoding(write(mark + text.encode()))
    assert refused.value.offset == len(mark)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("other", [PROSE, TEXTS["russian"] * 3, TEXTS["chinese"] * 3])
def test_utf8_after_utf16_is_refused_with_its_offset(write, encoding, mark, other):
    wide = (mark + PROSE * 500).encode(encoding)
    path = write(wide + other.encode() * 2)
    with pytest.raises(Undecodable, match="two encodings in one text") as refused:
        detect_encoding(path)
    assert abs(refused.value.offset - len(wide)) <= 1


def test_a_utf8_mark_before_cp1252_is_refused_with_an_offset(write):
    content = codecs.BOM_UTF8 + (PROSE + "Größe\n").encode("cp1252") * 9
    path = write(content)
    with pytest.raises(Undecodable) as refused:
        "".join(text_chunks(path, detect_encoding(path)))
    assert refused.value.offset == content.index(b"\xf6")


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_alone_is_a_mark(write, mark):
    path = write(mark)
    assert "".join(text_chunks(path, detect_encoding(path))) == ""
