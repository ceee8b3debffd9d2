"""Which tokens has a model folder of transformers: the characters of ours, or subwords?"""

from pathlib import Path

from chatgot.data.subwords import Subwords
from chatgot.data.tokenizer_json import MOST_CHARACTERS, check_size
from chatgot.errors import ImportRejected
from chatgot.exchange.character_tokenizer import characters_of
from chatgot.exchange.model_folder import Json, is_there, json_object, read_json, read_text

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
SHOWN = 60  # characters of an odd value in a message
MOST_BYTES = 2 * MOST_CHARACTERS
Tokens = tuple[list[str], Subwords | None]


def read_tokens(folder: Path, config: Json) -> Tokens:
    """Return the text of each id, and the vocabulary where it is subwords.

    config: config.json. Raises: ImportRejected.
    """
    text = _tokenizer_json(folder)
    characters = characters_of(text)
    if characters is not None:
        return characters.tokens, None
    _refuse_first_token(folder, text)
    subwords = _subwords(folder, text, _end_of_text(folder, config, text))
    return subwords.tokens, subwords


def read_subwords(folder: Path, end_of_text: str | None) -> Subwords:
    """Return the subwords of a folder's tokenizer.json. Raises: ImportRejected."""
    return _subwords(folder, _tokenizer_json(folder), end_of_text)


def _tokenizer_json(folder: Path) -> str:
    path = folder / TOKENIZER
    if not is_there(path):
        raise ImportRejected(
            f"{path}: is missing; other files of tokenizers are not read: "
            "save_pretrained of transformers' tokenizer writes it"
        )
    text = read_text(path, MOST_BYTES)
    try:
        check_size(text)
    except ValueError as error:
        raise ImportRejected(f"{path}: {error}") from error
    return text


def _refuse_first_token(folder: Path, text: str) -> None:
    """Refuse a tokenizer that puts tokens around a text: nothing of ours would put them there.

    Raises: ImportRejected.
    """
    path = folder / TOKENIZER
    last_step = json_object(text, path).get("post_processor")
    steps = last_step.get("processors") if isinstance(last_step, dict) else None
    for step in steps if isinstance(steps, list) else [last_step]:
        kind = step.get("type") if isinstance(step, dict) else step
        if kind not in (None, "ByteLevel"):
            raise ImportRejected(
                f"{path}: post_processor is {str(kind)[:SHOWN]!r}: the model wants tokens around "
                "each text, ChatGoT cannot compute that"
            )


def _subwords(folder: Path, text: str, end_of_text: str | None) -> Subwords:
    try:
        return Subwords.from_json(text, end_of_text)
    except ValueError as error:
        raise ImportRejected(f"{folder / TOKENIZER}: {error}") from error


def _end_of_text(folder: Path, config: Json, text: str) -> str | None:
    """Return the name of the token that ends a text, as one of the files says it; None: none does.

    Raises: ImportRejected.
    """
    if is_there(folder / TOKENIZER_CONFIG):
        name = read_json(folder / TOKENIZER_CONFIG).get("eos_token")
        if isinstance(name, dict):
            name = name.get("content")
        if isinstance(name, str):
            return name
    ids = [config.get("eos_token_id")]
    if is_there(folder / GENERATION_CONFIG):
        ids.insert(0, read_json(folder / GENERATION_CONFIG).get("eos_token_id"))
    added = json_object(text, folder / TOKENIZER).get("added_tokens")
    for eos in ids:
        first = eos[0] if isinstance(eos, list) and eos else eos
        for token in added if isinstance(added, list) else ():
            if isinstance(token, dict) and type(first) is int and token.get("id") == first:
                name = token.get("content")
                return name if isinstance(name, str) else None
    return None
