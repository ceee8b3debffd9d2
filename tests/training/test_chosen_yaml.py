"""The YAML of a chosen run: read back, it is the same configuration."""

import parts
import pytest

from chatgot.config_file import config_of
from chatgot.training.chosen_yaml import yaml_with_reasons

STRANGE = 'a "b" #c: [d], \u2028 🐉 é \\ no'


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"seed": 0, "device": "auto"},
        {"training": {"betas": (0.8, 0.9), "adam_eps": 1e-12, "compile": False}},
        {"training": {"eval_batches": "all", "grad_clip": None, "sample_interval_steps": None}},
        {"training": {"safety": {"max_rewinds": 7, "spike": {"enabled": True}}}},
        {"training": {"dynamic_batch_size": {"enabled": True}, "gradient_checkpointing": True}},
        {"data": {"path": f"/{STRANGE}"}, "sampling": {"prompts": [f"{STRANGE}\n", "no", "6e-4"]}},
        {"paths": {"logs": "no", "checkpoints": "null"}},
    ],
)
def test_the_yaml_reads_back_equal(sections):
    config = parts.config(**sections)
    assert config_of(yaml_with_reasons(config, ["title"], {}), "my.yaml") == config


def test_the_yaml_holds_no_default_and_says_each_reason():
    config = parts.config(model={"dropout": 0.2})
    text = yaml_with_reasons(config, ["What it is for."], {"model.dropout": "many passes"})
    assert text.startswith("# What it is for.\n")
    assert "  dropout: 0.2  # many passes\n" in text
    assert "seed: 5\n" in text
    assert "init_range" not in text
    assert "safety" not in text
