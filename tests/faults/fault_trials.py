"""The parts of a trial: a folder with a tiny run, a fault, a resume, and a check for losses."""

import hashlib
import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import pytest
from fault_server import FaultServer, Outcome

from chatgot.checkpointing.checkpoints import is_whole

STEPS = 24
TINY: dict[str, Any] = {
    "model": {
        "d_model": 64,
        "n_layers": 2,
        "n_head": 2,
        "d_hid": 96,
        "max_seq_length": 32,
        "dropout": 0.1,
    },
    "training": {
        "max_steps": STEPS,
        "batch_size": 2,
        "accumulate_grad_batches": 3,
        "input_noise": 0.1,
        "multi_token_weights": [0.5, 0.25],
        "warmup_steps": 4,
        "log_interval": 4,
        "eval_interval": 8,
        "eval_batches": 2,
        "sample_interval_steps": 6,
        "save_checkpoint_steps": 2,
        "checkpoint_interval_minutes": None,
        "max_checkpoints_to_keep": 3,
        "report": False,
    },
    "sampling": {"prompts": ["KING: "], "max_new_tokens": 6},
}
TEACHERS = ["first.pt", "second.pt", "third.pt"]
TAUGHT = {"training": {"distillation": {"teachers": TEACHERS}}}
Hooks = list[tuple[str, dict[str, Any]]]
# a save while training waits, and one that a thread writes beside the next steps
BOTH_WAYS = pytest.mark.parametrize("background", [False, True], ids=["waits", "background"])


@dataclass
class Reference:
    """An undisturbed run: every other run must end with the same weights."""

    folder: Path
    final: str
    steps: dict[int, list]
    wall_s: float

    def lost(self, folder: Path) -> str | None:
        """Return how a run differs from the undisturbed one, or None if nothing was lost."""
        broken = [path.name for path in files(folder).values() if not is_whole(path)]
        if broken:
            return f"broken under a final name: {broken}"
        if STEPS not in files(folder):
            return f"did not come to the end: {sorted(files(folder))}"
        steps = read_steps(folder)
        all_steps = steps.keys() | self.steps.keys()
        differing = [step for step in all_steps if steps.get(step) != self.steps.get(step)]
        if differing:
            return f"other data, losses or norms, first in step {min(differing)}"
        if final_hash(files(folder)[STEPS]) != self.final:
            return "the final weights differ"
        return None


@dataclass
class Table:
    """Counts trials, hits and losses for the table of faults."""

    rows: dict[str, list[int]] = field(default_factory=dict)

    def add(self, fault: str, hits: int = 1, lost: int = 0, trials: int = 1) -> None:
        row = self.rows.setdefault(fault, [0, 0, 0])
        for i, n in enumerate((trials, hits, lost)):
            row[i] += n


def way(background: bool) -> str:
    """Return what the table adds to a fault of saves in the background."""
    return ", background" if background else ""


def resumed_from(folder: Path) -> int | None:
    """Return the step from which the folder's only run was last resumed, or None."""
    resumes = harness.events(folder, "resume")
    return resumes[-1]["step"] if resumes else None


def files(folder: Path) -> dict[int, Path]:
    return harness.checkpoints(folder)


def final_hash(path: Path) -> str:
    """Return the hash of all weights, the optimizer's state and the step."""
    content = harness.load(path)
    digest = hashlib.sha256(repr(content["global_step"]).encode())
    state = content["optimizer_state_dict"]["state"]
    tensors = [*content["model_state_dict"].items()]
    tensors += [(f"{i}.{name}", state[i][name]) for i in sorted(state) for name in sorted(state[i])]
    for name, tensor in tensors:
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_steps(folder: Path) -> dict[int, list]:
    """Return each step's last record; torn lines do not count."""
    records = {}
    for line in (folder / "steps.jsonl").read_text().splitlines():
        try:
            step, *record = json.loads(line)
        except ValueError:
            continue
        records[step] = record
    return records


def promised(folder: Path) -> int:
    """Return the last step whose save has returned, or 0."""
    path = folder / "promised.txt"
    steps = path.read_text().split() if path.exists() else []
    return max(map(int, steps), default=0)


