"""Read YAML as plain values; refuse values that YAML reads differently than a person would.

PyYAML's constructors are not used. Its events show depth, aliases and tags before anything recurses
or grows, and scalars are read here: `6e-4` is a number; `010`, `1:30` and `no` are refused.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import yaml

MAX_DEPTH = 10
MAX_NODES = 2_000
# libyaml reads 2,000 nodes in 5 ms, PyYAML's own parser in 80 ms
PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NULL = ("null", "Null", "NULL")
CONSTANTS: dict[str, bool | None] = {
    "": None,
    "~": None,
    **dict.fromkeys(NULL),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,39})")
HUGE = re.compile(r"[-+]?[1-9][0-9]{40,}")
# unlike PyYAML's pattern, this one matches 6e-4
REAL = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
# Characters of a value in a message. What PyYAML makes of longer values is not computed.
MAX_SHOWN = 40


class Refused:
    """The type of REFUSED, a value that no key accepts."""

    def __repr__(self) -> str:
        return "?"


# replaces a value whose problem has been noted
REFUSED: Final = Refused()


@dataclass
class PlainYaml:
    """Reads YAML texts; notes where each key was given, and each problem in one line."""

    places: dict[str, str] = field(default_factory=dict)  # dotted name -> where it was given
    problems: list[str] = field(default_factory=list)

    def read(self, text: str, name: str = "") -> object:
        """Return the plain values of a text, or REFUSED.

        name: the key, if the text is the value of a `--set`; "" for a whole file.
        """
        events = _Events()
        try:
            events.walk(text, "a value" if name else "keys, such as training:")
            for line, decoration in events.decorations:
                self._note(
                    line,
                    name,
                    f"found the {decoration}, expected a value without anchors, aliases and tags",
                )
            if events.decorations:
                return REFUSED
            root = yaml.compose(text, Loader=PARSER)
            assert root is not None, "the walk has met a node"
            return self._plain(root, name, "--set" if name else "")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            assert mark is not None, "the parser names the place of every error"
            line = mark.line + 1
            reason = f"{error.problem} (column {mark.column + 1})"
        except (ValueError, OverflowError, yaml.YAMLError) as error:
            line = events.line
            reason = str(error)
        self._note(line, name, escaped(reason))
        return REFUSED

    def _note(self, line: int, name: str, reason: str) -> None:
        self.problems.append(f"--set {name}: {reason}" if name else f"line {line}: {reason}")

    def _plain(self, node: yaml.Node, name: str, place: str) -> object:
        """Return the value of a node, with REFUSED in place of each refused value.

        node: at most MAX_DEPTH deep. place: where the text was given, if it is no file; "": the
        place is the node's line in the file.
        """
        if isinstance(node, yaml.SequenceNode):
            return [
                self._plain(child, f"{name}[{index}]", place)
                for index, child in enumerate(node.value)
            ]
        if isinstance(node, yaml.MappingNode):
            return self._section(node, name, place)
        assert isinstance(node, yaml.ScalarNode)
        if node.style:  # quoted: text, whatever it looks like
            return node.value
        value, reason = _scalar(node)
        if not reason:
            return value
        self.problems.append(f"{escaped(name)} ({place or _line_of(node)}): {reason}")
        return REFUSED

    def _section(self, node: yaml.MappingNode, name: str, place: str) -> dict[str, object]:
        values: dict[str, object] = {}
        lines: dict[str, str] = {}
        for key_node, child in node.value:
            line = _line_of(key_node)
            label = name
            if isinstance(key_node, yaml.ScalarNode):
                label = f"{name}.{key_node.value}".lstrip(".")
            key = self._plain(key_node, label, place)
            if key is REFUSED:
                continue
            reason = ""
            if not isinstance(key, str):
                reason = f"found the key {shown(key)}, expected a name"
            elif key in values:
                first = lines[key].removeprefix("line ")
                reason = f"given twice, in lines {first} and {line.removeprefix('line ')}"
            else:
                lines[key] = line
                self.places.setdefault(label, line)
                values[key] = self._plain(child, label, place)
            if reason:
                self.problems.append(f"{escaped(label)} ({place or line}): {reason}")
        return values


class _Events:
    """Walks over a text's events: limits depth and number, notes anchors, aliases and tags."""

    def __init__(self) -> None:
        self.line = 1  # of the current event
        self.decorations: list[tuple[int, str]] = []
        self._depth = 0
        self._nodes = 0
        self._documents = 0

    def walk(self, text: str, expected: str) -> None:
        """Look at all events of a text. Raises: ValueError for one too large; yaml.YAMLError."""
        strange = yaml.reader.Reader.NON_PRINTABLE.search(text)
        if strange:
            self.line += text.count("\n", 0, strange.start())
            raise ValueError(f"found the character {shown(strange[0])}, expected readable text")
        for event in yaml.parse(text, Loader=PARSER):
            mark = event.start_mark
            assert mark is not None, "the parser marks every event"
            self.line = mark.line + 1
            self._count(event)
            decoration = _decoration(event)
            if decoration:
                self.decorations.append((self.line, decoration))
        if not self._nodes:
            raise ValueError(f"found nothing, expected {expected}")

    def _count(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.CollectionStartEvent):
            self._depth += 1
        if isinstance(event, yaml.CollectionEndEvent):
            self._depth -= 1
        if isinstance(event, yaml.NodeEvent):
            self._nodes += 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        if self._nodes > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} keys and values")
        if self._documents > 1:
            raise ValueError("found a second document (after ---), expected one")


