"""A run recovers from numerical trouble: it skips a step, lowers the precision or rewinds.

Where none of that helps, the run stops with a report.
"""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import torch
from spoilt_runs import STEPS, final, new, poison, run, trained
from torch import nn

from chatgot.checkpointing.checkpoint_file import is_whole
from chatgot.model import gpt
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.precision import prove_mixed_precision
from chatgot.run import assembly
from chatgot.run.assembly import Run
from chatgot.training.due import Due, is_new_best
from chatgot.training.recovery import merge_ranges, rewind
from chatgot.training.saving import Saver
from chatgot.training.step import compute_gradients, update_weights


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = new(tmp_path_factory.mktemp("clean") / "run")
    assert run(folder) == 0
    return folder


@pytest.fixture(scope="module")
def rewound(tmp_path_factory) -> Path:
    """A run that was rewound to step 8 by three bad steps, at positions 10 to 12."""
    folder = new(tmp_path_factory.mktemp("rewound") / "run")
    spoil = poison({10, 11, 12})
    assert run(folder, spoil=spoil) == 0
    # each position was trained on once, in two micro-batches; after the rewind it is left out
    assert spoil.fired == [10, 10, 11, 11, 12, 12]
    return folder


def rewinds(folder: Path) -> list[tuple[int, list[int] | None]]:
    """Return (step gone back to, positions left out) of each rewind."""
    return [(event["to"], event["skipped"]) for event in harness.events(folder, "rewind")]


def precisions(folder: Path) -> list[tuple[int, str, str]]:
    """Return (first step, old, new) of each change of precision while training."""
    changes = harness.events(folder, "precision")
    return [(change["step"], change["old"], change["new"]) for change in changes]


def high_losses(folder: Path) -> int:
    """Return the number of steps whose loss was finite but far too high."""
    return sum("loss" in warning for warning in harness.events(folder, "warning"))


def done(folder: Path) -> dict[str, Any]:
    """Return the counts in the event of the run's end."""
    (end,) = harness.events(folder, "done")
    return {name: end[name] for name in ("global_step", "skips", "rewinds", "precision")}


def whole_and_finite(path: Path) -> bool:
    """Return whether a checkpoint is whole and all its weights and moments are finite."""
    if not is_whole(path):
        return False
    content = torch.load(path, weights_only=True)
    tensors = list(content["model_state_dict"].values())
    for values in content["optimizer_state_dict"]["state"].values():
        tensors += values.values()
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


# Skips


@pytest.mark.parametrize("positions", [{10}, {10, 11}])
def test_a_bad_window_shorter_than_the_limit_costs_only_skips(tmp_path, positions):
    folder = new(tmp_path / "run")
    spoil = poison(positions)
    assert run(folder, spoil=spoil) == 0
    assert set(spoil.fired) == positions
    progress = final(folder)["state"]["progress"]
    assert progress["skipped_steps"] == len(positions)
    assert progress["position"] == STEPS
    assert final(folder)["state"]["health"]["rewinds"] == 0
    skips = len(positions)
    expected = {"global_step": STEPS, "skips": skips, "rewinds": 0, "precision": "fp32"}
    assert done(folder) == expected


# Rewinds


def test_a_poisoned_window_costs_one_rewind(rewound):
    """The window is left out, plus `rewind_skip_steps`."""
    state = final(rewound)["state"]
    assert state["health"]["rewinds"] == 1
    assert state["progress"]["skipped_ranges"] == [(10, 15)]
    assert state["progress"]["position"] == STEPS + 5
    assert rewinds(rewound) == [(8, [10, 15])]
    assert all(is_whole(path) for path in harness.checkpoints(rewound).values())


def test_a_rewound_run_ends_near_the_clean_one(clean, rewound):
    rows = harness.rows(rewound)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    expected = harness.rows(clean)[-1]["val_loss_full"]
    assert rows[-1]["val_loss_full"] == pytest.approx(expected, rel=0.02)


def test_the_log_says_where_a_rewind_goes_and_what_it_skips(rewound):
    assert "rewinding to step 8, data positions 10 to 14 are skipped" in harness.log_of(rewound)


