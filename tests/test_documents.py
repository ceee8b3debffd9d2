"""The Markdown files render as meant, and what they name exists: files, keys, commands, events.

They are parsed as CommonMark with tables, which is what the usual viewers show.
"""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache

import harness
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from chatgot.config import keys_of
from chatgot.logs.events import KINDS
from scripts.benchmark import PARTS

LIST_DOCUMENTS = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md")
PLAIN_TEXT = ("text", "console")  # what is marked as this may look like headings and tables
FENCE_LINE = re.compile(r" {0,3}(`{3,}|~{3,})")
DELIMITER_ROW = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*|\s*\|\s*:?-+:?\s*\|\s*")
HEADING = re.compile(r"\s*#{2,6} ")
CELL_END = re.compile(r"(?<!\\)\|")
FOLDERS = "chatgot|scripts|benchmarks|tests|configs|docs"
PATH = re.compile(rf"\b(?:{FOLDERS})/[\w./-]*\w/?")
KEY = re.compile(r"(?<![\w./])(?:model|training|data|sampling|paths)(?:\.[a-z_]+)+(?![\w(/])")
PART = re.compile(r"python scripts/benchmark\.py ([a-z_]+)")
IN_THE_CACHE = {"chatgot/machine.json"}  # of the user: no file of this checkout
# training.log is no key
FILE_ENDINGS = (".log", ".py", ".md", ".yaml", ".jsonl", ".gguf", ".safetensors")
# an event's own columns, which every kind has
COLUMNS = {"time", "step", "kind", "text"}


