"""How large, how fast and how long: what a run would take, and where it stands."""

import time

from chatgot.logs.timing import human_time
from chatgot.machine.memory import peak_memory_mib
from chatgot.run.assembly import Training
from chatgot.training.step import accumulate_gradients


def estimate(training: Training, repeats: int = 2) -> list[str]:
    """Return lines on parameters, operations, memory and time, measured on a step whose gradients are thrown away."""
    config, model, run = training.config, training.model, training.run
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        while (
            accumulate_gradients(model, training.train_windows, run, config, training.scaler)
            is None
        ):
            start = time.perf_counter()  # memory ran out: once more with what fits
        times.append(time.perf_counter() - start)
        training.optimizer.zero_grad(set_to_none=True)
    tokens, seconds = config.training.tokens_per_step(config.model), min(times)
    lines = [
        f"parameters: {model.parameter_count():,}",
        f"FLOPs per token: {model.flops_per_token():,}",
        f"memory: {peak_memory_mib():,.0f} MiB, half of it or more is Python and torch in small models",
        f"speed: {tokens / seconds:,.0f} tokens/s, {seconds:.2f} s for one step of {tokens:,} tokens",
    ]
    minutes, last = config.training.max_minutes, training.last_step
    limits = [] if minutes is None else [60 * minutes - run.time_s]
    if last is not None:
        limits.append((last - run.global_step) * seconds)
    lines.append(
        f"time: about {human_time(max(0.0, min(limits)))} until the end, without evaluations"
    )
    return lines
