"""Numerical trouble heals: a step is skipped, the precision lowered, the run rewound; at the end of that it stops."""

import math
from collections.abc import Callable, Collection
from pathlib import Path

import harness
import pytest
import torch
from spoilt_runs import STEPS, final, log_of, new, poison, run
from torch import nn

from chatgot.checkpointing.checkpoint_file import is_whole
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.precision import prove_mixed_precision
from chatgot.run import assembly
from chatgot.training.recovery import merge_ranges


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = new(tmp_path_factory.mktemp("clean") / "run")
    assert run(folder) == 0
    return folder


@pytest.mark.parametrize("positions", [{10}, {10, 11}])
def test_a_bad_window_shorter_than_the_limit_is_healed_by_skips_alone(tmp_path, positions):
    spoil = poison(positions)
    assert run(new(tmp_path / "run"), spoil=spoil) == 0
    ended = final(tmp_path / "run")["state"]
    assert set(spoil.fired) == positions
    assert (
        ended["progress"]["skipped_steps"],
        ended["health"]["rewinds"],
        ended["progress"]["position"],
    ) == (
        len(positions),
        0,
        STEPS,
    )
    assert f"done: {STEPS} steps, {len(positions)} skipped, 0 rewinds, fp32 throughout" in log_of(
        tmp_path / "run"
    )


def test_a_poisoned_window_costs_one_rewind_and_the_run_ends_near_the_clean_one(clean, tmp_path):
    spoil = poison({10, 11, 12})
    folder = new(tmp_path / "run")
    assert run(folder, spoil=spoil) == 0
    ended = final(folder)["state"]
    assert spoil.fired == [
        10,
        10,
        11,
        11,
        12,
        12,
    ]  # once, two micro-batches each; then they are left out
    assert ended["health"]["rewinds"] == 1
    assert ended["progress"]["skipped_ranges"] == [
        (10, 15)
    ]  # the window, and rewind_skip_steps more
    assert ended["progress"]["position"] == STEPS + 5
    assert "rewinding to step 8, data positions 10 to 14 are left out" in log_of(folder)
    rows, clean_rows = harness.rows(folder), harness.rows(clean)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert rows[-1]["val_loss_full"] == pytest.approx(clean_rows[-1]["val_loss_full"], rel=0.02)
    assert all(is_whole(path) for path in harness.checkpoints(folder).values())


@pytest.mark.parametrize("at", [9, 11, 12, 20])
def test_a_run_stopped_around_a_rewind_makes_the_same_skips_and_rewinds_and_ends_in_the_same_bits(
    tmp_path, at
):
    bad = {5, 10, 11, 12}
    straight, stopped = new(tmp_path / "straight"), new(tmp_path / "stopped")
    assert run(straight, spoil=poison(bad)) == 0
    assert run(stopped, spoil=poison(bad), stop_at=at) == 143
    assert run(stopped, "--resume_from", "latest", spoil=poison(bad)) == 0
    assert harness.same(harness.trained(final(stopped)), harness.trained(final(straight)))


def test_before_the_first_checkpoint_it_rewinds_to_the_start(clean, tmp_path):
    folder = new(tmp_path / "run")
    assert run(folder, spoil=poison({1, 2, 3})) == 0
    assert "rewinding to step 0, data positions 1 to 5 are left out" in log_of(folder)
    assert final(folder)["state"]["progress"]["position"] == STEPS + 5


def test_poison_in_every_later_position_ends_in_exit_4_with_a_report_and_the_last_good_file_whole(
    tmp_path, capsys
):
    folder, spoil = new(tmp_path / "run"), poison(range(18, 10_000))
    assert run(folder, spoil=spoil) == 4
    assert len(spoil.fired) <= 2 * 3 * 4  # micro-batches x limit x (rewinds + 1)
    said = capsys.readouterr().err
    assert (
        "diverged at step 21: losses nan, nan, nan; gradient norms nan, nan, nan; learning rate"
        in said
    )
    assert "3 rewinds, data positions left out: 18 to" in said
    left = harness.checkpoints(folder)
    assert left
    assert all(is_whole(path) for path in left.values())
    newest = left[max(left)]
    assert f"resume from checkpoints/{newest.name}" in said
    for path in (folder / "checkpoints").glob("*.pt*"):
        weights = torch.load(path, weights_only=True)["model_state_dict"]
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_second_rewind_without_progress_goes_one_file_further_back(tmp_path):
    folder = new(tmp_path / "run", safety={"rewind_skip_steps": 0})
    assert run(folder, spoil=poison({13, 14, 15, 16, 17, 18})) == 0
    lines = [
        line.split("rewinding to ")[1][:8]
        for line in log_of(folder).splitlines()
        if "rewinding" in line
    ]
    assert lines == ["step 12,", "step 8, "]


