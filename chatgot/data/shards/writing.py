"""Texts become a folder of token shards, whatever their size: everything streams.

A shard is written when it is whole, and `index.json` last. So a folder without an index is one
whose writing was interrupted: writing begins anew there, makes the same shards again, and leaves
alone those that are there already.
"""

import logging
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chatgot.data.bpe import SAMPLE_BYTES, train_subwords
from chatgot.data.code_points import CharacterIds, CharacterSet, code_points
from chatgot.data.shards.documents import TextFile, documents, sample, text_files
from chatgot.data.shards.index import (
    DIGEST_BYTES,
    INDEX,
    NAME_DIGITS,
    SHARD_NAME,
    WIDTHS,
    Part,
    Shard,
    ShardIndex,
    block_digest,
)
from chatgot.data.shards.seen import SeenTexts, text_digest
from chatgot.data.shards.storage import Folder
from chatgot.data.subword_children import encoding_of_batches
from chatgot.data.subwords import Piece, Subwords
from chatgot.data.token_cache import MAX_CHARACTERS
from chatgot.data.vocabulary import END_OF_TEXT, Characters, Vocabulary
from chatgot.errors import ConfigError
from chatgot.logs.waiting import Advance, waiting

logger = logging.getLogger(__name__)

MIB = 1 << 20
MOST_NARROW = 1 << 16  # tokens of a vocabulary whose ids take 2 bytes
BATCH = 1 << 17  # characters of documents that are encoded at a time, about
Encode = Callable[[Iterable[str]], Iterator[NDArray[Any]]]


@dataclass(frozen=True)
class ShardSettings:
    """How shards are made.

    tokenizer: char, bpe (byte-level BPE, learned from a sample), or the path of a tokenizer.json.
    vocab_size: most tokens of bpe.
    held_out: share of the documents that is held out, chosen by their content.
    shard_bytes, block_bytes: of ids in a shard and in a block, rounded down to whole blocks.
    """

    tokenizer: str = "bpe"
    vocab_size: int = 32_768
    held_out: float = 0.01
    shard_bytes: int = 64 * MIB
    block_bytes: int = MIB


def write_shards(inputs: Sequence[str], url: str, settings: ShardSettings) -> ShardIndex:
    """Make a folder of shards from texts; return its index.

    Side effects: a temporary file for the digests of the documents. Memory: about twice a shard,
    the subwords' children, and 256 MiB for the digests.

    inputs: paths, folders, patterns and addresses.
    Raises: ConfigError (texts, tokenizer, a folder that has an index), StorageError.
    """
    folder = Folder(url)
    if folder.size(INDEX) is not None:
        raise ConfigError(
            f"{folder.url}: has shards already ({INDEX}); name another folder, or remove that one"
        )
    files = text_files(inputs)
    vocabulary = _vocabulary(files, settings)
    index = _Writing(folder, vocabulary, settings).write(files)
    content = index.to_json()
    folder.write(INDEX, content)
    _remove_others(folder, index)
    return index


def _vocabulary(files: Sequence[TextFile], settings: ShardSettings) -> Vocabulary:
    """Return the vocabulary that is asked for. Raises: ConfigError."""
    if settings.tokenizer == "char":
        return _characters(files)
    if settings.tokenizer == "bpe":
        with waiting("training subwords"):
            return train_subwords(sample(files, SAMPLE_BYTES), settings.vocab_size)
    path = Path(settings.tokenizer)
    try:
        return Subwords.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--tokenizer {path}: {error.strerror or error}; expected char, bpe or a tokenizer.json"
        ) from error
    except ValueError as error:
        raise ConfigError(f"--tokenizer {path}: {error}; take bpe instead") from error


def _characters(files: Sequence[TextFile]) -> Characters:
    """Return all characters of texts, which are read for it. Raises: ConfigError."""
    found = CharacterSet()
    with _reading("finding the characters", files) as advance:
        for file in files:
            for document in documents(file, advance):
                for blocks in code_points([f"\n{document}\n"]):
                    found.add(blocks)
    characters = found.found()
    if not 0 < len(characters) <= MAX_CHARACTERS:
        raise ConfigError(
            f"--tokenizer char: found {len(characters):,} different characters, expected 1 to "
            f"{MAX_CHARACTERS:,}; take bpe instead"
        )
    return Characters("".join(map(chr, characters)))


