"""Which vocabulary does a checkpoint have?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from chatgot.checkpointing.checkpoint_file import read_outline
from chatgot.data.subwords import Subwords
from chatgot.data.vocabulary import Characters, Vocabulary
from chatgot.errors import CheckpointRejected, OtherFormat

VOCABULARY_KEYS = ("vocabulary", "tokenizer", "end_of_text")  # of a checkpoint
TOKEN_ROWS = "token_embedding.weight"  # (V, C): one row a token


def stored_vocabulary(stored: Mapping[str, Any], path: Path) -> Vocabulary:
    """Return the vocabulary of a checkpoint's content: characters or subwords.

    Raises: CheckpointRejected for a tokenizer that is not read here, or has other tokens.
    """
    if "tokenizer" not in stored:
        return Characters.from_tokens(stored["vocabulary"])
    try:
        vocabulary = Subwords.from_json(stored["tokenizer"], stored["end_of_text"])
    except ValueError as error:
        raise CheckpointRejected(f"{path}: its tokenizer: {error}") from error
    if vocabulary.tokens != stored["vocabulary"]:
        raise CheckpointRejected(f"{path}: its tokenizer has other tokens than its vocabulary")
    return vocabulary


def subwords_of(stored: Mapping[str, Any], path: Path) -> Subwords | None:
    """Return the subwords of a checkpoint's content; None: it has characters.

    Raises: CheckpointRejected naming file and reason.
    """
    vocabulary = stored_vocabulary(stored, path)
    return vocabulary if isinstance(vocabulary, Subwords) else None


def subwords_in(path: Path) -> Subwords | None:
    """Return the subwords of a checkpoint file; None: it has characters, or an older format.

    Raises: CheckpointRejected naming file and reason.
    """
    try:
        outline = read_outline(path)
    except OtherFormat:
        return None
    return subwords_of(outline, path)


def vocabulary_keys(vocabulary: Vocabulary) -> dict[str, object]:
    """Return what a checkpoint says of its vocabulary."""
    keys: dict[str, object] = {"vocabulary": vocabulary.tokens}
    if isinstance(vocabulary, Subwords):
        keys |= {"tokenizer": vocabulary.json, "end_of_text": vocabulary.end_of_text}
    return keys


def rows_of_tokens(weights: Mapping[str, Any], vocabulary: Vocabulary) -> int:
    """Return how many rows the embedding of these weights has, at least one for each token.

    Some models with subwords have more rows than tokens, for a round number of them.
    """
    rows = weights.get(TOKEN_ROWS)
    if vocabulary.kind == "characters" or not isinstance(rows, Tensor) or rows.dim() != 2:
        return len(vocabulary)
    return max(len(vocabulary), rows.size(0))
