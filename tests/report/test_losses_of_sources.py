"""The report shows the held-out loss of each source, and how far it moved."""

import made_runs
import numpy as np

from chatgot.report import charts
from chatgot.report.page import losses_of_sources, render
from chatgot.report.run_record import MOST_SOURCES, read_rows

OLD = "old: $a_<b>.txt"


def row(step: int, losses: object) -> dict[str, object]:
    return {"step": step, "train_loss": 2.0, "val_loss": 2.0, "val_loss_by_source": losses}


def run_dir(parent, *losses: object):
    rows = [row(10 * i, each) for i, each in enumerate(losses)]
    return made_runs.write(parent, made_runs.start(), rows=made_runs.json_lines(rows))


def test_each_source_has_its_loss_before_and_after(tmp_path):
    folder = run_dir(tmp_path, {"n": 4.0, OLD: 1.5}, {"n": 3.0, OLD: 1.75}, {"n": 2.5, OLD: 1.625})
    facts = losses_of_sources(read_rows(folder))
    assert [(fact.value, fact.unit) for fact in facts] == [
        ("4.0000 to 2.5000", "nats, -1.5000"),
        ("1.5000 to 1.6250", "nats, +0.1250"),
    ]
    page = render(folder)
    assert "val_loss of old: $a_&lt;b&gt;.txt" in page
    assert "could not be made" not in page


def test_the_chart_has_a_curve_for_each_source(tmp_path, monkeypatch):
    drawn = {}
    draw = charts._draw_source

    def noted(axes, rows, name, color):
        drawn[name] = draw(axes, rows, name, color)
        return drawn[name]

    monkeypatch.setattr(charts, "_draw_source", noted)
    rows = read_rows(run_dir(tmp_path, {"n": 4.0, OLD: 1.5}, None, {"n": 2.5, OLD: 1.6}))
    assert charts.loss_chart(rows, []).startswith(b"\x89PNG")
    assert drawn.keys() == {"n", OLD}
    assert np.array_equal(drawn[OLD], [1.5, 1.6])


def test_losses_that_are_none_are_left_out(tmp_path):
    many = {str(number): 1.0 for number in range(1000)}
    rows = read_rows(run_dir(tmp_path, 7, ["a"], {"a": "b", "c": None, "d": True, "e": 2}, many))
    assert [dict(row.by_source) for row in rows[:3]] == [{}, {}, {"e": 2.0}]
    assert len(rows[3].by_source) == MOST_SOURCES
