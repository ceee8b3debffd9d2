"""Each line of a log is read in its encoding, and only broken bytes become escapes."""

import codecs
import io

import pytest

from chatgot.data.encoding_guess import Guess
from chatgot.data.iso_2022 import escaped_encoding
from chatgot.errors import ConfigError
from chatgot.log_fixer import segment
from chatgot.log_fixer.decoding import LogDecoder
from chatgot.log_fixer.files import FixReport, Options, detect_encoding, fix_log_file, fix_stream

CHINESE = (
    "错误：无法连接数据库服务器，请检查网络配置后重试\n文件已经成功保存到磁盘\n"
    "用户登录失败三次，账户被锁定\n正在下载更新程序包\n"
)
TAIWANESE = (
    "錯誤：無法連線到資料庫伺服器，請檢查網路設定\n檔案已成功儲存至磁碟\n"
    "使用者登入失敗三次，帳號已鎖定\n"
)
JAPANESE = (
    "エラー：データベースに接続できませんでした\nファイルの保存が完了しました\n"
    "ユーザー認証に失敗しました、再試行してください\n処理を開始します\n"
)
KOREAN = (
    "오류: 데이터베이스에 연결할 수 없습니다\n파일을 저장하는 중입니다\n"
    "사용자 인증에 실패했습니다\n다운로드가 완료되었습니다\n"
)
GERMAN = (
    "Größe der Datei: 10 MB\nÜberprüfung läuft für Benutzer Jörg\nZugriff verweigert für Größe\n"
)
FRENCH = "Le château était fermé à cause de la grêle; ça ira mieux, naïve élève.\n"
POLISH = "Błąd: nie można otworzyć pliku źródłowego\nZażółć gęślą jaźń, połączenie przerwane\n"
RUSSIAN = "Ошибка: не удалось открыть файл\nСоединение с сервером потеряно, повторите попытку\n"
TEXTS = {
    "gbk": CHINESE,
    "big5": TAIWANESE,
    "shift_jis": JAPANESE,
    "euc_jp": JAPANESE,
    "euc_kr": KOREAN,
}


def fix_and_report(content: bytes, **options) -> tuple[str, FixReport]:
    out = io.BytesIO()
    report = FixReport("log")
    fix_stream(io.BytesIO(content), out, report, Options(**options))
    return out.getvalue().decode(), report


def fix(content: bytes, **options) -> str:
    return fix_and_report(content, **options)[0]


def decoded(content: bytes, read_bytes: int) -> str:
    decoder = LogDecoder(io.BytesIO(content), read_bytes)
    return "".join(t.characters for piece in decoder.pieces() for t in decoder.texts(piece))


# Torn characters of double-byte encodings


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_line_of_stray_bytes_leaves_all_other_lines_readable(encoding):
    text = TEXTS[encoding]
    content = text.encode(encoding) + b"\xff\xff\xff\n" + text.encode(encoding)
    fixed, report = fix_and_report(content)
    assert fixed == text + "\\xff\\xff\\xff\n" + text
    assert report.undecodable_bytes == 3
    assert report.first_undecodable_offset == len(text.encode(encoding))


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_cut_at_the_end_of_a_line_costs_one_byte(encoding):
    lines = TEXTS[encoding].splitlines()
    for number, line in enumerate(lines):
        torn = line.encode(encoding)[:-1]
        whole = [*lines[:number], *lines[number + 1 :]]
        content = "".join(f"{other}\n" for other in whole).encode(encoding) + torn + b" done\n"
        fixed = fix(content)
        assert (
            fixed
            == "".join(f"{other}\n" for other in whole)
            + line[:-1]
            + rf"\x{torn[-1]:02x} done"
            + "\n"
        )


