"""How a YAML file and `--set` become a Config.

PyYAML's constructors are not used: its events show depth, aliases and tags before anything recurses or grows, and what
YAML reads otherwise than a person means it (`010`, `1:30`, `no`) is refused by name. Types and ranges are pydantic's,
its errors are put into plain words. One run shows all problems.
"""

import difflib
import math
import re
import stat
from collections.abc import Collection, Sequence
from itertools import chain, islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from chatgot.config import Config, keys_of
from chatgot.errors import ConfigError

MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_LINES = (
    256 * 1024,
    10,
    2_000,
    20,
)  # of a file; MAX_LINES: of a message
PARSER = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # libyaml reads 2,000 nodes in 5 ms, Python in 80 ms
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NULL = ("null", "Null", "NULL")
CONSTANTS = {"": None, "~": None} | dict.fromkeys(NULL)
CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(
    ("false", "False", "FALSE"), False
)
WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,39})")
REAL = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
)  # unlike PyYAML's: 6e-4 too
LIMITS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "min_length": "not empty",
}
LIMITS |= {
    "max_length": "at most {} characters",
    "pattern": "in one line, without control characters",
}
REFUSED: Any = type(
    "Refused", (), {"__repr__": lambda _: "?"}
)()  # in place of a value already refused; fits no key
# What other trainers call our keys: only hinted at, never accepted.
OTHER_NAMES = """
n_embd=d_model n_embed=d_model hidden_size=d_model embed_dim=d_model num_hidden_layers=n_layers num_layers=n_layers
num_heads=n_head depth=n_layers d_ff=d_hid intermediate_size=d_hid ffn_dim=d_hid n_inner=d_hid
block_size=max_seq_length context_length=max_seq_length n_ctx=max_seq_length max_position_embeddings=max_seq_length
dropout_p=dropout resid_pdrop=dropout attn_pdrop=attention_dropout bs=batch_size
gradient_accumulation_steps=accumulate_grad_batches grad_accum=accumulate_grad_batches max_iters=max_steps
num_iterations=max_steps total_steps=max_steps lr=learning_rate max_lr=learning_rate min_lr=min_learning_rate
wd=weight_decay scheduler=lr_schedule clip=grad_clip max_grad_norm=grad_clip max_norm=grad_clip amp=mixed_precision
fp16=mixed_precision bf16=mixed_precision dtype=precision_dtype save_steps=save_checkpoint_steps
save_every=save_checkpoint_steps save_total_limit=max_checkpoints_to_keep logging_steps=log_interval
eval_iters=eval_batches eval_steps=eval_interval eval_step=eval_interval eval_every=eval_interval out_dir=checkpoints
output_dir=checkpoints
"""


