"""The report says in plain words how a run ended and what came of it, and nothing that it lacks."""

import made_runs
import pytest

from chatgot.report import charts
from chatgot.report.ending import decay_of, ending
from chatgot.report.page import write_report
from chatgot.report.run_record import read_events, read_rows

NO_BETTER = {"evaluations": 3, "since_step": 20, "since_val_loss": 1.6, "noise": 0.01}
DECAY = made_runs.event("decay", 24, reason="no better", began=24, steps=10, **NO_BETTER)
PLATEAU = made_runs.event("plateau", 32, best_step=28, **NO_BETTER)
PREDICTION = made_runs.event(
    "choice",
    what="prediction",
    chosen=1.5,
    measured={"low": 1.4, "high": 1.7, "tokens": 32_000, "twice_the_minutes": 1.4},
)
OUTCOME = made_runs.event(
    "outcome", 32, val_loss_full=1.55, inside=True, low=1.4, high=1.7, twice_the_minutes=0.0
)


def done(**changes):
    fields = {
        "reason": "no better",
        "best_step": 28,
        "best_val_loss": 1.52,
        "best_val_loss_full": 1.55,
        "val_loss_full": 1.58,
    }
    return made_runs.end("done", 32, **(fields | changes))


def rows_of(rates):
    return made_runs.json_lines(
        {"step": 4 * i, "lr": lr, "train_loss": 2.0, "val_loss": 1.7, "tokens": 4000 * i}
        for i, lr in enumerate(rates, start=1)
    )


FALLING = rows_of([1, 1, 1, 1, 1, 1, 0.6, 0.2])


def run(tmp_path, *events, rows=FALLING, samples=()):
    return made_runs.write(tmp_path, made_runs.start(), *events, rows=rows, samples=samples)


def said(run_dir) -> dict[str, str]:
    lines = ending(read_events(run_dir), read_rows(run_dir))
    return {line.about: line.text for line in lines}


def test_a_run_that_ended_by_itself_says_all_of_its_end(tmp_path):
    lines = said(run(tmp_path, PREDICTION, DECAY, PLATEAU, OUTCOME, done()))
    assert lines == {
        "why it ended": (
            "3 evaluations in a row were not better than that of step 20 (1.6000) by more than the "
            "noise (0.0100), so the run ended by itself: it has learnt what this text can teach it."
        ),
        "decay": (
            "From step 24 on the learning rate decayed, over 10 steps, of which it did 8, since 3 "
            "evaluations in a row were not better than that of step 20 (1.6000) by more than the "
            "noise (0.0100)."
        ),
        "best weights": (
            "Step 28: held-out loss 1.5200 over the tokens that each evaluation measures, and "
            "1.5500 over every held-out token; the last step, 32, has 1.5800 over every held-out "
            "token. chat, serve and export take the best weights."
        ),
        "prediction": (
            "Held-out loss 1.5, in 9 of 10 runs between 1.4 and 1.7; came out: 1.5500, 0.05 "
            "higher, inside the error bar."
        ),
        "more minutes": "More minutes would bring nothing: the text is learnt.",
    }


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("max_steps", "training.max_steps"),
        ("epochs", "training.epochs"),
        ("max_minutes", "training.max_minutes"),
        ("decayed", "the decay of the learning rate is over".capitalize()),
    ],
)
def test_each_reason_to_end_is_said(tmp_path, reason, words):
    assert words in said(run(tmp_path, done(reason=reason)))["why it ended"]


@pytest.mark.parametrize("reason", ["planned", "max_minutes"])
def test_each_reason_of_a_decay_is_said(tmp_path, reason):
    decay = made_runs.event("decay", 24, reason=reason, began=24, steps=8)
    words = {"planned": "training.decay_share", "max_minutes": "training.max_minutes"}[reason]
    line = said(run(tmp_path, decay, done()))["decay"]
    assert words in line
    assert "of which" not in line


def test_what_a_run_does_not_have_is_not_said(tmp_path):
    older = done(reason=None, best_step=-1, best_val_loss=None, best_val_loss_full=None)
    run_dir = run(tmp_path, older)
    assert said(run_dir) == {}
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "How it ended" not in page
    assert "the best weights write" not in page


