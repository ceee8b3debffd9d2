"""Runs side by side: by what they are ranked, what is said first, and the noise of their seeds."""

import importlib.util
import re
from pathlib import Path

import made_runs
import pytest

from chatgot.report.comparison_page import render, write_comparison
from chatgot.report.seed_noise import noise_lines, seed_noise
from chatgot.report.side_by_side import (
    differences,
    measure_for,
    notes,
    ranked,
    read_runs,
    why_not_comparable,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script():
    """The module of scripts/compare.py."""
    spec = importlib.util.spec_from_file_location("compare", ROOT / "scripts" / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(step, loss, bits_per_nat=0.5):
    bits = None if loss is None else loss * bits_per_nat
    return {
        "step": step,
        "tokens": step * 1000,
        "time_s": step * 6.0,
        "lr": 0.001,
        "tokens_per_s": 500.0,
        "train_loss": 3.0,
        "val_loss": loss,
        "val_bits_per_byte": bits,
    }


def made(
    parent,
    name,
    losses,
    seed=1,
    text="a" * 64,
    bits_per_nat=0.5,
    settings="",
    ends=True,
    tail=b"",
    full=None,
):
    """Write a run with an evaluation every 10 steps, return its folder.

    full: the losses of the best and the last weights over every held-out token.
    """
    rows = [row(10 * (i + 1), loss, bits_per_nat) for i, loss in enumerate(losses)]
    best, last = full or (None, None)
    if last is not None:
        rows[-1]["val_loss_full"] = last
    events = [made_runs.start(data_sha256=text)]
    if ends:
        events.append(made_runs.end("done", best_val_loss_full=best, val_loss_full=last))
    sample = {"time": "", "step": 20, "index": 0, "prompt": "JON:", "text": f"of {name}", "seed": 1}
    run_dir = made_runs.write(
        parent, *events, rows=made_runs.json_lines(rows) + tail, samples=[sample], name=name
    )
    (run_dir / "config.yaml").write_text(f"seed: {seed}\n{settings}", encoding="utf-8")
    return run_dir


def test_runs_are_ranked_by_their_best_val_loss(tmp_path):
    runs = read_runs([made(tmp_path, "a", [3.0, 2.5]), made(tmp_path, "b", [2.0, 2.9])])
    measure = measure_for(runs)
    assert not measure.in_bits
    assert [run.label for run in ranked(runs, measure)] == ["b", "a"]


def test_runs_with_other_tokens_are_ranked_by_bits_per_byte_and_say_why(tmp_path):
    long_tokens = made(tmp_path, "long", [4.0], bits_per_nat=0.3)
    runs = read_runs([made(tmp_path, "short", [3.0]), long_tokens])
    measure = measure_for(runs)
    assert measure.in_bits
    assert [run.label for run in ranked(runs, measure)] == ["long", "short"]
    said = " ".join(note.text for note in notes(runs, measure))
    assert "nats per token cannot be compared here" in said


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"text": "b" * 64}, "the texts differ"),
        ({"settings": "data:\n  test_split: 0.3\n"}, "another part of the text is held out"),
    ],
)
def test_other_texts_or_held_out_parts_are_said_first(tmp_path, other, said):
    runs = read_runs([made(tmp_path, "a", [3.0]), made(tmp_path, "b", [2.0], **other)])
    first = notes(runs, measure_for(runs))[0]
    assert first.is_grave
    assert said in first.text
    assert said in why_not_comparable(runs, measure_for(runs))
    assert "These losses cannot be compared" in render(runs)


def test_only_settings_that_differ_are_named(tmp_path):
    other = made(tmp_path, "b", [2.0], seed=2, settings="training:\n  batch_size: 3\n")
    runs = read_runs([made(tmp_path, "a", [3.0]), other])
    assert {one.name for one in differences(runs)} == {"seed", "training.batch_size"}


def test_difference_of_groups_is_a_multiple_of_the_noise_of_seeds(tmp_path):
    more = "training:\n  learning_rate: 0.5\n"
    runs = read_runs(
        [
            made(tmp_path, "a1", [2.0], 1),
            made(tmp_path, "a2", [2.2], 2),
            made(tmp_path, "b1", [3.0], 1, settings=more),
            made(tmp_path, "b2", [3.2], 2, settings=more),
        ]
    )
    measure = measure_for(runs)
    noise = seed_noise(runs, measure)
    assert noise.deviation == pytest.approx(0.02**0.5)
    assert [group.mean for group in noise.groups] == pytest.approx([2.1, 3.1])
    assert (
        "7.1 x the noise of seeds, more than chance gives" in noise_lines(noise, runs, measure)[-1]
    )


@pytest.mark.parametrize(
    "settings", ["training:\n  batch_size: 3\n", "model:\n  max_seq_length: 32\n"]
)
def test_other_windows_are_compared_over_every_token_or_not_at_all(tmp_path, settings):
    """The luckier windows have the lower val_loss, the better weights the lower full loss."""

    def runs_of(parent, full):
        lucky = [made(parent, f"lucky{i}", [2.0 + i / 10], i, full=full(3.0, i)) for i in (1, 2)]
        other = [
            made(parent, f"good{i}", [2.5 + i / 10], i, settings=settings, full=full(2.8, i))
            for i in (1, 2)
        ]
        return read_runs([*lucky, *other])

    runs = runs_of(tmp_path / "measured", lambda loss, i: (loss + i / 100, 9.0))
    measure = measure_for(runs)
    assert measure.name == "best_val_loss_full"
    assert next(run.label for run in ranked(runs, measure)) == "good1"
    said = noise_lines(seed_noise(runs, measure), runs, measure)
    assert "is 0.2000 lower than" in said[-1]
    assert "measured on other windows" in notes(runs, measure)[0].text

    unknown = runs_of(tmp_path / "unknown", lambda loss, i: None)
    measure = measure_for(unknown)
    assert not measure.is_full
    said = noise_lines(seed_noise(unknown, measure), unknown, measure)
    assert said[-1].startswith("No verdict on the difference of the groups: each loss was measured")
    assert "this ranking may be wrong" in notes(unknown, measure)[0].text