def load_config(path: Path, overrides: Sequence[str] = ()) -> tuple[Config, set[str]]:
    """Read a YAML file, put each `key=value` of `overrides` over it (the last one wins) and check everything.

    Returns the configuration and the dotted names of the keys that `overrides` set. The file is never changed.
    Raises: ConfigError naming all problems of the file and the overrides, one in each line.
    """
    draft = _Draft()
    tree = draft.read(_text_of(path))
    if tree is not REFUSED and not isinstance(tree, dict):
        draft.problems.append(
            f"found {_shown(tree)} at the top, expected sections with their keys, such as training:"
        )
    draft.values = tree if isinstance(tree, dict) else {}
    for section in draft.sections:
        draft.put(section, {}, only_for_null=True)  # absent, or given with nothing below it
    names = {draft.override(text) for text in overrides}  # with "" for a refused one
    if isinstance(tree, dict):
        try:
            config = Config.model_validate(draft.values)
        except ValidationError as error:
            draft.describe(error)
    if not draft.problems:
        return config, names
    count, more = len(draft.problems), len(draft.problems) - MAX_LINES
    lines = [
        f"{_escaped(path)}: {count} problem{'s' if count > 1 else ''}",
        *draft.problems[:MAX_LINES],
    ]
    raise ConfigError("\n  ".join([*lines, f"and {more} more"] if more > 0 else lines))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that is not a plain word: more texts than PyYAML knows look like a number to us (`6e-4`)."""

    def represent_data(self, data: Any) -> yaml.Node:
        if isinstance(data, str) and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", data):
            return self.represent_scalar("tag:yaml.org,2002:str", data, style='"')
        return super().represent_data(data)


def effective_yaml(config: Config) -> str:
    """Return every key with its value in force, as YAML that `load_config` reads back to an equal Config."""
    return yaml.dump(
        config.model_dump(mode="json"),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=1000,
    )


class _Draft:
    """A configuration in the making: its values, where each was given, and what is wrong, one line each."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}  # of each dotted name
        self.problems: list[str] = []
        self.fields = dict(keys_of())
        dots = [(name, dot.start()) for name in self.fields for dot in re.finditer(r"\.", name)]
        self.sections = list(dict.fromkeys(name[:end] for name, end in dots))  # parents first

    def read(self, text: str, name: str = "") -> Any:
        """Return the plain values of a YAML text, or REFUSED; name: the key that an override sets, "" for a file."""
        line = 1
        try:
            if strange := yaml.reader.Reader.NON_PRINTABLE.search(text):
                line += text.count("\n", 0, strange.start())
                raise ValueError(
                    f"found the character {_shown(strange[0])}, expected readable text"
                )
            depth, nodes, documents, tidy = 0, 0, 0, True
            for event in yaml.parse(text, Loader=PARSER):
                line = event.start_mark.line + 1
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                    event, yaml.CollectionEndEvent
                )
                nodes += isinstance(event, yaml.NodeEvent)
                documents += isinstance(event, yaml.DocumentStartEvent)
                if depth > MAX_DEPTH:
                    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
                if nodes > MAX_NODES:
                    raise ValueError(f"more than {MAX_NODES} keys and values")
                if documents > 1:
                    raise ValueError("a second document (---) begins before here, expected one")
                anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
                if anchor or tag:
                    tidy = False
                    kind = (
                        "alias *"
                        if isinstance(event, yaml.AliasEvent)
                        else "anchor &"
                        if anchor
                        else "tag "
                    )
                    what = kind + _escaped(anchor or tag.replace("tag:yaml.org,2002:", "!!"))
                    reason = f"found the {what}, expected a value without anchors, aliases and tags"
                    self.problems.append(f"{f'--set {name}' if name else f'line {line}'}: {reason}")
            if not nodes:
                raise ValueError(
                    f"found nothing, expected {'a value' if name else 'keys, such as training:'}"
                )
            return (
                self.plain(yaml.compose(text, Loader=PARSER), name, "--set" if name else "")
                if tidy
                else REFUSED
            )
        except yaml.MarkedYAMLError as error:
            line, reason = (
                error.problem_mark.line + 1,
                f"{error.problem} (column {error.problem_mark.column + 1})",
            )
        except (ValueError, OverflowError, yaml.YAMLError) as error:
            reason = str(error)
        self.problems.append(f"{f'--set {name}' if name else f'line {line}'}: {_escaped(reason)}")
        return REFUSED

    def plain(self, node: yaml.Node, name: str, place: str = "") -> Any:
        """Return the value of a node no deeper than MAX_DEPTH; what it refuses becomes REFUSED."""
        here = place or f"line {node.start_mark.line + 1}"
        if isinstance(node, yaml.SequenceNode):
            return [
                self.plain(child, f"{name}[{index}]", place)
                for index, child in enumerate(node.value)
            ]
        if isinstance(node, yaml.ScalarNode):
            value, reason = (node.value, "") if node.style else _scalar(node)
            if reason:
                self.problems.append(f"{_escaped(name)} ({here}): {reason}")
            return REFUSED if reason else value
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            label = (
                f"{name}.{key_node.value}".lstrip(".")
                if isinstance(key_node, yaml.ScalarNode)
                else name
            )
            key = self.plain(key_node, label, place)
            if key is REFUSED:
                continue
            if isinstance(key, str) and key not in values:
                lines[key] = line
                self.places.setdefault(label, f"line {line}")
                values[key] = self.plain(child, label, place)
            else:
                twice = (
                    f"given twice, in lines {lines.get(key)} and {line}"
                    if isinstance(key, str)
                    else ""
                )
                reason = twice or f"found the key {_shown(key)}, expected a name"
                self.problems.append(f"{_escaped(label)} ({place or f'line {line}'}): {reason}")
        return values

    def put(self, name: str, value: Any, only_for_null: bool = False) -> None:
        """Set a dotted name; where what is above it is not a section, that is left for the final check to refuse."""
        *above, last = name.split(".")
        values: Any = self.values
        for part in above:
            values = values.get(part) if isinstance(values, dict) else None
        if isinstance(values, dict) and not (only_for_null and values.get(last) is not None):
            values[last] = value

    def override(self, text: str) -> str:
        """Put one `key=value` over the values; return the key, or "" when it is refused."""
        name, equals, value = (part.strip() for part in text.partition("="))
        below = next((known for known in self.fields if known.startswith(f"{name}.")), None)
        above = next((known for known in self.fields if name.startswith(f"{known}.")), None)
        if name in self.fields and value:
            is_text = any(
                words.startswith("text") for words in _expected(self.fields[name].annotation)
            )
            if is_text and value not in NULL:
                scratch = _Draft().read(value) if value[0] in "\"'" else value
                self.put(name, scratch if isinstance(scratch, str) else value)
            else:
                self.put(name, self.read(value, name))
            self.places[name] = "--set"
            return name
        if not equals:
            name, reason = _shown(text), "expected key=value"
        elif name in self.fields:
            reason = "found no value, expected one, or null"
        elif name in self.sections:
            reason = f"this is a section, expected one of its keys, such as {below}=..."
        else:
            reason = (
                f"{above} is a value, it has no keys below it"
                if above
                else _unknown(name, self.fields)
            )
        self.problems.append(f"--set {_escaped(name)}: {reason}")
        return ""

    def describe(self, error: ValidationError) -> None:
        """Add one line for each key that pydantic refuses; of a union's branches the first one speaks for all."""
        seen = set()
        for item in error.errors(include_url=False):
            path, kind, found = item["loc"], item["type"], item["input"]
            dotted = [".".join(map(str, path[:n])) for n in range(1, len(path) + 1)]
            known = next(
                (name for name in dotted if name in self.fields and kind != "extra_forbidden"), None
            )
            index = next(
                (part for part in path if isinstance(part, int) and known and kind != "missing"),
                None,
            )
            name = known or dotted[-1]
            label = _escaped(name if index is None else f"{name}[{index}]") or '""'
            if label in seen or (found is REFUSED and kind != "extra_forbidden"):
                continue
            seen.add(label)
            if len(self.problems) >= MAX_LINES:
                reason = ""  # counted, not shown
            elif kind == "extra_forbidden":
                reason = _unknown(name, self.sections if isinstance(found, dict) else self.fields)
            elif known:
                expected = _either(
                    _expected(self.fields[name].annotation, self.fields[name].metadata, index)
                )
                unquoted = expected.startswith("text") and isinstance(found, bool | int | float)
                reason = f"found {_shown(found)}, expected {expected}{', in quotes' * unquoted}"
            elif kind == "value_error":  # keys that do not go together
                reason = str(item["ctx"]["error"])
            else:
                reason = f"found {_shown(found)}, expected a section, its keys indented below it"
            self.problems.append(
                f"{label}{f' ({self.places[name]})' if name in self.places else ''}: {reason}"
            )


