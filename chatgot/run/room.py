"""Is there room for training in this machine's memory? Asked before anything is allocated.

What is counted is the least that training needs, so only what can never fit is refused. What fits
barely is left to the first step, which knows what out of memory is.

Letters: T `max_seq_length`, V tokens of the vocabulary.
"""

import psutil
import torch

from chatgot.config import Config
from chatgot.errors import ConfigError
from chatgot.machine.memory import memory_limits
from chatgot.model.gpt import model_without_weights
from chatgot.run.passes import chooses_size, first_micro_batch

GIB = 1 << 30
# Bytes for each parameter: the weight, its gradient, and what the optimizer keeps of it.
ADAMW_BYTES = 16
MUON_BYTES = 12
WEIGHT_BYTES = 4
LOGIT_BYTES = 4
# Of a rank's memory, which whole weights and their optimizer may take; the rest is for activations.
DDP_SHARE = 0.5


def wants_parts(config: Config, V: int, device: torch.device, ranks_here: int) -> bool:
    """Return whether ranks keep parts of the weights: asked for, or whole ones would not fit.

    ranks_here: how many share the memory of this machine; each has a card of its own.
    """
    strategy = config.distributed.strategy
    if strategy != "auto":
        return strategy == "fsdp"
    available = most_memory(device)
    if available is None:
        return False
    sharing = ranks_here if device.type == "cpu" else 1
    return bytes_of_weights(config, V) > DDP_SHARE * available / sharing


def refuse_without_room(config: Config, V: int, device: torch.device, parts: int = 1) -> None:
    """Make sure that weights, and then one micro-batch, can fit into the device's memory.

    parts: how many ranks share the weights, after each has had all of them at its start.
    Raises: ConfigError.
    """
    available = most_memory(device)
    if available is None:
        return
    start = WEIGHT_BYTES * parameters_of(config, V)
    if parts > 1 and start > available:
        raise ConfigError(
            f"distributed.strategy=fsdp: at its start each rank has all {_gib(start)} of the "
            f"weights, this one has {_gib(available)}: take cards with more memory, or a smaller "
            "model"
        )
    weights = bytes_of_weights(config, V) // parts
    if weights > available:
        raise ConfigError(
            f"model: {parameters_of(config, V):,} parameters need at least "
            f"{_gib(weights)} for training, this machine has {_gib(available)}: "
            "lower model.d_model, model.d_hid or model.n_layers"
        )
    sequences = _fewest_at_once(config, device)
    needed = weights + bytes_of_micro_batch(config, V, sequences)
    if needed > available:
        raise ConfigError(
            f"training: {sequences} sequences of {config.model.max_seq_length} tokens "
            f"at once need at least {_gib(needed)}, this machine has {_gib(available)}: lower "
            "training.batch_size (and raise accumulate_grad_batches), or model.max_seq_length"
        )


def refuse_for_parts(config: Config, ranks: int) -> None:
    """Refuse what ranks cannot do that keep parts of the weights. Raises: ConfigError."""
    settings = config.training
    if settings.dynamic_batch_size.enabled:
        raise ConfigError(
            "training.dynamic_batch_size.enabled=true and distributed.strategy=fsdp: its trials "
            "are of one rank: set dynamic_batch_size.enabled=false, and training.micro_batch_size"
        )
    S = settings.sequences_per_step
    if S % ranks:
        raise ConfigError(
            f"distributed.strategy=fsdp: the {S} sequences of a step cannot be shared equally by "
            f"{ranks} ranks: set training.batch_size x accumulate_grad_batches to a multiple"
        )


def most_memory(device: torch.device) -> int | None:
    """Return the most bytes that this process could ever use; None: the system does not tell."""
    limits = memory_limits(device)
    if not limits:
        return None
    most = min(total for _, total in limits)
    if device.type != "cpu":
        return most
    try:
        return most + psutil.swap_memory().free
    except (psutil.Error, OSError, RuntimeError):
        return most


def parameters_of(config: Config, V: int) -> int:
    """Return the number of parameters, without LoRA's."""
    one_block = model_without_weights(config.model.model_copy(update={"n_layers": 1}), V)
    in_block = sum(parameter.numel() for parameter in one_block.layers.parameters())
    return one_block.parameter_count() + (config.model.n_layers - 1) * in_block


def bytes_of_weights(config: Config, V: int) -> int:
    """Return the least bytes of weights, gradients and the optimizer's state."""
    each = ADAMW_BYTES
    if config.training.lora.enabled:
        each = WEIGHT_BYTES
    elif config.training.uses_muon:
        each = MUON_BYTES
    return each * parameters_of(config, V)


def bytes_of_micro_batch(config: Config, V: int, sequences: int) -> int:
    """Return the least bytes that forward keeps for backward: each block's input, and logits."""
    model = config.model
    tokens = sequences * model.max_seq_length
    width = 2 if config.training.mixed_precision else 4
    # nothing is kept of a frozen model before its first added matrix
    blocks = model.n_layers - 1 if config.training.lora.enabled else model.n_layers
    return tokens * (blocks * model.d_model * width + V * LOGIT_BYTES)


def _fewest_at_once(config: Config, device: torch.device) -> int:
    """Return the smallest micro-batch that training would shrink to."""
    settings = config.training
    dynamic = settings.dynamic_batch_size
    if dynamic.enabled:
        return dynamic.minimum
    return 1 if chooses_size(settings, device) else first_micro_batch(settings)


def _gib(count: int) -> str:
    return f"{count / GIB:,.1f} GiB"