@pytest.mark.parametrize("rate", [1e3, 1e12])
def test_a_learning_rate_without_sense_is_exit_4_in_a_bounded_number_of_steps(
    tmp_path, rate, capsys
):
    folder = new(tmp_path / "run", learning_rate=rate, min_learning_rate=rate, warmup_steps=0)
    assert run(folder) == 4
    assert "lower training.learning_rate" in capsys.readouterr().err
    assert log_of(folder).count("rewinding to") == 3
    assert log_of(folder).count("far too high") + log_of(folder).count(" skipped: ") <= STEPS
    assert all(is_whole(path) for path in harness.checkpoints(folder).values())


@pytest.mark.parametrize("rate", [1e3, 1e12])
@pytest.mark.parametrize("keep", [1, 5])
def test_a_senseless_rate_on_resume_leaves_the_last_good_file_untouched_and_names_one_to_go_on_from(
    clean, tmp_path, rate, keep, capsys
):
    folder = new(tmp_path / "run", max_checkpoints_to_keep=keep)
    assert run(folder, stop_at=22) == 143
    good = harness.checkpoints(folder)[20]
    before = good.read_bytes()
    rates = [f"training.{name}={rate}" for name in ("learning_rate", "min_learning_rate")]
    assert run(folder, "--resume_from", "latest", *(w for r in rates for w in ("--set", r))) == 4
    assert good.read_bytes() == before
    named = (
        capsys.readouterr()
        .err.split("lower training.learning_rate and resume from ")[1]
        .splitlines()[0]
    )
    assert (
        int(named.rpartition("_")[2].removesuffix(".pt")) <= 20
    )  # not one that the high rate has already ruined
    assert run(folder, "--resume_from", named) == 0
    assert harness.same(harness.trained(final(folder)), harness.trained(final(clean)))


def test_a_signal_after_a_rewind_saves_where_the_run_stands_though_it_resumed_from_a_later_step(
    tmp_path,
):
    bad = {24, 25, 26}
    straight, stopped = new(tmp_path / "straight"), new(tmp_path / "stopped")
    assert run(straight, spoil=poison(bad)) == 0
    assert run(stopped, spoil=poison(bad), stop_at=25) == 143  # two bad steps long
    assert (
        run(
            stopped,
            "--resume_from",
            "latest",
            spoil=poison(bad),
            stop_when=lambda s: s.health.rewinds == 1,
        )
        == 143
    )
    newest = harness.load(harness.checkpoints(stopped)[max(harness.checkpoints(stopped))])
    assert (newest["state"]["health"]["rewinds"], newest["global_step"]) == (
        1,
        25,
    )  # resumed at 26, back to 24
    assert run(stopped, "--resume_from", "latest", spoil=poison(bad)) == 0
    assert harness.same(harness.trained(final(stopped)), harness.trained(final(straight)))
    steps = [row["step"] for row in harness.rows(stopped)]
    assert steps == sorted(set(steps))


def test_a_run_that_began_with_other_weights_rewinds_to_them_after_a_resume_too(clean, tmp_path):
    weights = harness.checkpoints(clean)[STEPS]
    bad = {1, 2, 3}
    straight, stopped = new(tmp_path / "straight"), new(tmp_path / "stopped")
    for folder in (straight, stopped):
        stop = {"stop_at": 2} if folder == stopped else {}
        code = run(folder, "--init_from", str(weights), spoil=poison(bad), **stop)
        assert code == (143 if folder == stopped else 0)
    assert run(stopped, "--resume_from", "latest", spoil=poison(bad)) == 0
    assert "rewinding to step 0" in log_of(stopped)
    assert harness.same(harness.trained(final(stopped)), harness.trained(final(straight)))


