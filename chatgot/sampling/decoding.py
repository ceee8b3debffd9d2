"""The model as it is run for sampling: the same weights and formulas, with faster matrix products.

oneDNN multiplies few rows by a matrix several times faster when the matrix was reordered before
(measured: docs/benchmarks.md). A compiled step for one row writes the products as sums, which run at
the speed of the memory.
"""

import copy
import itertools
import logging
import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatgot.model.gpt import GPT, Block
from chatgot.sampling.key_value_cache import OneToken

logger = logging.getLogger(__name__)

# The number of a reordered matrix -> its layer: a compiled graph takes numbers, but no matrix in
# oneDNN's own layout
_layers: "weakref.WeakValueDictionary[int, ReorderedLinear]" = weakref.WeakValueDictionary()
_numbers = itertools.count()

ROWS_HINT = 16  # the number of rows for which oneDNN picks a layout


@torch.library.custom_op("chatgot::reordered_linear", mutates_args=(), device_types="cpu")
def reordered_linear(x: Tensor, number: int, out_features: int) -> Tensor:
    """Return x (..., in) times the reordered matrix of that number, plus its bias: (..., out)."""
    return _layers[number].product(x)


@reordered_linear.register_fake
def _(x: Tensor, number: int, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


class ReorderedLinear(nn.Module):
    """A linear layer that shares its weights with another one, and has a reordered copy of them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.out_features = linear.out_features
        weight = linear.weight.detach()
        self.reordered = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)  # noqa: SLF001
        self.number = next(_numbers)
        _layers[self.number] = self

    def product(self, x: Tensor) -> Tensor:
        """Return (..., out) from x (..., in)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            x, self.reordered, self.bias, "none", [], ""
        )
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) from x (..., in)."""
        if not torch.compiler.is_compiling():
            return self.product(x)
        if x.numel() != x.size(-1):
            y: Tensor = reordered_linear(x, self.number, self.out_features)
            return y
        y = (x.reshape(1, -1) * self.weight).sum(-1)  # (out,)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


def sampling_model(model: GPT) -> GPT:
    """Return a model in evaluation mode that shares all weights with `model`, which is untouched.

    It has to be made again when the weights have changed.
    """
    shared: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    shared[id(model.training_block)] = Block.__call__
    twin = copy.deepcopy(model, shared).eval()
    twin.training_block = Block.__call__
    twin.recompute_every = None
    weight = twin.head.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and can_reorder():
        _reorder_linears(twin)
    return twin


def can_reorder() -> bool:
    """Return whether this build of torch has oneDNN."""
    return torch.backends.mkldnn.is_available()


def _reorder_linears(module: nn.Module) -> None:
    """Replace each linear layer below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, ReorderedLinear(child))
        else:
            _reorder_linears(child)


# (ids (B,), positions (B,), keys and values of each layer, n) -> logits (B, V)
Step = Callable[[Tensor, Tensor, list[Tensor], list[Tensor], int], Tensor]


def decode_step(model: GPT) -> Step:
    """Return the function that gives each of B texts its next logits."""

    def step(
        ids: Tensor, positions: Tensor, k: list[Tensor], v: list[Tensor], n: int
    ) -> Tensor:
        cache = OneToken(k, v, positions[:, None], n)
        logits = model.head(model.hidden(ids[:, None], cache))  # (B, 1, V)
        return logits[:, 0].float()

    return step
