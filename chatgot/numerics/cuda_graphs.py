"""Forward and backward of one micro-batch in a single launch: a CUDA graph, proven before its use.

A step of a small model on a GPU waits for the CPU, which launches some 600 kernels one by one. A
graph records them once and launches them all at once. Written for GPUs, not run on one yet; all but
the recording itself is tested on a CPU.

What a recording fixes, and why training stays the same:
- Addresses. Optimizer, rewind and resume write into the tensors that the weights already are. The
  batch and the gradients have tensors here. `zero_grad(set_to_none=True)` takes the gradients off
  the weights; the next micro-batch zeroes them and puts them back.
- Shapes, precision, dropout rates and blocks. They are a recording's key: after any of them has
  changed (a smaller micro-batch, a fallback to fp32), another recording is made.
- Casts of the weights to bf16. Autocast would keep them from one micro-batch to the next; its cache
  is empty when a recording begins, so each replay casts the weights as they are then.
- Random numbers. A kernel in a graph reads seed and offset from memory. `CUDAGraph::replay` writes
  the default generator's there before each launch, and `torch.cuda.manual_seed` sets them (offset
  0): dropout masks follow from the seed of the micro-batch, as without a graph. The proof uses
  another seed than the recording. Source: note "CUDA Graph-safe RNG states" in
  CUDAGeneratorImpl.h, `replay_prologue` in CUDAGeneratorImpl.cpp, in torch 2.11 and 2.13.

Evaluations, samples and trials of other micro-batch sizes run without a graph. A step with a loss
of NaN is replayed like any other, and judged afterwards.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatgot.data.windows import Batch
from chatgot.logs.events import event
from chatgot.logs.waiting import waiting
from chatgot.machine.cuda_graph import Launch, record_launches
from chatgot.machine.device import DTYPES, preserved_generators, seed_generators
from chatgot.machine.measured import best_time, best_times, remembered, synchronise
from chatgot.machine.memory import MIB, is_out_of_memory, release_memory
from chatgot.model.gpt import GPT, Block

logger = logging.getLogger(__name__)

# Records what a function launches; returns a function that launches it again.
Record = Callable[[Launch, torch.device], Launch]
Scale = Callable[[Tensor], Tensor]
Key = tuple[object, ...]

MOST_RECORDINGS = 2  # the micro-batch, and the smaller one at the end of a step
LEAST_GAIN = 1.05  # a graph keeps its activations' memory: it must be this much faster
ROUNDS = 5  # of timing
ROOM = 0.2  # of the memory that a recording must leave free, for updates and evaluations
PROOF_SEED = 1
LONGEST_REASON = 200  # characters
# How far a pass may be from another one that computes the same: relative to the loss, and to the
# norm of the gradient. Atomic additions and, in compiled blocks, fused operations round otherwise.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


@dataclass
class Recording:
    """A recorded micro-batch: what it reads, its loss (), and what replays it."""

    x: Tensor
    y: Tensor
    factor: Tensor  # (): the gradient is that of factor x loss
    loss: Tensor
    replay: Launch


class NoGraph(Exception):
    """A micro-batch cannot be recorded, or its recording computes something else."""


class NoRoom(NoGraph):
    """A recording leaves too little memory free; a smaller one may not."""


class GraphedPass:
    """Runs forward and backward of micro-batches by replaying recordings of them.

    The caller enters the autocast context. When a recording fails, or computes something else,
    `given_up` says why: one warning, and no more recordings.

    on_failure: is called then.
    """

    def __init__(self, model: GPT, device: torch.device, record: Record | None = None) -> None:
        self.given_up = ""
        self.on_failure: Callable[[], None] | None = None
        self.model = model
        self._device = device
        self._record = record or cuda_graph
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._is_timing = False
        self._gradients: list[Tensor] = []  # one for each parameter; empty: released
        self.recordings: dict[Key, Recording] = {}

    def add_gradient(self, x: Tensor, y: Tensor, weight: float, scale: Scale) -> Tensor | None:
        """Add the gradient of weight x loss to the weights'; return weight x loss, ().

        The global generators have been seeded. None: there is no graph for this micro-batch, and
        nothing has changed.

        scale: scales the loss before backward. Whether the loss is finite is left to the caller.
        """
        recording = self.recording_of(x, y)
        if recording is None:
            return None
        recording.x.copy_(x)
        recording.y.copy_(y)
        recording.factor.copy_(scale(torch.full_like(recording.factor, weight)))
        self._put_gradients()
        recording.replay()
        return recording.loss * weight

    def times(self, batch: Batch) -> list[float]:
        """Return the seconds of a micro-batch, launched kernel by kernel and by a replay.

        Afterwards the weights have no gradient. Raises: NoGraph.
        """
        x, y = batch
        one = torch.ones((), device=self._device)
        loss = torch.zeros((), device=self._device)

        def plain() -> None:
            self._take_off_gradients()
            add_plain_gradient(self.model, batch, one, loss)
            synchronise(self._device)

        def replayed() -> None:
            self._take_off_gradients()
            if self.add_gradient(x, y, 1.0, lambda scaled: scaled) is None:
                raise NoGraph(self.given_up)
            synchronise(self._device)

        self._is_timing = True
        try:
            return best_times([plain, replayed], ROUNDS)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise NoGraph("out of memory") from error
        finally:
            self._is_timing = False
            self._take_off_gradients()

    def rule_out(self, reason: str) -> None:
        """Never record: what trains is not what a recording computes."""
        self.given_up = reason
        _log(self.model, False, reason)

    def release(self) -> None:
        """Drop all recordings and their memory: the next micro-batch is recorded anew."""
        self.recordings.clear()
        self._gradients = []

    def recording_of(self, x: Tensor, y: Tensor) -> Recording | None:
        """Return the recording for a micro-batch like this one, made now if there is none."""
        # saving and restoring generators, as recomputation does, is not allowed while recording
        if self.given_up or self.model.recompute_every:
            return None
        key = self._key(x)
        if key not in self.recordings:
            if len(self.recordings) >= MOST_RECORDINGS:
                self.release()
            problem = ""
            lacks_room = False
            try:
                self.recordings[key] = self._new_recording(x, y)
            except Exception as error:  # whatever goes wrong, training can do without
                if is_out_of_memory(error):
                    raise
                problem = _first_line(error)
                lacks_room = isinstance(error, NoRoom)
            # not inside the handler, where the exception's traceback still holds the tensors
            if lacks_room and self._is_timing:
                self.release()
                release_memory(self._device)
                raise NoRoom(problem)
            if problem:
                self._give_up(problem)
                return None
        return self.recordings[key]

    def _key(self, x: Tensor) -> Key:
        model = self.model
        rates = (model.dropout, *(block.attention.dropout for block in model.blocks))
        return (tuple(x.shape), self._precision, rates, model.training, model.training_block)

    @property
    def _precision(self) -> str:
        """Return the precision of the autocast context that the caller has entered."""
        kind = self._device.type
        if not torch.is_autocast_enabled(kind):
            return "fp32"
        dtype = torch.get_autocast_dtype(kind)
        return next(name for name, known in DTYPES.items() if known == dtype)

    def _give_up(self, reason: str) -> None:
        self.given_up = reason
        self.release()
        release_memory(self._device)
        logger.warning(
            "CUDA graph: off, micro-batches are launched kernel by kernel: %s",
            reason,
            extra=graph_event(self.model, graph=False, reason=reason),
        )
        if self.on_failure is not None:
            self.on_failure()

    def _put_gradients(self) -> None:
        """Let the weights' gradients be the tensors that recordings add to.

        A gradient that was taken off begins at 0; one from elsewhere is copied.
        """
        if not self._gradients:
            self._gradients = [torch.zeros_like(p) for p in self._parameters]
        begin: list[Tensor] = []
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            if p.grad is None:
                begin.append(gradient)
            elif p.grad is not gradient:
                gradient.copy_(p.grad)
            p.grad = gradient
        if begin:
            torch._foreach_zero_(begin)

    def _new_recording(self, x: Tensor, y: Tensor) -> Recording:
        """Record a micro-batch and prove it; gradients and generators are left as they were.

        Raises: NoGraph if it computes something else or needs too much memory, and whatever torch
            raises; out of memory only where a plain pass does, too.
        """
        gradients = [p.grad for p in self._parameters]
        # those of earlier micro-batches of this step are in the tensors that the proof writes to
        copies = [None if g is None else g.clone() for g in gradients]
        try:
            with (
                preserved_generators(self._device),
                waiting("recording the launches of a micro-batch"),
            ):
                return self._record_and_prove(x, y)
        finally:
            torch.clear_autocast_cache()
            for p, gradient, copy in zip(self._parameters, gradients, copies, strict=True):
                p.grad = gradient
                if gradient is not None and copy is not None:
                    gradient.copy_(copy)

    def _record_and_prove(self, x: Tensor, y: Tensor) -> Recording:
        model = self.model
        x = x.clone(memory_format=torch.contiguous_format)
        y = y.clone(memory_format=torch.contiguous_format)
        factor = torch.ones((), device=self._device)
        loss = torch.zeros((), device=self._device)

        def forward_backward() -> None:
            torch.clear_autocast_cache()
            add_plain_gradient(model, (x, y), factor, loss)
            torch.clear_autocast_cache()

        expected = plain_pass(model, (x, y))
        self._put_gradients()
        # a graph of autograd that is still alive would add its gradients on another stream
        gc.collect()
        seed_generators(self._device, PROOF_SEED + 1)
        try:
            replay = self._record(forward_backward, self._device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise NoGraph("out of memory while recording, which a plain pass does not") from error

        self._take_off_gradients()
        self._put_gradients()
        seed_generators(self._device, PROOF_SEED)
        replay()
        problem = difference(expected, (loss, self._gradients), TOLERANCE[self._precision])
        if problem:
            raise NoGraph(f"its replay differs from a plain pass: {problem}")
        return Recording(x, y, factor, loss, replay)

    def _take_off_gradients(self) -> None:
        for p in self._parameters:
            p.grad = None


def graph_event(model: GPT, **fields: Any) -> dict[str, object]:
    """Return the event `compile`, which says whether blocks are compiled and launched by a graph.

    fields: `graph`, `reason` and, where there are any, `measured`.
    """
    return event("compile", on=model.training_block is not Block.__call__, **fields)


def add_plain_gradient(model: GPT, batch: Batch, factor: Tensor, loss: Tensor) -> None:
    """Add the gradient of factor x loss to the weights'; write the loss into `loss`, ()."""
    _, value = model(*batch)
    (value * factor).backward()
    loss.copy_(value.detach())


