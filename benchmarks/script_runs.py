"""Run the training script as a user does; print and write the measurements."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from chatgot.machine.measured import cpu_name

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train_with_samples.py"
QUIET = (
    "eval_interval",
    "sample_interval_steps",
    "save_checkpoint_steps",
    "checkpoint_interval_minutes",
)
SMALL = 0.01  # below it a figure is shown with an exponent
POLL_S = 0.1  # between two looks at the rows of a run that goes on

Figures = dict[str, object]  # what a part has measured, by name; JSON can hold the values


@dataclass
class ScriptRun:
    """Measurements of one run of the training script."""

    start_s: float  # from the process's start to its first step
    tokens_per_s: float  # after the warm-up steps
    peak_mib: float  # largest resident memory
    saved_bytes: int  # of the last checkpoint


@dataclass
class Reached:
    """How and when a loss was reached."""

    loss: float  # on held-out text
    step: int
    training_s: float  # in optimizer steps
    wall_s: float  # since the start of the command


def python_path(*folders: Path) -> dict[str, str]:
    """Return this process's environment with `folders` as PYTHONPATH."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(folder) for folder in folders)}


def script_command(config: Path, overrides: Sequence[str]) -> list[str]:
    """Return the command that trains `config` with `overrides` (key=value); the last one wins."""
    command = [sys.executable, str(SCRIPT), "--config", str(config)]
    for override in overrides:
        command += ["--set", override]
    return command


def run_script(
    folder: Path,
    config: Path,
    steps: int,
    *settings: str,
    warmup: int = 1,
    init_from: Path | None = None,
    keep_checkpoints: bool = False,
) -> ScriptRun:
    """Train `steps` steps without evaluations, samples and saves between them, one row each.

    folder: where the run happens; its console output stays in output.txt.
    warmup: steps at the start that the rate leaves out.
    init_from: the model that the run starts from; None: fresh weights.
    keep_checkpoints: those of this run stay in `folder`.
    Side effects: removes the logs and checkpoints that an earlier run left in `folder`.
    """
    shutil.rmtree(folder / "logs", ignore_errors=True)
    overrides = [
        *settings,
        f"training.max_steps={steps}",
        "training.epochs=null",
        "training.log_interval=1",
    ]
    overrides += [f"training.{key}=null" for key in QUIET]
    command = script_command(config, overrides)
    if init_from is not None:
        command += ["--init_from", str(init_from)]
    start_s = time.time()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"the training script failed:\n{(folder / 'output.txt').read_text()[-2000:]}")
    rows = json_lines(run_folder(folder) / "metrics.jsonl")
    checkpoints = sorted((folder / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    saved_bytes = checkpoints[-1].stat().st_size
    for leftover in () if keep_checkpoints else checkpoints:
        leftover.unlink()
    speeds = [number(row["tokens_per_s"]) for row in rows[warmup:] or rows[-1:]]
    peak_mib = usage.ru_maxrss / 1024
    speed = statistics.harmonic_mean(speeds)
    return ScriptRun(begin_of_steps_s(folder) - start_s, speed, peak_mib, saved_bytes)


def run_folder(folder: Path) -> Path:
    """Return the folder with curves, rows and events of the only run in `folder`."""
    (only,) = (folder / "logs" / "tensorboard").iterdir()
    return only


def begin_of_steps_s(folder: Path) -> float:
    """Return when the only run in `folder` was ready for its first step, in seconds since 1970.

    That is when it logged its start; the step follows within some hundredths of a second.
    """
    events = json_lines(run_folder(folder) / "events.jsonl")
    begun = next(str(event["time"]) for event in events if event["kind"] == "start")
    return datetime.fromisoformat(begun).timestamp()


def precision_of(folder: Path) -> str:
    """Return the precision at the start of the only run in `folder`."""
    events = json_lines(run_folder(folder) / "events.jsonl")
    return next(str(event["precision"]) for event in events if event["kind"] == "start")


def json_lines(path: Path) -> list[dict[str, object]]:
    """Return the objects in a JSON lines file, without an incomplete last line."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def number(value: object) -> float:
    """Return a row's value as a number; benchmarks only read rows where it is one."""
    assert isinstance(value, int | float), value
    return value


class RowReader:
    """Reads the rows of a running training until its loss is low enough."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._read = 0  # rows so far
        self._tokens = 0.0  # of the last row that has a rate
        self.training_s = 0.0
        self.best = math.inf

    def reaches(self, loss: float) -> int | None:
        """Read the rows that are new; return the step at which `loss` is reached, if it is."""
        paths = (self._folder / "logs" / "tensorboard").glob("*/metrics.jsonl")
        rows = [row for path in paths for row in json_lines(path)]
        new = rows[self._read :]
        self._read = len(rows)
        for row in new:
            if row["tokens_per_s"]:
                tokens = number(row["tokens"])
                # a rate is about the steps since the row before
                self.training_s += (tokens - self._tokens) / number(row["tokens_per_s"])
                self._tokens = tokens
            # only the last row has the loss over the whole validation part
            if row.get(self._key) is not None:
                self.best = min(self.best, number(row[self._key]))
            if self.best <= loss:
                return int(number(row["step"]))
        return None


def run_until(
    loss: float, key: str, folder: Path, config: Path, overrides: Sequence[str]
) -> Reached:
    """Train until a row's `key` is at `loss` or below, then stop.

    As on a machine that ChatGoT has never run on: nothing is remembered of it, nothing is compiled
    yet.
    """
    for name in ("logs", "checkpoints", "user-cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    reader = RowReader(folder, key)
    start_s = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            script_command(config, overrides),
            cwd=folder,
            stdout=output,
            stderr=output,
            env=os.environ | {"XDG_CACHE_HOME": str(folder / "user-cache")},
        )
    running = True
    try:
        while running:
            # asked before the rows are read, so the last one is not missed
            running = process.poll() is None
            step = reader.reaches(loss)
            wall_s = time.perf_counter() - start_s
            if step is not None:
                return Reached(reader.best, step, reader.training_s, wall_s)
            time.sleep(POLL_S)
    finally:
        process.terminate()  # it saves and ends; one that has ended is left alone
        process.wait()
    tail = (folder / "output.txt").read_text()[-1000:]
    sys.exit(
        f"the script ended (exit code {process.returncode}) "
        f"at loss {reader.best:.4f}, not at {loss:.4f}:\n{tail}"
    )


def with_machine(figures: Mapping[str, object]) -> Figures:
    """Return the figures, with a description of the machine added."""
    return {
        **figures,
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def show(figures: Mapping[str, object]) -> None:
    """Print a table of the figures."""
    for key, value in figures.items():
        print(f"{key:34} {_in_words(value)}")


def _in_words(value: object) -> str:
    """Return a figure as people read it: small numbers with an exponent."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < SMALL else f"{value:,.3f}"


def write_json(figures: Mapping[str, object], output: Path) -> None:
    """Write the figures as JSON."""
    output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
