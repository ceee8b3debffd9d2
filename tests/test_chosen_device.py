"""`pytest --device`: it reaches each run that a test starts, and a missing device is refused."""

import os
from pathlib import Path
from types import ModuleType

import child_environment
import chosen_device
import harness
import pytest

TESTS = harness.ROOT / "tests"


@pytest.fixture
def rules(request: pytest.FixtureRequest) -> ModuleType:
    """Return the conftest of all tests."""
    plugins = request.config.pluginmanager.get_plugins()
    (found,) = [p for p in plugins if getattr(p, "__file__", "") == str(TESTS / "conftest.py")]
    return found


def test_device_that_torch_lacks_is_a_usage_error_of_one_line(rules, monkeypatch, request):
    """pytest ends with exit code 4 then, before it collects anything."""
    monkeypatch.setattr(request.config.option, "device", chosen_device.ABSENT)
    with pytest.raises(pytest.UsageError) as raised:
        rules.pytest_configure(request.config)
    (line,) = raised.value.args
    assert line.startswith(f"--device {chosen_device.ABSENT}: torch ")
    assert "\n" not in line


def test_tests_compute_on_the_cpu_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv(chosen_device.VARIABLE, raising=False)
    assert harness.load_script(TESTS / "harness.py").TINY["device"] == "cpu"
    monkeypatch.setenv(chosen_device.VARIABLE, "cuda")
    chosen_device.use_device("cpu")
    assert chosen_device.device_name() == "cpu"


def test_device_reaches_scripts_and_runs_inside_tests(tmp_path, monkeypatch):
    """No such device is needed: what the helpers ask for is looked at."""
    monkeypatch.setenv(chosen_device.VARIABLE, "mps")
    fresh = {name: harness.load_script(TESTS / f"{name}.py") for name in ("harness", "parts")}
    assert "device: mps\n" in fresh["harness"].write_config(tmp_path).read_text()
    parts = fresh["parts"]
    assert parts.config().device == "mps"
    asked = []

    def assemble(config, tokens, device, stored):
        asked.append((config.device, device.type))
        raise NotImplementedError

    monkeypatch.setattr(parts, "assemble", assemble)
    with pytest.raises(NotImplementedError):
        parts.run()
    assert asked == [("mps", "mps")]
    assert "device=mps" in harness.load_script(TESTS / "starts.py").QUICK


class Item:
    """A collected test, as far as the rules look at it."""

    def __init__(self, mark: pytest.Mark | None) -> None:
        self.mark = mark
        self.added: list[pytest.MarkDecorator] = []

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self.mark if name == "cpu" else None

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.added.append(marker)


@pytest.mark.parametrize(("device", "skips"), [("cpu", 0), ("cuda", 1)])
def test_claims_about_the_cpu_are_skipped_on_other_devices(rules, device, skips, monkeypatch):
    monkeypatch.setenv(chosen_device.VARIABLE, device)
    claim = Item(pytest.mark.cpu("its threads are measured").mark)
    other = Item(None)
    rules.pytest_collection_modifyitems([claim, other])
    assert len(claim.added) == skips
    assert other.added == []
    if skips:
        assert "its threads are measured" in claim.added[0].kwargs["reason"]


# The environment of children


@pytest.mark.parametrize("before", [None, "/opt/site"])
def test_children_keep_what_pythonpath_names(before, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before)
    asked = child_environment.child_environment(Path("/a"), Path("/b"), TERM="xterm")
    expected = ["/a", "/b", *([] if before is None else [before])]
    assert asked["PYTHONPATH"].split(os.pathsep) == expected
    assert asked["TERM"] == "xterm"
    assert child_environment.child_environment().get("PYTHONPATH") == before


def test_no_test_sets_pythonpath_by_itself():
    """The packages of a machine may be on it: child_environment keeps them."""
    own = {TESTS / "child_environment.py", Path(__file__)}
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py")}
    setting = ('"PYTHONPATH":', "PYTHONPATH=str(", "PYTHONPATH=f")
    guilty = [path for path, text in texts.items() if any(word in text for word in setting)]
    assert set(guilty) - own == set()
