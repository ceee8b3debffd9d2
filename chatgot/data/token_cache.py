"""A whole text as ids: encoded once, then found in the cache by the hash of the file's bytes.

As characters, the text has a vocabulary of its own. As subwords, it is encoded by those of a model,
whose hash is in the names of the files, too.
"""

import json
import logging
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from chatgot.atomic_file import atomic_file
from chatgot.data.code_points import CharacterIds, CharacterSet, code_points
from chatgot.data.encoding import CHUNK_BYTES, detect_encoding
from chatgot.data.growing_ids import growing_ids
from chatgot.data.known_hashes import file_hash, ids_checksum
from chatgot.data.lengths import split_index
from chatgot.data.odd_characters import (
    OddCharacter,
    OddCharacters,
    describe,
    odd_code_points,
)
from chatgot.data.subword_children import encoding_of_batches
from chatgot.data.subwords import Piece, SubwordEncoder, Subwords
from chatgot.data.text_file import check_text_file, text_chunks
from chatgot.data.vocabulary import (
    END_OF_TEXT,
    Characters,
    Ids,
    Vocabulary,
)
from chatgot.errors import ConfigError, StorageError
from chatgot.logs.waiting import Advance, waiting

if TYPE_CHECKING:
    from chatgot.data.shards.configured import ShardTokens

logger = logging.getLogger(__name__)

CACHE_FORMAT = 4
SUBWORDS_FORMAT = 3  # of a cache of subwords
SUBWORD_CHUNK = 1 << 20  # bytes of a text that become subwords at a time
HASH = 32  # hex digits of a hash in a file's name
MOST_SHOWN = 20  # characters in one message
MAX_CHARACTERS = (1 << 16) - 1  # a uint16 has room for these and the end-of-text token


class About(TypedDict):
    """What the cache says about the ids of one text."""

    format: int
    tokens: int
    ids_crc32: int  # of the bytes of the ids
    encoding: str
    text_sha256: str
    byte_order_marks: int  # left out, within the text
    odd_characters: list[OddCharacter]
    vocabulary: list[str]


class AboutSubwords(TypedDict):
    """What the cache says about the subwords of one text."""

    format: int
    tokens: int
    ids_crc32: int  # of the bytes of the ids
    encoding: str
    text_sha256: str
    byte_order_marks: int
    odd_characters: list[OddCharacter]


@dataclass(frozen=True)
class Part:
    """The ids of one source of a text: two stretches, from a place up to before another."""

    name: str
    train: tuple[int, int]
    held_out: tuple[int, int]


@dataclass(frozen=True)
class Tokens:
    """A whole text as ids, read from the cache through a memory map.

    All ids of the training part come first, those of the held-out part last.
    """

    ids: Ids  # (N,), read-only
    vocabulary: Vocabulary
    # Of the decoded text in UTF-8: the same content in another encoding is the same text
    text_sha256: str
    encoding: str  # what the file was read as
    cache: Path | None = None  # its files in the cache, without their suffixes; None: not cached
    n_train: int | None = None  # ids of the training part; None: `data.test_split` says
    parts: tuple[Part, ...] = ()  # of a text that has several sources
    # The training part where it is larger than this machine; of `ids`, then, the training part is
    # only its head
    shards: "ShardTokens | None" = None

    @property
    def n_tokens(self) -> int:
        """Return how many tokens the text has."""
        if self.shards is None:
            return len(self.ids)
        assert self.n_train is not None
        return self.shards.n_tokens + len(self.ids) - self.n_train

    def training_length(self, test_split: float) -> int:
        """Return how many ids the training part has."""
        return split_index(len(self.ids), test_split) if self.n_train is None else self.n_train


