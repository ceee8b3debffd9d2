"""Fit the rule that predicts a run's held-out loss to runs that were measured.

The table has one line for each run: numbers about its text, and what came out, but no text.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.script_runs import ROOT, Figures, json_lines
from chatgot.config_file import load_config
from chatgot.data.configured_text import load_text, text_path
from chatgot.data.ngram_loss import difficulty
from chatgot.training.predicted_loss import Planned

TABLE = ROOT / "docs" / "measured-runs.csv"
CONSTANTS = ROOT / "chatgot" / "training" / "loss_constants.py"
COVERED = 0.9  # of the runs of a text that the rule does not know lie within the bar
LEAST_TEXTS = 3
SOME_TOKENS = 1 << 20  # in which characters are counted

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredRun:
    """One line of the table.

    text: its name; the runs of one text are left out together.
    training_characters: of its training part. tokens_seen: repeats included.
    bits_per_byte: at the end, over every held-out token.
    The last columns are for the reader; a table may lack them.
    """

    text: str
    ngram_bits_per_byte: float
    training_characters: int
    tokenizer: str
    parameters: int
    tokens_seen: int
    characters_per_token: float
    bits_per_byte: float
    vocab_size: str = ""
    dropout: str = ""
    minutes: str = ""
    date: str = ""

    @property
    def planned(self) -> Planned:
        """What was known of the run before its first step."""
        return Planned(
            difficulty=self.ngram_bits_per_byte,
            parameters=self.parameters,
            seen=self.tokens_seen * self.characters_per_token,
            text=self.training_characters,
            subwords=self.tokenizer == "bpe",
        )


COLUMNS = [column.name for column in fields(MeasuredRun)]
FOR_THE_READER = ("vocab_size", "dropout", "minutes", "date")


def prediction(args: argparse.Namespace, folder: Path) -> Figures:
    """Fit the rule to the table, and write its constants into the package.

    args.runs: folders of finished runs, which become lines of the table first.
    """
    del folder
    table = args.table or TABLE
    if args.runs:
        add_to_table(table, [run_in(path) for path in args.runs])
    runs = read_table(table)
    fitted = fit(runs)
    CONSTANTS.write_text(constants(fitted, runs), encoding="utf-8")
    return {
        "runs": len(runs),
        "texts": len({run.text for run in runs}),
        **{f"weight of {name}": weight for name, weight in fitted.weights.items()},
        "error bar, as a factor": math.exp(fitted.bar),
        "off in the mean, known texts": fitted.off_known,
        "off in the mean, unknown texts": fitted.off_unknown,
        **{f"off for {text}": off for text, off in fitted.off_by_text.items()},
        "written": str(CONSTANTS.relative_to(ROOT)),
    }


# --------------------------------------------------------------------------------------------------
# The table


def read_table(path: Path) -> list[MeasuredRun]:
    """Return the runs of a table; exits with a message where it cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except OSError as error:
        sys.exit(f"{path}: cannot be read: {error.strerror}")
    runs = []
    for number, line in enumerate(lines, start=2):
        try:
            runs.append(_run_of(line))
        except (KeyError, ValueError, TypeError) as error:
            sys.exit(f"{path}, line {number}: {error!r}; expected the columns {', '.join(COLUMNS)}")
    return runs


def _run_of(line: dict[str, str]) -> MeasuredRun:
    """Return the run of a line. Raises: KeyError, ValueError, TypeError."""
    run = MeasuredRun(
        text=line["text"],
        ngram_bits_per_byte=float(line["ngram_bits_per_byte"]),
        training_characters=int(line["training_characters"]),
        tokenizer=line["tokenizer"],
        parameters=int(line["parameters"]),
        tokens_seen=int(line["tokens_seen"]),
        characters_per_token=float(line["characters_per_token"]),
        bits_per_byte=float(line["bits_per_byte"]),
        **{name: line.get(name) or "" for name in FOR_THE_READER},
    )
    sizes = (*run.planned.sizes().values(), run.bits_per_byte)
    if run.tokenizer not in ("char", "bpe") or not all(0 < size < math.inf for size in sizes):
        raise ValueError("a size that is not above 0, or a tokenizer that is not char or bpe")
    return run


