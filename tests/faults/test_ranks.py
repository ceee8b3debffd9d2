"""Faults of one rank of a group: all ranks deal with them together, and nothing is lost.

Where torchrun's agent does not matter, the ranks are forks of the fault servers, which takes a
second. Where it does, torchrun starts them.
"""

import random
import time
from pathlib import Path
from typing import Any

import group_harness
import group_trials
import harness
import pytest
from fault_trials import STEPS, Hooks, Reference, files, new_folder, promised
from group_trials import (
    LOST_RANK,
    RESUME,
    TWO_PARTS,
    codes,
    fork_group,
    launched,
    lost_by,
    said,
    stopped_and_resumed,
    strike,
)

from chatgot.checkpointing.checkpoints import is_whole

pytestmark = pytest.mark.slow  # `make faults` has them, with LEVEL=ci too

PHASES = ["step", "save", "evaluate", "start"]


@pytest.fixture(scope="module")
def two_parts(servers, tmp_path_factory) -> Reference:
    """The undisturbed run, by one process: two ranks are to end in its bits."""
    return group_trials.undisturbed(servers[0], tmp_path_factory.mktemp("two_parts"))


@pytest.fixture
def group_folder(two_parts, tmp_path):
    """Return a function that makes folders, each ready for a run like the undisturbed one."""

    def make(name: str = "group", **changes: object) -> Path:
        return new_folder(tmp_path, name, **harness.merged(TWO_PARTS, changes))

    return make


# Undisturbed


def test_two_ranks_end_in_the_bits_of_one_process(servers, two_parts, group_folder):
    folder = group_folder()
    outcomes = fork_group(servers, folder, {})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert lost_by(two_parts, folder) is None


# A rank dies: torchrun starts all of them again


def killed_and_back(two_parts: Reference, folder: Path, hooks: dict[int, Hooks]) -> str | None:
    """Let a rank die under torchrun; return what was lost."""
    done = launched(folder, hooks, max_restarts=3)
    assert list(folder.glob("fired*.txt")), "the fault did not happen"
    if done.exit_code != 0:
        return f"the group did not come back: {done.said[-3000:]}"
    return two_parts.lost(folder)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", PHASES)
def test_a_group_comes_back_when_a_rank_is_killed(
    two_parts, group_folder, trials, table, phase, rank
):
    nth = 1 if phase == "start" else 3
    chosen = trials([("step", 1)], [("step", 1), ("save", 0), ("start", 1)], None)
    if chosen is not None and (phase, rank) not in chosen:
        pytest.skip("level long has it")
    folder = group_folder()
    lost = killed_and_back(two_parts, folder, {rank: strike(phase, "SIGKILL", nth)})
    table.add("SIGKILL of one rank: torchrun starts all again", 1, lost is not None)
    assert lost is None


def test_a_group_comes_back_when_rank_0_dies_in_a_file(two_parts, group_folder, table):
    folder = group_folder()
    hooks = {0: [("die_in_first_start", {"save": 3, "byte": 60_000})]}
    lost = killed_and_back(two_parts, folder, hooks)
    table.add("SIGKILL of one rank: torchrun starts all again", 1, lost is not None)
    assert lost is None


def test_ranks_killed_at_random_lose_nothing(two_parts, group_folder, trials, table):
    rng = random.Random(20)
    wanted = trials(1, 1, 30)
    hits = 0
    for trial in range(3 * wanted):  # groups that end before their kill do not count
        folder = group_folder(f"random{trial}")
        hit, said_by_all = killed_at(folder, rng.randrange(2), rng.random() * two_parts.wall_s)
        lost = two_parts.lost(folder)
        table.add("SIGKILL of one rank at a random moment", hit, lost is not None)
        assert lost is None, said_by_all
        hits += hit
        if hits == wanted:
            return
    pytest.fail(f"only {hits} kills came in time")