def load_tokens(
    text_path: Path,
    cache_dir: Path,
    vocabulary: Vocabulary | None = None,
    encoding: str | None = None,
) -> Tokens:
    """Encode a text into the cache, or find it there by the hash of the file's bytes.

    It streams: memory does not grow with the text.

    vocabulary: the subwords to encode it by; None or characters: its own characters.
    encoding: of the file; None: it is guessed.
    Raises: ConfigError (text), StorageError (cache).
    """
    check_text_file(text_path)
    key = file_hash(text_path, cache_dir)[:HASH]
    if encoding is not None:
        key += f"-{encoding}"
    try:
        if isinstance(vocabulary, Subwords):
            return _load_subwords(text_path, cache_dir, key, vocabulary, encoding)
        return _load_characters(text_path, cache_dir, key, encoding)
    except OSError as error:
        message = (
            f"{cache_dir}: the token cache cannot be written: {error.strerror or error}; "
            "set paths.cache"
        )
        raise StorageError(message) from error


def _load_characters(text_path: Path, cache_dir: Path, key: str, encoding: str | None) -> Tokens:
    """Return a text as characters. Raises: ConfigError, OSError."""
    about_path = cache_dir / f"{key}.json"
    ids_path = cache_dir / f"{key}.uint16"
    about = _read_about(about_path, ids_path)
    if about is None:
        passes = 2  # one finds the characters, one writes their ids
        with _making(text_path, cache_dir, passes) as advance:
            about = _encode(text_path, ids_path, encoding, advance)
        _write_about(about_path, about)
    _warn_of_oddities(text_path, about)
    return Tokens(
        _map_ids(ids_path, about["tokens"], np.dtype("<u2")),
        Characters.from_tokens(about["vocabulary"]),
        about["text_sha256"],
        about["encoding"],
        cache_dir / key,
    )


def _load_subwords(
    text_path: Path, cache_dir: Path, key: str, vocabulary: Subwords, encoding: str | None
) -> Tokens:
    """Return a text as subwords. Raises: ConfigError, OSError."""
    name = f"{key}-{vocabulary.sha256[:HASH]}"
    dtype = np.dtype("<u2" if len(vocabulary) <= 1 << 16 else "<u4")
    about_path = cache_dir / f"{name}.json"
    ids_path = cache_dir / f"{name}.{dtype.name}"
    about = _read_about_subwords(about_path, ids_path, dtype)
    if about is None:
        with _making(text_path, cache_dir, passes=1) as advance:
            reader = _Reader(text_path, encoding)
            about = _encode_subwords(reader, ids_path, vocabulary, dtype, advance)
        if not key.startswith(file_hash(text_path, cache_dir)[:HASH]):
            raise _changed(text_path)
        _write_about(about_path, about)
    _warn_of_oddities(text_path, about)
    ids = _map_ids(ids_path, about["tokens"], dtype)
    return Tokens(ids, vocabulary, about["text_sha256"], about["encoding"], cache_dir / name)