@contextmanager
def _reading(words: str, files: Sequence[TextFile]) -> Iterator[Advance]:
    with waiting(words, sum(file.size for file in files)) as advance:
        yield advance


class _Writing:
    """Texts on their way into shards."""

    def __init__(self, folder: Folder, vocabulary: Vocabulary, settings: ShardSettings) -> None:
        self._vocabulary = vocabulary
        self._token_bytes: Literal[2, 4] = 2 if len(vocabulary) <= MOST_NARROW else 4
        self._block_tokens = max(2, settings.block_bytes // self._token_bytes)
        blocks = max(1, settings.shard_bytes // (self._block_tokens * self._token_bytes))
        dtype = WIDTHS[self._token_bytes]
        sizes = (self._block_tokens, blocks)
        self._train = _PartWriter("train", folder, dtype, *sizes)
        self._held_out = _PartWriter("held_out", folder, dtype, *sizes)
        self._share = settings.held_out
        self._duplicates = 0
        self._unknown: set[str] = set()

    def write(self, files: Sequence[TextFile]) -> ShardIndex:
        """Write the shards of texts; return their index. Raises: ConfigError, StorageError."""
        pending: deque[tuple[_PartWriter, str]] = deque()  # documents that are being encoded
        with (
            tempfile.TemporaryDirectory(prefix="chatgot_shards_") as temporary,
            closing(SeenTexts(Path(temporary))) as seen,
            self._encoding(sum(file.size for file in files)) as encode,
            _reading("writing shards", files) as advance,
        ):

            def texts() -> Iterator[str]:
                for file in files:
                    for document in documents(file, advance):
                        if not seen.is_new(text_digest(document)):
                            self._duplicates += 1
                            continue
                        text = f"\n{document}\n"
                        pending.append((self._part_of(document), text))
                        yield text

            for ids in encode(texts()):
                part, text = pending.popleft()
                part.add(ids, text)
            train = self._train.finish()
            held_out = self._held_out.finish()
        self._check(train, held_out)
        if self._unknown:
            logger.warning(
                "the tokenizer cannot write %r, which becomes ?", "".join(sorted(self._unknown))
            )
        return ShardIndex(
            format=1,
            token_bytes=self._token_bytes,
            block_tokens=self._block_tokens,
            vocabulary=self._vocabulary.tokens,
            duplicates=self._duplicates,
            train=train,
            held_out=held_out,
            **_tokenizer_keys(self._vocabulary),
        )

    def _part_of(self, document: str) -> "_PartWriter":
        """Return where a document goes: its content decides, as in `data.split: documents`."""
        place = int.from_bytes(blake2b(document.strip().encode(), digest_size=8).digest()) / 2**64
        return self._held_out if place < self._share else self._train

    def _check(self, train: Part, held_out: Part) -> None:
        """Refuse texts of which nothing trains, or nothing is held out. Raises: ConfigError."""
        if train.documents and held_out.documents:
            return
        documents = train.documents + held_out.documents
        what = "trains" if held_out.documents else "is held out"
        raise ConfigError(
            f"found {documents:,} different document{'' if documents == 1 else 's'}, of which none "
            f"{what} (--held_out {self._share:g}); give more documents ({END_OF_TEXT} on a line of "
            "its own stands between two), or another --held_out"
        )

    @contextmanager
    def _encoding(self, text_bytes: int) -> Iterator[Encode]:
        """Yield what encodes texts, in order, each with the end-of-text token behind it."""
        dtype = WIDTHS[self._token_bytes]
        end = np.array([self._vocabulary.end_of_text_id], dtype)
        if isinstance(self._vocabulary, Subwords):
            with encoding_of_batches(self._vocabulary, dtype, text_bytes) as encode:

                def documents_of(texts: Iterable[str]) -> Iterator[NDArray[Any]]:
                    for ids in encode(self._batches(texts)):
                        ends = np.flatnonzero(ids == end) + 1
                        yield from np.split(ids, ends)[:-1]

                yield documents_of
            return
        assert isinstance(self._vocabulary, Characters)
        points = np.array(list(map(ord, self._vocabulary.characters)), np.int64)
        table = CharacterIds(points)
        yield lambda texts: (
            np.concatenate([*(table.ids(blocks) for blocks in code_points([text])), end])
            for text in texts
        )

    def _batches(self, texts: Iterable[str]) -> Iterator[list[Piece]]:
        """Yield the pieces of some texts at a time, None behind each text."""
        batch: list[Piece] = []
        size = 0
        for text in texts:
            batch += [*self._pieces(text), None]
            size += len(text)
            if size >= BATCH:
                yield batch
                batch = []
                size = 0
        if batch:
            yield batch

    def _pieces(self, text: str) -> list[Piece]:
        assert isinstance(self._vocabulary, Subwords)
        known, unknown = self._vocabulary.replace_unknown(text)
        self._unknown.update(unknown)
        encoder = self._vocabulary.encoder()
        pieces = encoder.cut(known) + encoder.cut_rest()
        return [piece for piece in pieces if piece is not None]


def _tokenizer_keys(vocabulary: Vocabulary) -> dict[str, Any]:
    if not isinstance(vocabulary, Subwords):
        return {}
    return {"tokenizer": vocabulary.json, "end_of_text": vocabulary.end_of_text}


class _PartWriter:
    """Collects the tokens of a part, and writes them shard by shard."""

    def __init__(
        self,
        name: Literal["train", "held_out"],
        folder: Folder,
        dtype: np.dtype[Any],
        block_tokens: int,
        blocks: int,
    ) -> None:
        self._name = name
        self._folder = folder
        self._dtype = dtype
        self._block_tokens = block_tokens
        self._shard_tokens = block_tokens * blocks
        self._held: list[NDArray[Any]] = []
        self._tokens = 0  # that are held
        self._text = sha256()  # of the documents that begin in the next shard
        self._documents = 0
        self._shards: list[Shard] = []

    def add(self, ids: NDArray[Any], text: str) -> None:
        """Add a document. text: without its end-of-text token. Raises: StorageError."""
        self._documents += 1
        self._text.update(f"{text}{END_OF_TEXT}".encode())
        self._held.append(ids.astype(self._dtype, copy=False))
        self._tokens += len(ids)
        if self._tokens >= self._shard_tokens:
            self._write_whole()

    def finish(self) -> Part:
        """Write what is left; return all that was written. Raises: StorageError."""
        if self._tokens:
            self._write(np.concatenate(self._held))
        tokens = sum(shard.tokens for shard in self._shards)
        return Part(documents=self._documents, tokens=tokens, shards=self._shards)

    def _write_whole(self) -> None:
        ids = np.concatenate(self._held)
        whole = len(ids) - len(ids) % self._shard_tokens
        for begin in range(0, whole, self._shard_tokens):
            self._write(ids[begin : begin + self._shard_tokens])
        self._held = [ids[whole:].copy()]
        self._tokens = len(ids) - whole

    def _write(self, ids: NDArray[Any]) -> None:
        """Write one shard, unless it is there. Raises: StorageError."""
        content = bytearray()
        for number, begin in enumerate(range(0, len(ids), self._block_tokens)):
            block = ids[begin : begin + self._block_tokens].tobytes()
            content += block
            content += block_digest(number, block)
        digest = sha256(content).hexdigest()
        name = f"{self._name}-{len(self._shards):06d}-{digest[:NAME_DIGITS]}.tokens"
        blocks = -(-len(ids) // self._block_tokens)
        assert len(content) == len(ids) * self._dtype.itemsize + blocks * DIGEST_BYTES
        if self._folder.size(name) != len(content):
            self._folder.write(name, bytes(content))
        self._shards.append(
            Shard(
                name=name,
                tokens=len(ids),
                bytes=len(content),
                sha256=digest,
                text_sha256=self._text.hexdigest(),
            )
        )
        self._text = sha256()


def _remove_others(folder: Folder, index: ShardIndex) -> None:
    """Remove shards that an interrupted writing of other texts has left. Raises: StorageError."""
    known = {shard.name for part in (index.train, index.held_out) for shard in part.shards}
    for name in folder.names():
        if re.fullmatch(SHARD_NAME, name) and name not in known:
            folder.remove(name)
