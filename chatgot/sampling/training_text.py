"""The text that a model was trained on, if it is here."""

from pathlib import Path

from chatgot.data.configured_text import encoded, text_path
from chatgot.data.token_cache import Tokens
from chatgot.errors import UserError
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.suffix_index import SuffixIndex, index_of


def training_text(loaded: LoadedModel) -> Tokens | None:
    """Return the text that a model was trained on; None: it is not here, or another one is.

    Nothing is downloaded. Side effect: the text may be encoded into the token cache.
    """
    config = loaded.config
    try:
        path = text_path(config)
        if config.data.path is None and not path.is_file():
            return None  # the default text would have to be fetched
        cache = Path(config.paths.cache)
        tokens = encoded(config.data, path, cache, loaded.vocabulary)
    except UserError:  # whoever asks can do without it
        return None
    same = tokens.text_sha256 == loaded.data_sha256
    return tokens if same and tokens.vocabulary.tokens == loaded.vocabulary.tokens else None


def training_index(loaded: LoadedModel) -> SuffixIndex | None:
    """Return the index of a model's training text; None: that text is not here.

    Side effect: text and index may be written into the token cache.
    """
    tokens = training_text(loaded)
    if tokens is None:
        return None
    return index_of(tokens, tokens.training_length(loaded.config.data.test_split))
