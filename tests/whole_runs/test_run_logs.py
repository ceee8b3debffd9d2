"""Logs and curves of whole runs lose nothing: rotated, resumed, on odd consoles and full disks."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import terminal
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chatgot.run import folder as folder_module

HEAD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - (DEBUG|INFO|WARNING|ERROR|CRITICAL) - ")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STRANGE = "é → 🐉 \x1b[31m"
QUIET = {"save_checkpoint_steps": 100, "checkpoint_interval_minutes": None}


def train(
    folder: Path,
    *arguments: str,
    max_bytes: int = 10_000_000,
    stop_at: int | None = None,
    act: Callable[[int], None] | None = None,
) -> int:
    """Train in this process; return the exit code.

    max_bytes: of a part of the log. A SIGTERM comes after step `stop_at`.
    act: called with the step after each one.
    """
    script = harness.load_script()
    real_update = script.update_weights
    real_setup = folder_module.setup_logging
    threads = torch.get_num_threads()

    def update_weights(run, loss):
        updated = real_update(run, loss)
        step = run.state.progress.global_step
        if act:
            act(step)
        if step == stop_at:
            script.STOP.exit_code = 143
            script.STOP.signal_name = "SIGTERM"
        return updated

    script.update_weights = update_weights
    folder_module.setup_logging = partial(real_setup, max_bytes=max_bytes)
    try:
        with contextlib.chdir(folder):
            return script.main(["--config", "tiny.yaml", *arguments])
    finally:
        folder_module.setup_logging = real_setup
        torch.set_num_threads(threads)


def final_state(folder: Path) -> dict[str, Any]:
    files = harness.checkpoints(folder)
    content = harness.load(files[max(files)])
    return {key: content[key] for key in ("model_state_dict", "optimizer_state_dict", "rng")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    harness.write_config(folder, training=QUIET)
    assert train(folder) == 0
    return folder


def test_a_rotated_and_resumed_run_has_its_whole_log_next_to_the_curves(tmp_path):
    """The log has five rotations or more, and one resume."""
    steps = 80
    keys = QUIET | {"max_steps": steps, "save_checkpoint_steps": 40}
    harness.write_config(tmp_path, training=keys)
    assert train(tmp_path, max_bytes=6000, stop_at=30) == 143
    assert train(tmp_path, "--resume_from", "latest", max_bytes=6000) == 0
    run_dir = harness.run_dir(tmp_path)
    (log,) = (tmp_path / "logs").glob("train_*.log")
    parts_of_log = [log, *(log.with_name(f"{log.name}.{i}") for i in range(1, 6))]
    assert all(part.is_file() for part in parts_of_log)
    for part in parts_of_log:
        link = run_dir / ("training.log" + part.name.removeprefix(log.name))
        assert link.read_text(encoding="utf-8") == part.read_text(encoding="utf-8")
        lines = part.read_text(encoding="utf-8").splitlines()
        heads = [HEAD.sub("", line).split(" ")[0].rstrip(":") for line in lines[:11]]
        assert heads[:6] == ["run", "command", "commit", "checkpoints", "log", "versions"]
        assert "configuration" in heads
    (end,) = harness.events(tmp_path, "done", global_step=steps)
    # the last lines may begin a part of their own
    newest = [part.read_text(encoding="utf-8") for part in parts_of_log[:2]]
    assert any(end["text"] in text for text in newest)
    steps_logged = [row["step"] for row in harness.rows(tmp_path)]
    assert steps_logged == list(range(steps + 1))
    curves = EventAccumulator(str(run_dir)).Reload()
    assert [point.step for point in curves.Scalars("train/loss")] == list(range(1, steps + 1))
    evaluated = [point.step for point in curves.Scalars("val/loss")]
    assert len(evaluated) == len(set(evaluated))


@pytest.mark.parametrize("encoding", ["ascii", *harness.slow("cp1252", "utf-8")])
def test_a_console_that_lacks_characters_does_not_disturb_a_run(tmp_path, encoding):
    """A prompt with a terminal's escape sequence does no harm either."""
    text = harness.make_text(4000) + STRANGE * 20 + harness.make_text(2000, seed=3)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    keys = QUIET | {"max_steps": 2}
    harness.write_config(tmp_path, training=keys, sampling={"prompts": [STRANGE]})
    done = subprocess.run(
        [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    log = harness.log_of(tmp_path)
    assert {sample["prompt"] for sample in harness.samples(tmp_path)} >= {STRANGE}
    assert rb"\x1b[31m" in done.stderr
    for output in (done.stderr, done.stdout, log.encode()):
        assert b"\x1b" not in output
    assert "é → 🐉" in log
    assert r"\x1b[31m" in log


def test_a_terminal_shows_colours_and_a_bar_but_the_log_has_neither(tmp_path):
    harness.write_config(tmp_path, training=QUIET | {"max_steps": 6, "log_interval": 2})
    environment = os.environ | {"TERM": "xterm"}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml"]
    received, _ = terminal.run_on_terminal(command, tmp_path, environment)
    assert b"\x1b[32m" in received  # green, for INFO
    assert b"12x1" in received or b"4x3" in received  # the bar
    (log,) = (tmp_path / "logs").glob("train_*.log")
    content = log.read_bytes()
    assert b"\x1b" not in content
    assert b"\r" not in content
    screen = COLOUR.sub("", received.decode().replace("\r\n", "\n"))
    shown = {line.rpartition("\r")[2] for line in screen.split("\n")}
    records = [line for line in content.decode().splitlines() if " - INFO - " in line]
    assert len(records) > 3
    for record in records:  # each begins its line: no bar before it
        time_of_day = record[11:19]  # a terminal shows neither the date nor INFO
        assert f"{time_of_day} {HEAD.sub('', record)}" in shown


def test_a_log_deleted_during_a_run_is_started_anew_and_changes_no_bit(tmp_path, undisturbed):
    """The new log has the header."""
    harness.write_config(tmp_path, training=QUIET)
    deleted = []

    def delete(step: int) -> None:
        if step == 5:
            for path in (tmp_path / "logs").glob("train_*.log"):
                path.unlink()
                deleted.append(path)

    assert train(tmp_path, act=delete) == 0
    assert deleted
    assert parts.same(final_state(tmp_path), final_state(undisturbed))
    assert harness.run_dir(tmp_path).name in harness.log_of(tmp_path).splitlines()[0]


@pytest.mark.parametrize("place", ["a file", "removed in mid-run"])
def test_an_unwritable_folder_of_curves_changes_no_bit(tmp_path, undisturbed, place):
    harness.write_config(tmp_path, training=QUIET)
    gone = []
    if place == "a file":
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "tensorboard").write_text("in the way")

    def remove(step: int) -> None:
        if step == 5 and place != "a file":
            shutil.rmtree(tmp_path / "logs" / "tensorboard")
            gone.append(step)

    assert train(tmp_path, act=remove) == 0
    assert gone or place == "a file"
    assert parts.same(final_state(tmp_path), final_state(undisturbed))
    assert " - WARNING - " in harness.log_of(tmp_path)


FULL = 'unshare -Urm bash -c \'mount -t tmpfs -o size=16k none logs && exec "$0" "$@"\' "$@"'


def test_a_full_disk_for_the_logs_changes_no_bit(tmp_path, undisturbed):
    harness.write_config(tmp_path, training=QUIET)
    (tmp_path / "logs").mkdir()
    probe = subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True)
    if probe.returncode != 0:
        pytest.skip("no user namespaces here")
    train_command = [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml"]
    done = subprocess.run(
        ["bash", "-c", FULL, "bash", *train_command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr  # the fault fired
    assert parts.same(final_state(tmp_path), final_state(undisturbed))
