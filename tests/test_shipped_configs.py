"""The experiments that ship with the project."""

import harness
import pytest

from chatgot.config import Config, flat
from chatgot.config_file import load_config

SHIPPED = sorted((harness.ROOT / "configs" / "models").rglob("*.yaml"))
DEBUG = harness.ROOT / "configs" / "models" / "debug"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_is_named_in_the_readme(path):
    config, named_by_set = load_config(path)
    assert isinstance(config, Config)
    assert not named_by_set
    assert path.name in (harness.ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("chatgot_small_14M_gradient_checkpoint", "training.gradient_checkpointing", True),
        ("chatgot_small_14M_mixed_precision", "training.mixed_precision", True),
        ("chatgot_small_14M_dynamic_batch", "training.dynamic_batch_size.enabled", True),
    ],
)
def test_a_debug_config_is_the_clean_one_but_for_its_mechanism(name, key, value):
    clean, other = (
        flat(load_config(DEBUG / f"{n}.yaml")[0].model_dump())
        for n in ("chatgot_small_14M_clean", name)
    )
    assert {k: other[k] for k in other if other[k] != clean[k]} == {key: value}


def test_the_clean_debug_config_has_the_values_that_the_family_shares():
    config, _ = load_config(DEBUG / "chatgot_small_14M_clean.yaml")
    training, model = config.training, config.model
    assert (
        training.batch_size,
        training.accumulate_grad_batches,
        training.epochs,
        config.seed,
    ) == (12, 1, 1, 1337)
    assert (training.learning_rate, training.min_learning_rate, training.warmup_steps) == (
        6e-4,
        6e-5,
        100,
    )
    assert (training.betas, training.weight_decay, training.grad_clip) == ((0.9, 0.95), 0.1, 1.0)
    assert (training.mixed_precision, training.gradient_checkpointing) == (False, False)
    assert (model.dropout, model.attention_dropout, model.tie_embeddings, model.max_seq_length) == (
        0,
        0,
        True,
        256,
    )
    assert (training.max_checkpoints_to_keep, training.compile) == (3, False)
