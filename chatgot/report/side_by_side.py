"""What are several runs, side by side: their losses, and what differs in their settings?

Nothing here is decided by one number alone: `Measure` says by which loss the runs can be compared,
and `notes` say where no loss can.
"""

import math
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from chatgot.config import as_in_yaml, flat, keys_of
from chatgot.plain_yaml import PlainYaml
from chatgot.report import ending, story
from chatgot.report.page import column, last_numbers, refuse_other_folder
from chatgot.report.run_record import (
    Event,
    Row,
    Sample,
    read_events,
    read_rows,
    read_samples,
)

# What is held out follows from the text and these keys, and so does which of it counts.
HELD_OUT_KEYS = (
    "data.test_split",
    "data.split",
    "data.learn_from",
    "data.mixture",
    "data.replay",
)
RUN_ID = re.compile(r"(.+)_\d{8}-\d{6}")
INIT_OPTION = re.compile(r"--in(it(_(f(r(om?)?)?)?)?)?")  # argparse takes its beginnings, too
UNKNOWN = "not known"
SAME = 1e-6  # relative difference of two equal ratios, which were rounded on the way


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs, read from its folder as it is now.

    label: its name in the comparison. settings: by dotted names; None: they cannot be read.
    """

    label: str
    run_dir: Path
    rows: list[Row]
    events: list[Event]
    samples: list[Sample]
    settings: Mapping[str, object] | None

    @cached_property
    def last(self) -> Mapping[str, float]:
        """The last number of each column."""
        return last_numbers(self.rows)

    @cached_property
    def evaluations(self) -> list[tuple[float, float]]:
        """(step, val_loss) of each evaluation after step 0."""
        measured = [(row.step, row.numbers.get("val_loss")) for row in self.rows if row.step > 0]
        return [(step, loss) for step, loss in measured if loss is not None]

    @property
    def steps(self) -> float | None:
        end = story.end_of(self.events)
        steps = None if end is None else end.number("global_step")
        if steps is None and self.rows:
            return self.rows[-1].step
        return steps

    @property
    def minutes(self) -> float | None:
        """Minutes of training, over all resumes."""
        time_s = self.last.get("time_s")
        return None if time_s is None else time_s / 60

    @property
    def last_loss(self) -> float | None:
        return self.evaluations[-1][1] if self.evaluations else None

    @property
    def best(self) -> tuple[float, float] | None:
        """(step, val_loss) of the best evaluation."""
        return min(self.evaluations, key=lambda point: point[1], default=None)

    @property
    def full_loss(self) -> float | None:
        """The loss of the last weights over every held-out token."""
        return self.last.get("val_loss_full")

    @cached_property
    def best_full_loss(self) -> float | None:
        """The loss of the best weights over every held-out token; None: it was not measured.

        An older version measured the last weights alone; where these are the best, that is enough.
        """
        measured = ending.best_full_loss(self.events)
        if measured is not None or self.best is None or not self.is_done:
            return measured
        return self.full_loss if self.best[0] == self.steps else None

    @cached_property
    def bits_per_nat(self) -> float | None:
        """Bits per byte for each nat per token; None: the run did not measure any.

        It says how many bytes a token has, so it differs where a token is another piece of text.
        """
        for row in reversed(self.rows):
            loss = row.numbers.get("val_loss")
            bits = row.numbers.get("val_bits_per_byte")
            if loss and bits:
                return bits / loss
        return None

    @property
    def tokens_per_s(self) -> float | None:
        rates = column(self.rows, "tokens_per_s")
        return statistics.median(rates) if rates else None

    @property
    def nonfinite_rows(self) -> int:
        return sum(row.nonfinite for row in self.rows)

    @property
    def status(self) -> story.Status:
        """How the run ended."""
        if story.last_of(self.events, (*story.BEGINNINGS, *story.ENDS)) is None:
            return story.Status(UNKNOWN, "warn")
        return story.status(self.events)

    @property
    def is_done(self) -> bool:
        """Whether the run reached its end; of a run without events its last row says so."""
        end = story.end_of(self.events)
        if story.last_of(self.events, (*story.BEGINNINGS, *story.ENDS)) is None:
            return self.full_loss is not None
        return end is not None and end.kind == "done"

    @property
    def text_hash(self) -> str:
        """SHA-256 of the text; empty: a run of an older version, which did not note it."""
        beginning = story.last_of(self.events, story.BEGINNINGS)
        return "" if beginning is None else beginning.word("data_sha256")

    @property
    def text_in_words(self) -> str:
        """The size of the text, and what its tokens are; the same words, the same size."""
        beginning = story.last_of(self.events, story.BEGINNINGS)
        return "" if beginning is None else beginning.text

    def setting(self, key: str) -> object:
        """Return the value of a key; None: null, or not known."""
        return None if self.settings is None else self.settings.get(key)

    @cached_property
    def surroundings(self) -> dict[str, str]:
        """What a run depends on beside its settings, by name; empty: not known."""
        begin = next((event for event in self.events if event.kind == "start"), None)
        last = story.last_of(self.events, story.BEGINNINGS)
        if last is None:
            return {}
        return {
            "starts from": "" if begin is None else _start_named_in(begin.word("command")),
            "precision": ", then ".join(story.precisions(self.events, {})),
            "device": last.word("device"),
            "torch": last.word("torch"),
            "ChatGoT": last.word("version"),
        }


def _start_named_in(command: str) -> str:
    """Return which checkpoint or model a command starts from, as it was typed."""
    words: list[str] = []
    with suppress(ValueError):
        words = shlex.split(command)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, is_joined, value = word.partition("=")
        if INIT_OPTION.fullmatch(name):
            return value if is_joined else following
    return "fresh weights" if words else ""


# --------------------------------------------------------------------------------------------------
# Reading


def read_runs(run_dirs: Sequence[Path]) -> list[ComparedRun]:
    """Read the folders of several runs as they are now.

    Raises: ConfigError if one of them is not the folder of a run.
    """
    for run_dir in run_dirs:
        refuse_other_folder(run_dir)
    return [
        ComparedRun(
            label=label,
            run_dir=run_dir,
            rows=read_rows(run_dir),
            events=read_events(run_dir),
            samples=read_samples(run_dir),
            settings=_read_settings(run_dir),
        )
        for label, run_dir in zip(_labels(run_dirs), run_dirs, strict=True)
    ]


def configuration_of(run_id: str) -> str:
    """Return the name of the YAML or text in a run's id."""
    match = RUN_ID.fullmatch(run_id)
    return run_id if match is None else match[1]


