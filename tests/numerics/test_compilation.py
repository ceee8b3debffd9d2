"""Compiled blocks compute the same, where they pay; a failing compiler costs one warning."""

import json
import logging
import os
from pathlib import Path

import harness
import parts
import pytest
import torch
from torch import Tensor

from chatgot.config import SamplingConfig
from chatgot.machine import measured as machine_module
from chatgot.machine.measured import COMPILED
from chatgot.model.gpt import Block, evaluating
from chatgot.numerics import compilation, compile_cost
from chatgot.run.assembly import Run
from chatgot.run.resuming import find_checkpoint, resume
from chatgot.sampling.generation import continue_texts
from chatgot.training.step import compute_gradients, update_weights

# Steps: 4,000 s in the blocks; a step takes 4 ms there (2 micro-batches, 2 blocks of 1 ms each).
LONG = 1_000_000


def step(run: Run) -> bool:
    loss = compute_gradients(run)
    return update_weights(run, loss)


def fresh_run(stored=None, architecture: str = "gpt", **keys) -> Run:
    return parts.run(stored, model={"architecture": architecture, "dropout": 0.2}, training=keys)


def is_compiled(run: Run) -> bool:
    assert run.state.modes.compiled == (run.model.training_block is not Block.__call__)
    return run.state.modes.compiled


def resumed_from(path, set_now: set[str] = frozenset(), architecture: str = "gpt", **keys) -> Run:
    """Resume a run from a file as the script does."""
    config = parts.config(model={"architecture": architecture, "dropout": 0.2}, training=keys)
    point = find_checkpoint(str(path), config, Path("tiny.yaml"), set_now)
    run = fresh_run(point.content, architecture, **keys)
    resume(run, point)
    run.model.train()
    return run


# With the real compiler


