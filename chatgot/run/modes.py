"""What is chosen for a run (measured or remembered), and how it changes."""

import logging

from torch import nn
from torch.utils.checkpoint import CheckpointError

from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.gradient_checkpointing import disable_gradient_checkpointing
from chatgot.run.run_state import RunState

logger = logging.getLogger(__name__)


def change_precision(run: RunState, scaler: SafeGradScaler, precision: str) -> None:
    """Go on in another precision from the next step; fp16 alone needs its loss scaled."""
    run.precision, run.good_steps, run.bad_before_rung = precision, 0, len(run.bad_steps)
    scaler.set_rung(enabled=precision == "fp16")


def give_up_recomputation(model: nn.Module, run: RunState, error: CheckpointError) -> None:
    """Switch recomputation off for the rest of the run: in the step in hand a recomputation differed."""
    disable_gradient_checkpointing(model)
    run.recompute_off = True
    logger.warning(
        "step %d is done again without gradient checkpointing, which stays off: a recomputation differed (%s)",
        run.global_step + 1, str(error).strip().splitlines()[0],
    )  # fmt: skip
