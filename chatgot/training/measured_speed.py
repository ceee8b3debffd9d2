"""How fast a configuration trains here: a few real steps of a run that is thrown away."""

import gc
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from chatgot.config import Config
from chatgot.data.token_cache import Tokens
from chatgot.machine.device import preserved_generators
from chatgot.machine.measured import synchronise
from chatgot.run.assembly import Run, assemble
from chatgot.sampling.generation import continue_texts
from chatgot.stopping import never
from chatgot.training.evaluation import evaluate
from chatgot.training.step import compute_gradients, set_learning_rate, update_weights

SHARE_FOR_MEASURING = 0.03  # of the minutes, for the steps of one recipe
LEAST_MEASURED_STEPS = 2
MOST_MEASURED_STEPS = 20
SAMPLED_TOKENS = 16


@dataclass(frozen=True)
class Speed:
    """What was measured with one recipe, in seconds."""

    build: float  # of the run, until its first step
    step: float
    batch: float  # of an evaluation
    token: float  # of a sample


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Leave generators, threads, compiled code and the log as they were: only speed is measured."""
    package = logging.getLogger("chatgot")
    level = package.level
    threads = torch.get_num_threads()
    package.setLevel(logging.ERROR)  # the run itself says all this again
    try:
        with preserved_generators(device):
            yield
    finally:
        package.setLevel(level)
        torch.set_num_threads(threads)
        gc.collect()


def measure_speed(config: Config, tokens: Tokens, device: torch.device, minutes: float) -> Speed:
    """Build a run, train a few steps, evaluate and sample a little; return the seconds of each.

    minutes: of the run that is planned; the steps measured take a small share of them.
    """
    with _undisturbed(device):
        return _speed(config, tokens, device, minutes)


def _speed(config: Config, tokens: Tokens, device: torch.device, minutes: float) -> Speed:
    started = time.perf_counter()
    # an old text is joined to this one later, and its windows take as long
    data = config.data.model_copy(update={"replay": None})
    run = assemble(config.model_copy(update={"data": data}), tokens, device, None)
    run.model.train()
    _step(run)  # warms up
    build_s = time.perf_counter() - started
    limit_s = SHARE_FOR_MEASURING * 60 * minutes
    times: list[float] = []
    while len(times) < LEAST_MEASURED_STEPS or (
        sum(times) < limit_s and len(times) < MOST_MEASURED_STEPS
    ):
        times.append(_step(run))
    speed = Speed(build_s, statistics.median(times), _seconds_of_a_batch(run), _per_token(run))
    if run.state.modes.compiled:
        torch.compiler.reset()  # the run compiles its blocks as a fresh process does
    return speed


def _step(run: Run) -> float:
    """Make one optimizer step; return its seconds."""
    started = time.perf_counter()
    set_learning_rate(run)
    loss = compute_gradients(run)
    update_weights(run, loss)
    synchronise(run.device)
    return time.perf_counter() - started


def _seconds_of_a_batch(run: Run) -> float:
    """Return the seconds of evaluating one batch."""
    size = run.config.training.batch_size
    times = []
    for _ in range(2):  # the first warms up
        batches = list(run.val_windows.spread(size, size))
        started = time.perf_counter()
        evaluate(run.model, batches, run.device, run.state.modes.precision, never)
        times.append(time.perf_counter() - started)
    return min(times)


def _per_token(run: Run) -> float:
    """Return the seconds of one sampled token, where all samples are made side by side."""
    sampling = run.config.sampling.model_copy(update={"max_new_tokens": SAMPLED_TOKENS})
    start = run.vocabulary.decode(run.val_windows.ids[:SAMPLED_TOKENS].tolist())
    prompts = [start] * (len(sampling.prompts) + 1)
    started = time.perf_counter()
    texts = continue_texts(run.model, run.vocabulary, prompts, sampling, run.config.seed)
    steps = sum(1 for _ in texts)
    return (time.perf_counter() - started) / max(1, steps * len(prompts))
