"""One run of the training script under a time limit, and what its files say of it."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.script_runs import Figures, json_lines, number, run_folder, script_command
from chatgot.checkpointing.checkpoint_file import load_checkpoint
from chatgot.report.run_record import Board, read_board

GRACE_S = 30.0  # a program that is asked to end may save first
POLL_S = 0.1  # between two looks at a running program
STOPPED = 143  # exit code of a training that SIGTERM stopped
TAIL = 600  # characters of its output that an error shows


class CaseFailedError(Exception):
    """A program failed, or did not end in time; the text says which and why."""


@dataclass
class FinishedRun:
    """What one finished run wrote down of itself."""

    folder: Path
    wall_s: float  # of the command, with its imports
    rows: list[dict[str, object]]
    events: list[dict[str, object]]
    board: Board

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints by step."""
        paths = (self.folder / "checkpoints").glob("*_step_*.pt")
        return {int(path.stem.rpartition("_")[2]): path for path in paths}

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints[max(self.checkpoints)]


def run_limited(
    command: Sequence[str],
    folder: Path,
    limit_s: float,
    environment: Mapping[str, str],
    enough: Callable[[], bool] | None = None,
) -> tuple[str, float]:
    """Run a program in `folder`; return its output and its seconds.

    enough: says when to stop it by SIGTERM; None: it ends by itself.
    Raises: CaseFailedError where it fails, or takes longer than `limit_s`; then it is ended.
    """
    start = time.perf_counter()
    path = folder / "output.txt"
    accepted = {0}
    with path.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )
        while process.poll() is None:
            if time.perf_counter() - start > limit_s:
                _end(process)
                raise CaseFailedError(f"not done within {limit_s:.0f} s, so it was ended")
            if enough is not None and enough():
                accepted.add(STOPPED)
                _end(process)
            time.sleep(POLL_S)
    seconds = time.perf_counter() - start
    said = path.read_text(encoding="utf-8", errors="replace")
    if process.returncode not in accepted:
        raise CaseFailedError(f"exit code {process.returncode}: {said[-TAIL:].strip()}")
    return said, seconds


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_limited_script(
    config: Path,
    overrides: Sequence[str],
    folder: Path,
    limit_s: float,
    *,
    resume_from: Path | None = None,
    until_step: int | None = None,
) -> FinishedRun:
    """Train in `folder` as a user does, with a cache for measurements that other cases share.

    until_step: stop the run once it has a row of this step. The run itself does not know it, so it
    chooses as for its whole length. Raises: CaseFailedError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = script_command(config, overrides)
    if resume_from is not None:
        command += ["--resume_from", str(resume_from)]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder.parent.parent / "user-cache")}
    enough = None if until_step is None else partial(_has_row, folder, until_step)
    _, wall_s = run_limited(command, folder, limit_s, environment, enough)
    return read_finished(folder, wall_s)


def _has_row(folder: Path, step: int) -> bool:
    paths = (folder / "logs" / "tensorboard").glob("*/metrics.jsonl")
    return any(number(row["step"]) >= step for path in paths for row in json_lines(path))


def read_finished(folder: Path, wall_s: float = 0.0) -> FinishedRun:
    """Return what the only run in `folder` has written."""
    path = run_folder(folder)
    return FinishedRun(
        folder=folder,
        wall_s=wall_s,
        rows=json_lines(path / "metrics.jsonl"),
        events=json_lines(path / "events.jsonl"),
        board=read_board(path),
    )


def figures_of(run: FinishedRun, flops_per_token: float, peak: float) -> Figures:
    """Return speed, memory, losses, and where the time of a run went.

    peak: FLOP/s of this machine's matrix products.
    """
    measured = [row["tokens_per_s"] for row in run.rows]
    rates = [number(rate) for rate in measured if rate is not None]
    rate = statistics.median(rates[1:] or rates)  # the first one covers steps that warm up
    last = run.rows[-1]
    saves = sum(event["kind"] == "save" for event in run.events)
    figures: Figures = {
        "tokens_per_s": rate,
        "mfu": rate * flops_per_token / peak,
        "peak_memory_mib": max(value for _, value in run.board.curves["perf/memory_mib"]),
        "steps": last["step"],
        "train_loss": last["train_loss"],
        "val_loss_full": last.get("val_loss_full"),
        "val_bits_per_byte_full": last.get("val_bits_per_byte_full"),
        "training_s": last["time_s"],
        "wall_s": run.wall_s,
        "saves": saves,
    }
    for part in ("evaluation", "sampling", "saving"):
        figures[f"{part}_s"] = sum(value for _, value in run.board.curves[f"time/{part}_s"])
    return figures


def chosen(run: FinishedRun) -> Figures:
    """Return what the program chose by itself: its modes, sizes, and measured choices."""
    state = load_checkpoint(run.last_checkpoint)["state"]
    figures: Figures = {f"mode.{name}": value for name, value in state["modes"].items()}
    figures["micro_batch"] = state["micro_batch"]["size"]
    for event in run.events:
        if event["kind"] == "choice":
            figures[f"choice.{event['what']}"] = event["chosen"]
        elif event["kind"] in ("compile", "gradient_checkpointing"):
            figures[f"{event['kind']}.on"] = event["on"]
            figures[f"{event['kind']}.reason"] = event["reason"]
    return figures
