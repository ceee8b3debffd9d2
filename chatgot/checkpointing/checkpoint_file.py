"""A checkpoint as one file: written whole or not at all, and trusted only once it is verified.

A checkpoint is a `torch.save` zip that `torch.load(weights_only=True)` reads. The zip's comment is
the SHA-256 (hex) of everything before it, so that a single flipped bit anywhere is noticed before
anything is read from the file.
"""

import errno
import io
import os
import pickle
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import torch
from pydantic import ValidationError

from chatgot.atomic_file import atomic_file
from chatgot.checkpointing.names import FILE, NAME, RUN_ID
from chatgot.checkpointing.pickle_check import odd_call
from chatgot.checkpointing.tensors import all_tensors, not_finite
from chatgot.checkpointing.zip_structure import END_OF_ZIP, NAME_SHOWN, odd_entries
from chatgot.config import MOST_TEACHERS, Config, ModelConfig
from chatgot.data.old_text import are_old_texts
from chatgot.data.prompts import is_speaker_name
from chatgot.data.tokenizer_json import MOST_CHARACTERS, MOST_TOKENS
from chatgot.data.vocabulary import END_OF_TEXT
from chatgot.errors import CheckpointRejected, OtherFormat
from chatgot.file_owner import why_not_opened
from chatgot.logs.waiting import Advance, waiting

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# takes the words and the total of `waiting`; the block is told what counts its progress
Shown = Callable[[str, float | None], AbstractContextManager[Advance]]

# 1: a vocabulary without END_OF_TEXT, one string; written before the project had a version
FORMAT_VERSION = 2
DIGEST = 64  # bytes of a SHA-256 in hex
READ_SIZE = 1 << 20  # bytes that are hashed at a time
ZIP_START = b"PK\x03\x04"
ZIP_END = b"PK\x05\x06"
NAMES_SHOWN = 6  # of what is wrong, in one message
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)
SCHEMA: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "run_id": str,
    "epoch": int,
    "global_step": int,
    "loss": (float, type(None)),
    "model_state_dict": dict,  # with LoRA: the added weights alone
    "base": dict,  # of LoRA: where the weights below the added ones are, see BASE_KEYS
    "optimizer_state_dict": dict,
    "scaler_state_dict": dict,
    "state": dict,
    "rng": dict,
    "config": dict,
    "config_path": str,  # absolute, of the YAML; "": unknown
    "config_sha256": str,
    "working_dir": str,  # absolute; relative paths of the configuration begin here
    "vocabulary": list,  # the name of each id: END_OF_TEXT, then single characters; or subwords
    "tokenizer": str,  # of subwords: the tokenizer.json
    "end_of_text": str,  # of subwords: the name of the token that ends a document
    "speakers": list,  # who speaks in the training part: dicts with the keys of SPEAKER_KEYS
    "imported": dict,  # of a model from elsewhere: `kind`, `keys` of its shape, longest `context`
    "old_texts": list,  # that a grown run replays: see data/old_text.py
    "teachers": list,  # that a run learns from: where their files are, as of a base
    "data_sha256": str,
    "data_tokens": int,  # of the whole text, held-out part included
    "tokens_per_byte": float,  # of the held-out part: turns its loss into bits per byte
    "project_version": str,
    "versions": dict,
}
OPTIONAL = {
    "speakers",  # the first files of version 2 have none of these
    "data_tokens",
    "tokens_per_byte",
    "working_dir",
    "imported",  # only a run that started from a model from elsewhere has it
    "base",  # only a run with LoRA has one
    "old_texts",  # only a run with `data.replay` has some
    "teachers",  # only a run with `training.distillation` has some
    "tokenizer",  # both are there where the vocabulary is subwords
    "end_of_text",
}
BASE_KEYS = {"path", "sha256"}  # an absolute path; weights_sha256 of the weights, in hex
SHA256 = re.compile(r"[0-9a-f]{64}")
LONGEST_PATH = 32767  # characters, on Windows
SPEAKER_KEYS = {"name": str, "lines": int, "share": float, "partner": str}
MOST_SPEAKERS = 1000
MOST_LINES = 1 << 62
LONGEST_TEXT = 1 << 62  # tokens
MOST_TOKENS_PER_BYTE = 1e9  # an end-of-text token has no byte


