"""A model to talk to, from one checkpoint file alone."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatgot.checkpointing.checkpoint_file import stored_config
from chatgot.checkpointing.checkpoints import load_checkpoint
from chatgot.checkpointing.stored_vocabulary import rows_of_tokens, stored_vocabulary
from chatgot.config import Config
from chatgot.data.bits_per_byte import bits_per_byte
from chatgot.data.old_text import OldText, old_texts_in
from chatgot.data.vocabulary import Vocabulary
from chatgot.model.gpt import GPT, model_without_weights
from chatgot.sampling.base_weights import ReadBase, whole_weights
from chatgot.sampling.speakers import Speaker


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with all that is needed to talk to it.

    model: in evaluation mode, on its device.
    speakers: most lines first; empty: the text has none, or the file is older than they are.
    val_loss: of the last evaluation up to this step, nats per token; None: there was none.
    from_scratch: its training began with fresh weights, not with another model's.
    data_sha256, data_tokens: of the training text; None: the file does not say how many.
    versions: of what it was trained with, by name; `chatgot` is our own.
    tokens_per_byte: of the held-out text; None: the file does not say how many.
    old_texts: that its run replays, the newest first.
    """

    model: GPT
    vocabulary: Vocabulary
    speakers: tuple[Speaker, ...]
    run_id: str
    step: int
    val_loss: float | None
    path: Path
    config: Config
    from_scratch: bool
    data_sha256: str
    data_tokens: int | None
    versions: dict[str, str]
    tokens_per_byte: float | None = None
    old_texts: tuple[OldText, ...] = ()

    @property
    def val_bits_per_byte(self) -> float | None:
        """The same loss in bits per byte, which is comparable between vocabularies."""
        if self.val_loss is None or self.tokens_per_byte is None:
            return None
        return bits_per_byte(self.val_loss, self.tokens_per_byte)


def load_model(path: Path, device: torch.device, read_base: ReadBase | None = None) -> LoadedModel:
    """Return the model of a checkpoint; the optimizer's state is read and dropped.

    What LoRA has added is merged with the weights that it builds on.

    read_base: reads weights below LoRA's that are in no torch.save file.
    Raises: CheckpointRejected for a file that is missing, damaged or does not fit itself.
    """
    stored = load_checkpoint(path)
    del stored["optimizer_state_dict"]
    config = stored_config(stored, path)
    vocabulary = stored_vocabulary(stored, path)
    weights = whole_weights(stored, path, read_base)
    model = model_without_weights(config.model, rows_of_tokens(weights, vocabulary))
    model.load_state_dict(weights, assign=True)
    model.tie()  # each tied matrix had a tensor of its own in the file's view
    model.requires_grad_(False)
    return LoadedModel(
        model=model.to(device).eval(),
        vocabulary=vocabulary,
        speakers=tuple(Speaker(**speaker) for speaker in stored.get("speakers", [])),
        run_id=stored["run_id"],
        step=stored["global_step"],
        val_loss=marked_loss(stored),
        path=path,
        config=config,
        from_scratch=stored["state"].get("from_seed") is not False,
        data_sha256=stored["data_sha256"],
        data_tokens=stored.get("data_tokens"),
        versions={"chatgot": stored["project_version"], **stored["versions"]},
        tokens_per_byte=stored.get("tokens_per_byte"),
        old_texts=tuple(old_texts_in(stored)),
    )


def marked_loss(stored: dict[str, Any]) -> float | None:
    """Return the last held-out loss among a checkpoint's marks; None: there is none."""
    marks = stored["state"].get("marks")
    loss = marks.get("val_loss") if isinstance(marks, dict) else None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None
