"""Rules of style that ruff does not know: short names of tests, and one idea in each assignment."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_NAME = 70
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SOURCES = [
    path for name in ("chatgot", "scripts", "benchmarks") for path in (ROOT / name).rglob("*.py")
]


def long_names(source: str) -> list[str]:
    """Return the names of the tests in a source text that are too long."""
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [
        function.name
        for function in functions
        if function.name.startswith("test_") and len(function.name) > LONGEST_NAME
    ]


def packed_assignments(source: str) -> list[str]:
    """Return the assignments of several unrelated values in one statement; swaps are allowed."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and any(is_packed(target, node.value) for target in node.targets)
    ]


def is_packed(target: ast.expr, value: ast.expr) -> bool:
    """Return whether an assignment pairs each target with its own value."""
    if not isinstance(target, ast.Tuple | ast.List) or not isinstance(value, ast.Tuple | ast.List):
        return False
    same_length = len(target.elts) == len(value.elts)
    is_swap = set(map(ast.unparse, target.elts)) == set(map(ast.unparse, value.elts))
    return same_length and not is_swap


def test_there_are_sources_to_check():
    assert len(TESTS) > 60
    assert len(SOURCES) > 60


def test_every_test_name_has_at_most_70_characters():
    found = {str(path): long_names(path.read_text(encoding="utf-8")) for path in TESTS}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_assignment_packs_unrelated_values():
    found = {
        str(path): packed_assignments(path.read_text(encoding="utf-8")) for path in TESTS + SOURCES
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_name_of_71_characters_is_noticed():
    name = "test_" + "x" * 66
    assert long_names(f"def {name}(): pass") == [name]
    assert long_names(f"class A:\n    async def {name}(self): pass") == [name]
    assert long_names(f"def {name[:-1]}(): pass") == []


@pytest.mark.parametrize("source", ["a, b = 1, 2", "(a, b) = [1, 2]", "x = a, b = f(), g()"])
def test_a_packed_assignment_is_noticed(source):
    assert len(packed_assignments(f"def f():\n    {source}")) == 1


@pytest.mark.parametrize(
    "source", ["a, b = b, a", "a, b = f()", "a, *b = 1, 2, 3", "a = 1, 2", "x[[0, 1]] = 1, 2"]
)
def test_an_assignment_of_one_idea_is_accepted(source):
    assert packed_assignments(source) == []
