"""Find where the numbers of a step became non-finite.

Letters: S sequences of one optimizer step.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from chatgot.config import Config
from chatgot.data.windows import TrainingWindows
from chatgot.machine.device import preserved_generators, seed_generators
from chatgot.numerics.input_noise import with_noise
from chatgot.numerics.precision import autocast
from chatgot.run.run_state import RunState


def describe_numbers(
    model: nn.Module, windows: TrainingWindows, state: RunState, config: Config
) -> str:
    """Return in words where the current step went wrong.

    The text gives the loss and the logits of the first non-finite micro-batch (or of the last one),
    and the first module whose output is not finite. The micro-batches are computed again, forward
    only; nothing is changed.
    """
    not_finite: list[str] = []  # names of modules, in the order of their outputs

    def note_in(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not _is_finite(output):
                not_finite.append(name)

        return hook

    S = config.training.sequences_per_step
    position = state.progress.position
    starts = windows.starts(position, S)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and name.count(".") <= 1:  # layers.3, but not the modules inside it
                stack.callback(module.register_forward_hook(note_in(name)).remove)
        stack.enter_context(preserved_generators(windows.device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast(windows.device, state.modes.precision))
        for first in range(0, S, state.micro_batch.size):
            x, y = windows.batch(starts[first : first + state.micro_batch.size])
            x = with_noise(x, config.training.input_noise, (config.seed, position), first)
            seed_generators(windows.device, config.seed, position, first)
            logits, loss = model(x, y)
            if not_finite or not torch.isfinite(loss):
                break
    where = "all outputs are finite"
    if not_finite:
        where = f"first non-finite output: {not_finite[0]}"
    logits_fp32 = logits.float()
    return (
        f"step {state.progress.global_step + 1}, data position {position}, "
        f"{state.modes.precision}: loss {loss.item():g}, "
        f"logits {logits.min().item():g} to {logits.max().item():g}, "
        f"mean {logits_fp32.mean().item():g}, std {logits_fp32.std().item():g}, {where}"
    )


def _is_finite(output: object) -> bool:
    """Return whether all tensors of a module's output are finite."""
    outputs = output if isinstance(output, tuple) else (output,)
    return all(bool(torch.isfinite(t).all()) for t in outputs if isinstance(t, Tensor))
