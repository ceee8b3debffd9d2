"""The learning rate of each step, where weight decay acts, and when schedule and run end."""

import math
from itertools import pairwise

import harness
import parts
import pytest
import torch
from torch import nn

from chatgot.numerics.optim import (
    build_optimizer,
    last_step,
    lr_at,
    schedule_horizon,
    set_lr,
    steps_of_epochs,
)

PEAK = 6e-4
LEAST = 6e-5


def training(**keys):
    rates = {
        "learning_rate": PEAK,
        "min_learning_rate": LEAST,
        "warmup_steps": 10,
        "max_steps": 110,
    }
    return parts.config(training={**rates, **keys}).training


def rates(n: int, decay_steps: int = 110, **keys) -> list[float]:
    return [lr_at(step, training(**keys), decay_steps) for step in range(n)]


# The learning rate


def test_the_warmup_is_linear_from_above_zero_to_the_peak():
    assert rates(10) == pytest.approx([PEAK * i / 10 for i in range(1, 11)], rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_decay_goes_from_the_peak_through_the_middle_to_the_minimum(
    schedule,
):
    found = rates(300, lr_schedule=schedule)
    assert found[10] == pytest.approx(PEAK, rel=1e-12)
    assert found[60] == pytest.approx((PEAK + LEAST) / 2, rel=1e-12)
    assert set(found[110:]) == {LEAST}
    assert all(a > b for a, b in pairwise(found[10:111]))
    assert max(found) <= PEAK
    assert min(found[10:]) == LEAST


def test_cosine_and_linear_decay_follow_their_curves():
    quarter = 10 + 25
    cosine = LEAST + (PEAK - LEAST) * 0.5 * (1 + math.cos(math.pi / 4))
    assert lr_at(quarter, training(), 110) == pytest.approx(cosine, rel=1e-12)
    assert lr_at(quarter, training(lr_schedule="linear"), 110) == pytest.approx(
        LEAST + 0.75 * (PEAK - LEAST), rel=1e-12
    )


def test_the_first_step_without_warmup_has_the_peak():
    assert rates(1, warmup_steps=0) == [PEAK]


@pytest.mark.parametrize("warmup_steps", [20, 21, 1000])
def test_a_warmup_as_long_as_the_run_or_longer_is_cut_to_the_run(warmup_steps):
    found = rates(25, decay_steps=20, warmup_steps=warmup_steps)
    assert found[:20] == pytest.approx([PEAK * i / 20 for i in range(1, 21)], rel=1e-12)
    assert found[20:] == [LEAST] * 5


@pytest.mark.parametrize("decay_steps", [1, 2, 3, 10_000_000])
@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 5])
def test_every_rate_is_finite_and_above_zero(decay_steps, warmup_steps):
    found = [
        lr_at(step, training(warmup_steps=warmup_steps), decay_steps)
        for step in (*range(6), 9_999_999, 10**9)
    ]
    assert all(math.isfinite(rate) and 0 < rate <= PEAK for rate in found)


def test_a_minimum_above_the_peak_makes_the_rate_rise():
    found = rates(111, learning_rate=1e-4, min_learning_rate=1e-2)
    assert found[10] == pytest.approx(1e-4)
    assert found[110] == 1e-2
    assert all(a < b for a, b in pairwise(found[10:111]))


def test_set_lr_reaches_every_group():
    net = parts.run().model
    optimizer = build_optimizer(net, training())
    set_lr(optimizer, 0.125, training())
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


# Weight decay


@pytest.mark.parametrize("tied", [True, False])
def test_weight_decay_acts_only_on_matrices(tied):
    net = parts.run(model={"tie_embeddings": tied}).model
    optimizer = build_optimizer(net, training(weight_decay=0.3))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    expected = {id(p): 0.3 if p.dim() >= 2 else 0.0 for p in net.parameters()}
    assert decay == expected
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(expected)


def test_a_step_with_zero_gradients_shrinks_only_matrices():
    net = parts.run().model
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(2.0)
            p.grad = torch.zeros_like(p)
    optimizer = build_optimizer(net, training(weight_decay=0.5))
    set_lr(optimizer, 0.1, training())
    optimizer.step()
    for name, p in net.named_parameters():
        assert torch.allclose(
            p, torch.full_like(p, 2.0 * 0.95 if p.dim() >= 2 else 2.0), rtol=1e-6
        ), name


def test_betas_and_epsilon_reach_the_optimizer():
    optimizer = build_optimizer(parts.run().model, training(betas=(0.7, 0.8), adam_eps=1e-3))
    assert all(
        group["betas"] == (0.7, 0.8) and group["eps"] == 1e-3 for group in optimizer.param_groups
    )


def test_models_of_matrices_alone_and_frozen_parameters_get_an_optimizer():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight.requires_grad_(False)
    optimizer = build_optimizer(net, training())
    assert [p is net[0].weight for group in optimizer.param_groups for p in group["params"]] == [
        True
    ]


# Where the schedule and the run end: 100 windows in an epoch, 8 sequences in a step


@pytest.mark.parametrize(
    ("keys", "horizon", "end"),
    [
        ({"max_steps": 50}, 50, 50),
        ({"max_steps": None, "epochs": 2}, 25, 25),
        ({"max_steps": None, "epochs": 1}, 13, 13),
        ({"max_steps": 50, "epochs": 1}, 50, 13),
        ({"max_steps": 5, "epochs": 1}, 5, 5),
        ({"max_steps": 50, "lr_decay_steps": 70}, 70, 50),
        ({"max_steps": None, "epochs": 2, "lr_decay_steps": 70}, 70, 25),
        ({"max_steps": None, "max_minutes": 1.0, "lr_decay_steps": 70}, 70, None),
        ({"max_steps": 50, "max_minutes": 1.0}, 50, 50),
    ],
)
def test_horizon_and_end_follow_from_the_limits(keys, horizon, end):
    cfg = training(**keys)
    assert cfg.sequences_per_step == 8
    assert schedule_horizon(cfg, 100) == horizon
    assert last_step(cfg, 100) == end


@pytest.mark.parametrize(("epochs", "S"), [(1, 8), (1, 1), (3, 7), (1, 1000), (5, 100)])
def test_the_steps_of_the_epochs_are_just_enough_to_use_each_window(epochs, S):
    steps = steps_of_epochs(epochs, 100, S)
    assert steps * S >= epochs * 100 > (steps - 1) * S


@pytest.mark.parametrize("minutes", [0, 0.02])
def test_the_run_ends_at_max_steps_or_when_the_minutes_are_over(minutes):
    run = parts.run(training={"max_steps": 10, "max_minutes": 0.02})
    assert not run.ended()
    progress = run.state.progress
    progress.time_s = 60 * minutes
    assert run.ended() is (minutes > 0)
    progress.time_s = 0.0
    progress.global_step = 10
    assert run.ended()
    progress.global_step = 9
    assert not run.ended()


def test_a_warmup_longer_than_the_run_gives_one_warning(tmp_path):
    harness.write_config(
        tmp_path, training={"max_steps": 2, "warmup_steps": 5, "eval_interval": None}
    )
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    (log,) = (tmp_path / "logs").glob("train_*.log")
    warnings = [
        line for line in log.read_text(encoding="utf-8").splitlines() if " - WARNING - " in line
    ]
    assert len([line for line in warnings if "warmup_steps" in line]) == 1, warnings
    assert harness.rows(tmp_path)[-1]["lr"] == 1e-2  # the peak is reached at the last step
