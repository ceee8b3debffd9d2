"""Any configuration within its bounds trains, saves and resumes bit for bit, or is refused.

Refused means exit code 2, or 3 for a teacher that is no checkpoint, before any work: no run folder,
no checkpoint. Some extreme rates end in exit code 4 (diverged), which is the answer of a run, not
of its settings.
"""

import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import harness
import pytest
import random_configs
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from log_handlers import take_log_down
from pydantic import ValidationError

from chatgot.config import Config, keys_of
from chatgot.config_file import config_of, effective_yaml

SPEAKERS = ("KING", "QUEEN", "FOOL")
STEPS = 2
TEXT = "text.txt"


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
    "training.stop_when_no_better": None,
    "training.save_checkpoint_steps": 1,
    "training.max_checkpoints_to_keep": 9,
}


class Trial:
    """One configuration in a folder of its own: trained, saved, resumed, and what came of it."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = folder
        self.sections = harness.merged(BASE, harness.nested(values))
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
            take_log_down()

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


def comparable(path: Path) -> Any:
    """Return what must be equal, with a text in place of NaN, which does not equal itself."""

    def without_nan(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_nan(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(without_nan, value))
        return "NaN" if isinstance(value, float) and math.isnan(value) else value

    return without_nan(harness.trained(harness.load(path)))


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
    is_taught = "training.distillation.teachers" in values
    if code == 2 or (code == 3 and is_taught):
        assert no_work_was_done(trial)
        return "refused"
    logs = "".join(path.read_text() for path in trial.logs_dir.glob("train_*.log*"))
    assert "Traceback" not in logs, logs
    assert "failed" not in logs, logs
    if code == 4:
        return "diverged"
    assert code == 0, logs
    if any(event["kind"] == "rewind" for event in trial.events()):
        return "rewound"  # a rate so high that weights overflow: its steps were undone
    if not trial.has_steps():  # ended early, or not kept: these keys leave a trace of each step
        kept = folder / "kept"
        kept.mkdir()
        trial = Trial(kept, values | KEPT)
        code = trial.train(*starts)
        if code == 4:  # time had ended the other one before that
            return "diverged"
        assert code == 0
        if not trial.has_steps() and any(event["kind"] == "skip" for event in trial.events()):
            return "skipped"  # a base so far off that no gradient is finite: nothing to save
    assert trial.has_steps()
    whole = trial.files()[STEPS]
    expected = comparable(whole)
    assert trial.train("--resume_from", str(trial.files()[1])) == 0
    assert whole.with_name(f"{whole.name}.superseded").exists(), "the step was made again"
    assert harness.same(comparable(whole), expected)
    return "trained"


def not_compiled(function, **how):
    return function


CONFIGURATIONS = random_configs.configurations(TEXT, SPEAKERS)


def one(values: dict[str, Any]) -> str:
    """Try out one configuration in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # compiling takes a minute; tests of its own try it
        patch.setattr(torch, "compile", not_compiled)
        return try_out(Path(folder), values)


def outcomes(examples: int) -> Counter[str]:
    """Try out this many configurations, always the same; return what came of them."""
    counts: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CONFIGURATIONS)
    def try_each(values: dict[str, Any]) -> None:
        counts[one(values)] += 1

    try_each()
    return counts


def test_some_configurations_train_and_resume_or_are_refused():
    assert outcomes(12)["trained"] >= 3


@pytest.mark.slow
def test_each_of_300_configurations_trains_and_resumes_or_is_refused():
    counts = outcomes(300)
    assert counts["trained"] >= 100, counts


def test_every_key_is_drawn():
    """A strategy that leaves a key out would try nothing of it."""
    drawn: set[str] = set()

    @settings(max_examples=400, derandomize=True, database=None, deadline=None)
    @given(CONFIGURATIONS)
    def note(values: dict[str, Any]) -> None:
        drawn.update(values)

    note()
    assert drawn == {name for name, _ in keys_of()}


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(CONFIGURATIONS)
def test_an_accepted_configuration_survives_yaml_and_a_checkpoint(values):
    """Its hash stays the same, and so does every value."""
    try:
        config = Config.model_validate(harness.merged(BASE, harness.nested(values)))
    except ValidationError:
        return
    assert Config.model_validate(config.model_dump(mode="json")) == config
    assert config_of(effective_yaml(config), "again.yaml") == config