@pytest.mark.parametrize("at", [11, 20, *harness.slow(9, 12)])
def test_a_run_stopped_around_a_rewind_ends_in_the_same_bits(tmp_path, at):
    """Its skips and rewinds are those of a run that was not stopped."""
    bad = {5, 10, 11, 12}
    straight = new(tmp_path / "straight")
    stopped = new(tmp_path / "stopped")
    assert run(straight, spoil=poison(bad)) == 0
    assert run(stopped, spoil=poison(bad), stop_at=at) == 143
    assert run(stopped, "--resume_from", "latest", spoil=poison(bad)) == 0
    assert harness.same(trained(stopped), trained(straight))


def test_a_run_without_a_checkpoint_rewinds_to_the_start(tmp_path):
    folder = new(tmp_path / "run")
    assert run(folder, spoil=poison({1, 2, 3})) == 0
    assert rewinds(folder) == [(0, [1, 6])]
    assert final(folder)["state"]["progress"]["position"] == STEPS + 5


def test_nan_at_every_later_position_is_exit_4_and_harms_no_file(tmp_path, capsys):
    """The error names the trouble, what was tried, and the last good file."""
    folder = new(tmp_path / "run")
    spoil = poison(range(18, 10_000))
    assert run(folder, spoil=spoil) == 4
    assert len(spoil.fired) <= 2 * 3 * 4  # micro-batches x limit x (rewinds + 1)
    said = capsys.readouterr().err
    numbers = "losses nan, nan, nan; gradient norms nan, nan, nan; learning rate"
    assert f"diverged at step 21: {numbers}" in said
    assert "3 rewinds, data positions skipped: 18 to" in said
    files = harness.checkpoints(folder)
    assert files
    assert all(is_whole(path) for path in files.values())
    assert f"resume from checkpoints/{files[max(files)].name}" in said
    for path in (folder / "checkpoints").glob("*.pt*"):
        weights = torch.load(path, weights_only=True)["model_state_dict"]
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_second_rewind_without_progress_goes_one_file_further_back(tmp_path):
    folder = new(tmp_path / "run", safety={"rewind_skip_steps": 0})
    assert run(folder, spoil=poison({13, 14, 15, 16, 17, 18})) == 0
    assert [step for step, _ in rewinds(folder)] == [12, 8]


@pytest.mark.parametrize("rate", [1e3, 1e12])
def test_an_absurd_learning_rate_is_exit_4_after_a_limited_number_of_steps(tmp_path, rate, capsys):
    folder = new(tmp_path / "run", learning_rate=rate, min_learning_rate=rate, warmup_steps=0)
    assert run(folder) == 4
    assert "lower training.learning_rate" in capsys.readouterr().err
    assert len(rewinds(folder)) == 3
    assert high_losses(folder) + len(harness.events(folder, "skip")) <= STEPS
    assert all(is_whole(path) for path in harness.checkpoints(folder).values())


@pytest.mark.parametrize("rate", [1e3, *harness.slow(1e12)])
@pytest.mark.parametrize("keep", [1, 5])
def test_an_absurd_learning_rate_on_resume_keeps_the_last_good_file(
    clean, tmp_path, rate, keep, capsys
):
    """The error names a file to resume from that the high rate has not ruined."""
    folder = new(tmp_path / "run", max_checkpoints_to_keep=keep)
    assert run(folder, stop_at=22) == 143
    good = harness.checkpoints(folder)[20]
    before = good.read_bytes()
    overrides = []
    for name in ("learning_rate", "min_learning_rate"):
        overrides += ["--set", f"training.{name}={rate}"]
    assert run(folder, "--resume_from", "latest", *overrides) == 4
    assert good.read_bytes() == before
    advice = capsys.readouterr().err.split("lower training.learning_rate and resume from ")[1]
    named = advice.splitlines()[0]
    assert int(named.rpartition("_")[2].removesuffix(".pt")) <= 20
    assert run(folder, "--resume_from", named) == 0
    assert harness.same(trained(folder), trained(clean))


def test_a_signal_after_a_rewind_saves_the_current_step(tmp_path):
    """The process itself was resumed from a later step."""
    bad = {24, 25, 26}
    straight = new(tmp_path / "straight")
    stopped = new(tmp_path / "stopped")
    assert run(straight, spoil=poison(bad)) == 0
    assert run(stopped, spoil=poison(bad), stop_at=25) == 143  # stopped after two bad steps
    code = run(
        stopped,
        "--resume_from",
        "latest",
        spoil=poison(bad),
        stop_when=lambda state: state.health.rewinds == 1,
    )
    assert code == 143
    files = harness.checkpoints(stopped)
    newest = harness.load(files[max(files)])
    assert newest["state"]["health"]["rewinds"] == 1
    assert newest["global_step"] == 25  # resumed at 26, rewound to 24, one step done
    assert run(stopped, "--resume_from", "latest", spoil=poison(bad)) == 0
    assert harness.same(trained(stopped), trained(straight))
    steps = [row["step"] for row in harness.rows(stopped)]
    assert steps == sorted(set(steps))


