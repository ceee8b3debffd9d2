"""torch.compile for the blocks in training: where it is measured to save more time than it takes.

Only the blocks are compiled, once for all of them: embeddings, head and loss are little work,
dropout draws its masks outside, evaluation and samples run eager. The compiled function is no
module, so checkpoints know nothing of it.

On a GPU a whole micro-batch is timed, with a CUDA graph where that is faster (cuda_graphs.py), and
compiled blocks are compared with eager ones before they are used.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chatgot.config import Config
from chatgot.data.windows import Batch
from chatgot.logs.events import event
from chatgot.logs.timing import human_time
from chatgot.logs.waiting import waiting
from chatgot.machine.device import preserved_generators
from chatgot.machine.measured import (
    best_time,
    best_times,
    keep_compiled_code,
    recalled,
    remembered,
    synchronise,
)
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.model.gpt import GPT, Block, without_dropout
from chatgot.numerics.compile_cost import cost_s, note
from chatgot.numerics.cuda_graphs import GraphedPass, Pass, difference, fastest_pass, plain_pass
from chatgot.numerics.precision import autocast

logger = logging.getLogger(__name__)

# Share of a block's time that compiling is assumed to save until it is measured for this shape;
# 5 to 20 % were measured on CPUs. A guess too high would compile runs that end before it pays.
USUAL_GAIN = {"modern": 0.2, "gpt": 0.1}
# The same on a GPU, where memory traffic is saved: estimated, not measured.
USUAL_GAIN_ON_A_CARD = 0.6
# How far compiled blocks may be from eager ones on a GPU, relative to the loss and to the norm of
# the gradient: they keep in fp32 what eager ones round to 16 bits.
COMPILED_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-2}


class CompileFailed(Exception):
    """There is no compiler, or it is broken."""


@dataclass(frozen=True)
class OnACard:
    """A whole micro-batch of the run, for timings and proofs on a CUDA device."""

    graphed: GraphedPass
    batch: Batch


@dataclass(frozen=True)
class Work:
    """What one block computes in one micro-batch, and how much of it is left in the run.

    card: what is timed instead of a block on a CUDA device; None: a block is.
    """

    config: Config
    model: GPT
    device: torch.device
    precision: str
    micro_batch_size: int
    steps_left: float  # math.inf: only the clock ends the run
    seconds_left: float
    recomputes: bool = False  # gradient checkpointing is to be on
    card: OnACard | None = None

    @property
    def unit(self) -> str:
        """Return what is timed."""
        return "block" if self.card is None else "micro-batch"

    @property
    def units_left(self) -> float:
        """Return how many of them the rest of the run computes."""
        micro_batches = math.ceil(self.config.training.sequences_per_step / self.micro_batch_size)
        blocks = self.config.model.n_layers if self.card is None else 1
        return self.steps_left * micro_batches * blocks

    @property
    def usual_gain(self) -> float:
        """Return the share of its time that compiling is assumed to save."""
        if self.card is not None:
            return USUAL_GAIN_ON_A_CARD
        return USUAL_GAIN[self.config.model.architecture]

    @property
    def name_of_pass(self) -> str:
        """Return the name of a whole micro-batch's measurements."""
        recomputing = ", recomputing" if self.recomputes else ""
        size = f"{self.config.model.n_layers} layers, {self.model.vocab_size} tokens"
        return f"{self.name}, {size}{recomputing}"

    @property
    def name(self) -> str:
        """Return the name of its measurements: it contains all that decides the speed."""
        cfg = self.config.model
        kernel = self.model.blocks[0].attention.kernel
        heads = f"{cfg.n_head} heads"
        if cfg.head_size * cfg.n_head != cfg.d_model:
            heads += f" of {cfg.head_size}"
        if cfg.kv_heads != cfg.n_head:
            heads += f", {cfg.kv_heads} key/value heads"
        if not cfg.qk_norm:
            heads += ", not normalised"
        shape = (
            f"{self.micro_batch_size}x{cfg.max_seq_length}x{cfg.d_model}, {heads}, "
            f"{cfg.d_hid} hidden, bias {cfg.bias}"
        )
        rates = f"dropout {cfg.dropout > 0} {cfg.attention_dropout > 0}"
        lora = self.config.training.lora
        if lora.enabled:
            rates += f", LoRA {lora.rank} on {' '.join(lora.targets_in(cfg.architecture))}"
        where = self.device.type
        if where == "cuda":
            where = torch.cuda.get_device_name(self.device)
        how = f"{self.precision}, {kernel}, {torch.get_num_threads()} threads"
        return f"{cfg.architecture} {shape}, {rates}, {where}, {how}"

    def eager_seconds(self) -> float:
        """Return the seconds of one unit with eager blocks; measured once per machine."""
        if self.card is not None:
            return self.seconds_on_the_card()
        return remembered(f"eager block {self.name}", lambda: [best_time(self.run_block)])[0]

    def seconds_on_the_card(self) -> float:
        """Return the seconds of a micro-batch with the blocks as they are, the fastest way."""
        assert self.card is not None
        with autocast(self.device, self.precision):
            return fastest_pass(self.card.graphed, self.card.batch, self.name_of_pass)

    def run_block(self) -> None:
        """Run forward and backward of the first block as a micro-batch does; leave no gradient."""
        cfg = self.config.model
        block = self.model.blocks[0]
        shape = (self.micro_batch_size, cfg.max_seq_length, cfg.d_model)
        x = torch.ones(shape, device=self.device, requires_grad=True)
        try:
            with autocast(self.device, self.precision):
                rotated = self.model.rotation(torch.arange(cfg.max_seq_length, device=self.device))
                y = self.model.run_block(block, x, rotated)
                y.float().sum().backward()  # type: ignore[no-untyped-call] # untyped in torch
            synchronise(self.device)
        finally:
            for parameter in block.parameters():
                parameter.grad = None


