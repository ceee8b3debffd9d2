"""A text file of the user: whether it can be read, and its characters in chunks."""

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from child_environment import child_environment
from hypothesis import given
from hypothesis import strategies as st

from chatgot.data.text_file import check_text_file, file_sha256, text_chunks
from chatgot.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"


# Which files are text files


def test_a_text_file_is_accepted_with_its_size(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\r\n")
    assert check_text_file(path) == 5


def test_a_file_of_one_character_is_accepted(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a")
    assert check_text_file(path) == 1


@pytest.mark.parametrize(
    ("name", "found"), [("folder", "a folder"), ("fifo", "a FIFO"), ("socket", "a socket")]
)
def test_anything_but_a_regular_file_is_refused_by_kind(tmp_path, monkeypatch, name, found):
    monkeypatch.chdir(tmp_path)
    if name == "folder":
        Path(name).mkdir()
    elif name == "fifo":
        os.mkfifo(name)
    else:
        socket.socket(socket.AF_UNIX).bind(name)  # the name stays after it is closed
    errors = []

    def check() -> None:
        with pytest.raises(ConfigError, match=found) as refusal:
            check_text_file(Path(name))
        errors.append(refusal.value)

    # In a thread, so that a check that waits for a writer fails instead of hanging
    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert len(errors) == 1


def test_a_device_is_refused():
    with pytest.raises(ConfigError, match="a device"):
        check_text_file(Path("/dev/zero"))


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.touch()
    with pytest.raises(ConfigError, match="is empty"):
        check_text_file(path)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("a")
    (tmp_path / "shakespaere.tx").mkdir()
    with pytest.raises(ConfigError, match=r"did you mean .*shakespeare\.txt\?"):
        check_text_file(tmp_path / "shakespaere.txt")


def test_a_missing_file_with_no_near_name_gets_no_hint(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("a")
    with pytest.raises(ConfigError) as refusal:
        check_text_file(tmp_path / "zzz.md")
    assert "did you mean" not in str(refusal.value)


def test_a_relative_path_is_said_with_the_absolute_one_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "texts" / "t.txt"))):
        check_text_file(Path("texts/t.txt"))


@pytest.mark.parametrize("text", ["t.txt", "texts/t.txt", "../t.txt"])
@pytest.mark.parametrize("above", [".", "configs", "configs/mine"])
def test_a_text_near_its_yaml_is_named_if_paths_do_not_reach_it(tmp_path, monkeypatch, text, above):
    """A path in a YAML starts in the current folder, as in any command."""
    project = tmp_path / "project" / "a"
    here = tmp_path / "elsewhere"
    there = project / text
    for folder in (here, there.parent, project / above):
        folder.mkdir(parents=True, exist_ok=True)
    there.write_text("text", encoding="utf-8")
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError) as refusal:
        check_text_file(Path(text), yaml_path=project / above / "my.yaml")
    message = str(refusal.value)
    assert str(here / text) in message
    assert f"set data.path to {there}, which exists" in message


def test_no_text_near_its_yaml_is_made_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        check_text_file(Path("t.txt"), yaml_path=tmp_path / "configs" / "my.yaml")
    assert "which exists" not in str(refusal.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        check_text_file(tmp_path / "nowhere" / "text.txt")


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("a")
    with pytest.raises(ConfigError, match="Not a directory"):
        check_text_file(tmp_path / "file" / "text.txt")


@pytest.mark.parametrize(
    "address", ["https://example.org/a.txt", "s3://bucket/a.txt", "file:///tmp/a.txt"]
)
def test_an_address_in_place_of_a_file_is_named_as_such(address):
    with pytest.raises(ConfigError, match=r"found an address, .* download it, then set data.path"):
        check_text_file(Path(address))


def test_a_missing_file_with_a_colon_in_its_name_is_no_address(tmp_path):
    for name in ("C:/a.txt", "a: b.txt", "12:30/a.txt"):
        with pytest.raises(ConfigError, match="no such file"):
            check_text_file(Path(name))


def test_a_dangling_symlink_is_refused(tmp_path):
    (tmp_path / "link.txt").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="no such file"):
        check_text_file(tmp_path / "link.txt")


def test_an_unreadable_file_is_refused(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("a")
    path.chmod(0o000)
    tmp_path.chmod(0o755)
    program = PROGRAMS / "check_as_nobody.py"
    child = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "secret.txt"],
        env=child_environment(REPOSITORY),
        capture_output=True,
        text=True,
    )
    assert "ConfigError: secret.txt: cannot be read: Permission denied" in child.stderr


def test_the_hash_covers_all_bytes_of_the_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


# Reading it


CHARACTERS = st.sampled_from("ab\r\n\u00e9\u4e00\U0001f600\ufeff\u2028\x0b\x0c")
MARKS = {
    "utf-8-sig": "",
    "utf-8": "\ufeff",
    "utf-16-le": "\ufeff",
    "utf-16-be": "\ufeff",
    "utf-32-le": "\ufeff",
}


@given(st.text(CHARACTERS, max_size=60), st.integers(1, 64), st.sampled_from(sorted(MARKS)))
def test_text_is_the_same_in_chunks_of_any_size(tmp_path_factory, text, chunk_bytes, encoding):
    path = tmp_path_factory.getbasetemp() / "chunks.txt"
    path.write_bytes((MARKS[encoding] + text).encode(encoding))
    chunks = list(text_chunks(path, encoding, chunk_bytes))
    without_marks = text.replace("\ufeff", "")
    assert "".join(chunks) == without_marks.replace("\r\n", "\n").replace("\r", "\n")
    assert all(chunks)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("gb18030", "道可道，\r\n非常道。"), ("shift_jis", "吾輩は猫\rである。\r\n")],
)
def test_double_byte_text_is_the_same_in_chunks_of_any_size(tmp_path, encoding, text):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    for chunk_bytes in range(1, 24):
        expected = text.replace("\r\n", "\n").replace("\r", "\n")
        assert "".join(text_chunks(path, encoding, chunk_bytes)) == expected


def test_byte_order_marks_are_dropped_and_those_within_counted(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffa\ufeff\ufeffb".encode())
    for encoding, chunk_bytes in (("utf-8-sig", 99), ("utf-8", 1)):
        marks: list[int] = []
        chunks = text_chunks(path, encoding, chunk_bytes, count_marks=marks.append)
        assert "".join(chunks) == "ab"
        assert sum(marks) == 2


def test_an_undecodable_byte_is_named_with_file_encoding_and_offset(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\n" * 10 + b"\xe9tat")
    with pytest.raises(ConfigError, match=r"text\.txt: not utf-8 at byte offset 40: byte 0xE9"):
        list(text_chunks(path, "utf-8", 7))


def test_text_before_a_broken_byte_is_read(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abcd\xff")
    chunks = text_chunks(path, "utf-8", 4)
    assert next(chunks) == "abcd"
    with pytest.raises(ConfigError):
        next(chunks)


def test_a_file_that_vanishes_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        list(text_chunks(tmp_path / "gone.txt", "utf-8"))


def test_one_line_of_50_mb_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(50):
            file.write("é".encode() * (1 << 19))
    chunks = [len(chunk) for chunk in text_chunks(path, "utf-8")]
    assert sum(chunks) == 50 * (1 << 19)
    assert max(chunks) <= 1 << 22
