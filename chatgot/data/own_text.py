"""A text that is trained on without a YAML: the run's name, the recipes to choose from, its length.

Nothing here needs torch: a user's mistakes are found before it is imported.
"""

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatgot.config import Config, PathsConfig
from chatgot.config_file import load_config
from chatgot.data.encoding import detect_encoding
from chatgot.data.lengths import least_length, parts_are_long_enough, split_index
from chatgot.data.text_file import check_text_file, text_chunks
from chatgot.errors import ConfigError
from chatgot.given_path import refuse_other_bytes
from chatgot.shipped import recipes_folder

# The recipes to choose from, the smallest first
RECIPES = (
    "chatgot_mini",
    "chatgot_quick",
    "chatgot_small_4M",
    "chatgot_small_14M",
    "chatgot_small_85M",
)
FINE_TUNING = "chatgot_finetune"  # the recipe for a run that starts from a model from elsewhere
LEAST_CONTEXT = 32  # tokens: with fewer a model does not even see one sentence
MOST_BYTES = 4  # of one character, in any encoding
LONGEST_NAME = 80  # characters of a run's name; a configuration's may have 100
# The folder of each run has files of these names
TAKEN_NAMES = ("config",)
DEFAULT_MINUTES = 10.0
# What some recipes have for the plays, set back for another text. Its length decides what its
# tokens are and how long a sample is. Dropout is chosen later; the speed is measured without.
NOT_OF_THE_PLAYS = (
    "data.tokenizer=char",
    "model.dropout=0.0",
    "sampling.max_new_tokens=200",
)
# A run until nothing gets better has no limit of its own: a recipe is chosen as if it had a day.
MINUTES_UNTIL_BEST = 1440.0
# What such a run needs; how many evaluations it waits for is chosen later.
UNTIL_BEST = (
    "training.lr_schedule=wsd",
    "training.stop_when_no_better=1",
    "training.max_steps=null",
    "training.epochs=null",
)


@dataclass(frozen=True)
class Request:
    """What the user asks for: a text, the minutes to train, and the keys to set."""

    text: Path
    minutes: float = DEFAULT_MINUTES
    overrides: tuple[str, ...] = ()
    until_best: bool = False  # train until nothing gets better, at most the minutes
    has_limit: bool = True  # the minutes end the run; else they are only planned with
    resumes: bool = False  # a run of this text is to go on
    imports: bool = False  # it starts from a model from elsewhere
    shape: tuple[str, ...] = ()  # `model.key=value` of that model
    tokens: tuple[str, ...] = ()  # `data.key=value` for what a token is, chosen for the text

    @property
    def name(self) -> str:
        """The name of the run, and of the YAML that is written for it."""
        return name_of(self.text)

    @property
    def keys(self) -> set[str]:
        """The dotted names of the keys that the user sets."""
        return {override.partition("=")[0].strip() for override in self.overrides}

    @property
    def recipes(self) -> tuple[str, ...]:
        """The names of the recipes to choose from, the smallest first."""
        return (FINE_TUNING,) if self.imports else RECIPES

    @property
    def folders(self) -> tuple[str, ...]:
        """The overrides that say where a run writes."""
        return tuple(text for text in self.overrides if text.strip().startswith("paths."))


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be chosen, with the user's keys in it."""

    name: str
    config: Config


def name_of(text: Path) -> str:
    """Return a text's file name without its ending, made safe for the names of files and runs."""
    ascii_only = unicodedata.normalize("NFKD", text.stem).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_only)
    name = safe.lstrip("._-").rstrip("._-")[:LONGEST_NAME] or "text"
    return f"{name}_text" if name.lower() in TAKEN_NAMES else name


def as_yaml(value: object) -> str:
    """Return a value on one line, as YAML reads it back; texts in quotes."""
    text = json.dumps(value, ensure_ascii=False)  # JSON is YAML as well
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in text)


def setting(key: str, value: str | Sequence[str]) -> str:
    """Return `key=value` as it is typed after `--set`, for one text or a list of them.

    On Windows texts stand in single quotes, as YAML takes them too: PowerShell ends a word at a
    double quote inside it.
    """
    if os.name != "nt":
        return f"{key}={as_yaml(value)}"
    if isinstance(value, str):
        return f"{key}={_in_single_quotes(value)}"
    return f"{key}=[{', '.join(map(_in_single_quotes, value))}]"


