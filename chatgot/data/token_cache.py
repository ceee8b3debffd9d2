"""A whole text as ids: encoded once, then found in the cache by the hash of the file's bytes."""

import json
import logging
import mmap
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from chatgot.atomic_file import atomic_file
from chatgot.data.encoding import detect_encoding
from chatgot.data.text_file import check_text_file, file_sha256, text_chunks
from chatgot.data.vocabulary import Vocabulary
from chatgot.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)


CACHE_FORMAT = 1


ABOUT = ("tokens", "encoding", "text_sha256", "vocabulary")


CODE_POINTS = 0x110000  # Unicode's range


MAX_VOCABULARY = 1 << 16  # what a uint16 can tell apart


@dataclass(frozen=True)
class Tokens:
    """A whole text as ids, read from the cache through a memory map."""

    ids: np.ndarray  # (N,) uint16, read-only
    vocabulary: Vocabulary
    text_sha256: (
        str  # of the decoded text in UTF-8: the same content in another encoding is the same text
    )
    encoding: str  # what the file was read as


def load_tokens(text_path: Path, cache_dir: Path) -> Tokens:
    """Encode a text into the cache, or find it there; the cache is keyed by the hash of the file's bytes.

    Streams: memory does not grow with the text. Raises: ConfigError (text), StorageError (cache).
    """
    check_text_file(text_path)
    try:
        key = file_sha256(text_path)[:32]
    except OSError as error:
        raise ConfigError(f"{text_path}: cannot be read: {error.strerror or error}") from error
    about_path, ids_path = cache_dir / f"{key}.json", cache_dir / f"{key}.uint16"
    about = _read_about(about_path, ids_path)
    if about is None:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            about = _encode(text_path, ids_path)
            with atomic_file(about_path) as file:
                file.write(json.dumps(about).encode())
        except OSError as error:
            why = error.strerror or error
            raise StorageError(
                f"{cache_dir}: the token cache cannot be written: {why}; set paths.cache"
            ) from error
    ids = np.memmap(ids_path, dtype="<u2", mode="r", shape=(about["tokens"],))
    if hasattr(mmap, "MADV_RANDOM"):
        ids._mmap.madvise(
            mmap.MADV_RANDOM
        )  # windows are read in random order: reading ahead would only fill memory
    return Tokens(
        ids.view(np.ndarray),
        Vocabulary(about["vocabulary"]),
        about["text_sha256"],
        about["encoding"],
    )


def _read_about(about_path: Path, ids_path: Path) -> dict | None:
    """Return what a finished cache says about itself, or None where there is none that can be used."""
    try:
        about = json.loads(about_path.read_bytes())
        usable = about["format"] == CACHE_FORMAT and about.keys() == {"format", *ABOUT}
        if usable and ids_path.stat().st_size == 2 * about["tokens"]:
            return about
        logger.warning("%s does not fit its token cache: encoding the text again", about_path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be used (%s): encoding the text again", about_path, error)
    return None


def _encode(text_path: Path, ids_path: Path) -> dict:
    encoding = detect_encoding(text_path)
    counts = np.zeros(CODE_POINTS, dtype=np.int64)
    digest = sha256()
    for chunk in text_chunks(text_path, encoding):
        counts += np.bincount(_code_points(chunk), minlength=CODE_POINTS)
        digest.update(chunk.encode())
    used = np.flatnonzero(counts)
    if not len(used):
        raise ConfigError(f"{text_path}: holds no text, only a byte order mark")
    if len(used) > MAX_VOCABULARY:
        message = f"{text_path}: {len(used)} different characters, at most {MAX_VOCABULARY} can be told apart; is it text?"
        raise ConfigError(message)
    id_of = np.zeros(CODE_POINTS, dtype="<u2")
    id_of[used] = np.arange(len(used))
    again, tokens = sha256(), 0
    with atomic_file(ids_path) as file:
        for chunk in text_chunks(text_path, encoding):
            again.update(chunk.encode())
            tokens += len(chunk)
            file.write(id_of[_code_points(chunk)].tobytes())
        if again.digest() != digest.digest():
            raise ConfigError(
                f"{text_path}: changed while it was read; start again when it is finished"
            )
    return {
        "format": CACHE_FORMAT,
        "tokens": tokens,
        "encoding": encoding,
        "text_sha256": digest.hexdigest(),
        "vocabulary": "".join(map(chr, used)),
    }


def _code_points(chunk: str) -> np.ndarray:
    return np.frombuffer(chunk.encode("utf-32-le"), dtype="<u4")
