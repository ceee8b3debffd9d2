"""Text -> token ids -> (x, y), as a pure function of (seed, position).

Letters: S sequences of one optimizer step, T `max_seq_length`, N tokens of the training part.

The training text is cut into windows of T inputs (and the T targets one further on). Each epoch draws one offset in
[0, T) and lays a grid of starts `offset + i * T` over the text, then visits the grid in a random order, each start
exactly once. The number of windows in an epoch, (N - 1) // T - 1, fits at every offset, so it is the same in every
epoch and the stream of sequences is the plain concatenation of the epochs' orders. Offset and order are drawn from
(seed, epoch) alone, so step k needs no state and no worker: position k takes sequences [k * S, (k + 1) * S).
"""

import json
import logging
import mmap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chatgot.atomic_file import atomic_file
from chatgot.config import Config
from chatgot.data.corpus import check_text_file, detect_encoding, file_sha256, text_chunks
from chatgot.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
ABOUT = ("tokens", "encoding", "text_sha256", "vocabulary")
CODE_POINTS = 0x110000  # Unicode's range
MAX_VOCABULARY = 1 << 16  # what a uint16 can tell apart

Batch = tuple[Tensor, Tensor]  # x (B, T) and y (B, T), int64


@dataclass(frozen=True)
class Vocabulary:
    """One token per character; `characters[i]` is the text of id i."""

    characters: str

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises: KeyError for a character outside the vocabulary."""
        ids = {character: i for i, character in enumerate(self.characters)}
        return [ids[character] for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.characters[i] for i in ids)

    def replace_unknown(self, text: str) -> tuple[str, str]:
        """Return `text` with each character outside the vocabulary replaced visibly, and those characters."""
        known = set(self.characters)
        unknown = "".join(sorted(set(text) - known))
        substitute = next((mark for mark in "?_*#. " if mark in known), self.characters[0])
        return "".join(character if character in known else substitute for character in text), unknown


@dataclass(frozen=True)
class Tokens:
    """A whole text as ids, read from the cache through a memory map."""

    ids: np.ndarray  # (N,) uint16, read-only
    vocabulary: Vocabulary
    text_sha256: str  # of the decoded text in UTF-8: the same content in another encoding is the same text
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
            raise StorageError(f"{cache_dir}: the token cache cannot be written: {why}; set paths.cache") from error
    ids = np.memmap(ids_path, dtype="<u2", mode="r", shape=(about["tokens"],))
    if hasattr(mmap, "MADV_RANDOM"):
        ids._mmap.madvise(mmap.MADV_RANDOM)  # windows are read in random order: reading ahead would only fill memory
    return Tokens(ids.view(np.ndarray), Vocabulary(about["vocabulary"]), about["text_sha256"], about["encoding"])


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
        message = (
            f"{text_path}: {len(used)} different characters, at most {MAX_VOCABULARY} can be told apart; is it text?"
        )
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
            raise ConfigError(f"{text_path}: changed while it was read; start again when it is finished")
    return {
        "format": CACHE_FORMAT,
        "tokens": tokens,
        "encoding": encoding,
        "text_sha256": digest.hexdigest(),
        "vocabulary": "".join(map(chr, used)),
    }


def _code_points(chunk: str) -> np.ndarray:
    return np.frombuffer(chunk.encode("utf-32-le"), dtype="<u4")


def split_index(n_tokens: int, test_split: float) -> int:
    """Return where the validation part begins: it is the last `test_split` of the text."""
    return n_tokens - int(n_tokens * test_split)


def check_length(n_tokens: int, config: Config, text_path: Path) -> None:
    """Refuse a text that does not hold one batch of training windows and one validation window.

    Raises: ConfigError with the characters found and needed.
    """
    T, batch_size, test_split = config.model.max_seq_length, config.training.batch_size, config.data.test_split

    def enough(n: int) -> bool:
        train = split_index(n, test_split)
        return (train - 1) // T - 1 >= batch_size and n - train >= T + 1

    if enough(n_tokens):
        return
    train = (batch_size + 1) * T + 1
    needed = max(
        train + T + 1, int((T + 1) / test_split) - 1, int((train - 1) / (1 - test_split)) - 1
    )  # or a little more
    while not enough(needed):
        needed += 1
    raise ConfigError(
        f"{text_path}: {n_tokens} characters, at least {needed} are needed for one batch (batch_size {batch_size}, "
        f"max_seq_length {T}, test_split {test_split}); use a longer text or lower those"
    )


class Windows:
    """The (x, y) windows of one part of a text; holds no state that changes, but for a stop-watch."""

    def __init__(self, ids: np.ndarray, T: int, vocab_size: int, device: torch.device) -> None:
        self.ids, self.T, self.vocab_size, self.device = ids, T, vocab_size, device
        self.seconds = 0.0  # that making batches took since `take_s`

    def batch(self, starts: np.ndarray, length: int | None = None) -> Batch:
        """Return x, y, both (len(starts), length or T), for the windows that begin at `starts`."""
        begun = time.perf_counter()
        span = np.arange((length or self.T) + 1)
        window = torch.from_numpy(self.ids[starts[:, None] + span].astype(np.int64))  # (B, T + 1)
        if int(window.max()) >= self.vocab_size:
            raise ConfigError("the token cache holds ids outside the vocabulary: delete the folder of paths.cache")
        window = window.to(self.device, non_blocking=True)
        self.seconds += time.perf_counter() - begun
        return window[:, :-1], window[:, 1:]

    def take_s(self) -> float:
        """Return the seconds that making batches took since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class TrainingWindows(Windows):
    """Training windows in the order that (seed, position) gives; see the top of this file."""

    def __init__(self, ids: np.ndarray, T: int, vocab_size: int, device: torch.device, seed: int) -> None:
        super().__init__(ids, T, vocab_size, device)
        self.seed = seed
        self.per_epoch = (len(ids) - 1) // T - 1
        self._order = lru_cache(maxsize=2)(self._draw_order)  # two: a step may reach over the edge of an epoch

    def _draw_order(self, epoch: int) -> np.ndarray:
        """Return the starts of one epoch's windows in the order of their use, (per_epoch,)."""
        generator = np.random.default_rng([self.seed, epoch])
        offset = int(generator.integers(self.T))
        return generator.permutation(self.per_epoch) * self.T + offset

    def starts(self, position: int, sequences: int) -> np.ndarray:
        """Return the starts of the windows that form the step at `position`, (sequences,)."""
        index = np.arange(position * sequences, (position + 1) * sequences)
        epochs, places = index // self.per_epoch, index % self.per_epoch
        return np.array([self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)])

    def epoch(self, position: int, sequences: int) -> int:
        return position * sequences // self.per_epoch


