"""The text that a configuration names: where it is, and its tokens."""

from pathlib import Path

from chatgot.config import Config
from chatgot.data.corpus import fetch_default_text
from chatgot.data.text_file import check_text_file
from chatgot.data.token_cache import Tokens, load_tokens
from chatgot.data.vocabulary import Vocabulary
from chatgot.data.windows import check_length

DEFAULT_TEXT = Path("data/shakespeare.txt")


def text_path(config: Config, yaml_path: Path | None = None) -> Path:
    """Return where the text is, or, for the default text, will be.

    yaml_path: where the configuration comes from, for the message.
    Raises: ConfigError for a text that is missing.
    """
    if config.data.path is None:
        return DEFAULT_TEXT
    check_text_file(Path(config.data.path), yaml_path=yaml_path)
    return Path(config.data.path)


def load_text(config: Config, path: Path, vocabulary: Vocabulary | None = None) -> Tokens:
    """Return the tokens of a text, fetched and encoded if need be.

    vocabulary: the subwords to encode it by; None or characters: its own characters.
    Raises: ConfigError, StorageError.
    """
    if config.data.path is None:
        fetch_default_text(path)
    tokens = load_tokens(path, Path(config.paths.cache), vocabulary)
    check_length(len(tokens.ids), config, path, tokens.vocabulary.kind)
    return tokens
