"""A text as subwords of its own: trained once, then found in the cache with the text's ids.

They are trained on the training part alone. It ends at the same character as that of the text as
characters, so both are measured on the same held-out text. A token that reaches over that place is
the first one held out.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.data.bpe import SAMPLE_BYTES, even_sample, text_blocks, text_size, train_subwords
from chatgot.data.encoding import detect_encoding
from chatgot.data.lengths import split_index
from chatgot.data.subwords import Subwords
from chatgot.data.text_file import check_text_file, file_sha256, text_chunks
from chatgot.data.token_cache import HASH, Tokens, load_tokens
from chatgot.data.vocabulary import CHUNK, Ids, Vocabulary
from chatgot.errors import ConfigError, StorageError
from chatgot.logs.waiting import Advance, waiting

logger = logging.getLogger(__name__)

FORMAT = 1  # of the files that remember subwords


@dataclass(frozen=True)
class _Trained:
    """What is remembered of a text."""

    vocabulary: Subwords
    characters: int  # of the training part; the end-of-text token is one


def load_own_subwords(
    text_path: Path,
    cache_dir: Path,
    vocab_size: int,
    test_split: float,
    vocabulary: Vocabulary | None = None,
    encoding: str | None = None,
) -> Tokens:
    """Return a text as subwords that were trained on its training part.

    It streams: memory does not grow with the text.

    vocabulary: the subwords of the run that goes on, or of the model that a run starts from; None:
        they are trained, or found in the cache.
    encoding: of the file; None: it is guessed.
    Raises: ConfigError (text), StorageError (cache).
    """
    check_text_file(text_path)
    try:
        file_hash = file_sha256(text_path)[:HASH]
    except OSError as error:
        raise ConfigError(f"{text_path}: cannot be read: {error.strerror or error}") from error
    path = cache_dir / f"{file_hash}-{encoding}-{test_split!r}-{vocab_size}.bpe.json"
    text = _Text(text_path, encoding, test_split)
    trained = _read(path)
    if trained is None and vocabulary is None:
        trained = text.train(vocab_size)
        _write(path, trained)
    characters = text.training_characters() if trained is None else trained.characters
    if vocabulary is None:
        assert trained is not None, "found, or just trained"
        vocabulary = trained.vocabulary
    tokens = load_tokens(text_path, cache_dir, vocabulary, encoding)
    assert tokens.cache is not None, "load_tokens has just written it"
    if not tokens.cache.name.startswith(file_hash):
        raise ConfigError(
            f"{text_path}: changed while it was read; start again when it is finished"
        )
    return replace(tokens, n_train=tokens_within(tokens.ids, vocabulary, characters))


def tokens_within(ids: Ids, vocabulary: Vocabulary, characters: int) -> int:
    """Return how many tokens are wholly in the first characters of a text."""
    left = characters
    with waiting("finding where the training part ends", len(ids)) as advance:
        for start in range(0, len(ids), CHUNK):
            lengths = vocabulary.lengths(ids[start : start + CHUNK])
            total = int(lengths.sum())
            if total > left:
                # a character may need several tokens, of which only the first has a length
                return start + int((lengths.cumsum() <= left).sum())
            left -= total
            advance(len(lengths))
    return len(ids)


class _Text:
    """The file of a text, and how long it is once that was counted.

    Raises: ConfigError.
    """

    def __init__(self, path: Path, encoding: str | None, test_split: float) -> None:
        self.path = path
        self.test_split = test_split
        self._encoding = encoding
        self._size: tuple[int, int] | None = None

    def training_characters(self) -> int:
        """Return how many characters the training part has; an end-of-text token is one."""
        return split_index(self._counted()[0], self.test_split)

    def train(self, vocab_size: int) -> _Trained:
        """Return subwords of the training part."""
        characters = self.training_characters()
        share = SAMPLE_BYTES / max(1.0, self._counted()[1] * (1 - self.test_split))
        sample = ""
        if share < 1:
            sample = f", on {SAMPLE_BYTES / 1e6:g} MB, evenly spread over its training part"
        logger.info("%s: training its subwords%s", self.path, sample)
        with waiting(f"training subwords of {self.path.name}", self.path.stat().st_size) as advance:
            blocks = text_blocks(self._chunks(advance), characters)
            return _Trained(train_subwords(even_sample(blocks, share), vocab_size), characters)

    def _counted(self) -> tuple[int, int]:
        """Return the characters of the whole text, and its bytes in UTF-8."""
        if self._size is None:
            with waiting(f"counting {self.path.name}", self.path.stat().st_size) as advance:
                self._size = text_size(self._chunks(advance))
        return self._size

    def _chunks(self, advance: Advance) -> Iterator[str]:
        if self._encoding is None:
            self._encoding = detect_encoding(self.path)
        return text_chunks(self.path, self._encoding, advance=advance)


def _read(path: Path) -> _Trained | None:
    """Return what was remembered; None: nothing that can be used."""
    try:
        about = json.loads(path.read_bytes())
        if about["format"] == FORMAT and type(about["characters"]) is int:
            return _Trained(Subwords.from_json(about["tokenizer"]), about["characters"])
        logger.warning("%s is of another format: training the subwords again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s): training the subwords again", path, error)
    return None


def _write(path: Path, trained: _Trained) -> None:
    """Remember subwords. Raises: StorageError."""
    about = {
        "format": FORMAT,
        "tokenizer": trained.vocabulary.json,
        "characters": trained.characters,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(about).encode())
    except OSError as error:
        raise StorageError(
            f"{path.parent}: the token cache cannot be written: {error.strerror or error}; "
            "set paths.cache"
        ) from error
