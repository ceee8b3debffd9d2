"""CONTRIBUTING.md lists each private door of another package that the product uses, and no other.

A door is private when its name begins with an underscore, or when it is in a module that the
package does not document. A class of ours may open one by inheriting from theirs.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import harness
import pytest

OURS = ("chatgot", "scripts", "benchmarks")
# names with an underscore that their manual documents
PUBLIC_NAMES = {"os._exit"}
# Modules of other packages that have a manual. A new import is looked up there first; then it is
# added here, or to the table in CONTRIBUTING.md.
PUBLIC_MODULES = {
    "PIL",
    "bs4",
    "colorlog",
    "docx",
    "ebooklib",
    "ebooklib.epub",
    "filelock",
    "fastapi",
    "fastapi.responses",
    "fsspec",
    "fsspec.core",
    "fsspec.implementations.local",
    "ftfy",
    "gguf",
    "h11",
    "httpx",
    "jinja2",
    "jinja2.exceptions",
    "jinja2.sandbox",
    "lightning",
    "lxml.etree",
    "markupsafe",
    "matplotlib",
    "matplotlib.axes",
    "matplotlib.figure",
    "matplotlib.layout_engine",
    "matplotlib.lines",
    "matplotlib.ticker",
    "numpy",
    "numpy.typing",
    "platformdirs",
    "playwright.sync_api",
    "prompt_toolkit",
    "prompt_toolkit.application",
    "prompt_toolkit.completion",
    "prompt_toolkit.document",
    "prompt_toolkit.filters",
    "prompt_toolkit.formatted_text",
    "prompt_toolkit.history",
    "prompt_toolkit.input",
    "prompt_toolkit.key_binding",
    "prompt_toolkit.output",
    "prompt_toolkit.styles",
    "prompt_toolkit.utils",
    "psutil",
    "pydantic",
    "pydantic.fields",
    "pydantic_core",
    "pydivsufsort",
    "pydivsufsort.divsufsort",  # the function of that name
    "pypdf",
    "pysubs2",
    "pysubs2.exceptions",
    "safetensors",
    "safetensors.torch",
    "starlette.exceptions",
    "starlette.types",
    "tokenizers",
    "torch",
    "torch.amp",
    "torch.autograd.function",
    "torch.distributed",
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.checkpoint.planner",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.utils",
    "torch.optim",
    "torch.profiler",
    "torch.utils",
    "torch.utils.checkpoint",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "tqdm",
    "transformers",
    "uvicorn",
    "xllamacpp",
    "yaml",
}
NOT_INSTALLED = {"model"}  # nanoGPT's own module, which benchmarks/nanogpt_loss.py finds beside it
PRIVATE = re.compile(r"_[A-Za-z]\w*")
ROW = re.compile(r"\| (`[^|]+`) in `([^`|]+)` \|.*\|")
FIRST_TABLE = "### Private names"
SECOND_TABLE = "### Behaviour that no manual promises"


def is_foreign(module: str) -> bool:
    top = module.partition(".")[0]
    return top not in OURS and top not in NOT_INSTALLED


def is_private(name: str) -> bool:
    return PRIVATE.fullmatch(name) is not None


# --------------------------------------------------------------------------------------------------
# The doors in the code


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the (module, name) pairs of an import; the name is "" where the module is meant."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        yield from ((node.module or "", alias.name) for alias in node.names)


def nodes_of(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def import_doors(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the private names and undocumented modules that a file imports."""
    for node in nodes:
        for module, name in imported(node):
            if not is_foreign(module):
                continue
            words = [*module.split("."), name]
            is_known = module in PUBLIC_MODULES or words[0] in sys.stdlib_module_names
            if any(map(is_private, words)) or not is_known:
                yield f"{module}.{name}".removesuffix(".")


