"""Asked to stop, a run finishes its step, saves and says so; insisting ends it at once; neither harms a file."""

import signal
import subprocess
import sys
import time

import harness
import pytest
from fault_trials import STEPS, files, go_on, start

from chatgot.checkpointing.checkpoint_file import is_whole

PHASES = ["step", "save", "sample", "evaluate", "last evaluation"]
NTH = {
    "last evaluation": 4
}  # passes over batches: at steps 0, 8, 16, then over every validation token


def hook(phase: str, names: list[str], **keywords) -> tuple[str, dict]:
    nth, phase = NTH.get(phase, 3), "evaluate" if phase == "last evaluation" else phase
    return "signals", {"phase": phase, "nth": nth, "names": names, **keywords}


@pytest.mark.parametrize(
    ("phase", "name", "code"),
    [
        pytest.param(phase, name, code, marks=[] if name == "SIGTERM" else pytest.mark.slow)
        for phase in PHASES
        for name, code in (("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 143))
    ],
)
def test_a_signal_in_any_phase_stops_the_run_saved_and_it_resumes_exactly(
    server, reference, trial_folder, table, phase, name, code
):
    folder = trial_folder("stopped")
    outcome = start(server, folder, [hook(phase, [name])])
    assert outcome.fired == [name]
    assert outcome.exit_code == code, outcome.said
    assert f"stopped by {name}" in outcome.said
    reached = max(files(folder))
    assert (reached == STEPS) is (phase == "last evaluation")
    assert outcome.wall_s < 10
    assert outcome.said.count(f"step_{reached}.pt (") == 1  # not saved twice
    resumed = go_on(server, folder)
    assert resumed.exit_code == 0, resumed.said
    lost = reference.lost(folder)
    table.add(f"{name} in step, save, sample, evaluation", 1, lost is not None)
    assert lost is None
    assert resumed.said.count("val_loss_full") == 1
    final = {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "said.txt"
    }
    again = go_on(server, folder)  # finished means finished
    assert again.exit_code == 0
    assert "is finished at step 24" in again.said
    assert {path: path.read_bytes() for path in final} == final


def test_a_run_that_ends_at_a_signal_without_a_save_is_found_out(server, trial_folder, table):
    folder = trial_folder("deaf")
    outcome = start(server, folder, [("mutant_deaf", {}), hook("step", ["SIGTERM"])])
    assert (outcome.fired, outcome.exit_code) == (["SIGTERM"], 143)
    stopped = max(files(folder), default=0)
    table.add("mutant: ends at a signal without a save", 1, stopped == 2)
    assert stopped == 2  # the real one saves step 3


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_before_the_first_step_saves_nothing_and_leaves_what_was_loaded(
    server, reference, trial_folder, table, name, code
):
    folder = trial_folder("early")
    early = [("signals", {"phase": "before the first step", "nth": 1, "names": [name]})]
    outcome = start(server, folder, early)
    assert (outcome.fired, outcome.exit_code) == ([name], code), outcome.said
    assert files(folder) == {}
    assert start(server, folder, [("chain", {"saves": 3})]).fired
    before = {step: path.read_bytes() for step, path in files(folder).items()}
    outcome = go_on(server, folder, early)
    assert (outcome.fired, outcome.exit_code) == ([name], code), outcome.said
    assert {step: path.read_bytes() for step, path in files(folder).items()} == before
    assert go_on(server, folder).exit_code == 0
    lost = reference.lost(folder)
    table.add("signal before the first step", 1, lost is not None)
    assert lost is None


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "names",
    [
        ["SIGINT"] * 2,
        *(
            pytest.param(names, marks=pytest.mark.slow)
            for names in (["SIGINT"] * 3, ["SIGTERM", "SIGINT"])
        ),
    ],
)
def test_a_second_signal_ends_the_run_at_once_and_harms_no_file(
    server, reference, trial_folder, table, phase, names
):
    folder = trial_folder("insisted")
    outcome = start(server, folder, [hook(phase, names, gap_s=0.005)])
    assert outcome.fired == names[:2]  # the third one finds nobody
    assert outcome.exit_code == 130, outcome.said
    assert all(is_whole(path) for path in files(folder).values())
    assert go_on(server, folder).exit_code == 0
    lost = reference.lost(folder)
    table.add("SIGINT twice, 5 ms apart", 1, lost is not None)
    assert lost is None


def test_a_closed_stdout_and_stderr_do_not_stop_training(tmp_path, table):
    harness.write_config(tmp_path)
    command = f"{sys.executable} {harness.SCRIPT} --config tiny.yaml 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"
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