@pytest.fixture
def own_variables():
    """Undo what compiling sets in the environment."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.mark.usefixtures("own_variables")
@pytest.mark.slow  # .ci/run has them: the compiler takes 20 s
@pytest.mark.parametrize("architecture", ["gpt", "modern"])
def test_compiled_blocks_compute_the_same_and_resume_bit_for_bit(architecture, tmp_path):
    found = {}
    for mode in (False, True):
        run = fresh_run(architecture=architecture, compile=mode)
        assert is_compiled(run) is mode
        names = list(run.model.state_dict())
        loss = compute_gradients(run)
        found[mode] = [loss, *(p.grad.clone() for p in run.model.parameters())]
        run.optimizer.zero_grad()
    assert names == list(fresh_run(architecture=architecture).model.state_dict())  # no _orig_mod
    for compiled, eager in zip(found[True], found[False], strict=True):
        assert (
            compiled - eager
        ).norm() <= 1e-5 * eager.norm()  # fp32: operations are fused, sums go in another order
    assert not all(map(torch.equal, found[True], found[False]))  # something was compiled
    assert step(run)
    path = parts.checkpoint_file(tmp_path, run)
    again = resumed_from(path, architecture=architecture, compile=True)
    for straight_or_resumed in (run, again):
        assert is_compiled(straight_or_resumed)
        assert step(straight_or_resumed)
    assert parts.same(run.model.state_dict(), again.model.state_dict())
    assert run.state == again.state


@pytest.mark.slow
@pytest.mark.cpu("it compiles with a C++ compiler")
def test_a_failing_compiler_costs_one_warning_and_the_run_completes(tmp_path):
    harness.write_config(tmp_path, training={"compile": True, "max_steps": 2})
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    (tmp_path / "cache").mkdir()
    done = harness.run_script(
        tmp_path,
        "--config",
        "tiny.yaml",
        CXX=str(broken),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
        XDG_CACHE_HOME=str(tmp_path / "own"),
    )
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if " - WARNING - compile" in line]
    assert len(warnings) == 1
    assert "compile: off, it does not work here" in warnings[0]
    assert "Traceback" not in done.stderr
    (path,) = [path for n, path in harness.checkpoints(tmp_path).items() if n == 2]
    assert harness.load(path)["state"]["modes"]["compiled"] is False


# With a fake compiler that counts its own calls and those of the functions it returns


class Compiler:
    def __init__(self) -> None:
        self.compiled = 0
        self.ran = 0
        self.error: Exception | None = None

    def __call__(self, function, **how):
        self.compiled += 1

        def compiled(*args, **keys):
            if self.error is not None:
                raise self.error
            self.ran += 1
            return function(*args, **keys)

        return compiled


@pytest.fixture
def compiler(machine, tmp_path, monkeypatch, own_variables) -> Compiler:
    """A fake torch.compile, on a machine without any measurement or compiled code."""
    monkeypatch.setenv(COMPILED, str(tmp_path / "compiled"))
    stand_in = Compiler()
    monkeypatch.setattr(torch, "compile", stand_in)
    return stand_in


def markers() -> list[Path]:
    """Return the files that say which compiled code is kept."""
    return list((Path(os.environ[COMPILED]) / "chatgot").glob("*.json"))


def remember(machine, eager_s: float, compile_s: float, compiled_s: float) -> None:
    """Write these times as if this machine had measured them; its compiled code is gone."""
    fresh_run(max_steps=10**9, compile="auto")
    for marker in markers():
        marker.unlink()
    known = json.loads(machine.read_bytes())
    for key in known:
        if key.startswith("eager block"):
            known[key] = [eager_s]
        if key.startswith("compiled block"):
            known[key] = [compile_s, eager_s, compiled_s]
    assert sum("block" in key for key in known) == 2
    machine.write_text(json.dumps(known))


def test_training_uses_compiled_blocks_evaluation_and_samples_eager_ones(compiler):
    run = fresh_run(compile=True)
    assert is_compiled(run)
    compiler.ran = 0
    x, y = run.train_windows.batch(run.train_windows.starts(0, 2))
    with evaluating(run.model):
        run.model(x, y)
    with torch.no_grad():
        run.model(x, y)
    sampling = SamplingConfig(max_new_tokens=12)
    list(continue_texts(run.model, run.vocabulary, ["ab"], sampling, 0))
    assert compiler.ran == 0
    assert step(run)
    assert compiler.ran == 4  # two micro-batches, two blocks


def test_a_measurement_is_remembered_by_everything_that_affects_speed():
    def name(**model) -> str:
        run = parts.run(model={"architecture": "modern", **model})
        work = compilation.Work(
            run.config, run.model, parts.CPU, "fp32", 4, steps_left=1, seconds_left=1
        )
        return work.name

    others = ({"n_kv_head": 1}, {"head_dim": 4}, {"qk_norm": False}, {"n_head": 1})
    assert len({name(), *(name(**keys) for keys in others)}) == 5
    assert name(n_kv_head=2, head_dim=8) == name()
    assert name(rope_base=500.0) == name()


def test_compilation_by_request_and_by_checkpoint_are_events(compiler, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    path = parts.checkpoint_file(tmp_path, fresh_run(compile=True))
    resumed_from(path, compile=True)
    assert compile_events(caplog) == [(True, "as asked"), (True, "as in the checkpoint")]


def test_the_choice_does_not_touch_generators_gradients_or_mode(compiler):
    eager = fresh_run(compile=False)
    compiled = fresh_run(compile=True)
    assert all(p.grad is None for p in compiled.model.parameters())
    assert parts.same(eager.checkpoint()["rng"], compiled.checkpoint()["rng"])
    assert step(eager)
    assert step(compiled)
    # the fake compiler changes no bit
    assert parts.same(eager.model.state_dict(), compiled.model.state_dict())


def compile_events(caplog) -> list[tuple[bool, str]]:
    """Return (is on, reason) of each event about compilation."""
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    return [(e["on"], e["reason"]) for e in events if e["kind"] == "compile"]


def test_compile_false_is_eager_and_logs_nothing(compiler, caplog):
    caplog.set_level(logging.INFO)
    assert not is_compiled(fresh_run(compile=False, max_steps=LONG))
    assert compiler.compiled == 0
    assert "compile" not in caplog.text


def test_auto_does_not_compile_a_short_run_and_gives_the_reason(compiler, caplog):
    caplog.set_level(logging.INFO)
    assert not is_compiled(fresh_run(compile="auto"))
    assert compiler.compiled == 0
    (line,) = [line for line in caplog.messages if line.startswith("compile")]
    assert line.startswith("compile: off, the rest of the run spends only about")


@pytest.mark.parametrize(
    ("compile_s", "compiled_s", "limits", "word"),
    [
        (10.0, 0.5e-3, {}, "on; a block takes 1.00 ms eager and 0.50 ms compiled"),
        (10.0, 0.999e-3, {}, "off; a block takes 1.00 ms eager and 1.00 ms compiled"),
        (10.0, 2e-3, {}, "off; a block takes"),
        (3000.0, 0.5e-3, {}, "off; a block takes"),
        (10.0, 0.5e-3, {"max_steps": 5_200}, "on; a block takes"),  # 20.8 s in the blocks
        (10.0, 0.5e-3, {"max_steps": 4_800}, "off; a block takes"),
        (10.0, 0.5e-3, {"max_minutes": 0.3}, "off; a block takes"),
        (10.0, 0.5e-3, {"max_minutes": 5}, "on; a block takes"),
    ],
)
def test_auto_compares_the_time_saved_with_the_time_to_compile(
    compile_s, compiled_s, limits, word, compiler, machine, caplog
):
    remember(machine, 1e-3, compile_s, compiled_s)
    compiler.compiled = 0
    caplog.set_level(logging.INFO)
    caplog.clear()
    on = word.startswith("on")
    assert is_compiled(fresh_run(compile="auto", **{"max_steps": LONG, **limits})) is on
    assert compiler.compiled == on
    assert f"compile: {word}" in caplog.text
    assert [now for now, _ in compile_events(caplog)] == [on]


def test_later_runs_of_a_shape_decide_by_the_seconds_of_loading_its_code(compiler, machine, caplog):
    """5,000 steps spend 20 s in the blocks, and 10 s are saved."""
    remember(machine, 1e-3, 30.0, 0.5e-3)
    assert not is_compiled(fresh_run(compile="auto", max_steps=5_000))
    assert is_compiled(fresh_run(compile=True, max_steps=5_000))
    caplog.set_level(logging.INFO)
    assert is_compiled(fresh_run(compile="auto", max_steps=5_000))
    assert "compiling takes 6 s" in caplog.text  # a fifth, until loading is measured
    (marker,) = markers()
    assert 0 < json.loads(marker.read_text())["loading_s"] < 6
    marker.unlink()
    assert not is_compiled(fresh_run(compile="auto", max_steps=5_000))


@pytest.mark.parametrize("measured_s", [None, 3.0])
def test_an_unknown_shape_is_not_compiled_if_that_is_likely_a_loss(
    measured_s, compiler, machine, monkeypatch
):
    """Half a second of blocks per step; a tenth is saved; compiling is guessed, or was measured."""
    monkeypatch.setattr(compilation, "best_time", lambda _: 0.25)
    if measured_s is not None:
        machine_module.remember(compile_cost.ANY_SHAPE, [measured_s])
    usual_s = compile_cost.USUAL_COMPILE_S if measured_s is None else measured_s
    assert not is_compiled(fresh_run(compile="auto", max_steps=int(usual_s / 0.05 / 2) - 1))
    assert compiler.compiled == 0
    fresh_run(compile="auto", max_steps=int(usual_s / 0.05 / 2) + 1)
    assert compiler.compiled == 1


def test_auto_counts_only_the_remaining_steps_of_a_resumed_run(compiler, machine, monkeypatch):
    monkeypatch.setattr(compilation, "note", lambda *_: None)  # no compiled code is kept
    remember(machine, 1e-3, 10.0, 0.5e-3)
    content = fresh_run(compile="auto", max_steps=LONG).checkpoint()
    for done, expected in ((0, True), (LONG - 100, False)):
        content["state"]["progress"] |= {"global_step": done, "position": done}
        content["config"]["training"]["compile"] = True  # the user asks for another mode
        assert is_compiled(fresh_run(content, compile="auto", max_steps=LONG)) is expected


def test_auto_measures_once_and_keeps_the_blocks_it_compiled(compiler, machine):
    fresh_run(compile="auto", max_steps=10**9)
    before = machine.read_bytes()
    assert compiler.compiled == 1
    compiler.compiled = 0
    run = fresh_run(compile="auto", max_steps=10**9)
    assert machine.read_bytes() == before
    assert compiler.compiled == is_compiled(run)


@pytest.mark.parametrize(("compiled_s", "pays"), [(0.5e-3, True), (1e-3, False)])
def test_blocks_compiled_for_measuring_stay_where_compiling_pays(
    compiled_s, pays, compiler, monkeypatch, caplog
):
    times = [1e-3, [1e-3, compiled_s]]
    monkeypatch.setattr(compilation, "best_time", lambda do: times.pop(0))
    monkeypatch.setattr(
        compilation, "best_times", lambda ways: [way() for way in ways] and times.pop(0)
    )
    caplog.set_level(logging.INFO)
    assert is_compiled(fresh_run(compile="auto", max_steps=10**9)) is pays
    (record,) = [r for r in caplog.records if getattr(r, "event", {}).get("kind") == "compile"]
    assert record.event["on"] is pays
    assert record.event["measured"]["eager_s"] == 1e-3
    assert record.event["measured"]["compiled_s"] == compiled_s
    assert not times
    assert compiler.compiled == 1


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"gradient_checkpointing": True}, "gradient checkpointing is not bit-equal under it"),
        ({"dynamic_batch_size": {"enabled": True}}, "each micro-batch size would be compiled anew"),
    ],
)
def test_auto_is_off_with_options_that_rule_out_compiling(compiler, keys, why, caplog):
    caplog.set_level(logging.INFO)
    assert not is_compiled(fresh_run(compile="auto", max_steps=10**9, **keys))
    assert compiler.compiled == 0
    assert f"compile: off, {why}" in caplog.messages
    assert compile_events(caplog) == [(False, why)]


# Resumed


@pytest.mark.parametrize("mode", [True, False])
def test_a_resumed_run_keeps_its_mode_despite_new_measurements(mode, compiler, machine, tmp_path):
    remember(machine, 1e-3, 10.0, 0.5e-3 if mode else 1e-3)
    run = fresh_run(compile="auto", max_steps=LONG)
    assert is_compiled(run) is mode
    path = parts.checkpoint_file(tmp_path, run)
    remember(machine, 1e-3, 10.0, 1e-3 if mode else 0.5e-3)
    assert is_compiled(fresh_run(compile="auto", max_steps=LONG)) is not mode
    assert is_compiled(resumed_from(path, compile="auto", max_steps=LONG)) is mode


@pytest.mark.parametrize("mode", [True, False])
def test_a_mode_set_by_the_user_is_in_the_next_checkpoint(mode, compiler, tmp_path):
    path = parts.checkpoint_file(tmp_path, fresh_run(compile=not mode))
    changed = resumed_from(path, {"training.compile"}, compile=mode)
    assert is_compiled(changed) is mode
    assert step(changed)
    again = parts.checkpoint_file(tmp_path, changed)
    assert is_compiled(resumed_from(again, compile=mode)) is mode


# Without a compiler


@pytest.mark.parametrize(
    "error", [RuntimeError("no C++ compiler\nfound"), ImportError("triton"), OSError(2, "gone")]
)
def test_any_compiler_failure_costs_one_warning_and_blocks_run_eager(error, compiler, caplog):
    compiler.error = error
    run = fresh_run(compile=True)
    plain = fresh_run(compile=False)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.message.startswith("compile: off, it does not work here: ")
    assert "\n" not in warning.message
    assert [on for on, _ in compile_events(caplog)] == [False]
    assert not is_compiled(run)
    for either in (run, plain):
        assert step(either)
    assert parts.same(run.model.state_dict(), plain.model.state_dict())


def test_a_compiler_that_cannot_even_start_costs_one_warning(machine, caplog, monkeypatch):
    def fail(*args, **keys):
        raise FileNotFoundError(2, "No such file or directory", "/proc/x")

    monkeypatch.setattr(torch, "compile", fail)
    run = fresh_run(compile=True)
    assert "compile: off, it does not work here: " in caplog.text
    assert step(run)


def test_a_compiled_run_goes_on_eager_where_there_is_no_compiler(compiler, caplog, tmp_path):
    path = parts.checkpoint_file(tmp_path, fresh_run(compile=True))
    compiler.error = RuntimeError("no C++ compiler")
    assert not is_compiled(resumed_from(path, compile=True))
    reason = "it does not work here: no C++ compiler; not bit-exact from here"
    assert compile_events(caplog)[-1] == (False, reason)
    assert f"compile: off, {reason}" in caplog.messages


def test_out_of_memory_in_a_block_is_not_taken_for_a_compiler_failure(compiler):
    compiler.error = torch.OutOfMemoryError("no memory")
    with pytest.raises(torch.OutOfMemoryError):
        fresh_run(compile=True)


def test_the_script_trains_evaluates_and_samples_with_compiled_blocks(compiler, tmp_path):
    finals: list[dict[str, Tensor]] = []
    for name, mode in (("eager", False), ("compiled", True)):
        folder = tmp_path / name
        folder.mkdir()
        harness.write_config(folder, training={"compile": mode, "max_steps": 6})
        assert harness.train_here(folder, "--config", "tiny.yaml") == 0
        (log,) = (folder / "logs").glob("train_*.log")
        assert f"blocks {name}" in log.read_text(encoding="utf-8")
        last = harness.load(harness.checkpoints(folder)[6])
        assert last["state"]["modes"]["compiled"] is mode
        finals.append(last["model_state_dict"])
    # one block to try, then in each of 6 steps two blocks in each of three micro-batches
    assert compiler.ran == 1 + 6 * 3 * 2
    assert harness.same(*finals)
