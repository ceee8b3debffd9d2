"""Runs of the script by several ranks under torchrun, as a user starts them.

torchrun's agent and each of its ranks lead a session of their own. So each launched group is ended
by the ids of all these processes, at the latest when its time is over.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import harness
import psutil
from child_environment import child_environment

TESTS = harness.ROOT / "tests"
LIMIT_S = 240.0  # of a group; then all of it is killed
SAID = "said.txt"  # what the agent and its ranks have written to stdout and stderr
# a row of the table that torchrun prints when a rank has failed
FAILURE = re.compile(r"rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+)")


class Group:
    """Ranks that torchrun has started in a folder."""

    def __init__(self, agent: subprocess.Popen, said_in: Path, limit_s: float) -> None:
        self.agent = agent
        self._said_in = said_in
        self._end_s = time.monotonic() + limit_s

    @property
    def said(self) -> str:
        """Return what the agent and its ranks have said so far."""
        return self._said_in.read_text(errors="replace")

    def pid_of(self, rank: int) -> int:
        """Return the process id of a rank; wait until it has been started."""
        while True:
            self._keep_time()
            for child in psutil.Process(self.agent.pid).children():
                with suppress(psutil.Error):
                    if child.environ().get("RANK") == str(rank):
                        return child.pid
            time.sleep(0.02)

    def wait_for(self, words: str, times: int = 1) -> None:
        """Wait until the group has said these words so often."""
        while self.said.count(words) < times:
            self._keep_time()
            assert self.agent.poll() is None, self.said
            time.sleep(0.02)

    def wait(self) -> int:
        """Wait for the end; return torchrun's exit code."""
        while self.agent.poll() is None:
            self._keep_time()
            time.sleep(0.02)
        return self.agent.returncode

    def kill(self) -> None:
        """Kill all that is left: the agent's process group, and those of its ranks."""
        leaders = [self.agent.pid]
        with suppress(psutil.Error):
            leaders += [child.pid for child in psutil.Process(self.agent.pid).children()]
        for leader in leaders:
            with suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
        self.agent.wait()

    def _keep_time(self) -> None:
        if time.monotonic() > self._end_s:
            self.kill()
            raise TimeoutError(f"a group hangs; it said:\n{self.said}")


def kill(pid: int) -> bool:
    """Kill a rank by SIGKILL; return whether it was still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def started(
    folder: Path,
    ranks: int,
    *arguments: str,
    program: Path = harness.SCRIPT,
    max_restarts: int = 0,
    limit_s: float = LIMIT_S,
    machines: Sequence[str] = ("--standalone",),
    said_in: str = SAID,
    **environment: str,
) -> Iterator[Group]:
    """Start ranks under torchrun; whatever is left of them at the end of the block is killed.

    machines: torchrun's options that say which machines there are. said_in: a file's name.
    """
    command = [sys.executable, "-m", "torch.distributed.run", *machines]
    command += [f"--nproc_per_node={ranks}", f"--max_restarts={max_restarts}"]
    command += [str(program), *arguments]
    with (folder / said_in).open("wb") as said:
        agent = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=child_environment(harness.ROOT, TESTS, OMP_NUM_THREADS="1", **environment),
            start_new_session=True,
        )
    group = Group(agent, folder / said_in, limit_s)
    try:
        yield group
    finally:
        group.kill()


@dataclass(frozen=True)
class Ended:
    """How a group has ended: torchrun's exit code, those of the ranks that failed, all words."""

    exit_code: int
    codes: dict[int, int]
    said: str


def run_group(folder: Path, ranks: int, *arguments: str, **how: object) -> Ended:
    """Run ranks under torchrun to their end; `how` is as for `started`."""
    with started(folder, ranks, *arguments, **how) as group:
        exit_code = group.wait()
    return ended(exit_code, group)


def ended(exit_code: int, group: Group) -> Ended:
    """Return how a group has ended; of the ranks, those have a code that failed by themselves."""
    codes = {int(rank): int(code) for rank, code in FAILURE.findall(group.said)}
    return Ended(exit_code, codes, group.said)


def run_alone(folder: Path, *arguments: str) -> None:
    """Run the script in one process, without torchrun."""
    done = harness.run_script(folder, *arguments, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


def losses(folder: Path) -> dict[int, float]:
    """Return the training losses of a folder's only run by step."""
    rows = harness.rows(folder)
    return {row["step"]: row["train_loss"] for row in rows if row["train_loss"] is not None}


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Return by how much the losses of two runs of the same steps differ at most."""
    assert one.keys() == other.keys()
    return max(abs(one[step] - other[step]) for step in one)


def logs(folder: Path) -> list[str]:
    """Return the endings of the names of a run's logs: `.log`, `_rank1.log` and so on."""
    names = sorted(path.name for path in (folder / "logs").glob("train_*.log"))
    return [re.sub(r".*\d{8}-\d{6}", "", name) for name in names]


def log_of_rank(folder: Path, rank: int) -> str:
    """Return the log of a rank; of several starts, the newest run's."""
    ending = "" if rank == 0 else f"_rank{rank}"
    paths = (folder / "logs").glob(f"train_*-[0-9][0-9][0-9][0-9][0-9][0-9]{ending}.log")
    return max(paths).read_text(encoding="utf-8")


def weights(folder: Path, step: int) -> dict[str, object]:
    """Return the weights in a checkpoint of a folder's only run."""
    return harness.load(harness.checkpoints(folder)[step])["model_state_dict"]


def same_training(folders: Sequence[Path], step: int) -> bool:
    """Return whether the checkpoints of a step hold the same training, bit for bit.

    All but the generators' states: a rank has seeded them for its own last micro-batch. Each
    micro-batch seeds them anew.
    """
    first, *others = (
        harness.trained(harness.load(harness.checkpoints(folder)[step])) | {"rng": None}
        for folder in folders
    )
    return all(harness.same(first, other) for other in others)
