"""The wording of the log's lines: the end of a run, and how a step is split."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import parts
import pytest

from chatgot.run.assembly import assemble
from chatgot.training import log_lines
from chatgot.training.log_lines import cautions, end_line, git_commit, postfix


@pytest.mark.parametrize(
    ("precision", "words"),
    [("fp32", "fp16, then fp32"), ("bf16", "fp16, then bf16"), ("fp16", "fp16 throughout")],
)
def test_the_last_line_has_steps_skips_rewinds_and_precisions(precision, words):
    run = parts.run()
    run.state.progress.global_step = 1040
    run.state.health.skips = 2
    run.state.health.rewinds = 1
    run.state.modes.asked_precision = "fp16"
    run.state.modes.precision = precision
    assert end_line(run) == f"1,040 steps, 2 skipped, 1 rewinds, {words}"


def test_the_progress_bar_shows_how_a_step_is_split():
    run = parts.run(training={"batch_size": 32, "accumulate_grad_batches": 1})
    run.state.progress.train_loss = 1.0
    run.state.micro_batch.size = 16
    assert postfix(run).endswith(", 16x2")
    run.state.micro_batch.size = 12
    assert postfix(run).endswith(", 12x3")


def cautions_of(folder: Path, alphabet: str = parts.ALPHABET, letters: str = "") -> str:
    """Return the cautions of a run whose held-out part ends in other letters of the alphabet."""
    text = parts.tokens(alphabet=alphabet)
    ids = text.ids.copy()
    ids[len(ids) - len(letters) :] = text.vocabulary.encode(letters)
    config = parts.config(paths={"checkpoints": str(folder), "logs": str(folder)})
    return "\n".join(cautions(assemble(config, replace(text, ids=ids), parts.CPU, None)))


def test_a_caution_names_held_out_characters_that_training_lacks(tmp_path):
    alphabet = parts.ALPHABET + "xyΩ\u200b"
    assert "held-out part" not in cautions_of(tmp_path, alphabet)
    said = cautions_of(tmp_path, alphabet, "Ω\u200bΩ\u200b")
    assert "the held-out part (the last 0.1 of the text) has characters" in said
    assert r"lacks: Ω \u200b; they are 2.0% of it" in said
    many = parts.ALPHABET + "".join(map(chr, range(0x400, 0x420)))
    assert cautions_of(tmp_path, many, many[-20:]).count(" ...;") == 1


def test_a_caution_says_that_a_launcher_has_started_copies(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "copies" not in cautions_of(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "WORLD_SIZE=3: a launcher has started 3 copies" in cautions_of(tmp_path)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """Return somebody's git repository, with one commit of one file."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("theirs")
    git(tmp_path, "add", "file")
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    git(tmp_path, *identity, "commit", "--quiet", "-m", "theirs")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_with_a_plus_when_files_differ(repository, monkeypatch):
    monkeypatch.setattr(log_lines, "PACKAGE", repository / "chatgot")
    commit = git(repository, "rev-parse", "--short=12", "HEAD")
    assert git_commit() == commit
    (repository / "file").write_text("changed")
    assert git_commit() == f"{commit}+"


def test_a_package_inside_another_repository_has_no_commit(repository, monkeypatch):
    """It is installed there, in a virtual environment: the commit would be of somebody's code."""
    package = repository / ".venv" / "lib" / "site-packages" / "chatgot"
    package.mkdir(parents=True)
    monkeypatch.setattr(log_lines, "PACKAGE", package)
    assert git_commit() is None


@pytest.mark.parametrize(
    "name",
    [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_COMMON_DIR",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_CEILING_DIRECTORIES",
        "GIT_NAMESPACE",
        "GIT_EXTERNAL_DIFF",
        "GIT_TRACE",
    ],
)
def test_variables_of_a_hook_do_not_change_our_commit(repository, monkeypatch, tmp_path, name):
    """As inside the hook of another repository, or with direnv."""
    monkeypatch.setattr(log_lines, "PACKAGE", repository / "chatgot")
    commit = git(repository, "rev-parse", "--short=12", "HEAD")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    monkeypatch.setenv(name, str(other / ".git" / "index"))
    assert git_commit() == commit


def test_a_checkout_unpacked_inside_another_repository_has_no_commit(repository, monkeypatch):
    """An archive has no .git: git would find the one of the folder above."""
    unpacked = repository / "ChatGoT-main"
    (unpacked / "chatgot").mkdir(parents=True)
    monkeypatch.setattr(log_lines, "PACKAGE", unpacked / "chatgot")
    assert git_commit() is None


def test_another_repository_that_git_is_told_to_use_is_not_taken(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setattr(log_lines, "PACKAGE", tmp_path / "elsewhere" / "chatgot")
    assert git_commit() is None