@pytest.mark.parametrize("end", [[], [made_runs.event("resume", 32)]])
def test_of_a_run_that_goes_on_only_the_decay_is_said(tmp_path, end):
    """What was measured at an older end, before a resume, is not how the run ended."""
    older = [PLATEAU, OUTCOME, done()] if end else []
    assert list(said(run(tmp_path, PREDICTION, DECAY, *older, *end))) == ["decay"]


def test_the_last_step_as_the_best_and_all_tokens_are_said_once(tmp_path):
    end = done(best_step=32, best_val_loss=1.55, best_val_loss_full=1.55, val_loss_full=1.55)
    line = said(run(tmp_path, end))["best weights"]
    assert line == "Step 32, the last one: held-out loss 1.5500 over every held-out token."


def test_a_run_that_saw_fewer_tokens_than_planned_says_so(tmp_path):
    planned = made_runs.event(
        "choice", what="prediction", chosen=1.5, measured={"low": 1, "high": 2, "tokens": 64_000}
    )
    line = said(run(tmp_path, planned, OUTCOME, done()))["prediction"]
    assert "the run saw 0.5 times the tokens that were planned" in line


def test_a_decay_that_was_taken_back_is_not_shown(tmp_path):
    rewind = made_runs.event("rewind", 30, to=20)
    undone = run(tmp_path / "rewound", DECAY, rewind)
    raised = run(tmp_path / "raised", DECAY, rows=rows_of([1, 1, 1, 1, 1, 1, 0.6, 1]))
    kept = run(tmp_path / "kept", DECAY, made_runs.event("rewind", 30, to=24))
    found = [decay_of(read_events(one), read_rows(one)) for one in (undone, raised, kept)]
    assert [decay is not None for decay in found] == [False, False, True]


def drawn(monkeypatch, draw) -> list[tuple[str, object]]:
    """Return the label and the first place on the x axis of each line that is drawn."""
    figures = []
    with monkeypatch.context() as patch:
        patch.setattr(charts, "as_png", lambda figure: figures.append(figure) or b"")
        draw()
    axes = figures[0].axes[0]
    bars = [(str(bar.get_label()), bar[0].get_xdata()[0]) for bar in axes.containers]
    return bars + [(str(line.get_label()), line.get_xdata()[0]) for line in axes.lines]


def test_decay_best_and_prediction_are_marked_on_the_curves(tmp_path, monkeypatch):
    run_dir = run(tmp_path, PREDICTION, DECAY, PLATEAU, OUTCOME, done())
    rows = read_rows(run_dir)
    events = read_events(run_dir)
    lines = drawn(monkeypatch, lambda: charts.loss_chart(rows, events))
    assert ("decay begins", 24) in lines
    assert ("best, val_loss_full 1.5500", 28) in lines
    assert "predicted 1.5" in dict(lines)
    rates = drawn(monkeypatch, lambda: charts.health_chart(rows, {}, events))
    assert ("decay begins", 24) in rates
    plain = drawn(monkeypatch, lambda: charts.loss_chart(rows, []))
    assert [label for label, _ in plain if "decay" in label or "best" in label] == []


def test_samples_of_the_best_step_are_shown_first_and_marked(tmp_path):
    samples = [
        {"step": step, "index": 1, "prompt": "JON:", "text": f" at {step}", "seed": 1}
        for step in (20, 28, 32)
    ]
    run_dir = run(tmp_path, done(), samples=samples)
    page = write_report(run_dir).read_text(encoding="utf-8")
    first = page[page.index("the best weights write") : page.index("Samples over time")]
    assert " at 28" in first
    assert " at 20" not in first
    assert page.count('good">best</span></figcaption>') == 1
    assert 'step 28 <span class="badge good">best' in page


def test_numbers_at_the_top_tell_the_best_from_the_last(tmp_path):
    page = write_report(run(tmp_path, done())).read_text(encoding="utf-8")
    assert "<dt>val_loss_full, best</dt><dd>1.5500 <small>nats, step 28</small>" in page
    again = run(tmp_path / "2", OUTCOME, done(), made_runs.event("resume", 32))
    page = write_report(again).read_text(encoding="utf-8")
    assert "<dt>came out</dt>" not in page
    assert "val_loss_full, best" not in page
