"""The text that a model was trained on, if it is here."""

from pathlib import Path

from chatgot.data.configured_text import DEFAULT_TEXT, encoded, text_path
from chatgot.data.old_text import with_old_text
from chatgot.data.token_cache import Tokens
from chatgot.errors import UserError
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.suffix_index import SuffixIndex, index_of


def training_text(loaded: LoadedModel) -> Tokens | None:
    """Return the text that a model was trained on; None: it is not here, or another one is.

    What its run replayed is the last part of it. Nothing is downloaded. Side effect: the texts may
    be encoded into the token cache.
    """
    config = loaded.config
    if config.data.shards is not None:  # a text larger than this machine is not looked through
        return None
    replays = config.data.replay is not None
    try:
        path = text_path(config)
        sections = [config.data, *(text.data for text in loaded.old_texts if replays)]
        if any(data.path is None for data in sections) and not DEFAULT_TEXT.is_file():
            return None  # the default text would have to be fetched
        cache = Path(config.paths.cache)
        tokens = encoded(config.data, path, cache, loaded.vocabulary)
        if replays:
            old = loaded.old_texts
            tokens, _ = with_old_text(tokens, config, path.name, old, is_new=False)
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
