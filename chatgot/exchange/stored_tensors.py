"""Which of our tensors is made of which stored ones, and do these fit? Then they are read.

The weights of a folder are in one .safetensors file, or in several that an index names.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chatgot.config import ModelConfig
from chatgot.errors import ImportRejected
from chatgot.exchange.model_folder import is_there, read_json, shown
from chatgot.exchange.safetensors_file import SafetensorsFile, open_safetensors
from chatgot.machine.memory import memory_limits
from chatgot.model.gpt import model_without_weights

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")  # a name without a folder
MOST_SHARDS = 256
GIB = 1 << 30
EMBEDDING = "token_embedding.weight"
HEAD = "head.weight"


@dataclass(frozen=True)
class Piece:
    """A stored tensor that becomes rows of one of ours, or all of it.

    shape: as it is stored. transposed: it is stored (in, out).
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


class StoredTensors:
    """The tensors of a folder's open files, each by its name."""

    def __init__(self, folder: Path, files: list[SafetensorsFile]) -> None:
        """Raises: ImportRejected for a tensor that two files have."""
        self.folder = folder
        self._file_of: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.entries:
                if name in self._file_of:
                    other = self._file_of[name].path.name
                    raise ImportRejected(f"{file.path}: {shown(name)} is in {other}, too")
                self._file_of[name] = file

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def path_of(self, name: str) -> Path:
        return self._file_of[name].path

    def check(self, piece: Piece) -> None:
        """Check that a piece is there, and in its shape. Raises: ImportRejected."""
        if piece.name not in self._file_of:
            raise ImportRejected(
                f"{self.folder}: the weights lack {piece.name}, which the configuration asks for"
            )
        path = self.path_of(piece.name)
        entry = self._file_of[piece.name].entries[piece.name]
        if entry.shape != piece.shape:
            raise ImportRejected(
                f"{path}: {piece.name} has the shape {shown(list(entry.shape))}, "
                f"the configuration asks for {shown(list(piece.shape))}"
            )

    def read(self, piece: Piece) -> Tensor:
        """Return a piece in fp32, as rows of our tensor. Raises: ImportRejected."""
        tensor = self._file_of[piece.name].read(piece.name)
        return tensor.T if piece.transposed else tensor


@contextmanager
def open_weights(folder: Path) -> Iterator[StoredTensors]:
    """Open the weights of a folder for as long as they are read. Raises: ImportRejected."""
    with ExitStack() as stack:
        if is_there(folder / WEIGHTS) or not is_there(folder / INDEX):
            path = _only_file(folder)
            yield StoredTensors(folder, [stack.enter_context(open_safetensors(path))])
            return
        file_of = _index(folder / INDEX)
        names = sorted(set(file_of.values()))
        files = [stack.enter_context(open_safetensors(folder / name)) for name in names]
        stored = StoredTensors(folder, files)
        for name in sorted(stored.names | file_of.keys()):
            said = file_of.get(name)
            found = stored.path_of(name).name if name in stored.names else None
            if said != found:
                raise ImportRejected(
                    f"{folder / INDEX}: says that {shown(name)} is in {said or 'no file'}, "
                    f"but it is in {found or 'none'}"
                )
        yield stored


def _only_file(folder: Path) -> Path:
    """Return the file with all weights. Raises: ImportRejected."""
    if is_there(folder / WEIGHTS):
        return folder / WEIGHTS
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    pickles = [name for name in PICKLES if is_there(folder / name)]
    if pickles:
        raise ImportRejected(
            f"{folder / pickles[0]}: a pickle, which is not read: it could run code; "
            "save the model as safetensors"
        )
    raise ImportRejected(f"{folder}: has no {WEIGHTS}, and no {INDEX}")


def _index(path: Path) -> dict[str, str]:
    """Return which file each tensor is in. Raises: ImportRejected for names outside the folder."""
    file_of = read_json(path).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise ImportRejected(f"{path}: weight_map: expected the file of each tensor")
    for name in file_of.values():
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise ImportRejected(
                f"{path}: {shown(name)} is not the name of a .safetensors file in this folder"
            )
    count = len(set(file_of.values()))
    if count > MOST_SHARDS:
        raise ImportRejected(f"{path}: names {count} files, at most {MOST_SHARDS} are read")
    return file_of


def shapes_of(model: ModelConfig, vocab_size: int, stored: StoredTensors) -> dict[str, list[int]]:
    """Return the shape of each tensor of a model of ours; a tied head is left out.

    Raises: ImportRejected where the files have too few tensors for its layers.
    """
    if model.n_layers > len(stored.names):
        raise ImportRejected(
            f"{stored.folder}: the configuration asks for {model.n_layers} layers, "
            f"the weights have {len(stored.names)} tensors"
        )
    expected = model_without_weights(model, vocab_size).state_dict()
    if model.tie_embeddings:
        del expected[HEAD]
    return {name: list(tensor.shape) for name, tensor in expected.items()}


def read_pieces(
    pieces_of: Mapping[str, list[Piece]], stored: StoredTensors, unread: set[str]
) -> dict[str, Tensor]:
    """Return each of our tensors, in fp32: its pieces one below the other.

    unread: stored tensors that say nothing of their own.
    Raises: ImportRejected for tensors that are missing, do not fit, or that nothing reads.
    """
    pieces = [piece for some in pieces_of.values() for piece in some]
    for piece in pieces:
        stored.check(piece)
    surplus = stored.names - {piece.name for piece in pieces} - unread
    if surplus:
        name = min(surplus)
        what = "a bias" if name.endswith(".bias") else "a tensor"
        raise ImportRejected(
            f"{stored.path_of(name)}: {shown(name)} is {what} that a model of ChatGoT does not have"
        )
    check_memory(stored.folder, 4 * sum(math.prod(piece.shape) for piece in pieces))
    return {
        name: torch.cat([stored.read(piece) for piece in some]).contiguous()
        if len(some) > 1
        else stored.read(some[0]).contiguous()
        for name, some in pieces_of.items()
    }


def check_memory(path: Path, needed: int) -> None:
    """Check that weights fit into the memory that is free. Raises: ImportRejected.

    path: of what holds them. needed: bytes.
    """
    for free, _ in memory_limits(torch.device("cpu")):
        if needed > free:
            raise ImportRejected(
                f"{path}: its weights need {needed / GIB:.1f} GiB in fp32, "
                f"{free / GIB:.1f} GiB of memory are free"
            )
