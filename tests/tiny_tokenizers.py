"""Small byte-level tokenizers, trained on a few lines, with the words of well-known models."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from chatgot.data.bpe import train_subwords
from chatgot.data.subwords import PROBE, Subwords
from chatgot.data.tokenizer_json import (
    GPT2_WORDS,
    GPT4O_WORDS,
    LLAMA3_WORDS,
    QWEN2_WORDS,
    QWEN35_WORDS,
    TEKKEN_WORDS,
)

SPEECHES = (
    "KING:\nGood morrow, my lord! Grüße, 世界 🎭.\n\nFOOL:\nNo.\n\n"
    "KING:\nIt's 1234 o'clock, and I'll not wait\nfor whom?  Good fool!\n\n"
    "QUEEN:\nWhat, what?! Who's there...\n\nFOOL:\nThe king, my lady.\n\n"
)
SPECIALS = ("<|endoftext|>", "<|im_end|>", "</s>")


def _split(regex: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level])


def _with_digits() -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


WORDS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "gpt2_as_split": lambda: _split(GPT2_WORDS),
    "smollm2": _with_digits,
    "qwen2": lambda: _split(QWEN2_WORDS),
    "qwen35": lambda: _split(QWEN35_WORDS),
    "llama3": lambda: _split(LLAMA3_WORDS),
    "gpt4o": lambda: _split(GPT4O_WORDS),
    "tekken": lambda: _split(TEKKEN_WORDS),
}


@lru_cache
def tokenizer_json(kind: str = "gpt2", size: int = 500) -> str:
    """Return a trained tokenizer.json of at most `size` tokens; that of qwen2 has NFC, too.

    kind: a key of WORDS, or `own`: that of a text's own subwords.
    """
    if kind == "own":
        return train_subwords([SPEECHES * 20, PROBE * 4], size).json
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = WORDS[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SPEECHES * 20, PROBE * 4], trainer)
    return tokenizer.to_str()


@lru_cache
def subwords(kind: str = "gpt2", size: int = 500) -> Subwords:
    """Return the vocabulary of a trained tokenizer.json."""
    return Subwords.from_json(tokenizer_json(kind, size))


def changed(kind: str = "gpt2", **parts: Any) -> str:
    """Return a tokenizer.json with other parts at its top; those of the model are merged."""
    content = json.loads(tokenizer_json(kind))
    content["model"] |= parts.pop("model", {})
    return json.dumps(content | parts)
