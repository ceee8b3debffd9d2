"""Make docs/configuration.md, the page of all keys, from the descriptions in config.py.

`python -m chatgot.configuration_page` rewrites it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chatgot.accepted_values import accepted_values, either
from chatgot.config import Config, as_in_yaml, resume_rule

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
INTRODUCTION = """\
# The configuration: all keys

One YAML file is one experiment: a few lines that differ from the defaults below.
`--set section.key=value` sets any key from the command line and wins over the file. An unknown key
or a value out of its range ends the command with exit code 2. The message names the key, what was
found and what is expected.

A whole number may be written `1000` or `1e3`. `0x10`, `010`, `1_000`, `1:30`, `yes` and `no` are
refused, because YAML does not read them as they look.

**On resume** says what happens if a resumed run gets a value that differs from its checkpoint's:

- *taken*: the new value is used from then on;
- *only by `--set`*: the run is refused (exit 3) unless `--set` names the key; the change is logged;
- *refused*: the run is refused (exit 3), because its training so far depends on the value;
- *see meaning*: the run keeps its own value, or does what the column *meaning* says.

This page is made from `chatgot/config.py` by `python -m chatgot.configuration_page`."""
RESUME_WORDS = {
    "free": "taken",
    "set": "only by `--set`",
    "never": "refused",
    "kept": "see meaning",
}
COLUMNS = ("key", "default", "range", "meaning", "on resume")


def configuration_page() -> str:
    """Return the whole page as Markdown: one table for each section."""
    blocks = [INTRODUCTION, *_tables(Config, "")]
    return "\n\n".join(blocks) + "\n"


def _tables(section: type[BaseModel], name: str) -> Iterator[str]:
    """Yield the heading, purpose and table of a section, then those of the sections in it."""
    inner: dict[str, type[BaseModel]] = {}
    rows = [_row(COLUMNS), _row("---" for _ in COLUMNS)]
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner[key] = field.annotation
        else:
            rows.append(_row(_cells(key, field)))
    yield f"## `{name}`" if name else "## At the top"
    yield _purpose(section)
    if len(rows) > 2:
        yield "\n".join(rows)
    for key, child in inner.items():
        yield from _tables(child, f"{name}.{key}".lstrip("."))


def _purpose(section: type[BaseModel]) -> str:
    """Return what a section's docstring says after its name, as a sentence."""
    words = (section.__doc__ or "").partition(": ")[2]
    return f"{words[0].upper()}{words[1:]}"


def _cells(key: str, field: FieldInfo) -> Iterator[str]:
    yield f"`{key}`"
    yield "required" if field.is_required() else f"`{as_in_yaml(field.default)}`"
    yield either(accepted_values(field))
    yield str(field.description)
    yield RESUME_WORDS[resume_rule(field)]


def _row(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    PAGE.write_text(configuration_page(), encoding="utf-8")
