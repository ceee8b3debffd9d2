"""Tiny runs of the real script: write a text and a YAML, start the script, read its files."""

import copy
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from child_environment import child_environment
from chosen_device import device_name

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train_with_samples.py"

TINY: dict[str, Any] = {
    "seed": 7,
    "device": device_name(),
    "model": {
        "d_model": 16,
        "n_layers": 2,
        "n_head": 2,
        "d_hid": 24,
        "max_seq_length": 16,
        "dropout": 0.1,
    },
    "training": {
        "max_steps": 12,
        "batch_size": 4,
        "accumulate_grad_batches": 3,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-3,
        "warmup_steps": 3,
        "log_interval": 1,
        "eval_interval": 4,
        "eval_batches": 2,
        "sample_interval_steps": 6,
        "save_checkpoint_steps": 5,
        "max_checkpoints_to_keep": 20,
        "threads": 1,
        "report": False,
    },
    "data": {"path": "text.txt"},
    "sampling": {"prompts": ["KING: "], "max_new_tokens": 12},
}
WORDS = "the king queen shall not come to court tonight my lord of war love"


def slow(*cases: object) -> list[Any]:
    """Return cases of a test that are marked slow; a tuple is one case of several values."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=pytest.mark.slow) for value in values]


def slow_but(often: Sequence[object], cases: Iterable[object]) -> list[Any]:
    """Return all cases of a test; those that are not run often are marked slow."""
    return [*often, *slow(*(case for case in cases if case not in often))]


def make_text(characters: int = 6000, seed: int = 0) -> str:
    """Return a dialogue of made-up words; the same arguments give the same text."""
    rng = random.Random(seed)
    words = WORDS.split()
    lines = []
    while sum(map(len, lines)) < characters:
        name = rng.choice(["KING", "QUEEN", "FOOL"])
        speech = " ".join(rng.choice(words) for _ in range(rng.randint(3, 12)))
        lines.append(f"{name}:\n{speech.capitalize()}.\n\n")
    return "".join(lines)[:characters]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of nested sections with changes merged in."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(base.get(key) or {}, value) if isinstance(value, dict) else value
    return result


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return sections from dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return result


def write_config(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """Write text and YAML into `folder`; keyword arguments are sections, merged into TINY."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(make_text(), encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merged(TINY, changes)), encoding="utf-8")
    return path


def run_script(
    folder: Path, *arguments: str, timeout: float = 120, script: Path = SCRIPT, **environment: str
) -> subprocess.CompletedProcess:
    """Run a script in `folder` in a new process, as a user does; its output is text."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=child_environment(**environment),
        check=False,
    )


def load_script(path: Path = SCRIPT) -> ModuleType:
    """Return the script as a fresh module, for many tiny runs in one process."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_here(folder: Path, *arguments: str) -> int:
    """Run the script's main in this process, in `folder`; return its exit code."""
    before = Path.cwd()
    os.chdir(folder)
    threads = torch.get_num_threads()
    try:
        return load_script().main(list(arguments))
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints below `folder`/checkpoints by step."""
    paths = (folder / "checkpoints").glob("*_step_*")
    return {
        int(path.stem.rpartition("_")[2]): path
        for path in paths
        if path.suffix in (".pt", ".sharded") and not path.name.startswith(".")
    }


def load(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint."""
    if path.is_dir():
        from chatgot.checkpointing.checkpoints import load_checkpoint  # few tests have folders

        return load_checkpoint(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def run_dir(folder: Path) -> Path:
    """Return the folder with the curves of the only run below `folder`/logs."""
    (path,) = (folder / "logs" / "tensorboard").iterdir()
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl of the only run below `folder`/logs."""
    return json_lines(folder, "metrics.jsonl")


def events(folder: Path, kind: str | None = None, **fields: object) -> list[dict[str, Any]]:
    """Return the events of the only run below `folder`/logs with this kind and these fields."""
    all_events = json_lines(folder, "events.jsonl")
    expected = fields if kind is None else {"kind": kind, **fields}
    return [event for event in all_events if event.items() >= expected.items()]


def warnings(folder: Path) -> str:
    """Return the text of all warnings of the only run, to look for names and paths in it."""
    return "\n".join(warning["text"] for warning in events(folder, "warning"))


def samples(folder: Path) -> list[dict[str, Any]]:
    """Return the samples of the only run below `folder`/logs, without their times."""
    made = json_lines(folder, "samples.jsonl")
    return [{name: value for name, value in sample.items() if name != "time"} for sample in made]


def json_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return lines_in(run_dir(folder) / name)


def lines_in(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def log_of(folder: Path) -> str:
    """Return the text of the only log below `folder`/logs, for tests of its wording."""
    (path,) = (folder / "logs").glob("train_*.log")
    return path.read_text(encoding="utf-8")


def trained(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what must be bit-equal between two runs of the same steps.

    That is everything except the run's id, its clock and its speed.
    """
    state = copy.deepcopy(checkpoint["state"])
    del state["run_id"]
    for clock in ("time_s", "tokens_per_s"):
        del state["progress"][clock]
    for change in state["micro_batch"]["history"]:
        del change["reason"]  # it names a speed
    names = ("model_state_dict", "optimizer_state_dict", "scaler_state_dict", "rng")
    numbers = ("global_step", "epoch", "loss")
    return {name: checkpoint[name] for name in (*names, *numbers)} | {"state": state}


def same(a: Any, b: Any) -> bool:
    """Return whether two nested states are equal in type, dtype and every bit, on any device."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b
