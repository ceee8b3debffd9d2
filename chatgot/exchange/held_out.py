"""Which windows of text prove an export? Held-out ones of the training text, if it is here.

Letters: T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chatgot.data.vocabulary import END_OF_TEXT, Vocabulary, split_documents
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine, Request
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.training_text import training_text

LONGEST = 512  # tokens of a window, and no more than the context
LARGE_MODEL = 100_000_000  # parameters from which on the windows are shorter
LONGEST_OF_LARGE = 64  # so that the proof takes seconds
NEVER = -1e9  # added to a logit: that token is not drawn
TORN = "\ufffd"  # what is shown of a character whose other tokens are outside a window


@dataclass(frozen=True)
class Window:
    """A piece of text with its ids, (T,) int64; place: which piece, in a few words."""

    place: str
    text: str
    ids: Tensor


@dataclass(frozen=True)
class Windows:
    """What an export is proven on; source: where the texts come from, in a few words."""

    windows: tuple[Window, ...]
    source: str


def windows_for(loaded: LoadedModel) -> Windows:
    """Return three windows, the last one shorter than the others.

    They are the start, the middle and the end of the held-out text, if the text that the model was
    trained on is where its configuration says. Otherwise the model writes them, which always gives
    the same ones. Nothing is downloaded. Side effect: a text may be encoded into the token cache.
    """
    length = _longest(loaded)
    tokens = training_text(loaded)
    if tokens is not None:
        n_train = tokens.training_length(loaded.config.data.test_split)
        held_out = tokens.ids[n_train:]
        ragged = _ragged(min(length, len(held_out)))
        ends = {"start": length, "middle": (len(held_out) + length) // 2, "end": len(held_out)}
        lengths = {"start": length, "middle": length, "end": ragged}
        pieces = {}
        for place, end in ends.items():
            ids = held_out[max(0, end - lengths[place]) : end].tolist()
            pieces[f"{place} of the held-out text"] = ids
        source = "held-out text"
    else:
        pieces = dict(_written_by_model(loaded, length))
        source = "text that the model wrote, as its training text is not here"
    vocabulary = loaded.vocabulary
    windows = [_window(place, ids, vocabulary, length) for place, ids in pieces.items()]
    return Windows(tuple(window for window in windows if window.text), source)


def _longest(loaded: LoadedModel) -> int:
    """Return the number of tokens of a window."""
    large = loaded.model.parameter_count() > LARGE_MODEL
    return min(loaded.config.model.max_seq_length, LONGEST_OF_LARGE if large else LONGEST)


def _ragged(length: int) -> int:
    """Return about two thirds of a length, and no power of 2."""
    return max(1, length * 2 // 3)


def _written_by_model(loaded: LoadedModel, length: int) -> Iterator[tuple[str, list[int]]]:
    """Yield three texts of the model, as ids, without the end-of-text token."""
    vocabulary = loaded.vocabulary
    engine = Engine(loaded.model, vocabulary, slots=3)
    bias = {vocabulary.end_of_text_id: NEVER}
    completions = []
    for choice, tokens in enumerate((length, length, _ragged(length))):
        controls = Controls(logit_bias=bias, max_new_tokens=tokens)
        completions.append(engine.add(Request((), controls, choice)))
    while engine.busy:
        engine.step()
    for number, completion in enumerate(completions, 1):
        yield f"text {number} of the model", [token.id for token in completion.tokens]


def _window(place: str, ids: list[int], vocabulary: Vocabulary, length: int) -> Window:
    """Return the text of some ids, with the ids that this text has: at most `length`.

    They are other ids where a window cuts a character, or what a subword was split from.
    """
    text = _text_of(ids, vocabulary)
    ids = vocabulary.encode(text)
    while len(ids) > length:
        # cut a little more than the average of what is too long, at least one character
        text = text[: min(len(text) - 1, len(text) * length // len(ids))]
        ids = vocabulary.encode(text)
    return Window(place, text, torch.tensor(ids, dtype=torch.int64))


def _text_of(ids: list[int], vocabulary: Vocabulary) -> str:
    """Return the text of some ids; the end-of-text token is there only as a line of its own.

    Other programs take it for that token inside a line, too.
    """
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == vocabulary.end_of_text_id:
            documents.append([])
        else:
            documents[-1].append(token)
    text = END_OF_TEXT.join(vocabulary.decode(document) for document in documents)
    parts = [part.replace(END_OF_TEXT, "") for part in split_documents(text)]
    return END_OF_TEXT.join(parts).replace(TORN, "")
