"""SafeGradScaler: no non-finite loss or gradient reaches the weights, in any precision, scaled or not."""

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
    """A GradScaler that also watches: every loss given to `scale`, every gradient norm, enabled or not.

    One verdict holds for all optimizers of a step: a single bad micro-batch or norm drops the whole step. (An optimizer
    that was never seen before the verdict is judged by itself, once; from then on it is known.) Flag and norm stay on
    the device until `read`, once a step; on the healthy path nothing else is synchronised.

    nan_counter: bad steps in a row. An infinite norm over a finite loss while the scale is above its floor is an fp16
    scale finding its height: it is skipped and not counted.
    fallback_triggered: `max_nan_before_fallback` bad steps in a row, or one with the scale at `min_loss_scale`.
    warning_logged: the fallback has been said, once.
    Source: loss scaling, Micikevicius et al., arXiv:1710.03740.
    """

    def __init__(
        self, device: str = "cuda", init_scale: float = 2.0**16, growth_factor: float = 2.0,
        backoff_factor: float = 0.5, growth_interval: int = 2000, enabled: bool = True,
        *, max_nan_before_fallback: int = 3, min_loss_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(
            device, init_scale, growth_factor, backoff_factor, growth_interval, enabled
        )
        if (
            not self.is_enabled()
        ):  # it then has no state of its own; here it has, and may be switched on later
            enabled_twin = GradScaler(
                "cpu", init_scale, growth_factor, backoff_factor, growth_interval
            )
            self.__dict__ |= enabled_twin.__dict__ | {"_device": device, "_enabled": False}
        self.max_nan_before_fallback, self.min_loss_scale = max_nan_before_fallback, min_loss_scale
        self.nan_counter = 0
        self.fallback_triggered = False
        self.warning_logged = False
        self._known: list[ref[Optimizer]] = []
        self.last_norm = math.nan  # gradient norm of the last step
        self.describe: Callable[[], str] | None = (
            None  # what the warning adds: where the numbers went wrong
        )
        self.begin()

    def begin(self) -> None:
        """Forget what was seen of the step in hand: it is done, or begins anew."""
        self.healthy: bool | None = None  # the verdict, once it has been read
        self.calibrating = False  # the step was dropped only for a scale that is still too high
        self._losses_finite: Tensor | None = None  # () bool on the device
        self._norms: dict[int, Tensor] = {}  # gradient norm () of each unscaled optimizer
        self._stepped: set[int] = set()
        self._implicit: set[int] = (
            set()
        )  # unscaled for the verdict's sake, before the caller has asked for it
        self._per_optimizer_states.clear()

    def scale(self, outputs: Tensor | Iterable[Tensor]) -> Any:
        """Return the loss, or losses, times the scale (unchanged when disabled); note whether they are finite."""
        if not isinstance(outputs, (Tensor, list, tuple)):
            outputs = list(outputs)
        for output in _flat(outputs):
            finite = torch.isfinite(output.detach()).all()
            before = self._losses_finite
            self._losses_finite = (
                finite if before is None else before.to(finite.device).logical_and(finite)
            )
        return super().scale(outputs)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the optimizer's gradients by the scale (nothing to do when disabled) and take their norm."""
        if id(optimizer) in self._implicit:
            self._implicit.remove(id(optimizer))
            return
        if id(optimizer) in self._norms:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()"
            )
        if all(known() is not optimizer for known in self._known):
            self._known = [known for known in self._known if known() is not None] + [ref(optimizer)]
        if self.is_enabled() and self._scale is None:
            self._lazy_init_scale_growth_tracker(_device_of(optimizer))
        super().unscale_(optimizer)
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        self._norms[id(optimizer)] = get_total_norm(
            [g.coalesce().values() if g.is_sparse else g for g in gradients]
        )

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm () over the gradients of all optimizers unscaled so far, on the device."""
        norms = list(self._norms.values())
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def read(self, *more: Tensor) -> list[float]:
        """Decide on the step: return the gradient norm and `more` as numbers, read in the step's one synchronisation.

        more: tensors () on the same device that must be finite too, such as the step's loss.
        """
        norm = self.gradient_norm()
        finite = (
            torch.ones((), device=norm.device)
            if self._losses_finite is None
            else self._losses_finite
        )
        flag, norm_value, *values = torch.stack(
            [t.float().to(norm.device) for t in (finite, norm, *more)]
        ).tolist()
        self.last_norm = norm_value
        losses_finite = bool(flag) and all(map(math.isfinite, values))
        self.healthy = losses_finite and math.isfinite(norm_value)
        if not self.healthy:
            self.calibrating = (
                losses_finite and self.is_enabled() and self.get_scale() > self.min_loss_scale
            )
        return [norm_value, *values]

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Update the weights if the step is healthy, else leave them and the optimizer's state as they are."""
        if args or "closure" in kwargs:
            raise RuntimeError(
                "a closure cannot be used: the loss is judged before the optimizer's step"
            )
        if id(optimizer) in self._stepped:
            raise RuntimeError("step() has already been called since the last update()")
        late = self.healthy is not None and id(optimizer) not in self._norms
        waiting = [known() for known in self._known if self.healthy is None and known() is not None]
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
        """End the step: count it, grow or shrink the scale, trigger the fallback when there is no other way."""
        at_floor = False
        if self.healthy is None and self._norms:
            self.read()  # gradients were unscaled and looked at, and left alone
        if self.healthy:
            self.nan_counter = 0
        elif self.healthy is False and not self.calibrating:
            self.nan_counter += 1
            at_floor = self.is_enabled() and self.get_scale() <= self.min_loss_scale
        if self.is_enabled() and self._norms:
            for state in self._per_optimizer_states.values():
                for found_inf in state["found_inf_per_device"].values():
                    found_inf.fill_(
                        float(not self.healthy)
                    )  # also a bad loss, or a norm that overflows, shrinks it
        if self.is_enabled() and (self._norms or new_scale is not None or self.healthy is not None):
            super().update(new_scale)
            if self.healthy is False:
                self._scale.clamp_(min=self.min_loss_scale)
        if self.nan_counter >= self.max_nan_before_fallback or at_floor:
            self.fallback_triggered = True
            if not self.warning_logged:
                self.warning_logged = True
                seen = f"; {self.describe()}" if self.describe else ""
                logger.warning(
                    "%d steps in a row had a non-finite loss or gradient, gradient norm %g, loss scale %g%s",
                    self.nan_counter, self.last_norm, self.get_scale(), seen,
                )  # fmt: skip
        self.begin()

    def set_rung(self, enabled: bool) -> None:
        """Go on in another precision, with loss scaling or without: the count begins anew."""
        self._enabled = enabled
        self.nan_counter, self.fallback_triggered, self.warning_logged = 0, False, False
        self.begin()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, disabled or not; plain numbers."""
        return {
            "scale": self._init_scale if self._scale is None else self._scale.item(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._init_growth_tracker
            if self._growth_tracker is None
            else self._growth_tracker.item(),
            "nan_counter": self.nan_counter,
            "fallback_triggered": self.fallback_triggered,
            "warning_logged": self.warning_logged,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, enabled or disabled; GradScaler's own is taken too, which is empty for a disabled one."""
        if state_dict:
            enabled, self._enabled = (
                self._enabled,
                True,
            )  # GradScaler loads nothing into a disabled one
            super().load_state_dict(state_dict)
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
    return optimizer.param_groups[0]["params"][0].device