def choose_compile(work: Work, stored: bool | None, reason: str = "as in the checkpoint") -> bool:
    """Compile the blocks if that is asked for, or pays; return whether they are compiled now.

    Logs the reason. Whatever fails in the compiler (there may be none) is one warning, and the
    blocks run eager.

    stored: what a checkpoint says its run did; None: a fresh run, or the user asks for a change.
    reason: why the blocks are compiled where `stored` is true.
    """
    asked = work.config.training.compile
    if asked is False or stored is False:
        return False
    was_training = work.model.training
    work.model.train()
    try:
        with preserved_generators(work.device):
            return _compile_as_asked(work, stored, reason)
    except CompileFailed as error:
        exact = "; not bit-exact from here" if stored else ""
        run_eager(work.model, f"it does not work here: {error}{exact}", logging.WARNING)
        return False
    except (RuntimeError, MemoryError) as error:
        if work.card is None or not is_out_of_memory(error):
            raise
    finally:
        work.model.train(was_training)
    # not inside the handler, where the exception's traceback still holds the tensors
    work.card.graphed.release()
    release_memory(work.device)
    run_eager(work.model, "out of memory while it is weighed", logging.WARNING)
    return False


def run_eager(model: GPT, reason: str, level: int = logging.INFO) -> None:
    """Let the model run its blocks eager from now on, and log why."""
    model.training_block = Block.__call__
    _log_off(reason, level)


def _compile_as_asked(work: Work, stored: bool | None, reason: str) -> bool:
    """Compile for `true` or a stored mode, weigh it for `auto`. Raises: CompileFailed."""
    settings = work.config.training
    if settings.dynamic_batch_size.enabled:
        level = logging.WARNING if settings.compile is True else logging.INFO
        _log_off("each micro-batch size would be compiled anew", level)
        return False
    if settings.compile is True or stored:
        reason = reason if stored else "as asked"
        _compile(work, reason, event("compile", on=True, reason=reason))
        return True
    if work.recomputes and work.card is None and work.device.type != "cuda":
        _log_off("gradient checkpointing is not bit-equal under it")
        return False
    return _compile_if_it_pays(work)


def _log_off(reason: str, level: int = logging.INFO) -> None:
    logger.log(level, "compile: off, %s", reason, extra=event("compile", on=False, reason=reason))


