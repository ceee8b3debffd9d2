"""Two texts as one: the new text of a run, and the old text that it replays.

The ids of both become those of one vocabulary. The training parts come first, the held-out parts
last, an end-of-text token between two texts: `new, old | new, old`. Held-out text stays held out.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatgot.data.token_cache import MAX_CHARACTERS, Part, Tokens
from chatgot.data.vocabulary import Characters, Ids, Vocabulary
from chatgot.errors import ConfigError, StorageError

IDS_AT_ONCE = 1 << 20
OLD = "old: "  # begins the name of the old text


def join_tokens(
    new: Tokens, old: Tokens, names: tuple[str, str], splits: tuple[float, float], cache_dir: Path
) -> Tokens:
    """Return the tokens of a new and an old text; the last of its parts is the old text.

    The hash stays that of the new text: `old_text.py` looks after the old one.
    Both are characters, or both the same subwords. It streams: memory does not grow with the texts.
    Side effect: the ids are in a file without a name in `cache_dir`, which goes with the process.

    names: of the new text (where it has no parts) and of the old text.
    splits: what `data.test_split` is for each.
    Raises: ConfigError for too many characters, StorageError.
    """
    vocabulary = _joined_vocabulary(new.vocabulary, old.vocabulary)
    n_new = new.training_length(splits[0])
    n_old = old.training_length(splits[1])
    end = np.array([vocabulary.end_of_text_id])
    to_new = _ids_in(vocabulary, new.vocabulary)
    to_old = _ids_in(vocabulary, old.vocabulary)
    pieces = (
        (new.ids[:n_new], to_new),
        (end, None),
        (old.ids[:n_old], to_old),
        (new.ids[n_new:], to_new),
        (end, None),
        (old.ids[n_old:], to_old),
    )
    ids = _written(pieces, np.dtype("<u2" if len(vocabulary) <= 1 << 16 else "<u4"), cache_dir)
    n_train = n_new + 1 + n_old
    own = new.parts or (Part(names[0], (0, n_new), (n_new, len(new.ids))),)
    moved = tuple(
        Part(part.name, part.train, (part.held_out[0] + n_old + 1, part.held_out[1] + n_old + 1))
        for part in own
    )
    old_part = Part(
        f"{OLD}{names[1]}", (n_new + 1, n_train), (len(ids) - (len(old.ids) - n_old), len(ids))
    )
    return Tokens(
        ids, vocabulary, new.text_sha256, new.encoding, n_train=n_train, parts=(*moved, old_part)
    )


def _joined_vocabulary(new: Vocabulary, old: Vocabulary) -> Vocabulary:
    """Return the characters of both texts, or the subwords that both have. Raises: ConfigError."""
    if new.tokens == old.tokens:
        return new
    assert new.kind == old.kind == "characters", "both texts are read with the model's subwords"
    characters = sorted({*new.tokens[1:], *old.tokens[1:]})  # without the end-of-text token
    if len(characters) > MAX_CHARACTERS:
        raise ConfigError(
            f"the new and the old text have {len(characters)} different characters, "
            f"at most {MAX_CHARACTERS} can be told apart"
        )
    return Characters("".join(characters))


def _ids_in(joined: Vocabulary, own: Vocabulary) -> NDArray[np.int64] | None:
    """Return the id in the joined vocabulary of each token of a text; None: the same."""
    if joined.tokens == own.tokens:
        return None
    id_of = {token: number for number, token in enumerate(joined.tokens)}
    return np.array([id_of[token] for token in own.tokens])


def _written(
    pieces: tuple[tuple[Ids, NDArray[np.int64] | None], ...], dtype: np.dtype[Any], cache_dir: Path
) -> Ids:
    """Return the pieces, each with its own table of ids, as one array in a file without a name.

    Raises: StorageError.
    """
    try:
        with TemporaryFile(dir=cache_dir) as file:
            for ids, id_of in pieces:
                for chunk in _chunks(ids):
                    file.write((chunk if id_of is None else id_of[chunk]).astype(dtype).tobytes())
            file.flush()
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        message = (
            f"{cache_dir}: the ids of the new and the old text cannot be written: "
            f"{error.strerror or error}; set paths.cache"
        )
        raise StorageError(message) from error
    if hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)  # as the token cache does
    return np.frombuffer(memory, dtype=dtype)


def _chunks(ids: Ids) -> Iterator[Ids]:
    for first in range(0, len(ids), IDS_AT_ONCE):
        yield ids[first : first + IDS_AT_ONCE]
