"""Fixtures of the fault trials: their number, servers that fork the script, reference, table."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fault_trials
import harness
import pytest
from fault_server import FaultServer

TABLE = pytest.StashKey[fault_trials.Table]()
LEVELS = ("short", "ci", "long")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = fault_trials.Table()
    config.addinivalue_line(
        "markers",
        "telling(*circumstances): where saves are in the background, a test is made in these "
        "of its circumstances alone, except for the level long",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the level long what has been tried with the other way of saving already."""
    if config.getoption("--faults") == "long":
        return
    left_out = [item for item in items if only_in_long(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def only_in_long(item: pytest.Item) -> bool:
    """Return whether a test saves in the background, in none of the circumstances it has named."""
    mark = item.get_closest_marker("telling")
    if mark is None:
        return False
    parameters = item.callspec.params
    if not parameters["background"]:
        return False
    return not any(case.items() <= parameters.items() for case in mark.args)


@pytest.fixture(scope="session")
def trials(request: pytest.FixtureRequest) -> Callable[..., int]:
    """Return a function that picks the number of trials from those for short, ci and long."""
    level = LEVELS.index(request.config.getoption("--faults"))
    return lambda *numbers: numbers[level]


@pytest.fixture(autouse=True)
def _half_of_the_group_trials_in_ci(request: pytest.FixtureRequest, trials: Any) -> None:
    """Leave every second circumstance of a group's trial to the level long: each takes seconds."""
    circumstances = getattr(request.node, "callspec", None)
    if circumstances is None or not request.path.name.startswith("test_ranks"):
        return
    if sum(circumstances.indices.values()) % trials(2, 2, 1):
        pytest.skip("level long has it")


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> fault_trials.Table:
    return request.config.stash[TABLE]


@pytest.fixture(scope="session")
def servers() -> Iterator[list[FaultServer]]:
    both = [FaultServer(), FaultServer()]
    yield both
    for server in both:
        server.close()


@pytest.fixture
def server(servers: list[FaultServer]) -> FaultServer:
    return servers[0]


@pytest.fixture(scope="session")
def side_by_side(servers: list[FaultServer]) -> Callable[[Callable, list], list]:
    """Return a map that runs `do(server, item)` for each trial, on two servers at once."""
    free = list(servers)
    lock = threading.Lock()

    def with_server(do: Callable, item: object) -> object:
        with lock:
            server = free.pop()
        try:
            return do(server, item)
        finally:
            free.append(server)

    def run(do: Callable, items: list) -> list:
        with ThreadPoolExecutor(len(servers)) as pool:
            return list(pool.map(lambda item: with_server(do, item), items))

    return run


@pytest.fixture(scope="session")
def reference(
    servers: list[FaultServer], tmp_path_factory: pytest.TempPathFactory
) -> fault_trials.Reference:
    """The undisturbed run of the default tiny configuration."""
    return fault_trials.undisturbed(servers[0], tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def taught(
    servers: list[FaultServer], tmp_path_factory: pytest.TempPathFactory
) -> fault_trials.Distillation:
    """The undisturbed student of three teachers."""
    return fault_trials.distillation(servers[0], tmp_path_factory.mktemp("distillation"))


@pytest.fixture
def background() -> bool:
    """Return whether checkpoints are written beside the next steps; a test may parametrize it.

    The undisturbed run never does that: both ways must end in its bits.
    """
    return False


@pytest.fixture
def trial_folder(
    reference: fault_trials.Reference, tmp_path: Path, background: bool
) -> Callable[..., Path]:
    """Return a function that makes folders, each ready for a run like the reference."""
    way = {"training": {"background_saves": True}} if background else {}

    def make(name: str, **changes: Any) -> Path:
        return fault_trials.new_folder(tmp_path, name, **harness.merged(way, changes))

    return make


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash[TABLE].rows
    if not rows:
        return
    width = max(map(len, rows))
    terminalreporter.section(f"faults ({config.getoption('--faults')})")
    terminalreporter.write_line(f"| {'fault':{width}} | trials |  hits | lost |")
    terminalreporter.write_line(f"|{'-' * (width + 2)}|-------:|------:|-----:|")
    for fault, (count, hits, lost) in rows.items():
        terminalreporter.write_line(f"| {fault:{width}} | {count:6,} | {hits:5,} | {lost:4} |")
