"""How a YAML file and `--set` become a Config.

`plain_yaml` reads the text, and pydantic checks types and ranges. This module puts pydantic's
errors into plain words and reports all problems at once.
"""

import difflib
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from chatgot.accepted_values import accepted_values, either
from chatgot.config import GIVEN, Config, Explained, keys_of
from chatgot.errors import ConfigError
from chatgot.plain_yaml import NULL, REFUSED, PlainYaml, escaped, shown
from chatgot.shipped import shipped_names

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_BYTES = 256 * 1024
MAX_LINES = 20  # of problems in one message
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PLAIN_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# Our key: its names in other trainers. They serve as hints in messages and are never accepted.
OTHER_NAMES = {
    "d_model": "n_embd n_embed hidden_size embed_dim",
    "n_layers": "num_hidden_layers num_layers depth",
    "n_head": "num_heads num_attention_heads",
    "n_kv_head": "num_key_value_heads num_kv_heads n_query_groups",
    "head_dim": "head_size d_head",
    "d_hid": "d_ff intermediate_size ffn_dim n_inner",
    "max_seq_length": "block_size context_length n_ctx max_position_embeddings",
    "rope_base": "rope_theta rotary_base",
    "qk_norm": "norm_qk use_qk_norm",
    "dropout": "dropout_p resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "batch_size": "bs",
    "accumulate_grad_batches": "gradient_accumulation_steps grad_accum",
    "max_steps": "max_iters num_iterations total_steps",
    "learning_rate": "lr max_lr",
    "min_learning_rate": "min_lr",
    "weight_decay": "wd",
    "lr_schedule": "scheduler",
    "grad_clip": "clip max_grad_norm max_norm",
    "mixed_precision": "amp fp16 bf16",
    "precision_dtype": "dtype",
    "save_checkpoint_steps": "save_steps save_every",
    "max_checkpoints_to_keep": "save_total_limit",
    "log_interval": "logging_steps",
    "eval_batches": "eval_iters",
    "eval_interval": "eval_steps eval_step eval_every",
    "checkpoints": "out_dir output_dir",
}
# The same for values: key, our value, its names elsewhere.
OTHER_VALUES = {
    "training.lora.targets": {
        "qkv": "q k v query key value q_proj k_proj v_proj query_key_value c_attn Wqkv",
        "proj": "o o_proj out_proj c_proj wo attn.c_proj dense",
        "up": "up_proj c_fc fc1 fc_in dense_h_to_4h",
        "gate_up": "gate gate_proj gate_up_proj",
        "down": "down_proj fc2 fc_out dense_4h_to_h",
    },
}


def load_config(path: Path, overrides: Sequence[str] = ()) -> tuple[Config, set[str]]:
    """Read a YAML file, apply each `key=value` of `overrides`, and check the result.

    Returns the configuration and the dotted names of the keys that `overrides` set. If a key is set
    twice, the last value wins. The file is never changed.
    Raises: ConfigError with all problems of the file and the overrides, one on each line.
    """
    draft = _Draft()
    draft.take_file(_text_of(path))
    names = {draft.override(text) for text in overrides}
    config = draft.checked()
    if config is None:
        raise ConfigError(_message(path, draft.problems))
    return config, names


def config_of(text: str, name: str) -> Config:
    """Return the configuration that a YAML text makes; `name` stands for its file in messages.

    Raises: ConfigError.
    """
    draft = _Draft()
    draft.take_file(text)
    config = draft.checked()
    if config is None:
        raise ConfigError(_message(Path(name), draft.problems))
    return config


def key_meant(name: str) -> str | None:
    """Return the key that a word names or nearly names, as an option in another trainer would.

    None: no key is like it.
    """
    known = dict(keys_of())
    name = name.replace("-", "_")
    leaf = name.rpartition(".")[2]
    leaf = _our_names().get(leaf, leaf)
    if name in known:
        return name
    return _same_leaf(name.rpartition(".")[0], leaf, known) or _similar_leaf(leaf, known) or None


def effective_yaml(config: Config) -> str:
    """Return all keys with their values as YAML, which `load_config` reads to an equal Config."""
    return str(
        yaml.dump(
            config.model_dump(mode="json"),
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            width=1000,
        )
    )


class _Dumper(yaml.SafeDumper):
    """Quotes every text that is not a plain word: we read more of them as numbers (`6e-4`)."""

    def represent_data(self, data: object) -> yaml.Node:
        if isinstance(data, str) and not PLAIN_WORD.fullmatch(data):
            return self.represent_scalar("tag:yaml.org,2002:str", data, style='"')
        return super().represent_data(data)


