"""What a new run may start from instead of fresh weights, and what its configuration takes from it.

A model from elsewhere brings its shape: the keys of `model` that its weights need. They win over
the YAML, and a resumed run keeps them.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from chatgot.config import Config, as_in_yaml
from chatgot.data.old_text import OldText
from chatgot.data.own_text import as_yaml
from chatgot.data.vocabulary import Vocabulary
from chatgot.errors import ConfigError

CONTEXT = "max_seq_length"
_IN_BOTH = (
    "architecture",
    "d_model",
    "n_layers",
    "n_head",
    "n_kv_head",
    "head_dim",
    "d_hid",
    CONTEXT,
    "layer_norm_eps",
    "tie_embeddings",
)
# For each architecture, the keys of `model` that given weights need
SHAPE_KEYS = {
    "gpt": (*_IN_BOTH, "bias", "activation"),
    "modern": (*_IN_BOTH, "rope_base", "qk_norm"),
}


@dataclass(frozen=True)
class Start:
    """The weights of another model, under our own names, and what comes with them.

    tokens: the text of each id, for rows of the embedding that are matched by token; a string is
    one character for each id. None: unknown, the rows fit as they are.
    shape: the keys of `model` that the weights need, CONTEXT among them: the longest one that the
    model was trained with. Empty: unknown, the keys of the configuration are used.
    own_run: one of our own runs on a text's own characters.
    vocabulary: the subwords that the text is to be read as; None: the text's own characters.
    texts: what the model was trained on, the newest first; empty: unknown.
    kind: `checkpoint`, `hf`, `gguf` or `safetensors`.
    """

    tensors: dict[str, Tensor]
    tokens: str | list[str] | None
    kind: str = "checkpoint"
    shape: dict[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    own_run: bool = False
    texts: tuple[OldText, ...] = ()

    @property
    def binds_yaml(self) -> bool:
        """Whether the run of a YAML takes over the shape; if not, it takes the weights that fit."""
        return bool(self.shape) and not self.own_run

    @property
    def overrides(self) -> list[str]:
        """Return what is to be set so that a configuration's model gets this shape.

        The context stays as it is: see `shorter_context`.
        """
        return [f"model.{key}={as_yaml(self.shape[key])}" for key in self.shape if key != CONTEXT]

    def shorter_context(self, context: int) -> list[str]:
        """Return what is to be set where a context is longer than the model's own."""
        longest = self.shape.get(CONTEXT, context)
        return [f"model.{CONTEXT}={longest}"] if longest < context else []

    def check_overrides(self, overrides: Iterable[str], path: Path) -> None:
        """Refuse what a user sets with `--set` if it is another shape than the model's.

        Before the configuration is made: keys of two shapes may contradict each other there.
        Raises: ConfigError.
        """
        for override in overrides:
            name, _, asked = (part.strip() for part in override.partition("="))
            key = name.removeprefix("model.")
            if key in (name, CONTEXT) or key not in self.shape:
                continue
            if not _says(asked, self.shape[key]):
                raise self._refusal(key, asked, path)

    def check_context(self, config: Config, path: Path) -> None:
        """Refuse a configuration whose user asks for a longer context. Raises: ConfigError."""
        asked = config.model.max_seq_length
        if asked > self.shape[CONTEXT]:
            raise self._refusal(CONTEXT, str(asked), path, "at most ")

    def _refusal(self, key: str, asked: str, path: Path, limit: str = "") -> ConfigError:
        return ConfigError(
            f"--set model.{key}={asked}: the model of {path} has "
            f"{limit}{as_in_yaml(self.shape[key])}; leave it out"
        )


def _says(text: str, value: object) -> bool:
    """Return whether a text in a YAML is this value."""
    if text == as_in_yaml(value):
        return True
    try:
        return isinstance(value, int | float) and float(text) == value
    except ValueError:
        return False


def with_shape_of(
    config: Config, stored_model: Mapping[str, Any], keys: Collection[str], context: int
) -> Config:
    """Return a configuration whose model has the shape that an imported model gave to its run.

    context: the longest one of that model.
    """
    kept = {key: stored_model[key] for key in keys if key in stored_model}
    if config.model.max_seq_length > context:
        kept[CONTEXT] = context
    return config.model_copy(update={"model": config.model.model_copy(update=kept)})