def test_a_single_high_loss_is_said_and_nothing_else(clean, tmp_path):
    folder = new(tmp_path / "run")
    assert run(folder, spoil=poison({10}, value=10.0)) == 0
    assert log_of(folder).count("far too high") == 1
    assert final(folder)["state"]["health"]["rewinds"] == 0


def test_spikes_that_stand_out_of_the_recent_losses_take_the_same_road_when_asked(tmp_path):
    spike = {"enabled": True, "window": 8, "threshold": 6.0}
    for name, settings, rewinds in (("off", {}, 0), ("on", {"safety": {"spike": spike}}, 1)):
        folder = new(tmp_path / name, **settings)
        assert run(folder, spoil=poison({20, 21, 22}, value=1.8)) == 0
        assert final(folder)["state"]["health"]["rewinds"] == rewinds


def test_no_checkpoint_is_saved_while_the_loss_is_far_too_high(tmp_path):
    folder = new(
        tmp_path / "run",
        save_checkpoint_steps=1,
        max_checkpoints_to_keep=99,
        max_nan_before_fallback=9,
    )
    assert run(folder, spoil=poison({10, 11}, value=10.0)) == 0
    assert {11, 12}.isdisjoint(harness.checkpoints(folder))
    assert {10, 13} <= harness.checkpoints(folder).keys()


# Lower precision

MIXED = {"mixed_precision": True, "max_nan_before_fallback": 3, "safety": {"amp_retry_steps": 1000}}