class _HashingWriter(io.RawIOBase):
    """Hashes what it writes; delays the zip's last record to add the comment.

    advance: is told the bytes that have been written.
    """

    def __init__(self, file: BinaryIO, advance: Advance) -> None:
        self.file = file
        self.advance = advance
        self.digest = sha256()
        self.tail = b""
        self.error: OSError | None = None  # torch hides it behind an error of its own

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer") -> int:
        view = memoryview(data).cast("B")
        if len(view) >= END_OF_ZIP:
            self._pass_on(self.tail)
            self._pass_on(view[:-END_OF_ZIP])
            self.tail = bytes(view[-END_OF_ZIP:])
        else:
            pending = self.tail + bytes(view)
            self._pass_on(pending[:-END_OF_ZIP])
            self.tail = pending[-END_OF_ZIP:]
        return len(view)

    def finish(self) -> None:
        """Write the zip's last record, whose end is the comment's length, and the comment."""
        self._pass_on(self.tail[:-2] + DIGEST.to_bytes(2, "little"))
        self.file.write(self.digest.hexdigest().encode())
        self.file.flush()

    def _pass_on(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.advance(len(data))


def save_checkpoint(
    path: Path,
    checkpoint: dict[str, Any],
    replace: bool = False,
    *,
    shown: Shown = waiting,
    mode: int | None = None,
) -> bool:
    """Write one checkpoint: temporary file, hash, fsync, verification, rename, fsync of the folder.

    A file that has this name already is replaced only when it is damaged, or with `replace`;
    otherwise it stays, and False is returned.

    shown: shows the progress. mode: of the file, as `atomic_file` takes it.
    Raises: OSError with an errno when the disk refuses; then no file has changed.
    """
    if not replace and is_whole(path, shown):
        return False

    def verify(temporary: Path) -> None:
        with temporary.open("rb") as file:
            problem = damage(file, advance)
            if problem is not None:
                raise OSError(errno.EIO, f"the file read back is {problem}", str(temporary))
            try:
                outline = _outline(file, path)
            except CheckpointRejected as error:
                raise RuntimeError(
                    f"what was to be saved could not be loaded again: {error}"
                ) from error
            # a rename keeps inode, size and mtime
            _remember_verified(path, file)
        assert all(outline[key] == checkpoint[key] for key in ("run_id", "global_step"))

    total = 2 * tensor_bytes(checkpoint)  # each byte is written, then read back
    with (
        shown(f"saving {path.name}", total) as advance,
        atomic_file(path, verify, mode) as file,
    ):
        writer = _HashingWriter(file, advance)
        try:
            torch.save(checkpoint, cast("IO[bytes]", writer))
        except RuntimeError as error:
            raise writer.error or error from None
        writer.finish()
    return True


def tensor_bytes(checkpoint: dict[str, Any]) -> int:
    """Return the bytes that a checkpoint's tensors take in its file: tied weights once."""
    plain = (tensor for _, tensor in all_tensors(checkpoint) if is_plain(tensor))
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in plain}.values())