def attribute_doors(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield private attributes of imported modules and names, such as `torch._private`."""
    modules: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in nodes:
        if not (isinstance(node, ast.Attribute) and is_private(node.attr)):
            continue
        owner = ast.unparse(node.value)
        module = modules.get(owner.partition(".")[0])
        if module is not None and is_foreign(module):
            yield f"{owner}.{node.attr}"


def foreign_ancestors(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if is_foreign(base.__module__) and base is not object]


@cache
def names_in(cls: type) -> set[str]:
    """Return the private names that the source of a class defines or uses on itself."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # written in C
        return {name for name in vars(cls) if is_private(name)}
    return {name for name in re.findall(r"(?:self\.|def |\")(_\w+)", source) if is_private(name)}


def inherited_doors(path: Path, nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the private names of foreign base classes that our classes use or replace."""
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and node.bases]
    if not classes:
        return
    module = importlib.import_module(".".join(path.relative_to(harness.ROOT).with_suffix("").parts))
    for node in classes:
        cls = getattr(module, node.name, None)
        if cls is None:  # defined in a function
            continue
        used = set(used_names(node))
        for base in foreign_ancestors(cls):
            for name in sorted(used & names_in(base)):
                used.remove(name)
                yield f"{base.__name__}.{name}"


def used_names(node: ast.ClassDef) -> Iterator[str]:
    """Yield the private names that a class defines, reads on itself, or spells as a key."""
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef):
            yield child.name
        elif isinstance(child, ast.Attribute):
            if ast.unparse(child.value) in ("self", "super()"):
                yield child.attr
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value


def product_files() -> list[Path]:
    return [path for top in OURS for path in sorted((harness.ROOT / top).rglob("*.py"))]


def doors_in_code() -> set[tuple[str, str]]:
    """Return (door, file) for each private door that the product uses."""
    doors = set()
    for path in product_files():
        nodes = nodes_of(path.read_text(encoding="utf-8"))
        names = {*import_doors(nodes), *attribute_doors(nodes)}
        if path.parts[len(harness.ROOT.parts)] == "chatgot":
            names |= set(inherited_doors(path, nodes))
        file = path.relative_to(harness.ROOT).as_posix()
        doors |= {(name, file) for name in names - PUBLIC_NAMES}
    return doors


# --------------------------------------------------------------------------------------------------
# The tables


def rows(heading: str) -> list[tuple[str, str]]:
    """Return (what a row's first cell quotes, file) for each row of the table below a heading."""
    page = (harness.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    below = re.split(r"^#", page.partition(f"{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    matches = [match for match in map(ROW.fullmatch, below.splitlines()) if match]
    return [(quoted, match[2]) for match in matches for quoted in re.findall("`([^`]+)`", match[1])]


def test_table_names_each_private_door_that_the_code_uses():
    listed = rows(FIRST_TABLE)
    assert len(listed) > 8
    assert len(listed) == len(set(listed))
    in_code = doors_in_code()
    assert sorted(in_code - set(listed)) == [], "add these to CONTRIBUTING.md"
    assert sorted(set(listed) - in_code) == [], "the code no longer uses these"


def test_table_of_behaviour_quotes_words_of_the_code():
    listed = rows(SECOND_TABLE)
    assert len(listed) > 5
    for quoted, file in listed:
        source = (harness.ROOT / file).read_text(encoding="utf-8")
        assert quoted in source, (quoted, file)


@pytest.mark.parametrize(
    ("source", "door"),
    [
        ("import torch\ntorch._private(1)", "torch._private"),
        ("import torch\ntorch._C._current()", "torch._C._current"),
        ("import numpy as np\nnp._core", "np._core"),
        ("import sys\nsys._getframe()", "sys._getframe"),
        ("from logging import Handler\nHandler._name", "Handler._name"),
    ],
)
def test_private_attribute_is_found(source, door):
    assert door in set(attribute_doors(nodes_of(source)))


@pytest.mark.parametrize(
    ("source", "door"),
    [
        ("from torch._inductor import config", "torch._inductor.config"),
        ("import torch._dynamo", "torch._dynamo"),
        ("from torch.optim import _functional", "torch.optim._functional"),
        ("from torch.never_judged import name", "torch.never_judged.name"),
        ("from _thread import lock", "_thread.lock"),
    ],
)
def test_private_import_is_found(source, door):
    assert door in set(import_doors(nodes_of(source)))


def test_public_import_is_no_door():
    nodes = nodes_of("import os\nimport torch\nfrom chatgot.report.page import _private")
    assert list(import_doors(nodes)) == []