def storm(
    precisions: Collection[str], value: float = math.inf, finite_loss: bool = False
) -> Callable:
    """Spoil every step in some precisions; with `finite_loss` only the gradients become infinite."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * value

    def spoil(state, loss):
        if state.modes.precision in precisions:
            return Overflow.apply(loss) if finite_loss else loss * value
        return loss

    return spoil


def test_an_overflow_storm_falls_from_fp16_to_bf16_to_fp32_each_at_its_step(tmp_path):
    folder = new(tmp_path / "run", precision_dtype="fp16", **MIXED)

    def spoil(state, loss):  # in fp16 the gradients overflow, in bf16 the loss
        overflow, nan = storm({"fp16"}, finite_loss=True), storm({"bf16"}, math.nan)
        return nan(state, overflow(state, loss))

    assert run(folder, spoil=spoil) == 0
    log = log_of(folder)
    # 16 halvings from 65536 to the floor of 1, uncounted; the next one at the floor falls back
    assert "precision falls back from fp16 to bf16 from step 18 on" in log
    assert "precision falls back from bf16 to fp32 from step 21 on" in log
    assert log.count("had a non-finite loss or gradient") == 2  # once a rung
    assert "logits" in log
    assert f"done: {STEPS} steps, 20 skipped, 0 rewinds, fp16, then fp32" in log
    ended = final(folder)
    assert ended["state"]["modes"]["precision"] == "fp32"
    assert all(torch.isfinite(tensor).all() for tensor in ended["model_state_dict"].values())


@pytest.mark.parametrize("at", [5, 17, 19, 25])
def test_a_storm_resumed_in_its_middle_gives_the_same_bits(tmp_path, at):
    def spoil(state, loss):
        return storm({"bf16"}, math.nan)(state, storm({"fp16"}, finite_loss=True)(state, loss))

    straight, stopped = (
        new(tmp_path / n, precision_dtype="fp16", **MIXED) for n in ("straight", "stopped")
    )
    assert run(straight, spoil=spoil) == 0
    assert run(stopped, spoil=spoil, stop_at=at) == 143
    assert run(stopped, "--resume_from", "latest", spoil=spoil) == 0
    assert harness.same(harness.trained(final(stopped)), harness.trained(final(straight)))


def test_after_enough_good_steps_the_precision_climbs_back_once(tmp_path):
    folder = new(
        tmp_path / "run", precision_dtype="bf16", **(MIXED | {"safety": {"amp_retry_steps": 6}})
    )

    def spoil(state, loss):
        return (
            loss * math.nan
            if state.modes.precision == "bf16" and state.progress.position in {4, 5, 6, 20, 21, 22}
            else loss
        )

    assert run(folder, spoil=spoil) == 0
    changes = [
        line.split(" - ")[-1]
        for line in log_of(folder).splitlines()
        if "precision falls" in line or "climbs" in line
    ]
    assert changes == [
        "precision falls back from bf16 to fp32 from step 8 on",
        "precision climbs back from fp32 to bf16 from step 14 on",
        "precision falls back from bf16 to fp32 from step 24 on",
    ]


@pytest.mark.parametrize("at", [5, 9, 12])
def test_a_lowered_precision_and_a_rewind_to_the_start_survive_a_stop(tmp_path, at):
    settings = MIXED | {
        "precision_dtype": "bf16",
        "safety": {"amp_retry_steps": 8},
        "save_checkpoint_steps": 30,
    }

    def spoil(state, loss):
        return (
            loss * math.nan
            if state.progress.position
            in ({1, 2, 3} if state.modes.precision == "bf16" else {6, 7, 8})
            else loss
        )

    straight, stopped = (
        new(tmp_path / "straight", **settings),
        new(tmp_path / "stopped", **settings),
    )
    assert run(straight, spoil=spoil) == 0
    assert "rewinding to step 0" in log_of(straight)
    assert "climbs back" in log_of(straight)
    assert run(stopped, spoil=spoil, stop_at=at) == 143
    assert run(stopped, "--resume_from", "latest", spoil=spoil) == 0
    assert harness.same(harness.trained(final(stopped)), harness.trained(final(straight)))


def test_a_user_who_switches_mixed_precision_off_gets_it_off(tmp_path):
    folder = new(
        tmp_path / "run", precision_dtype="bf16", **(MIXED | {"safety": {"amp_retry_steps": 3}})
    )
    bad = storm({"bf16"}, math.nan)
    assert (
        run(
            folder,
            spoil=lambda s, loss: bad(s, loss) if s.progress.position in {4, 5, 6} else loss,
            stop_at=8,
        )
        == 143
    )
    assert run(folder, "--resume_from", "latest", "--set", "training.mixed_precision=false") == 0
    assert "climbs" not in log_of(folder)
    assert final(folder)["state"]["modes"]["precision"] == "fp32"


def test_a_text_of_one_character_has_no_loss_to_compare_and_no_defect(tmp_path):
    folder = new(tmp_path / "run", precision_dtype="bf16", **MIXED)
    (folder / "text.txt").write_text("a" * 6000)
    assert run(folder) == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_nan_in_a_lower_precision_for_ever_ends_in_fp32_and_then_exit_4(tmp_path, precision):
    folder = new(
        tmp_path / "run",
        precision_dtype=precision,
        **harness.merged(MIXED, {"safety": {"max_rewinds": 1}}),
    )
    assert run(folder, spoil=poison(range(10, 10_000))) == 4
    log = log_of(folder)
    assert f"precision falls back from {precision} to" in log
    assert log.count("rewinding to") == 1
    assert all(is_whole(path) for path in harness.checkpoints(folder).values())


def test_mixed_precision_that_computes_something_else_is_refused_at_the_start(
    tmp_path, monkeypatch
):
    from chatgot.model import gpt as model_module

    folder = new(tmp_path / "run", precision_dtype="bf16", **MIXED)
    real = model_module.Block.forward

    def forward(self, x, keep, rotated, cache=None):
        return real(self, x, keep, rotated, cache) * (
            1.5 if torch.is_autocast_enabled("cpu") else 1.0
        )

    monkeypatch.setattr(model_module.Block, "forward", forward)
    assert run(folder) == 0
    refusal = "mixed precision is off: bf16 with attention by sdpa differs from fp32 on the first micro-batch"
    assert refusal in log_of(folder)
    assert final(folder)["state"]["modes"]["precision"] == "fp32"


class Weighted(nn.Module):
    """A model whose gradient is the same 8 million numbers in every precision."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.gradient = (
            torch.randn(8_000_000, generator=generator)
            * torch.rand(8_000_000, generator=generator) ** 8
        )
        self.weight = nn.Parameter(torch.ones(8_000_000))

    def forward(self, x, y):
        return x, (self.weight * self.gradient).sum()