def killed_at(folder: Path, rank: int, after_s: float) -> tuple[bool, str]:
    """Kill a rank so long after its run has begun; return whether it was there, and the words."""
    with group_harness.started(
        folder,
        2,
        "--config",
        "tiny.yaml",
        program=group_trials.PROGRAM,
        max_restarts=3,
        FAULTS="{}",
    ) as group:
        pid = group.pid_of(rank)
        group.wait_for("a new run")
        time.sleep(after_s)
        hit = group_harness.kill(pid)
        exit_code = group.wait()
    assert exit_code == 0, group.said
    return hit, group.said


# A rank does not answer


def test_a_rank_that_stands_still_is_named(servers, group_folder, table):
    folder = group_folder(distributed={"timeout_s": 5})
    begun_s = time.monotonic()
    outcomes = fork_group(servers, folder, {1: strike("step", "SIGSTOP")}, limit_s=25)
    table.add("SIGSTOP of one rank: it is named", 1, 0)
    assert outcomes[1].fired == ["SIGSTOP"]
    assert outcomes[0].exit_code == LOST_RANK, said(outcomes)
    assert outcomes[0].wall_s < 5 + 15
    assert "rank 1 does not answer: rank 0 waited 5 s" in group_harness.log_of_rank(folder, 0)
    assert time.monotonic() - begun_s < 60
    assert max(files(folder)) == promised(folder) == 2


def test_a_group_comes_back_when_a_rank_stands_still(two_parts, group_folder, trials, table):
    if not trials(False, False, True):
        pytest.skip("level long has it: torchrun waits 30 s for the rank to end")
    folder = group_folder(distributed={"timeout_s": 5})
    lost = killed_and_back(two_parts, folder, {1: strike("step", "SIGSTOP")})
    table.add("SIGSTOP of one rank: the group comes back", 1, lost is not None)
    assert lost is None


# Bad numbers, no memory


@pytest.mark.parametrize("rank", [0, 1])
def test_nan_on_one_rank_is_skipped_by_all(servers, two_parts, group_folder, table, rank):
    """As by one process that has NaN in that step."""
    expected = group_folder("alone")
    alone = servers[0].run(
        expected,
        "--config",
        "tiny.yaml",
        hooks=[("steps", {}), ("know_the_end", {}), ("nan_loss", {"attempts": [5]})],
    )
    assert alone.exit_code == 0, alone.said
    folder = group_folder()
    outcomes = fork_group(servers, folder, {rank: [("nan_loss", {"attempts": [5]})]})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert outcomes[rank].fired == ["NaN"]
    (skip,) = harness.events(folder, "skip")
    assert skip["step"] == 5
    ends = [group_trials.end_of(folder, rank) for rank in range(2)]
    assert [end["state"]["progress"]["skipped_steps"] for end in ends] == [1, 1]
    assert [end["state"]["health"]["skips"] for end in ends] == [1, 1]
    assert ends[0]["weights"] == ends[1]["weights"]
    assert ends[0]["weights"] == group_trials.end_of(expected, 0)["weights"]
    table.add("NaN on one rank: all skip the step", 1, 0)


def test_a_run_that_diverges_on_one_rank_ends_on_all(servers, group_folder, table):
    folder = group_folder()
    forever = list(range(8, 1000))
    outcomes = fork_group(servers, folder, {1: [("nan_loss", {"attempts": forever})]})
    table.add("NaN on one rank for good: all end with exit code 4", 1, codes(outcomes) != [4, 4])
    assert codes(outcomes) == [4, 4], said(outcomes)
    assert len(harness.events(folder, "rewind")) == 3
    ends = [group_trials.without_clocks(group_trials.end_of(folder, rank)) for rank in range(2)]
    assert ends[0] == ends[1]


DYNAMIC = {"enabled": True, "initial": 3, "growth_interval_steps": 1000}


