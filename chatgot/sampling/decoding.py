"""The model as it is run for sampling: the same weights and formulas, with faster matrix products.

oneDNN multiplies few rows by a matrix several times faster when the matrix was reordered before
(measured: docs/benchmarks.md). A compiled step for one row writes the products as sums, which run
at the speed of the memory.
"""

import copy
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chatgot.machine.cuda_graph import record_launches
from chatgot.machine.device import preserved_generators
from chatgot.machine.measured import keep_compiled_code
from chatgot.model.gpt import GPT, Block
from chatgot.model.lora import merged
from chatgot.sampling.key_value_cache import BLOCK, KeyValueCache, OneToken

logger = logging.getLogger(__name__)

# The number of a reordered matrix -> its layer: a compiled graph takes numbers, but no matrix in
# oneDNN's own layout
_layers: "weakref.WeakValueDictionary[int, ReorderedLinear]" = weakref.WeakValueDictionary()
_numbers = itertools.count()

MOST_DIFFERENCE = (
    1e-4  # of a compiled step's logits, relative to the largest: sums in another order
)
LONGEST_REASON = 200  # characters of a compiler's message
PROVEN_TOKENS = BLOCK  # that the texts of the proof may look at
ROWS_HINT = 16  # the number of rows for which oneDNN picks a layout


# an operator for the compiler, defined the plain way: that of `torch.library.custom_op` takes four
# times as long to call, 25 times a step
_operators: Any = torch.library.Library("chatgot", "FRAGMENT")  # type: ignore[no-untyped-call] # torch
_operators.define("reordered_linear(Tensor x, int number, int out_features) -> Tensor")


def reordered_linear(x: Tensor, number: int, out_features: int) -> Tensor:
    """Return x (..., in) times the reordered matrix of that number, plus its bias: (..., out)."""
    return _layers[number].product(x)


def _shape_of_product(x: Tensor, number: int, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


_operators.impl("reordered_linear", reordered_linear, "CPU")
_operators.impl("reordered_linear", _shape_of_product, "Meta")


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
            y: Tensor = torch.ops.chatgot.reordered_linear(x, self.number, self.out_features)
            return y
        y = (x.reshape(1, -1) * self.weight).sum(-1)  # (out,)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


def sampling_model(model: GPT) -> GPT:
    """Return a model in evaluation mode that shares all weights with `model`, which is untouched.

    What LoRA has added is merged: these weights are new. It has to be made again when the weights
    have changed.
    """
    model = merged(model)
    shared: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    shared[id(model.training_block)] = Block.__call__
    twin = copy.deepcopy(model, shared).eval()
    twin.training_block = Block.__call__
    twin.recompute_every = None
    weight = twin.head.weight
    twin.rotations = twin.rotation(torch.arange(model.cfg.max_seq_length, device=weight.device))
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and can_reorder():
        _reorder_linears(twin)
    return twin


def can_reorder() -> bool:
    """Return whether this build of torch has oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call] # in torch


def _reorder_linears(module: nn.Module) -> None:
    """Replace each linear layer below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, ReorderedLinear(child))
        else:
            _reorder_linears(child)


# (ids (B,), positions (B,), keys and values of each layer, positions seen (n,)) -> logits (B, V)
Step = Callable[[Tensor, Tensor, list[Tensor], list[Tensor], Tensor], Tensor]


def decode_step(model: GPT) -> Step:
    """Return the function that gives each of B texts its next logits."""

    def step(
        ids: Tensor, positions: Tensor, k: list[Tensor], v: list[Tensor], seen: Tensor
    ) -> Tensor:
        cache = OneToken(k, v, positions[:, None], seen)
        logits: Tensor = model.head(model.hidden(ids[:, None], cache))  # (B, 1, V)
        return logits[:, 0].float()

    return step


