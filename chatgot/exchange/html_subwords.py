"""How do subwords stand in a page, and which of them can?

Those of a text of one's own: id 0 ends a text, then come the 256 bytes, then what each merge makes,
in order. So two ids for each merge say it all. The words that bytes are merged in are Qwen2's.
"""

import json
from collections.abc import Mapping
from typing import Any

from chatgot.data.subwords import Subwords
from chatgot.data.tokenizer_json import byte_letters, read_tokenizer_json
from chatgot.data.vocabulary import END_OF_TEXT, END_OF_TEXT_ID, split_documents
from chatgot.errors import ExportImpossible
from chatgot.exchange.byte_level_bpe import NORMAL, ByteLevelBpe

BYTES = 256
WORDS = "qwen2"  # a key of byte_level_bpe.WORDS


class SubwordsOfPage:
    """The subwords that a page has, read back; they encode by what the page says alone.

    bytes: the byte of each id from 1 on; merges: two ids for each merge, in order.
    Raises: ValueError where they do not fit each other.
    """

    end_of_text_id = END_OF_TEXT_ID

    def __init__(self, about: Mapping[str, Any]) -> None:
        merges = [int(number) for number in about["merges"].split()]
        self.tokens = _names(about["bytes"], merges)
        names = self.tokens
        joined = [f"{names[a]} {names[b]}" for a, b in zip(merges[::2], merges[1::2], strict=True)]
        self._bpe = ByteLevelBpe(names, [NORMAL] * len(names), joined, WORDS)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        first, *further = split_documents(text)
        ids = self._bpe.encode(first)
        for document in further:
            ids += [END_OF_TEXT_ID, *self._bpe.encode(document)]
        return ids


def subwords_in_page(vocabulary: Subwords) -> dict[str, Any]:
    """Return what a page says of subwords (see SubwordsOfPage), for JSON.

    Raises: ExportImpossible for those of another kind than a text's own.
    """
    tokenizer = read_tokenizer_json(vocabulary.json)
    model = json.loads(tokenizer.copy)["model"]
    id_of = {name: i for i, name in enumerate(vocabulary.tokens)}
    merges = [id_of[name] for pair in model["merges"] for name in pair]
    letters = byte_letters()
    byte_of_id = [letters.get(name, -1) for name in vocabulary.tokens[1 : 1 + BYTES]]
    about = {"bytes": byte_of_id, "merges": " ".join(map(str, merges))}
    try:
        is_own = SubwordsOfPage(about).tokens == vocabulary.tokens
    except ValueError:
        is_own = False
    if not is_own or not tokenizer.is_plain_qwen2 or model["ignore_merges"]:
        raise ExportImpossible(
            "--format html: this model has the subwords of an imported tokenizer, and the page "
            "reads only those that were trained here (data.tokenizer: bpe); "
            "use --format gguf or hf"
        )
    return about


def _names(byte_of_id: list[int], merges: list[int]) -> list[str]:
    """Return the name of each token. Raises: ValueError."""
    letter_of = {byte: letter for letter, byte in byte_letters().items()}
    if sorted(byte_of_id) != list(range(BYTES)):
        raise ValueError("the subwords lack a byte")
    names = [END_OF_TEXT, *(letter_of[byte] for byte in byte_of_id)]
    known = set(names)
    for a, b in zip(merges[::2], merges[1::2], strict=True):
        if not (0 < a < len(names) and 0 < b < len(names)):
            raise ValueError(f"the subwords {a} and {b} are merged before they are there")
        name = names[a] + names[b]
        if name not in known:  # two merges may make one token
            known.add(name)
            names.append(name)
    return names
