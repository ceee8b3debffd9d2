"""What each format of an export can do: write a model into a folder, and open what was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from chatgot.model.gpt import GPT
from chatgot.sampling.loading import LoadedModel

Dtype = Literal["fp32", "fp16", "bf16", "q8_0"]


@dataclass(frozen=True)
class Said:
    """What the written files say that no logit shows.

    context: tokens. chat_template: in Jinja; None: the format has none.
    """

    context: int
    vocab_size: int
    end_of_text_id: int
    chat_template: str | None = None


class Opened(Protocol):
    """An exported model as another program would read it: from the written files alone.

    It computes by the words of the format (plain_forward.py), not by our own model's code, so that
    an error in what was written shows.
    """

    @property
    def said(self) -> Said:
        """Return what the files say of the model beside its weights."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text by the tokenizer that was written."""
        ...

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits (T, V), fp64, of one sequence of ids (T,)."""
        ...


class Format(Protocol):
    """One format of an export.

    name: as the command line says it; dtypes: that it can write, its default first.
    """

    name: str
    dtypes: tuple[Dtype, ...]

    def write(self, loaded: LoadedModel, dtype: Dtype, folder: Path) -> list[str]:
        """Write all files of a model into an empty folder; return what the user should know.

        Raises: ExportImpossible for a model that the format has no words for.
        """
        ...

    def open(self, folder: Path) -> Opened:
        """Read what was written. Raises: UserError for files that do not fit each other."""
        ...

    def as_rounded(self, model: GPT, dtype: Dtype) -> GPT:
        """Return a model with the weights as they are after rounding to the dtype in this format.

        With fp32 it is the model itself.
        """
        ...

    def how_to_use(self, folder: Path, named: Path | None = None) -> list[str]:
        """Return the lines that a user types next, to use what was written into this folder.

        named: the path that they have for the folder; None: its own.
        """
        ...


@runtime_checkable
class ChoosesDtype(Protocol):
    """A format whose default dtype is not always its first one."""

    def default_dtype(self, model: GPT) -> Dtype:
        """Return the dtype for a model where the user names none."""
        ...