def graphed_step(model: GPT, cache: KeyValueCache, slots: int) -> Step:
    """Return a step that a CUDA device replays as one graph: one launch instead of hundreds.

    It computes all `slots` rows and looks at whole contexts, so that one graph is enough; on such a
    device that costs less than the launches. Written for GPUs, not run on one yet.
    Raises: RuntimeError of torch where it cannot be captured.
    """
    step = decode_step(model)
    device = cache.k[0].device
    all_ids = torch.zeros(slots, dtype=torch.int64, device=device)
    all_positions = torch.zeros(slots, dtype=torch.int64, device=device)
    all_seen = torch.arange(model.cfg.max_seq_length, device=device)

    all_logits = torch.zeros(slots, model.vocab_size, device=device)

    def whole_step() -> None:
        all_logits.copy_(step(all_ids, all_positions, cache.k, cache.v, all_seen))

    # a failure must not disturb the generator, which training uses, too
    with preserved_generators(device):
        launch_again = record_launches(whole_step, device)

    def replay(
        ids: Tensor, positions: Tensor, k: list[Tensor], v: list[Tensor], seen: Tensor
    ) -> Tensor:
        B = ids.size(0)
        all_ids[:B] = ids
        all_positions[:B] = positions
        # what a row without a text is given is overwritten when a text comes
        all_positions[B:] = 0
        launch_again()
        return all_logits[:B]

    return replay


class CompileFailed(Exception):
    """There is no compiler, or what it makes computes something else."""


def compiled_step(model: GPT, slots: int) -> Step:
    """Return a compiled `decode_step`, after comparing its logits with those of the eager one.

    Compiling takes 20 to 40 s on two cores, once per machine and shape: the files are kept.
    For CPUs; elsewhere there is `graphed_step`.

    slots: the greatest B that will come.
    Raises: CompileFailed.
    """
    if model.head.weight.device.type != "cpu":
        raise CompileFailed("it is for CPUs only")
    keep_compiled_code()
    eager = decode_step(model)
    with _errors_of_the_compiler():
        compiled = torch.compile(decode_step(model), options={"cpp_wrapper": True})

    def step(
        ids: Tensor, positions: Tensor, k: list[Tensor], v: list[Tensor], seen: Tensor
    ) -> Tensor:
        torch._dynamo.mark_dynamic(seen, 0)  # noqa: SLF001 its documented name
        if len(ids) > 1:
            torch._dynamo.mark_dynamic(ids, 0)  # noqa: SLF001
            torch._dynamo.mark_dynamic(positions, 0)  # noqa: SLF001
        logits: Tensor = compiled(ids, positions, k, v, seen)
        return logits

    with _errors_of_the_compiler():
        for B in sorted({1, min(2, slots), slots}):
            difference = _difference(model, eager, step, B, slots)
            if not difference <= MOST_DIFFERENCE:
                raise CompileFailed(f"its logits differ by {difference:.1e} of the largest")

    in_use: Step = step

    def step_or_eager(
        ids: Tensor, positions: Tensor, k: list[Tensor], v: list[Tensor], seen: Tensor
    ) -> Tensor:
        nonlocal in_use
        try:
            with _errors_of_the_compiler():
                return in_use(ids, positions, k, v, seen)
        except CompileFailed as error:
            # for a shape that was not in the proof; a step can be made twice
            logger.warning("sampling goes on without its compiled step: %s", error)
            in_use = eager
            return eager(ids, positions, k, v, seen)

    return step_or_eager


@contextmanager
def _errors_of_the_compiler() -> Iterator[None]:
    """Turn whatever the compiler raises into CompileFailed, with its first line."""
    try:
        yield
    except CompileFailed:
        raise
    except Exception as error:  # whatever is missing or broken, sampling can do without
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileFailed(lines[0][:LONGEST_REASON]) from error


def _difference(model: GPT, eager: Step, compiled: Step, B: int, slots: int) -> float:
    """Return the largest difference of two steps' logits, relative to the largest logit."""
    weight = next(model.norm.parameters()).detach()
    device = weight.device
    n = min(model.cfg.max_seq_length, PROVEN_TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.vocab_size, (2, B), generator=generator).to(device)
    logits = []
    with torch.no_grad():
        for step in (eager, compiled):
            # one row more, as the engine's: a compiled graph depends on the shape
            cache = KeyValueCache(model.cfg, slots + 1, weight)
            for place in range(min(2, n)):
                positions = torch.full((B,), place, device=device)
                seen = torch.arange(n, device=device)
                last = step(ids[place], positions, cache.k, cache.v, seen)
            logits.append(last.clone())
    scale = float(logits[0].abs().max())
    return float((logits[0] - logits[1]).abs().max()) / scale
