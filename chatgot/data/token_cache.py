"""A whole text as ids: encoded once, then found in the cache by the hash of the file's bytes."""

import json
import logging
import mmap
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from chatgot.atomic_file import atomic_file
from chatgot.data.encoding import detect_encoding
from chatgot.data.text_file import check_text_file, file_sha256, text_chunks
from chatgot.data.vocabulary import Vocabulary
from chatgot.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
CODE_POINTS = 0x110000  # Unicode's range
MAX_VOCABULARY = 1 << 16  # how many ids a uint16 can tell apart


class About(TypedDict):
    """What the cache says about the ids of one text."""

    format: int
    tokens: int
    encoding: str
    text_sha256: str
    vocabulary: str


@dataclass(frozen=True)
class Tokens:
    """A whole text as ids, read from the cache through a memory map."""

    ids: NDArray[np.uint16]  # (N,), read-only
    vocabulary: Vocabulary
    # Of the decoded text in UTF-8: the same content in another encoding is the same text
    text_sha256: str
    encoding: str  # what the file was read as


def load_tokens(text_path: Path, cache_dir: Path) -> Tokens:
    """Encode a text into the cache, or find it there by the hash of the file's bytes.

    It streams: memory does not grow with the text.

    Raises: ConfigError (text), StorageError (cache).
    """
    check_text_file(text_path)
    try:
        key = file_sha256(text_path)[:32]
    except OSError as error:
        raise ConfigError(f"{text_path}: cannot be read: {error.strerror or error}") from error
    about_path = cache_dir / f"{key}.json"
    ids_path = cache_dir / f"{key}.uint16"
    about = _read_about(about_path, ids_path)
    if about is None:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            about = _encode(text_path, ids_path)
            with atomic_file(about_path) as file:
                file.write(json.dumps(about).encode())
        except OSError as error:
            message = (
                f"{cache_dir}: the token cache cannot be written: {error.strerror or error}; "
                "set paths.cache"
            )
            raise StorageError(message) from error
    return Tokens(
        _map_ids(ids_path, about["tokens"]),
        Vocabulary(about["vocabulary"]),
        about["text_sha256"],
        about["encoding"],
    )


def _map_ids(ids_path: Path, tokens: int) -> NDArray[np.uint16]:
    with ids_path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        # Windows are read in random order: reading ahead would only fill memory
        memory.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(memory, dtype="<u2", count=tokens)


def _read_about(about_path: Path, ids_path: Path) -> About | None:
    """Return what a finished cache says about itself, or None where no cache can be used."""
    try:
        about = json.loads(about_path.read_bytes())
        usable = about["format"] == CACHE_FORMAT and about.keys() == About.__annotations__.keys()
        if usable and ids_path.stat().st_size == 2 * about["tokens"]:
            return cast(About, about)
        logger.warning("%s does not fit its token cache: encoding the text again", about_path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be used (%s): encoding the text again", about_path, error)
    return None


def _encode(text_path: Path, ids_path: Path) -> About:
    """Write a text's ids; return what the cache says about them. Raises: ConfigError, OSError."""
    encoding = detect_encoding(text_path)
    counts = np.zeros(CODE_POINTS, dtype=np.int64)
    digest = sha256()
    for chunk in text_chunks(text_path, encoding):
        counts += np.bincount(_code_points(chunk), minlength=CODE_POINTS)
        digest.update(chunk.encode())
    used = np.flatnonzero(counts)
    _check_vocabulary(len(used), text_path)
    id_of = np.zeros(CODE_POINTS, dtype="<u2")
    id_of[used] = np.arange(len(used))
    second_digest = sha256()
    tokens = 0
    with atomic_file(ids_path) as file:
        for chunk in text_chunks(text_path, encoding):
            second_digest.update(chunk.encode())
            tokens += len(chunk)
            file.write(id_of[_code_points(chunk)].tobytes())
        if second_digest.digest() != digest.digest():
            message = f"{text_path}: changed while it was read; start again when it is finished"
            raise ConfigError(message)
    return {
        "format": CACHE_FORMAT,
        "tokens": tokens,
        "encoding": encoding,
        "text_sha256": digest.hexdigest(),
        "vocabulary": "".join(map(chr, used)),
    }


def _check_vocabulary(size: int, text_path: Path) -> None:
    if size == 0:
        raise ConfigError(f"{text_path}: holds no text, only a byte order mark")
    if size > MAX_VOCABULARY:
        message = (
            f"{text_path}: {size} different characters, "
            f"at most {MAX_VOCABULARY} can be told apart; is it text?"
        )
        raise ConfigError(message)


def _code_points(chunk: str) -> NDArray[np.uint32]:
    return np.frombuffer(chunk.encode("utf-32-le"), dtype="<u4")
