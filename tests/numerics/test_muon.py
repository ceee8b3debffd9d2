"""Muon equals torch's own, updates only the hidden matrices, and is one optimizer with AdamW."""

import math
from pathlib import Path

import parts
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from chatgot.checkpointing.checkpoint_file import load_checkpoint
from chatgot.errors import OutOfMemory
from chatgot.machine.device import DTYPES
from chatgot.numerics import muon as muon_module
from chatgot.numerics.eager_optimizers import AdamW
from chatgot.numerics.muon import ITERATIONS, Muon, orthogonal, pick_muon_precision
from chatgot.numerics.optim import allocate_state, build_optimizer, is_muon, lr_at, set_lr
from chatgot.run.assembly import Run
from chatgot.run.resuming import find_checkpoint, resume
from chatgot.training.step import compute_gradients, update_weights

SHAPES = [(8, 8), (16, 8), (8, 24), (48, 16), (16, 48), (48, 16)]
# Relative error of an update (0.031 measured): 8 bits, three iterations, sums in another order.
BF16_TOLERANCE = 0.05
SETTINGS = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9}


def matrices(shapes, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


def ours(parameters: list[nn.Parameter], dtype=torch.float32, pieces=1, **settings) -> Muon:
    optimizer = Muon([{"params": parameters, "pieces": pieces}], dtype, **{**SETTINGS, **settings})
    allocate_state(optimizer)
    return optimizer


def steps(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], n: int = 4
) -> list[list[torch.Tensor]]:
    """Return the change of each parameter in each of n updates."""
    updates = []
    for step in range(n):
        before = [p.detach().clone() for p in parameters]
        give_gradients(parameters, step)
        optimizer.step()
        updates.append([p.detach() - b for p, b in zip(parameters, before, strict=True)])
    return updates