@pytest.mark.parametrize(
    ("encoding", "line", "place", "byte", "want"),
    [
        ("gbk", "错误：无法连接数据库服务器", 0, 0, "\\xed误：无法连接数据库服务器"),
        ("gbk", "错误：无法连接数据库服务器", 5, 1, "错误：无法\\xc1接数据库服务器"),
        ("euc_kr", "데이터베이스에 연결할 수", 2, 0, "데이\\xcd베이스에 연결할 수"),
        ("euc_kr", "데이터베이스에 연결할 수", 0, 0, "\\xa5이터베이스에 연결할 수"),
        ("euc_jp", "ファイルの保存が完了しました", 5, 0, "ファイルの\\xdd存が完了しました"),
        ("euc_jp", "ファイルの保存が完了しました", 0, 0, "\\xd5ァイルの保存が完了しました"),
        ("shift_jis", "ファイルの保存が完了しました", 5, 0, "ファイルの\\xdb存が完了しました"),
        ("shift_jis", "ファイルの保存が完了しました", 8, 1, "ファイルの保存が\\x8a了しました"),
        ("shift_jis", "処理を開始します", 0, 0, "\\x88理を開始します"),
        ("big5", "檔案已成功儲存至磁碟", 1, 0, "檔\\xd7已成功儲存至磁碟"),
        ("big5", "檔案已成功儲存至磁碟", 4, 1, "檔案已成\\xa5儲存至磁碟"),
    ],
)
def test_a_torn_character_does_not_shift_the_rest_of_its_word(encoding, line, place, byte, want):
    """`byte` is the one that is missing: the first or the second."""
    character = line[place].encode(encoding)
    left = character[:byte] + character[byte + 1 :]
    torn = line[:place].encode(encoding) + left + line[place + 1 :].encode(encoding)
    text = TEXTS[encoding]
    content = text.encode(encoding) + torn + b"\n" + text.encode(encoding)
    fixed, report = fix_and_report(content)
    assert fixed == text + want + "\n" + text
    assert report.undecodable_bytes == 1


def test_several_tears_in_one_log_are_each_one_escape():
    lines = CHINESE.splitlines()
    first = lines[0].encode("gbk")[1:]
    second = lines[1].encode("gbk")[:-1]
    content = first + b"\n" + second + b"\n" + CHINESE.encode("gbk") * 3
    fixed, report = fix_and_report(content)
    assert fixed == f"\\xed{lines[0][1:]}\n{lines[1][:-1]}\\xc5\n" + CHINESE * 3
    assert report.undecodable_bytes == 2


def test_words_that_are_utf8_by_chance_are_read_like_the_other_lines():
    """In GBK the word for `status` is two letters of Hebrew and a mark in UTF-8."""
    assert "状态".encode("gbk").decode()
    text = CHINESE + "状态: 5\n" + CHINESE
    for read_bytes in (1, 50, 1 << 20):
        assert decoded(text.encode("gbk"), read_bytes) == text
    german = CHINESE.encode("gbk") + GERMAN.encode() + "ü\n".encode()
    assert fix(german) == CHINESE + GERMAN + "ü\n"


# Guesses


@pytest.mark.parametrize(
    ("encoding", "whole", "cut", "want"),
    [
        ("big5", "使用者王小明已登入系統", 9, "使用者王\\xa4"),
        ("gbk", "用户张三已登录系统", -11, "\\xfd已登录系统"),
        ("euc_kr", "파일을 내려받는 중입니다", -5, "\\xd4니다"),
        ("euc_jp", "ネットワーク切断", 9, "ネットワ\\xa1"),
    ],
)
def test_a_torn_line_among_double_byte_lines_is_no_broken_utf8(encoding, whole, cut, want):
    """Some double-byte characters look like two bytes of UTF-8."""
    line = whole.encode(encoding)
    torn = line[:cut] if cut > 0 else line[cut:]
    text = TEXTS[encoding]
    assert fix(text.encode(encoding) + torn + b"\n") == f"{text}{want}\n"


def test_bytes_of_empty_memory_are_no_letters():
    assert fix(b"ok\n" + b"\xff" * 8 + b"\nnext\n") == "ok\n" + "\\xff" * 8 + "\nnext\n"


def test_broken_utf8_stays_that_where_the_log_has_utf8():
    broken = "Größe ".encode() + b"\xc3 f\n"
    content = CHINESE.encode("gbk") + GERMAN.encode() + broken
    assert fix(content) == CHINESE + GERMAN + "Größe \\xc3 f\n"


def test_what_looks_like_mojibake_in_a_guessed_encoding_becomes_escapes():
    fixed = fix(b"start\nTrain \xf0\x9f\x9a 2024\n")
    assert fixed == "start\nTrain \\xf0\\x9f\\x9a 2024\n"
    assert fix(fixed.encode()) == fixed


def test_umlauts_of_dos_are_not_mended_into_other_letters():
    text = GERMAN * 3
    assert fix(text.encode("cp850")) == text


def test_lines_without_a_sure_guess_keep_their_ascii_and_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "guess_encoding", lambda _: Guess(None, 0.4))
    content = b"ok\n" + bytes([0x81, 0x8D, 0x8F]) + b" noise\n"
    fixed, report = fix_and_report(content)
    assert fixed == "ok\n\\x81\\x8d\\x8f noise\n"
    assert (report.undecodable_bytes, report.first_undecodable_offset) == (3, 3)
    path = tmp_path / "noise.log"
    path.write_bytes(content)
    assert detect_encoding(path) == ("utf-8", 0.0)


