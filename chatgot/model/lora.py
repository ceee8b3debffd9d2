"""LoRA: small matrices added to frozen linear layers, and only these train.

Letters: I inputs and O outputs of a layer, R rank.
Source: Hu et al., arXiv:2106.09685.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatgot.config import LoraConfig
from chatgot.model.gpt import GPT, model_without_weights

# what the names of the added matrices end with
A = ".lora_a"  # (R, I)
B = ".lora_b"  # (O, R)


class LoraLinear(nn.Module):
    """A frozen linear layer plus scale x B A, which begins at zero.

    The weight and the bias keep their names in the model.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        weight = linear.weight
        self.weight = weight  # (O, I)
        self.bias = linear.bias
        self.scale = scale
        self.lora_a = nn.Parameter(weight.new_zeros(rank, linear.in_features))
        self.lora_b = nn.Parameter(weight.new_zeros(linear.out_features, rank))

    def draw(self, generator: torch.Generator) -> None:
        """Draw A from a normal distribution, so that each element of A x is about as large as x's.

        B stays zero.
        """
        std = 1 / math.sqrt(self.lora_a.size(1))
        drawn = torch.empty(self.lora_a.shape).normal_(std=std, generator=generator)
        with torch.no_grad():
            self.lora_a.copy_(drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., O) from x (..., I)."""
        small = F.linear(x, self.lora_a)  # (..., R)
        added = F.linear(small, self.lora_b)  # (..., O)
        return F.linear(x, self.weight, self.bias) + self.scale * added


def add_lora(model: GPT, settings: LoraConfig) -> None:
    """Freeze all weights of a model, and add matrices of zeros to the layers of its blocks."""
    assert settings.rank is not None, "without a rank there is nothing to add"
    targets = settings.targets_in(model.cfg.architecture)
    scale = settings.alpha / settings.rank
    model.requires_grad_(False)
    for block in model.blocks:
        for owner in (block.attention, block.mlp):
            for name, child in list(owner.named_children()):
                if name in targets:
                    assert isinstance(child, nn.Linear)
                    setattr(owner, name, LoraLinear(child, settings.rank, scale))


def draw_lora(model: GPT, seed: int) -> None:
    """Draw the added matrices as they begin, on the CPU, from a generator seeded with `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.draw(generator)


def has_lora(model: nn.Module) -> bool:
    """Return whether matrices were added to a model."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that training changes, by name: all, or only the added ones.

    The tensors are the model's own.
    """
    state: dict[str, Tensor] = model.state_dict()
    if not has_lora(model):
        return state
    return {name: tensor for name, tensor in state.items() if name.endswith((A, B))}


def frozen_state(model: GPT) -> dict[str, Tensor]:
    """Return the weights below the added ones, by name; the tensors are the model's own."""
    return {
        name: tensor for name, tensor in model.state_dict().items() if not name.endswith((A, B))
    }


def load_trained_state(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load what `trained_state` has returned. The caller has checked that it fits."""
    if not has_lora(model):
        model.load_state_dict(weights, strict=True)
        return
    own = trained_state(model)
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def merge(
    base: Mapping[str, Tensor], added: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Return the weights of a plain model, W + scale x B A; those without B A are shared."""
    result = dict(base)
    with torch.no_grad():
        for name, a in added.items():
            if name.endswith(A):
                layer = name.removesuffix(A)
                weight = f"{layer}.weight"
                result[weight] = base[weight] + scale * (added[layer + B] @ a)  # (O, I)
    return result


def merged(model: GPT) -> GPT:
    """Return a model without added matrices that computes the same; other weights are shared.

    A model that has none is returned itself. Nothing in the result requires a gradient.
    """
    scales = {module.scale for module in model.modules() if isinstance(module, LoraLinear)}
    if not scales:
        return model
    (scale,) = scales
    plain = model_without_weights(model.cfg, model.vocab_size)
    weights = merge(frozen_state(model), trained_state(model), scale)
    plain.load_state_dict(weights, assign=True)
    plain.tie()
    plain.requires_grad_(False)
    for block, own in zip(plain.blocks, model.blocks, strict=True):
        block.attention.kernel = own.attention.kernel
    return plain.train(model.training)
