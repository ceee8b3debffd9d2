"""What does a trained model copy from its training text? It writes some texts, to see."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatgot.data.token_cache import Tokens
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine, Request
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.originality import (
    HELD_OUT_WINDOWS,
    LEAST_COPY,
    Originality,
    in_words,
    originality_of,
    originality_of_held_out,
)
from chatgot.sampling.suffix_index import SuffixIndex, index_of
from chatgot.sampling.training_text import training_text

SAMPLE_TOKENS = 400
PROMPT_TOKENS = 64
SLOTS = 16  # samples that are written at once
SEED = 1337


@dataclass(frozen=True)
class Copies:
    """What is copied from the training text: by the model, by its held-out text, by other texts.

    samples: that the model wrote; none: it was not asked to. texts: what was given; None: nothing.
    """

    samples: int
    by_model: Originality
    by_held_out: Originality
    by_texts: Originality | None
    compared_share: float

    def lines(self) -> list[str]:
        """Return all of it in words."""
        lines = [
            f"originality: copied are runs of at least {LEAST_COPY} characters of the training text"
        ]
        if self.samples:
            lines.append(f"  {self.samples} samples of the model: {in_words(self.by_model)}")
        lines.append(f"  its held-out text: {in_words(self.by_held_out)}")
        if self.by_texts is not None:
            lines.append(f"  the given texts: {in_words(self.by_texts)}")
        if self.compared_share < 1:
            share = f"{100 * self.compared_share:.0f} %"
            lines.append(f"  compared with {share} of the training text, in blocks")
        return lines

    def sentence(self) -> str:
        """Return what the model copies, as one sentence; only for one that wrote samples."""
        part = f"{100 * self.compared_share:.0f} %"
        parts = "" if self.compared_share == 1 else f", of which {part} is looked at"
        return (
            f"{self.samples} samples that it wrote: {in_words(self.by_model)}; its held-out text: "
            f"{in_words(self.by_held_out)} (copied: at least {LEAST_COPY} characters in a row of "
            f"its training text{parts})."
        )

    def as_json(self) -> dict[str, object]:
        """Return all of it for programs."""
        texts = None if self.by_texts is None else _numbers(self.by_texts)
        return {
            "samples": _numbers(self.by_model) if self.samples else None,
            "held_out": _numbers(self.by_held_out),
            "texts": texts,
            "compared_share": self.compared_share,
        }


def copies_of_model(loaded: LoadedModel, texts: Sequence[str], samples: int) -> Copies | None:
    """Let a model write some texts, and see what is copied; None: its training text is not here.

    It begins where lines of the held-out text begin. The same model writes the same texts.

    texts: others to compare with the training text; none: nothing.
    Side effects: the training text may be encoded and indexed into the token cache.
    """
    tokens = training_text(loaded)
    if tokens is None:
        return None
    n_train = tokens.training_length(loaded.config.data.test_split)
    index = index_of(tokens, n_train)
    written = _written(loaded, tokens, n_train, samples)
    return Copies(
        samples,
        originality_of(written, index),
        originality_of_held_out(tokens, n_train, SAMPLE_TOKENS, index),
        _of_texts(texts, index),
        index.share,
    )


def _of_texts(texts: Sequence[str], index: SuffixIndex) -> Originality | None:
    """Return what evenly spread parts of some texts copy."""
    if not texts:
        return None
    parts = []
    for text in texts:
        count = min(HELD_OUT_WINDOWS, max(1, len(text) // SAMPLE_TOKENS))
        starts = np.linspace(0, max(0, len(text) - SAMPLE_TOKENS), count).astype(int)
        parts += [text[start : start + SAMPLE_TOKENS] for start in starts]
    return originality_of(parts, index)


def _written(loaded: LoadedModel, tokens: Tokens, n_train: int, samples: int) -> list[str]:
    """Return texts that the model writes after pieces of its held-out text."""
    engine = Engine(loaded.model, loaded.vocabulary, slots=max(1, min(SLOTS, samples)))
    sampling = loaded.config.sampling
    controls = Controls(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_new_tokens=SAMPLE_TOKENS,
        seed=SEED,
    )
    held_out = tokens.ids[n_train:]
    length = min(PROMPT_TOKENS, len(held_out), loaded.config.model.max_seq_length // 2)
    starts = np.linspace(0, len(held_out) - length, samples).astype(np.int64)
    completions = [
        engine.add(Request(tuple(held_out[start : start + length].tolist()), controls, choice))
        for choice, start in enumerate(starts)
    ]
    while engine.busy:
        engine.step()
    return [completion.text for completion in completions]


def _numbers(measured: Originality) -> dict[str, float]:
    return {
        "copied_share": measured.share,
        "longest_copy": measured.longest,
        "characters": measured.characters,
    }