def test_a_run_begun_with_other_weights_rewinds_to_them_after_a_resume(clean, tmp_path):
    weights = harness.checkpoints(clean)[STEPS]
    bad = {1, 2, 3}
    straight = new(tmp_path / "straight")
    stopped = new(tmp_path / "stopped")
    begin = ("--init_from", str(weights))
    assert run(straight, *begin, spoil=poison(bad)) == 0
    assert run(stopped, *begin, spoil=poison(bad), stop_at=2) == 143
    assert run(stopped, "--resume_from", "latest", spoil=poison(bad)) == 0
    assert rewinds(stopped)[-1][0] == 0
    assert harness.same(trained(stopped), trained(straight))


# What is the best and what is due after a rewind


def run_with_files(folder: Path, evaluated: dict[int, float]) -> Run:
    """Return a run of 5 steps with a checkpoint after each, and evaluations at some of them.

    A rewind goes back to the file of step 4, the newest multiple of 2.
    """
    keys = {"max_steps": 1000, "save_checkpoint_steps": 2, "max_checkpoints_to_keep": 9}
    run = parts.run(training=keys, paths={"checkpoints": str(folder)})
    saver = Saver(run, lambda: False)
    for step in range(1, 6):
        update_weights(run, compute_gradients(run))
        if step in evaluated:
            run.state.marks.val_loss = evaluated[step]
            run.state.marks.last_eval_step = step
        assert saver.save()
    return run


def best(run: Run) -> tuple[int, float]:
    return run.state.marks.best_step, run.state.marks.best_val_loss


def remove_file(run: Run, step: int) -> None:
    harness.checkpoints(run.checkpoint_dir.parent)[step].unlink()