def _message(path: Path, problems: Sequence[str]) -> str:
    plural = "s" if len(problems) > 1 else ""
    lines = [f"{escaped(path)}: {len(problems)} problem{plural}", *problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        lines.append(f"and {len(problems) - MAX_LINES} more")
    return "\n  ".join(lines)


class _Draft:
    """A configuration while it is built: its values, where each was given, and the problems."""

    def __init__(self) -> None:
        self.yaml = PlainYaml()
        self.values: dict[str, object] | None = None  # None: the file is not made of sections
        self.fields = dict(keys_of())
        self.sections = _sections_of(self.fields)

    @property
    def problems(self) -> list[str]:
        return self.yaml.problems

    def take_file(self, text: str) -> None:
        """Take a file's values; a missing or empty section becomes {}."""
        tree = self.yaml.read(text)
        if isinstance(tree, dict):
            self.values = tree
        elif tree is not REFUSED:
            self.problems.append(
                f"found {shown(tree)} at the top, "
                "expected sections with their keys, such as training:"
            )
        for section in self.sections:
            parent, last = self._place_of(section)
            if parent is not None and parent.get(last) is None:
                parent[last] = {}

    def _place_of(self, name: str) -> tuple[dict[str, object] | None, str]:
        """Return the section that contains a dotted name, and the name's last part.

        None: the name's first part is not a section; the final check reports that.
        """
        *above, last = name.split(".")
        values: object = self.values
        for part in above:
            values = values.get(part) if isinstance(values, dict) else None
        return (values if isinstance(values, dict) else None), last

    def override(self, text: str) -> str:
        """Apply one `key=value`; return the key, or "" if it is refused."""
        name, equals, value = (part.strip() for part in text.partition("="))
        if name in self.fields and value:
            parent, last = self._place_of(name)
            given = self._value_of(name, value)
            if parent is not None:
                parent[last] = given
            self.yaml.places[name] = "--set"
            return name
        label = escaped(name if equals else shown(text))
        self.problems.append(f"--set {label}: {self._why_refused(name, equals)}")
        return ""

    def _value_of(self, name: str, text: str) -> object:
        """Read the value that `--set` gives a key; text may be given with or without quotes."""
        accepted = accepted_values(self.fields[name])
        is_text = any(words.startswith("text") for words in accepted)
        if not is_text or text in NULL:
            return self.yaml.read(text, name)
        if text[0] == "[" and any(words.startswith("a list") for words in accepted):
            items = PlainYaml().read(text)
            if isinstance(items, list):
                return items
        if text[0] in "\"'":
            unquoted = PlainYaml().read(text)
            if isinstance(unquoted, str):
                return unquoted
        return text

    def _why_refused(self, name: str, equals: str) -> str:
        if not equals:
            return "expected key=value"
        if name in self.fields:
            return "found no value after =, expected a value or null"
        if name in self.sections:
            below = next(known for known in self.fields if known.startswith(f"{name}."))
            return f"found a section, expected one of its keys, such as {below}=..."
        for known in self.fields:
            if name.startswith(f"{known}."):
                return f"{known} is a value, it has no keys"
        return _unknown(name, self._names_like(name, None))

    def checked(self) -> Config | None:
        """Return the configuration, or None if there are `problems`."""
        config = None
        if self.values is not None:
            try:
                config = Config.model_validate(self.values, context=GIVEN)
            except ValidationError as error:
                self._describe(error)
        return None if self.problems else config

    def _describe(self, error: ValidationError) -> None:
        """Note one line for each key that pydantic refuses; of a union, only the first error."""
        described: set[str] = set()
        for item in error.errors(include_url=False):
            unknown = item["type"] == "extra_forbidden"
            name, index = self._subject_of(item)
            label = escaped(name if index is None else f"{name}[{index}]") or '""'
            if label in described or (item["input"] is REFUSED and not unknown):
                continue
            described.add(label)
            # problems that will not be shown are only counted
            reason = "" if len(self.problems) >= MAX_LINES else self._reason_for(item, name, index)
            if not item["loc"]:  # about several sections: the reason names the keys
                self.problems.append(reason)
                continue
            place = f" ({self.yaml.places[name]})" if name in self.yaml.places else ""
            self.problems.append(f"{label}{place}: {reason}")

    def _subject_of(self, item: "ErrorDetails") -> tuple[str, int | None]:
        """Return the key or section that an error is about, and which item of its list."""
        path = item["loc"]
        dotted = [".".join(map(str, path[:n])) for n in range(1, len(path) + 1)]
        if item["type"] != "extra_forbidden":
            for length, name in enumerate(dotted, start=1):
                if name in self.fields:
                    items = (part for part in path[length:] if isinstance(part, int))
                    return name, None if item["type"] == "missing" else next(items, None)
        return (dotted[-1] if dotted else ""), None

    def _reason_for(self, item: "ErrorDetails", name: str, index: int | None) -> str:
        given = item["input"]
        if item["type"] == "extra_forbidden":
            return _unknown(name, self._names_like(name, given))
        error = item.get("ctx", {}).get("error")
        if isinstance(error, Explained):
            return str(error)
        if name in self.fields:
            choices = accepted_values(self.fields[name], index)
            expected = either(choices)
            if expected.startswith("text") and isinstance(given, bool | int | float):
                expected += ", in quotes"
            meant = _similar_choice(name, given, choices)
            return f"found {shown(given)}, expected {expected}{meant}"
        if item["type"] == "value_error":  # keys that do not go together
            return str(item["ctx"]["error"])
        return f"found {shown(given)}, expected a section, its keys indented below it"

    def _names_like(self, name: str, given: object) -> Collection[str]:
        """Return the names to compare an unknown name with: all sections, or all keys."""
        sections = {section.rpartition(".")[2] for section in self.sections}
        if isinstance(given, dict) or name.rpartition(".")[2] in sections:
            return self.sections
        return self.fields


def _sections_of(names: Iterable[str]) -> list[str]:
    """Return the sections of dotted names, parents before their children."""
    sections: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            sections[".".join(parts[:length])] = None
    return list(sections)


def _text_of(path: Path) -> str:
    """Return the text of a YAML file. Raises: ConfigError with the reason."""
    try:
        _check_name(path)
        return _decoded(_bytes_of(path))
    except FileNotFoundError:
        reason = f"no such file{_similar_file(path)}; shipped ones: {', '.join(shipped_names())}"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        reason = f"line {line}: byte 0x{byte:02x} is not UTF-8, expected text saved as UTF-8"
    except ValueError as error:  # ours, and Python's for a NUL in the path
        reason = str(error)
    raise ConfigError(f"{escaped(path)}: {reason}")


def _check_name(path: Path) -> None:
    if not NAME.fullmatch(path.stem):
        raise ValueError(
            f"the file's name, {shown(path.stem)}, becomes the run's name: "
            "expected 1 to 100 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
        )


def _bytes_of(path: Path) -> bytes:
    # checked first, because opening a FIFO waits for a writer
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("found a folder, pipe or device, expected a YAML file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"larger than {MAX_BYTES // 1024} KiB, expected the YAML of one experiment"
        )
    return data


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        raise ValueError("found UTF-16 or a binary file (NUL bytes), expected text saved as UTF-8")
    return data.decode("utf-8")


def _similar_file(path: Path) -> str:
    """Return a hint that names the YAML file with the most similar name, "" if none is similar."""
    nearby: dict[str, Path] = {}
    for file in islice(_files_near(path), 1000):
        nearby.setdefault(file.name, file)
    close = difflib.get_close_matches(path.name, nearby, 1)
    return f", did you mean {escaped(nearby[close[0]])}?" if close else ""


def _files_near(path: Path) -> Iterator[Path]:
    """Yield YAML files below and next to the folder of `path`, the nearest first."""
    folder = next((parent for parent in path.parents if parent.is_dir()), path.parent)
    for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml"):
        yield from folder.glob(pattern)
    for pattern in ("*.yaml", "*/*.yaml"):
        yield from folder.parent.glob(pattern)


def _unknown(name: str, known: Collection[str]) -> str:
    """Say that a key does not exist and which one was probably meant."""
    section, _, leaf = name[:200].rpartition(".")
    if name in known:
        return f"a name with dots works only in --set; in YAML, write {leaf}: inside its section"
    leaf = _our_names().get(leaf, leaf)
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    meant = (
        _same_leaf(section, leaf, known)
        or _similar_leaf(leaf, siblings)
        or _similar_leaf(leaf, known)
    )
    if meant:
        return f"unknown key, did you mean {meant}?{_lookalike(name)}"
    return f"unknown key; chatgot/config.py describes all keys{_lookalike(name)}"


def _lookalike(name: str) -> str:
    """Return which character of a key is no ASCII, "" if all are: it may look like one."""
    character = next((c for c in name if not c.isascii()), None)
    if character is None:
        return ""
    named = f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()
    return f" It has {named}; all keys are ASCII"


def _similar_choice(name: str, given: object, choices: Sequence[str]) -> str:
    """Return a hint at the choice that was probably meant, "" if none is similar."""
    if not isinstance(given, str):
        return ""
    words = [choice for choice in choices if PLAIN_WORD.fullmatch(choice)]
    ours = _by_other_name(OTHER_VALUES.get(name, {})).get(given)
    close = [ours] if ours else difflib.get_close_matches(given[:200], words, 1, 0.6)
    return f", did you mean {close[0]}?" if close else ""


def _our_names() -> Mapping[str, str]:
    return _by_other_name(OTHER_NAMES)


def _by_other_name(names: Mapping[str, str]) -> Mapping[str, str]:
    return {other: ours for ours, others in names.items() for other in others.split()}


def _same_leaf(section: str, leaf: str, known: Collection[str]) -> str:
    """Return the known name that ends in `leaf`, "" if there is none.

    Of several, a name is preferred whose section has the same last part.
    """
    same = [other for other in known if other.rpartition(".")[2] == leaf]
    above = section.rpartition(".")[2]
    for other in same:
        if above and other.endswith(f".{above}.{leaf}"):
            return other
    return same[-1] if same else ""


def _similar_leaf(leaf: str, known: Collection[str]) -> str:
    """Return the known name whose last part is most similar to `leaf`, "" if none is similar."""
    leaves = {other.rpartition(".")[2]: other for other in known}
    close = difflib.get_close_matches(leaf, leaves, 1, 0.6)
    return leaves[close[0]] if close else ""
