"""SafeGradScaler: keep non-finite losses and gradients away from the weights, in any precision."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

logger = logging.getLogger(__name__)


class SafeGradScaler(GradScaler):
    """A GradScaler that also checks every loss and gradient norm, enabled or not.

    One verdict is valid for all optimizers of a step: one bad micro-batch or norm skips the whole
    step. (An optimizer that is first seen after the verdict gets its own verdict, once; from the
    next step on it is known.) The results stay on the device until `read`, which synchronises once
    a step; in a healthy step nothing else does.

    nan_counter: bad steps in a row. If the loss is finite but the norm is infinite, and the loss
        scale is above `min_loss_scale`, fp16 is still calibrating its scale: the step is skipped
        but not counted.
    fallback_triggered: there were `max_nan_before_fallback` bad steps in a row, or one bad step
        with the scale at `min_loss_scale`.
    warning_logged: the fallback has been logged; this happens once.
    Source: loss scaling, Micikevicius et al., arXiv:1710.03740.
    """

    def __init__(  # noqa: PLR0913 - GradScaler's own arguments: a drop-in has the same
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        max_nan_before_fallback: int = 3,
        min_loss_scale: float = 1.0,
    ) -> None:
        factors = (init_scale, growth_factor, backoff_factor, growth_interval)
        super().__init__(device, *factors, enabled)
        if not self.is_enabled():
            # a disabled GradScaler has no state; this one needs it, as it may be enabled later
            enabled_twin = GradScaler("cpu", *factors)
            self.__dict__ |= enabled_twin.__dict__ | {"_device": device, "_enabled": False}
        self.max_nan_before_fallback = max_nan_before_fallback
        self.min_loss_scale = min_loss_scale
        self.nan_counter = 0
        self.fallback_triggered = False
        self.warning_logged = False
        self.last_norm = math.nan  # gradient norm of the last step
        # returns a text for the warning: where the numbers went wrong
        self.describe: Callable[[], str] | None = None
        self._known: list[ref[Optimizer]] = []
        self.begin()

    def begin(self) -> None:
        """Forget the current step: it is done, or it starts again."""
        self.healthy: bool | None = None  # the verdict, once it has been read
        self.calibrating = False  # the step was dropped only for a scale that is still too high
        self._losses_finite: Tensor | None = None  # () bool on the device
        self._norms: dict[int, Tensor] = {}  # gradient norm () of each unscaled optimizer
        self._stepped: set[int] = set()
        # optimizers unscaled for the verdict before the caller asked for it
        self._implicit: set[int] = set()
        self._per_optimizer_states.clear()

    def scale(self, outputs: Tensor | Iterable[Tensor]) -> Any:
        """Return the losses times the scale (1 if disabled); note whether they are finite.

        outputs: a tensor, or nested lists or tuples of tensors.
        """
        if not isinstance(outputs, (Tensor, list, tuple)):
            outputs = list(outputs)
        for output in _flat(outputs):
            finite = torch.isfinite(output.detach()).all()
            if self._losses_finite is not None:
                finite = self._losses_finite.to(finite.device).logical_and(finite)
            self._losses_finite = finite
        return super().scale(outputs)

    def bad_losses(self) -> Tensor:
        """Return 1.0, (), if a loss of this step was not finite so far, else 0.0."""
        finite = self._losses_finite
        return torch.zeros(()) if finite is None else (~finite).float()

    def take_bad_losses(self, bad: Tensor) -> None:
        """Judge this step's losses by what all ranks have found: bad, (), above 0 for a bad one."""
        self._losses_finite = bad == 0

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the optimizer's gradients by the scale (1 if disabled) and compute their norm.

        Raises: RuntimeError if called twice before `update`.
        """
        if id(optimizer) in self._implicit:
            self._implicit.remove(id(optimizer))
            return
        if id(optimizer) in self._norms:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()"
            )
        known = self._known_optimizers()
        if all(other is not optimizer for other in known):
            self._known = [ref(other) for other in (*known, optimizer)]
        if self.is_enabled() and self._scale is None:
            self._lazy_init_scale_growth_tracker(_device_of(optimizer))
        super().unscale_(optimizer)
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        self._norms[id(optimizer)] = _whole(get_total_norm(dense))

    def _known_optimizers(self) -> list[Optimizer]:
        """Return the optimizers that were unscaled before and still exist."""
        optimizers = (known() for known in self._known)
        return [optimizer for optimizer in optimizers if optimizer is not None]

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm, (), of the gradients of all optimizers unscaled in this step."""
        norms = list(self._norms.values())
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def read(self, *more: Tensor) -> list[float]:
        """Judge the step: set `healthy`; return the gradient norm and `more` as numbers.

        This is the step's only synchronisation with the device.

        more: further tensors () that must be finite, such as the step's loss.
        """
        norm = self.gradient_norm()
        finite = self._losses_finite
        if finite is None:
            finite = torch.ones((), device=norm.device)
        numbers = torch.stack([t.float().to(norm.device) for t in (finite, norm, *more)])
        flag, norm_value, *values = numbers.tolist()
        self.last_norm = norm_value
        losses_finite = bool(flag) and all(map(math.isfinite, values))
        self.healthy = losses_finite and math.isfinite(norm_value)
        if not self.healthy:
            above_floor = self.is_enabled() and self.get_scale() > self.min_loss_scale
            self.calibrating = losses_finite and above_floor
        return [norm_value, *values]

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Call the optimizer's step if the step is healthy; else change nothing.

        Raises: RuntimeError for a closure, or if called twice before `update`.
        """
        if args or "closure" in kwargs:
            raise RuntimeError(
                "a closure cannot be used: the loss is checked before the optimizer's step"
            )
        if id(optimizer) in self._stepped:
            raise RuntimeError("step() has already been called since the last update()")
        late = self.healthy is not None and id(optimizer) not in self._norms
        waiting = self._known_optimizers() if self.healthy is None else []
        for other in {id(o): o for o in (*waiting, optimizer)}.values():
            if id(other) not in self._norms:
                self.unscale_(other)
                if other is not optimizer:
                    self._implicit.add(id(other))
        if self.healthy is None or (late and self.healthy):
            self.read()
        self._stepped.add(id(optimizer))
        self._per_optimizer_states[id(optimizer)]["stage"] = OptState.STEPPED
        return optimizer.step(*args, **kwargs) if self.healthy else None

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """End the step: count it, grow or shrink the scale, trigger the fallback if needed."""
        if self.healthy is None and self._norms:
            self.read()  # the caller unscaled gradients but made no step
        at_floor = False
        if self.healthy:
            self.nan_counter = 0
        elif self.healthy is False and not self.calibrating:
            self.nan_counter += 1
            at_floor = self.is_enabled() and self.get_scale() <= self.min_loss_scale
        if self.is_enabled() and (self._norms or new_scale is not None or self.healthy is not None):
            self._update_scale(new_scale)
        if self.nan_counter >= self.max_nan_before_fallback or at_floor:
            self.fallback_triggered = True
            self._warn_once()
        self.begin()

    def _update_scale(self, new_scale: float | Tensor | None) -> None:
        """Grow the scale after healthy steps, shrink it after others, down to `min_loss_scale`."""
        for state in self._per_optimizer_states.values() if self._norms else ():
            for found_inf in state["found_inf_per_device"].values():
                # a bad loss or an overflowing norm shrinks the scale, too
                found_inf.fill_(0.0 if self.healthy else 1.0)
        super().update(new_scale)
        if self.healthy is False:
            assert self._scale is not None
            self._scale.clamp_(min=self.min_loss_scale)

    def _warn_once(self) -> None:
        if self.warning_logged:
            return
        self.warning_logged = True
        logger.warning(
            "%d steps in a row had a non-finite loss or gradient, "
            "gradient norm %g, loss scale %g%s",
            self.nan_counter,
            self.last_norm,
            self.get_scale(),
            f"; {self.describe()}" if self.describe else "",
        )

    def set_rung(self, enabled: bool) -> None:
        """Switch loss scaling on or off for another precision; reset the count of bad steps."""
        self._enabled = enabled
        self.nan_counter = 0
        self.fallback_triggered = False
        self.warning_logged = False
        self.begin()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as plain numbers, even if disabled."""
        scale = self._init_scale if self._scale is None else self._scale.item()
        tracker = self._growth_tracker
        return {
            "scale": scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._init_growth_tracker if tracker is None else tracker.item(),
            "nan_counter": self.nan_counter,
            "fallback_triggered": self.fallback_triggered,
            "warning_logged": self.warning_logged,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of GradScaler, where a disabled one's is empty."""
        if state_dict:
            enabled = self._enabled
            self._enabled = True  # GradScaler loads nothing into a disabled one
            try:
                super().load_state_dict(state_dict)
            finally:
                self._enabled = enabled
        self.nan_counter = state_dict.get("nan_counter", 0)
        self.fallback_triggered = state_dict.get("fallback_triggered", False)
        self.warning_logged = state_dict.get("warning_logged", False)
        self.begin()


def _flat(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested lists and tuples."""
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for output in outputs:
            yield from _flat(output)


def _device_of(optimizer: Optimizer) -> torch.device:
    device: torch.device = optimizer.param_groups[0]["params"][0].device
    return device


def _whole(norm: Tensor) -> Tensor:
    """Return a norm over all ranks where each has a part of the gradients, else as it is."""
    whole = getattr(norm, "full_tensor", None)
    return norm if whole is None else whole()
