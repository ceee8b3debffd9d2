"""What does a new run start from, when the user names a file or a folder?"""

import stat
from pathlib import Path
from typing import Any

from chatgot.checkpointing.checkpoint_file import stored_config
from chatgot.checkpointing.checkpoints import is_meant_as_folder, read_outline
from chatgot.checkpointing.names import FILE, FOLDER
from chatgot.checkpointing.stored_vocabulary import subwords_of
from chatgot.data.old_text import texts_behind
from chatgot.errors import CheckpointRejected, ImportRejected
from chatgot.exchange.model_folder import CONFIG, is_there
from chatgot.plain_yaml import escaped
from chatgot.run.starting import SHAPE_KEYS, Start
from chatgot.sampling.base_weights import read_weights

GGUF_START = b"GGUF"


def read_start(path: Path) -> Start:
    """Read the weights that a new run starts from: a checkpoint, a folder of a model, or a .gguf.

    Raises: CheckpointRejected for a checkpoint, ImportRejected for a model from elsewhere.
    """
    if path.is_dir() and not is_meant_as_folder(path):
        _refuse_folder_of_files(path)
        from chatgot.exchange.from_transformers import read_hf  # most runs start from no folder

        return read_hf(path)
    if path.suffix == ".safetensors":
        raise ImportRejected(f"{path}: weights alone; name the folder that they are in")
    if path.suffix == ".gguf" or _first_bytes(path) == GGUF_START:
        from chatgot.exchange.from_gguf import read_gguf  # needs a package of its own

        return read_gguf(path)
    if path.suffix not in (FILE, FOLDER) and not is_there(path):
        raise ImportRejected(f"{path}: no such file or folder here; nothing is downloaded")
    return _read_checkpoint(path)


def _refuse_folder_of_files(folder: Path) -> None:
    """Refuse a folder that has files to start from but is no model. Raises: ImportRejected."""
    if is_there(folder / CONFIG):
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ImportRejected(f"{folder}: cannot be listed: {error.strerror or error}") from error
    for ending in (".gguf", FILE, FOLDER):
        files = [path for path in paths if path.suffix == ending]
        if files:
            one = "that file:" if len(files) == 1 else "one of them, such as"
            raise ImportRejected(
                f"{folder}: has no {CONFIG}, but {len(files)} {ending}; name {one} "
                f"{escaped(files[-1])}"
            )


def _first_bytes(path: Path) -> bytes:
    """Return the first bytes of a regular file; none where there is no such file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(len(GGUF_START))
    except OSError:
        return b""


def _read_checkpoint(path: Path) -> Start:
    tensors, tokens = read_weights(path, read_start)
    try:
        outline = read_outline(path)
    except CheckpointRejected:  # weights of another format: read_weights takes more files
        return Start(tensors, tokens)
    vocabulary = subwords_of(outline, path)
    # a model that came from elsewhere goes on in its own shape
    own_run = vocabulary is None and "imported" not in outline
    config = stored_config(outline, path)
    values: dict[str, Any] = config.model.model_dump()
    shape = {key: values[key] for key in SHAPE_KEYS[config.model.architecture]}
    return Start(
        tensors,
        tokens,
        shape=shape,
        vocabulary=vocabulary,
        own_run=own_run,
        texts=tuple(texts_behind(outline, config)),
    )
