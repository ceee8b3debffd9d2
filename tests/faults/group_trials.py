"""Trials with several ranks: forks of the fault servers, or a group that torchrun starts."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fault_trials
import group_harness
from fault_server import FaultServer, Outcome, of_rank
from fault_trials import Hooks, Reference

PROGRAM = Path(__file__).resolve().parent / "fault_rank.py"
LIMIT_S = 60.0  # of a fork; then it is killed
# Two micro-batches on two ranks: their sum has one order, so a group and one process end in the
# same bits
TWO_PARTS: dict[str, Any] = {"training": {"micro_batch_size": 3}}


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