def add_to_table(path: Path, runs: Sequence[MeasuredRun]) -> None:
    """Add lines to a table, which is made if there is none."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerows([getattr(run, name) for name in COLUMNS] for run in runs)


def run_in(run_dir: Path) -> MeasuredRun:
    """Return the line of a finished run; its text is read again, to measure how hard it is."""
    config, _ = load_config(run_dir / "config.yaml")
    rows = json_lines(run_dir / "metrics.jsonl")
    starts = [line for line in json_lines(run_dir / "events.jsonl") if "parameters" in line]
    last = rows[-1] if rows else {}
    bits = last.get("val_bits_per_byte_full")
    if not starts or not isinstance(bits, float):
        sys.exit(f"{run_dir}: the run has not ended with an evaluation of every held-out token")
    text = text_path(config)
    tokens = load_text(config, text)
    n_train = tokens.training_length(config.data.test_split)
    hard = difficulty(tokens.ids, n_train, tokens.vocabulary)
    each = float(tokens.vocabulary.lengths(tokens.ids[:SOME_TOKENS]).mean())
    return MeasuredRun(
        text=text.stem,
        ngram_bits_per_byte=round(hard.bits_per_byte, 4),
        training_characters=round(n_train * each),
        tokenizer=config.data.tokenizer,
        parameters=int(str(starts[-1]["parameters"])),
        tokens_seen=int(str(last["tokens"])),
        characters_per_token=round(each, 4),
        bits_per_byte=round(bits, 4),
        vocab_size=str(len(tokens.vocabulary)),
        dropout=f"{config.model.dropout:g}",
        minutes=f"{float(str(last['time_s'])) / 60:.2f}",
        date=str(starts[-1]["time"])[:10],
    )


# --------------------------------------------------------------------------------------------------
# The fit


@dataclass(frozen=True)
class Fitted:
    """What a table says.

    weights: of the features, by name.
    bar: in logs; COVERED of the runs of unknown texts are not farther off.
    off_known, off_unknown: mean distance in logs, of texts that were fitted and that were not.
    off_by_text: mean signed distance in logs of each text, when it was not fitted; above 0: it came
        out higher than predicted.
    """

    weights: dict[str, float]
    bar: float
    off_known: float
    off_unknown: float
    off_by_text: dict[str, float]


def fit(runs: Sequence[MeasuredRun]) -> Fitted:
    """Fit the weights to all runs; the bar to each text's runs, by a fit without that text."""
    texts = sorted({run.text for run in runs})
    names = list(runs[0].planned.features()) if runs else []
    if len(texts) < LEAST_TEXTS or len(runs) < 2 * len(names):
        sys.exit(
            f"{len(runs)} runs of {len(texts)} texts: at least {2 * len(names)} runs of "
            f"{LEAST_TEXTS} texts are needed for {len(names)} weights and an error bar"
        )
    features = np.array([list(run.planned.features().values()) for run in runs])  # (runs, weights)
    targets = np.array([math.log(run.bits_per_byte / run.ngram_bits_per_byte) for run in runs])
    whose = np.array([run.text for run in runs])
    weights = least_squares(features, targets)
    off = np.empty(len(runs))
    for text in texts:
        left_out = whose == text
        others = least_squares(features[~left_out], targets[~left_out])
        off[left_out] = targets[left_out] - features[left_out] @ others
    return Fitted(
        weights=dict(zip(names, weights.tolist(), strict=True)),
        bar=bar_of(np.abs(off)),
        off_known=float(np.abs(targets - features @ weights).mean()),
        off_unknown=float(np.abs(off).mean()),
        off_by_text={text: float(off[whose == text].mean()) for text in texts},
    )


def least_squares(features: Matrix, targets: Matrix) -> Matrix:
    """Return the weights with the least squared distance; of several the smallest ones."""
    # about the mean, so that a feature which is the same in all runs gets no weight but in "one"
    mean = features.mean(axis=0)
    centred = features - mean
    weights: Matrix = np.linalg.lstsq(centred, targets - targets.mean(), rcond=1e-9)[0]
    weights[0] = targets.mean() - mean[1:] @ weights[1:]
    return weights


def bar_of(off: Matrix) -> float:
    """Return a distance that COVERED of the distances do not exceed, of one more run too.

    Source: split conformal prediction, Lei et al. 2018, arXiv:1604.04173, section 2: the
    ceil(COVERED x (n + 1))-th smallest of n; of too few the largest.
    """
    place = min(len(off), math.ceil(COVERED * (len(off) + 1)))
    return float(np.sort(off)[place - 1])


# --------------------------------------------------------------------------------------------------
# The constants


def constants(fitted: Fitted, runs: Sequence[MeasuredRun]) -> str:
    """Return the module that has them."""
    texts = len({run.text for run in runs})
    day = max(run.date for run in runs)
    tokenizers = sorted({run.tokenizer for run in runs})
    lines = [
        '"""What measured runs say about the loss of others."""',
        "",
        "# Written by: python scripts/benchmark.py prediction",
        f"# {len(runs)} runs of {texts} texts in docs/measured-runs.csv, the last of {day}",
        "WEIGHTS = {",
        *(f'    "{name}": {weight:.5g},' for name, weight in fitted.weights.items()),
        "}",
        f"BAR = {fitted.bar:.4g}  # in logs: 9 of 10 runs of an unknown text are not farther off",
        "# The least and the most of what was measured",
        "MEASURED = {",
        *(f'    "{name}": ({low:.10g}, {high:.10g}),' for name, (low, high) in _ranges(runs)),
        "}",
        f"TOKENIZERS = {{{', '.join(map(json.dumps, tokenizers))}}}",
    ]
    return "\n".join(lines) + "\n"


def _ranges(runs: Sequence[MeasuredRun]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the least and the most of each size."""
    for name in runs[0].planned.sizes():
        sizes = [run.planned.sizes()[name] for run in runs]
        yield name, (min(sizes), max(sizes))