@pytest.mark.parametrize("rank", [0, 1])
def test_out_of_memory_on_one_rank_shrinks_all(servers, two_parts, group_folder, table, rank):
    """In the first step: the run is the one that was told the smaller size."""
    told = group_folder("told", training={"micro_batch_size": 1})
    assert codes(fork_group(servers, told, {})) == [0, 0]
    training = {"micro_batch_size": "auto", "dynamic_batch_size": DYNAMIC}
    folder = group_folder(training=training)
    outcomes = fork_group(servers, folder, {rank: [("no_memory", {"attempt": 1})]})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert outcomes[rank].fired == ["out of memory"]
    ends = [group_trials.end_of(folder, rank) for rank in range(2)]
    assert [end["state"]["micro_batch"]["size"] for end in ends] == [1, 1]
    (shrunk,) = harness.events(folder, "micro_batch", reason="oom")
    assert (shrunk["old"], shrunk["new"]) == (3, 1)
    lost = ends[0]["weights"] != group_trials.end_of(told, 0)["weights"]
    table.add("out of memory on one rank: all shrink", 1, lost or ends[0] == {})
    assert ends[0]["weights"] == ends[1]["weights"] == group_trials.end_of(told, 1)["weights"]


@pytest.mark.parametrize("rank", [0, 1])
def test_out_of_memory_in_the_update_of_one_rank_ends_all(
    servers, two_parts, group_folder, table, rank
):
    """The others have changed their weights: no file may say that all have."""
    folder = group_folder(distributed={"timeout_s": 20})
    outcomes = fork_group(servers, folder, {rank: [("no_memory_in_update", {"nth": 6})]})
    assert outcomes[rank].fired == ["out of memory in the update"]
    assert outcomes[rank].exit_code == 6, said(outcomes)
    assert outcomes[1 - rank].exit_code == LOST_RANK, said(outcomes)
    assert outcomes[1 - rank].wall_s < 15
    assert max(files(folder)) == 4
    outcomes = fork_group(servers, folder, {}, *RESUME)
    assert codes(outcomes) == [0, 0], said(outcomes)
    lost = lost_by(two_parts, folder)
    table.add("out of memory in the update of one rank", 1, lost is not None)
    assert lost is None


# Signals


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]])
@pytest.mark.parametrize("phase", ["step", "save", "evaluate", "sample"])
def test_a_signal_to_any_rank_stops_all_at_one_step(
    servers, two_parts, group_folder, table, phase, ranks
):
    hooks = {rank: strike(phase, "SIGTERM") for rank in ranks}
    lost = stopped_and_resumed(servers, two_parts, group_folder(), hooks)
    table.add("SIGTERM to one rank or to all", 1, lost is not None)
    assert lost is None


def test_a_second_signal_at_once_does_not_lose_the_save(servers, two_parts, group_folder, table):
    """A scheduler signals each rank, and torchrun signals it again."""
    hooks = {
        rank: [("signals", {"phase": "step", "nth": 3, "names": ["SIGTERM"] * 2, "gap_s": 0.05})]
        for rank in range(2)
    }
    lost = stopped_and_resumed(servers, two_parts, group_folder(), hooks)
    table.add("SIGTERM twice to all ranks", 1, lost is not None)
    assert lost is None


