"""Speeds of this machine are measured once and kept: threads, and the peak FLOPS behind MFU."""

import json
import logging
import os
import pwd
import sys

import parts
import pytest
import torch

from chatgot.machine import contention
from chatgot.machine import measured as machine_module
from chatgot.machine.measured import (
    COMPILED,
    ThreadChoice,
    best_time,
    cache_folder,
    cpu_name,
    fast_threads,
    keep_compiled_code,
    machine_file,
    peak_for_mfu,
    product_peak,
    remembered,
)
from chatgot.run import assembly, modes
from chatgot.training.log_lines import curves, model_flops_utilisation, step_line


def never() -> list[float]:
    raise AssertionError("this is known already")


# Stored measurements


def test_numbers_are_measured_once_and_kept_with_the_others(machine):
    assert remembered("a", lambda: [1, 2.5]) == [1.0, 2.5]
    assert remembered("b", lambda: [3.0]) == [3.0]
    assert remembered("a", never) == [1.0, 2.5]
    known = json.loads(machine.read_bytes())
    assert sorted(known.values()) == [[1.0, 2.5], [3.0]]
    for key in known:
        assert cpu_name() in key
        assert torch.__version__ in key


def test_what_was_measured_beside_others_counts_until_it_is_quiet(machine, monkeypatch):
    def measured(number: float, waited_s: float) -> float:
        readings = iter([{"1": 0.0}, {"1": waited_s}])
        monkeypatch.setattr(contention, "delays", lambda: next(readings))
        return remembered("a", lambda: [number])[0]

    assert measured(1.0, 60.0) == 1.0
    assert measured(2.0, 60.0) == 1.0  # still not quiet: every run makes the same choice
    assert measured(3.0, 0.0) == 3.0
    assert measured(4.0, 60.0) == 3.0


def test_another_cpu_or_torch_is_measured_anew(machine, monkeypatch):
    remembered("a", lambda: [1.0])
    monkeypatch.setattr(machine_module, "cpu_name", lambda: "another")
    assert remembered("a", lambda: [2.0]) == [2.0]
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert remembered("a", lambda: [3.0]) == [3.0]
    assert len(json.loads(machine.read_bytes())) == 3


def test_a_failed_measurement_is_not_stored(machine):
    with pytest.raises(ZeroDivisionError):
        remembered("a", lambda: [1 / 0])
    assert not machine.exists()


