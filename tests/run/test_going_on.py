"""The advice for a finished run is followed to the letter, and training goes on."""

import re
import shlex
from pathlib import Path

import harness
import parts
import pytest

from chatgot.config import MAX_MINUTES, Config
from chatgot.numerics.optim import epochs_beyond, steps_of_epochs

SMALL = {"batch_size": 4, "accumulate_grad_batches": 1, "save_checkpoint_steps": 1}
# What the run was begun with, and what is set when it is resumed.
FINISHED: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "steps": ({"max_steps": 3}, {}),
    "steps lowered": ({"max_steps": 9}, {"max_steps": 2}),
    "steps lowered to one": ({"max_steps": 9}, {"max_steps": 1}),
    "epochs": ({"max_steps": None, "epochs": 1, "batch_size": 100}, {}),
    "epochs lowered": ({"max_steps": None, "epochs": 5, "batch_size": 100}, {"epochs": 1}),
    "a step of several epochs": (
        {"max_steps": None, "epochs": 1, "batch_size": 300, "accumulate_grad_batches": 3},
        {},
    ),
    "epochs before steps": ({"max_steps": 90, "epochs": 1, "batch_size": 100}, {}),
    "steps before epochs": ({"max_steps": 2, "epochs": 9}, {}),
    "steps and epochs at once": ({"max_steps": 9}, {"max_steps": 3, "epochs": 1}),
    "minutes": ({"max_steps": 9}, {"max_minutes": 1e-9}),
    "minutes alone": (
        {"max_steps": None, "max_minutes": 1e-6, "lr_decay_steps": 50},
        {},
    ),
    "steps and minutes": ({"max_steps": 5}, {"max_steps": 4, "max_minutes": 1e-9}),
    "all lowered": (
        {"max_steps": 7, "epochs": 20, "batch_size": 100},
        {"max_steps": 1, "epochs": 1, "max_minutes": 1e-9},
    ),
}
OFTEN = ["epochs lowered", "steps and epochs at once", "minutes alone", "all lowered"]


def train(folder: Path, *arguments: str) -> int:
    return harness.train_here(folder, "--config", "tiny.yaml", *arguments)


def overrides(settings: dict[str, object]) -> list[str]:
    words = []
    for key, value in settings.items():
        words += ["--set", f"training.{key}={value}"]
    return words


@pytest.mark.parametrize("kind", harness.slow_but(OFTEN, FINISHED))
def test_the_advice_for_a_finished_run_lets_it_go_on(tmp_path, capsys, kind):
    begun, lowered = FINISHED[kind]
    calm = {"eval_interval": None, "sample_interval_steps": None}
    harness.write_config(tmp_path, training={**SMALL, **calm, **begun})
    assert train(tmp_path) == 0
    before = max(harness.checkpoints(tmp_path))
    capsys.readouterr()
    assert train(tmp_path, "--resume_from", "latest", *overrides(lowered)) == 0
    said = re.search(r"is finished at step (\d+); to go on add (.*)", capsys.readouterr().err)
    assert said is not None
    assert int(said[1]) == before
    again = ["--resume_from", "latest", *overrides(lowered), *shlex.split(said[2])]
    assert train(tmp_path, *again) == 0
    assert max(harness.checkpoints(tmp_path)) > before


@pytest.mark.parametrize("windows", [1, 3, 10, 7919])
@pytest.mark.parametrize("sequences", [1, 4, 10, 2**24])
def test_one_more_epoch_than_done_is_always_one_more_step(windows, sequences):
    for step in (0, 1, 2, 100, 10**9):
        epochs = epochs_beyond(step, windows, sequences)
        assert steps_of_epochs(epochs, windows, sequences) > step


def test_the_advice_is_within_the_bounds_of_its_keys():
    """Where an epoch is a tiny part of a step, and after 1,900 years of training."""
    run = parts.run(training={"epochs": 10**9, "max_steps": None, "compile": False})
    run.state.progress.global_step = 10**12
    run.state.progress.position = 10**12
    settings = run.config.training.model_dump()
    run.config = Config.model_validate(
        run.config.model_dump() | {"training": settings | {"max_minutes": 0.5 * MAX_MINUTES}}
    )
    run.state.progress.time_s = 60 * 0.9 * MAX_MINUTES
    words = run.how_to_extend().replace("--set training.", "").split()
    longer = {name: value for name, _, value in (word.partition("=") for word in words)}
    values = {name: None if text == "null" else float(text) for name, text in longer.items()}
    longest = run.config.model_dump() | {"training": settings | values}
    run.config = Config.model_validate(longest)
    assert not run.ended()