class OperationCount(TorchDispatchMode):
    """Counts what is computed; on a GPU each operation is about one launch, and views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += not function.is_view
        return function(*args, **(kwargs or {}))


def assert_close(found, expected, tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x - y).norm() <= tolerance * y.norm()


# The update


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"nesterov": False}]
)
def test_updates_equal_those_of_torchs_muon_with_the_same_iterations(monkeypatch, settings):
    def by_our_iterations(x, *_):
        return orthogonal(x[None], ITERATIONS, 1e-7)[0]

    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", by_our_iterations)
    a = matrices(SHAPES)
    b = matrices(SHAPES)
    theirs = torch.optim.Muon(b, **{**SETTINGS, **settings})
    found = steps(ours(a, **settings), a)
    expected = steps(theirs, b)
    assert_close(found, expected, 1e-4)


def test_updates_in_bf16_are_close_to_fp32_but_not_equal():
    # as large as real matrices, so that few singular values are near the steep end
    shapes = [(192, 192), (384, 192), (192, 384)]
    a = matrices(shapes)
    b = matrices(shapes)
    found = steps(ours(a, torch.bfloat16), a, 2)
    expected = steps(ours(b), b, 2)
    assert_close(found, expected, BF16_TOLERANCE)
    assert not torch.equal(found[0][0], expected[0][0])


def test_each_iteration_is_optimal_for_what_the_last_one_leaves():
    values = torch.linspace(0.01, 1, 100_001, dtype=torch.float64)
    bounds = []
    for a, b, c in ITERATIONS:
        values = a * values + b * values**3 + c * values**5
        bounds.append((values.min().item(), values.max().item()))
        # as far below 1 as above it: the sign of a minimax solution
        assert values.min() + values.max() == pytest.approx(2, abs=1e-3)
    assert bounds[-1] == pytest.approx((0.7305, 1.2695), abs=1e-3)


def test_three_iterations_come_much_closer_than_three_of_torchs():
    values = torch.logspace(0, -2.5, 48)  # the spread of a real momentum's singular values
    generator = torch.Generator().manual_seed(3)
    u, v = (torch.linalg.qr(torch.randn(48, 48, generator=generator))[0] for _ in range(2))

    def distance(found: torch.Tensor) -> torch.Tensor:
        return 1 - torch.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0)

    (p,) = matrices([(48, 48)])
    before = p.detach().clone()
    p.grad = u * values @ v
    torch.optim.Muon([p], lr=1.0, weight_decay=0.0, momentum=0.0, ns_steps=3).step()
    ours_after_three = distance(orthogonal((u * values @ v)[None], ITERATIONS, 1e-7)[0])
    assert len(ITERATIONS) == 3
    assert ours_after_three < 0.08
    assert ours_after_three < 0.7 * distance(before - p.detach())


@pytest.mark.parametrize(("pieces", "shape"), [(3, (16, 16)), (2, (24, 8)), (3, (8, 24))])
def test_a_stack_of_matrices_is_updated_like_its_matrices_alone(pieces, shape):
    stack = matrices([(pieces * shape[0], shape[1])])
    parts_of_it = matrices([shape] * pieces)
    with torch.no_grad():
        for piece, rows in zip(parts_of_it, stack[0].chunk(pieces), strict=True):
            piece.copy_(rows)
    together = ours(stack, pieces=pieces)
    apart = ours(parts_of_it)
    for step in range(3):
        give_gradients(stack, step)
        for piece, rows in zip(parts_of_it, stack[0].grad.chunk(pieces), strict=True):
            piece.grad = rows.clone()
        together.step()
        apart.step()
    assert torch.allclose(stack[0], torch.cat(list(parts_of_it)), rtol=1e-5, atol=1e-6)
    assert stack[0].shape == (pieces * shape[0], shape[1])


@pytest.mark.parametrize("rows", [(16, 8, 8), (8, 16, 16), (4, 8, 4), (24, 2, 2)])
def test_pieces_of_unequal_height_are_updated_like_single_matrices(rows):
    """Each piece has its own orthogonal matrix and its own factor of the learning rate."""
    stacks = matrices([(sum(rows), 8)] * 2)
    by_themselves = matrices([(n, 8) for n in rows] * 2)
    with torch.no_grad():
        for stack, pieces in zip(stacks, (by_themselves[:3], by_themselves[3:]), strict=True):
            stack.copy_(torch.cat(pieces))
    together = ours(stacks, pieces=rows)
    apart = ours(by_themselves)
    for step in range(3):
        give_gradients(by_themselves, step)
        stacks[0].grad = torch.cat([piece.grad for piece in by_themselves[:3]])
        stacks[1].grad = torch.cat([piece.grad for piece in by_themselves[3:]])
        together.step()
        apart.step()
    expected = [torch.cat(by_themselves[:3]), torch.cat(by_themselves[3:])]
    for stack, pieces in zip(stacks, expected, strict=True):
        assert torch.allclose(stack, pieces, rtol=1e-5, atol=1e-6)


def test_nesterov_looks_ahead_of_the_momentum():
    (p,) = matrices([(8, 8)])
    plain = matrices([(8, 8)])
    ahead = ours([p])
    first = steps(ahead, [p], 2)
    second = steps(ours(plain, nesterov=False), plain, 2)
    assert ahead.param_groups[0]["nesterov"] is True  # the default
    assert_close(first[:1], second[:1], 1e-4)  # the first step of both follows the gradient
    assert (first[1][0] - second[1][0]).norm() > 0.05 * second[1][0].norm()


def test_a_parameter_without_a_gradient_is_left_alone():
    p, frozen = matrices([(8, 8), (8, 8)])
    optimizer = ours([p, frozen])
    before = frozen.detach().clone()
    give_gradients([p], 0)
    optimizer.step()
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (16, 40), (64, 24)])
def test_singular_values_of_the_update_are_about_one(dtype, shape):
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(2))
    found = orthogonal(x.to(dtype), ITERATIONS, 1e-7)
    assert found.shape == x.shape
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.5
    assert values.max() < (1.28 if dtype == torch.float32 else 1.6)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)  # u vh is the nearest orthogonal matrix
    assert torch.cosine_similarity(found.float().flatten(), (u @ vh).flatten(), dim=0) > 0.95


def test_each_matrix_of_a_batch_is_orthogonalised_separately():
    x = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(2))
    scaled = x * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    assert torch.allclose(
        orthogonal(scaled, ITERATIONS, 1e-12), orthogonal(x, ITERATIONS, 1e-12), atol=1e-4
    )
    assert torch.equal(orthogonal(torch.zeros(1, 4, 4), ITERATIONS, 1e-7), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"nesterov": False}, {"weight_decay": 0.0}])
@pytest.mark.parametrize(("pieces", "shapes"), [(1, SHAPES), (2, SHAPES), ((8, 4, 4), SHAPES[1:2])])
def test_updates_of_all_weights_together_change_no_bit(dtype, settings, pieces, shapes):
    """So few launches is the way of a GPU; both ways exist on a CPU, where bits can be compared."""
    apart = matrices(shapes)
    together = matrices(shapes)
    one = ours(apart, dtype, pieces, **settings)
    other = ours(together, dtype, pieces, **settings)
    assert not one.together
    other.together = True
    for found, expected in zip(steps(other, together), steps(one, apart), strict=True):
        assert all(map(torch.equal, found, expected))
    assert parts.same(other.state_dict()["state"], one.state_dict()["state"])


def test_updates_together_take_half_of_the_operations():
    with_each = OperationCount()
    with_all = OperationCount()
    for together, count in ((False, with_each), (True, with_all)):
        parameters = matrices([(16, 16), (16, 48)] * 8)
        optimizer = ours(parameters, torch.bfloat16)
        optimizer.together = together
        give_gradients(parameters, 0)
        with count:
            optimizer.step()
    assert with_all.operations < 0.5 * with_each.operations


# Together with AdamW


def fresh_run(stored=None, architecture: str = "gpt", **keys) -> Run:
    model = {"architecture": architecture, **keys.pop("model", {})}
    return parts.run(stored, model=model, training={"optimizer": "muon", **keys})


def step(run: Run) -> bool:
    loss = compute_gradients(run)
    return update_weights(run, loss)


def state(run: Run) -> dict:
    return parts.copied({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("architecture", "mlp"),
    [("gpt", {"mlp.up": 1, "mlp.down": 1}), ("modern", {"mlp.gate_up": 2, "mlp.down": 1})],
)
def test_muon_gets_the_matrices_of_the_blocks_and_adamw_all_else(architecture, mlp, tied):
    run = fresh_run(architecture=architecture, model={"tie_embeddings": tied})
    names = {id(p): name for name, p in run.model.named_parameters()}
    pieces = {}
    rest = set()
    for group in run.optimizer.param_groups:
        for p in group["params"]:
            if is_muon(group):
                pieces[names.pop(id(p))] = group["pieces"]
            else:
                rest.add(names.pop(id(p)))
    assert not names
    kinds = {"attention.qkv": 3, "attention.proj": 1, **mlp}
    assert pieces == {f"layers.{i}.{kind}.weight": n for i in range(2) for kind, n in kinds.items()}
    assert {"token_embedding.weight", "norm.weight", "layers.1.norm_mlp.weight"} <= rest
    assert ("head.weight" in rest) is not tied


@pytest.mark.parametrize(
    ("keys", "pieces"),
    [
        ({"n_kv_head": 1}, (16, 8, 8)),
        ({"n_kv_head": 1, "head_dim": 4}, (8, 4, 4)),
        ({"head_dim": 4}, 3),
    ],
)
def test_grouped_heads_are_split_by_their_rows(keys, pieces):
    run = fresh_run(architecture="modern", model=keys)
    qkv = run.model.layers[0].attention.qkv.weight
    (group,) = [g for g in run.optimizer.param_groups if any(p is qkv for p in g["params"])]
    assert group["pieces"] == pieces
    assert step(run)


def test_each_setting_reaches_the_half_that_it_belongs_to():
    keys = {
        "muon_momentum": 0.7,
        "weight_decay": 0.3,
        "adam_eps": 1e-3,
        "betas": (0.7, 0.8),
        "muon_learning_rate": 0.5,
    }
    for group in fresh_run(**keys).optimizer.param_groups:
        if is_muon(group):
            assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.7, True, 0.3)
        else:
            assert (group["eps"], group["betas"]) == (1e-3, (0.7, 0.8))


def test_both_learning_rates_follow_the_schedule():
    run = fresh_run(
        learning_rate=1e-3,
        min_learning_rate=1e-4,
        muon_learning_rate=0.04,
        warmup_steps=2,
        max_steps=10,
    )
    settings = run.config.training
    found = []
    for done in range(11):
        set_lr(run.optimizer, lr_at(done, settings, 10), settings)
        rates = {is_muon(group): set() for group in run.optimizer.param_groups}
        for group in run.optimizer.param_groups:
            rates[is_muon(group)].add(group["lr"])
        found.append((*rates[False], *rates[True]))
    assert found[0] == pytest.approx((5e-4, 0.02))
    assert found[1] == pytest.approx((1e-3, 0.04))
    assert found[10] == pytest.approx((1e-4, 0.004))
    assert all(muon == pytest.approx(40 * adamw) for adamw, muon in found)


def test_a_learning_rate_of_zero_for_one_half_leaves_that_half_alone():
    run = fresh_run(weight_decay=0.0)
    half = {id(p): is_muon(group) for group in run.optimizer.param_groups for p in group["params"]}
    for frozen in (True, False):
        for group in run.optimizer.param_groups:
            group["lr"] = 0.0 if is_muon(group) is frozen else 0.01
        before = {id(p): p.detach().clone() for p in run.model.parameters()}
        assert step(run)
        moved = {id(p): not torch.equal(p, before[id(p)]) for p in run.model.parameters()}
        assert moved == {key: muon is not frozen for key, muon in half.items()}


def test_an_optimizer_with_a_loaded_state_makes_the_same_updates():
    a = fresh_run()
    b = fresh_run()
    for _ in range(2):
        assert step(a)
    b.model.load_state_dict(parts.copied(a.model.state_dict()))
    b.optimizer.load_state_dict(parts.copied(a.optimizer.state_dict()))
    b.state.progress.position = a.state.progress.position
    optimizer = b.optimizer
    halves = [*optimizer.muon.param_groups, *optimizer.adamw.param_groups]
    assert all(mine is its for mine, its in zip(optimizer.param_groups, halves, strict=True))
    assert optimizer.muon.state is optimizer.adamw.state is optimizer.state
    for run in (a, b):
        set_lr(run.optimizer, 3e-3, run.config.training)
        assert step(run)
    assert parts.same(state(a), state(b))
    assert {int(values["step"]) for values in a.optimizer.state.values()} == {3}


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "gpt"},
        {"architecture": "modern"},
        {"architecture": "modern", "n_kv_head": 1},
    ],
    ids=["gpt", "modern", "grouped"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(model, tmp_path):
    keys = {"model": {"dropout": 0.2, **model}}
    straight = fresh_run(**keys)
    for _ in range(2):
        assert step(straight)
    path = parts.checkpoint_file(tmp_path, straight)
    resumed = fresh_run(load_checkpoint(path), **keys)
    with torch.no_grad():
        for p in resumed.model.parameters():
            p.add_(0.5)
    torch.manual_seed(77)
    resume(resumed, find_checkpoint(str(path), resumed.config, Path("tiny.yaml"), set()))
    for run in (straight, resumed):
        run.model.train()
        for _ in range(3):
            assert step(run)
    assert parts.same(state(straight), state(resumed))
    assert straight.state == resumed.state


@pytest.mark.parametrize("name", ["layers.0.mlp.up.weight", "token_embedding.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_single_bad_gradient_leaves_both_halves_untouched(name, value):
    run = fresh_run()
    assert step(run)
    before = state(run)
    fired = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        fired.append(name)
        return gradient.clone().fill_(value)

    handle = dict(run.model.named_parameters())[name].register_hook(spoil)
    assert not step(run)
    handle.remove()
    assert fired
    assert parts.same(state(run), before)
    assert (
        run.state.progress.skipped_steps,
        run.scaler.nan_counter,
        run.state.progress.global_step,
    ) == (
        1,
        1,
        2,
    )
    assert step(run)


@pytest.mark.parametrize("call", [1, 3])
def test_out_of_memory_in_muons_update_is_reported_as_half_done(call, monkeypatch):
    run = fresh_run()
    calls = []
    real = muon_module.orthogonal

    def run_out(*args):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("no memory")
        return real(*args)

    monkeypatch.setattr(muon_module, "orthogonal", run_out)
    with pytest.raises(OutOfMemory, match="half updated"):
        step(run)
    assert len(calls) == call
    assert run.state.progress.global_step == 0  # the step is not counted


def test_out_of_memory_before_the_update_changes_no_weight(monkeypatch):
    run = fresh_run()
    before = state(run)

    def run_out(*args, **keys):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", run_out)
    with pytest.raises(OutOfMemory) as raised:
        step(run)
    assert "half updated" not in str(raised.value)
    assert parts.same(state(run), before)


@pytest.mark.cpu("whether bf16 is fast is measured")
@pytest.mark.parametrize(("gain", "dtype"), [(0.5, torch.float32), (2.0, torch.bfloat16)])
def test_products_are_fp32_where_bf16_is_slow(gain, dtype, monkeypatch):
    monkeypatch.setattr(muon_module, "bf16_gain", lambda *shape: gain)
    run = fresh_run()
    assert run.optimizer.muon.dtype == dtype == DTYPES[run.state.modes.muon_precision]
    assert pick_muon_precision(run.model, torch.device("cuda")) == "bf16"
    monkeypatch.setattr(muon_module, "bf16_gain", lambda *shape: 1 / gain)
    resumed = fresh_run(stored=run.checkpoint())
    assert resumed.optimizer.muon.dtype == dtype


def test_an_adamw_run_has_no_muon():
    run = parts.run()
    assert type(run.optimizer) is AdamW
    assert type(build_optimizer(run.model, run.config.training)) is AdamW
    assert not any(map(is_muon, run.optimizer.param_groups))


# ----------------------------------------------------------------------------------------------
# NorMuon


def plain_normuon(gradients: list[torch.Tensor], beta2: float, lr: float) -> torch.Tensor:
    """Return the sum of NorMuon's updates of one matrix, row by row, without momentum or decay."""
    total = torch.zeros_like(gradients[0])
    mean = [0.0] * len(total)
    for gradient in gradients:
        update = orthogonal(gradient[None], ITERATIONS, eps=1e-7)[0]
        rows = []
        for r, row in enumerate(update):
            mean[r] = beta2 * mean[r] + (1 - beta2) * float(row.square().mean())
            rows.append(row / math.sqrt(mean[r]))
        scaled = torch.stack(rows)
        scaled = scaled * update.norm() / scaled.norm()
        total -= lr * max(1.0, len(total) / total.size(1)) ** 0.5 * scaled
    return total


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (8, 8)])
def test_normuon_is_as_written_row_by_row(shape, together):
    p = nn.Parameter(torch.zeros(shape))
    optimizer = ours([p], momentum=0.0, weight_decay=0.0, beta2=0.9)
    optimizer.together = together
    gradients = []
    for step in range(4):
        give_gradients([p], step)
        gradients.append(p.grad.clone())
        optimizer.step()
    expected = plain_normuon(gradients, 0.9, SETTINGS["lr"])
    torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