@pytest.fixture
def checkpoint_dir(tmp_path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def test_a_rewind_keeps_the_best_step_if_its_file_exists(checkpoint_dir):
    run = run_with_files(checkpoint_dir, {1: 2.0, 4: 2.5})
    rewind(run)
    assert run.state.progress.global_step == 4
    assert best(run) == (1, 2.0)


def test_a_rewind_forgets_a_best_step_that_came_later(checkpoint_dir):
    run = run_with_files(checkpoint_dir, {1: 2.0, 4: 2.5, 5: 1.5})
    assert best(run) == (5, 1.5)
    rewind(run)
    assert best(run) == (1, 2.0)


def test_a_rewinds_checkpoint_becomes_best_if_the_best_file_is_gone(checkpoint_dir):
    run = run_with_files(checkpoint_dir, {1: 2.0, 4: 2.5})
    remove_file(run, 1)
    rewind(run)
    assert best(run) == (4, 2.5)


def test_weights_without_evaluation_never_replace_a_missing_best_file(checkpoint_dir):
    run = run_with_files(checkpoint_dir, {1: 2.0, 3: 2.5})
    remove_file(run, 1)
    rewind(run)
    assert best(run) == (-1, math.inf)


@pytest.mark.parametrize("evaluated", [{}, {4: 2.5}, {1: 2.0, 4: 2.5}, {1: 2.0, 3: 2.5}])
@pytest.mark.parametrize("best_file", ["there", "gone"])
def test_no_checkpoint_is_due_right_after_a_rewind(checkpoint_dir, evaluated, best_file):
    run = run_with_files(checkpoint_dir, evaluated)
    if best_file == "gone" and 1 in evaluated:
        remove_file(run, 1)
    due = Due(run)
    rewind(run)
    assert run.state.progress.global_step == 4
    assert not is_new_best(run)
    assert not due.checkpoint()


def test_no_checkpoint_is_due_after_a_rewind_to_the_start(checkpoint_dir):
    run = run_with_files(checkpoint_dir, {1: 2.0})
    for step in range(1, 6):
        remove_file(run, step)
    due = Due(run)
    rewind(run)
    assert run.state.progress.global_step == 0
    assert best(run) == (-1, math.inf)
    assert not due.checkpoint()


# Losses that are finite, but far too high


def test_a_single_high_loss_costs_only_a_warning(tmp_path):
    folder = new(tmp_path / "run")
    assert run(folder, spoil=poison({10}, value=10.0)) == 0
    assert high_losses(folder) == 1
    assert final(folder)["state"]["health"]["rewinds"] == 0


@pytest.mark.parametrize("enabled", [False, True])
def test_spikes_above_the_recent_losses_are_rewound_if_enabled(tmp_path, enabled):
    """A spike is far above the recent losses, but not far too high."""
    spike = {"enabled": enabled, "window": 8, "threshold": 6.0}
    folder = new(tmp_path / "run", safety={"spike": spike})
    assert run(folder, spoil=poison({20, 21, 22}, value=1.8)) == 0
    assert final(folder)["state"]["health"]["rewinds"] == int(enabled)


def test_no_checkpoint_is_saved_while_the_loss_is_far_too_high(tmp_path):
    keys = {"save_checkpoint_steps": 1, "max_checkpoints_to_keep": 99}
    folder = new(tmp_path / "run", max_nan_before_fallback=9, **keys)
    assert run(folder, spoil=poison({10, 11}, value=10.0)) == 0
    assert {11, 12}.isdisjoint(harness.checkpoints(folder))
    assert {10, 13} <= harness.checkpoints(folder).keys()


# Lower precision

MIXED = {"mixed_precision": True, "max_nan_before_fallback": 3, "safety": {"amp_retry_steps": 1000}}


def mixed(retry_steps: int) -> dict[str, Any]:
    """Return MIXED with a climb back to higher precision after `retry_steps` good steps."""
    return MIXED | {"safety": {"amp_retry_steps": retry_steps}}


class Overflow(torch.autograd.Function):
    """Passes the loss on, but multiplies its gradient by infinity."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def two_storms(state, loss):
    """Spoil the gradients of every step in fp16, and the loss of every step in bf16."""
    if state.modes.precision == "fp16":
        return Overflow.apply(loss)
    if state.modes.precision == "bf16":
        return loss * math.nan
    return loss


@pytest.fixture(scope="module")
def stormy(tmp_path_factory) -> Path:
    """A run that has gone through both storms."""
    folder = new(tmp_path_factory.mktemp("stormy") / "run", precision_dtype="fp16", **MIXED)
    assert run(folder, spoil=two_storms) == 0
    return folder


def test_an_overflow_storm_falls_from_fp16_to_bf16_to_fp32(stormy):
    """Each fall comes at the expected step.

    16 halvings of the scale, from 65536 to the floor of 1, do not count; the next bad step does.
    """
    assert precisions(stormy) == [(17, "fp16", "bf16"), (20, "bf16", "fp32")]
    assert done(stormy) == {"global_step": STEPS, "skips": 20, "rewinds": 0, "precision": "fp32"}
    ended = final(stormy)
    assert ended["state"]["modes"]["precision"] == "fp32"
    assert all(torch.isfinite(tensor).all() for tensor in ended["model_state_dict"].values())


def test_each_rung_warns_once_of_steps_in_a_row_with_the_numbers(stormy):
    lines = [line for line in harness.log_of(stormy).splitlines() if "non-finite loss" in line]
    assert len(lines) == 2
    assert all("logits" in line for line in lines)


def test_the_log_says_from_which_step_the_precision_is_lower(stormy):
    log = harness.log_of(stormy)
    assert "precision falls back from fp16 to bf16, starting with step 18" in log
    assert "precision falls back from bf16 to fp32, starting with step 21" in log


@pytest.mark.parametrize("at", [17, *harness.slow(5, 19, 25)])
def test_a_storm_that_is_stopped_and_resumed_gives_the_same_bits(stormy, tmp_path, at):
    stopped = new(tmp_path / "stopped", precision_dtype="fp16", **MIXED)
    assert run(stopped, spoil=two_storms, stop_at=at) == 143
    assert run(stopped, "--resume_from", "latest", spoil=two_storms) == 0
    assert harness.same(trained(stopped), trained(stormy))


def test_the_precision_climbs_back_once_after_enough_good_steps(tmp_path):
    folder = new(tmp_path / "run", precision_dtype="bf16", **mixed(retry_steps=6))

    def spoil(state, loss):
        if state.modes.precision == "bf16" and state.progress.position in {4, 5, 6, 20, 21, 22}:
            return loss * math.nan
        return loss

    assert run(folder, spoil=spoil) == 0
    fall, climb, second_fall = precisions(folder)
    assert fall == (7, "bf16", "fp32")
    assert climb[1:] == ("fp32", "bf16")
    assert second_fall == (23, "bf16", "fp32")
    words = "precision returns from fp32 to bf16, starting with step 14"
    assert words in harness.log_of(folder)


@pytest.mark.parametrize("at", [9, *harness.slow(5, 12)])
def test_a_lowered_precision_and_a_rewind_to_the_start_survive_a_stop(tmp_path, at):
    keys = mixed(retry_steps=8) | {"precision_dtype": "bf16", "save_checkpoint_steps": 30}

    def spoil(state, loss):
        bad = {1, 2, 3} if state.modes.precision == "bf16" else {6, 7, 8}
        return loss * math.nan if state.progress.position in bad else loss

    straight = new(tmp_path / "straight", **keys)
    stopped = new(tmp_path / "stopped", **keys)
    assert run(straight, spoil=spoil) == 0
    assert rewinds(straight)[0][0] == 0
    assert harness.events(straight, "precision", reason="proven again")
    assert run(stopped, spoil=spoil, stop_at=at) == 143
    assert run(stopped, "--resume_from", "latest", spoil=spoil) == 0
    assert harness.same(trained(stopped), trained(straight))


def test_mixed_precision_switched_off_on_resume_stays_off(tmp_path):
    folder = new(tmp_path / "run", precision_dtype="bf16", **mixed(retry_steps=3))

    def spoil(state, loss):
        if state.modes.precision == "bf16" and state.progress.position in {4, 5, 6}:
            return loss * math.nan
        return loss

    assert run(folder, spoil=spoil, stop_at=8) == 143
    assert run(folder, "--resume_from", "latest", "--set", "training.mixed_precision=false") == 0
    assert harness.events(folder, "precision", reason="proven again") == []
    assert final(folder)["state"]["modes"]["precision"] == "fp32"


def test_a_text_of_nearly_one_character_is_trained_without_false_alarm(tmp_path):
    folder = new(tmp_path / "run", precision_dtype="bf16", **MIXED)
    (folder / "text.txt").write_text(("a" * 2999 + "b") * 2)
    assert run(folder) == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_endless_nan_in_lower_precision_ends_in_fp32_and_then_exit_4(tmp_path, precision):
    keys = harness.merged(MIXED, {"safety": {"max_rewinds": 1}})
    folder = new(tmp_path / "run", precision_dtype=precision, **keys)
    assert run(folder, spoil=poison(range(10, 10_000))) == 4
    assert precisions(folder)[0][1] == precision
    assert len(rewinds(folder)) == 1
    assert all(is_whole(path) for path in harness.checkpoints(folder).values())


def test_mixed_precision_that_computes_a_different_result_is_refused(tmp_path, monkeypatch):
    """The proof on the first micro-batch refuses it at the start."""
    folder = new(tmp_path / "run", precision_dtype="bf16", **MIXED)
    real = gpt.Block.forward

    def forward(self, x, keep, rotated, cache=None):
        factor = 1.5 if torch.is_autocast_enabled(parts.DEVICE.type) else 1.0
        return real(self, x, keep, rotated, cache) * factor

    monkeypatch.setattr(gpt.Block, "forward", forward)
    assert run(folder) == 0
    (refusal,) = harness.events(folder, "precision")
    assert (refusal["old"], refusal["new"]) == ("bf16", "fp32")
    assert refusal["reason"] == "proof failed"
    words = "mixed precision is off: bf16 with attention by sdpa differs from fp32 on the first"
    assert words in harness.log_of(folder)
    assert final(folder)["state"]["modes"]["precision"] == "fp32"


class Weighted(nn.Module):
    """A model with the same gradient of 8 million numbers in every precision."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = 8_000_000
        normal = torch.randn(size, generator=generator)
        self.gradient = normal * torch.rand(size, generator=generator) ** 8
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x, y):
        return x, (self.weight * self.gradient).sum()


