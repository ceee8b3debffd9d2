"""A text as subwords of its own: trained once, then found in the cache with the text's ids.

They are trained on the training part alone. It ends at the same character as that of the text as
characters, so both are measured on the same held-out text. A token that reaches over that place is
the first one held out.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.config import DataConfig
from chatgot.data.bpe import SAMPLE_BYTES, even_sample, text_blocks, text_size, train_subwords
from chatgot.data.encoding import detect_encoding
from chatgot.data.known_hashes import file_hash
from chatgot.data.lengths import split_index
from chatgot.data.subwords import Subwords
from chatgot.data.text_file import check_text_file, text_chunks
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
    data: DataConfig,
    vocabulary: Vocabulary | None = None,
    n_train: int | None = None,
) -> Tokens:
    """Return a text as subwords that were trained on its training part.

    It streams: memory does not grow with the text.

    data: what it says of encoding, vocab_size and test_split.
    vocabulary: the subwords of the run that goes on, or of the model that a run starts from; None:
        they are trained, or found in the cache.
    n_train: characters of the training part; None: data.test_split says.
    Raises: ConfigError (text), StorageError (cache).
    """
    check_text_file(text_path)
    hash_of_file = file_hash(text_path, cache_dir)[:HASH]
    encoding = data.encoding
    part = repr(data.test_split) if n_train is None else f"{n_train}characters"
    path = cache_dir / f"{hash_of_file}-{encoding}-{part}-{data.vocab_size}.bpe.json"
    text = _Text(text_path, encoding, data.test_split, n_train)
    trained = _read(path)
    if trained is None and vocabulary is None:
        trained = text.train(data.vocab_size)
        _write(path, trained)
    characters = text.training_characters() if trained is None else trained.characters
    if vocabulary is None:
        assert trained is not None, "found, or just trained"
        vocabulary = trained.vocabulary
    tokens = load_tokens(text_path, cache_dir, vocabulary, encoding)
    assert tokens.cache is not None, "load_tokens has just written it"
    if not tokens.cache.name.startswith(hash_of_file):
        raise ConfigError(
            f"{text_path}: changed while it was read; start again when it is finished"
        )
    return replace(tokens, n_train=tokens_within(tokens.ids, vocabulary, characters))


def tokens_within(ids: Ids, vocabulary: Vocabulary, characters: int) -> int:
    """Return how many tokens are wholly in the first characters of a text."""
    return tokens_before(ids, vocabulary, [characters])[0]


def tokens_before(ids: Ids, vocabulary: Vocabulary, places: Sequence[int]) -> list[int]:
    """Return for each place, in characters, how many tokens are wholly before it.

    places: ascending; an end-of-text token is one character.
    """
    if vocabulary.kind == "characters":
        return list(places)
    tokens: list[int] = []
    before = 0  # characters of the tokens so far
    with waiting("finding where the parts of the text end", len(ids)) as advance:
        for start in range(0, len(ids), CHUNK):
            lengths = vocabulary.lengths(ids[start : start + CHUNK])
            ends = before + lengths.cumsum()
            before = int(ends[-1])
            while len(tokens) < len(places) and places[len(tokens)] < before:
                # a character may need several tokens, of which only the first has a length
                tokens.append(start + int((ends <= places[len(tokens)]).sum()))
            advance(len(lengths))
    return tokens + [len(ids)] * (len(places) - len(tokens))


class _Text:
    """The file of a text, and how long it is once that was counted.

    Raises: ConfigError.
    """

    def __init__(
        self, path: Path, encoding: str | None, test_split: float, n_train: int | None
    ) -> None:
        self.path = path
        self.test_split = test_split
        self._n_train = n_train
        self._encoding = encoding
        self._size: tuple[int, int] | None = None

    def training_characters(self) -> int:
        """Return how many characters the training part has; an end-of-text token is one."""
        if self._n_train is not None:
            return self._n_train
        return split_index(self._counted()[0], self.test_split)

    def train(self, vocab_size: int) -> _Trained:
        """Return subwords of the training part."""
        characters = self.training_characters()
        whole, in_utf_8 = self._counted()
        share = SAMPLE_BYTES / max(1.0, in_utf_8 * characters / max(1, whole))
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