def plain_pass(model: GPT, batch: Batch) -> "Pass":
    """Return loss and gradients of a micro-batch, seeded with PROOF_SEED and launched plainly.

    Afterwards the weights have no gradient.
    """
    device = batch[0].device
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = torch.zeros((), device=device)
    for p in parameters:
        p.grad = None
    torch.clear_autocast_cache()
    seed_generators(device, PROOF_SEED)
    add_plain_gradient(model, batch, torch.ones((), device=device), loss)
    torch.clear_autocast_cache()
    gradients = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return loss, gradients


# a loss () and the gradients of all parameters
Pass = tuple[Tensor, Sequence[Tensor | None]]


def difference(expected: Pass, found: Pass, tolerance: float) -> str:
    """Return how two passes over one micro-batch differ; empty: within the tolerance."""
    losses = [expected[0].item(), found[0].item()]
    if not abs(losses[1] - losses[0]) <= tolerance * abs(losses[0]):  # true for NaN
        return f"loss {losses[1]:g}, expected {losses[0]:g}"
    norms = []
    distances = []
    for a, b in zip(expected[1], found[1], strict=True):
        if a is None or b is None:
            return "a weight has no gradient"
        norms.append(a.norm())
        distances.append((a - b).norm())
    norm = torch.stack(norms).norm().item()
    distance = torch.stack(distances).norm().item()
    if not distance <= tolerance * norm:
        return f"gradient {distance:.2g} off, at most {tolerance * norm:.2g} is rounding"
    return ""


