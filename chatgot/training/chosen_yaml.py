"""The YAML of a run that was chosen: its difference from the defaults, with reasons as comments."""

import re
from collections.abc import Mapping, Sequence

from chatgot.config import Config, flat, keys_of
from chatgot.data.own_text import as_yaml

WORD = re.compile(r"[a-z][a-z0-9_]*")
# The sections whose texts are a user's: quoted, or `no` would be a truth value
FREE_TEXT = ("data", "sampling", "paths")


def yaml_with_reasons(config: Config, title: Sequence[str], reasons: Mapping[str, str]) -> str:
    """Return a YAML that `load_config` reads back equal: every key that is not at its default.

    title: comment lines at the top. reasons: by dotted name, the comment behind the value.
    """
    values = flat(config.model_dump(mode="json"))
    lines = [f"# {line}" for line in title]
    written: list[str] = []  # the sections of the line before
    for name, field in keys_of():
        if values[name] == _default(field.default):
            continue
        *sections, leaf = name.split(".")
        for depth, section in enumerate(sections):
            if sections[: depth + 1] != written[: depth + 1]:
                if depth == 0 and written:
                    lines.append("")
                lines.append(f"{'  ' * depth}{section}:")
        written = sections
        comment = f"  # {reasons[name]}" if name in reasons else ""
        lines.append(f"{'  ' * len(sections)}{leaf}: {_spelt(name, values[name])}{comment}")
    return "\n".join(lines) + "\n"


def _default(default: object) -> object:
    return list(default) if isinstance(default, tuple) else default


def _spelt(name: str, value: object) -> str:
    is_word = isinstance(value, str) and WORD.fullmatch(value)
    if is_word and name.partition(".")[0] not in FREE_TEXT:
        return str(value)
    return as_yaml(value)
