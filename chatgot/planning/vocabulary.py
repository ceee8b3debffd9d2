"""How many tokens will the vocabulary have? Known from the text, or assumed without it."""

from chatgot.config import Config
from chatgot.data.configured_text import load_text, text_path

CHARACTERS = 100  # of a text that is not here; a text in English has 60 to 110


def vocabulary_size(config: Config, given: int | None) -> tuple[int, str]:
    """Return the number of tokens, and words that say where it comes from.

    A text of characters that is here is encoded into the token cache, as training would.
    Raises: ConfigError, StorageError.
    """
    if given is not None:
        return given, "--vocab_size"
    if config.data.tokenizer == "bpe":
        return config.data.vocab_size, "data.vocab_size, at most"
    path = text_path(config)
    if not path.exists():
        return CHARACTERS, f"assumed, {path} is not here: --vocab_size says it"
    return len(load_text(config, path).vocabulary), f"characters of {path}"
