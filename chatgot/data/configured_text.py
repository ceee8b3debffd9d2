"""The text that a configuration names: where it is, and its tokens."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chatgot.config import Config, DataConfig
from chatgot.data.arranged_text import arrange
from chatgot.data.corpus import fetch_default_text
from chatgot.data.own_subwords import load_own_subwords, tokens_before, tokens_within
from chatgot.data.subwords import Subwords
from chatgot.data.text_sources import is_arranged, listed_paths, text_sources
from chatgot.data.token_cache import Part, Tokens, load_tokens
from chatgot.data.vocabulary import Ids, Vocabulary
from chatgot.data.windows import check_length
from chatgot.errors import ConfigError

logger = logging.getLogger(__name__)

IDS_AT_ONCE = 1 << 16
MOST_NAMED = 3  # files in one message
DEFAULT_TEXT = Path("data/shakespeare.txt")


def text_path(config: Config, yaml_path: Path | None = None) -> Path:
    """Return where the text is, or, for the default text, will be.

    Of several files or folders it is the first one; see `text_sources`. Of shards it is their
    address, which may be no path of this machine.

    yaml_path: where the configuration comes from, for the message.
    Raises: ConfigError for a text that is missing, and for an encoding of the default text.
    """
    if config.data.shards is not None:
        return Path(config.data.shards)
    if config.data.path is None:
        if config.data.encoding is not None:
            raise ConfigError(
                f"data.encoding ({config.data.encoding}): the default text is UTF-8; "
                "set data.path to your own text, or leave data.encoding out"
            )
        return DEFAULT_TEXT
    paths = listed_paths(config.data)
    text_sources(paths, yaml_path)
    return paths[0]


def text_places(config: Config, path: Path) -> list[str]:
    """Return where each part of the text is, for people. path: see `text_path`."""
    if config.data.shards is not None:
        return [f"shards of {config.data.shards}"]
    return [str(part.resolve()) for part in listed_paths(config.data) or [path]]


def load_text(config: Config, path: Path, vocabulary: Vocabulary | None = None) -> Tokens:
    """Return the tokens of a text, fetched, encoded and checked if need be.

    path: see `text_path`. vocabulary: see `encoded`.
    Raises: ConfigError, StorageError.
    """
    if config.data.shards is not None:
        # not at the top: no other run needs fsspec
        from chatgot.data.shards.configured import load_shards

        return load_shards(config, vocabulary)
    if config.data.path is None:
        fetch_default_text(path)
    tokens = encoded(config.data, path, Path(config.paths.cache), vocabulary)
    check_length(len(tokens.ids), config, path, tokens.vocabulary.kind, tokens.n_train)
    check_parts(tokens, config.data.test_split, path)
    return tokens


def encoded(
    data: DataConfig, path: Path, cache: Path, vocabulary: Vocabulary | None = None
) -> Tokens:
    """Return the tokens of a text that is there, encoded if need be.

    path: of the text, where `data.path` is null or the text is one file.
    vocabulary: the subwords to encode it by; None or characters: what `data.tokenizer` says.
    Raises: ConfigError, StorageError.
    """
    if not is_arranged(data):
        return _encoded_file(data, path, cache, vocabulary)
    sources = text_sources(listed_paths(data) or [path])
    for source in sources:
        if source.empty:
            number = len(source.empty)
            files = "1 empty file" if number == 1 else f"{number:,} empty files"
            logger.warning("%s: left out %s: %s", source.name, files, _named(source.empty))
    arranged = arrange(sources, data.split, data.test_split, data.encoding, cache)
    in_utf_8 = data.model_copy(update={"encoding": "utf-8"})
    tokens = _encoded_file(in_utf_8, arranged.path, cache, vocabulary, arranged.n_train)
    places = sorted({place for part in arranged.parts for place in (*part.train, *part.held_out)})
    token_of = dict(zip(places, tokens_before(tokens.ids, tokens.vocabulary, places), strict=True))
    parts = tuple(
        Part(
            part.name,
            (token_of[part.train[0]], token_of[part.train[1]]),
            (token_of[part.held_out[0]], token_of[part.held_out[1]]),
        )
        for part in arranged.parts
    )
    n_train = tokens_within(tokens.ids, tokens.vocabulary, arranged.n_train)
    return replace(tokens, n_train=n_train, parts=parts)


def _named(files: Sequence[Path]) -> str:
    """Return the names of some files, of many only the first ones."""
    more = ", ..." if len(files) > MOST_NAMED else ""
    return ", ".join(file.name for file in files[:MOST_NAMED]) + more


def _encoded_file(
    data: DataConfig,
    path: Path,
    cache: Path,
    vocabulary: Vocabulary | None,
    n_train: int | None = None,
) -> Tokens:
    """Return the tokens of one file; n_train: characters of its training part, if it is arranged.

    Raises: ConfigError, StorageError.
    """
    if data.tokenizer == "char":
        return load_tokens(path, cache, vocabulary, data.encoding)
    given = vocabulary if isinstance(vocabulary, Subwords) else None
    return load_own_subwords(path, cache, data, given, n_train)


def check_parts(tokens: Tokens, test_split: float, path: Path) -> None:
    """Refuse a text of which one part is the same token over and over: nothing can be learnt.

    Raises: ConfigError.
    """
    ids = tokens.ids
    split = tokens.training_length(test_split)
    if _has_variety(ids[:split]) and _has_variety(ids[split:]):
        return
    if not _has_variety(ids):
        raise ConfigError(f"{path}: holds only one character, {len(ids):,} times; expected a text")
    part = "held-out" if _has_variety(ids[:split]) else "training"
    raise ConfigError(
        f"{path}: its {part} part (data.test_split {test_split:g}, taken from the end) holds only "
        "one character; remove what is no text, or change data.test_split"
    )


def _has_variety(ids: Ids) -> bool:
    """Return whether at least two tokens of these differ."""
    first = ids[:1]
    return any(
        bool((ids[start : start + IDS_AT_ONCE] != first).any())
        for start in range(0, len(ids), IDS_AT_ONCE)
    )