def test_the_cosine_of_two_equal_gradients_is_one_in_a_large_model(caplog):
    caplog.set_level("INFO")
    batch = (torch.zeros(1, 1), torch.zeros(1, 1))
    assert prove_mixed_precision(Weighted(), batch, "bf16") is None
    (record,) = [record for record in caplog.records if hasattr(record, "event")]
    assert record.event["measured"]["gradient_cosine"] == pytest.approx(1.0, abs=5e-6)


# NaN of every kind

FIRST = 10  # the step before which `inject` begins
TIMES = {"once": 1, "K times": 3, "for ever": 10_000}
OFTEN = [("fp32", "K times"), ("bf16", "for ever"), ("fp16", "once")]


def inject(kind: str, times: int) -> tuple[dict[str, Callable], list[tuple[int, int]]]:
    """Return the arguments that inject NaN into a run, and the list of injections so far.

    kind: where the NaN is: in the loss, in one micro-batch, in one gradient or in one weight.
    """
    fired: list[tuple[int, int]] = []
    micro_batches: list[int] = []

    def now(state) -> bool:
        this = (state.health.rewinds, state.progress.global_step)
        if state.progress.global_step < FIRST:
            return False
        if len(set(fired)) >= times and this not in fired:
            return False
        fired.append(this)
        return True

    def whole_loss(state, loss):
        return loss * math.nan if now(state) else loss

    def one_micro_batch(state, loss):
        micro_batches.append(1)
        is_second = len(micro_batches) % 2 == 0
        return loss * math.nan if is_second and now(state) else loss

    def one_gradient(state, model):
        if now(state):
            model.layers[1].mlp.up.weight.grad[0, 0] = math.nan

    def one_weight(state, model):
        if now(state):
            model.layers[1].mlp.up.weight.data[0, 0] = math.nan

    ways = {
        "loss": {"spoil": whole_loss},
        "micro-batch": {"spoil": one_micro_batch},
        "gradient": {"poke": one_gradient},
        "weight": {"poke": one_weight},
    }
    return ways[kind], fired