def new_folder(parent: Path, name: str, **changes: Any) -> Path:
    """Make a folder with text, token cache and configuration."""
    folder = parent / name
    folder.mkdir(parents=True)
    if (parent / "data").exists():  # the reference's token cache
        shutil.copytree(parent / "data", folder / "data")
    harness.write_config(folder, **harness.merged(TINY, changes))
    return folder


def start(
    server: FaultServer, folder: Path, hooks: Hooks = (), *arguments: str, **keywords: Any
) -> Outcome:
    """Start a run that records each step in steps.jsonl."""
    hooks = [("steps", {}), *hooks]
    return server.run(folder, "--config", "tiny.yaml", *arguments, hooks=hooks, **keywords)


def go_on(
    server: FaultServer, folder: Path, hooks: Hooks = (), *arguments: str, **keywords: Any
) -> Outcome:
    """Resume the latest checkpoint; a run that died before its first one starts again."""
    if not files(folder):
        assert promised(folder) == 0, "a run was lost"
        (folder / "steps.jsonl").unlink(missing_ok=True)
        return start(server, folder, hooks, *arguments, **keywords)
    return start(server, folder, hooks, "--resume_from", "latest", *arguments, **keywords)


def undisturbed(
    server: FaultServer, parent: Path, name: str = "reference", **changes: Any
) -> Reference:
    """Train twice without a fault; both runs end in the same bits.

    Only the second run is as fast as those of the trials, so its time is the one returned.
    """
    first = new_folder(parent, name, **changes)
    second = new_folder(parent, f"{name}_again", **changes)
    outcome = start(server, first)
    assert outcome.exit_code == 0, outcome.said
    if not (parent / "data").exists():
        shutil.copytree(first / "data", parent / "data")
    reference = Reference(first, final_hash(files(first)[STEPS]), read_steps(first), outcome.wall_s)
    reference.wall_s = start(server, second).wall_s
    assert reference.lost(second) is None
    return reference


@dataclass
class Distillation:
    """An undisturbed student of three teachers, whose files lie in its folder."""

    reference: Reference
    teachers: list[Path]  # their own files, which no trial touches

    def student(self, parent: Path, name: str, **changes: Any) -> Path:
        """Make a folder for a run like the student, with copies of the teachers."""
        folder = new_folder(parent, name, **harness.merged(TAUGHT, changes))
        for teacher, copied in zip(self.teachers, TEACHERS, strict=True):
            shutil.copyfile(teacher, folder / copied)
        return folder


def distillation(server: FaultServer, parent: Path) -> Distillation:
    """Train three teachers and, without a fault, their student.

    The order of three counts: sums of two are the same in any order, to the last bit.
    """
    files_of_teachers = [teacher(server, parent, f"teacher{i}", seed=i) for i in range(3)]
    shutil.copytree(parent / "teacher0" / "data", parent / "data")
    undisturbed_one = Reference(parent / "student", "", {}, 0.0)
    taught = Distillation(undisturbed_one, files_of_teachers)
    folder = taught.student(parent, "student")
    outcome = start(server, folder)
    assert outcome.exit_code == 0, outcome.said
    undisturbed_one.final = final_hash(files(folder)[STEPS])
    undisturbed_one.steps = read_steps(folder)
    undisturbed_one.wall_s = outcome.wall_s
    return taught


def teacher(server: FaultServer, parent: Path, name: str, **changes: Any) -> Path:
    """Train a model of a few steps; return its last file."""
    short = {"training": {"max_steps": 2, "sample_interval_steps": None}}
    folder = new_folder(parent, name, **harness.merged(short, changes))
    outcome = start(server, folder)
    assert outcome.exit_code == 0, outcome.said
    return files(folder)[2]


def spread(n: int, total: int, seed: int = 0) -> list[int]:
    """Return `n` different numbers of range(total), including the first and the last, or all."""
    if n >= total:
        return list(range(total))
    inner = random.Random(seed).sample(range(1, total - 1), n - 2)
    return sorted({0, total - 1, *inner})