@pytest.mark.parametrize("first", [0, 1])
def test_a_signal_that_comes_in_the_save_of_a_stopped_group_is_the_same(
    servers, two_parts, group_folder, table, first
):
    """The other rank knows of the first signal, but has not got it itself."""
    second = 1 - first
    hooks = {
        first: strike("step", "SIGTERM", nth=3),
        second: strike("save", "SIGTERM", nth=2),  # the save before leaving
    }
    lost = stopped_and_resumed(servers, two_parts, group_folder(), hooks)
    table.add("SIGTERM to one rank, then to another", 1, lost is not None)
    assert lost is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_in_an_evaluation_ends_it_on_all(servers, two_parts, group_folder, table, rank):
    """The resume makes it again, from its beginning."""
    folder = group_folder(training={"eval_batches": 16})
    hooks = {rank: [("signals", {"phase": "evaluate", "nth": 2, "names": ["SIGTERM"]})]}
    lost = stopped_and_resumed(servers, two_parts, folder, hooks)
    table.add("SIGTERM to one rank in an evaluation", 1, lost is not None)
    assert [event["step"] for event in harness.events(folder, "stop")] == [8]
    resumed = next(i for i, e in enumerate(harness.events(folder)) if e["kind"] == "resume")
    made = [i for i, e in enumerate(harness.events(folder)) if e["kind"] == "evaluation"]
    assert sum(i < resumed for i in made) == 1  # that of step 0
    assert lost is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_rank_ends_rank_0s_samples(servers, two_parts, group_folder, table, rank):
    folder = group_folder(sampling={"max_new_tokens": 200})
    hooks = {
        0: [("slow_samples", {"nth": 3, "seconds": 0.1})],
        1: [],
    }
    hooks[rank] += strike("sample", "SIGTERM")
    outcomes = fork_group(servers, folder, hooks)
    table.add("SIGTERM to one rank in samples", 1, codes(outcomes) != [143, 143])
    assert codes(outcomes) == [143, 143], said(outcomes)
    assert "SIGTERM" in outcomes[rank].fired
    assert outcomes[0].wall_s < 15  # all of the samples would take 20 s
    assert {sample["step"] for sample in harness.samples(folder)} == {6, 12}
    assert [event["step"] for event in harness.events(folder, "stop")] == [18]
    outcomes = fork_group(servers, folder, {}, *RESUME)
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert {sample["step"] for sample in harness.samples(folder)} == {6, 12, 18, 24}
    assert lost_by(two_parts, folder) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_in_the_last_evaluation_is_obeyed(servers, two_parts, group_folder, table, rank):
    """The resume makes it again."""
    folder = group_folder()
    hooks = {rank: strike("evaluate", "SIGTERM", nth=4)}
    lost = stopped_and_resumed(servers, two_parts, folder, hooks)
    table.add("SIGTERM in the last evaluation", 1, lost is not None)
    assert len(harness.events(folder, "done")) == 1
    assert lost is None


def test_samples_that_outlast_the_time_limit_lose_no_rank(servers, two_parts, group_folder, table):
    """Rank 0 samples for longer than the others wait for a rank in an exchange."""
    folder = group_folder(distributed={"timeout_s": 2})
    outcomes = fork_group(servers, folder, {0: [("slow_samples", {"nth": 3, "seconds": 0.5})]})
    lost = lost_by(two_parts, folder)
    table.add("samples slower than distributed.timeout_s", 1, lost is not None)
    assert outcomes[0].fired == ["slow samples"]
    assert outcomes[0].wall_s > 3  # 6 tokens of 0.5 s
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert lost is None


def test_ranks_that_obey_their_own_signals_are_caught(servers, two_parts, group_folder, table):
    folder = group_folder(distributed={"timeout_s": 5})
    hooks = {rank: [("mutant_own_signals", {})] for rank in range(2)}
    hooks[1] += strike("save", "SIGTERM", nth=2)
    outcomes = fork_group(servers, folder, hooks, limit_s=30)
    table.add("mutant: each rank obeys its own signals", 1, codes(outcomes) != [143, 143])
    assert codes(outcomes) != [143, 143]