@contextmanager
def _making(text_path: Path, cache_dir: Path, passes: int) -> Iterator[Advance]:
    """Make the folder, and show how far a text that is read some times has been encoded."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    total = passes * text_path.stat().st_size
    with waiting(f"encoding {text_path.name}", total) as advance:
        yield advance


def _write_about(about_path: Path, about: About | AboutSubwords) -> None:
    with atomic_file(about_path) as file:
        file.write(json.dumps(about).encode())


def _map_ids(ids_path: Path, tokens: int, dtype: np.dtype[Any]) -> Ids:
    with ids_path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        # Windows are read in random order: reading ahead would only fill memory
        memory.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(memory, dtype=dtype, count=tokens)


def _read_about(about_path: Path, ids_path: Path) -> About | None:
    """Return what a finished cache says about itself, or None where no cache can be used."""

    def is_usable(about: Any) -> bool:
        fits = bool(
            about["format"] == CACHE_FORMAT
            and about.keys() == About.__annotations__.keys()
            and ids_path.stat().st_size == 2 * about["tokens"]
            and ids_checksum(ids_path) == about["ids_crc32"]
        )
        if fits:
            Characters.from_tokens(about["vocabulary"])  # raises where it is damaged
        return fits

    return cast("About | None", _read_usable(about_path, is_usable))


def _read_about_subwords(
    about_path: Path, ids_path: Path, dtype: np.dtype[Any]
) -> AboutSubwords | None:
    """Return what a finished cache says about itself, or None where no cache can be used."""

    def is_usable(about: Any) -> bool:
        return bool(
            about["format"] == SUBWORDS_FORMAT
            and about.keys() == AboutSubwords.__annotations__.keys()
            and ids_path.stat().st_size == dtype.itemsize * about["tokens"]
            and ids_checksum(ids_path) == about["ids_crc32"]
        )

    return cast("AboutSubwords | None", _read_usable(about_path, is_usable))


def _read_usable(about_path: Path, is_usable: Callable[[Any], bool]) -> object:
    """Return the content of a JSON file where it is usable; None: it is not, or not there."""
    try:
        about = json.loads(about_path.read_bytes())
        if is_usable(about):
            return about
        logger.warning("%s does not fit its token cache: encoding the text again", about_path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s): encoding the text again", about_path, error)
    return None


class _Reader:
    """Reads a text file in its encoding, and counts what no text should have.

    encoding: None: it is guessed. Raises: ConfigError.
    """

    def __init__(self, path: Path, encoding: str | None) -> None:
        self.path = path
        self.encoding = encoding or detect_encoding(path)
        self.byte_order_marks = 0
        self.odd_characters = OddCharacters()

    def chunks(
        self, update: Callable[[bytes], object], advance: Advance, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[str]:
        """Yield the text, and hand each chunk as UTF-8 to the `update` of a hash.

        advance: is told the bytes that have been read.
        Raises: ConfigError.
        """
        return self.odd_characters.watch(self.plain_chunks(update, advance, chunk_bytes))

    def plain_chunks(
        self, update: Callable[[bytes], object], advance: Advance, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[str]:
        """Yield the same, without a look at odd characters, which takes as long as all else."""
        chunks = text_chunks(self.path, self.encoding, chunk_bytes, advance, self._count_marks)
        return _hashed(chunks, update)

    def look_for_odd_characters(self) -> None:
        """Read the text again, to count them and find the first of each. Raises: ConfigError."""
        for _ in self.odd_characters.watch(text_chunks(self.path, self.encoding)):
            pass

    def _count_marks(self, marks: int) -> None:
        self.byte_order_marks += marks


def _warn_of_oddities(text_path: Path, about: About | AboutSubwords) -> None:
    """Say what was left out of a text, and what should not be in it."""
    if about["byte_order_marks"]:
        marks = about["byte_order_marks"]
        logger.warning(
            "%s: left out %s within the text, which is no character",
            text_path,
            "1 byte order mark" if marks == 1 else f"{marks:,} times a byte order mark",
        )
    if about["odd_characters"]:
        logger.warning(
            "%s: holds characters that no text has, and the model learns them like letters: %s",
            text_path,
            describe(about["odd_characters"]),
        )


def _encode(text_path: Path, ids_path: Path, encoding: str | None, advance: Advance) -> About:
    """Write a text's ids; return what the cache says about them.

    advance: is told the bytes that have been read, in both passes.

    Raises: ConfigError, OSError.
    """
    reader = _Reader(text_path, encoding)
    digest = sha256()
    character_set = CharacterSet()
    for blocks in code_points(reader.plain_chunks(digest.update, advance)):
        character_set.add(blocks)
    characters = character_set.found()
    if np.isin(characters, odd_code_points()).any():
        reader.look_for_odd_characters()
    _check_characters(len(characters), text_path)
    table = CharacterIds(characters)
    second_digest = sha256()
    identity = f"{CACHE_FORMAT} {CHUNK_BYTES} {digest.hexdigest()}"
    with growing_ids(ids_path, identity) as ids:
        chunks = text_chunks(text_path, reader.encoding, advance=advance)
        batches = code_points(_hashed(chunks, second_digest.update))
        there = ids.batches
        ids.write(table.ids(blocks) for number, blocks in enumerate(batches) if number >= there)
        if second_digest.digest() != digest.digest():
            ids.forget()
            raise _changed(text_path)
    return {
        "format": CACHE_FORMAT,
        "tokens": ids.bytes // 2,
        "ids_crc32": ids.crc32,
        "encoding": reader.encoding,
        "text_sha256": digest.hexdigest(),
        "byte_order_marks": reader.byte_order_marks,
        "odd_characters": reader.odd_characters.found(),
        "vocabulary": Characters("".join(map(chr, characters))).tokens,
    }


def _changed(text_path: Path) -> ConfigError:
    return ConfigError(f"{text_path}: changed while it was read; start again when it is finished")


def _encode_subwords(
    reader: _Reader, ids_path: Path, vocabulary: Subwords, dtype: np.dtype[Any], advance: Advance
) -> AboutSubwords:
    """Write a text's ids; return what the cache says about them.

    advance: is told the bytes that have been read.

    Raises: ConfigError, OSError.
    """
    digest = sha256()
    encoder = vocabulary.encoder()
    chunks = reader.chunks(digest.update, advance, SUBWORD_CHUNK)
    unknown: set[str] = set()
    known = _replace_unknown(chunks, vocabulary, unknown)
    identity = f"{SUBWORDS_FORMAT} {SUBWORD_CHUNK} {ids_path.name}"
    with growing_ids(ids_path, identity) as ids:
        has_text = ids.batches > 0

        def checked(arrays: Iterable[NDArray[np.unsignedinteger]]) -> Iterator[Ids]:
            nonlocal has_text
            for array in arrays:
                has_text = has_text or bool((array != vocabulary.end_of_text_id).any())
                yield array

        size = reader.path.stat().st_size
        with encoding_of_batches(vocabulary, dtype, size) as encode:
            batches = islice(_cut(encoder, known), ids.batches, None)
            ids.write(checked(encode(batches)))
        if not has_text:
            raise _no_text(reader.path)
    if unknown:
        logger.warning(
            "%s: the model's tokenizer cannot write %r, which becomes ?",
            reader.path,
            "".join(sorted(unknown))[:MOST_SHOWN],
        )
    return {
        "format": SUBWORDS_FORMAT,
        "tokens": ids.bytes // dtype.itemsize,
        "ids_crc32": ids.crc32,
        "encoding": reader.encoding,
        "text_sha256": digest.hexdigest(),
        "byte_order_marks": reader.byte_order_marks,
        "odd_characters": reader.odd_characters.found(),
    }


def _replace_unknown(
    chunks: Iterable[str], vocabulary: Subwords, unknown: set[str]
) -> Iterator[str]:
    """Yield the chunks with `?` for what cannot be written; note those characters."""
    for chunk in chunks:
        text, characters = vocabulary.replace_unknown(chunk)
        unknown.update(characters)
        yield text


def _cut(encoder: SubwordEncoder, chunks: Iterable[str]) -> Iterator[list[Piece]]:
    """Yield the pieces of each chunk, and of what is held back at the end."""
    for chunk in chunks:
        yield encoder.cut(chunk)
    yield encoder.cut_rest()


def _hashed(chunks: Iterable[str], update: Callable[[bytes], object]) -> Iterator[str]:
    """Yield the chunks, and hand each as UTF-8 to the `update` of a hash."""
    for chunk in chunks:
        update(chunk.encode())
        yield chunk


def _check_characters(count: int, text_path: Path) -> None:
    if count == 0:
        raise _no_text(text_path)
    if count > MAX_CHARACTERS:
        message = (
            f"{text_path}: {count} different characters, "
            f"at most {MAX_CHARACTERS} can be told apart; is it text?"
        )
        raise ConfigError(message)


def _no_text(text_path: Path) -> ConfigError:
    return ConfigError(f"{text_path}: holds no text, only a byte order mark or {END_OF_TEXT}")