def _labels(run_dirs: Sequence[Path]) -> list[str]:
    """Return the shortest names that tell the runs apart: configuration, run id, or folder."""
    ids = [run_dir.resolve().name for run_dir in run_dirs]
    for names in (list(map(configuration_of, ids)), ids):
        if len(set(names)) == len(names):
            return names
    return [str(run_dir.resolve()) for run_dir in run_dirs]


def _read_settings(run_dir: Path) -> dict[str, object] | None:
    """Return all settings of a run; a key that is newer than the run has its default."""
    try:
        text = (run_dir / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    content = PlainYaml().read(text)
    if not isinstance(content, dict):
        return None
    defaults = {
        key: list(field.default) if isinstance(field.default, tuple) else field.default
        for key, field in keys_of()
    }
    return defaults | flat(content)


# --------------------------------------------------------------------------------------------------
# By what they are compared


@dataclass(frozen=True)
class Measure:
    """The number by which the runs are ranked: the lower, the better.

    weights: which ones are measured over all held-out text; None: the best evaluation counts, which
        saw a part of it.
    in_bits: bits per byte, instead of nats per token.
    """

    weights: Literal["best", "last"] | None
    in_bits: bool

    @property
    def is_full(self) -> bool:
        """Whether every held-out token counts."""
        return self.weights is not None

    @property
    def name(self) -> str:
        if self.weights is None:
            return "best val_loss"
        return "best_val_loss_full" if self.weights == "best" else "val_loss_full"

    @property
    def in_words(self) -> str:
        """On which weights and tokens it was measured."""
        if self.weights is None:
            return "the best evaluation, which saw a part of the held-out text"
        return f"the {self.weights} weights over every held-out token"

    @property
    def unit(self) -> str:
        return "bits per byte" if self.in_bits else "nats per token"

    def of(self, run: ComparedRun) -> float | None:
        """Return a run's number; None: it was not measured."""
        if self.weights == "best":
            loss = run.best_full_loss
        elif self.weights == "last":
            loss = run.full_loss
        else:
            loss = None if run.best is None else run.best[1]
        return loss if loss is None else self.converted(loss, run)

    def converted(self, loss: float, run: ComparedRun) -> float | None:
        """Return a loss of a run, in nats per token, in this unit; None: that is not known."""
        if not self.in_bits:
            return loss
        return None if run.bits_per_nat is None else loss * run.bits_per_nat

    def bits(self, run: ComparedRun) -> float | None:
        """Return the bits per byte of a run at the same evaluation."""
        return Measure(self.weights, in_bits=True).of(run)


def measure_for(runs: Sequence[ComparedRun]) -> Measure:
    """Return the number by which these runs can be compared.

    The loss of the best weights over all held-out text, if every run has one. Evaluations see a
    part of that text, and the best of many is also the luckiest. Without it, the loss of the last
    weights serves where evaluations saw other windows or other tokens, which alone makes a
    difference.
    """
    in_bits = has_other_tokens(runs)
    measured = [run for run in runs if run.evaluations]
    if measured and all(run.best_full_loss is not None for run in measured):
        return Measure("best", in_bits)
    has_full = bool(measured) and all(run.full_loss is not None for run in measured)
    if has_full and (in_bits or has_other_windows(runs)):
        return Measure("last", in_bits)
    return Measure(None, in_bits)


def has_other_tokens(runs: Sequence[ComparedRun]) -> bool:
    """Return whether a token is another piece of text in some of these runs."""
    ratios = [run.bits_per_nat for run in runs if run.bits_per_nat is not None]
    if ratios and max(ratios) > (1 + SAME) * min(ratios):
        return True
    return len({_tokens_of(run) for run in runs if run.settings is not None}) > 1


def _tokens_of(run: ComparedRun) -> tuple[object, object]:
    kind = run.setting("data.tokenizer")
    return kind, run.setting("data.vocab_size") if kind == "bpe" else None


def has_other_windows(runs: Sequence[ComparedRun]) -> bool:
    """Return whether the evaluations of these runs look at other windows of the held-out text."""
    return len({_windows_of(run) for run in runs if run.settings is not None}) > 1


def _windows_of(run: ComparedRun) -> tuple[object, object]:
    batches = run.setting("training.eval_batches")
    size = run.setting("training.batch_size")
    sequences = batches
    if isinstance(batches, int) and isinstance(size, int):
        sequences = batches * size
    return sequences, run.setting("model.max_seq_length")


def ranked(runs: Sequence[ComparedRun], measure: Measure) -> list[ComparedRun]:
    """Return the runs, the best first; those without a number come last."""

    def key(run: ComparedRun) -> float:
        number = measure.of(run)
        return math.inf if number is None else number

    return sorted(runs, key=key)


# --------------------------------------------------------------------------------------------------
# What has to be said before any loss is read


@dataclass(frozen=True)
class Note:
    """A sentence about the comparison; is_grave: without it, the numbers mislead."""

    text: str
    is_grave: bool = False


def notes(runs: Sequence[ComparedRun], measure: Measure) -> list[Note]:
    """Return what limits the comparison, the gravest first."""
    return [
        *_notes_on_texts(runs),
        *_notes_on_held_out_parts(runs),
        *_notes_on_tokens(runs, measure),
        *_notes_on_windows(runs, measure),
        *_notes_on_missing(runs, measure),
    ]


def why_not_comparable(runs: Sequence[ComparedRun], measure: Measure) -> str:
    """Return why a difference of these runs' losses tells nothing; empty: it does tell."""
    if _notes_on_texts(runs, unknown=False):
        return "the texts differ"
    if _notes_on_held_out_parts(runs):
        return "another part of the text is held out, or counts"
    if not measure.is_full and (measure.in_bits or has_other_windows(runs)):
        return "each loss was measured on other windows of the held-out text"
    return ""


def named(runs: Sequence[ComparedRun]) -> str:
    return ", ".join(run.label for run in runs)


def in_words(values: Sequence[str], runs: Sequence[ComparedRun]) -> str:
    """Return each value and who has it, as in "0.1 (a, b), 0.2 (c)"."""
    groups: dict[str, list[ComparedRun]] = {}
    for value, run in zip(values, runs, strict=True):
        groups.setdefault(value, []).append(run)
    return ", ".join(f"{value} ({named(group)})" for value, group in groups.items())


def _notes_on_texts(runs: Sequence[ComparedRun], unknown: bool = True) -> list[Note]:
    """Return what is to be said where the texts differ, or, with `unknown`, where they may."""
    known = [run for run in runs if run.text_hash]
    if len({run.text_hash for run in known}) > 1:
        hashes = [f"SHA-256 {run.text_hash[:12]}" for run in known]
        return [_grave(f"the texts differ: {in_words(hashes, known)}")]
    silent = [run for run in runs if not run.text_hash]
    if not silent:
        return []
    told = [run for run in runs if run.text_in_words]
    sizes = [run.text_in_words for run in told]
    has_one_size = len(set(sizes)) == 1 and len(told) == len(runs)
    if len(set(sizes)) > 1 and not has_other_tokens(runs):
        return [_grave(f"the texts differ: {in_words(sizes, told)}")]
    if not unknown:
        return []
    size = "its size is the same" if has_one_size else "look at data.path"
    return [
        Note(
            "Whether all read the same text is not known, since an older version did not note its "
            f"hash ({named(silent)}); {size}."
        )
    ]


def _notes_on_held_out_parts(runs: Sequence[ComparedRun]) -> list[Note]:
    told = [run for run in runs if run.settings is not None]
    differ = []
    for key in HELD_OUT_KEYS:
        # null and 0 (of replay) measure the same
        values = [as_in_yaml(run.setting(key) or None) for run in told]
        if len(set(values)) > 1:
            differ.append(f"{key} {in_words(values, told)}")
    if not differ:
        return []
    return [_grave(f"another part of the text is held out, or counts: {'; '.join(differ)}")]


def _grave(reason: str) -> Note:
    return Note(f"These losses cannot be compared: {reason}.", is_grave=True)


def _notes_on_tokens(runs: Sequence[ComparedRun], measure: Measure) -> list[Note]:
    if not measure.in_bits:
        return []
    known = {run.label: run.bits_per_nat for run in runs if run.bits_per_nat is not None}
    ratios = [f"{ratio * math.log(2):.3f}" for ratio in known.values()]
    sizes = in_words(ratios, [run for run in runs if run.label in known])
    lines = [
        Note(
            "Losses in nats per token cannot be compared here, since a token is another piece of "
            f"text: tokens per byte {sizes or UNKNOWN}. Bits per byte can be compared, and the "
            "runs are ranked by them."
        )
    ]
    silent = [run for run in runs if run.evaluations and run.label not in known]
    if silent:
        lines.append(Note(f"No bits per byte, so no rank: {named(silent)}."))
    return lines


def _notes_on_windows(runs: Sequence[ComparedRun], measure: Measure) -> list[Note]:
    if not (measure.in_bits or has_other_windows(runs)):
        return []
    other = "Each val_loss was measured on other windows of the held-out text"
    if measure.is_full:
        return [
            Note(
                f"{other}, so the runs are ranked by {measure.name}: every token of that text, "
                f"with the {measure.weights} weights of a run."
            )
        ]
    silent = [run for run in runs if run.evaluations and run.full_loss is None]
    if not silent:
        return []
    return [
        Note(
            f"{other}, which alone makes a difference: this ranking may be wrong. val_loss_full "
            f"would compare, but is missing: {named(silent)}."
        )
    ]


def _notes_on_missing(runs: Sequence[ComparedRun], measure: Measure) -> list[Note]:
    lines = []
    without = [run for run in runs if run.rows and not run.evaluations]
    if without:
        lines.append(Note(f"No evaluation after step 0: {named(without)}."))
    empty = [run for run in runs if not run.rows]
    if empty:
        lines.append(Note(f"metrics.jsonl is missing or has no readable row: {named(empty)}."))
    no_settings = [run for run in runs if run.settings is None]
    if no_settings:
        lines.append(Note(f"The settings are not known (no config.yaml): {named(no_settings)}."))
    going_on = [run for run in runs if not run.is_done and measure.of(run) is not None]
    if going_on:
        lines.append(Note(f"Not at its end: {named(going_on)}."))
    return lines


# --------------------------------------------------------------------------------------------------
# What differs


@dataclass(frozen=True)
class Difference:
    """A setting, or something else, whose values differ: one value for each run."""

    name: str
    values: list[str]


def differences(runs: Sequence[ComparedRun]) -> list[Difference]:
    """Return the settings whose values differ, in the order of the YAML."""
    told = [run.settings for run in runs if run.settings is not None]
    names = dict.fromkeys(key for settings in told for key in settings)
    found = []
    for name in names:
        if len({as_in_yaml(settings.get(name)) for settings in told}) > 1:
            values = [
                UNKNOWN if run.settings is None else as_in_yaml(run.settings.get(name))
                for run in runs
            ]
            found.append(Difference(name, values))
    return found


def other_differences(runs: Sequence[ComparedRun]) -> list[Difference]:
    """Return what else differs: where the runs start, on which device, with which versions."""
    names = Counter(name for run in runs for name, value in run.surroundings.items() if value)
    found = []
    for name in names:
        values = [run.surroundings.get(name, "") for run in runs]
        if len(set(filter(None, values))) > 1:
            found.append(Difference(name, [value or UNKNOWN for value in values]))
    return found