def test_torchrun_stops_all_ranks_by_one_signal(servers, two_parts, group_folder, table):
    """Then the same command with --resume_from latest goes on."""
    folder = group_folder()
    with group_harness.started(
        folder, 2, "--config", "tiny.yaml", program=group_trials.PROGRAM, FAULTS="{}"
    ) as group:
        group.wait_for("saved checkpoints")
        group.agent.terminate()
        group.wait()
    assert len(harness.events(folder, "stop")) == 1, group.said
    assert max(files(folder)) < STEPS
    done = launched(folder, {}, *RESUME)
    assert done.exit_code == 0, done.said
    lost = two_parts.lost(folder)
    table.add("SIGTERM to torchrun", 1, lost is not None)
    assert lost is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_group_stays_stopped_when_torchrun_starts_it_again(
    two_parts, group_folder, table, rank
):
    """torchrun takes exit code 143 for a failure. Another torchrun goes on as after any stop."""
    folder = group_folder()
    done = launched(folder, {rank: strike("step", "SIGTERM", nth=5)}, max_restarts=2)
    assert done.exit_code == 1
    assert done.said.count(f"this group was stopped by SIGTERM to rank {rank}") == 2
    assert set(done.codes.values()) <= {143, -15}
    assert max(files(folder)) == 5
    assert len(harness.events(folder, "stop")) == 1
    assert not harness.events(folder, "resume")
    again = launched(folder, {}, *RESUME, max_restarts=2)
    assert again.exit_code == 0, again.said
    lost = two_parts.lost(folder)
    table.add("SIGTERM to one rank, and torchrun starts all again", 1, lost is not None)
    assert lost is None


# Storage


def test_a_full_disk_on_rank_0_costs_one_warning(servers, two_parts, group_folder, table):
    folder = group_folder()
    outcomes = fork_group(servers, folder, {0: [("file_limit", {"byte": 0, "saves": [3]})]})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert len(outcomes[0].fired) == 1
    assert harness.warnings(folder).count("File too large") == 1
    lost = lost_by(two_parts, folder)
    table.add("disk full on rank 0", 1, lost is not None)
    assert lost is None


def test_three_failed_saves_of_rank_0_end_all_with_exit_5(servers, two_parts, group_folder, table):
    folder = group_folder()
    outcomes = fork_group(servers, folder, {0: [("file_limit", {"byte": 0, "saves": [3, 4, 5]})]})
    assert codes(outcomes) == [5, 5], said(outcomes)
    assert len(outcomes[0].fired) == 3
    assert "3 saves in a row failed" in outcomes[0].said
    assert sorted(files(folder)) == [2, 4]
    outcomes = fork_group(servers, folder, {}, *RESUME)
    assert codes(outcomes) == [0, 0], said(outcomes)
    lost = lost_by(two_parts, folder)
    table.add("disk full on rank 0 for three saves, then room", 1, lost is not None)
    assert lost is None


# Folders

FOLDERS: dict[str, Any] = {"distributed": {"one_file_gb": 0}}


@pytest.mark.parametrize("background", [False, True])
def test_two_ranks_that_save_folders_end_in_the_bits_of_one_process(
    servers, two_parts, group_folder, background
):
    folder = group_folder(**FOLDERS, training={"background_saves": background})
    outcomes = fork_group(servers, folder, {})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert {path.suffix for path in files(folder).values()} == {".sharded"}
    assert lost_by(two_parts, folder) is None


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_on_one_rank_costs_all_one_folder(
    servers, two_parts, group_folder, table, background, rank
):
    folder = group_folder(**FOLDERS, training={"background_saves": background})
    outcomes = fork_group(servers, folder, {rank: [("no_room_for_shard", {"saves": [3]})]})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert outcomes[rank].fired == ["no room for a shard"]
    assert harness.warnings(folder).count("No space left on device") == 1
    assert 6 not in files(folder)
    assert not list((folder / "checkpoints").glob(".*.tmp"))
    lost = lost_by(two_parts, folder)
    table.add("disk full on one rank: no folder of that step", 1, lost is not None)
    assert lost is None


