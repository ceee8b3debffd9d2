"""Each key of the YAML has an effect: changing it changes something that a user can see."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
from chosen_device import ABSENT
from torch import Tensor

from chatgot.config import keys_of

BASE = {
    "training": {
        "max_steps": 4,
        "batch_size": 2,
        "accumulate_grad_batches": 2,
        "eval_interval": 2,
        "sample_interval_steps": 2,
        "save_checkpoint_steps": 1,
        "max_checkpoints_to_keep": 3,
        "warmup_steps": 2,
        "log_interval": 2,
        "grad_clip": 0.1,
    },
}

# key: (another value, the name of what changes, the other keys that it needs to act, if any)
MODERN = {"model.architecture": "modern"}
DIVERGING = {"training.learning_rate": 1e30, "training.warmup_steps": 0, "training.log_interval": 1}
OVERFLOWING = {
    "training.mixed_precision": True,
    "training.precision_dtype": "fp16",
    "model.init_range": 1.0,
    "training.safety.min_loss_scale": 65536.0,
    "training.attention": "sdpa",  # products in fp16 fail the proof with scores this large
}
SPIKING = {
    "training.max_steps": 40,
    "training.safety.spike.enabled": True,
    "training.safety.spike.window": 8,
    "training.safety.spike.threshold": 0.01,
    "training.max_nan_before_fallback": 40,
}
DYNAMIC = "training.dynamic_batch_size."
SEARCHING = {DYNAMIC + "enabled": True, DYNAMIC + "memory_headroom": 0.0}
GROWING = SEARCHING | {
    DYNAMIC + "initial": 1,
    DYNAMIC + "growth_interval_steps": 1,
    DYNAMIC + "minimum_gain": -1,
}
CHANGES: dict[str, tuple[Any, str] | tuple[Any, str, dict[str, Any]]] = {
    "seed": (8, "weights"),
    "device": (ABSENT, "exit_code"),
    "model.architecture": ("modern", "shapes"),
    "model.d_model": (32, "shapes"),
    "model.n_layers": (1, "shapes"),
    "model.n_head": (4, "weights"),
    "model.n_kv_head": (1, "shapes", MODERN),
    "model.head_dim": (4, "shapes", MODERN),
    "model.d_hid": (32, "shapes"),
    "model.max_seq_length": (24, "shapes"),
    "model.rope_base": (100, "weights", MODERN),
    "model.qk_norm": (False, "shapes", MODERN),
    "model.dropout": (0.3, "weights"),
    "model.attention_dropout": (0.3, "weights"),
    "model.layer_norm_eps": (0.1, "weights"),
    "model.bias": (False, "shapes"),
    "model.activation": ("gelu_tanh", "weights"),
    "model.init_range": (0.05, "weights"),
    "model.tie_embeddings": (False, "parameters"),
    "training.batch_size": (4, "tokens"),
    "training.accumulate_grad_batches": (1, "tokens"),
    "training.micro_batch_size": (1, "weights"),
    "training.epochs": (1, "steps", {"training.max_steps": 20, "training.batch_size": 16}),
    "training.max_steps": (3, "steps"),
    "training.max_minutes": (1e-6, "steps"),
    "training.optimizer": ("muon", "weights"),
    "training.learning_rate": (2e-2, "rates"),
    "training.min_learning_rate": (5e-3, "rates"),
    "training.warmup_steps": (1, "rates"),
    "training.lr_schedule": (
        "linear",
        "rates",
        {"training.log_interval": 1, "training.warmup_steps": 0},
    ),
    "training.lr_decay_steps": (8, "rates"),
    "training.decay_share": (
        0.8,
        "rates",
        {"training.lr_schedule": "wsd", "training.log_interval": 1, "training.warmup_steps": 0},
    ),
    "training.stop_when_no_better": (1, "steps", {"training.learning_rate": 30.0}),
    "training.muon_learning_rate": (0.01, "weights", {"training.optimizer": "muon"}),
    "training.muon_momentum": (0.5, "weights", {"training.optimizer": "muon"}),
    "training.muon_beta2": (0.5, "weights", {"training.optimizer": "muon"}),
    "training.weight_decay": (0.5, "weights"),
    "training.input_noise": (0.2, "weights"),
    "training.multi_token_weights": ([0.5], "weights"),
    "training.betas": ([0.8, 0.9], "weights"),
    "training.adam_eps": (1e-3, "weights"),
    "training.grad_clip": (1e-3, "weights", {"training.adam_eps": 1e-3}),
    "training.mixed_precision": (True, "precision", {"training.precision_dtype": "bf16"}),
    "training.precision_dtype": ("fp16", "precision", {"training.mixed_precision": True}),
    "training.max_nan_before_fallback": (2, "rows", DIVERGING),
    "training.safety.min_loss_scale": (1.0, "precision", OVERFLOWING),
    "training.safety.amp_retry_steps": (1, "climbs", OVERFLOWING),
    "training.safety.max_rewinds": (1, "rewinds", DIVERGING),
    "training.safety.rewind_skip_steps": (1, "rewinds", DIVERGING),
    "training.safety.spike.enabled": (False, "high", SPIKING),
    "training.safety.spike.window": (30, "high", SPIKING),
    "training.safety.spike.threshold": (9.0, "high", SPIKING),
    DYNAMIC + "enabled": (True, "searched"),
    DYNAMIC + "initial": (
        2,
        "sizes",
        SEARCHING | {DYNAMIC + "minimum": 1, DYNAMIC + "minimum_gain": 1e6},
    ),
    DYNAMIC + "minimum": (2, "searched", SEARCHING),
    DYNAMIC + "maximum": (2, "searched", SEARCHING),
    DYNAMIC + "growth_interval_steps": (2, "sizes", GROWING),
    DYNAMIC + "growth_backoff": (3.0, "rejected", GROWING | {DYNAMIC + "minimum_gain": 1e6}),
    DYNAMIC + "memory_headroom": (0.9999, "sizes", GROWING),
    DYNAMIC + "minimum_gain": (1e6, "sizes", GROWING),
    "training.gradient_checkpointing": (True, "recomputation"),
    "training.save_checkpoint_steps": (2, "saved", {"training.max_checkpoints_to_keep": 9}),
    "training.checkpoint_interval_minutes": (
        1e-6,
        "saved",
        {"training.save_checkpoint_steps": None},
    ),
    "training.max_checkpoints_to_keep": (1, "saved"),
    "training.background_saves": (True, "in_background"),
    "training.log_interval": (1, "rows"),
    "training.eval_interval": (1, "evaluated"),
    "training.eval_batches": (1, "val_loss"),
    "training.sample_interval_steps": (1, "samples"),
    "training.sample_interval_minutes": (1e-6, "samples"),
    "training.report": (True, "report"),
    "training.threads": (2, "threads"),
    "training.attention": ("products", "kernel", {"training.attention": "sdpa"}),
    # auto gives the reason why it is off; test_compilation.py tests true
    "training.compile": (False, "weighed"),
    "data.path": ("other.txt", "weights"),
    "data.encoding": ("cp037", "weights"),
    "data.test_split": (0.3, "val_loss"),
    "data.tokenizer": ("bpe", "shapes"),
    "data.vocab_size": (300, "shapes", {"data.tokenizer": "bpe"}),
    "data.learn_from": (["FOOL"], "val_loss"),
    "sampling.prompts": (["QUEEN: "], "samples"),
    "sampling.max_new_tokens": (3, "samples"),
    "sampling.temperature": (0, "samples"),
    "sampling.top_k": (1, "samples"),
    "sampling.top_p": (0.01, "samples"),
    "sampling.originality": (False, "originality"),
    "paths.checkpoints": ("elsewhere", "saved"),
    "paths.logs": ("elsewhere", "logs"),
    "paths.cache": ("elsewhere", "cache"),
}


def observe(folder: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train a tiny run with these keys; return all that a user can see of it."""
    folder.mkdir()
    (folder / "other.txt").write_text(harness.make_text(seed=1), encoding="utf-8")
    settings = BASE
    for key, value in overrides.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        settings = harness.merged(settings, value)
    harness.write_config(folder, **settings)
    exit_code = harness.train_here(folder, "--config", "tiny.yaml")
    logs = list(folder.glob("logs/train_*.log"))
    files = harness.checkpoints(folder)
    outside = {
        "exit_code": exit_code,
        "logs": bool(logs),
        "saved": sorted(files),
        "cache": (folder / "data/cache").is_dir(),
        "report": any(folder.glob("logs/tensorboard/*/report.html")),
    }
    if not files or not logs:
        return outside
    last = harness.load(files[max(files)])
    return {
        **outside,
        **of_weights(last["model_state_dict"]),
        **of_state(last),
        **of_rows(harness.rows(folder)),
        "samples": harness.samples(folder),
        **of_events(harness.events(folder)),
    }


