"""What all cases of a benchmark of one device share: the device, the text, the time left."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.script_runs import ROOT
from chatgot.data.token_cache import Tokens, load_tokens

ALPHABET = "\n !&'(),-.:;?0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CHARACTERS = 4_700_000  # of a made-up text: as many as the default text has
SEED = 7
SHIPPED = ROOT / "configs" / "models"
# For a rehearsal on a CPU: what takes seconds there. Its figures say nothing about a card.
SMALL = (
    "model.n_layers=1",
    "model.max_seq_length=32",
    "training.batch_size=2",
    "training.accumulate_grad_batches=1",
    "training.compile=false",
    "training.threads=1",
    "training.eval_batches=1",
    "training.report=false",
    "sampling.max_new_tokens=8",
)


@dataclass(frozen=True)
class OneDevice:
    """A device to measure.

    text: what all runs train on; made_up: it is random characters, so losses mean nothing.
    peak: FLOP/s of its matrix products in bf16.
    deadline: of time.monotonic(); no case may end after it.
    """

    device: torch.device
    folder: Path
    text: Path
    made_up: bool
    tokens: Tokens
    peak: float
    deadline: float

    @property
    def rehearses(self) -> bool:
        """Whether the cases are cut down to what a CPU can do."""
        return self.device.type == "cpu"

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def overrides(self, *more: str) -> list[str]:
        """Return what `--set` puts over a YAML: device, text, and a rehearsal's small shapes."""
        common = [
            f"device={self.device.type}",
            f"data.path={self.text}",
            f"paths.cache={self.folder / 'cache'}",
        ]
        return [*common, *more, *(SMALL if self.rehearses else ())]


def text_to_train_on(asked: Path | None, folder: Path, characters: int) -> tuple[Path, bool]:
    """Return a text, and whether it is made up.

    It is the one asked for, else the default text where this checkout has it already.
    """
    for path in (asked, ROOT / "data" / "shakespeare.txt"):
        if path is not None and path.is_file():
            return path, False
    path = folder / "made_up.txt"
    text = "".join(random.Random(SEED).choices(ALPHABET, k=characters))
    path.write_text(text, encoding="utf-8")
    return path, True


def tokens_of(text: Path, folder: Path) -> Tokens:
    """Load a text as training does; its cache is in `folder`."""
    return load_tokens(text, folder / "cache")