def _decoration(event: yaml.Event) -> str:
    """Return the alias, anchor or tag of an event, with its kind; "" if it has none."""
    anchor = getattr(event, "anchor", None)
    tag = getattr(event, "tag", None)
    if isinstance(event, yaml.AliasEvent):
        return f"alias *{escaped(anchor)}"
    if anchor:
        return f"anchor &{escaped(anchor)}"
    if tag:
        return f"tag {escaped(tag.replace('tag:yaml.org,2002:', '!!'))}"
    return ""


def _line_of(node: yaml.Node) -> str:
    mark = node.start_mark
    assert mark is not None, "the composer marks every node"
    return f"line {mark.line + 1}"


def _scalar(node: yaml.ScalarNode) -> tuple[object, str]:
    """Return the value of an unquoted text and the reason to refuse it, "" if there is none."""
    text = node.value
    if text in CONSTANTS:
        return CONSTANTS[text], ""
    if WHOLE.fullmatch(text):
        return int(text), ""
    if REAL.fullmatch(text):
        number = float(text)
        return number, "" if math.isfinite(number) else _too_large(text)
    if HUGE.fullmatch(text):
        return text, f"{_too_large(text)}: write a plain decimal number of at most 40 digits"
    return text, _why_misread(node)


def _too_large(text: str) -> str:
    return f"found {_start_of(text)}, which is too large for a number"


def _why_misread(node: yaml.ScalarNode) -> str:
    """Return why an unquoted text is refused, "" if it is not.

    It is refused if PyYAML would read it as something else than text.
    """
    text = node.value
    kind = node.tag.rpartition(":")[2]  # the type that PyYAML gives it
    if kind == "merge":
        return "found the merge key <<, expected the keys themselves"
    if text.lower().lstrip("+-") in (".inf", ".nan"):
        return f"found {text}, expected a finite number"
    if kind not in ("bool", "int", "float", "timestamp") and not LEADING_ZERO.fullmatch(text):
        return ""
    instead = {"bool": "true or false, or ", "timestamp": ""}.get(
        kind, "a plain decimal number, or "
    )
    start = _start_of(text)
    return (
        f"found {start}, which PyYAML reads as {_reading(node, kind)}: "
        f'write {instead}"{start}" in quotes for text'
    )


def _reading(node: yaml.ScalarNode, kind: str) -> str:
    """Return what PyYAML reads a scalar as, in short."""
    if len(node.value) > MAX_SHOWN:
        return f"a {kind}"
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except ValueError:
        return f"a broken {kind}"
    return shown(value) if isinstance(value, bool | int | float | str) else f"a {kind}"


def _start_of(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def shown(value: object) -> str:
    """Return a short form of a value, on one line, spelt as in YAML."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def escaped(text: object) -> str:
    """Return the first 500 characters of a text, on one line, without control characters."""
    return "".join(_escaped_characters(str(text)[:500]))


def _escaped_characters(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() else repr(character)[1:-1]
