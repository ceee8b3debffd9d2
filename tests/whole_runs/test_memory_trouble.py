"""Whole runs out of memory: stop and resume, exit codes, log and curves, a real limit."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import torch
from child_environment import child_environment
from memory_limit import CALM, MemoryLimit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from chatgot.numerics import optim
from chatgot.run.assembly import Run
from chatgot.training import evaluation

STEPS = 40
JOB = {
    "max_steps": STEPS,
    "batch_size": 8,
    "accumulate_grad_batches": 1,
    "save_checkpoint_steps": 100,
    "checkpoint_interval_minutes": None,
    "eval_interval": 20,
    "sample_interval_steps": None,
    "dynamic_batch_size": {**CALM, "enabled": True, "growth_interval_steps": 8},
}


def new(folder: Path, **training: Any) -> Path:
    folder.mkdir()
    harness.write_config(folder, training=harness.merged(JOB, training))
    return folder


def job(
    folder: Path, *arguments: str, limit: Callable[[int], float], stop_at: int | None = None
) -> tuple[int, MemoryLimit]:
    """Train in this process under a limit that depends on the step; return exit code and limit.

    A SIGTERM comes in the step after `stop_at`.
    """
    script = harness.load_script()
    assemble = script.assemble_together
    memory_limit = MemoryLimit()

    def assemble_under_limit(*args: object) -> Run:
        run = assemble(*args)
        memory_limit.limit = lambda: limit(run.state.progress.global_step)
        memory_limit.watch(run.model)

        def stop(module: nn.Module, args: tuple) -> None:
            if run.state.progress.global_step == stop_at and module.training:
                script.STOP.exit_code = 143
                script.STOP.signal_name = "SIGTERM"

        run.model.register_forward_pre_hook(stop)
        return run

    script.assemble_together = assemble_under_limit
    threads = torch.get_num_threads()
    try:
        with contextlib.chdir(folder):
            return script.main(["--config", "tiny.yaml", *arguments]), memory_limit
    finally:
        torch.set_num_threads(threads)


def always_enough(step: int) -> float:
    return 8


def falling_and_rising(step: int) -> float:
    """Return a limit of 2 from step 7 on, and of 8 again from step 20 on."""
    return 2 if 6 <= step < 20 else 8


def changes(folder: Path, **fields: object) -> list[tuple[int, int]]:
    """Return (old, new) of each change of the micro-batch size in the events."""
    events = harness.events(folder, "micro_batch", **fields)
    return [(event["old"], event["new"]) for event in events]


def ending(folder: Path) -> dict[str, Any]:
    """Return what must be equal in two complete runs of the same steps."""
    return harness.trained(harness.load(harness.checkpoints(folder)[STEPS]))


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """An uninterrupted run under the limit that falls and rises."""
    folder = new(tmp_path_factory.mktemp("straight") / "run")
    code, limit = job(folder, limit=falling_and_rising)
    assert (code, limit.fired[:2]) == (0, [8, 4])
    history = ending(folder)["state"]["micro_batch"]["history"]
    steps = [(change["old"], change["new"]) for change in history]
    assert steps == [(8, 4), (4, 2), (2, 4), (4, 8)]
    return folder


# Stop and resume


@pytest.mark.parametrize("at", [31, *harness.slow(5, 6, 7, 14, 22, 30)])
def test_a_run_stopped_around_a_change_of_size_ends_in_the_same_bits(straight, tmp_path, at):
    """It does not run out of memory a second time for the same change."""
    stopped = new(tmp_path / "stopped")
    code, limit = job(stopped, limit=falling_and_rising, stop_at=at)
    assert code == 143
    code, limit_after_resume = job(stopped, "--resume_from", "latest", limit=falling_and_rising)
    assert code == 0
    assert parts.same(ending(stopped), ending(straight))
    assert changes(stopped, reason="oom") == [(8, 4), (4, 2)]
    rejected = len(changes(stopped, reason="rejected"))
    assert len(limit.fired) + len(limit_after_resume.fired) == 2 + rejected
    assert rejected == len(changes(straight, reason="rejected"))


def test_a_signal_after_a_shrink_still_finishes_the_step(tmp_path):
    """So it does not run out of memory again after the resume."""
    folder = new(tmp_path / "run", save_checkpoint_steps=6)
    code, limit = job(folder, limit=lambda step: 4 if step >= 6 else 8, stop_at=6)
    assert (code, limit.fired) == (143, [8])
    assert max(harness.checkpoints(folder)) == 7
    code, limit = job(folder, "--resume_from", "latest", limit=lambda step: 4)
    assert code == 0
    assert changes(folder, reason="oom") == [(8, 4)]


# Log, events and curves


def test_log_and_events_have_one_line_for_each_change_of_size(straight):
    assert changes(straight, reason="oom") == [(8, 4), (4, 2)]
    assert changes(straight, reason="trial") == [(2, 4), (4, 8)]
    log = harness.log_of(straight)
    shrinks = [line for line in log.splitlines() if "out of memory: " in line]
    assert len(shrinks) == 2
    assert "step 7: out of memory: micro_batch_size 8 -> 4" in shrinks[0]
    assert "step 7: out of memory: micro_batch_size 4 -> 2" in shrinks[1]
    assert log.count("micro_batch_size 2 -> 4 from step") == 1


def test_the_curves_show_the_size_and_the_memory(straight):
    curves = EventAccumulator(str(harness.run_dir(straight))).Reload()
    sizes = {point.step: point.value for point in curves.Scalars("batch/micro_batch_size")}
    assert (sizes[6], sizes[7], sizes[STEPS]) == (8, 2, 8)
    least = 50 if parts.DEVICE == parts.CPU else 1  # on a CPU, all that the process takes
    assert all(least < point.value < 50_000 for point in curves.Scalars("perf/memory_mib"))


# How it ends


def test_out_of_memory_for_one_sequence_is_exit_6_and_saves_the_last_step(tmp_path, capsys):
    folder = new(tmp_path / "run")
    code, limit = job(folder, limit=lambda step: 0 if step == 9 else 8)
    assert (code, limit.fired) == (6, [8, 4, 2, 1])
    said = capsys.readouterr().err
    assert "step 10: out of memory at micro_batch_size 1" in said
    assert "Traceback" not in said
    assert list(harness.checkpoints(folder)) == [9]
    assert "_step_9.pt" in said.split("resume with: ")[1]
    (crash,) = harness.events(folder, "crash")
    assert crash["exit_code"] == 6
    assert "_step_9.pt" in crash["resume_command"]
    code, limit = job(folder, "--resume_from", "latest", limit=always_enough)
    assert (code, limit.fired) == (0, [])


def test_out_of_memory_in_the_update_is_exit_6_and_saves_no_half_update(
    tmp_path, capsys, monkeypatch
):
    """After a resume it ends like an undisturbed run."""
    folder = new(tmp_path / "run", save_checkpoint_steps=4)
    real = optim.AdamW.step
    updates = []

    def fail_in_the_seventh(self: torch.optim.Optimizer, *args: object) -> None:
        real(self, *args)
        updates.append(1)
        if len(updates) == 7:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(optim.AdamW, "step", fail_in_the_seventh)
        code, _ = job(folder, limit=always_enough)
    assert code == 6
    said = capsys.readouterr().err
    assert "step 7: out of memory while updating the weights, and the weights are half" in said
    assert max(harness.checkpoints(folder)) == 4
    undisturbed = new(tmp_path / "undisturbed", save_checkpoint_steps=4)
    assert job(folder, "--resume_from", "latest", limit=always_enough)[0] == 0
    assert job(undisturbed, limit=always_enough)[0] == 0
    assert parts.same(ending(folder), ending(undisturbed))


def test_out_of_memory_in_samples_and_evaluations_does_not_touch_training(tmp_path, monkeypatch):
    keys = {"sample_interval_steps": 10, "eval_interval": 8}
    quiet = new(tmp_path / "quiet", **keys)
    loud = new(tmp_path / "loud", **keys)
    assert job(quiet, limit=always_enough)[0] == 0
    script = harness.load_script()
    real = evaluation.evaluate
    fired = []

    def fail_every_third_time(*args: object) -> float | None:
        if len(fired) % 3 == 0:
            fired.append("evaluation")
            raise torch.OutOfMemoryError("CUDA out of memory")
        fired.append("fine")
        return real(*args)

    def fail(*args: object, **kwargs: object) -> None:
        fired.append("sample")
        raise MemoryError

    script.continue_texts = fail
    monkeypatch.setattr(evaluation, "evaluate", fail_every_third_time)
    with contextlib.chdir(loud):
        assert script.main(["--config", "tiny.yaml"]) == 0
    assert {"evaluation", "sample"} <= set(fired)
    undisturbed = ending(quiet)
    disturbed = ending(loud)
    assert disturbed["state"]["micro_batch"]["size"] == 8
    for name in ("model_state_dict", "optimizer_state_dict"):
        assert parts.same(disturbed[name], undisturbed[name])


# A real limit

REAL_CASES = [("128", "fp32", 150), pytest.param("auto", "bf16", 260, marks=pytest.mark.slow)]
SLOW_LIMITS = [("fp32", 130), ("fp32", 200), ("fp32", 300), ("bf16", 300)]
for asked in ("128", "auto"):
    for dtype, mib in SLOW_LIMITS:
        REAL_CASES.append(pytest.param(asked, dtype, mib, marks=pytest.mark.slow))


@pytest.mark.cpu("a limit of the process limits its memory")
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits what Linux gives")
@pytest.mark.parametrize(("initial", "precision", "left_mib"), REAL_CASES)
def test_a_run_under_a_real_memory_limit_completes(tmp_path, initial, precision, left_mib):
    """The user has set `ulimit -v`; 128 sequences need about 600 MiB, and `left_mib` are free."""
    harness.write_config(
        tmp_path,
        model={"d_model": 64, "n_layers": 4, "n_head": 4, "d_hid": 256, "max_seq_length": 64},
        training={
            "batch_size": 128,
            "accumulate_grad_batches": 1,
            "max_steps": 3,
            "eval_interval": 3,
            "mixed_precision": precision == "bf16",
            "precision_dtype": "bf16",
            "sample_interval_steps": None,
            "gradient_checkpointing": False,
            "dynamic_batch_size": {"enabled": True, "memory_headroom": 0.0},
        },
    )
    (tmp_path / "text.txt").write_text(harness.make_text(30_000), encoding="utf-8")
    one_thread = {"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    limit = (import_size_kib(one_thread) + left_mib * 1024) * 1024
    override = f"training.dynamic_batch_size.initial={initial}"
    done = subprocess.run(
        [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml", "--set", override],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | one_thread,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
    micro_batch = harness.load(harness.checkpoints(tmp_path)[3])["state"]["micro_batch"]
    assert micro_batch["history"] or initial == "128"
    if left_mib < 200:
        assert micro_batch["size"] < 128
        if initial == "128":
            assert (128, 64) in changes(tmp_path, reason="oom", step=0)


def import_size_kib(environment: dict[str, str]) -> int:
    """Return the address space of a process with all imports of a run."""
    program = harness.ROOT / "tests" / "import_size.py"
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(harness.ROOT) | environment,
    )
    return int(done.stdout)