def damage(file: BinaryIO, advance: Advance) -> str | None:
    """Return what is wrong with a checkpoint's bytes; None: they are whole.

    Looks at the hash first and at the zip's entries second, and unpickles nothing.

    advance: is told the bytes that have been hashed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size < END_OF_ZIP + DIGEST or file.read(len(ZIP_START)) != ZIP_START:
        return f"not a checkpoint: {size} bytes, no zip file"
    body = size - DIGEST
    file.seek(body - END_OF_ZIP)
    end = file.read(END_OF_ZIP)
    stored = file.read(DIGEST)
    if sha256_of(file, body, advance) != stored:
        return "damaged: its SHA-256 does not match (truncated, altered, or not written by ChatGoT)"
    if not end.startswith(ZIP_END) or not end.endswith(DIGEST.to_bytes(2, "little")):
        return "damaged: it does not end in the record that ChatGoT writes"
    return odd_entries(file)


def sha256_of(file: BinaryIO, size: int, advance: Advance) -> bytes:
    """Return the SHA-256 (hex) of the first `size` bytes of a file."""
    digest = sha256()
    left = size
    file.seek(0)
    while left:
        block = file.read(min(left, READ_SIZE))
        if not block:
            break
        digest.update(block)
        advance(len(block))
        left -= len(block)
    return digest.hexdigest().encode()


def is_whole(path: Path, shown: Shown = waiting) -> bool:
    """Return whether `path` is a regular file that a finished save wrote under this name.

    Its bytes are verified once, and again when inode, size or time have changed. The values of its
    tensors are not read, so this does not say whether they fit a model.

    shown: shows the progress of the verification.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return False
        if _identity(path.name, status) in _verified:
            return True
        with reading(path) as file:
            if _find_damage(file, path, shown) is not None:
                return False
            _outline(file, path)
            _remember_verified(path, file)
        return True
    except (OSError, CheckpointRejected):
        return False


def read_outline(path: Path) -> dict[str, Any]:
    """Return a checkpoint's plain values (`run_id`, `global_step`, `config`), without its tensors.

    The bytes are verified first, once as in `is_whole`; no tensor is read, so that this is cheap.
    Values that contain tensors are left out.

    Raises: CheckpointRejected naming file and reason.
    """
    with reading(path) as file:
        if _identity(path.name, os.fstat(file.fileno())) not in _verified:
            _refuse_damage(file, path)
        outline = _outline(file, path)
        _remember_verified(path, file)
    return {key: value for key, value in outline.items() if not _holds_tensors(value)}


def _holds_tensors(value: object) -> bool:
    return next(all_tensors(value), None) is not None


def _find_damage(file: BinaryIO, path: Path, shown: Shown = waiting) -> str | None:
    """Return what `damage` finds; of a large file it shows how far that is."""
    with shown(f"verifying {path.name}", os.fstat(file.fileno()).st_size) as advance:
        return damage(file, advance)


def _refuse_damage(file: BinaryIO, path: Path) -> None:
    problem = _find_damage(file, path)
    if problem is not None:
        raise CheckpointRejected(f"{path}: {problem}")


def _identity(name: str, status: os.stat_result) -> tuple[str, int, int, int, int]:
    return name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _remember_verified(path: Path, file: BinaryIO) -> None:
    _verified.add(_identity(path.name, os.fstat(file.fileno())))


