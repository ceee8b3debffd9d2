r"""A vocabulary of characters as a tokenizer.json, which transformers and others read.

It is a BPE whose tokens are the characters, without merges. Before it, a regex cuts the text at
line feeds, which makes long texts fast, and makes a line that is END_OF_TEXT one piece. As this is
a token, too, BPE takes it whole (`ignore_merges`). A program that looks for special tokens anywhere
finds END_OF_TEXT inside a longer line as well; `split_special_tokens` tells transformers not to.
"""

import json
import re
from typing import Any

from chatgot.data.vocabulary import END_OF_TEXT, END_OF_TEXT_ID, Characters

# Each piece begins where a line begins or ends. (?![^\n]) is $ in all engines and with all options
PIECES = rf"{re.escape(END_OF_TEXT)}(?![^\n])|\n+|[^\n]+"


def character_tokenizer_json(vocabulary: Characters) -> str:
    """Return the tokenizer.json of a vocabulary of characters."""
    return json.dumps(_content(vocabulary), indent=2, ensure_ascii=False)


def characters_of(tokenizer_json: str) -> Characters | None:
    """Return the vocabulary that such a tokenizer.json was made of; None: it is another kind."""
    try:
        content = json.loads(tokenizer_json)
        ids = content["model"]["vocab"]
        vocabulary = Characters.from_tokens(sorted(ids, key=ids.__getitem__))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return vocabulary if content == _content(vocabulary) else None


def _content(vocabulary: Characters) -> dict[str, Any]:
    substitute, _ = vocabulary.replace_unknown("\ud800")  # in no vocabulary: it is no character
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": END_OF_TEXT_ID,
                "content": END_OF_TEXT,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": PIECES},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": substitute,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            "merges": [],
        },
    }
