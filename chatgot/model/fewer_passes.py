"""RMSNorm, rotation and SwiGLU on a CPU in fewer passes over memory than autograd takes.

They give the bits of the plain formulas, forward and backward: each element goes through the same
roundings in the same order. Saved are copies and passes that only move or scale numbers. Compiled
code and other devices take the plain formulas.

Letters: B batch, T time, C width, H heads, D head size, I hidden width of the MLP.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def pays(x: Tensor) -> bool:
    """Return whether these functions are for x: on a CPU, eager, with gradients."""
    return (
        x.device.type == "cpu"
        and x.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., C) divided by the root of its mean square, times the weight."""
        if pays(x) and x.dtype == self.weight.dtype == torch.float32 and self.eps is not None:
            y: Tensor = _Normalise.apply(x, x, self.weight, self.eps)  # type: ignore[no-untyped-call] # untyped in torch
            return y
        return super().forward(x)


class _Normalise(torch.autograd.Function):
    """x comes twice: autograd adds its two gradients to others of x one after the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = x.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()  # (..., 1)
        normal = x * scale
        ctx.save_for_backward(x, scale, normal, weight)
        return normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, scale, normal, weight = ctx.saved_tensors
        d_weight = None
        if ctx.needs_input_grad[2]:
            d_weight = torch.mul(dy, normal).sum_to_size(weight.shape)
        d_normal = dy * weight
        d_scale = torch.mul(d_normal, x).sum(-1, keepdim=True)
        # the derivative of 1 / sqrt, then of the mean of squares; doubling is exact
        d_square = (-0.5 * d_scale * scale.pow(3)).div_(x.size(-1)).mul_(2)  # (..., 1)
        return d_normal.mul_(scale), x * d_square, d_weight, None


class Rotate(torch.autograd.Function):
    """Rotate pairs of elements (i, i + D / 2) of x (B, T, H, D); both halves of sines are equal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Return (B, T, H, D)."""
        ctx.save_for_backward(cosines, sines)
        half = x.size(-1) // 2
        y = x * cosines
        turned = x * sines
        y[..., :half].sub_(turned[..., half:])
        y[..., half:].add_(turned[..., :half])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x."""
        cosines, sines = ctx.saved_tensors
        half = dy.size(-1) // 2
        dx = dy * cosines
        turned = dy * sines
        dx[..., :half].add_(turned[..., half:])
        dx[..., half:].sub_(turned[..., :half])
        return dx, None, None


class Gate(torch.autograd.Function):
    """SiLU of the first half of the last dimension times the second half."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        """Return (..., I) from (..., 2 I)."""
        gate, up = gate_up.chunk(2, dim=-1)
        opened = F.silu(gate)
        ctx.save_for_backward(gate_up, opened)
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        """Return the gradient of gate_up."""
        gate_up, opened = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, dim=-1)
        torch.mul(dy, opened, out=d_up)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=d_gate)
        return d_gate_up