@pytest.mark.parametrize(
    ("precision", "times"), harness.slow_but(OFTEN, product(("fp32", "bf16", "fp16"), TIMES))
)
@pytest.mark.parametrize("kind", ["loss", "micro-batch", "gradient", "weight"])
def test_nan_of_every_kind_is_noticed_in_every_precision(tmp_path, kind, precision, times):
    is_mixed = precision != "fp32"
    keys = {"precision_dtype": precision, **MIXED} if is_mixed else {"precision_dtype": "auto"}
    folder = new(tmp_path / "run", **keys)
    way, fired = inject(kind, TIMES[times])
    code = run(folder, **way)
    assert fired
    assert code == (4 if times == "for ever" else 0)
    for path in (folder / "checkpoints").glob("*.pt*"):
        assert whole_and_finite(path)
    lowered = [new for _, _, new in precisions(folder)]
    # an fp16 run whose scale can still fall is calibrating: no step counts as bad yet
    calibrates = precision == "fp16" and kind == "gradient"
    if times == "once" and kind != "weight":
        assert done(folder) == {
            "global_step": STEPS,
            "skips": 1,
            "rewinds": 0,
            "precision": precision,
        }
    elif times == "once" or (times == "K times" and not calibrates):
        assert bool(lowered) is is_mixed
        rewinds_once = not is_mixed or kind == "weight"
        assert len(rewinds(folder)) == int(rewinds_once)
    elif times == "for ever":
        assert len(rewinds(folder)) == 3
        assert ("fp32" in lowered) is is_mixed


def test_nan_is_not_noticed_without_the_check(tmp_path, monkeypatch):
    """Without it NaN enters the weights, and only the next save notices."""

    class Blind(SafeGradScaler):
        def read(self, *more):
            numbers = super().read(*more)
            self.healthy = True
            self.calibrating = False
            return numbers

    monkeypatch.setattr(assembly, "SafeGradScaler", Blind)
    way, fired = inject("loss", 1)
    folder = new(tmp_path / "run")
    run(folder, **way)
    assert fired
    assert harness.events(folder, "skip") == []
    assert "model_state_dict.token_embedding.weight" in harness.warnings(folder)


def test_adjacent_ranges_become_one():
    assert merge_ranges([(10, 15), (3, 4), (15, 20), (12, 13)]) == [(3, 4), (10, 20)]