def _text_of(path: Path) -> str:
    try:
        if not NAME.fullmatch(path.stem):
            found = f"the file's name, {_shown(path.stem)}, names the experiment"
            raise ValueError(
                f"{found}: expected 1 to 100 of A-Z a-z 0-9 . _ -, the first a letter or digit"
            )
        if not stat.S_ISREG(
            path.stat().st_mode
        ):  # asked before opening, since opening a FIFO waits for a writer
            raise ValueError("a folder, pipe or device, expected a YAML file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(
                f"larger than {MAX_BYTES // 1024} KiB, expected the YAML of one experiment"
            )
        if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
            raise ValueError("UTF-16 or a binary file (NUL bytes), expected text saved as UTF-8")
        return data.decode("utf-8")
    except FileNotFoundError:
        reason = f"no such file{_similar_file(path)}"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason = f"line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8, expected text saved as UTF-8"
    except ValueError as error:  # ours, and Python's for a NUL in the path
        reason = str(error)
    raise ConfigError(f"{_escaped(path)}: {reason}")


def _similar_file(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), path.parent)
    below = [folder.glob(pattern) for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml")]
    beside = [folder.parent.glob(pattern) for pattern in ("*.yaml", "*/*.yaml")]
    found: dict[str, Path] = {}
    for file in islice(chain(*below, *beside), 1000):  # the nearest folder first
        found.setdefault(file.name, file)
    close = difflib.get_close_matches(path.name, found, 1)
    return f", did you mean {_escaped(found[close[0]])}?" if close else ""


def _scalar(node: yaml.ScalarNode) -> tuple[Any, str]:
    """Return the value of an unquoted text, and why it is refused, "" when it is not."""
    text, kind = node.value, node.tag.rpartition(":")[2]  # what PyYAML takes it for
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    if text in CONSTANTS:
        return CONSTANTS[text], ""
    if WHOLE.fullmatch(text):
        return int(text), ""
    if REAL.fullmatch(text):
        return float(text), "" if math.isfinite(
            float(text)
        ) else f"found {shown}, which is too large for a number"
    if kind == "merge":
        return text, "found the merge key <<, expected the keys themselves"
    if text.lower().lstrip("+-") in (".inf", ".nan"):
        return text, f"found {text}, expected a finite number"
    if kind not in ("bool", "int", "float", "timestamp") and not re.fullmatch(
        r"[-+]?0[0-9_]+", text
    ):
        return text, ""
    try:
        value = (
            yaml.constructor.SafeConstructor().construct_object(node) if len(text) <= 40 else None
        )
        reading = _shown(value) if isinstance(value, bool | int | float | str) else f"a {kind}"
    except ValueError:
        reading = f"a broken {kind}"
    instead = {"bool": "true or false, or ", "timestamp": ""}.get(
        kind, "a plain decimal number, or "
    )
    return (
        text,
        f'found {shown}, which PyYAML reads as {reading}: write {instead}"{shown}" in quotes for text',
    )


def _expected(annotation: Any, metadata: Sequence[Any] = (), item: int | None = None) -> list[str]:
    """Say in plain words which values a type accepts, one text for each alternative; item: of which item of a list."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple):
        each = _expected(args[min(item or 0, len(args) - 1)])
        return (
            each
            if item is not None
            else [f"a list{f' of {len(args)} items' * (origin is tuple)}, each {_either(each)}"]
        )
    if origin is Annotated:
        return _expected(args[0], [*metadata, *args[1:]])
    if origin in (Union, UnionType):
        return [words for arg in args for words in _expected(arg, metadata)]
    if origin is Literal:
        return [str(choice) for choice in args]
    if annotation in (bool, NoneType):
        return ["true", "false"] if annotation is bool else ["null"]
    limits = [
        limit for part in metadata for limit in getattr(part, "metadata", [part])
    ]  # pydantic nests them
    given = [
        (words, getattr(limit, name, None)) for limit in limits for name, words in LIMITS.items()
    ]
    shown = ", ".join(words.format(limit) for words, limit in given if limit is not None)
    return [
        {int: "a whole number", float: "a number", str: "text"}[annotation]
        + (f" ({shown})" if shown else "")
    ]


def _unknown(name: str, known: Collection[str]) -> str:
    """Say that a key does not exist and which one was probably meant."""
    if name in known:
        return f"a name with dots works in --set only, expected {name.rpartition('.')[2]}: in its section"
    section, _, leaf = name[:200].rpartition(".")
    leaf = dict(pair.split("=") for pair in OTHER_NAMES.split()).get(leaf, leaf)
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    for candidates, cutoff in (
        (known, 1.0),
        (siblings, 0.6),
        (known, 0.6),
    ):  # 1.0: the same name, in another section
        leaves = {key.rpartition(".")[2]: key for key in candidates}
        if close := difflib.get_close_matches(leaf, leaves, 1, cutoff):
            return f"unknown key, did you mean {leaves[close[0]]}?"
    return "unknown key; chatgot/config.py describes all keys"


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _shown(value: Any) -> str:
    """Return a short form of a value, on one line, spelt as in YAML."""
    text = (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    )
    return text if len(text) <= 60 else f"{text[:57]}..."


def _escaped(text: Any) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[:500])