def cuda_graph(launch: Launch, device: torch.device) -> Launch:
    """Record what a function launches, unless that leaves too little memory for all else.

    Raises: NoGraph, and whatever torch raises for what cannot be recorded.
    """
    replay = record_launches(launch, device)
    free, total = torch.cuda.mem_get_info(device)
    if free < ROOM * total:
        raise NoRoom(f"it would leave {free / MIB:,.0f} of {total / MIB:,.0f} MiB")
    return replay


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:LONGEST_REASON]


def choose_graph(graphed: GraphedPass, batch: Batch, name: str, stored: bool | None) -> bool:
    """Return whether micro-batches are to be replayed: as stored, or where that is clearly faster.

    Logs the reason. The caller enters the autocast context; the weights' gradients are lost.

    name: of the micro-batch; it contains all that decides the speed.
    stored: what a checkpoint says its run did; None: a fresh run, or the user asks for a change.
    """
    if stored is False or graphed.given_up:
        return False
    model = graphed.model
    if model.recompute_every:
        _log(model, False, "gradient checkpointing saves generators, which cannot be recorded")
        return False
    if stored:
        _log(model, True, "as in the checkpoint")
        return True
    try:
        plain_s, replayed_s = pass_times(graphed, batch, name)
    except NoGraph as error:
        if not graphed.given_up:  # else it has warned
            _log(model, False, str(error))
        return False
    on = plain_s > LEAST_GAIN * replayed_s
    logger.info(
        "CUDA graph: %s; a micro-batch takes %.2f ms kernel by kernel and %.2f ms as a graph",
        "on" if on else "off",
        1000 * plain_s,
        1000 * replayed_s,
        extra=graph_event(
            model,
            graph=on,
            reason="a micro-batch is faster" if on else "a micro-batch is hardly faster",
            measured={"plain_s": plain_s, "graph_s": replayed_s},
        ),
    )
    if not on:
        graphed.release()
    return on


