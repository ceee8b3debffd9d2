"""How does a folder of `--format safetensors` become a start for a new run?"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from chatgot.config import ModelConfig
from chatgot.data.tokenizer_json import MOST_TOKENS
from chatgot.data.vocabulary import Characters
from chatgot.errors import ImportRejected
from chatgot.exchange.model_folder import Json, read_json, shown
from chatgot.exchange.plain_safetensors import VERSION, VOCABULARY
from chatgot.exchange.stored_tensors import (
    EMBEDDING,
    HEAD,
    Piece,
    open_weights,
    read_pieces,
    shapes_of,
)
from chatgot.exchange.tokenizer_of_folder import read_subwords
from chatgot.run.starting import SHAPE_KEYS, Start

FORMAT = "chatgot"


def is_ours(config: Json) -> bool:
    """Return whether a config.json is one that we wrote, with our own names."""
    return config.get("format") == FORMAT


def read_ours(folder: Path, config: Json, path: Path) -> Start:
    """Return the weights and the shape of such a folder. Raises: ImportRejected.

    path: of the config.json.
    """
    if config.get("version") != VERSION:
        raise ImportRejected(
            f"{path}: version is {shown(config.get('version'))}, this ChatGoT reads {VERSION}"
        )
    vocab_size = config.get("vocab_size")
    if type(vocab_size) is not int or not 1 <= vocab_size <= MOST_TOKENS:
        raise ImportRejected(
            f"{path}: vocab_size is {shown(vocab_size)}: "
            f"expected a whole number from 1 to {MOST_TOKENS}"
        )
    try:
        model = ModelConfig.model_validate(config.get("model"))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, ("model", *problem["loc"])))
        raise ImportRejected(f"{path}: {shown(place)}: {problem['msg']}") from error
    vocabulary = read_json(folder / VOCABULARY)
    is_subwords = vocabulary.get("kind") == "subwords"
    if is_subwords:
        subwords = read_subwords(folder, _end(folder, config, vocabulary))
        tokens = subwords.tokens
    else:
        subwords = None
        tokens = _characters(folder, vocabulary).tokens
    if len(tokens) > vocab_size or (not is_subwords and len(tokens) < vocab_size):
        raise ImportRejected(
            f"{folder / VOCABULARY}: has {len(tokens)} tokens, {path.name} says {vocab_size}"
        )
    with open_weights(folder) as stored:
        shapes = shapes_of(model, vocab_size, stored)
        pieces = {name: [Piece(name, tuple(shape))] for name, shape in shapes.items()}
        tensors = read_pieces(pieces, stored, unread=set())
    if model.tie_embeddings:
        tensors[HEAD] = tensors[EMBEDDING]
    values: dict[str, Any] = model.model_dump()
    shape = {key: values[key] for key in SHAPE_KEYS[model.architecture]}
    return Start(tensors, tokens, "safetensors", shape, subwords)


def _characters(folder: Path, vocabulary: Json) -> Characters:
    path = folder / VOCABULARY
    tokens = vocabulary.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ImportRejected(f"{path}: tokens: expected the text of each id")
    try:
        return Characters.from_tokens(tokens)
    except ValueError as error:
        raise ImportRejected(f"{path}: {error}") from error


def _end(folder: Path, config: Json, vocabulary: Json) -> str:
    """Return the name of the token that ends a text. Raises: ImportRejected."""
    tokens = vocabulary.get("tokens")
    place = config.get("end_of_text_id")
    if (
        not isinstance(tokens, list)
        or type(place) is not int
        or not 0 <= place < len(tokens)
        or not isinstance(tokens[place], str)
    ):
        raise ImportRejected(
            f"{folder / VOCABULARY}: has no token {shown(place)}, the end_of_text_id of config.json"
        )
    return str(tokens[place])
