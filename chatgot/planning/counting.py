"""What one rank holds in memory, counted with fake tensors: the real model, step and optimizer.

Letters: B sequences that go through at once, T `max_seq_length`, V tokens of the vocabulary,
L layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import utils

from chatgot.config import Config
from chatgot.model.gpt import GPT, model_without_weights
from chatgot.model.lora import add_lora
from chatgot.numerics.gradient_checkpointing import LOGIT_BYTES, PROOF_SEQUENCES, PROOF_TOKENS
from chatgot.numerics.multi_token import multi_token_losses
from chatgot.numerics.optim import allocate_state, build_optimizer, is_muon, state_shapes
from chatgot.numerics.precision import autocast
from chatgot.planning.live_bytes import counted

Finish = Callable[[], None]  # to be called when a graph is gone
WEIGHT_BYTES = 4
FEW_LAYERS = (2, 3)  # what more layers take is the same for each
MANY_SEQUENCES = 64  # so many that the peak is at forward's end
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Way:
    """How a pass is computed.

    every: each every-th block recomputes its activations; 0: none does.
    accumulates: a step has several micro-batches, so gradients meet those before them.
    scatters: each gradient goes to other ranks as soon as it is there.
    """

    precision: str
    attention: str
    every: int
    accumulates: bool
    scatters: bool = False


@dataclass(frozen=True)
class Sizes:
    """Bytes that do not depend on the sequences, and what the model is."""

    parameters: int
    flops_per_token: int
    weights: int
    gradients: int
    optimizer: int
    block: int  # weights of the largest block
    root: int  # weights outside of the blocks
    muon: int  # matrices that Muon updates, counted in elements


@dataclass(frozen=True)
class Line:
    """Bytes that grow evenly with the sequences at once."""

    fixed: int
    per_sequence: int

    def at(self, B: int) -> int:
        return self.fixed + self.per_sequence * B


@dataclass(frozen=True)
class Passes:
    """Bytes that forward and backward take beyond weights, gradients and optimizer.

    few, many: of few sequences at once, where the peak may be at backward's end, and of many.
    casts: of the weights in the precision of the pass; autocast keeps them for the whole step.
    """

    few: Line
    many: Line
    casts: int
    logits_per_sequence: int

    def at(self, B: int) -> int:
        """Return the bytes of B sequences at once."""
        return max(self.casts, self.few.at(B), self.many.at(B))


@dataclass(frozen=True)
class OnCpu:
    """Bytes of one process on a CPU.

    step: at the peak of a step, beyond weights, gradients and optimizer.
    start: what the proofs before the first step take beyond the peak of a step; often 0.
    holes: what the heap has beyond all that, because freed memory does not fit what comes next.
    heap: all of it.
    """

    step: int
    start: int
    holes: int
    heap: int


def sizes_of(config: Config, V: int) -> Sizes:
    """Return what a model has, without making it."""
    model = _model(config, V, "meta")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(model, config.training)
    state = sum(
        prod(shape)
        for group in optimizer.param_groups
        for p in group["params"]
        for shape in state_shapes(group, p).values()
    )
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    parameters = model.parameter_count()
    return Sizes(
        parameters=parameters,
        flops_per_token=model.flops_per_token(),
        weights=WEIGHT_BYTES * parameters,
        gradients=WEIGHT_BYTES * sum(p.numel() for p in trained),
        optimizer=WEIGHT_BYTES * state,
        block=WEIGHT_BYTES * max(blocks),
        root=WEIGHT_BYTES * (parameters - sum(blocks)),
        muon=sum(
            p.numel() for group in optimizer.param_groups if is_muon(group) for p in group["params"]
        ),
    )


def passes_of(config: Config, V: int, way: Way) -> Passes:
    """Return what forward and backward take on a card, for any B.

    Counted in models of few layers, since each layer takes the same.
    """

    def line(B: int) -> Line:
        one = _peak_of_all_layers(config, V, way, B)
        per_sequence = _peak_of_all_layers(config, V, way, B + 1) - one
        return Line(one - B * per_sequence, per_sequence)

    model = _model(config, V, "meta")
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    cast_bytes = 0 if way.precision == "fp32" else 2
    return Passes(
        few=line(1),
        many=line(MANY_SEQUENCES),
        casts=cast_bytes * matrices,
        logits_per_sequence=config.model.max_seq_length * V * LOGIT_BYTES,
    )


def _peak_of_all_layers(config: Config, V: int, way: Way, B: int) -> int:
    L = config.model.n_layers
    few, more = (min(layers, L) for layers in FEW_LAYERS)
    peak = _peak_of_passes(config, V, way, more, B)
    if more == few:
        return peak
    return peak + (L - more) * (peak - _peak_of_passes(config, V, way, few, B))


def count_on_cpu(config: Config, V: int, way: Way, muon_precision: str, sequences: int) -> OnCpu:
    """Follow a process on a CPU from its first weights to the end of its second step.

    sequences: at once.
    """
    with counted() as live:
        model = _model(config, V, "cpu")
        model.use_attention(way.attention)
        finish = live.heap.forget_graph
        finish()
        live.begin()
        if way.precision != "fp32":
            _prove_precision(model, config, way, finish)
        optimizer = build_optimizer(model, config.training, muon_precision)
        first_weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        allocate_state(optimizer)
        finish()
        model.train()
        if way.every:
            _prove_recomputation(model, config, way, finish)
        start = live.peak
        held = live.now
        live.begin()
        x = _ids(sequences, config)
        for _ in range(2):
            with autocast(CPU, way.precision):
                for _ in range(2 if way.accumulates else 1):
                    _pass(model, x, finish, config.training.multi_token_weights)
            _update(model, optimizer, config)
            finish()
        del first_weights
    gradients = WEIGHT_BYTES * model.trained_count()
    highest = max(start, live.peak)
    return OnCpu(
        step=max(0, live.peak - held - gradients),
        start=highest - live.peak,
        holes=live.heap.high - highest,
        heap=live.heap.high,
    )


def _model(config: Config, V: int, device: str) -> GPT:
    """Return the model that trains, without weights: device "meta", or "cpu" for fake tensors."""
    model = model_without_weights(config.model, V, device)
    if config.training.lora.enabled:
        add_lora(model, config.training.lora)
    return model


def _ids(sequences: int, config: Config) -> Tensor:
    return torch.zeros(sequences, config.model.max_seq_length, dtype=torch.int64)


def _pass(model: GPT, x: Tensor, finish: Finish, later: Sequence[float] = ()) -> None:
    if later:
        loss, _ = multi_token_losses(model, x, x, later)
    else:
        _, loss = model(x, x)  # _ holds the logits until backward has ended, as in a step
    loss.backward()  # type: ignore[no-untyped-call] # untyped in torch
    del loss
    finish()


def _update(model: GPT, optimizer: torch.optim.Optimizer, config: Config) -> None:
    """Clip and update as a step does."""
    clip = config.training.grad_clip
    if clip is not None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = utils.get_total_norm(gradients)
        utils.clip_grads_with_norm_(model.parameters(), clip, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _prove_precision(model: GPT, config: Config, way: Way, finish: Finish) -> None:
    """Hold what the proof of mixed precision holds: gradients of two passes, one in fp32."""
    x = _ids(config.training.batch_size, config)
    model.eval()
    kept = []
    for precision in ("fp32", way.precision):
        model.zero_grad(set_to_none=True)
        with autocast(CPU, precision):
            _pass(model, x, finish)
        kept.append([p.grad / 1.0 for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    del kept
    finish()


def _prove_recomputation(model: GPT, config: Config, way: Way, finish: Finish) -> None:
    """Hold what the proof of gradient checkpointing holds: gradients of three small passes."""
    tokens = min(PROOF_TOKENS, config.model.max_seq_length)
    x = torch.zeros(PROOF_SEQUENCES, tokens, dtype=torch.int64)
    kept = []
    for every in (None, None, way.every):
        model.recompute_every = every
        model.zero_grad(set_to_none=True)
        with autocast(CPU, way.precision):
            _pass(model, x, finish)
        kept.append([p.grad for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    del kept
    finish()


def _peak_of_passes(config: Config, V: int, way: Way, layers: int, B: int) -> int:
    """Return the bytes of forward and backward beyond weights and gradients."""
    shape = config.model.model_copy(update={"n_layers": layers})
    config = config.model_copy(update={"model": shape})
    with counted() as live:
        model = _model(config, V, "cpu")
        model.use_attention(way.attention)
        model.recompute_every = way.every or None
        model.train()
        held = WEIGHT_BYTES * model.parameter_count()
        if way.scatters:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_forget_gradient)  # type: ignore[no-untyped-call] # untyped in torch
        else:
            held += WEIGHT_BYTES * model.trained_count()
        x = _ids(B, config)
        later = config.training.multi_token_weights
        with autocast(CPU, way.precision):
            if way.accumulates:
                _pass(model, x, live.heap.forget_graph, later)
            live.begin()
            _pass(model, x, live.heap.forget_graph, later)
        return live.peak - held


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
