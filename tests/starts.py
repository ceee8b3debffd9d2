"""Starts a training run as a user does, from a model of any kind; and makes such models."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import torch
from chosen_device import device_name
from tiny_tokenizers import subwords, tokenizer_json

SHORT: dict[str, Any] = {"max_steps": 4, "warmup_steps": 0, "eval_interval": None}
# for a text without a YAML
QUICK = ("--set", "training.batch_size=2", "--set", "training.max_steps=2")
QUICK += ("--set", "training.threads=1", "--set", f"device={device_name()}")
QUICK += ("--set", "sampling.max_new_tokens=8")
PADDING = 5  # rows of a model that are no tokens
SIZES = {
    "Llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 64},
}


def save_pretrained(folder: Path, family: str, seed: int = 1) -> None:
    """Let transformers save a model with random weights, and a tokenizer's file next to it."""
    import transformers  # takes seconds

    transformers.utils.logging.disable_progress_bar()
    rows = len(subwords()) + PADDING
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config_class = getattr(transformers, f"{family}Config")
    config = config_class(**SIZES[family], **ends, vocab_size=rows, initializer_range=0.2)
    torch.manual_seed(seed)
    getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(
        config
    ).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")


def train(folder: Path, *arguments: str) -> int:
    """Run the training script in this process, with the checks before torch; return the exit code.

    `harness.train_here` leaves those checks out.
    """
    script = harness.load_script()
    threads = torch.get_num_threads()
    with current_folder(folder):
        try:
            script.refuse_mistakes(list(arguments))
            code: int = script.main(list(arguments))
        except SystemExit as end:
            return int(str(end.code))
        finally:
            torch.set_num_threads(threads)
    return code


def begin(folder: Path, start: Path | str, *options: str, name: str = "fine", **keys: Any) -> int:
    """Train four steps from a model with a tiny YAML; return the exit code."""
    training = SHORT | keys.pop("training", {})
    harness.write_config(folder, name=name, training=training, **keys)
    return train(folder, "--config", f"{name}.yaml", "--init_from", str(start), *options)


def resume(folder: Path, *options: str, path: Path | None = None) -> int:
    """Go on with the run of `begin`, from its last checkpoint or from a file."""
    which = "latest" if path is None else str(path)
    return train(folder, "--config", "fine.yaml", "--resume_from", which, *options)


def checkpoint_of(folder: Path, name: str = "fine", step: int = 4) -> Path:
    """Return the checkpoint of a step of the only run of a name."""
    (path,) = (folder / "checkpoints").glob(f"{name}_*_step_{step}.pt")
    return path


def run_tool(tool: str, folder: Path, *arguments: str) -> int:
    """Run chat.py or export.py in this process; return the exit code."""
    script = harness.load_script(harness.ROOT / "scripts" / f"{tool}.py")
    script.STOP.install = lambda: None
    with current_folder(folder):
        try:
            code: int = script.main(list(arguments))
        except SystemExit as end:
            return int(str(end.code))
    return code


@contextmanager
def current_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
