"""Trials with several ranks: forks of the fault servers, or a group that torchrun starts."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fault_trials
import group_harness
import harness
from fault_server import FaultServer, Outcome, of_rank
from fault_trials import Hooks, Reference

PROGRAM = Path(__file__).resolve().parent / "fault_rank.py"
LIMIT_S = 60.0  # of a fork; then it is killed
# Two micro-batches on two ranks: their sum has one order, so a group and one process end in the
# same bits
TWO_PARTS: dict[str, Any] = {"training": {"micro_batch_size": 3}}
FSDP: dict[str, Any] = {"distributed": {"strategy": "fsdp"}}
RESUME = ("--resume_from", "latest")
LOST_RANK = 7  # the exit code of a rank whose group has lost another one


def fork_group(
    servers: list[FaultServer],
    folder: Path,
    hooks: dict[int, Hooks],
    *arguments: str,
    limit_s: float = LIMIT_S,
) -> list[Outcome]:
    """Run one rank on each server, without torchrun; return their outcomes in order.

    Each rank records what it ends with (see `end_of`).
    """
    port = free_port()

    def run(rank: int) -> Outcome:
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(len(servers)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        return servers[rank].run(
            folder,
            "--config",
            "tiny.yaml",
            *arguments,
            hooks=[("steps", {}), ("know_the_end", {}), *hooks.get(rank, [])],
            kill_after_s=limit_s,
            environment=environment,
        )

    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(run, range(len(servers))))


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def launched(
    folder: Path, hooks: dict[int, Hooks], *arguments: str, ranks: int = 2, **how: Any
) -> group_harness.Ended:
    """Run ranks under torchrun with faults; `how` is as for `group_harness.started`."""
    faults = json.dumps({str(rank): of_it for rank, of_it in hooks.items()})
    return group_harness.run_group(
        folder, ranks, "--config", "tiny.yaml", *arguments, program=PROGRAM, FAULTS=faults, **how
    )


def codes(outcomes: list[Outcome]) -> list[int]:
    return [outcome.exit_code for outcome in outcomes]


def said(outcomes: list[Outcome]) -> str:
    """Return what all ranks have said, to be shown where a trial fails."""
    return "\n".join(f"rank {i}:\n{outcome.said}" for i, outcome in enumerate(outcomes))


def end_of(folder: Path, rank: int) -> dict[str, Any]:
    """Return the weights' hash and the counters that a rank of a forked group has ended with."""
    return json.loads((folder / of_rank("end.json", str(rank))).read_text())


def strike(phase: str, name: str, nth: int = 3) -> Hooks:
    return [("strike", {"phase": phase, "nth": nth, "name": name})]


def stopped_and_resumed(
    servers: list[FaultServer],
    reference: Reference,
    folder: Path,
    hooks: dict[int, Hooks],
    code: int = 143,
) -> str | None:
    """Stop a group by signals, then let it go on; return what was lost."""
    outcomes = fork_group(servers, folder, hooks)
    assert codes(outcomes) == [code, code], said(outcomes)
    assert [bool(outcome.fired) for outcome in outcomes] == [rank in hooks for rank in range(2)]
    reached = max(fault_trials.files(folder))
    assert 0 < reached <= fault_trials.STEPS
    assert len(harness.events(folder, "save", step=reached)) == 1  # not saved twice
    assert len(harness.events(folder, "stop")) == 1
    ends = [without_clocks(end_of(folder, rank)) for rank in range(2)]
    assert ends[0] == ends[1]
    assert ends[0]["state"]["progress"]["global_step"] == reached
    outcomes = fork_group(servers, folder, {}, *RESUME)
    assert codes(outcomes) == [0, 0], said(outcomes)
    return lost_by(reference, folder)


def without_clocks(end: dict[str, Any]) -> dict[str, Any]:
    """Return what all ranks of a group must end with alike."""
    state = json.loads(json.dumps(end["state"]))
    for clock in ("time_s", "tokens_per_s"):
        del state["progress"][clock]
    return {"weights": end["weights"], "state": state}


def lost_by(reference: Reference, folder: Path, ranks: int = 2) -> str | None:
    """Return how a group's end differs from the undisturbed run's, or rank from rank; or None."""
    ends = [without_clocks(end_of(folder, rank)) for rank in range(ranks)]
    for rank, end in enumerate(ends):
        if end != ends[0]:
            return f"rank {rank} ends with other weights or counters than rank 0"
    return reference.lost(folder)


def undisturbed(server: FaultServer, parent: Path) -> Reference:
    """Train by one process what groups of two ranks are to train."""
    return fault_trials.undisturbed(server, parent, **TWO_PARTS)


def undisturbed_parts(servers: list[FaultServer], parent: Path) -> Reference:
    """Train by two ranks that keep parts of the weights, without a fault.

    One process has other bits: the gradient's norm is added up part by part.
    """
    folder = fault_trials.new_folder(parent, "parts", **harness.merged(TWO_PARTS, FSDP))
    outcomes = fork_group(servers, folder, {})
    assert codes(outcomes) == [0, 0], said(outcomes)
    last = fault_trials.files(folder)[fault_trials.STEPS]
    wall_s = max(outcome.wall_s for outcome in outcomes)
    steps = fault_trials.read_steps(folder)
    return Reference(folder, fault_trials.final_hash(last), steps, wall_s)
