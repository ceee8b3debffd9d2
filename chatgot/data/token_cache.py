"""A whole text as ids: encoded once, then found in the cache by the hash of the file's bytes."""

import json
import logging
import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from chatgot.atomic_file import atomic_file
from chatgot.data.encoding import detect_encoding
from chatgot.data.text_file import check_text_file, file_sha256, text_chunks
from chatgot.data.vocabulary import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    Characters,
    DocumentSplitter,
    Vocabulary,
)
from chatgot.errors import ConfigError, StorageError
from chatgot.logs.waiting import Advance, waiting

logger = logging.getLogger(__name__)

CACHE_FORMAT = 2
CODE_POINTS = 0x110000  # Unicode's range
END_OF_TEXT_POINT = CODE_POINTS  # of the end-of-text token: the first number above Unicode
MAX_CHARACTERS = (1 << 16) - 1  # a uint16 has room for these and the end-of-text token


class About(TypedDict):
    """What the cache says about the ids of one text."""

    format: int
    tokens: int
    encoding: str
    text_sha256: str
    vocabulary: list[str]


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
            passes = 2  # one finds the characters, one writes their ids
            total = passes * text_path.stat().st_size
            with waiting(f"encoding {text_path.name}", total) as advance:
                about = _encode(text_path, ids_path, advance)
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
        Characters.from_tokens(about["vocabulary"]),
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
            Characters.from_tokens(about["vocabulary"])  # raises where it is damaged
            return cast(About, about)
        logger.warning("%s does not fit its token cache: encoding the text again", about_path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be used (%s): encoding the text again", about_path, error)
    return None


def _encode(text_path: Path, ids_path: Path, advance: Advance) -> About:
    """Write a text's ids; return what the cache says about them.

    advance: is told the bytes that have been read, in both passes.

    Raises: ConfigError, OSError.
    """
    encoding = detect_encoding(text_path)
    counts = np.zeros(CODE_POINTS + 1, dtype=np.int64)
    digest = sha256()
    chunks = text_chunks(text_path, encoding, advance=advance)
    for points in code_points(_hashed(chunks, digest.update)):
        counts += np.bincount(points, minlength=CODE_POINTS + 1)
    counts[END_OF_TEXT_POINT] = 0
    characters = np.flatnonzero(counts)
    _check_characters(len(characters), text_path)
    id_of = np.zeros(CODE_POINTS + 1, dtype="<u2")
    id_of[END_OF_TEXT_POINT] = END_OF_TEXT_ID
    id_of[characters] = np.arange(1, len(characters) + 1)
    second_digest = sha256()
    tokens = 0
    with atomic_file(ids_path) as file:
        chunks = text_chunks(text_path, encoding, advance=advance)
        for points in code_points(_hashed(chunks, second_digest.update)):
            tokens += len(points)
            file.write(id_of[points].tobytes())
        if second_digest.digest() != digest.digest():
            message = f"{text_path}: changed while it was read; start again when it is finished"
            raise ConfigError(message)
    return {
        "format": CACHE_FORMAT,
        "tokens": tokens,
        "encoding": encoding,
        "text_sha256": digest.hexdigest(),
        "vocabulary": Characters("".join(map(chr, characters))).tokens,
    }


def _hashed(chunks: Iterable[str], update: Callable[[bytes], object]) -> Iterator[str]:
    """Yield the chunks, and hand each as UTF-8 to the `update` of a hash."""
    for chunk in chunks:
        update(chunk.encode())
        yield chunk


def _check_characters(count: int, text_path: Path) -> None:
    if count == 0:
        raise ConfigError(f"{text_path}: holds no text, only a byte order mark or {END_OF_TEXT}")
    if count > MAX_CHARACTERS:
        message = (
            f"{text_path}: {count} different characters, "
            f"at most {MAX_CHARACTERS} can be told apart; is it text?"
        )
        raise ConfigError(message)


def code_points(chunks: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
    """Yield the tokens of a text: the code point of a character, END_OF_TEXT_POINT for that token.

    The tokens do not depend on where the chunks end.
    """
    splitter = DocumentSplitter()
    for chunk in chunks:
        yield _join_documents(splitter.feed(chunk))
    yield _join_documents(splitter.end())


def _join_documents(documents: list[str]) -> NDArray[np.uint32]:
    end_of_text = np.array([END_OF_TEXT_POINT], dtype="<u4")
    arrays = []
    for document in documents:
        arrays.append(np.frombuffer(document.encode("utf-32-le"), dtype="<u4"))
        arrays.append(end_of_text)
    return np.concatenate(arrays[:-1])