def test_three_failed_folders_of_one_rank_end_all_with_exit_5(
    servers, two_parts, group_folder, table
):
    folder = group_folder(**FOLDERS)
    outcomes = fork_group(servers, folder, {1: [("no_room_for_shard", {"saves": [3, 4, 5]})]})
    assert codes(outcomes) == [5, 5], said(outcomes)
    assert "3 saves in a row failed" in outcomes[0].said
    assert sorted(files(folder)) == [2, 4]
    outcomes = fork_group(servers, folder, {}, *RESUME)
    assert codes(outcomes) == [0, 0], said(outcomes)
    lost = lost_by(two_parts, folder)
    table.add("disk full on one rank for three folders, then room", 1, lost is not None)
    assert lost is None


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("whole", [False, True])
def test_a_rank_killed_in_a_folder_leaves_the_one_before(
    servers, two_parts, group_folder, table, rank, whole
):
    """The others know of it at their next exchange. What is left of the folder is removed."""
    folder = group_folder(distributed={"one_file_gb": 0, "timeout_s": 5})
    hooks = {rank: [("die_in_folder", {"save": 3, "whole": whole})]}
    outcomes = fork_group(servers, folder, hooks, limit_s=40)
    assert outcomes[rank].fired == ["dies in a folder"]
    assert outcomes[1 - rank].exit_code == LOST_RANK, said(outcomes)
    assert max(files(folder)) == promised(folder) == 4
    outcomes = fork_group(servers, folder, {}, *RESUME)
    assert codes(outcomes) == [0, 0], said(outcomes)
    (resumed,) = harness.events(folder, "resume")
    assert resumed["step"] == 4
    assert not list((folder / "checkpoints").glob(".*.tmp"))
    lost = lost_by(two_parts, folder)
    table.add("SIGKILL of one rank in a folder", 1, lost is not None)
    assert lost is None


def test_a_group_comes_back_when_a_rank_dies_in_a_folder(two_parts, group_folder, table):
    folder = group_folder(**FOLDERS)
    hooks = {1: [("die_in_folder", {"save": 3, "whole": True})]}
    lost = killed_and_back(two_parts, folder, hooks)
    table.add("SIGKILL of one rank: torchrun starts all again", 1, lost is not None)
    assert lost is None


@pytest.mark.parametrize("ranks", [[1], [0, 1]])
@pytest.mark.parametrize("phase", ["step", "save"])
def test_a_signal_beside_a_folder_stops_all_at_one_step(
    servers, two_parts, group_folder, table, phase, ranks
):
    """The folder that is being written is finished first, then that of the last step."""
    hooks = {rank: strike(phase, "SIGTERM") for rank in ranks}
    lost = stopped_and_resumed(servers, two_parts, group_folder(**FOLDERS), hooks)
    table.add("SIGTERM to one rank or to all, beside a folder", 1, lost is not None)
    assert lost is None


def test_a_rewind_goes_back_to_a_folder(servers, group_folder, table):
    """As one process that goes back to its file: three bad steps in a row."""
    nan = ("nan_loss", {"attempts": [7, 8, 9]})
    alone = group_folder("alone")
    outcome = servers[0].run(
        alone, "--config", "tiny.yaml", hooks=[("steps", {}), ("know_the_end", {}), nan]
    )
    assert outcome.exit_code == 0, outcome.said
    folder = group_folder(**FOLDERS)
    outcomes = fork_group(servers, folder, {1: [nan]})
    assert codes(outcomes) == [0, 0], said(outcomes)
    (rewind,) = harness.events(folder, "rewind")
    (expected,) = harness.events(alone, "rewind")
    assert rewind["to"] == expected["to"] > 0
    weights = [group_trials.end_of(folder, rank)["weights"] for rank in range(2)]
    lost = set(weights) != {group_trials.end_of(alone, 0)["weights"]}
    table.add("a rewind to a folder", 1, lost)
    assert not lost


def test_the_newest_folder_and_the_best_one_stay(servers, group_folder):
    training = {"max_checkpoints_to_keep": 1, "save_checkpoint_steps": 1}
    folder = group_folder(**FOLDERS, training=training)
    outcomes = fork_group(servers, folder, {})
    assert codes(outcomes) == [0, 0], said(outcomes)
    best = max(event["best_step"] for event in harness.events(folder, "done"))
    # and the newest two, for rewinds
    assert files(folder).keys() == {best, STEPS - 1, STEPS}
    assert all(map(is_whole, files(folder).values()))
