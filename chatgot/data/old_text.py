"""The text of the run before, which `data.replay` mixes into the training of a grown run.

A checkpoint says which text its run was trained on, and which older ones it replayed itself. All of
them are read again as they were: same file, same encoding, same held-out part.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from chatgot.config import Config, DataConfig
from chatgot.data.configured_text import DEFAULT_TEXT, load_text
from chatgot.data.joined_tokens import join_tokens
from chatgot.data.text_sources import listed_paths, text_sources
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Vocabulary
from chatgot.errors import ConfigError

logger = logging.getLogger(__name__)

MOST_OLD_TEXTS = 100  # of one run: each run that grows has one more
SHOWN_HASH = 12  # digits in a message


class OldText(BaseModel):
    """A text of an earlier run.

    data: the section `data` of that run; its path is absolute. sha256: of the decoded text; empty:
    not known yet. characters: its run was trained on characters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataConfig
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    characters: bool = False

    @property
    def path(self) -> Path:
        """Where the text is; of several files, the first one."""
        return DEFAULT_TEXT if self.data.path is None else listed_paths(self.data)[0]


_OLD_TEXTS = TypeAdapter(Annotated[list[OldText], Field(max_length=MOST_OLD_TEXTS)])


def are_old_texts(value: object) -> bool:
    """Return whether this is what a checkpoint says of the texts that its run replays."""
    try:
        _OLD_TEXTS.validate_python(value)
    except ValidationError:
        return False
    return True


def old_texts_in(stored: Mapping[str, Any]) -> list[OldText]:
    """Return the texts that a checkpoint's run replays, the newest first."""
    return _OLD_TEXTS.validate_python(stored.get("old_texts", []))


def texts_behind(stored: Mapping[str, Any], config: Config) -> list[OldText]:
    """Return all texts that a checkpoint's run was trained on, its own first.

    config: the one in the checkpoint.
    """
    data = config.data
    folder = Path(stored.get("working_dir", ""))
    if data.path is None and not DEFAULT_TEXT.is_file() and (folder / DEFAULT_TEXT).is_file():
        data = data.model_copy(update={"path": str(folder / DEFAULT_TEXT)})
    elif data.path is not None:
        absolute = [str(folder / path) for path in listed_paths(data)]
        path = absolute if isinstance(data.path, list) else absolute[0]
        data = data.model_copy(update={"path": path})
    on_characters = "tokenizer" not in stored
    own = OldText(data=data, sha256=stored["data_sha256"], characters=on_characters)
    return [own, *old_texts_in(stored)][:MOST_OLD_TEXTS]


def with_old_text(
    tokens: Tokens, config: Config, name: str, texts: Sequence[OldText], *, is_new: bool
) -> tuple[Tokens, list[OldText]]:
    """Return a text joined with the old ones, and these as they were found.

    name: of the text. texts: the newest first; empty: nobody knows, so `data.replay_path` says.
    is_new: the run begins; another text than the old one is then accepted where the user names it.
    Raises: ConfigError, StorageError.
    """
    texts = list(texts)
    path = config.data.replay_path
    named = path is not None
    if path is not None:
        absolute = str(Path(path).resolve())
        data = texts[0].data if texts else DataConfig(test_split=config.data.test_split)
        sha256 = texts[0].sha256 if texts else ""
        on_characters = bool(texts) and texts[0].characters
        data = data.model_copy(update={"path": absolute, "shards": None})
        texts[:1] = [OldText(data=data, sha256=sha256, characters=on_characters)]
    if not texts:
        raise ConfigError(
            f"data.replay={config.data.replay:g}: the model does not say which text it was trained "
            "on; set data.replay_path to that text, or data.replay=null"
        )
    found: list[OldText] = []
    parts: list[Tokens] = []
    for number, text in enumerate(texts):
        may_differ = number == 0 and named and is_new
        old = _load(text, config, tokens.vocabulary, may_differ)
        found.append(text.model_copy(update={"sha256": old.text_sha256}))
        parts.append(old)
    cache = Path(config.paths.cache)
    old = parts[-1]
    for text, newer in zip(reversed(found[:-1]), reversed(parts[:-1]), strict=True):
        splits = (text.data.test_split, found[-1].data.test_split)
        old = join_tokens(newer, old, ("", ""), splits, cache)
    names = (name, ", ".join(text.path.name for text in found))
    splits = (config.data.test_split, found[0].data.test_split)
    return join_tokens(tokens, old, names, splits, cache), found


def _load(text: OldText, config: Config, vocabulary: Vocabulary, may_differ: bool) -> Tokens:
    """Return the tokens of an old text. Raises: ConfigError, StorageError.

    vocabulary: of the new text. Characters: the old one has its own.
    """
    if text.data.shards is not None:
        raise ConfigError(
            f"data.replay: the run before trained on shards ({text.data.shards}), which are not "
            "replayed; set data.replay_path to a text, or data.replay=null"
        )
    if text.data.path is not None:
        try:
            text_sources(listed_paths(text.data), advice="set data.replay_path to")
        except ConfigError as error:
            raise ConfigError(f"data.replay: the text of the run before: {error}") from error
    data = text.data
    if text.characters and vocabulary.kind == "subwords":
        data = data.model_copy(update={"tokenizer": "bpe"})  # held out from the same character on
    tokens = load_text(config.model_copy(update={"data": data}), text.path, vocabulary)
    if text.sha256 in ("", tokens.text_sha256):
        return tokens
    hashes = f"SHA-256 {tokens.text_sha256[:SHOWN_HASH]}..., not {text.sha256[:SHOWN_HASH]}..."
    if may_differ:
        logger.warning(
            "data.replay_path: %s is not the text that the model was trained on (%s): the loss on "
            "its end may be that of text it was trained on",
            text.path,
            hashes,
        )
        return tokens
    raise ConfigError(
        f"data.replay: {text.path} is not the text that the run before was trained on ({hashes}); "
        "set data.replay_path to that text, or data.replay=null"
    )
