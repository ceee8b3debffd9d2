"""Tiny models for tests of GGUF files, and ways to spoil such a file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import parts
import plain_models

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.data.vocabulary import Characters
from chatgot.exchange.to_gguf import FILE, GGUF
from chatgot.run.assembly import assemble
from chatgot.sampling.loading import LoadedModel, load_model
from chatgot.sampling.speakers import Speaker

RUN_ID = "tiny_20250102-030405"
TEXT = "JULIET:\nO — “café señor” 漢字 don’t, 🐉! What  light?\n\n\nROMEO:\nÀ 1\t2 { ~\n"
CHARACTERS = "".join(sorted({*TEXT, *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:."}))
SPEAKERS = (Speaker("JULIET", 10, 0.5, "ROMEO"), Speaker("ROMEO", 9, 0.45, "JULIET"))
# rows that q8_0 can divide
WIDE = {"d_model": 32, "d_hid": 64, "n_head": 2}


def loaded(
    folder: Path, kind: str = "qwen3", characters: str = CHARACTERS, **keys: object
) -> LoadedModel:
    """Return a model of a kind of plain_models.py, as it comes from its checkpoint."""
    vocabulary = Characters(characters)
    model = plain_models.random_model(kind, len(vocabulary), max_seq_length=128, **keys)
    config = parts.config(model=model.cfg.model_dump())
    run = assemble(config, parts.tokens(alphabet=characters), parts.CPU, None)
    run.state.run_id = RUN_ID
    run.model.load_state_dict(model.state_dict())
    path = folder / f"{RUN_ID}_step_0.pt"
    save_checkpoint(path, run.checkpoint())
    return replace(load_model(path, parts.CPU), speakers=SPEAKERS)


def write(model: LoadedModel, folder: Path, dtype: str = "fp32") -> tuple[Path, list[str]]:
    """Write a model into a new folder; return the folder and the remarks."""
    place = folder / f"gguf_{dtype}"
    place.mkdir()
    return place, GGUF.write(model, dtype, place)


def transpose_a_matrix(folder: Path) -> None:
    tensor = _tensor(folder, "blk.0.attn_output.weight")
    tensor[:] = tensor.T.copy()


def change_rotation(folder: Path) -> None:
    reader = gguf.GGUFReader(folder / FILE, "r+")
    reader.fields["qwen3.rope.freq_base"].parts[-1][0] = 9000.0


def swap_rows_of_a_head(folder: Path) -> None:
    """Put the rows of queries in the other order of rotary positions."""
    tensor = _tensor(folder, "blk.1.attn_q.weight")
    tensor[:] = np.concatenate((tensor[0::2], tensor[1::2]))


def shift_the_vocabulary(folder: Path) -> None:
    """Give each token of one byte the name of the one before it."""
    reader = gguf.GGUFReader(folder / FILE, "r+")
    field = reader.fields["tokenizer.ggml.tokens"]
    names = [field.parts[i] for i in field.data if len(field.parts[i]) == 1]
    before = [name.copy() for name in (names[-1], *names[:-1])]
    for name, other in zip(names, before, strict=True):
        name[:] = other


SPOILT: list[Callable[[Path], None]] = [
    transpose_a_matrix,
    change_rotation,
    swap_rows_of_a_head,
    shift_the_vocabulary,
]


def _tensor(folder: Path, name: str) -> np.ndarray:
    reader = gguf.GGUFReader(folder / FILE, "r+")
    return next(tensor.data for tensor in reader.tensors if tensor.name == name)
