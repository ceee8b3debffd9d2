"""Estimate a run's size, memory, speed and time (`--dry_run`)."""

import time

from chatgot.logs.timing import human_time
from chatgot.machine.measured import synchronise
from chatgot.machine.memory import MIB
from chatgot.run.assembly import Run
from chatgot.training.batch_size import most_memory_mib
from chatgot.training.step import compute_gradients

BYTES_PER_WEIGHT = 4


def estimate(run: Run, repeats: int = 2) -> list[str]:
    """Return lines about parameters, operations, memory and time.

    It measures the forward and backward passes of `repeats` steps and discards the gradients. The
    time for updates is not included.
    """
    model = run.model
    seconds = min(_seconds_of_a_step(run) for _ in range(repeats))
    alone = seconds if run.teaching is None else _seconds_without_teachers(run, repeats)
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
        *_teacher_lines(run, seconds, alone),
        f"memory: {most_memory_mib(run.device):,.0f} MiB{remark}",
        f"speed: {tokens / seconds:,.0f} tokens/s, "
        f"{seconds:.2f} s for forward and backward of one step of {tokens:,} tokens",
        f"time: {until_end}, without updates and evaluations",
    ]


def _teacher_lines(run: Run, seconds: float, alone: float) -> list[str]:
    """Return what the teachers cost in one line; nothing: there are none.

    seconds, alone: of a step with them, and of one without.
    """
    if not run.teachers:
        return []
    models = [teacher.model for teacher in run.teachers]
    parameters = sum(model.parameter_count() for model in models)
    flops = sum(model.flops_of_forward(run.train_windows.T) for model in models)
    cost = "no time, since training.distillation.weight is 0"
    if run.teaching is not None:
        share = max(0.0, seconds / alone - 1)
        cost = f"{max(0.0, seconds - alone):.2f} s of a step, {share:.0%} more than without them"
    return [
        f"teachers: {len(models)} with {parameters:,} parameters, "
        f"{BYTES_PER_WEIGHT * parameters / MIB:,.1f} MiB; {flops:,} FLOPs per token; {cost}"
    ]


def _seconds_without_teachers(run: Run, repeats: int) -> float:
    teaching = run.teaching
    run.teaching = None
    try:
        return min(_seconds_of_a_step(run) for _ in range(repeats))
    finally:
        run.teaching = teaching


def _seconds_of_a_step(run: Run) -> float:
    start = time.perf_counter()
    compute_gradients(run)
    synchronise(run.device)
    seconds = time.perf_counter() - start
    run.optimizer.zero_grad(set_to_none=True)
    return seconds