def test_the_cosine_of_two_equal_gradients_is_one_however_large_the_model_is(caplog):
    caplog.set_level("INFO")
    batch = (torch.zeros(1, 1), torch.zeros(1, 1))
    assert prove_mixed_precision(Weighted(), batch, "bf16") is None
    assert "cosine of the gradients 1.00000" in caplog.text


FIRST = 10  # the step before which the matrix below begins to inject
TIMES = {"once": 1, "K times": 3, "for ever": 10_000}


def inject(kind: str, times: int) -> tuple[dict, list]:
    """Return what makes a run see NaN in its loss, one micro-batch, one gradient or a weight, and what it has seen."""
    fired: list[tuple[int, int]] = []

    def now(state) -> bool:
        this = (state.health.rewinds, state.progress.global_step)
        if state.progress.global_step < FIRST or (len(set(fired)) >= times and this not in fired):
            return False
        fired.append(this)
        return True

    def whole_loss(state, loss):
        return loss * math.nan if now(state) else loss

    calls = [0]

    def one_micro_batch(state, loss):
        calls[0] += 1
        return loss * math.nan if calls[0] % 2 == 0 and now(state) else loss

    def one_gradient(state, model):
        if now(state):
            model.layers[1].mlp.up.weight.grad[0, 0] = math.nan

    def one_weight(state, model):
        if now(state):
            model.layers[1].mlp.up.weight.data[0, 0] = math.nan

    ways = {"loss": {"spoil": whole_loss}, "micro-batch": {"spoil": one_micro_batch}}
    ways |= {"gradient": {"poke": one_gradient}, "weight": {"poke": one_weight}}
    return ways[kind], fired


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["loss", "micro-batch", "gradient", "weight"])
def test_nan_of_every_kind_in_every_precision_goes_down_the_ladder(
    tmp_path, kind, precision, times
):
    settings = (
        {"precision_dtype": "auto"}
        if precision == "fp32"
        else {"precision_dtype": precision, **MIXED}
    )
    folder = new(tmp_path / "run", **settings)
    way, fired = inject(kind, TIMES[times])
    code = run(folder, **way)
    log = log_of(folder)
    assert fired
    assert code == (4 if times == "for ever" else 0)
    for path in (folder / "checkpoints").glob("*.pt*"):
        assert is_whole(path) or path.suffix == ".superseded"
        content = torch.load(path, weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in content["model_state_dict"].values())
        moments = content["optimizer_state_dict"]["state"].values()
        assert all(torch.isfinite(value).all() for values in moments for value in values.values())
    calibrates = (
        precision == "fp16" and kind == "gradient"
    )  # its scale has room to fall: no bad step so far
    if times == "once" and kind != "weight":
        assert f"{STEPS} steps, 1 skipped, 0 rewinds" in log
    elif times == "once" or (times == "K times" and not calibrates):
        assert ("precision falls back" in log) is (precision != "fp32")
        assert log.count("rewinding to") == (precision == "fp32" or kind == "weight")
    elif times == "for ever":
        assert log.count("rewinding to") == 3
        assert ("to fp32 from step" in log) is (precision != "fp32")


def test_without_the_check_the_ladder_is_not_taken(tmp_path, monkeypatch):
    class Blind(SafeGradScaler):
        def read(self, *more):
            numbers = super().read(*more)
            self.healthy, self.calibrating = True, False
            return numbers

    monkeypatch.setattr(assembly, "SafeGradScaler", Blind)
    way, fired = inject("loss", 1)
    run(new(tmp_path / "run"), **way)
    assert fired
    assert "1 skipped, 0 rewinds" not in log_of(tmp_path / "run")
    assert "NaN" in log_of(tmp_path / "run") or "nan" in log_of(tmp_path / "run")


def test_ranges_that_touch_become_one():
    assert merge_ranges([(10, 15), (3, 4), (15, 20), (12, 13)]) == [(3, 4), (10, 20)]
