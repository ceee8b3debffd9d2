"""Renders the little of Go's text/template that ollama_template uses, and joins as Ollama does."""

import json
import re
from collections.abc import Iterator

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
Part = tuple[str, str]  # ("text" or "action", what it says)


def render_as_ollama(template: str, messages: list[dict[str, str]]) -> str:
    """Return the prompt that Ollama makes of messages, which have a role and a content."""
    return _render(_parts(template), {"Messages": _joined(messages)})


def _joined(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Join neighbours of one role."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    return joined


def _parts(template: str) -> list[Part]:
    pieces = ACTION.split(template)
    return [("action" if i % 2 else "text", piece) for i, piece in enumerate(pieces)]


def _render(parts: list[Part], dot: dict) -> str:
    return "".join(_rendered(iter(parts), dot, shows=True))


def _rendered(parts: Iterator[Part], dot: dict, shows: bool) -> Iterator[str]:
    """Yield the text up to the `end` of this block."""
    for kind, said in parts:
        words = said.split()
        if kind == "text":
            if shows:
                yield said
        elif words == ["end"]:
            return
        elif words[:1] == ["range"]:
            block = list(_block(parts))
            for item in dot[words[1].removeprefix(".")] if shows else []:
                yield _render(block, item)
        elif words[:2] == ["if", "eq"]:
            is_equal = shows and dot[words[2].removeprefix(".")] == _string(words[3])
            yield from _rendered(parts, dot, is_equal)
        elif said.strip().startswith('"'):
            if shows:
                yield _string(said.strip())
        elif words[0].startswith(".") and len(words) == 1:
            if shows:
                yield dot[words[0].removeprefix(".")]
        else:
            raise ValueError(f"not rendered here: {said!r}")


def _block(parts: Iterator[Part]) -> Iterator[Part]:
    """Yield what is before the `end` of this block."""
    depth = 1
    for kind, said in parts:
        if kind == "action":
            depth += said.split()[0] in ("if", "range")
            depth -= said.split()[0] == "end"
        if not depth:
            return
        yield kind, said


def _string(literal: str) -> str:
    value = json.loads(re.sub(r"\\x([0-9a-f]{2})", r"\\u00\1", literal))
    assert isinstance(value, str)
    return value
