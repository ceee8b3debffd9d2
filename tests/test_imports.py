"""The import contracts in pyproject.toml are kept, and each of them notices a planted import."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import harness
import pytest

PACKAGES = ("chatgot", "scripts", "benchmarks")
WINGS = "The wings: each leans only on those below it"
WITHOUT_TORCH = "Report, log fixer and the ground floor never reach torch"
LINT_IMPORTS = str(Path(sys.executable).with_name("lint-imports"))
IMPORT_EACH = str(harness.ROOT / "tests" / "programs" / "import_each.py")


def contracts() -> dict[str, dict]:
    settings = tomllib.loads((harness.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        contract["name"]: contract for contract in settings["tool"]["importlinter"]["contracts"]
    }


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that finds the packages in `folder`; its output is text."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with a copy of all packages in the contracts."""
    for package in PACKAGES:
        shutil.copytree(
            harness.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(harness.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(copy: Path, module: str, line: str) -> None:
    """Add one line to a module of the copy."""
    with (copy / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")


def test_every_import_contract_is_kept(copy):
    checked = run(copy, LINT_IMPORTS)
    assert checked.returncode == 0, checked.stdout
    for name in (WINGS, WITHOUT_TORCH):
        assert f"{name} KEPT" in " ".join(checked.stdout.split())


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("chatgot/data/encoding.py", "import chatgot.run.assembly", WINGS),
        ("chatgot/model/gpt.py", "import chatgot.checkpointing.names", WINGS),
        ("chatgot/report/charts.py", "import torch", WITHOUT_TORCH),
        ("chatgot/log_fixer/cleaning.py", "def later() -> None:\n    import torch", WITHOUT_TORCH),
    ],
)
def test_a_planted_import_breaks_its_contract(copy, module, line, broken):
    plant(copy, module, line)
    checked = run(copy, LINT_IMPORTS)
    assert checked.returncode == 1
    assert f"{broken} BROKEN" in " ".join(checked.stdout.split())


def test_every_module_of_the_package_is_in_a_layer():
    """A wing outside all layers could import anything."""
    layers = {name.strip() for line in contracts()[WINGS]["layers"] for name in line.split("|")}
    folder = harness.ROOT / "chatgot"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in folder.glob("*/__init__.py")}
    assert layers == {f"chatgot.{name}" for name in modules} | {"scripts", "benchmarks"}


def test_report_log_fixer_and_ground_floor_load_no_torch(copy):
    names = contracts()[WITHOUT_TORCH]["source_modules"]
    checked = run(copy, sys.executable, IMPORT_EACH, *names)
    assert checked.returncode == 0, checked.stderr
    plant(copy, "chatgot/report/charts.py", "import torch")
    checked = run(copy, sys.executable, IMPORT_EACH, *names)
    assert "chatgot.report.charts imports torch" in checked.stderr


def test_each_wings_init_file_is_one_docstring_of_one_line():
    for path in sorted((harness.ROOT / "chatgot").glob("*/__init__.py")):
        (line,) = path.read_text(encoding="utf-8").splitlines()
        assert line.startswith('"""'), path
        assert line.endswith('"""'), path
        assert line.count('"""') == 2, path
