"""Rules for all tests: temporary folders, one thread, and the device that was asked for."""

import gc
import os
from pathlib import Path

import pytest
import torch
from chosen_device import DEFAULT, KINDS, device_name, missing_device, use_device
from hypothesis import settings
from log_handlers import take_log_down
from platformdirs import user_cache_dir
from windows_rules import needs_unix

from chatgot.machine import contention
from chatgot.machine.measured import machine_file, remember
from chatgot.numerics.compile_cost import ANY_SHAPE

# The same examples each time: what passed stays passed. --hypothesis-profile=default draws others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the device before the modules of tests are imported; refuse one that is missing."""
    name = config.getoption("--device")
    reason = missing_device(name)
    if reason:
        raise pytest.UsageError(reason)
    use_device(name)


def pytest_report_header() -> list[str]:
    header = []
    if device_name() != DEFAULT:
        header.append(f"device: {device_name()}; claims about the CPU are skipped")
    if os.name == "nt":
        header.append("Windows: modules of tests that need Unix are left out (windows_rules.py)")
    return header


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the claims about the CPU where another device was asked for."""
    name = device_name()
    if name == DEFAULT:
        return
    for item in items:
        mark = item.get_closest_marker("cpu")
        if mark is not None:
            (claim,) = mark.args
            reason = f"a claim about the CPU ({claim}), and the device is {name}"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what cannot be imported on Windows; what else fails there shall be seen."""
    return True if os.name == "nt" and needs_unix(collection_path) else None


def pytest_collection_finish() -> None:
    """Leave the millions of objects that collecting the tests has made out of later collections.

    Training collects garbage before it measures memory, which took half a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def caches_in_a_temporary_folder(tmp_path_factory):
    """Send this machine's measurements (machine.json) into a folder that the tests own.

    matplotlib keeps its list of fonts where it is: making one takes seconds.
    """
    folder = tmp_path_factory.mktemp("user-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or user_cache_dir("matplotlib"))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def dear_compiling(caches_in_a_temporary_folder):
    """Compiling a block takes a minute here: `compile: auto` compiles no tiny model by chance.

    Otherwise a stand-in for torch.compile would tell all later tests that it takes no time.
    """
    remember(ANY_SHAPE, [60.0])


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Compute with one thread: on matrices this small, two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def quiet_machine():
    """Nobody tells how long threads wait for a core: tests do the same beside other programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contention, "delays", dict)
        yield


@pytest.fixture(autouse=True)
def untouched_log():
    """Take down the log that an earlier run of the script has set up in this process."""
    take_log_down()
    yield
    take_log_down()


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """The path of machine.json, in a cache folder that only this test uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if tmp_path not in machine_file().parents:
        pytest.skip("this system ignores XDG_CACHE_HOME")
    return machine_file()


def pytest_addoption(parser):
    parser.addoption(
        "--faults",
        choices=("short", "ci", "long"),
        default="short",
        help="how many trials tests/faults makes",
    )
    parser.addoption(
        "--device",
        choices=KINDS,
        default=DEFAULT,
        help="what the runs of the tests compute on; claims about the CPU are skipped elsewhere",
    )
