"""The report marks in the samples what is copied from the training text."""

import made_runs
import pytest

from chatgot.report import copied
from chatgot.report.copied import Run, runs
from chatgot.report.page import write_report
from chatgot.report.run_record import Event


@pytest.mark.parametrize(
    ("spans", "parts"),
    [
        ([], [Run("abcdef", False)]),
        ([(0, 2)], [Run("ab", True), Run("cdef", False)]),
        ([(4, 6), (1, 2)], [Run("a", False), Run("b", True), Run("cd", False), Run("ef", True)]),
        ([(1, 3), (2, 4)], [Run("a", False), Run("bc", True), Run("d", True), Run("ef", False)]),
        ([(3, 3), (9, 12), (5, 40)], [Run("abcde", False), Run("f", True)]),
    ],
)
def test_a_sample_is_cut_where_copies_begin_and_end(spans, parts):
    assert runs("abcdef", spans) == parts


def measured(step: int, share: object, copies: object = ()) -> Event:
    fields = {"copied_share": share, "held_out_share": 0.01, "copies": copies}
    return Event("", step, "originality", "", fields)


def test_the_curve_is_in_percent_and_repeats_no_step():
    curves = copied.curves([measured(9, 0.3), measured(9, 0.2), measured(3, 0.1)])
    assert curves[copied.OF_SAMPLES] == [(3, 10), (9, 20)]
    assert copied.curves([measured(3, "much")]) == {}


@pytest.mark.parametrize("copies", ["ab", [["a"]], [[[1]]], [[[1, "b"]]], [[[1.5, 2]]], [3]])
def test_a_damaged_line_of_copies_marks_nothing(copies):
    assert not any(copied.copies_by_sample([measured(3, 0.1, copies)]).values())


def test_the_page_marks_copies_in_their_own_sample_alone(tmp_path):
    event = made_runs.event("originality", step=4, copied_share=0.25, held_out_share=0.125)
    event["copies"] = [[], [[2, 4]]]
    samples = [
        {"step": step, "index": index, "prompt": "P", "text": "ab<d>f", "seed": 1}
        for step in (2, 4)
        for index in (1, 2)
    ]
    folder = made_runs.write(tmp_path, made_runs.start(), event, samples=samples)
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count("ab<mark>&lt;d</mark>&gt;f") == 1
    assert "25.0%" in page
    assert "12.5% of held-out text" in page
