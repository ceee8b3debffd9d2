"""Where the numbers of a step went wrong."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from chatgot.config import Config
from chatgot.data.windows import TrainingWindows
from chatgot.machine.device import preserved_generators, seed_generators
from chatgot.numerics.precision import autocast
from chatgot.run.run_state import RunState


def describe_numbers(
    model: nn.Module, windows: TrainingWindows, run: RunState, config: Config
) -> str:
    """Return where the numbers of the step in hand went wrong: its logits, and the first output that is not finite.

    Computes the step's micro-batches once more, up to the first that is not finite; changes nothing.
    """
    first: list[str] = []

    def look(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensors = [
                t
                for t in (output if isinstance(output, tuple) else (output,))
                if isinstance(t, Tensor)
            ]
            if not first and not all(torch.isfinite(t).all() for t in tensors):
                first.append(name)

        return hook

    S = config.training.sequences_per_step
    starts = windows.starts(run.position, S)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if (
                name and name.count(".") <= 1
            ):  # layers.3, not what is inside; norm, head, the embeddings
                stack.callback(module.register_forward_hook(look(name)).remove)
        stack.enter_context(preserved_generators(windows.device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast(windows.device, run.precision))
        for at in range(0, S, run.micro_batch_size):
            x, y = windows.batch(starts[at : at + run.micro_batch_size])
            seed_generators(windows.device, config.seed, run.position, at)
            logits, loss = model(x, y)
            if first or not torch.isfinite(loss):
                break
        seen = [
            v.item()
            for v in (loss, logits.min(), logits.max(), logits.float().mean(), logits.float().std())
        ]
    where = f"first output that is not finite: {first[0]}" if first else "all outputs finite"
    loss_seen, low, high, mean, std = seen
    return (
        f"step {run.global_step + 1}, data position {run.position}, {run.precision}: loss {loss_seen:g}, "
        f"logits {low:g} to {high:g}, mean {mean:g}, std {std:g}, {where}"
    )