def test_a_sample_is_taken_from_all_of_a_long_segment():
    text = "\n".join([FRENCH.strip()] * 20_000) + "\n"
    assert fix(text.encode("cp1252")) == text


# ISO-2022 and HZ


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("iso2022_jp", "エラー 12: 接続できません\n"),
        ("iso2022_jp_1", "森鷗外\n"),
        ("iso2022_jp_2", "日本語 한국어 中文 é\n"),
        ("iso2022_jp_2004", "俱 ①\n"),
        ("iso2022_jp_ext", "半角ｶﾅ\n"),
        ("iso2022_kr", "오류: 연결 실패\n"),
        ("hz", "文件已经保存\n"),
    ],
)
def test_7_bit_encodings_of_east_asia_are_read(encoding, text):
    assert escaped_encoding(text.encode(encoding)) == encoding
    for before, after in (("", ""), ("INFO start\n", "plain ~ text\n"), ("é\n", "naïve\n")):
        content = before.encode() + text.encode(encoding) + after.encode()
        fixed, report = fix_and_report(content)
        assert fixed == before + text + after
        assert encoding in report.encodings
        assert not report.undecodable_bytes


def test_colours_go_and_the_japanese_beside_them_stays():
    content = b"\x1b[31m" + "エラー".encode("iso2022_jp") + b"\x1b[0m: \x1b$B@\x5cB3\x1b(B\n"
    assert fix(content) == "エラー: 接続\n"


def test_korean_lines_after_the_header_are_read():
    text = "오류\nINFO 12\n연결 실패\n"
    assert fix(text.encode("iso2022_kr")) == text
    assert fix(b"\x1b$)C\n" + "오류\n".encode("iso2022_kr")[4:]) == "\n오류\n"


@pytest.mark.parametrize(
    ("content", "fixed"),
    [
        (b"bold\x1b(B off\n", "bold off\n"),
        (b"\x1b(0qqq\x1b(B\n", "───\n"),
        (b'(format t "~{~a~^, ~}" list)\n', '(format t "~{~a~^, ~}" list)\n'),
        (b"path ~{FOO~} and ~{ABCD~}\n", "path ~{FOO~} and ~{ABCD~}\n"),
        (b"+AGE- utf-7 +2D3cqQ-\n", "+AGE- utf-7 +2D3cqQ-\n"),
    ],
)
def test_escape_sequences_of_terminals_and_ascii_are_not_east_asian(content, fixed):
    assert fix(content) == fixed
    assert escaped_encoding(content) is None


def test_a_torn_character_of_iso_2022_is_visible():
    fixed, report = fix_and_report("日本語".encode("iso2022_jp")[:-4] + b"\x1b(B end\n")
    assert fixed == "日本\\x38 end\n"
    assert report.undecodable_bytes == 1
    assert fix(b"\x1b$BF|K\xdc8l@\\B3\x1b(B \xc3\xa9\n") == "日\\x4b\\xdc語接続 é\n"


# Odd forms of UTF-8


@pytest.mark.parametrize(
    ("content", "fixed"),
    [
        (b"ok \xed\xa0\xbd\xed\xb8\x80 done\n", "ok 😀 done\n"),
        (b"Gr\xc3\xb6\xc3\x9fe \xed\xa0\xbd\xed\xba\x80\n", "Größe 🚀\n"),
        (b"ab\xc0\x80cd\n", "ab\\x00cd\n"),
        ("日本".encode() + b"\xc0\x80\n", "日本\n"),
        (b"\xed\xa0\xbd alone \xc3\xa9\n", "\\xed\\xa0\\xbd alone é\n"),
        (b"\xc3\xa9t\xc3\xa9 \xc0\xaf etc\n", "été \\xc0\\xaf etc\n"),
        (b"\xc3\xa9t\xc3\xa9\n../\xc0\xaf/etc\n", "été\n../\\xc0\\xaf/etc\n"),
        (
            b"\xc3\xa9t\xc3\xa9\n\xe0\x80\xaf \xf0\x80\x80\xaf\n",
            "été\n\\xe0\\x80\\xaf \\xf0\\x80\\x80\\xaf\n",
        ),
        (b"Gr\xc3\xb6\xc3\x9fe\nGr\xc3 e\n", "Größe\nGr\\xc3 e\n"),
        ("5 €\n".encode() + b"10 \xe2\x82 20\n", "5 €\n10 \\xe2\\x82 20\n"),
        (b"Gr\xc3\xb6\xc3\x9fe\n" + FRENCH.encode("cp1252"), "Größe\n" + FRENCH),
        (b"\xef\xbb\xbfcaf\xe9 ferm\xe9, d\xe9j\xe0 vu\n", "café fermé, déjà vu\n"),
    ],
)
def test_odd_forms_of_utf8_are_read_or_stay_visible(content, fixed):
    text, report = fix_and_report(content)
    assert text == fixed
    assert report.changed
    assert fix(fixed.encode()) == fixed