def test_a_run_without_a_full_loss_leaves_the_evaluations_to_decide(tmp_path):
    """They saw the same windows, so they compare."""
    measured = made(tmp_path, "a", [2.0], full=(2.5, 2.5))
    runs = read_runs([measured, made(tmp_path, "b", [1.9], seed=2)])
    measure = measure_for(runs)
    assert measure.name == "best val_loss"
    assert why_not_comparable(runs, measure) == ""
    assert [run.label for run in ranked(runs, measure)] == ["b", "a"]


def test_best_full_loss_of_an_older_run_is_that_of_a_last_best_step(tmp_path):
    """An older version measured the last weights alone."""
    done = made_runs.end("done", 20)
    runs = []
    for name, losses in (("last", [3.0, 2.5]), ("earlier", [2.5, 3.0])):
        rows = [row(10, losses[0]), row(20, losses[1]) | {"val_loss_full": 2.7}]
        events = [made_runs.start(), done]
        runs.append(made_runs.write(tmp_path, *events, rows=made_runs.json_lines(rows), name=name))
    assert [run.best_full_loss for run in read_runs(runs)] == [2.7, None]


def test_other_texts_get_no_verdict(tmp_path):
    runs = read_runs(
        [
            made(tmp_path, "a1", [2.0], 1, full=(2.0, 2.0)),
            made(tmp_path, "a2", [2.2], 2, full=(2.2, 2.2)),
            made(tmp_path, "b", [1.0], text="b" * 64, full=(1.0, 1.0)),
        ]
    )
    measure = measure_for(runs)
    said = noise_lines(seed_noise(runs, measure), runs, measure)
    assert said[-1] == "No verdict on the difference of the groups: the texts differ."


def test_one_run_each_says_nothing_below_the_noise(tmp_path):
    more = "training:\n  batch_size: 3\n"
    runs = read_runs([made(tmp_path, "a", [2.0]), made(tmp_path, "b", [2.1], settings=more)])
    measure = measure_for(runs)
    noise = seed_noise(runs, measure)
    assert noise.deviation is None
    assert "One run each says nothing" in noise_lines(noise, runs, measure)[-1]


def test_damaged_unfinished_and_older_runs_are_shown(tmp_path, script):
    nan_row = b'{"step": 30, "train_loss": null, "nonfinite": true}\n{"step": 40, "tra'
    bare = made_runs.write(tmp_path, name="bare", rows=b'{"step": 5, "train_loss": 2}\n')
    dirs = [
        made(tmp_path, "whole", [3.0, 2.0]),
        made(tmp_path, "going_on", [3.0], ends=False),
        made(tmp_path, "torn", [3.0, 2.5], tail=nan_row),
        made(tmp_path, "not_evaluated", [None, None]),
        bare,
    ]
    runs = read_runs(dirs)
    lines = "\n".join(script.as_lines(runs))
    assert "1 row not finite" in lines
    assert re.search(r"No evaluation after step 0: .*not_evaluated.*bare", lines)
    assert "Not at its end: going_on" in lines
    assert "The settings are not known (no config.yaml): bare" in lines
    page = render(runs)
    for run_dir in dirs:
        assert run_dir.name in page
    assert page.count("data:image/png;base64,") == 4


def test_last_row_of_a_step_counts_where_a_run_was_rewound(tmp_path):
    again = made_runs.json_lines([row(20, 2.7)])
    rewound = made(tmp_path, "a", [3.0, 2.5], tail=again)
    runs = read_runs([rewound, made(tmp_path, "b", [2.6])])
    assert runs[0].best == (20, 2.7)
    assert [run.label for run in ranked(runs, measure_for(runs))] == ["b", "a"]


def test_page_has_the_samples_of_a_prompt_in_a_row_and_needs_no_other_file(tmp_path):
    runs = read_runs([made(tmp_path, "a", [3.0, 2.5]), made(tmp_path, "b", [2.0, 2.9])])
    path = tmp_path / "out.html"
    write_comparison(runs, path)
    page = path.read_text(encoding="utf-8")
    samples = page[page.index("Samples at the end") :]
    assert samples.count('<pre class="prompt">') == 1
    assert samples.index("of b") < samples.index("of a")
    assert page.count("data:image/png;base64,") == 4
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "found one RUN, expected 2 to 10"),
        (list("abcdefghijk"), "found 11 RUNs, expected 2 to 10"),
    ],
)
def test_too_few_and_too_many_runs_are_refused(script, capsys, words, said):
    with pytest.raises(SystemExit) as refused:
        script.parse_arguments(words)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_one_run_named_twice_and_an_unknown_one_are_refused(tmp_path, script):
    first = str(made(tmp_path, "a", [3.0]))
    with pytest.raises(Exception, match="are the same run"):
        script.find_runs([first, f"{first}/"])
    with pytest.raises(Exception, match="nowhere_at_all"):
        script.find_runs([first, "nowhere_at_all"])