def _compile_if_it_pays(work: Work) -> bool:
    """Compare the time that compiled blocks would save in the rest of the run with compiling's."""
    unit = work.unit
    with waiting(f"measuring how fast a {unit} is"):
        eager_s = work.eager_seconds()
    in_blocks_s = min(work.units_left * eager_s, work.seconds_left)
    name = work.name if work.card is None else work.name_of_pass
    what = f"compiled {unit} {name}"
    keep_compiled_code()
    if recalled(what) is None and in_blocks_s * work.usual_gain < cost_s(work.name, None):
        _log_off(f"the rest of the run spends only about {human_time(in_blocks_s)} in the blocks")
        return False
    measure = partial(_measure_compiled, work)
    measured_s, eager_s, compiled_s = remembered(what, measure, again_when_quiet=False)
    # where the blocks have just been compiled, the next run's cost decides: both choose the same
    compile_s = cost_s(work.name, measured_s)
    saved_s = in_blocks_s * (1 - compiled_s / eager_s)
    pays = saved_s > compile_s
    logger.info(
        "compile: %s; a %s takes %.2f ms eager and %.2f ms compiled, "
        "so %s of %s would be saved, compiling takes %s",
        "on" if pays else "off",
        unit,
        1000 * eager_s,
        1000 * compiled_s,
        human_time(max(saved_s, 0)),
        human_time(in_blocks_s),
        human_time(compile_s),
        extra=event(
            "compile",
            on=pays,
            reason="it saves more time than it takes" if pays else "it takes more than it saves",
            measured={"eager_s": eager_s, "compiled_s": compiled_s, "compile_s": compile_s},
        ),
    )
    if pays and work.model.training_block is Block.__call__:
        _compile(work, "measured before")
    if not pays:
        work.model.training_block = Block.__call__
    return pays


def _measure_compiled(work: Work) -> list[float]:
    """Return the seconds of compiling, of an eager and of a compiled unit; it stays compiled."""
    compile_s = _compile(work, "to measure it")
    compiled = work.model.training_block

    def seconds_of_pass(block: Callable[..., Tensor]) -> float:
        if work.card is not None:  # its recording would keep the memory of the other blocks'
            work.card.graphed.release()
        work.model.training_block = block
        return work.seconds_on_the_card()

    if work.card is not None:
        return [compile_s, seconds_of_pass(Block.__call__), seconds_of_pass(compiled)]

    def run(block: Callable[..., Tensor]) -> None:
        work.model.training_block = block
        work.run_block()

    with waiting("measuring how much faster compiled blocks are"):
        eager_s, compiled_s = best_times([partial(run, Block.__call__), partial(run, compiled)])
    return [compile_s, eager_s, compiled_s]


def _compile(work: Work, reason: str, extra: dict[str, object] | None = None) -> float:
    """Let the model run compiled blocks, and run one; return the seconds that took.

    extra: the event, unless another line of the log says whether the blocks stay compiled.
    Raises: CompileFailed.
    """
    import chatgot.model.opaque_attention  # noqa: F401 it registers an operator

    start_s = time.perf_counter()
    try:
        keep_compiled_code()
        # its caches may fail already: a folder that the environment names cannot be made
        work.model.training_block = torch.compile(Block.forward, dynamic=False)
        with waiting("compiling the blocks"):
            work.run_block()
        problem = _compiled_difference(work)
        if problem:
            raise CompileFailed(f"a micro-batch differs from an eager one: {problem}")
    except Exception as error:  # whatever is missing or broken, training can do without it
        if is_out_of_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = lines[0] if lines else type(error).__name__
        raise CompileFailed(message[:300]) from error
    seconds = time.perf_counter() - start_s
    note(work.name, seconds)
    logger.info("compile: blocks compiled in %.1f s, %s", seconds, reason, extra=extra)
    return seconds


def _compiled_difference(work: Work) -> str:
    """Return how compiled blocks change loss or gradients on a card; empty: within the tolerance.

    On a CPU nothing is compared. Masks of dropout are drawn outside of the blocks, so they are the
    same; those of attention's own dropout need not be, so all dropout is off then.
    """
    if work.card is None:
        return ""
    model = work.model
    compiled = model.training_block
    own_masks = work.config.model.attention_dropout > 0
    passes: list[Pass] = []
    try:
        with (
            without_dropout(model) if own_masks else nullcontext(),
            autocast(work.device, work.precision),
        ):
            for block in (Block.__call__, compiled):
                model.training_block = block
                passes.append(plain_pass(model, work.card.batch))
    finally:
        model.training_block = compiled
    return difference(passes[0], passes[1], COMPILED_TOLERANCE[work.precision])
