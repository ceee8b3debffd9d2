"""Device, precision and threads follow the configuration, the machine and its measurements."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import parts
import pytest
import torch

from chatgot.errors import ConfigError
from chatgot.machine.device import describe, pick_device, seed_generators, set_threads, versions
from chatgot.machine.measured import bf16_gain, cpu_name
from chatgot.numerics.precision import pick_precision

# The device


def test_auto_takes_a_device_that_is_there_and_a_missing_one_is_refused():
    has_cuda = torch.cuda.is_available()
    has_mps = torch.backends.mps.is_available()
    assert pick_device("auto").type == ("cuda" if has_cuda else "mps" if has_mps else "cpu")
    assert pick_device("cpu") == parts.CPU
    for name, found in (("cuda", has_cuda), ("mps", has_mps)):
        if found:
            assert pick_device(name).type == name
        else:
            with pytest.raises(
                ConfigError, match=f"{name} is not available on this machine, found .*cpu"
            ):
                pick_device(name)


def test_the_description_names_kind_cores_and_threads():
    line = describe(parts.CPU)
    assert line.startswith("cpu (")
    assert f"{torch.get_num_threads()} threads" in line
    assert "\n" not in line
    assert list(versions())[:3] == ["python", "torch", "numpy"]
    assert versions()["cpu"] == torch.backends.cpu.get_cpu_capability()
    assert all(
        type(version) is str for version in versions().values()
    )  # plain strings: checkpoints contain them


# Threads


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_as_before")
def test_a_number_of_threads_is_set_and_none_keeps_the_present_number():
    for number in (2, 3, 1):
        assert set_threads(number) == number
        assert torch.get_num_threads() == number
    assert set_threads(None) == 1
    assert torch.get_num_threads() == 1


def stored_with(threads: int) -> dict:
    state = parts.run()
    state.state.modes.threads = threads
    return state.checkpoint()


@pytest.mark.usefixtures("threads_as_before")
@pytest.mark.parametrize(
    ("key", "variable", "stored", "expected"),
    [
        (3, None, None, 3),
        (3, "2", None, 3),
        (None, "2", None, 2),
        (None, "1", None, 1),
        (3, None, 2, 2),
        (None, "3", 2, 2),
        (None, None, 2, 2),
        (2, "3", 2, 2),
    ],
)
def test_a_key_beats_the_variable_and_a_checkpoint_beats_both(
    key, variable, stored, expected, monkeypatch, caplog
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    content = stored_with(stored) if stored else None
    caplog.clear()
    state = parts.run(content, training={"threads": key})
    assert state.state.modes.threads == torch.get_num_threads() == expected
    wanted = key or (variable and int(variable))
    assert ("threads as in the checkpoint" in caplog.text) is (
        stored is not None and wanted not in (None, stored)
    )


# Randomness


def test_the_generators_seed_depends_only_on_the_numbers_of_the_key():
    draws = {}
    for seed in (0, 5, 2**63 - 1):
        for position in (0, 1, 70_000):
            for first in (0, 1, 511):
                torch.manual_seed(1)
                np.random.seed(1)
                seed_generators(parts.CPU, seed, position, first)
                draws[seed, position, first] = tuple(torch.rand(4).tolist())
    assert len(set(draws.values())) == len(draws)
    seed_generators(parts.CPU, 5, 1, 511)
    assert tuple(torch.rand(4).tolist()) == draws[5, 1, 511]


def test_the_seed_of_a_key_is_the_same_in_all_processes_and_versions():
    seed_generators(parts.CPU, 1337, 10, 4)
    assert (
        torch.initial_seed() == 8920291508623780104
    )  # must never change: older checkpoints resume with these seeds


# Precision, and the measurements of this machine


def mixed(**keys):
    return parts.config(training={"mixed_precision": True, **keys})


def remember(machine: Path, gain: float) -> None:
    """Write a measurement for the shape of parts.config as if this machine had made it."""
    bf16_gain(16, 24)
    values = json.loads(machine.read_bytes())
    machine.write_text(json.dumps({key: [gain] for key in values}))


def test_the_speed_of_bf16_is_measured_once_per_machine_shape_and_version(machine, monkeypatch):
    gain = bf16_gain(16, 24)
    assert gain > 0
    (key,) = json.loads(machine.read_bytes())
    for word in (cpu_name(), torch.__version__, "16x24", "bf16"):
        assert word in key
    monkeypatch.setattr(torch, "mm", None)  # measuring again would fail
    assert bf16_gain(16, 24) == gain
    monkeypatch.undo()


def test_measurements_of_several_shapes_are_all_kept(machine):
    first = bf16_gain(16, 24)
    second = bf16_gain(8, 24)
    assert sorted(json.loads(machine.read_bytes()).values()) == sorted([[first], [second]])
    assert (bf16_gain(16, 24), bf16_gain(8, 24)) == (first, second)


@pytest.mark.parametrize(
    ("gain", "precision"), [(0.01, "fp32"), (0.99, "fp32"), (1.5, "bf16"), (30.0, "bf16")]
)
def test_auto_on_a_cpu_is_bf16_where_it_is_fast_and_logs_that_once(
    machine, gain, precision, caplog
):
    caplog.set_level(logging.INFO)
    remember(machine, gain)
    assert pick_precision(mixed(), parts.CPU) == precision
    assert len(caplog.records) == 1
    assert (caplog.records[0].levelname == "WARNING") is (precision == "fp32")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}'])
def test_a_damaged_file_of_measurements_is_measured_anew(machine, content):
    machine.parent.mkdir(parents=True)
    machine.write_bytes(content)
    gain = bf16_gain(16, 24)
    assert [gain] in json.loads(machine.read_bytes()).values()


@pytest.mark.parametrize(
    "value", ['"fast"', "null", "1.0", "[]", '["fast"]', "[true]", "{}", "true"]
)
def test_a_stored_value_that_is_not_a_measurement_is_measured_anew(machine, value):
    bf16_gain(16, 24)
    (key,) = json.loads(machine.read_bytes())
    machine.write_text(f"{{{json.dumps(key)}: {value}}}")
    assert bf16_gain(16, 24) > 0
    assert json.loads(machine.read_bytes())[key][0] > 0


def test_an_unwritable_cache_folder_costs_only_a_warning(machine, caplog):
    machine.parent.parent.mkdir()
    machine.parent.write_bytes(b"a file in the folder's place")
    assert bf16_gain(16, 24) > 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_measuring_does_not_touch_the_global_generator(machine):
    before = torch.get_rng_state()
    bf16_gain(16, 24)
    assert torch.equal(torch.get_rng_state(), before)


def test_precision_is_fp32_unmeasured_when_mixed_precision_is_off(machine):
    assert pick_precision(parts.config(), parts.CPU) == "fp32"
    assert not machine.exists()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_named_precision_is_not_measured_and_fp16_on_a_cpu_warns(machine, dtype, caplog):
    assert pick_precision(mixed(precision_dtype=dtype), parts.CPU) == dtype
    assert not machine.exists()
    assert [("1000 times" in record.message) for record in caplog.records] == [True] * (
        dtype == "fp16"
    )


@pytest.mark.cpu("whether bf16 is fast is measured")
def test_a_resumed_run_keeps_its_precision_despite_new_measurements(machine):
    remember(machine, 30.0)
    keys = {"training": {"mixed_precision": True}}
    stored = parts.run(**keys).checkpoint()
    assert stored["state"]["modes"]["precision"] == "bf16"
    remember(machine, 0.01)
    assert parts.run(**keys).state.modes.precision == "fp32"
    assert parts.run(stored, **keys).state.modes.precision == "bf16"


def test_no_test_uses_the_users_own_cache():
    assert Path(os.environ["XDG_CACHE_HOME"]).name.startswith("user-cache")
