"""Faults of one rank of a group that shares out its weights (fsdp): all deal with them together.

Two ranks are compared with two undisturbed ones, whose bits they reach.
"""

from pathlib import Path
from typing import Any

import group_harness
import group_trials
import harness
import pytest
from fault_trials import STEPS, Reference, files, new_folder, read_steps
from group_trials import (
    FSDP,
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

pytestmark = pytest.mark.slow  # `make faults` has them, with LEVEL=ci too

TOLERANCE = 1e-5  # of losses: the gradient's norm is added up in another order than on one process


@pytest.fixture(scope="module")
def parts(servers, tmp_path_factory) -> Reference:
    """The undisturbed run of two ranks."""
    return group_trials.undisturbed_parts(servers, tmp_path_factory.mktemp("parts"))


@pytest.fixture
def group_folder(tmp_path):
    """Return a function that makes folders, each ready for a run like the undisturbed one."""

    def make(name: str = "group", **changes: Any) -> Path:
        sections = harness.merged(harness.merged(TWO_PARTS, FSDP), changes)
        return new_folder(tmp_path, name, **sections)

    return make


def alone_with(servers, parent: Path, attempts: list[int], **changes: Any) -> Path:
    """Train by one process that has NaN in some attempts at steps; return the folder."""
    folder = new_folder(parent, "alone", **harness.merged(TWO_PARTS, changes))
    hooks = [("steps", {}), ("nan_loss", {"attempts": attempts})]
    outcome = servers[0].run(folder, "--config", "tiny.yaml", hooks=hooks)
    assert outcome.exit_code == 0, outcome.said
    return folder


def assert_same_losses(one: Path, other: Path) -> None:
    """Assert that two runs have made the same steps on the same data, with close losses."""
    steps = read_steps(one)
    others = read_steps(other)
    assert steps.keys() == others.keys()
    for step, (places, loss, _) in steps.items():
        assert places == others[step][0]
        both = float.fromhex(loss), float.fromhex(others[step][1])
        assert both[0] == pytest.approx(both[1], abs=TOLERANCE, nan_ok=True), step


def test_two_ranks_end_in_the_same_bits_each_time(servers, parts, group_folder):
    folder = group_folder()
    outcomes = fork_group(servers, folder, {})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert lost_by(parts, folder) is None


def only_in_long(trials, is_telling: bool) -> None:
    """Skip what other circumstances tell already, except for the level long."""
    if not trials(is_telling, is_telling, True):
        pytest.skip("level long has it")


# Bad numbers


@pytest.mark.parametrize("rank", [0, 1])
def test_nan_on_one_rank_is_skipped_by_all(servers, group_folder, tmp_path, table, rank):
    folder = group_folder()
    outcomes = fork_group(servers, folder, {rank: [("nan_loss", {"attempts": [5]})]})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert outcomes[rank].fired == ["NaN"]
    (skip,) = harness.events(folder, "skip")
    assert skip["step"] == 5
    ends = [group_trials.without_clocks(group_trials.end_of(folder, rank)) for rank in range(2)]
    assert ends[0] == ends[1]
    assert ends[0]["state"]["progress"]["skipped_steps"] == 1
    assert_same_losses(folder, alone_with(servers, tmp_path, [5]))
    table.add("fsdp: NaN on one rank: all skip the step", 1, 0)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("saves", "first", "to"),
    [({"save_checkpoint_steps": None}, 4, 0), ({"save_checkpoint_steps": 4}, 11, 8)],
)
def test_a_divergence_on_one_rank_rewinds_all(
    servers, group_folder, tmp_path, trials, table, saves, first, to, rank
):
    """To the weights that the run began with, or to a file; then it comes to its end.

    `adam_eps` is larger here. In its first steps AdamW moves a weight by the sign of its gradient,
    and the order of additions decides the sign of a gradient near zero.
    """
    only_in_long(trials, rank == 1)
    saves = {**saves, "adam_eps": 1e-4}
    bad = list(range(first, first + 3))
    folder = group_folder(training=saves)
    outcomes = fork_group(servers, folder, {rank: [("nan_loss", {"attempts": bad})]})
    assert codes(outcomes) == [0, 0], said(outcomes)
    (rewound,) = harness.events(folder, "rewind")
    assert rewound["to"] == to
    ends = [group_trials.without_clocks(group_trials.end_of(folder, rank)) for rank in range(2)]
    assert ends[0] == ends[1]
    assert ends[0]["state"]["progress"]["global_step"] == STEPS
    assert_same_losses(folder, alone_with(servers, tmp_path, bad, training=saves))
    table.add("fsdp: NaN on one rank: all rewind", 1, 0)


def test_a_run_that_diverges_on_one_rank_ends_on_all(servers, group_folder, table):
    folder = group_folder()
    forever = list(range(8, 1000))
    outcomes = fork_group(servers, folder, {1: [("nan_loss", {"attempts": forever})]})
    table.add("fsdp: NaN for good: all end with exit code 4", 1, codes(outcomes) != [4, 4])
    assert codes(outcomes) == [4, 4], said(outcomes)
    assert len(harness.events(folder, "rewind")) == 3