def test_an_unwritable_folder_costs_one_warning(machine, caplog):
    machine.parent.parent.mkdir(parents=True)
    machine.parent.write_bytes(b"a file in the folder's place")
    assert remembered("a", lambda: [1.0]) == [1.0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(machine) in caplog.text


@pytest.fixture
def without_home(monkeypatch):
    """Be a user as in some containers: no HOME, and no entry in the list of users."""

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    machine_module._warn_once.cache_clear()
    yield
    machine_module._warn_once.cache_clear()


@pytest.mark.usefixtures("without_home")
def test_a_user_without_a_home_gets_one_warning_and_measures_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert remembered("a", lambda: [1.0]) == [1.0]
    assert remembered("a", lambda: [2.0]) == [2.0]
    assert cache_folder() is None
    assert machine_file() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "home" in caplog.text
    assert list(tmp_path.iterdir()) == []  # not even a folder named ~


@pytest.fixture
def no_folder_set(monkeypatch):
    for name in (COMPILED, "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    machine_module._warn_once.cache_clear()


@pytest.mark.usefixtures("no_folder_set")
@pytest.mark.parametrize("by_user", [False, True], ids=["cache", "set by the user"])
def test_compiled_code_is_not_kept_where_nothing_can_be_written(
    tmp_path, monkeypatch, caplog, by_user
):
    """torch.compile ends the run if its folder cannot be made."""
    (tmp_path / "file").write_bytes(b"")
    if by_user:
        monkeypatch.setenv(COMPILED, str(tmp_path / "file"))
    else:
        monkeypatch.setattr(machine_module, "user_cache_path", lambda _: tmp_path / "file" / "x")
    keep_compiled_code()
    assert COMPILED not in os.environ
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path / "file") in caplog.text


@pytest.mark.usefixtures("no_folder_set")
def test_compiled_code_is_kept_in_the_cache_or_where_the_user_says(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(machine_module, "user_cache_path", lambda _: tmp_path / "cache")
    keep_compiled_code()
    assert os.environ[COMPILED] == str(tmp_path / "cache" / "compiled")
    monkeypatch.setenv(COMPILED, str(tmp_path / "mine"))
    keep_compiled_code()
    assert os.environ[COMPILED] == str(tmp_path / "mine")
    assert caplog.records == []


@pytest.mark.skipif(sys.platform != "linux", reason="the standard is that of Linux desktops")
def test_a_relative_cache_home_is_ignored_as_the_standard_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "caches/mine")
    assert cache_folder() == tmp_path / "home" / ".cache" / "chatgot"


def test_the_measurements_are_in_the_cache_folder(machine):
    assert cache_folder() == machine.parent


def test_the_best_time_leaves_the_first_call_out(monkeypatch):
    clock = iter([0, 1, 10, 40, 50, 70, 100, 125])  # calls of 1, 30, 20 and 25 s
    monkeypatch.setattr(machine_module.time, "perf_counter", lambda: next(clock))
    calls = []
    assert best_time(lambda: calls.append(1), repeats=3) == 20
    assert len(calls) == 4


# Threads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("all_s", "half_s", "threads"), [(1.2, 1.0, 2), (1.05, 1.0, 4), (0.6, 1.0, 4)]
)
def test_half_of_the_threads_are_used_where_they_are_clearly_faster(
    all_s, half_s, threads, machine, monkeypatch
):
    tried = []

    def times_of(ways, rounds):
        for way in ways:
            way()
            tried.append(torch.get_num_threads())
        return [all_s, half_s]

    monkeypatch.setattr(machine_module, "best_times", times_of)
    assert fast_threads(16).threads == threads
    assert tried == [4, 2]
    assert torch.get_num_threads() == 4
    assert fast_threads(16).threads == threads
    assert len(tried) == 2  # the second call measures nothing


@pytest.mark.usefixtures("four_threads")
def test_a_failed_measurement_of_threads_keeps_their_number(machine, monkeypatch):
    monkeypatch.setattr(machine_module, "best_times", lambda ways, rounds: [ways[1](), 1 / 0])
    with pytest.raises(ZeroDivisionError):
        fast_threads(16)
    assert torch.get_num_threads() == 4


def test_a_single_thread_is_not_measured(machine):
    assert torch.get_num_threads() == 1
    assert fast_threads(16).threads == 1
    assert not machine.exists()


