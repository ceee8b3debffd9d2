"""Killed at any moment, a run comes back from its last whole checkpoint and ends in the bits of the undisturbed one."""

import random
import shutil
import signal

import fault_trials
import pytest
from fault_trials import STEPS, files, go_on, start

from chatgot.checkpointing.checkpoint_file import is_whole

SAVE = 3  # the save that the deterministic trials die in: there are older files, and retention removes one


def die_and_go_on(server, reference, folder, hooks, mutant=(), **keywords):
    """Run with a fault, then resume; return (how the first run ended, what was lost)."""
    outcome = start(server, folder, [*mutant, *hooks], **keywords)
    if outcome.exit_code == 0:  # the run was over before the kill
        return outcome, reference.lost(folder)
    torn = [path.name for path in files(folder).values() if not is_whole(path)]
    if torn:
        return outcome, f"broken under a final name: {torn}"
    newest, promised = max(files(folder), default=0), fault_trials.promised(folder)
    if newest < promised:
        return outcome, f"step {promised} was saved, the newest file is of step {newest}"
    resumed = go_on(server, folder, list(mutant))
    if resumed.exit_code != 0:
        return outcome, f"does not resume: exit {resumed.exit_code}: {resumed.said[-500:]}"
    from_newest = (
        "is finished at step" if newest == STEPS else f"_step_{newest}.pt at step {newest}\n"
    )
    if newest and from_newest not in resumed.said:
        return outcome, f"not resumed from step {newest}: {resumed.said[:2000]}"
    left = list((folder / "checkpoints").glob(".*.tmp")) if newest else []
    return outcome, reference.lost(folder) or (f"left behind: {left}" if left else None)


@pytest.fixture(scope="module")
def calls(servers, reference, tmp_path_factory) -> list[str]:
    """The file-system calls of one save, counted in a run that does not die."""
    folder = fault_trials.new_folder(tmp_path_factory.mktemp("calls"), "dry")
    outcome = start(servers[0], folder, [("count_calls", {"save": SAVE})])
    assert outcome.exit_code == 0, outcome.said
    assert {"open", "fsync", "os.rename", "os.remove"} <= set(outcome.fired)
    return outcome.fired


@pytest.fixture(scope="module")
def size(servers, reference, tmp_path_factory) -> int:
    """The bytes of one save."""
    folder = fault_trials.new_folder(tmp_path_factory.mktemp("size"), "dry")
    assert start(servers[0], folder, [("chain", {"saves": SAVE})]).fired
    return files(folder)[2 * SAVE].stat().st_size


def test_killed_before_and_after_every_file_system_call_of_a_save(
    side_by_side, reference, trial_folder, trials, table, calls
):
    chosen = fault_trials.spread(trials(6, 99, 99), len(calls))

    def one(server, call):
        folder = trial_folder(f"call{call}")
        outcome, lost = die_and_go_on(
            server, reference, folder, [("die_at_call", {"save": SAVE, "call": call + 1})]
        )
        shutil.rmtree(folder)
        return outcome, lost

    for outcome, lost in side_by_side(one, chosen):
        table.add(
            "SIGKILL before each file-system call of a save", len(outcome.fired), lost is not None
        )
        assert outcome.exit_code == -signal.SIGKILL, outcome.said
        assert len(outcome.fired) == 1
        assert lost is None