# a cache of `is_whole`: emptied, it costs time and nothing else
_verified: set[tuple[str, int, int, int, int]] = set()


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file for as long as it is read.

    Raises: CheckpointRejected naming the file, also for what the disk refuses while it is read.
    """
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise CheckpointRejected(f"{path}: cannot be read: {error.strerror or error}") from error


def open_regular(path: Path) -> BinaryIO:
    """Open a file without following a link and without waiting for a pipe.

    Raises: CheckpointRejected.
    """
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
    )
    try:
        if path.is_symlink():
            raise CheckpointRejected(
                f"{path}: is a link; name the file itself: {path.parent / path.readlink()}"
            )
        descriptor = os.open(path, flags)
    except OSError as error:
        near = "" if isinstance(error, PermissionError) else _near(path)
        raise CheckpointRejected(f"{path}: {why_not_opened(path, error)}{near}") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or not about.st_size:
        os.close(descriptor)
        raise CheckpointRejected(
            f"{path}: empty, or not a regular file; expected a checkpoint (.pt)"
        )
    return os.fdopen(descriptor, "rb")


def _near(path: Path) -> str:
    """Return a hint at the checkpoints in the folder of a path that does not exist."""
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:
        return ""
    matches = [match for match in map(NAME.fullmatch, names) if match]
    if not matches:
        return "; there is no checkpoint in that folder"
    newest = max(matches, key=lambda match: (int(match["step"]), match.string))
    return f"; in that folder: {newest.string}"


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint for an exact resume: bytes verified first, then the schema.

    It is opened once, so that what was verified is what is loaded. Nothing from the file is
    executed.

    Raises: CheckpointRejected naming file and reason.
    """
    with reading(path) as file:
        _refuse_damage(file, path)
        _outline(file, path)
        with waiting(f"loading {path.name}"):
            checkpoint: dict[str, Any] = read_tensors(file, path)
        _remember_verified(path, file)
    tensors = all_tensors(checkpoint)
    without_values = [name for name, tensor in tensors if tensor.device.type != "cpu"]
    if without_values:
        raise CheckpointRejected(f"{path}: not plain CPU tensors: {some_names(without_values)}")
    not_finite_names = not_finite(checkpoint)
    if not_finite_names:
        raise CheckpointRejected(f"{path}: NaN or infinity in {some_names(not_finite_names)}")
    return checkpoint


def some_names(names: list[str]) -> str:
    """Return the first of some names, for a message."""
    return ", ".join(names[:NAMES_SHOWN])


