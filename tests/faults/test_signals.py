"""A first signal lets a run end its step and save, a second ends it at once; no file is damaged."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import pytest
from fault_trials import STEPS, files, go_on, start, way

from chatgot.checkpointing.checkpoint_file import is_whole

pytestmark = pytest.mark.slow  # `make faults` has them, with LEVEL=ci too
PHASES = ["step", "save", "sample", "evaluate", "last evaluation"]
SIGNALS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 143}
TWICE = [["SIGINT", "SIGINT"], ["SIGINT", "SIGINT", "SIGINT"], ["SIGTERM", "SIGINT"]]


# In the background, which phase it is matters less: the thread writes beside any of them
ONE_SIGNAL = [
    *((phase, name, False) for phase in PHASES for name in SIGNALS),
    *(
        pytest.param(phase, name, True, id=f"{phase}-{name}-background")
        for phase in PHASES
        for name in SIGNALS
        if phase == "save" or name == "SIGTERM"
    ),
]
TWO_SIGNALS = [
    *((phase, names, False) for phase in PHASES for names in TWICE),
    *(
        pytest.param(phase, names, True, id=f"{phase}-{'-'.join(names)}-background")
        for phase in ("step", "save")
        for names in TWICE
    ),
]


def hook(phase: str, names: list[str], **keywords: Any) -> tuple[str, dict[str, Any]]:
    """Return the hook that sends signals in the third call of a phase.

    The last evaluation is the fourth one, after those at steps 0, 8 and 16.
    """
    place = {"phase": phase, "nth": 3}
    if phase == "last evaluation":
        place = {"phase": "evaluate", "nth": 4}
    return "signals", {**place, "names": names, **keywords}


def all_files(folder: Path) -> dict[Path, bytes]:
    """Return all files of a trial except the output of the script."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "said.txt"]
    return {path: path.read_bytes() for path in paths}


def checkpoint_bytes(folder: Path) -> dict[int, bytes]:
    return {step: path.read_bytes() for step, path in files(folder).items()}


@pytest.mark.telling(
    {"phase": "step", "name": "SIGTERM"},
    {"phase": "save", "name": "SIGTERM"},
    {"phase": "last evaluation", "name": "SIGTERM"},
)
@pytest.mark.parametrize(("phase", "name", "background"), ONE_SIGNAL)
def test_a_signal_in_any_phase_saves_the_run_and_it_resumes_exactly(
    server, reference, trial_folder, table, phase, name, background
):
    folder = trial_folder("stopped")
    outcome = start(server, folder, [hook(phase, [name])])
    assert outcome.fired == [name]
    assert outcome.exit_code == SIGNALS[name], outcome.said
    assert len(harness.events(folder, "stop", signal=name)) == 1
    reached = max(files(folder))
    assert (reached == STEPS) is (phase == "last evaluation")
    assert outcome.wall_s < 10
    assert len(harness.events(folder, "save", step=reached)) == 1  # not saved twice
    resumed = go_on(server, folder)
    assert resumed.exit_code == 0, resumed.said
    lost = reference.lost(folder)
    table.add(f"{name} in step, save, sample, evaluation{way(background)}", 1, lost is not None)
    assert lost is None
    evaluations = harness.events(folder, "evaluation")
    assert sum(event["val_loss_full"] is not None for event in evaluations) == 1
    finished = all_files(folder)
    assert go_on(server, folder).exit_code == 0
    assert all_files(folder) == finished


def test_a_run_that_ends_at_a_signal_without_a_save_is_caught(server, trial_folder, table):
    folder = trial_folder("deaf")
    outcome = start(server, folder, [("mutant_deaf", {}), hook("step", ["SIGTERM"])])
    assert (outcome.fired, outcome.exit_code) == (["SIGTERM"], 143)
    stopped = max(files(folder), default=0)
    table.add("mutant: ends at a signal without a save", 1, stopped == 2)
    assert stopped == 2  # the real script saves step 3


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_before_the_first_step_saves_nothing(
    server, reference, trial_folder, table, name, code
):
    """The file that was loaded stays as it is."""
    folder = trial_folder("early")
    early = [("signals", {"phase": "before the first step", "nth": 1, "names": [name]})]
    outcome = start(server, folder, early)
    assert (outcome.fired, outcome.exit_code) == ([name], code), outcome.said
    assert files(folder) == {}
    assert start(server, folder, [("chain", {"saves": 3})]).fired
    before = checkpoint_bytes(folder)
    outcome = go_on(server, folder, early)
    assert (outcome.fired, outcome.exit_code) == ([name], code), outcome.said
    assert checkpoint_bytes(folder) == before
    assert go_on(server, folder).exit_code == 0
    lost = reference.lost(folder)
    table.add("signal before the first step", 1, lost is not None)
    assert lost is None


@pytest.mark.telling({"phase": "save", "names": TWICE[0]}, {"phase": "step", "names": TWICE[2]})
@pytest.mark.parametrize(("phase", "names", "background"), TWO_SIGNALS)
def test_a_second_signal_ends_the_run_at_once_and_damages_no_file(
    server, reference, trial_folder, table, phase, names, background
):
    folder = trial_folder("insisted")
    outcome = start(server, folder, [hook(phase, names, gap_s=0.005)])
    assert outcome.fired == names[:2]  # the process is gone before the third signal
    assert outcome.exit_code == 130, outcome.said
    assert all(is_whole(path) for path in files(folder).values())
    assert go_on(server, folder).exit_code == 0
    lost = reference.lost(folder)
    table.add(f"SIGINT twice, 5 ms apart{way(background)}", 1, lost is not None)
    assert lost is None


def test_a_closed_stdout_and_stderr_do_not_stop_training(tmp_path, table):
    harness.write_config(tmp_path)
    command = f"{sys.executable} {harness.SCRIPT} --config tiny.yaml 2>&1 | head -1"
    command += "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    table.add("stdout closed (| head -1)", 1, done.returncode != 0)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert 12 in files(tmp_path)


def test_a_stopped_and_continued_process_goes_on(tmp_path, table):
    harness.write_config(tmp_path, training={"max_steps": 40, "save_checkpoint_steps": 1})
    process = subprocess.Popen(
        [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    while not files(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    reached = max(files(tmp_path))
    time.sleep(0.3)
    assert max(files(tmp_path)) == reached < 40
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 0
    table.add("SIGSTOP, SIGCONT", 1, 40 not in files(tmp_path))
    assert 40 in files(tmp_path)
