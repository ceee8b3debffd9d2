"""How this machine computes a configuration: its choices, and seconds of real steps."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from chatgot.config import Config, DataConfig
from chatgot.machine.measured import peak_for_mfu
from chatgot.machine.usable_cores import usable_cores
from chatgot.model.gpt import model_without_weights
from chatgot.numerics.muon import pick_muon_precision
from chatgot.planning.counting import Way
from chatgot.planning.made_up_text import made_up_tokens
from chatgot.planning.ranks import Speed
from chatgot.run.modes import choose_modes
from chatgot.training.measured_speed import measure_speed

CPU = torch.device("cpu")
MINUTES = 3  # of the run that is planned: some seconds of steps are measured, two at least


@contextmanager
def quiet() -> Iterator[None]:
    """Let the package's log say nothing but errors: the run itself says all this again."""
    package = logging.getLogger("chatgot")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)


def own_way(config: Config, every: int) -> Way:
    """Return how this machine's CPU computes a pass; measured once per machine.

    Side effect: sets torch's number of threads.
    """
    with quiet():
        modes = choose_modes(config, CPU, None)
    settings = config.training
    accumulates = settings.accumulate_grad_batches > 1
    return Way(modes.precision, modes.attention, every, accumulates)


def own_muon_precision(config: Config, V: int) -> str:
    """Return the precision of Muon's products on this machine's CPU."""
    if not config.training.uses_muon:
        return "fp32"
    with quiet():
        return pick_muon_precision(model_without_weights(config.model, V), CPU)


def own_peak() -> tuple[float, str]:
    """Return the FLOP/s of this machine's matrix products, and their dtype."""
    with quiet():
        return peak_for_mfu(CPU)


def own_speed(config: Config, V: int) -> Speed:
    """Time real steps on a made-up text: forward, backward and update.

    Steps of one batch are timed, in blocks that are not compiled.
    """
    settings = config.training.model_copy(
        update={"accumulate_grad_batches": 1, "compile": _compiled(config)}
    )
    short = config.model_copy(update={"training": settings, "data": DataConfig()})
    tokens = made_up_tokens(short, V)
    step_s = measure_speed(short, tokens, CPU, MINUTES).step
    return Speed(
        seconds_per_sequence=step_s / settings.batch_size,
        threads=torch.get_num_threads(),
        cores=usable_cores(),
    )


def _compiled(config: Config) -> bool:
    """Return whether compiled blocks are timed: only where they are asked for."""
    return config.training.compile is True
