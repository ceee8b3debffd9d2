"""No non-finite loss or gradient reaches the weights or the optimizer, with or without scaling."""

import inspect
import math

import parts
import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.training.step import update_weights


class Twin(SafeGradScaler):
    """A deliberately broken twin: it finds every step healthy."""

    def read(self, *more):
        numbers = super().read(*more)
        self.healthy = True
        self.calibrating = False
        return numbers


def make(scaler_class=SafeGradScaler, enabled=False, **keywords):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, scaler_class("cpu", enabled=enabled, **keywords)


def take(model, optimizer, scaler, factors=(1.0,), spoil=None) -> None:
    """Take one step of several micro-batches, each loss times a factor.

    spoil: takes the model and may change its gradients.
    """
    for factor in factors:
        scaler.scale(model(torch.ones(4, 3)).square().mean() * factor / len(factors)).backward()
    if spoil:
        spoil(model)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def everything(model, optimizer):
    return parts.copied({"weights": model.state_dict(), "optimizer": optimizer.state_dict()})


def set_gradient(value):
    return lambda model: model.weight.grad.view(-1)[0].fill_(value)


BAD = {
    "loss NaN": {"factors": (math.nan,)},
    "loss inf": {"factors": (math.inf,)},
    "one micro-batch of four": {"factors": (1.0, 1.0, math.nan, 1.0)},
    "gradient inf": {"spoil": set_gradient(math.inf)},
    "gradient NaN": {"spoil": set_gradient(math.nan)},
    "norm overflows": {"spoil": set_gradient(3e38)},
}


@pytest.mark.parametrize("scaler_class", [SafeGradScaler, Twin])
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_step_changes_neither_weights_nor_optimizer_and_is_noticed(
    kind, enabled, scaler_class
):
    model, optimizer, scaler = make(scaler_class, enabled)
    take(model, optimizer, scaler)
    before = everything(model, optimizer)
    keywords = dict(BAD[kind])
    if kind == "norm overflows":
        keywords["spoil"] = lambda m: m.weight.grad.fill_(
            3e38 * (scaler.get_scale() if enabled else 1.0) / 65536
        )
        if enabled:  # then the unscaled gradient is finite
            keywords["spoil"] = lambda m: m.weight.grad.fill_(3e38)
            scaler.update(1.0)
    take(model, optimizer, scaler, **keywords)
    unchanged = parts.same(everything(model, optimizer), before)
    assert unchanged is (scaler_class is SafeGradScaler)
    take(model, optimizer, scaler)
    healed = all(torch.isfinite(p).all() for p in model.parameters())
    assert healed or scaler_class is Twin


@pytest.mark.parametrize("enabled", [False, True])
def test_a_good_step_equals_that_of_torchs_own_scaler(enabled):
    states = []
    for scaler_class in (SafeGradScaler, GradScaler):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scaler = scaler_class("cpu", enabled=enabled, growth_interval=2)
        for _ in range(5):
            take(model, optimizer, scaler)
        states.append(everything(model, optimizer) | {"scale": scaler.get_scale()})
    assert parts.same(*states)
    assert states[0]["scale"] == (65536 * 4 if enabled else 1.0)


def test_the_scaler_has_the_arguments_and_defaults_of_torchs_own():
    own = inspect.signature(SafeGradScaler.__init__).parameters
    for name, parameter in inspect.signature(GradScaler.__init__).parameters.items():
        assert (own[name].default, own[name].kind) == (parameter.default, parameter.kind)
    assert own["max_nan_before_fallback"].kind is inspect.Parameter.KEYWORD_ONLY
    assert own["max_nan_before_fallback"].default == 3
    scaler = SafeGradScaler("cpu")
    assert isinstance(scaler, GradScaler)
    assert (scaler.nan_counter, scaler.fallback_triggered, scaler.warning_logged) == (
        0,
        False,
        False,
    )


def test_the_third_bad_step_in_a_row_triggers_the_fallback(caplog):
    model, optimizer, scaler = make()
    scaler.describe = lambda: "layers.1 was the first"
    for counted in (1, 2):
        take(model, optimizer, scaler, (math.nan,))
        assert (scaler.nan_counter, scaler.fallback_triggered) == (counted, False)
    take(model, optimizer, scaler)
    assert scaler.nan_counter == 0
    for _ in range(5):
        take(model, optimizer, scaler, (math.nan,))
    assert (scaler.nan_counter, scaler.fallback_triggered, scaler.warning_logged) == (5, True, True)
    assert len(caplog.records) == 1
    assert "3 steps in a row had a non-finite loss or gradient" in caplog.text
    assert "layers.1 was the first" in caplog.text


def test_overflows_count_as_bad_only_once_the_scale_is_at_its_floor():
    model, optimizer, scaler = make(enabled=True, min_loss_scale=1024.0)
    scales = []
    for _ in range(7):  # gradients that overflow fp16 at any scale
        take(model, optimizer, scaler, spoil=set_gradient(math.inf))
        scales.append((scaler.get_scale(), scaler.nan_counter, scaler.fallback_triggered))
    assert scales[:6] == [(65536 / 2**n, 0, False) for n in range(1, 7)]
    assert scales[6] == (1024.0, 1, True)


def test_a_non_finite_loss_counts_as_bad_at_any_scale():
    model, optimizer, scaler = make(enabled=True)
    take(model, optimizer, scaler, (math.nan,))
    assert scaler.nan_counter == 1
    assert scaler.get_scale() == 32768