class ValidationWindows(Windows):
    """Held-out windows, always the same ones in the same order."""

    def spread(self, windows: int, batch_size: int) -> Iterator[Batch]:
        """Yield, `batch_size` at once, at most so many windows that lie evenly over the part and do not overlap."""
        count = min(windows, (len(self.ids) - 1) // self.T)
        starts = np.linspace(0, len(self.ids) - 1 - self.T, count).round().astype(np.int64)
        for i in range(0, count, batch_size):
            yield self.batch(starts[i : i + batch_size])

    def every_token(self, batch_size: int) -> Iterator[Batch]:
        """Yield windows side by side in which each token but the first is a target once; the last may be shorter."""
        whole, rest = divmod(len(self.ids) - 1, self.T)
        starts = np.arange(whole) * self.T
        for i in range(0, whole, batch_size):
            yield self.batch(starts[i : i + batch_size])
        if rest:
            yield self.batch(np.array([whole * self.T]), rest)


def line_start(ids: np.ndarray, vocabulary: Vocabulary, seed: int, length: int = 64) -> str:
    """Return up to `length` characters of a text from a line's start on, cut after a whole line where there is one."""
    text = vocabulary.decode(ids[: 1 << 16].tolist())
    begins = [i + 1 for i, character in enumerate(text[:-1]) if character == "\n" and text[i + 1] != "\n"]
    start = begins[seed % len(begins)] if begins else 0
    prompt = text[start : start + length]
    cut = prompt.rfind("\n") + 1
    return prompt[:cut] if cut > 1 else prompt
