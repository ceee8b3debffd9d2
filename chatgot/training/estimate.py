"""Estimate a run's size, memory, speed and time (`--dry_run`)."""

import time

from chatgot.logs.timing import human_time
from chatgot.machine.measured import synchronise
from chatgot.run.assembly import Run
from chatgot.training.batch_size import most_memory_mib
from chatgot.training.step import compute_gradients


def estimate(run: Run, repeats: int = 2) -> list[str]:
    """Return lines about parameters, operations, memory and time.

    It measures the forward and backward passes of `repeats` steps and discards the gradients. The
    time for updates is not included.
    """
    model = run.model
    seconds = min(_seconds_of_a_step(run) for _ in range(repeats))
    tokens = run.config.training.tokens_per_step(run.config.model)
    progress = run.state.progress
    limits = []
    if run.config.training.max_minutes is not None:
        limits.append(60 * run.config.training.max_minutes - progress.time_s)
    if run.last_step is not None:
        limits.append((run.last_step - progress.global_step) * seconds)
    until_end = "until no evaluation is better"
    if limits:
        until_end = f"about {human_time(max(0.0, min(limits)))} until the end of the run"
    trained = ""
    if run.config.training.lora.enabled:
        trained = f", of which {model.trained_count():,} train (LoRA)"
    remark = ""
    if run.device.type == "cpu":
        remark = ", which includes Python and torch (half or more of it, for small models)"
    return [
        f"parameters: {model.parameter_count():,}{trained}",
        f"FLOPs per token: {model.flops_per_token():,}",
        f"memory: {most_memory_mib(run.device):,.0f} MiB{remark}",
        f"speed: {tokens / seconds:,.0f} tokens/s, "
        f"{seconds:.2f} s for forward and backward of one step of {tokens:,} tokens",
        f"time: {until_end}, without updates and evaluations",
    ]


def _seconds_of_a_step(run: Run) -> float:
    start = time.perf_counter()
    compute_gradients(run)
    synchronise(run.device)
    seconds = time.perf_counter() - start
    run.optimizer.zero_grad(set_to_none=True)
    return seconds