@pytest.mark.cpu("its threads are measured")
@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("asked", "threads"), [(None, 2), (3, 3)])
def test_a_run_uses_measured_threads_unless_user_or_checkpoint_say_other(
    asked, threads, machine, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stored = parts.run(training={"threads": 1}).checkpoint()
    monkeypatch.setattr(modes, "fast_threads", lambda d_model: ThreadChoice(2, {}))
    assert parts.run(training={"threads": asked}).state.modes.threads == threads
    assert parts.run(stored, training={"threads": asked}).state.modes.threads == 1


# The peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_the_operations_of_a_product_divided_by_its_time(dtype, monkeypatch):
    assert product_peak(parts.CPU, dtype, repeats=1, size=32) > 1e6
    monkeypatch.setattr(machine_module, "best_time", lambda do, repeats: do() or 0.5)
    assert product_peak(parts.CPU, dtype, size=32) == 2 * 32**3 / 0.5


def test_the_peak_of_a_gpu_is_timed_warm_over_several_products(monkeypatch):
    """By a clock that each product takes 0.1 s of."""
    now = [0.0]
    products = []

    def product(a, b, out) -> None:
        products.append(a.dtype)
        now[0] += 0.1

    monkeypatch.setattr(machine_module, "PEAK_PRODUCTS", {"cpu": 3})
    monkeypatch.setattr(machine_module, "PEAK_WARM_UP_S", {"cpu": 0.4})
    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(machine_module.time, "perf_counter", lambda: now[0])
    flops = product_peak(parts.CPU, torch.bfloat16, repeats=2, size=8)
    # two rounds warm up, then one that best_time leaves out, then two that are timed
    assert products == [torch.bfloat16] * 3 * 5
    assert flops == pytest.approx(2 * 8**3 / 0.1)


@pytest.mark.parametrize(("has_bf16", "name"), [(True, "bf16"), (False, "fp16")])
def test_the_peak_of_a_card_is_that_of_its_fastest_type(has_bf16, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(machine_module, "product_peak", lambda device, dtype: 7.0)
    assert peak_for_mfu(torch.device("cuda")) == (7.0, name)


@pytest.mark.parametrize(
    ("gain", "dtype", "name"), [(0.5, torch.float32, "fp32"), (2.0, torch.bfloat16, "bf16")]
)
def test_the_peak_is_that_of_fp32_where_bf16_is_slow(gain, dtype, name, monkeypatch):
    monkeypatch.setattr(machine_module, "bf16_gain", lambda *shape: gain)
    monkeypatch.setattr(machine_module, "product_peak", lambda device, dtype: {dtype: 7.0})
    assert peak_for_mfu(parts.CPU) == ({dtype: 7.0}, name)


def measured_peak() -> float | None:
    """Return the peak of a new run, which a CPU measures when the run asks for it."""
    run = parts.run()
    assert run.peak_flops is None
    for _ in range(2):  # once is enough
        run.measure_peak()
    return run.peak_flops


def test_the_peak_is_measured_for_larger_models_but_not_tiny_ones(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(assembly, "peak_for_mfu", lambda device: never())
    assert measured_peak() == 0
    monkeypatch.setattr(assembly, "peak_for_mfu", lambda device: (3e9, "bf16"))
    per_step = (
        parts.config().training.tokens_per_step(parts.config().model)
        * parts.run().model.flops_per_token()
    )
    for limit, peak in ((per_step, 3e9), (per_step + 1, 0)):
        monkeypatch.setattr(assembly, "SMALLEST_STEP_FLOPS", limit)
        assert measured_peak() == peak
    assert [line for line in caplog.messages if "peak" in line] == [
        "peak: bf16 matrix products reach 3 GFLOP/s on this machine; MFU is relative to that"
    ]


def test_without_memory_for_the_peak_training_goes_on_without_mfu(monkeypatch, caplog):
    def fail(device: torch.device) -> None:
        raise MemoryError

    monkeypatch.setattr(assembly, "peak_for_mfu", fail)
    monkeypatch.setattr(assembly, "SMALLEST_STEP_FLOPS", 1)
    assert measured_peak() == 0
    assert caplog.messages == ["no memory to measure the peak of matrix products: MFU is not shown"]


def test_mfu_is_the_same_share_of_the_peak_in_the_log_and_the_curves():
    state = parts.run()
    state.state.progress.train_loss = 1.0
    state.state.progress.lr = 1e-3
    state.state.progress.grad_norm = 1.0
    state.state.progress.tokens_per_s = 500.0
    state.peak_flops = 4 * 500.0 * state.model.flops_per_token()
    assert model_flops_utilisation(state) == pytest.approx(0.25)
    assert " | MFU 25% | " in step_line(state)
    assert curves(state)["perf/mfu"] == pytest.approx(0.25)


@pytest.mark.parametrize(("peak", "speed"), [(0.0, 500.0), (1e9, None)])
def test_mfu_is_left_out_where_peak_or_speed_is_unknown(peak, speed):
    state = parts.run()
    state.state.progress.train_loss = 1.0
    state.state.progress.lr = 1e-3
    state.state.progress.grad_norm = 1.0
    state.peak_flops = peak
    state.state.progress.tokens_per_s = speed
    assert model_flops_utilisation(state) is None
    assert "MFU" not in step_line(state)
    assert "perf/mfu" not in curves(state)
