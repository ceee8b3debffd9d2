"""A run killed at any moment goes on from its last whole file and ends in the same bits."""

import random
import shutil
import signal
from pathlib import Path

import fault_trials
import pytest
from fault_server import FaultServer, Outcome
from fault_trials import BOTH_WAYS, STEPS, Hooks, Reference, files, go_on, resumed_from, start, way

from chatgot.checkpointing.checkpoint_file import is_whole

pytestmark = pytest.mark.slow  # `make faults` has them, with LEVEL=ci too

# the deterministic trials die in this save: older files exist, and retention removes one of them
SAVE = 3


def die_and_go_on(
    server: FaultServer,
    reference: Reference,
    folder: Path,
    hooks: Hooks,
    mutant: Hooks = (),
    **keywords: float | None,
) -> tuple[Outcome, str | None]:
    """Run with a fault, then resume; return (outcome of the first run, what was lost)."""
    outcome = start(server, folder, [*mutant, *hooks], **keywords)
    if outcome.exit_code == 0:  # the run ended before the kill
        return outcome, reference.lost(folder)
    torn = [path.name for path in files(folder).values() if not is_whole(path)]
    if torn:
        return outcome, f"broken under a final name: {torn}"
    newest = max(files(folder), default=0)
    promised = fault_trials.promised(folder)
    if newest < promised:
        return outcome, f"step {promised} was saved, the newest file is of step {newest}"
    steps_before = (folder / "steps.jsonl").read_bytes() if newest == STEPS else b""
    resumed = go_on(server, folder, list(mutant))
    if resumed.exit_code != 0:
        return outcome, f"does not resume: exit {resumed.exit_code}: {resumed.said[-500:]}"
    if newest == STEPS and (folder / "steps.jsonl").read_bytes() != steps_before:
        return outcome, f"trained on though it was finished: {resumed.said[:2000]}"
    if 0 < newest < STEPS and resumed_from(folder) != newest:
        return outcome, f"not resumed from step {newest}: {resumed.said[:2000]}"
    left = list((folder / "checkpoints").glob(".*.tmp"))
    if newest > 0 and left:
        return outcome, reference.lost(folder) or f"left behind: {left}"
    return outcome, reference.lost(folder)


@pytest.fixture
def calls(server, trial_folder) -> list[str]:
    """The names of the file-system calls of one save, from a run that does not die."""
    outcome = start(server, trial_folder("dry"), [("count_calls", {"save": SAVE})])
    assert outcome.exit_code == 0, outcome.said
    assert {"open", "fsync", "os.rename", "os.remove"} <= set(outcome.fired)
    return outcome.fired


@pytest.fixture
def size(server, trial_folder) -> int:
    """The size of one checkpoint in bytes."""
    folder = trial_folder("dry")
    assert start(server, folder, [("chain", {"saves": SAVE})]).fired
    return files(folder)[2 * SAVE].stat().st_size


@BOTH_WAYS
def test_a_run_killed_at_any_file_system_call_of_a_save_loses_nothing(
    side_by_side, reference, trial_folder, trials, table, calls, background
):
    n = trials(2, 6, 99) if background else trials(6, 99, 99)
    chosen = fault_trials.spread(n, len(calls))

    def one(server, call):
        folder = trial_folder(f"call{call}")
        hooks = [("die_at_call", {"save": SAVE, "call": call + 1})]
        outcome, lost = die_and_go_on(server, reference, folder, hooks)
        shutil.rmtree(folder)
        return outcome, lost

    fault = f"SIGKILL before each file-system call of a save{way(background)}"
    for outcome, lost in side_by_side(one, chosen):
        table.add(fault, len(outcome.fired), lost is not None)
        assert outcome.exit_code == -signal.SIGKILL, outcome.said
        assert len(outcome.fired) == 1
        assert lost is None