def _in_single_quotes(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def recipe(request: Request, name: str, chosen: Sequence[str] = ()) -> Config:
    """Return a shipped recipe for this text, with what was chosen and what the user sets.

    chosen: `key=value` texts; the user's own come after them and win.
    Raises: ConfigError.
    """
    path = recipes_folder() / f"{name}.yaml"
    minutes = repr(request.minutes) if request.has_limit else "null"
    given = [
        f"data.path={as_yaml(str(request.text.resolve()))}",
        f"training.max_minutes={minutes}",
        *NOT_OF_THE_PLAYS,
        *(UNTIL_BEST if request.until_best else ()),
    ]
    config, _ = load_config(
        path, [*given, *request.shape, *request.tokens, *chosen, *request.overrides]
    )
    return config


def paths_of(request: Request) -> PathsConfig:
    """Return the folders that a run of this text has. Raises: ConfigError."""
    return recipe(Request(request.text, overrides=request.folders), RECIPES[0]).paths


def candidates(request: Request) -> list[Candidate]:
    """Return the recipes that the user's keys leave possible, the smallest first.

    Raises: ConfigError when they fit none.
    """
    possible = []
    first_error = None
    for name in request.recipes:
        try:
            possible.append(Candidate(name, recipe(request, name)))
        except ConfigError as error:
            first_error = first_error or error
    if not possible:
        assert first_error is not None, "each recipe was read or refused"
        raise first_error
    return possible


def context_for(
    request: Request, config: Config, n_tokens: int, n_train: int | None = None
) -> int | None:
    """Return the longest context of which a text holds enough windows; None: it is too short.

    It is the recipe's, or that halved as often as need be. A context that the user sets stays.

    n_train: the tokens of the training part; None: `data.test_split` says.
    """
    T = config.model.max_seq_length
    batch_size = config.training.batch_size
    train = split_index(n_tokens, config.data.test_split) if n_train is None else n_train
    while not parts_are_long_enough(train, n_tokens - train, T, batch_size):
        T //= 2
        if T < LEAST_CONTEXT or "model.max_seq_length" in request.keys:
            return None
    return T


def refuse_short(
    request: Request,
    smallest: Config,
    n_tokens: int,
    unit: str = "characters",
    n_train: int | None = None,
) -> None:
    """Refuse a text that is too short for the smallest recipe.

    unit: what the tokens are called.
    n_train: the tokens of the training part; None: `data.test_split` says.
    Raises: ConfigError with the tokens found and needed.
    """
    if context_for(request, smallest, n_tokens, n_train):
        return
    raise ConfigError(
        f"{request.text}: {n_tokens} {unit}, at least {_least_length(request, smallest)} "
        "are needed to train on; give a longer text"
    )


def _least_length(request: Request, config: Config) -> int:
    T = config.model.max_seq_length
    while T // 2 >= LEAST_CONTEXT and "model.max_seq_length" not in request.keys:
        T //= 2
    return least_length(T, config.training.batch_size, config.data.test_split)


def check_keys(request: Request) -> None:
    """Refuse keys that do not go with a text, or that no recipe can take. Raises: ConfigError."""
    if "data.path" in request.keys:
        raise ConfigError(f"--set data.path: the text is {request.text} already; leave one out")
    if request.resumes:
        return
    if "training.max_minutes" in request.keys:
        raise ConfigError("--set training.max_minutes: with a text, say --minutes instead")
    if not request.imports:
        candidates(request)


def check_request(request: Request) -> None:
    """Refuse, before anything is computed, what cannot be trained on.

    Raises: ConfigError for a text that is missing, no regular file, not readable or too short, and
    for keys that do not go with a text, or that no recipe can take.
    """
    size = check_text_file(request.text, advice="give")
    try:
        refuse_other_bytes(str(request.text.resolve()))
    except ValueError as error:
        raise ConfigError(
            f"{request.text}: {error}; a YAML with data.path, and --config, can do that"
        ) from error
    check_keys(request)
    if request.resumes or request.imports:
        return  # what fits is known when that model has been read
    smallest = candidates(request)[0].config
    if size <= MOST_BYTES * _least_length(request, smallest):
        # so small that its characters are counted at once
        encoding = smallest.data.encoding or detect_encoding(request.text)
        chunks = text_chunks(request.text, encoding)
        refuse_short(request, smallest, sum(map(len, chunks)))
