"""What a new run may start from instead of fresh weights."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from chatgot.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Start:
    """The weights of another model, under our own names, and what comes with them.

    tokens: the text of each id, for rows of the embedding that are matched by token; a string is
    one character for each id. None: unknown, the rows fit as they are.
    shape: the keys of `model` that the weights need; empty: those of the configuration are used.
    vocabulary: the subwords that the text is to be read as; None: the text's own characters.
    kind: `checkpoint`, `hf` or `gguf`.
    """

    tensors: dict[str, Tensor]
    tokens: str | list[str] | None
    kind: str = "checkpoint"
    shape: dict[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
