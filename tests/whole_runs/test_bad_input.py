"""Bad input from a user gives the right exit code and one or two clear lines; no file changes."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
from chosen_device import ABSENT


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of each file below `folder` by its name, without caches."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "cache" not in path.parts:
            name = str(path.relative_to(folder))
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


@pytest.fixture
def trained(tmp_path):
    """A folder with a finished run of 4 steps."""
    harness.write_config(tmp_path, training={"max_steps": 4, "save_checkpoint_steps": 2})
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    return tmp_path


@pytest.fixture
def refuse(capsys) -> Callable[..., str]:
    """Run the script's main here; assert its exit code and some words; return the message."""

    def run(folder: Path, code: int, words: list[str], *arguments: str) -> str:
        before = tree(folder)
        capsys.readouterr()
        assert harness.train_here(folder, *arguments) == code
        said = capsys.readouterr().err
        assert_refused(said, words)
        assert tree(folder) == before
        return said

    return run


def assert_refused(said: str, words: list[str]) -> None:
    assert "Traceback" not in said
    assert 1 <= len(said.strip().splitlines()) <= 3, said
    for word in words:
        assert word in said, said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "tyni.yaml"], ["tyni.yaml", "tiny.yaml"]),
        (
            ["--config", "tiny.yaml", "--set", "training.batch_sise=4"],
            ["batch_sise", "did you mean", "batch_size"],
        ),
        (
            ["--config", "tiny.yaml", "--set", "training.batch_size=four"],
            ["training.batch_size", "four"],
        ),
        (["--config", "tiny.yaml", "--set", "model.dropout=1.5"], ["model.dropout", "1.5"]),
        (["--config", "tiny.yaml", "--set", "model.n_head=3"], ["n_head", "multiple"]),
        (["--config", "tiny.yaml", "--set", "data.path=no_such.txt"], ["no_such.txt"]),
        (["--config", "tiny.yaml", "--set", "data.path=."], ["tiny.yaml", "no plain text"]),
        (["--config", "tiny.yaml", "--set", f"device={ABSENT}"], [ABSENT]),
    ],
)
def test_a_bad_config_or_text_is_exit_2(tmp_path, arguments, words):
    """In a new process, as a user starts the script."""
    harness.write_config(tmp_path)
    before = tree(tmp_path)
    done = harness.run_script(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert_refused(done.stderr, words)
    assert tree(tmp_path) == before


def test_a_text_too_short_for_one_batch_is_exit_2_with_both_lengths(tmp_path, refuse):
    """The message has the text's length and the exact length that is needed."""
    harness.write_config(tmp_path)
    short = tmp_path / "short.txt"
    short.write_text(harness.make_text(99), encoding="utf-8")
    arguments = ["--config", "tiny.yaml", "--set", "data.path=short.txt"]
    said = refuse(tmp_path, 2, ["99 characters"], *arguments)
    needed = int(said.split("at least ")[1].split()[0])
    arguments += ["--set", "training.max_steps=1"]
    short.write_text(harness.make_text(needed - 1), encoding="utf-8")
    assert harness.train_here(tmp_path, *arguments) == 2
    short.write_text(harness.make_text(needed), encoding="utf-8")
    assert harness.train_here(tmp_path, *arguments) == 0


def test_a_damaged_checkpoint_is_exit_3(trained, refuse):
    path = harness.checkpoints(trained)[4]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refuse(trained, 3, [path.name, "damaged"], "--config", "tiny.yaml", "--resume_from", str(path))


@pytest.mark.parametrize("option", ["--resume_from", "--init_from"])
def test_a_foreign_file_is_exit_3(trained, option, refuse):
    (trained / "notes.pt").write_bytes(b"these are my notes, not weights" * 99)
    refuse(trained, 3, ["notes.pt"], "--config", "tiny.yaml", option, "notes.pt")


def test_a_missing_checkpoint_is_exit_3_and_an_existing_one_is_named(trained, refuse):
    name = harness.checkpoints(trained)[4].name
    arguments = ["--config", "tiny.yaml", "--resume_from", "checkpoints/no_such.pt"]
    refuse(trained, 3, ["no_such.pt", name], *arguments)


@pytest.mark.parametrize("option", ["--resume_from", "--init_from"])
def test_an_empty_path_is_exit_3_and_starts_no_new_run(trained, option, refuse):
    refuse(trained, 3, ["."], "--config", "tiny.yaml", option, "")


def test_an_unreadable_checkpoint_is_exit_3(trained, refuse):
    resume = ["--config", "tiny.yaml", "--resume_from"]
    refuse(trained, 3, ["/proc/self/mem"], *resume, "/proc/self/mem")
    if Path("/sys/class/net/lo/speed").exists():
        refuse(trained, 3, ["speed"], *resume, "/sys/class/net/lo/speed")


@pytest.mark.parametrize(
    ("stdout", "code"), [(">/dev/full", 5), *harness.slow(("| true", 0), (">&-", 0))]
)
def test_a_dry_run_with_an_unwritable_stdout_gives_no_traceback(trained, stdout, code):
    command = f"{sys.executable} {harness.SCRIPT} --config tiny.yaml --dry_run {stdout}"
    command += "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=trained, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if " - INFO - " not in line]) <= 1


def test_a_resume_where_nothing_was_saved_is_exit_3(tmp_path, refuse):
    harness.write_config(tmp_path)
    refuse(tmp_path, 3, ["checkpoints"], "--config", "tiny.yaml", "--resume_from", "latest")


@pytest.mark.parametrize("key", ["paths.checkpoints", "paths.logs", "paths.cache"])
def test_a_file_where_a_folder_should_be_is_exit_5(tmp_path, key, refuse):
    harness.write_config(tmp_path)
    (tmp_path / "occupied").write_text("a file")
    refuse(tmp_path, 5, ["occupied"], "--config", "tiny.yaml", "--set", f"{key}=occupied")
