"""Rules for all tests: they write only into temporary folders, and compute with one thread."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from log_handlers import take_log_down
from windows_rules import needs_unix

from chatgot.machine.measured import machine_file

# The same examples each time: what passed stays passed. --hypothesis-profile=default draws others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_report_header() -> str | None:
    if os.name == "nt":
        return "Windows: the modules of tests that need Unix are left out (tests/windows_rules.py)"
    return None


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
    """Send this machine's measurements (machine.json) into a folder that the tests own."""
    folder = tmp_path_factory.mktemp("user-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Compute with one thread: on matrices this small, two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
