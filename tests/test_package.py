"""What is installed: the wheel's files, the version, and the packages that it needs."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import harness
import pytest
import yaml
from child_environment import child_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import chatgot
from chatgot.__main__ import VERBS
from chatgot.shipped import recipes_folder, scripts_folder

ROOT = harness.ROOT
# What is imported under another name than its package has
PACKAGE_OF = {
    "yaml": "pyyaml",
    "PIL": "pillow",
    "prompt_toolkit": "prompt-toolkit",
    "bs4": "beautifulsoup4",
    "docx": "python-docx",
}
OPTIONAL = {"pypdf"}  # an extra
OURS = {"chatgot", "scripts", "benchmarks"}
# The one script that is not installed: it measures a checkout, and imports benchmarks/
NOT_SHIPPED = {"__init__", "benchmark"}


@cache
def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared() -> dict[str, Requirement]:
    """Return the dependencies of pyproject.toml by their names."""
    requirements = map(Requirement, settings()["project"]["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pinned(name: str = "requirements.txt") -> dict[str, Requirement]:
    """Return what a file of requirements names."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    words = [line.partition("#")[0].strip() for line in lines]
    requirements = [Requirement(word) for word in words if word and not word.startswith("-")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def shipped_files() -> dict[str, Path]:
    """Return what a wheel has to hold: its path there, and the file of the checkout."""
    files = {
        path.relative_to(ROOT).as_posix(): path
        for path in (ROOT / "chatgot").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for script in (ROOT / "scripts").glob("*.py"):
        if script.stem not in NOT_SHIPPED:
            files[f"chatgot/scripts/{script.name}"] = script
    for recipe in (ROOT / "configs").rglob("*.yaml"):
        files[f"chatgot/{recipe.relative_to(ROOT).as_posix()}"] = recipe
    return files


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """Return a folder that looks as an unpacked wheel does."""
    folder = tmp_path_factory.mktemp("site packages")
    for name, path in shipped_files().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


def run(
    folder: Path, *command: str, modules: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`; its environment is what is given, and what Windows insists on.

    modules: the folder where it looks for modules first.
    """
    ours = child_environment(*([] if modules is None else [modules]))
    kept = {name: ours[name] for name in ("SYSTEMROOT", "PYTHONPATH") if name in ours}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment | kept,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


# --------------------------------------------------------------------------------------------------
# The wheel


def test_each_script_and_each_yaml_has_its_place_in_the_wheel():
    """The table in pyproject.toml is what the build goes by: here is that it forgets nothing."""
    table = settings()["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    included = {}
    for source, target in table.items():
        path = ROOT / source
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        assert files, source
        included |= {(Path(target) / file.relative_to(path)).as_posix(): file for file in files}
    package = ROOT / "chatgot"
    outside = {
        name: path for name, path in shipped_files().items() if not path.is_relative_to(package)
    }
    assert included == outside


def test_every_verb_is_a_script_that_is_shipped():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert {script for script, _ in VERBS.values()} == scripts - NOT_SHIPPED


def test_checkout_has_one_copy_of_scripts_and_recipes():
    assert scripts_folder() == ROOT / "scripts"
    assert recipes_folder() == ROOT / "configs" / "models"
    assert not (ROOT / "chatgot" / "scripts").exists()
    assert not (ROOT / "chatgot" / "configs").exists()


def test_installed_package_finds_its_own_scripts_and_recipes(unpacked):
    code = (
        "from chatgot.shipped import recipes_folder, scripts_folder; "
        "print(scripts_folder()); print(recipes_folder())"
    )
    asked = run(unpacked, sys.executable, "-c", code)
    package = unpacked / "chatgot"
    assert asked.stdout.splitlines() == [
        str(package / "scripts"),
        str(package / "configs" / "models"),
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_script_inside_a_wheel_leaves_the_search_path_alone(unpacked, tmp_path, verb):
    """Its parent is the package: on the path, chatgot/logs would be a module called `logs`."""
    program = (
        "import runpy, sys; before = list(sys.path)\n"
        "try:\n    runpy.run_module('chatgot', run_name='__main__')\n"
        "except SystemExit:\n    print(sys.path == before, sys.modules['chatgot'].__file__)"
    )
    code = f"import sys; sys.argv[1:] = [{verb!r}, '--help']\n{program}"
    asked = run(tmp_path, sys.executable, "-P", "-c", code, modules=unpacked)
    found = unpacked / "chatgot" / "__init__.py"
    assert asked.stdout.splitlines()[-1] == f"True {found}", asked.stderr
    script = f"{VERBS[verb][0]}.py"
    (unpacked / "chatgot" / "chatgot").mkdir()  # the mutant: taken for a checkout
    try:
        asked = run(tmp_path, sys.executable, "-P", "-c", code, modules=unpacked)
        assert asked.stdout.splitlines()[-1].startswith("False "), script
    finally:
        (unpacked / "chatgot" / "chatgot").rmdir()


def test_script_of_a_checkout_uses_it_before_an_installed_package(unpacked, tmp_path):
    script = ROOT / "scripts" / "report.py"
    code = (
        f"import runpy, sys; sys.argv = [{str(script)!r}, '--help']\n"
        f"try:\n    runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit:\n    print(sys.modules['chatgot'].__file__)"
    )
    asked = run(tmp_path, sys.executable, "-P", "-c", code, modules=unpacked)
    assert asked.stdout.splitlines()[-1] == str(ROOT / "chatgot" / "__init__.py")


@pytest.mark.slow
@pytest.mark.network
def test_wheel_and_source_archive_hold_what_is_needed_and_nothing_else(tmp_path):
    """Both builds, straight from the checkout and from the source archive, give the same wheel."""
    pip = (sys.executable, "-m", "pip")
    copy = copy_of_checkout(tmp_path / "checkout")
    code = (
        "from hatchling.build import build_sdist, build_wheel; "
        f"build_sdist({str(tmp_path)!r}); build_wheel({str(tmp_path)!r})"
    )
    tools = tmp_path / "tools"
    backend = settings()["build-system"]["requires"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    installed = subprocess.run(
        [*pip, "install", "--quiet", "--target", str(tools), *backend], timeout=300, check=False
    )
    assert installed.returncode == 0
    build = (sys.executable, "-c", code)
    built = run(copy, *build, modules=tools, **environment)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    expected = {name: path.read_bytes() for name, path in shipped_files().items()}
    assert content_of(wheel) == expected
    wheel.unlink()
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
        files.extractall(tmp_path / "source", filter="data")
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"chatgot", "scripts", "configs"}
    (source,) = (tmp_path / "source").iterdir()
    built = run(source, *build, modules=tools, **environment)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert content_of(wheel) == expected


def copy_of_checkout(folder: Path) -> Path:
    """Copy all files but the large ones, and plant what a used checkout has besides."""
    ignored = shutil.ignore_patterns(".git", ".venv", "data", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=lambda path, names: top_ignored(path, names, ignored))
    for name in ("data/text.txt", "checkpoints/a_step_1.pt", "logs/a.log", "docs/pictures/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("planted")
    cache_folder = folder / "chatgot" / "__pycache__"
    cache_folder.mkdir()
    (cache_folder / "config.cpython-311.pyc").write_bytes(b"planted")
    return folder


def top_ignored(path: str, names: list[str], ignored) -> set[str]:
    """Ignore names at the top, but only compiled files below it: chatgot/data is a wing."""
    left_out = set(ignored(path, names))
    return left_out if Path(path) == ROOT else left_out & {"__pycache__"}


def content_of(wheel: Path) -> dict[str, bytes]:
    """Return a wheel's files, without those that describe it, which are looked at here."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    about = {name for name in files if ".dist-info/" in name}
    names = {name.partition("/")[2] for name in about}
    assert names == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    (metadata,) = (files[name].decode() for name in about if name.endswith("/METADATA"))
    assert f"\nVersion: {chatgot.__version__}\n" in metadata
    (entry,) = (files[name].decode() for name in about if name.endswith("entry_points.txt"))
    assert entry.split() == ["[console_scripts]", "chatgot", "=", "chatgot.__main__:main"]
    return {name: content for name, content in files.items() if name not in about}


# --------------------------------------------------------------------------------------------------
# The version, and the packages


def test_version_is_written_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", chatgot.__version__)
    assert "version" not in settings()["project"]
    assert settings()["project"]["dynamic"] == ["version"]
    written = re.compile(rf"version.{{0,9}}{re.escape(chatgot.__version__)}\b", re.IGNORECASE)
    sources = [*(ROOT / "chatgot").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    places = [path for path in sources if written.search(path.read_text(encoding="utf-8"))]
    assert places == [ROOT / "chatgot" / "__init__.py"]
    assert settings()["tool"]["hatch"]["version"]["path"] == "chatgot/__init__.py"


def test_every_import_is_declared_and_every_declared_package_imported():
    imported = {PACKAGE_OF.get(name, name) for path in sources() for name in imports_of(path)}
    assert imported - sys.stdlib_module_names - OURS - OPTIONAL == set(declared())


def test_import_that_is_not_declared_is_found(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import _typeshed\n"
        "def later():\n    import scipy.stats\n"
        "from . import near\n"
    )
    assert set(imports_of(module)) == {"typing", "scipy"}


def sources() -> list[Path]:
    return [*(ROOT / "chatgot").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the top names of what a file imports when it runs, also inside of functions."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        waiting += ast.iter_child_nodes(node)


def test_pins_are_of_the_declared_packages_and_within_their_ranges():
    pins = pinned()
    assert set(pins) == set(declared())
    for name, requirement in declared().items():
        (pin,) = pins[name].specifier
        assert pin.operator == "==", name
        assert requirement.specifier.contains(pin.version), name


def test_each_declared_package_has_a_lower_bound():
    for name, requirement in declared().items():
        operators = {bound.operator for bound in requirement.specifier}
        assert ">=" in operators, name


def test_development_pins_repeat_no_package_of_the_product():
    development = pinned("requirements-dev.txt")
    assert not set(development) & set(declared())
    for name, requirement in development.items():
        assert [bound.operator for bound in requirement.specifier] == ["=="], name


# --------------------------------------------------------------------------------------------------
# The workflows


def workflows() -> dict[str, dict]:
    paths = (ROOT / ".github" / "workflows").glob("*.yml")
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


def steps() -> Iterator[dict]:
    for workflow in workflows().values():
        for job in workflow["jobs"].values():
            yield from job["steps"]


def problems_of(command: str) -> Iterator[str]:
    """Yield what a workflow's command names that is not here: files, make targets, modules."""
    words = shlex.split(command)
    for word in words:
        looks_like_path = "/" in word or re.fullmatch(r"requirements.*\.txt", word)
        if looks_like_path and not (ROOT / word).exists():
            yield f"no file {word}"
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        yield from (f"no target {word}" for word in words[1:] if word not in targets)
    if words[0] == "chatgot":
        known = {*VERBS, "--version", "--help"}
        yield from (f"no verb {word}" for word in words[1:2] if word not in known)
    elif words[0] not in ("make", "python", ".ci/run"):
        yield f"no command {words[0]}"


def test_commands_of_the_workflows_exist():
    commands = [step["run"] for step in steps() if "run" in step]
    assert commands
    for command in commands:
        assert list(problems_of(command)) == [], command


@pytest.mark.parametrize(
    "command",
    ["make tests", "chatgot trian", "scripts/none.py", "python -m pip -r requirements-x.txt"],
)
def test_command_that_names_what_is_not_here_is_found(command):
    assert list(problems_of(command))


def test_test_command_of_the_workflows_is_that_of_the_makefile():
    commands = [step["run"] for step in steps() if "pytest" in step.get("run", "")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        assert command.removeprefix("python ") in makefile


def test_workflows_need_nothing_and_may_change_nothing():
    for name, workflow in workflows().items():
        text = (ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")
        assert "secrets" not in text.replace("no secrets", "")
        assert workflow["permissions"] == {"contents": "read"}
        assert workflow["concurrency"]["cancel-in-progress"] is True
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 60
    for step in steps():
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v1"))


def test_oldest_python_of_the_workflows_is_the_oldest_that_is_allowed():
    matrix = workflows()["tests.yml"]["jobs"]["linux"]["strategy"]["matrix"]
    assert settings()["project"]["requires-python"] == f">={matrix['python'][0]}"


def test_test_script_of_the_workflows_may_be_executed():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_files_have_the_same_line_ends_on_every_system():
    """Else git on Windows would write carriage returns into scripts, pages and wheels."""
    rules = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert "* text=auto eol=lf" in rules
    for path in shipped_files().values():
        assert b"\r" not in path.read_bytes(), path