def test_all_optimizers_of_a_step_share_one_verdict():
    first = nn.Linear(3, 2)
    second = nn.Linear(3, 2)
    optimizers = [
        torch.optim.AdamW(first.parameters(), lr=0.1),
        torch.optim.SGD(second.parameters(), lr=0.1),
    ]
    scaler = SafeGradScaler("cpu", enabled=False)

    def both_states() -> list[list[list[float]]]:
        return [p.tolist() for net in (first, second) for p in net.parameters()]

    before = both_states()
    scaler.scale((first(torch.ones(1, 3)) + second(torch.ones(1, 3))).sum()).backward()
    second.weight.grad[0, 0] = math.inf
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert both_states() == before
    for optimizer in optimizers:  # torch's own pattern, without unscale_: the scaler knows both
        optimizer.zero_grad()
    scaler.scale((first(torch.ones(1, 3)) + second(torch.ones(1, 3))).sum()).backward()
    second.weight.grad[0, 0] = math.inf
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert both_states() == before
    assert scaler.nan_counter == 2


def test_two_optimizers_first_seen_in_step_work_as_in_torchs_scaler():
    first = nn.Linear(3, 2)
    second = nn.Linear(3, 2)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (first, second)]
    scaler = SafeGradScaler("cpu")
    before = parts.copied({"first": dict(first.state_dict()), "second": dict(second.state_dict())})
    scaler.scale([[first(torch.ones(1, 3)).sum()], second(torch.ones(1, 3)).sum()])[0][0].backward()
    scaler.scale(second(torch.ones(1, 3)).sum()).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(first.weight, before["first"]["weight"])
    assert not torch.equal(second.weight, before["second"]["weight"])
    assert torch.allclose(second.weight, before["second"]["weight"] - 0.1)


def test_gradients_that_are_unscaled_but_not_used_keep_the_scale():
    scales = []
    for scaler_class in (SafeGradScaler, GradScaler):
        model, optimizer, scaler = make(scaler_class, enabled=True)
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [65536, 65536]


def test_sparse_gradients_are_checked_too():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    scaler = SafeGradScaler("cpu")
    before = embedding.weight.detach().clone()
    scaler.scale(embedding(torch.tensor([1, 1])).sum() * math.nan).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(embedding.weight, before)
    optimizer.zero_grad()
    scaler.scale(embedding(torch.tensor([1, 1])).sum()).backward()
    scaler.step(optimizer)
    assert not torch.equal(embedding.weight, before)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_closure_is_refused_since_its_loss_would_go_unchecked(enabled):
    _, optimizer, scaler = make(enabled=enabled)
    for arguments in ({"closure": lambda: None}, {}):
        with pytest.raises(RuntimeError, match="closure"):
            scaler.step(optimizer, *([] if arguments else [lambda: None]), **arguments)


def test_calls_in_the_wrong_order_are_an_error():
    model, optimizer, scaler = make(enabled=True)
    scaler.scale(model(torch.ones(1, 3)).sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.step(optimizer)


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("target", [True, False])
def test_a_state_is_complete_and_loads_into_any_scaler_on_or_off(source, target):
    model, optimizer, scaler = make(enabled=source)
    take(model, optimizer, scaler)
    take(model, optimizer, scaler, (math.nan,))
    state = scaler.state_dict()
    assert state["nan_counter"] == 1
    assert state["scale"] == (32768 if source else 65536)
    _, _, other = make(enabled=target)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert other.is_enabled() is target
    other.load_state_dict({})  # the state of torch's own disabled scaler
    assert other.state_dict()["scale"] == state["scale"]


def test_the_state_of_torchs_own_scaler_is_accepted():
    _, _, scaler = make(enabled=True)
    scaler.load_state_dict(GradScaler("cpu", init_scale=8.0).state_dict())
    assert (scaler.get_scale(), scaler.nan_counter) == (8.0, 0)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_healthy_step_reads_from_the_device_once(enabled, monkeypatch):
    run = parts.run(precision="fp16" if enabled else "fp32")
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        real = getattr(torch.Tensor, name)

        def counted(self, real=real, name=name):
            if self.dim() == 0 or name == "tolist":
                reads.append(name)
            return real(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    scaler = run.scaler
    loss = torch.zeros((), device=parts.DEVICE)
    scaler.scale(loss)  # makes the scale
    scaler.begin()
    for first in range(0, 8, 4):
        x, y = run.train_windows.batch(run.train_windows.starts(0, 8)[first : first + 4])
        reads.clear()  # drop the reads of the windows' check of their ids, on the CPU
        share = run.model(x, y)[1] / 2
        scaler.scale(share).backward()
        loss = loss + share.detach()
        assert reads == []
    monkeypatch.setattr(run.optimizer, "step", lambda: None)  # without the reads of AdamW itself
    assert update_weights(run, loss)
    assert reads == ["tolist"]


def norm_of(bad: float) -> float:
    net = nn.Linear(2, 2)
    other = nn.Linear(1, 1)
    net.weight.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    net.bias.grad = torch.tensor([0.0, bad])
    other.weight.grad = torch.zeros(1, 1)
    scaler = SafeGradScaler("cpu", enabled=False)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (net, other)]
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    return scaler.gradient_norm().item()


def test_the_gradient_norm_covers_all_gradients_together():
    assert norm_of(12.0) == pytest.approx(13.0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 3e38])
def test_a_non_finite_gradient_or_overflowing_norm_shows_in_the_norm(bad):
    assert not math.isfinite(norm_of(bad))
