"""A full, slow, broken or missing disk costs a warning but no file; if it stays so: exit 5."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest
from fault_trials import BOTH_WAYS, STEPS, TINY, files, go_on, new_folder, start, way

from chatgot.checkpointing.checkpoint_file import is_whole

pytestmark = pytest.mark.slow  # `make faults` has them, with LEVEL=ci too


def failed_saves(folder: Path, reason: str) -> int:
    """Return the number of warnings that name a checkpoint and the system's reason."""
    warnings = harness.events(folder, "warning", level="WARNING")
    return sum("_step_" in event["text"] and reason in event["text"] for event in warnings)


@BOTH_WAYS
def test_a_disk_full_at_any_byte_of_a_save_costs_one_warning(
    side_by_side, reference, trial_folder, trials, table, background
):
    size = max(path.stat().st_size for path in files(reference.folder).values())
    n = trials(2, 3, 50) if background else trials(4, 20, 100)

    def one(server, byte):
        folder = trial_folder(f"full{byte}")
        outcome = start(server, folder, [("file_limit", {"byte": byte, "saves": [3]})])
        lost = reference.lost(folder)
        left = list((folder / "checkpoints").glob(".*.tmp"))
        failed = failed_saves(folder, os.strerror(errno.EFBIG))
        shutil.rmtree(folder)
        return outcome, lost, left, failed

    chosen = [0, 1, *(size * i // n for i in range(1, n))]
    for outcome, lost, left, failed in side_by_side(one, chosen):
        fault = f"disk full at a byte of one save{way(background)}"
        table.add(fault, len(outcome.fired), lost is not None)
        assert outcome.exit_code == 0, outcome.said
        assert failed == 1
        assert (lost, left) == (None, [])


@pytest.mark.telling({"byte": 100_000})
@BOTH_WAYS
@pytest.mark.parametrize("byte", [0, 100_000])
def test_three_failed_saves_in_a_row_are_exit_5(
    server, reference, trial_folder, table, byte, background
):
    """The run can be resumed when there is space again."""
    folder = trial_folder("full")
    outcome = start(server, folder, [("file_limit", {"byte": byte, "saves": [3, 4, 5]})])
    assert outcome.exit_code == 5, outcome.said
    assert failed_saves(folder, os.strerror(errno.EFBIG)) == 2
    assert "3 saves in a row failed" in outcome.said
    assert sorted(files(folder)) == [2, 4]
    assert go_on(server, folder).exit_code == 0
    lost = reference.lost(folder)
    fault = f"disk full for three saves, then room{way(background)}"
    table.add(fault, len(outcome.fired) // 3, lost is not None)
    assert lost is None


@pytest.mark.telling(
    {"call": "fsync", "saves": [2]},
    {"call": "open", "saves": [2]},
    {"number": "EROFS", "saves": [2, 3, 4]},
)
@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("fsync", "EIO"),
        ("replace", "EROFS"),
        ("replace", "EACCES"),
        ("fchmod", "EIO"),
        ("open", "EMFILE"),
    ],
)
@pytest.mark.parametrize("saves", [pytest.param([2], marks=pytest.mark.slow), [2, 3, 4]])
@BOTH_WAYS
def test_a_failing_system_call_in_a_save_costs_a_warning_or_exit_5(
    server, reference, trial_folder, table, call, number, saves, background
):
    folder = trial_folder("failing")
    hooks = [("failing_call", {"call": call, "number": number, "saves": saves})]
    outcome = start(server, folder, hooks)
    assert outcome.fired
    assert all(is_whole(path) for path in files(folder).values())
    assert list((folder / "checkpoints").glob(".*.tmp")) == []
    if len(saves) == 3:
        assert outcome.exit_code == 5, outcome.said
        assert 2 in files(folder)
        assert go_on(server, folder).exit_code == 0
    else:
        assert outcome.exit_code == 0, outcome.said
    lost = reference.lost(folder)
    table.add(f"fsync, rename, chmod or open fails{way(background)}", 1, lost is not None)
    assert lost is None


@pytest.mark.telling({"back_at": None})
@BOTH_WAYS
@pytest.mark.parametrize("back_at", [5, None])
def test_a_folder_that_is_moved_away_costs_warnings_or_exit_5(
    server, reference, trial_folder, table, back_at, background
):
    folder = trial_folder("moved")
    outcome = start(server, folder, [("move_folder", {"save": 3, "back_at": back_at})])
    assert outcome.fired == ["moved"]
    if back_at is None:
        assert outcome.exit_code == 5, outcome.said
        (folder / "moved").rename(folder / "checkpoints")
        assert go_on(server, folder).exit_code == 0
    else:
        assert outcome.exit_code == 0, outcome.said
    lost = reference.lost(folder)
    table.add(f"the folder is moved away{way(background)}", 1, lost is not None)
    assert lost is None


# On separate file systems


@pytest.fixture
def mounted(tmp_path):
    """Run the script in its own namespace, with something mounted over one of its folders."""
    probe = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip("this machine does not let users mount a small disk (unshare -Urm)")
    folder = new_folder(tmp_path, "mounted")

    def run(mount: str, save_out: str, *arguments: str) -> subprocess.CompletedProcess:
        for name in ("checkpoints", "logs", "out"):
            (folder / name).mkdir(exist_ok=True)
        script = f"""{mount} && {{ "$@"; code=$?; cp -r {save_out}/. out/; exit $code; }}"""
        command = [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml", *arguments]
        command = ["unshare", "-Urm", "sh", "-c", script, "sh", *command]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
        )

    run.folder = folder
    return run


@BOTH_WAYS
def test_a_small_disk_that_fills_up_is_exit_5_and_the_run_resumes(
    mounted, server, reference, table, background
):
    size = max(path.stat().st_size for path in files(reference.folder).values())
    mount = f"mount -t tmpfs -o size={int(2.5 * size)} none checkpoints"
    done = mounted(mount, "checkpoints", "--set", f"training.background_saves={background}")
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("No space left on device") == 3
    folder = mounted.folder
    shutil.copytree(folder / "out", folder / "checkpoints", dirs_exist_ok=True)
    assert sorted(files(folder)) == [2, 4]
    assert all(is_whole(path) for path in files(folder).values())
    shutil.copy(reference.folder / "steps.jsonl", folder)  # the first run did not write the file
    assert go_on(server, folder).exit_code == 0
    lost = reference.lost(folder)
    fault = f"a disk of 2.5 checkpoints fills up (ENOSPC){way(background)}"
    table.add(fault, 1, lost is not None)
    assert lost is None


def test_a_full_disk_for_logs_and_curves_does_not_disturb_training(mounted, reference, table):
    done = mounted("mount -t tmpfs -o size=16k none logs", "logs")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr
    shutil.copy(reference.folder / "steps.jsonl", mounted.folder)
    lost = reference.lost(mounted.folder)
    table.add("no room for logs and curves", 1, lost is not None)
    assert lost is None


def test_a_read_only_folder_is_exit_5_before_anything_is_computed(mounted, table):
    start_s = time.monotonic()
    mount = "mount --bind checkpoints checkpoints && mount -o remount,ro,bind checkpoints"
    done = mounted(mount, "logs")
    table.add("read-only folder", 1, done.returncode != 5)
    assert done.returncode == 5, done.stderr
    assert time.monotonic() - start_s < 20
    assert "checkpoints: cannot be written: Read-only file system" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert files(mounted.folder) == {}


# Faults that must not disturb training


@pytest.mark.parametrize("kind", ["ValueError", "MemoryError"])
def test_a_sample_that_fails_is_one_warning_and_changes_no_bit(
    server, reference, trial_folder, table, kind
):
    folder = trial_folder("sample")
    outcome = start(server, folder, [("raising", {"phase": "sample", "nth": 2, "kind": kind})])
    assert outcome.fired == [f"{kind} in a sample"]
    assert outcome.exit_code == 0, outcome.said
    assert outcome.said.count("a made-up defect") == 1
    assert "sampling failed 1 times" in outcome.said
    lost = reference.lost(folder)
    table.add("an exception while sampling", 1, lost is not None)
    assert lost is None


@BOTH_WAYS
def test_out_of_memory_in_a_save_is_a_failed_save(
    server, reference, trial_folder, table, background
):
    folder = trial_folder("memory")
    hooks = [("raising", {"phase": "save", "nth": 2, "kind": "MemoryError"})]
    outcome = start(server, folder, hooks)
    assert outcome.fired == ["MemoryError in a save"]
    assert outcome.exit_code == 0, outcome.said
    assert failed_saves(folder, "a made-up defect") == 1
    lost = reference.lost(folder)
    table.add(f"out of memory in a save{way(background)}", 1, lost is not None)
    assert lost is None


def test_a_saver_without_a_temporary_file_is_caught_by_a_full_disk(
    server, reference, trial_folder, table
):
    folder = trial_folder("mutant")
    hooks = [("mutant_naive_save", {}), ("file_limit", {"byte": 100_000, "saves": [12]})]
    outcome = start(server, folder, hooks)
    broken = [path for path in files(folder).values() if not is_whole(path)]
    table.add("mutant: no temporary file, disk full", len(outcome.fired), len(broken))
    assert outcome.fired
    assert broken


@BOTH_WAYS
def test_a_slow_disk_costs_one_warning_with_a_better_interval(
    server, reference, trial_folder, table, background
):
    """In the background too, if the next save is due before the disk has written the last one."""
    folder = trial_folder("slow")
    outcome = start(server, folder, [("slow_disk", {"seconds": 0.05})])
    lost = reference.lost(folder)
    fault = f"each fsync takes 50 ms longer{way(background)}"
    table.add(fault, len(outcome.fired), lost is not None)
    assert outcome.exit_code == 0, outcome.said
    assert harness.warnings(folder).count("training.save_checkpoint_steps=") == 1
    assert outcome.said.count("is still being written") == background
    assert lost is None


CLOCK = {
    "save_checkpoint_steps": None,
    "checkpoint_interval_minutes": 0.5,
    "sample_interval_minutes": 0.5,
    "sample_interval_steps": None,
}


def train_while_the_clock_jumps(server, folder, seconds, mutant=()) -> bool:
    """Return whether the run saved and sampled as if the clock had not jumped.

    That is: it saved at its best evaluations, and sampled only at the end.
    """
    hooks = [*mutant, ("turn_the_clock", {"seconds": seconds, "at_step": 5})]
    outcome = start(server, folder, hooks)
    assert (outcome.exit_code, outcome.fired) == (0, ["clock turned"]), outcome.said
    saves = [event["step"] for event in harness.events(folder, "save")]
    firsts = [sample for sample in harness.samples(folder) if sample["index"] == 1]
    return saves == [8, 16, 24] and len(firsts) == 1


@pytest.mark.parametrize(
    "seconds",
    [
        -86400,
        pytest.param(3600, marks=pytest.mark.slow),
        pytest.param(1_700_000_000, marks=pytest.mark.slow),
    ],
)
def test_a_clock_that_jumps_changes_nothing(server, reference, trial_folder, table, seconds):
    folder = trial_folder("clock", training=CLOCK)
    undisturbed = train_while_the_clock_jumps(server, folder, seconds)
    lost = reference.lost(folder)
    disturbed = not undisturbed or lost is not None
    table.add("the clock jumps: an hour, a day, to 1970", 1, disturbed)
    assert undisturbed
    assert lost is None


def test_intervals_by_the_wall_clock_are_caught(server, trial_folder, table):
    folder = trial_folder("clock", training=CLOCK)
    mutant = [("mutant_wall_clock", {})]
    undisturbed = train_while_the_clock_jumps(server, folder, -86400, mutant)
    table.add("mutant: intervals by the wall clock", 1, not undisturbed)
    assert not undisturbed


def test_a_clock_turned_back_before_the_resume_changes_nothing(
    server, reference, trial_folder, table
):
    folder = trial_folder("clock")
    assert start(server, folder, [("chain", {"saves": 5})]).fired
    (run_id,) = {path.name.partition("_step_")[0] for path in files(folder).values()}
    outcome = go_on(server, folder, [("turn_the_clock", {"seconds": 40_000_000, "at_step": 0})])
    assert (outcome.exit_code, outcome.fired) == (0, ["clock turned"])
    lost = reference.lost(folder)
    table.add("the clock goes back a year before the resume", 1, lost is not None)
    assert lost is None
    assert {path.name.partition("_step_")[0] for path in files(folder).values()} == {run_id}


def test_a_second_process_on_a_live_run_is_refused(tmp_path, table):
    """The first process ends undisturbed."""
    folder = tmp_path
    longer = {"training": {"max_steps": 60, "log_interval": 40, "sample_interval_steps": None}}
    harness.write_config(folder, **harness.merged(TINY, longer))
    first = subprocess.Popen(
        [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    while not files(folder):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # the first one stays alive while the second one tries
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    second = harness.run_script(folder, "--config", "tiny.yaml", "--resume_from", "latest")
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before
    first.send_signal(signal.SIGCONT)
    table.add("a second process on a living run", 1, second.returncode != 5)
    assert second.returncode == 5, second.stderr
    assert "still being trained by another process" in second.stderr
    assert first.wait(timeout=120) == 0
    assert 60 in files(folder)


def test_the_undisturbed_run_is_whole(reference):
    assert sorted(files(reference.folder))[-3:] == [STEPS - 4, STEPS - 2, STEPS]
    assert list(reference.steps) == list(range(1, STEPS + 1))