@BOTH_WAYS
def test_a_run_killed_at_any_byte_of_a_save_loses_nothing(
    side_by_side, reference, trial_folder, trials, table, size, background
):
    def one(server, byte):
        folder = trial_folder(f"byte{byte}")
        hooks = [("die_at_byte", {"save": SAVE, "byte": byte})]
        outcome, lost = die_and_go_on(server, reference, folder, hooks)
        shutil.rmtree(folder)
        return outcome, lost

    n = trials(1, 3, 100) if background else trials(4, 40, 200)
    chosen = [1, size - 65, size - 64, size - 1, *(size * i // n for i in range(n))]
    killed_by = signal.SIGKILL if background else signal.SIGXFSZ
    for outcome, lost in side_by_side(one, chosen):
        fault = f"SIGKILL at a byte of a save's file{way(background)}"
        table.add(fault, len(outcome.fired), lost is not None)
        assert outcome.exit_code == -killed_by, outcome.said
        assert len(outcome.fired) == 1
        assert lost is None


@BOTH_WAYS
def test_a_run_killed_at_random_loses_nothing(
    side_by_side, reference, trial_folder, trials, table, background
):
    rng = random.Random(20)
    wanted = trials(5, 5, 250) if background else trials(5, 50, 500)
    killed = []

    def one(server, item):
        i, moment = item
        folder = trial_folder(f"random{i}")
        outcome, lost = die_and_go_on(server, reference, folder, [], kill_after_s=moment)
        shutil.rmtree(folder)
        return outcome, lost

    for batch in range(0, 3 * wanted, 10):  # runs that end before their kill do not count
        moments = [(batch + i, rng.random() * reference.wall_s) for i in range(min(10, wanted))]
        for outcome, lost in side_by_side(one, moments):
            hit = outcome.exit_code == -signal.SIGKILL
            fault = f"SIGKILL at a random moment of a run{way(background)}"
            table.add(fault, hit, lost is not None)
            if hit:
                killed.append(outcome.phase)
                if outcome.phase == "save":
                    table.add("  of these inside a save", 1, lost is not None)
            assert lost is None
        if len(killed) >= wanted and killed.count("save") >= 0.2 * wanted:
            return
    in_saves = killed.count("save")
    pytest.fail(f"only {len(killed)} kills came in time, {in_saves} of them inside a save")


@pytest.mark.slow
@pytest.mark.telling
@BOTH_WAYS
def test_a_run_killed_again_and_again_still_reaches_its_end(
    side_by_side, reference, trial_folder, trials, table, background
):
    def one(server, seed):
        rng = random.Random(seed)
        generations = 0
        reached = [0]
        folder = trial_folder(f"chain{seed}", training={"save_checkpoint_steps": 1})
        hooks = [("chain", {"saves": 1})]
        outcome = start(server, folder, hooks)
        while outcome.exit_code == -signal.SIGKILL:
            generations += 1
            reached.append(max(files(folder), default=0))
            assert generations < 60
            if rng.random() < 0.4:  # it dies before its first save: nothing may be lost
                when = rng.random() * 0.2 * reference.wall_s
                outcome = go_on(server, folder, [], kill_after_s=when)
            else:
                outcome = go_on(server, folder, hooks)
        assert outcome.exit_code == 0, outcome.said
        return generations, reached, reference.lost(folder)

    fault = f"SIGKILL again after each save and resume{way(background)}"
    n = trials(1, 1, 5) if background else trials(1, 2, 10)
    for generations, reached, lost in side_by_side(one, list(range(n))):
        table.add(fault, generations, lost is not None, generations)
        assert generations >= 20
        assert reached == sorted(reached)
        assert lost is None


@pytest.mark.telling({"phase": "save"})
@BOTH_WAYS
@pytest.mark.parametrize("how", ["segmentation fault", "exit from a thread"])
@pytest.mark.parametrize(
    "phase", ["save", *(pytest.param(p, marks=pytest.mark.slow) for p in ("step", "sample"))]
)
def test_a_crash_of_the_interpreter_damages_no_file(
    server, reference, trial_folder, table, phase, how
):
    folder = trial_folder("crash")
    hooks = [("die_in_phase", {"phase": phase, "nth": 3, "how": how})]
    outcome, lost = die_and_go_on(server, reference, folder, hooks)
    table.add("segmentation fault, _exit in a thread", len(outcome.fired), lost is not None)
    assert outcome.fired == [how]
    assert lost is None
    if how == "segmentation fault":
        assert outcome.exit_code == -signal.SIGSEGV
        (trace,) = (folder / "logs" / "tensorboard").glob("*/crash.txt")
        assert "Segmentation fault" in trace.read_text()
        assert "train_with_samples" in trace.read_text()
    else:
        assert outcome.exit_code == 77


# Mutants: the same trials must find what is broken


def test_a_saver_that_writes_directly_to_the_final_name_is_caught(
    server, reference, trial_folder, table
):
    hooks = [("die_at_byte", {"save": SAVE, "byte": 60_000})]
    mutant = [("mutant_naive_save", {})]
    outcome, lost = die_and_go_on(server, reference, trial_folder("m"), hooks, mutant)
    assert outcome.fired
    assert "broken" in lost
    table.add("mutant: writes straight to the final name", 1, 1)


def test_a_saver_that_removes_old_files_first_is_caught(server, reference, trial_folder, table):
    hooks = [("die_at_byte", {"save": SAVE, "byte": 60_000})]
    mutant = [("mutant_forgetful", {})]
    outcome, lost = die_and_go_on(server, reference, trial_folder("m"), hooks, mutant)
    assert outcome.fired
    assert lost == "step 4 was saved, the newest file is of step 0"
    table.add("mutant: removes old files before it saves", 1, 1)


@pytest.mark.parametrize("background", [True])
def test_a_save_that_counts_before_its_file_is_there_is_caught(
    server, reference, trial_folder, table
):
    hooks = [("die_at_byte", {"save": SAVE, "byte": 60_000})]
    mutant = [("slow_thread", {"seconds": 0.1}), ("mutant_hasty", {})]
    outcome, lost = die_and_go_on(server, reference, trial_folder("m"), hooks, mutant)
    assert outcome.fired
    assert "was saved, the newest file is of step" in lost
    table.add("mutant: counts a save in the background too early", 1, 1)


@pytest.mark.parametrize("background", [True])
def test_a_save_of_tensors_that_the_next_steps_change_is_caught(
    server, reference, trial_folder, table
):
    hooks = [("chain", {"saves": SAVE})]
    mutant = [("slow_thread", {"seconds": 0.1}), ("mutant_no_copy", {})]
    outcome, lost = die_and_go_on(server, reference, trial_folder("m"), hooks, mutant)
    assert outcome.fired
    assert "other data, losses or norms" in lost
    table.add("mutant: writes the state itself in the background", 1, 1)


@pytest.mark.parametrize("mutant", ["mutant_no_rng", "mutant_no_position", "mutant_no_optimizer"])
def test_a_resume_that_forgets_a_part_of_the_state_is_caught(
    server, reference, trial_folder, table, mutant
):
    folder = trial_folder("m")
    hooks = [(mutant, {})]
    if mutant == "mutant_no_rng":  # this mutant needs its own undisturbed run
        assert start(server, folder, hooks).exit_code == 0
        final = fault_trials.final_hash(files(folder)[STEPS])
        reference = Reference(folder, final, fault_trials.read_steps(folder), wall_s=0.0)
        folder = trial_folder("m2")
    outcome, lost = die_and_go_on(server, reference, folder, [("chain", {"saves": 5})], hooks)
    assert outcome.fired
    assert "other data, losses or norms" in lost
    table.add(f"mutant: {mutant.removeprefix('mutant_').replace('_', ' ')} on resume", 1, 1)
