"""A real model of others, tuned with LoRA as a user does it with the script."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
import smollm2

pytestmark = [
    pytest.mark.slow,  # 93 MB are fetched; 20 steps of 135 million weights
    pytest.mark.network,
]

SETTINGS = (
    "data.path=plays.txt",
    "device=cpu",
    "training.lora.rank=8",
    "training.learning_rate=1e-3",
    "training.max_steps=20",
    "training.batch_size=2",
    "training.log_interval=5",
    "training.eval_interval=20",
    "training.eval_batches=2",
    "training.save_checkpoint_steps=20",
    "training.sample_interval_steps=20",
    "model.max_seq_length=64",
    "sampling.max_new_tokens=16",
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that is gone afterwards; pytest would keep 200 MB."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_smollm2_learns_a_text_with_lora(folder):
    start = smollm2.fetch(folder)
    (folder / "plays.txt").write_text(harness.make_text(60_000), encoding="utf-8")
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    what = ("--config", "chatgot_finetune", "--init_from", str(start))
    done = harness.run_script(folder, *what, *options, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = harness.rows(folder)
    losses = [row["train_loss"] for row in rows if row.get("train_loss") is not None]
    assert losses[-1] < losses[0]
    held_out = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
    assert held_out[-1] < held_out[0] - 0.3
    weights = harness.load(harness.checkpoints(folder)[20])["model_state_dict"]
    assert all("lora" in name for name in weights)
    assert len(harness.samples(folder)) >= 2