def pass_times(graphed: GraphedPass, batch: Batch, name: str) -> list[float]:
    """Return the seconds of a micro-batch kernel by kernel and as a graph, measured once per card.

    With the blocks as they are now. Afterwards the weights have no gradient. Raises: NoGraph.

    name: of the micro-batch; it contains all that decides the speed.
    """
    blocks = "eager" if graphed.model.training_block is Block.__call__ else "compiled"
    with waiting("measuring how fast a CUDA graph is"), preserved_generators(batch[0].device):
        return remembered(f"graph of {blocks} {name}", lambda: graphed.times(batch))


def fastest_pass(graphed: GraphedPass, batch: Batch, name: str) -> float:
    """Return the seconds of a micro-batch, as a graph if that is faster (see pass_times)."""
    try:
        return min(pass_times(graphed, batch, name))
    except NoGraph:
        graphed.release()
        release_memory(batch[0].device)
        with preserved_generators(batch[0].device):
            return best_time(lambda: _wait_for(plain_pass(graphed.model, batch)), ROUNDS)


def _wait_for(found: Pass) -> None:
    found[0].item()


def _log(model: GPT, on: bool, reason: str) -> None:
    logger.info(
        "CUDA graph: %s, %s",
        "on" if on else "off",
        reason,
        extra=graph_event(model, graph=on, reason=reason),
    )
