"""The configurations that ship with the project."""

import harness
import pytest

from chatgot.config import Config, flat
from chatgot.config_file import load_config

SHIPPED = sorted((harness.ROOT / "configs" / "models").rglob("*.yaml"))
DEBUG = harness.ROOT / "configs" / "models" / "debug"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_has_its_row_in_the_docs(path):
    config, named_by_set = load_config(path)
    assert isinstance(config, Config)
    assert not named_by_set
    assert path.name in (harness.ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("chatgot_small_14M_gradient_checkpoint", "training.gradient_checkpointing", True),
        ("chatgot_small_14M_mixed_precision", "training.mixed_precision", True),
        ("chatgot_small_14M_dynamic_batch", "training.dynamic_batch_size.enabled", True),
    ],
)
def test_a_debug_config_differs_from_the_clean_one_only_in_its_mechanism(name, key, value):
    clean = flat(load_config(DEBUG / "chatgot_small_14M_clean.yaml")[0].model_dump())
    other = flat(load_config(DEBUG / f"{name}.yaml")[0].model_dump())
    assert {k: other[k] for k in other if other[k] != clean[k]} == {key: value}


def test_the_clean_debug_config_has_the_values_shared_by_its_family():
    config, _ = load_config(DEBUG / "chatgot_small_14M_clean.yaml")
    values = flat(config.model_dump())
    shared = {
        "seed": 1337,
        "model.max_seq_length": 256,
        "model.dropout": 0,
        "model.attention_dropout": 0,
        "model.tie_embeddings": True,
        "training.batch_size": 12,
        "training.accumulate_grad_batches": 1,
        "training.epochs": 1,
        "training.learning_rate": 6e-4,
        "training.min_learning_rate": 6e-5,
        "training.warmup_steps": 100,
        "training.betas": (0.9, 0.95),
        "training.weight_decay": 0.1,
        "training.grad_clip": 1.0,
        "training.mixed_precision": False,
        "training.gradient_checkpointing": False,
        "training.compile": False,
        "training.max_checkpoints_to_keep": 3,
    }
    assert {name: values[name] for name in shared} == shared