def _outline(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Return a checkpoint's content, its tensors without values, after checking schema and name.

    Costs milliseconds and no memory, whatever sizes the file declares. Raises: CheckpointRejected.
    """
    outline = _check_schema(read_tensors(file, path, "meta"), path)
    own_name = f"{outline['run_id']}_step_{outline['global_step']}{FILE}"
    if NAME.fullmatch(path.name) and path.name != own_name:
        raise CheckpointRejected(
            f"{path}: the file was renamed: inside it is {own_name}; give it its own name again"
        )
    try:
        tensors = list(all_tensors(outline))
    except ValueError as error:
        raise CheckpointRejected(f"{path}: {error}") from error
    not_plain = [name for name, tensor in tensors if not is_plain(tensor)]
    if not_plain:
        raise CheckpointRejected(f"{path}: not plain CPU tensors: {some_names(not_plain)}")
    # twice: tied weights are two tensors over the same bytes
    if sum(tensor.nbytes for _, tensor in tensors) > 2 * os.fstat(file.fileno()).st_size:
        raise CheckpointRejected(f"{path}: declares tensors that are larger than the file")
    return outline


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is one that a run saves, as far as type and layout say."""
    return tensor.dtype in DTYPES and tensor.layout == torch.strided and tensor.is_contiguous()


def read_tensors(file: BinaryIO, path: Path, device: str = "cpu") -> Any:
    """Unpickle tensors and plain values; nothing is executed.

    device: where the tensors go; `meta`: they have no values.
    Raises: CheckpointRejected for anything else.
    """
    cannot = f"{path}: cannot be read as tensors and plain values"
    try:
        found = odd_call(file)
        if found is None:
            return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # torch's words advise to trust the file
        raise CheckpointRejected(f"{cannot}: its pickle is damaged or crafted") from error
    except Exception as error:  # crafted bytes can raise anything; nothing was executed
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise CheckpointRejected(f"{cannot}: {reason}") from error
    raise CheckpointRejected(f"{cannot}: it asks for {found[:NAME_SHOWN]}")


def _check_schema(checkpoint: object, path: Path) -> dict[str, Any]:
    """Return a checkpoint's content when each key of SCHEMA is there, and no other.

    Raises: CheckpointRejected.
    """
    if not isinstance(checkpoint, dict):
        raise CheckpointRejected(
            f"{path}: holds a {type(checkpoint).__name__}, expected a ChatGoT checkpoint"
        )
    version = checkpoint.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        shown = version if isinstance(version, int | str | None) else "unreadable"
        raise OtherFormat(
            f"{path}: format version {shown}, this ChatGoT resumes version {FORMAT_VERSION} only; "
            "--init_from takes its weights"
        )
    wrong = wrong_keys(checkpoint)
    if wrong:
        raise CheckpointRejected(f"{path}: invalid or missing: {', '.join(wrong)}")
    return checkpoint


def wrong_keys(checkpoint: dict[str, Any]) -> list[str]:
    """Return the keys that a checkpoint lacks, that SCHEMA does not have, or with a wrong value."""
    wrong = [
        key
        for key, kind in SCHEMA.items()
        if not (isinstance(checkpoint[key], kind) if key in checkpoint else key in OPTIONAL)
    ]
    wrong += [str(key) for key in checkpoint if key not in SCHEMA]
    return wrong or _odd_values(checkpoint)


def _odd_values(checkpoint: dict[str, Any]) -> list[str]:
    """Return the keys whose values have the right type but are not what a run saves.

    Run id and step become parts of a path.
    """
    is_right = {
        "run_id": RUN_ID.fullmatch(checkpoint["run_id"]) is not None,
        "global_step": checkpoint["global_step"] >= 0,
        "vocabulary": _is_vocabulary(checkpoint["vocabulary"], "tokenizer" in checkpoint),
        "tokenizer": len(checkpoint.get("tokenizer", "")) <= MOST_CHARACTERS,
        "end_of_text": _is_end(checkpoint),
        "speakers": _are_speakers(checkpoint.get("speakers", [])),
        "imported": _is_import(checkpoint.get("imported")),
        "base": _is_base(checkpoint.get("base")),
        "old_texts": are_old_texts(checkpoint.get("old_texts", [])),
        "teachers": _are_teachers(checkpoint.get("teachers", [])),
        "data_tokens": _is_count(checkpoint.get("data_tokens", 1)),
        "tokens_per_byte": 0 <= checkpoint.get("tokens_per_byte", 1.0) <= MOST_TOKENS_PER_BYTE,
    }
    return [key for key in is_right if not is_right[key]]


def _is_vocabulary(tokens: list[Any], has_tokenizer: bool) -> bool:
    """Return whether these are END_OF_TEXT and then distinct single characters; or any names.

    has_tokenizer: they are subwords, which have names of any kind, all distinct.
    """
    if not all(isinstance(token, str) for token in tokens):
        return False
    if has_tokenizer:
        return 0 < len(tokens) <= MOST_TOKENS and len(set(tokens)) == len(tokens)
    characters = tokens[1:]
    return (
        tokens[:1] == [END_OF_TEXT]
        and all(len(character) == 1 for character in characters)
        and len(set(characters)) == len(characters)
    )


def _is_end(checkpoint: dict[str, Any]) -> bool:
    """Return whether the end of a text is one of the subwords, and there only with these."""
    if "tokenizer" not in checkpoint:
        return "end_of_text" not in checkpoint
    return checkpoint.get("end_of_text") in checkpoint["vocabulary"]


def _is_base(value: object) -> bool:
    """Return whether this says where the weights below LoRA's are; None: there is no LoRA."""
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != BASE_KEYS:
        return False
    path = value["path"]
    sha256 = value["sha256"]
    return (
        isinstance(path, str)
        and len(path) <= LONGEST_PATH
        and "\0" not in path
        and (PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute())
        and isinstance(sha256, str)
        and SHA256.fullmatch(sha256) is not None
    )


def _are_teachers(teachers: list[Any]) -> bool:
    """Return whether each of these says where a teacher is, and there are not too many."""
    return len(teachers) <= MOST_TEACHERS and all(
        teacher is not None and _is_base(teacher) for teacher in teachers
    )


def _is_count(value: object) -> bool:
    """Return whether this is a number of tokens that a text can have."""
    return type(value) is int and 1 <= value <= LONGEST_TEXT


def _are_speakers(speakers: list[Any]) -> bool:
    """Return whether these are speakers with distinct names, and no more than a run saves."""
    if len(speakers) > MOST_SPEAKERS or not all(map(_is_speaker, speakers)):
        return False
    names = {speaker["name"] for speaker in speakers}
    return len(names) == len(speakers) and all(
        speaker["partner"] in names or not speaker["partner"] for speaker in speakers
    )


def _is_speaker(value: object) -> bool:
    """Return whether this is a speaker: exact types, a name as in a text, numbers in range."""
    if not isinstance(value, dict) or value.keys() != SPEAKER_KEYS.keys():
        return False
    if any(type(value[key]) is not kind for key, kind in SPEAKER_KEYS.items()):
        return False
    return (
        is_speaker_name(value["name"])
        and 0 <= value["lines"] <= MOST_LINES
        and 0 <= value["share"] <= 1
    )


def _is_import(value: object) -> bool:
    """Return whether this says what was imported: a kind, names of keys of `model`, a context."""
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"kind", "keys", "context"}:
        return False
    if not _is_count(value["context"]):
        return False
    keys = value["keys"]
    if not (isinstance(value["kind"], str) and isinstance(keys, list)):
        return False
    return all(isinstance(key, str) and key in ModelConfig.model_fields for key in keys)