def test_normuon_keeps_the_size_of_an_update():
    plain = matrices([(16, 48)])
    normal = matrices([(16, 48)])
    for of_plain, of_normal in zip(
        steps(ours(plain, weight_decay=0.0), plain),
        steps(ours(normal, weight_decay=0.0, beta2=0.95), normal),
        strict=True,
    ):
        assert not torch.equal(of_plain[0], of_normal[0])
        torch.testing.assert_close(of_plain[0].norm(), of_normal[0].norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("pieces", [3, (8, 4, 4)])
def test_normuon_treats_stacked_matrices_one_by_one(pieces):
    heights = (8, 8, 8) if pieces == 3 else pieces
    single = matrices([(height, 8) for height in heights])
    stacked = nn.Parameter(torch.cat([p.detach() for p in single]))
    one_by_one = ours(single, beta2=0.9)
    together = ours([stacked], pieces=pieces, beta2=0.9)
    for step in range(3):
        give_gradients([stacked], step)
        for p, gradient in zip(single, stacked.grad.split(heights), strict=True):
            p.grad = gradient.clone()
        one_by_one.step()
        together.step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in single]))


def test_normuon_leaves_rows_without_a_gradient_where_they_are():
    p = nn.Parameter(torch.ones(8, 4))
    optimizer = ours([p], weight_decay=0.0, momentum=0.0, beta2=0.9)
    p.grad = torch.zeros(8, 4)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(8, 4))
    p.grad[0] = 1.0
    optimizer.step()
    assert torch.equal(p.detach()[1:], torch.ones(7, 4))
    assert bool((p.detach()[0] != 1).all())


def test_normuon_goes_on_from_its_stored_state():
    straight = matrices(SHAPES)
    resumed = matrices(SHAPES)
    steps(ours(straight, beta2=0.9), straight, 4)
    first = ours(resumed, beta2=0.9)
    steps(first, resumed, 2)
    second = ours(resumed, beta2=0.9)
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        give_gradients(resumed, step)
        second.step()
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)