def of_weights(weights: dict[str, Tensor]) -> dict[str, Any]:
    storages = {tensor.data_ptr(): tensor.numel() for tensor in weights.values()}
    content = b"".join(tensor.float().numpy().tobytes() for tensor in weights.values())
    return {
        "weights": hashlib.sha256(content).hexdigest(),
        "shapes": {name: tuple(tensor.shape) for name, tensor in weights.items()},
        "parameters": sum(storages.values()),
    }


def of_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    state = checkpoint["state"]
    return {
        "steps": checkpoint["global_step"],
        "tokens": state["progress"]["tokens"],
        "precision": state["modes"]["precision"],
        "threads": state["modes"]["threads"],
        "kernel": state["modes"]["attention"],
        "sizes": [without_reason(change) for change in state["micro_batch"]["history"]],
        "rejected": [without_reason(size) for size in state["micro_batch"]["rejected"]],
    }


def of_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rows": [row["step"] for row in rows],
        "evaluated": [row["step"] for row in rows if row["val_loss"] is not None],
        "val_loss": rows[0]["val_loss"],
        "rates": [row["lr"] for row in rows],
    }


def without_reason(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its reason, whose measured numbers differ from run to run."""
    return {name: value for name, value in row.items() if name != "reason"}


def of_events(events: list[dict[str, Any]]) -> dict[str, Any]:
    def of_kind(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["kind"] == kind]

    precisions = of_kind("precision")
    searches = [event for event in of_kind("micro_batch") if event["reason"] == "fastest"]
    return {
        "originality": [event["step"] for event in of_kind("originality")],
        "weighed": [event["on"] for event in of_kind("compile")],
        "rewinds": [event["skipped"] for event in of_kind("rewind")],
        "climbs": sum(event["reason"] == "proven again" for event in precisions),
        "searched": sorted(searches[-1]["tokens_per_s"]) if searches else None,
        "high": sum("loss" in event for event in of_kind("warning")),
        "in_background": any("waited_seconds" in event for event in of_kind("save")),
        "recomputation": [event["on"] for event in of_kind("gradient_checkpointing")],
    }


def test_every_key_has_a_test_here_or_elsewhere():
    elsewhere = {"data.allow_change"}  # test_resume_rules.py
    elsewhere |= {"data.mixture", "data.replay", "data.replay_path"}  # run/test_growing.py
    elsewhere |= {"data.split"}  # data/test_arranged_texts.py
    elsewhere |= {"data.shards"}  # whole_runs/test_training_on_shards.py
    elsewhere |= {"training.niceness"}  # machine/test_priority.py
    # run/test_lora_runs.py, model/test_lora.py: they need a trained model
    elsewhere |= {f"training.lora.{name}" for name in ("rank", "alpha", "targets")}
    # whole_runs/test_distil.py: they need trained models
    elsewhere |= {f"training.distillation.{name}" for name in ("teachers", "weight", "temperature")}
    # distributed/test_group_runs.py, test_folder_resumes.py: several processes obey them
    of_ranks = ("strategy", "backend", "timeout_s", "one_file_gb")
    elsewhere |= {f"distributed.{name}" for name in of_ranks}
    assert {key for key, _ in keys_of()} == CHANGES.keys() | elsewhere


@pytest.fixture(scope="module")
def observed(tmp_path_factory) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that observes a run without the change, once for all keys with its like."""
    known: dict[str, dict[str, Any]] = {}

    def of(overrides: dict[str, Any]) -> dict[str, Any]:
        name = repr(sorted(overrides.items()))
        if name not in known:
            known[name] = observe(tmp_path_factory.mktemp("observed") / "before", overrides)
        return known[name]

    return of


@pytest.mark.slow  # .ci/run has them: a run of the script for each key
@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_key_changes_something_that_a_user_can_see(key, observed, tmp_path):
    value, changed, *beside = CHANGES[key]
    others = beside[0] if beside else {}
    before = observed(others)
    after = observe(tmp_path / "after", others | {key: value})
    if changed == "exit_code":
        assert (before["exit_code"], after["exit_code"]) == (0, 2)
    else:
        assert before.get(changed) != after.get(changed), before.get(changed)
