"""Any configuration within its bounds trains, saves and resumes bit for bit, or is refused.

Refused means exit code 2 before any work: no run folder, no checkpoint. Some extreme rates end in
exit code 4 (diverged), which is the answer of a run, not of its settings.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import conftest
import harness
import pytest
import random_configs
import torch
import yaml
from hypothesis import HealthCheck, given, settings

from chatgot.config import Config

SPEAKERS = ("KING", "QUEEN", "FOOL")
STEPS = 2
TEXT = "text.txt"


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


BASE = harness.merged(
    harness.TINY,
    {
        "training": {
            "max_steps": STEPS,
            "save_checkpoint_steps": 1,
            "batch_size": 2,
            "eval_interval": 1,
            "sample_interval_steps": 1,
        },
        "model": {"d_model": 16, "d_hid": None},
        "data": {"path": TEXT},
    },
)
KEPT = {
    "training.max_minutes": None,
    "training.save_checkpoint_steps": 1,
    "training.max_checkpoints_to_keep": 9,
}


class Trial:
    """One configuration in a folder of its own: trained, saved, resumed, and what came of it."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = folder
        self.sections = harness.merged(BASE, nested(values))
        self.sections["training"]["max_steps"] = STEPS
        (folder / TEXT).write_text(harness.make_text(), encoding="utf-8")
        text = yaml.safe_dump(self.sections, allow_unicode=True)
        (folder / "tiny.yaml").write_text(text, encoding="utf-8")
        paths = Config.model_fields["paths"].default.model_dump() | self.sections.get("paths", {})
        self.checkpoint_dir = folder / paths["checkpoints"]
        self.logs_dir = folder / paths["logs"]

    def train(self, *arguments: str) -> int:
        try:
            return harness.train_here(self.folder, "--config", "tiny.yaml", *arguments)
        finally:
            conftest.take_log_down()

    def files(self) -> dict[int, Path]:
        return {
            int(path.stem.rpartition("_")[2]): path
            for path in self.checkpoint_dir.glob("tiny_*_step_*.pt")
        }

    def has_steps(self) -> bool:
        return {1, STEPS} <= self.files().keys()

    def events(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for path in self.logs_dir.glob("tensorboard/*/events.jsonl")
            for line in path.read_text(encoding="utf-8").splitlines()
        ]


def no_work_was_done(trial: Trial) -> bool:
    return not trial.files() and not list(trial.logs_dir.glob("tensorboard/*"))


def try_out(folder: Path, values: dict[str, Any]) -> str:
    """Train with a configuration, resume from its own first step; return what came of it."""
    trial = Trial(folder, values)
    starts: list[str] = []
    if trial.sections["training"].get("lora", {}).get("rank") is not None:
        base = folder / "base"
        base.mkdir()
        without = {name: value for name, value in values.items() if ".lora." not in name}
        below = Trial(base, without | {"training.max_minutes": None})
        if below.train() == 0:
            starts = ["--init_from", str(below.files()[STEPS])]
    code = trial.train(*starts)
    if code == 2:
        assert no_work_was_done(trial)
        return "refused"
    logs = "".join(path.read_text() for path in trial.logs_dir.glob("train_*.log*"))
    assert "Traceback" not in logs, logs
    assert "failed" not in logs, logs
    if code == 4:
        return "diverged"
    assert code == 0, logs
    if not trial.has_steps():  # ended by time, or not kept: these keys leave a trace of each step
        kept = folder / "kept"
        kept.mkdir()
        trial = Trial(kept, values | KEPT)
        assert trial.train(*starts) == 0
    assert trial.has_steps()
    whole = trial.files()[STEPS]
    expected = harness.trained(harness.load(whole))
    assert trial.train("--resume_from", str(trial.files()[1])) == 0
    assert whole.with_name(f"{whole.name}.superseded").exists(), "the step was made again"
    assert harness.same(harness.trained(harness.load(whole)), expected)
    return "trained"


def not_compiled(function, **how):
    return function


CONFIGURATIONS = random_configs.configurations(TEXT, SPEAKERS)
OUTCOMES: Counter[str] = Counter()


def one(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", not_compiled)  # takes a minute, and tests of its own try it
        outcome = try_out(Path(folder), values)
    OUTCOMES[outcome] += 1


THOROUGH = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SHORT = settings(THOROUGH, max_examples=25)


@SHORT
@given(CONFIGURATIONS)
def test_any_configuration_trains_and_resumes_or_is_refused(values):
    one(values)


@pytest.mark.slow
@THOROUGH
@given(CONFIGURATIONS)
def test_each_of_300_configurations_trains_and_resumes_or_is_refused(values):
    one(values)