def stored_config(checkpoint: Mapping[str, Any], path: Path) -> Config:
    """Return a checkpoint's configuration; it is data like the rest, so its keys are checked.

    Raises: CheckpointRejected.
    """
    wrong = wrong_settings(checkpoint["config"])
    if wrong:
        raise CheckpointRejected(
            f"{path}: its configuration is not one of this ChatGoT: {some_names(wrong)}"
        )
    return Config.model_validate(checkpoint["config"])


def wrong_settings(config: object) -> list[str]:
    """Return the keys of a stored configuration that this ChatGoT does not accept."""
    try:
        Config.model_validate(config)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        return [".".join(map(str, problem["loc"])) for problem in problems]
    return []


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], str | list[str] | None]:
    """Read weights for a new run from any torch.save zip: (named tensors, vocabulary or None).

    The vocabulary is a list of tokens (format 2), or a string of characters, the i-th of which is
    the text of id i (format 1). For subwords, `subwords_in` reads the tokenizer. Files without
    ChatGoT's hash are read after the zip's own checksums pass.

    Raises: CheckpointRejected.
    """
    with reading(path) as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            raise CheckpointRejected(f"{path}: not a torch.save zip file")
        if _find_damage(file, path) is not None:
            with waiting(f"verifying {path.name}"):
                problem = odd_entries(file, checksums=True)
            if problem is not None:
                raise CheckpointRejected(f"{path}: {problem}")
        with waiting(f"loading {path.name}"):
            content = read_tensors(file, path)
    if not isinstance(content, dict):
        raise CheckpointRejected(f"{path}: holds no named weights")
    state = content.get("model_state_dict", content)
    weights = _plain_weights(state) if isinstance(state, dict) else {}
    if not weights:
        raise CheckpointRejected(f"{path}: holds no named weights")
    has_tokenizer = isinstance(content.get("tokenizer"), str)
    return weights, _stored_tokens(content.get("vocabulary"), has_tokenizer)


def _stored_tokens(value: object, has_tokenizer: bool) -> str | list[str] | None:
    """Return a vocabulary of either format as it is; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and _is_vocabulary(value, has_tokenizer):
        return value
    return None


def _plain_weights(state: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Return those of a state's values that are plain tensors with a name."""
    return {
        name: tensor
        for name, tensor in state.items()
        if isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and tensor.device.type == "cpu"
        and is_plain(tensor)
    }