def test_killed_at_any_byte_of_a_save(side_by_side, reference, trial_folder, trials, table, size):
    def one(server, byte):
        folder = trial_folder(f"byte{byte}")
        outcome, lost = die_and_go_on(
            server, reference, folder, [("die_at_byte", {"save": SAVE, "byte": byte})]
        )
        shutil.rmtree(folder)
        return outcome, lost

    n = trials(4, 40, 200)
    for outcome, lost in side_by_side(
        one, [1, size - 65, size - 64, size - 1, *(size * i // n for i in range(n))]
    ):
        table.add("SIGKILL at a byte of a save's file", len(outcome.fired), lost is not None)
        assert outcome.exit_code == -signal.SIGXFSZ, outcome.said
        assert len(outcome.fired) == 1
        assert lost is None


def test_killed_at_random(side_by_side, reference, trial_folder, trials, table):
    rng, wanted, killed = random.Random(20), trials(5, 50, 500), []

    def one(server, item):
        i, moment = item
        folder = trial_folder(f"random{i}")
        outcome, lost = die_and_go_on(server, reference, folder, [], kill_after_s=moment)
        shutil.rmtree(folder)
        return outcome, lost

    for batch in range(0, 3 * wanted, 10):  # runs that end before their kill are no trials of it
        moments = [(batch + i, rng.random() * reference.wall_s) for i in range(min(10, wanted))]
        for outcome, lost in side_by_side(one, moments):
            hit = outcome.exit_code == -signal.SIGKILL
            table.add("SIGKILL at a random moment of a run", hit, lost is not None)
            if hit:
                killed.append(outcome.phase)
                if outcome.phase == "save":
                    table.add("  of these inside a save", 1, lost is not None)
            assert lost is None
        if len(killed) >= wanted and killed.count("save") >= 0.2 * wanted:
            return
    pytest.fail(
        f"only {len(killed)} kills came in time, {killed.count('save')} of them inside a save"
    )


@pytest.mark.slow
def test_killed_again_and_again_a_run_still_comes_to_its_end(
    side_by_side, reference, trial_folder, trials, table
):
    def one(server, seed):
        rng, generations, reached = random.Random(seed), 0, [0]
        folder, hooks = (
            trial_folder(f"chain{seed}", training={"save_checkpoint_steps": 1}),
            [("chain", {"saves": 1})],
        )
        outcome = start(server, folder, hooks)
        while outcome.exit_code == -signal.SIGKILL:
            generations += 1
            reached.append(max(files(folder), default=0))
            assert generations < 60
            during_resume = (
                rng.random() < 0.4
            )  # dies before its first save: nothing is won, nothing may be lost
            when = rng.random() * 0.2 * reference.wall_s if during_resume else None
            outcome = go_on(server, folder, [] if during_resume else hooks, kill_after_s=when)
        assert outcome.exit_code == 0, outcome.said
        return generations, reached, reference.lost(folder)

    for generations, reached, lost in side_by_side(one, list(range(trials(1, 2, 10)))):
        table.add(
            "SIGKILL again after each save and resume", generations, lost is not None, generations
        )
        assert generations >= 20
        assert reached == sorted(reached)
        assert lost is None


@pytest.mark.parametrize("how", ["segmentation fault", "exit from a thread"])
@pytest.mark.parametrize(
    "phase", ["save", *(pytest.param(p, marks=pytest.mark.slow) for p in ("step", "sample"))]
)
def test_a_crash_of_the_interpreter_harms_no_file(
    server, reference, trial_folder, table, phase, how
):
    folder = trial_folder("crash")
    outcome, lost = die_and_go_on(
        server, reference, folder, [("die_in_phase", {"phase": phase, "nth": 3, "how": how})]
    )
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


def test_a_saver_that_writes_straight_to_the_final_name_is_found_out(
    server, reference, trial_folder, table
):
    hooks = [("die_at_byte", {"save": SAVE, "byte": 60_000})]
    outcome, lost = die_and_go_on(
        server, reference, trial_folder("m"), hooks, mutant=[("mutant_naive_save", {})]
    )
    assert outcome.fired
    assert "broken" in lost
    table.add("mutant: writes straight to the final name", 1, 1)


def test_a_saver_that_removes_old_files_first_is_found_out(server, reference, trial_folder, table):
    hooks = [("die_at_byte", {"save": SAVE, "byte": 60_000})]
    outcome, lost = die_and_go_on(
        server, reference, trial_folder("m"), hooks, mutant=[("mutant_forgetful", {})]
    )
    assert outcome.fired
    assert lost == "step 4 was saved, the newest file is of step 0"
    table.add("mutant: removes old files before it saves", 1, 1)


@pytest.mark.parametrize("mutant", ["mutant_no_rng", "mutant_no_position", "mutant_no_optimizer"])
def test_a_resume_that_forgets_a_part_of_the_state_is_found_out(
    server, reference, trial_folder, table, mutant
):
    folder, hooks = trial_folder("m"), [(mutant, {})]
    if mutant == "mutant_no_rng":  # its undisturbed run is another one
        reference = fault_trials.Reference(folder, "", {}, 0.0)
        assert start(server, folder, hooks).exit_code == 0
        reference.final, reference.steps = (
            fault_trials.final_hash(files(folder)[STEPS]),
            fault_trials.read_steps(folder),
        )
        folder = trial_folder("m2")
    outcome, lost = die_and_go_on(
        server, reference, folder, [("chain", {"saves": 5})], mutant=hooks
    )
    assert outcome.fired
    assert "other data, losses or norms" in lost
    table.add(f"mutant: {mutant.removeprefix('mutant_').replace('_', ' ')} on resume", 1, 1)
