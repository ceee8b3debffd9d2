"""Whole logs with NULs, false marks and wide stretches are mended as a user sees them."""

import codecs

import pytest

from chatgot.errors import ConfigError
from chatgot.log_fixer.files import detect_encoding, fix_log_file

TEXT = "2026-01-01 10:00:00 INFO größer → fertig\nkurz\n"
RUSSIAN = "2026-01-01 10:00:00 Ошибка: файл не найден\nЗапуск завершён\n"


@pytest.fixture
def fix(tmp_path):
    def fix(content: bytes) -> tuple[str, dict[str, int]]:
        """Return the text of the mended log, and what was counted."""
        path = tmp_path / "run.log"
        path.write_bytes(content)
        report = fix_log_file(path)
        return (tmp_path / "run_fixed.log").read_text("utf-8"), report.counts

    return fix


@pytest.mark.parametrize(
    ("encoding", "nuls"),
    [
        *(("utf-8", nuls) for nuls in (1, 4, 5000, 70_000, 70_001, 5_000_000)),
        # a few NULs may belong to a letter
        *(
            (encoding, nuls)
            for encoding in ("utf-16-le", "utf-16-be", "utf-16")
            for nuls in (70, 5000, 70_000, 70_001)
        ),
    ],
)
def test_nuls_at_the_start_or_the_end_are_skipped_and_counted(fix, encoding, nuls):
    part = RUSSIAN.encode(encoding)
    for content in (bytes(nuls) + part, part + bytes(nuls)):
        text, counts = fix(content)
        assert text == RUSSIAN
        assert abs(counts["nuls"] - nuls) <= 1  # one may have joined the last letter


def test_nuls_between_records_are_skipped_and_counted(fix):
    text, counts = fix(TEXT.encode() + bytes(100_000) + TEXT.encode())
    assert text == TEXT * 2
    assert counts["nuls"] == 100_000


def test_a_file_of_nuls_alone_is_no_log(fix):
    with pytest.raises(ConfigError, match="binary"):
        fix(bytes(3_000_000))


def test_numbers_after_nuls_are_still_binary(fix):
    numbers = b"".join(i.to_bytes(4, "little") for i in range(0, 4_000_000, 977))
    with pytest.raises(ConfigError, match="binary"):
        fix(bytes(70_000) + numbers)


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
@pytest.mark.parametrize("text", [TEXT, "all plain ASCII\n", RUSSIAN])
def test_the_mark_of_an_empty_file_is_dropped_and_utf8_stays(fix, tmp_path, mark, text):
    mended, counts = fix(mark + text.encode())
    assert mended == text
    assert counts == {"byte_order_marks": 1}
    assert detect_encoding(tmp_path / "run.log") == ("utf-8", 1.0)


def test_noise_that_looks_like_a_mark_keeps_the_lines_around_it(fix):
    for noise in (b"\xff\xfe", b"\xff\xfe\xff\xfe"):
        text, _ = fix(TEXT.encode() + noise + TEXT.encode() * 3)
        assert text.startswith(TEXT)
        assert text.endswith(TEXT * 2)
        assert "INFO" in text.splitlines()[2]