# Signals and storage


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", ["step", "save", "evaluate", "sample"])
def test_a_signal_to_one_rank_stops_all(servers, parts, group_folder, trials, table, phase, rank):
    only_in_long(trials, (phase == "save") == (rank == 0))
    lost = stopped_and_resumed(servers, parts, group_folder(), {rank: strike(phase, "SIGTERM")})
    table.add("fsdp: SIGTERM to one rank", 1, lost is not None)
    assert lost is None


def test_a_full_disk_on_rank_0_costs_one_warning(servers, parts, group_folder, table):
    folder = group_folder()
    outcomes = fork_group(servers, folder, {0: [("file_limit", {"byte": 0, "saves": [3]})]})
    assert codes(outcomes) == [0, 0], said(outcomes)
    assert len(outcomes[0].fired) == 1
    assert harness.warnings(folder).count("File too large") == 1
    lost = lost_by(parts, folder)
    table.add("fsdp: disk full on rank 0", 1, lost is not None)
    assert lost is None


# A rank that is lost, or has no memory: the others wait for its parts


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("attempt", [7, 8])
def test_out_of_memory_on_one_rank_ends_all_in_clear_words(
    servers, parts, group_folder, trials, table, rank, attempt
):
    """Between two micro-batches and after the last one; the last checkpoint stays."""
    only_in_long(trials, (attempt, rank) in ((7, 1), (8, 0)))
    folder = group_folder(training={"micro_batch_size": 1}, distributed={"timeout_s": 20})
    outcomes = fork_group(servers, folder, {rank: [("no_memory", {"attempt": attempt})]})
    table.add("fsdp: out of memory on one rank: all end", 1, 0)
    assert outcomes[rank].fired == ["out of memory"]
    assert outcomes[rank].exit_code == 6, said(outcomes)
    assert outcomes[1 - rank].exit_code == LOST_RANK, said(outcomes)
    assert max(outcome.wall_s for outcome in outcomes) < 15
    words = outcomes[rank].said
    assert "step 4: out of memory at micro_batch_size 1" in words
    assert "start more ranks" in words
    assert "Traceback" not in said(outcomes)
    assert sorted(files(folder)) == [2]
    outcomes = fork_group(servers, folder, {}, *RESUME)
    assert codes(outcomes) == [0, 0], said(outcomes)


def test_out_of_memory_names_a_smaller_micro_batch(servers, group_folder):
    folder = group_folder(distributed={"timeout_s": 20})
    outcomes = fork_group(servers, folder, {1: [("no_memory", {"attempt": 2})]})
    assert outcomes[1].exit_code == 6, said(outcomes)
    assert "set training.micro_batch_size=1" in outcomes[1].said
    assert "dynamic_batch_size" not in outcomes[1].said


def test_out_of_memory_in_an_evaluation_of_parts_is_named(servers, group_folder, table):
    folder = group_folder(distributed={"timeout_s": 20})
    outcomes = fork_group(servers, folder, {1: [("no_memory_in_evaluation", {"nth": 2})]})
    table.add("fsdp: out of memory in an evaluation: all end", 1, 0)
    assert outcomes[1].exit_code == 6, said(outcomes)
    assert outcomes[0].exit_code == LOST_RANK, said(outcomes)
    assert "evaluation at step 8: out of memory with 2 sequences at once" in outcomes[1].said
    assert "set a smaller training.batch_size" in outcomes[1].said
    assert "Traceback" not in said(outcomes)
    assert max(files(folder)) == 6


def test_out_of_memory_under_torchrun_ends_when_its_restarts_are_used_up(group_folder, table):
    """Each start runs out of memory again: the last file stays, and the words say what to set."""
    folder = group_folder()
    done = launched(folder, {1: [("no_memory", {"attempt": 3})]}, max_restarts=1)
    table.add("fsdp: out of memory in each start", 1, done.exit_code != 1)
    assert done.exit_code == 1
    assert done.codes[1] == 6
    assert done.said.count("out of memory at micro_batch_size 3") == 2
    assert "a defect of ChatGoT" not in done.said
    assert sorted(files(folder)) == [2, 4]


def test_a_rank_that_is_killed_in_a_step_is_a_lost_rank(servers, group_folder, table):
    folder = group_folder(distributed={"timeout_s": 20})
    outcomes = fork_group(servers, folder, {1: strike("step", "SIGKILL", nth=4)})
    table.add("fsdp: SIGKILL of one rank in a step", 1, 0)
    assert outcomes[0].exit_code == LOST_RANK, said(outcomes)
    assert "Traceback" not in outcomes[0].said


def test_a_rank_that_stands_still_in_a_step_is_named(servers, group_folder, table):
    folder = group_folder(distributed={"timeout_s": 5})
    outcomes = fork_group(servers, folder, {1: strike("step", "SIGSTOP", nth=4)}, limit_s=25)
    table.add("fsdp: SIGSTOP of one rank: it is named", 1, 0)
    assert outcomes[0].exit_code == LOST_RANK, said(outcomes)
    assert "rank 1 does not answer: rank 0 waited" in group_harness.log_of_rank(folder, 0)


def test_a_group_with_parts_comes_back_when_a_rank_is_killed(parts, group_folder, table):
    folder = group_folder()
    done = launched(folder, {1: strike("step", "SIGKILL", nth=5)}, max_restarts=2)
    lost = parts.lost(folder)
    table.add("fsdp: SIGKILL of one rank: torchrun starts all again", 1, lost is not None)
    assert done.exit_code == 0, done.said
    assert lost is None