# Drawings


def test_names_in_a_tree_of_dos_may_be_in_the_code_page_of_windows():
    for page, names in (
        ("cp1252", ["Übungen für Anfänger", "Größe", "Schlüssel und Schlösser"]),
        ("cp850", ["Übungen für Anfänger", "Größe", "Schlüssel und Schlösser"]),
        ("cp1251", ["Документы", "Загрузки и файлы", "Рабочий стол"]),
        ("cp866", ["Документы", "Загрузки и файлы", "Рабочий стол"]),
    ):
        content = b""
        for name in names:
            content += b"\xc3\xc4\xc4\xc4" + name.encode(page) + b"\n"
        content += b"\xb3   \xc0\xc4\xc4\xc4" + names[0].encode(page) + b"\n"
        want = "".join(f"├───{name}\n" for name in names) + f"│   └───{names[0]}\n"
        assert fix(content) == want, page


# A named encoding


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1250", POLISH),
        ("iso8859-2", POLISH),
        ("cp852", POLISH),
        ("koi8-r", RUSSIAN),
        ("shift_jis", JAPANESE),
        ("gbk", CHINESE),
        ("big5", TAIWANESE),
        ("johab", KOREAN),
        ("shift_jis_2004", JAPANESE),
        ("iso2022_jp", JAPANESE),
        ("hz", CHINESE),
        ("utf-16-le", RUSSIAN),
        ("utf-16-be", CHINESE),
        ("utf-16", RUSSIAN),
        ("utf-32-le", FRENCH),
        ("utf-32", CHINESE),
    ],
)
def test_a_named_encoding_is_that_of_all_lines_that_are_not_utf8(encoding, text):
    content = text.encode(encoding)
    assert fix(content, encoding=encoding) == text
    if not encoding.startswith("utf"):
        assert fix(content + "ütf-8 – ✓\n".encode(), encoding=encoding) == text + "ütf-8 – ✓\n"


def test_a_named_encoding_is_not_guessed_anew():
    assert fix(b"B\xb3\xb9d\n", encoding="cp1250") == "Błąd\n"
    assert fix(b"B\xb3\xb9d\n", encoding="latin-1") == "B³¹d\n"
    assert fix(b"caf\xe9\n", encoding="utf-8") == "caf\\xe9\n"
    assert fix(b"caf\xe9\n", encoding="ascii") == "caf\\xe9\n"
    torn = RUSSIAN.encode()[:-1].replace(b"\n", b" ") + b"\xd0\n"
    assert fix(torn, encoding="cp1251") == RUSSIAN[:-1].replace("\n", " ") + "\\xd0\n"


def test_an_8_bit_log_stays_readable_under_the_name_of_utf16():
    for encoding in ("utf-16-le", "utf-32"):
        assert fix("plain, é\n".encode(), encoding=encoding) == "plain, é\n"


def test_an_encoding_may_be_named_in_any_spelling(tmp_path):
    path = tmp_path / "a.log"
    for name, text in (("Windows-1250", POLISH), ("latin2", POLISH), ("UTF-16LE", RUSSIAN)):
        path.write_bytes(text.encode(name))
        report = fix_log_file(path, tmp_path / "b.log", encoding=name)
        assert (tmp_path / "b.log").read_text(encoding="utf-8") == text
        assert list(report.encodings) == [codecs.lookup(name).name]
    with pytest.raises(ConfigError, match="'cp125x'"):
        fix_log_file(path, encoding="cp125x")


# However it is read


@pytest.mark.parametrize("read_bytes", [1, 7, 64])
def test_the_text_does_not_depend_on_how_many_bytes_are_read(read_bytes):
    content = (
        CHINESE.encode("gbk")
        + "日本語\n".encode("iso2022_jp")
        + CHINESE.encode("gbk")[1:-2]
        + b"\r50%\r100%\n"
        + "é ✓\n".encode()
    )
    assert decoded(content, read_bytes) == decoded(content, 1 << 20)