def documents() -> list[str]:
    """Return the paths of all Markdown files of this checkout, below its root."""
    listed = subprocess.run(
        LIST_DOCUMENTS, cwd=harness.ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        return sorted(set(listed.stdout.splitlines()))
    # an archive, not a clone
    found = [*harness.ROOT.glob("*.md"), *harness.ROOT.glob("docs/*.md")]
    return sorted(str(path.relative_to(harness.ROOT)) for path in found)


@cache
def text_of(document: str) -> str:
    return (harness.ROOT / document).read_text(encoding="utf-8")


def parse(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


# --------------------------------------------------------------------------------------------------
# What is wrong with a text


def problems(text: str) -> list[str]:
    """Return what a reader of the rendered text would see go wrong, each with its line."""
    lines = text.splitlines()
    tokens = parse(text)
    found: list[str] = []
    in_code: set[int] = set()
    in_table: set[int] = set()
    for token in tokens:
        if token.map is None:
            continue
        first, end = token.map
        if token.type in ("fence", "code_block"):
            in_code |= set(range(first, end))
            found += code_problems(token, lines)
        elif token.type == "table_open":
            in_table |= set(range(first, end))
            found += table_problems(lines, first, end)
        elif token.type == "html_block":
            found.append(f"line {first + 1}: HTML, which viewers show differently or not at all")
        elif token.type == "inline":
            found += inline_problems(token, first)
    for number, line in enumerate(lines):
        if number in in_code | in_table:
            continue
        if DELIMITER_ROW.fullmatch(line) or line.lstrip().startswith("|"):
            found.append(f"line {number + 1}: a row of no table")
    return found


def code_problems(token: Token, lines: list[str]) -> Iterator[str]:
    """Yield what is wrong with a block of code."""
    assert token.map is not None
    first, end = token.map
    if token.type == "fence":
        last = lines[end - 1].strip()
        if end - 1 == first or last != token.markup:
            yield f"line {first + 1}: a block of code that its own fence never closes"
        has_fence = any(FENCE_LINE.match(line) for line in token.content.splitlines())
        if len(token.markup) > 3 and not has_fence:
            yield f"line {first + 1}: a long fence around no other fence"
    if token.info.strip() in PLAIN_TEXT:
        return
    for line in token.content.splitlines():
        if HEADING.match(line) or DELIMITER_ROW.fullmatch(line):
            yield f"line {first + 1}: a block of code that swallows {line.strip()!r}"


def table_problems(lines: list[str], first: int, end: int) -> Iterator[str]:
    """Yield the rows of a table that have other cells than its header: viewers drop the rest."""
    wanted = len(cells(lines[first]))
    for number in range(first + 1, end):
        if len(cells(lines[number])) != wanted:
            yield f"line {number + 1}: a row of {len(cells(lines[number]))} cells, not {wanted}"


def cells(row: str) -> list[str]:
    """Return the cells of a table's row; a vertical bar in one is written `\\|`."""
    return [cell.strip() for cell in CELL_END.split(row.strip().removeprefix("|"))[:-1]]


def inline_problems(token: Token, first: int) -> Iterator[str]:
    """Yield the marks of a paragraph, heading or cell that are left as plain characters."""
    for child in token.children or []:
        if child.type == "html_inline":
            yield f"line {first + 1}: {child.content!r} is taken for HTML and not shown"
        elif child.type == "text" and any(mark in child.content for mark in ("`", "**", "](")):
            yield f"line {first + 1}: a mark that opens or closes nothing in {child.content!r}"


def anchors(text: str) -> set[str]:
    """Return the names of a text's headings in links: lower case, hyphens for spaces."""
    tokens = parse(text)
    names: list[str] = []
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            title = "".join(child.content for child in tokens[number + 1].children or [])
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            earlier = names.count(slug)
            names.append(slug if not earlier else f"{slug}-{earlier}")
    return set(names)


def links(text: str) -> Iterator[str]:
    """Yield the targets of a text's links and pictures."""
    for token in parse(text):
        for child in token.children or []:
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                yield str(target)


def broken_links(document: str) -> list[str]:
    """Return the links within this checkout that lead nowhere."""
    folder = (harness.ROOT / document).parent
    broken = []
    for target in links(text_of(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else harness.ROOT / document
        is_there = file.is_relative_to(harness.ROOT) and file.exists()
        if is_there and anchor:
            is_there = anchor in anchors(file.read_text(encoding="utf-8"))
        if not is_there:
            broken.append(target)
    return broken


# --------------------------------------------------------------------------------------------------
# The documents render


@pytest.mark.parametrize("document", documents())
def test_document_renders_as_meant(document):
    assert problems(text_of(document)) == []


@pytest.mark.parametrize("document", documents())
def test_document_has_no_link_that_leads_nowhere(document):
    assert broken_links(document) == []


# as docs/benchmarks.md once had it: all up to the end of the page was shown as code
OTHER_FENCE = """needed:

````
git clone https://github.com/karpathy/nanoGPT ../nanoGPT
``

### Tokens per second

| | dropout 0 |
|---|---|
| ours | 3,173 |
"""


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (OTHER_FENCE, "never closes"),
        (OTHER_FENCE, "swallows '### Tokens per second'"),
        (OTHER_FENCE, "swallows '|---|---|'"),
        ("```\na\n", "never closes"),
        ("```\na\n````\n", "never closes"),
        ("~~~\na\n```\n", "never closes"),
        ("````\na\n````\n", "long fence"),
        ("```\na\n\n## b\n\n```\n", "swallows '## b'"),
        ("a\n\n    ## b\n", "swallows '## b'"),
        ("| a | b |\n|---|\n| 1 | 2 |\n", "a row of no table"),
        ("| a | b |\n| 1 | 2 |\n", "a row of no table"),
        ("| a | b |\n|---|---|\n| x (| head) | 2 |\n", "a row of 3 cells, not 2"),
        ("see `a.py and more\n", "opens or closes nothing"),
        ("see [a](b c.md) and **more\n", "opens or closes nothing"),
        ("the key <name> of it\n", "taken for HTML"),
        ("<div>\n\na\n", "HTML"),
    ],
)
def test_broken_document_is_refused(broken, problem):
    assert any(problem in line for line in problems(broken))


def test_plain_text_may_look_like_headings_and_tables():
    assert problems("```text\n## a\n|---|---|\n```\n") == []
    assert problems("````\n```\na\n```\n````\n") == []


def test_anchor_is_made_as_viewers_make_it():
    text = "# A `b.jsonl`, c!\n\n## Same\n\n## Same\n"
    assert anchors(text) == {"a-bjsonl-c", "same", "same-1"}


# --------------------------------------------------------------------------------------------------
# What they name exists


def code(document: str) -> Iterator[str]:
    """Yield the spans and blocks of code of a document."""
    for token in parse(text_of(document)):
        if token.type in ("fence", "code_block"):
            yield token.content
        for child in token.children or []:
            if child.type == "code_inline":
                yield child.content


@pytest.mark.parametrize("document", documents())
def test_document_names_files_that_exist(document):
    named = {path for text in code(document) for path in PATH.findall(text)}
    missing = {path for path in named if not (harness.ROOT / path).exists()}
    assert sorted(missing - IN_THE_CACHE) == []


@pytest.mark.parametrize("document", documents())
def test_document_names_keys_that_exist(document):
    keys = {name for name, _ in keys_of()}
    sections = {name.rpartition(".")[0] for name in keys}
    named = {key for text in code(document) for key in KEY.findall(text)}
    unknown = {key for key in named - keys - sections if not key.endswith(FILE_ENDINGS)}
    assert sorted(unknown) == []


@pytest.mark.parametrize("document", documents())
def test_document_names_benchmarks_that_exist(document):
    named = {part for text in code(document) for part in PART.findall(text)}
    assert named <= PARTS.keys()


# --------------------------------------------------------------------------------------------------
# The table of events


def documented_events() -> dict[str, set[str]]:
    """Return the documented fields of each kind of event: the last cell of its row."""
    fields = {}
    for line in text_of("docs/files-of-a-run.md").splitlines():
        row = re.fullmatch(r"\| `([a-z0-9_]+)` \| .* \|([^|]*)\|", line)
        if row and row[1] in KINDS:
            fields[row[1]] = set(re.findall(r"`([a-z0-9_]+)`", row[2]))
    for kind, like in (("resume", "start"), ("stop", "done"), ("crash", "done")):
        fields[kind] |= fields[like]  # "those of ..."
    return fields


def calls_of_event() -> Iterator[ast.Call]:
    """Yield each call of `event` in the code whose first argument is the name of a kind."""
    for path in [*sorted(harness.ROOT.glob("chatgot/*/*.py")), harness.SCRIPT]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id == "event" and isinstance(node.args[0], ast.Constant):
                yield node


def events_in_code() -> dict[str, set[str]]:
    """Return, by kind, the fields that calls of `event` spell out."""
    fields: dict[str, set[str]] = {}
    for call in calls_of_event():
        names = {word.arg for word in call.keywords}
        if None not in names:  # no **facts
            fields.setdefault(call.args[0].value, set()).update(names)
    return fields


def test_page_has_every_kind_of_event():
    assert documented_events().keys() == KINDS


def test_page_has_the_fields_that_the_code_gives_events():
    documented = documented_events()
    in_code = events_in_code()
    in_code["warning"].add("level")  # of a record that is a warning and no more
    assert len(in_code) > 8
    for kind, fields in in_code.items():
        assert documented[kind] == fields - COLUMNS, kind


def test_page_has_the_fields_that_a_real_run_gives_events(tmp_path):
    """Those at a run's start and end are collected in one place, and not spelt out at the event."""
    config = harness.write_config(tmp_path, training={"max_steps": 5})
    assert harness.train_here(tmp_path, "--config", config.name) == 0
    later = ("--resume_from", "latest", "--set", "training.max_steps=6")
    assert harness.train_here(tmp_path, "--config", config.name, *later) == 0
    (path,) = (tmp_path / "logs" / "tensorboard").glob("*/events.jsonl")
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    documented = documented_events()
    for kind in ("start", "resume", "done"):
        event = next(event for event in events if event["kind"] == kind)
        assert documented[kind] == event.keys() - COLUMNS, kind
    for event in events:
        assert event.keys() - COLUMNS <= documented[event["kind"]], event
