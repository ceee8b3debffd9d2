"""Fitting the rule that predicts losses: on made-up runs of a known law, and on a real run."""

import math
import random
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import harness
import numpy as np
import pytest

from benchmarks import prediction
from benchmarks.prediction import COLUMNS, MeasuredRun, add_to_table, bar_of, fit, read_table

LAW = {
    "one": 0.5,
    "log_parameters": -0.05,
    "inverse_power_of_worth": 0.4,
    "log_text": 0.06,
    "subwords": -0.04,
}


def made_runs(texts: int = 8, each: int = 12, noise: float = 0.0) -> list[MeasuredRun]:
    """Return runs that obey the law; each text has an error of its own, normal in logs."""
    rng = random.Random(0)
    runs = []
    for number in range(texts):
        own_error = rng.gauss(0, noise)
        for _ in range(each):
            run = MeasuredRun(
                text=f"text {number}",
                ngram_bits_per_byte=rng.uniform(1.5, 2.5),
                training_characters=rng.randrange(50_000, 900_000),
                tokenizer=rng.choice(["char", "bpe"]),
                parameters=rng.randrange(800_000, 14_000_000),
                tokens_seen=rng.randrange(100_000, 5_000_000),
                characters_per_token=1.0,
                bits_per_byte=1.0,
                date="2026-01-02",
            )
            features = run.planned.features()
            log = sum(LAW[name] * value for name, value in features.items()) + own_error
            runs.append(replace(run, bits_per_byte=run.ngram_bits_per_byte * math.exp(log)))
    return runs


def test_a_law_without_noise_is_found_again_with_no_bar():
    fitted = fit(made_runs())
    assert fitted.weights == pytest.approx(LAW, abs=1e-6)
    assert fitted.bar == pytest.approx(0, abs=1e-6)


def test_the_bar_covers_nine_of_ten_runs_of_texts_that_were_never_fitted():
    runs = made_runs(texts=120, each=4, noise=0.1)
    fitted = fit(runs[:240])
    off = [
        abs(
            math.log(run.bits_per_byte / run.ngram_bits_per_byte)
            - sum(fitted.weights[name] * value for name, value in run.planned.features().items())
        )
        for run in runs[240:]
    ]
    covered = sum(distance <= fitted.bar for distance in off) / len(off)
    assert 0.82 < covered < 0.97
    assert fitted.off_unknown > fitted.off_known


def test_a_text_that_is_unlike_the_others_is_named():
    runs = made_runs()
    odd = [replace(run, bits_per_byte=1.3 * run.bits_per_byte) for run in runs[:12]]
    fitted = fit([*odd, *runs[12:]])
    assert fitted.off_by_text["text 0"] == max(fitted.off_by_text.values())
    assert fitted.off_by_text["text 0"] == pytest.approx(math.log(1.3), abs=0.02)


def test_a_feature_that_never_changes_has_no_weight():
    runs = [replace(run, tokenizer="char") for run in made_runs()]
    assert fit(runs).weights["subwords"] == 0


@pytest.mark.parametrize(("count", "place"), [(9, 9), (10, 10), (19, 18), (99, 90), (1, 1)])
def test_the_bar_is_the_ninth_of_ten_distances(count, place):
    assert bar_of(np.arange(count, 0, -1, dtype=float)) == place


@pytest.mark.parametrize("count", [0, 3, 24])
def test_too_few_runs_are_refused(count):
    runs = made_runs(texts=2)[:count]
    with pytest.raises(SystemExit, match="runs of 3 texts are needed"):
        fit(runs)


# The table


def test_a_table_reads_back_equal(tmp_path):
    path = tmp_path / "runs.csv"
    runs = made_runs()
    add_to_table(path, runs[:5])
    add_to_table(path, runs[5:])
    assert read_table(path) == runs


def test_a_table_may_lack_what_is_for_the_reader(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(f"{','.join(COLUMNS[:8])}\na,2,1000,char,5,6,1,2.5\n", encoding="utf-8")
    (run,) = read_table(path)
    assert run.planned.seen == 6
    assert run.date == ""


@pytest.mark.parametrize(
    "line",
    [
        "a,2,1000,char,5,6,1",
        "a,two,1000,char,5,6,1,2.5",
        "a,2,1000,word,5,6,1,2.5",
        "a,0,1000,char,5,6,1,2.5",
        "a,2,1000,char,5,6,1,nan",
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "runs.csv"
    path.write_text(f"{','.join(COLUMNS[:8])}\n{line}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"runs\.csv, line 2: .*expected the columns text, ngram"):
        read_table(path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"none\.csv: cannot be read: No such file"):
        read_table(tmp_path / "none.csv")


def test_a_finished_run_becomes_a_line_and_the_constants_are_written(tmp_path, monkeypatch):
    """From its own folder; nothing but numbers of the text goes into the table."""
    harness.write_config(tmp_path)
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    table = tmp_path / "runs.csv"
    add_to_table(table, made_runs())
    monkeypatch.setattr(prediction, "ROOT", tmp_path)
    monkeypatch.setattr(prediction, "CONSTANTS", tmp_path / "constants.py")
    monkeypatch.chdir(tmp_path)
    arguments = Namespace(table=table, runs=[harness.run_dir(tmp_path)])
    figures = prediction.prediction(arguments, tmp_path)
    assert figures["runs"] == 97
    line = read_table(table)[-1]
    last = harness.rows(tmp_path)[-1]
    assert line.text == "text"
    assert line.tokens_seen == last["tokens"] == 12 * 12 * 16
    assert line.bits_per_byte == pytest.approx(last["val_bits_per_byte_full"], abs=1e-4)
    assert line.training_characters == 5400
    assert 0.5 < line.ngram_bits_per_byte < 3
    names: dict = {}
    exec(Path(prediction.CONSTANTS).read_text(encoding="utf-8"), names)
    assert names["WEIGHTS"].keys() == LAW.keys()


def test_a_run_that_has_not_ended_is_no_line(tmp_path, monkeypatch):
    harness.write_config(tmp_path, training={"eval_interval": None})
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="has not ended with an evaluation"):
        prediction.run_in(harness.run_dir(tmp_path))
