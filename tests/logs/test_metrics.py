"""A run's numbers as readers see them: in the jsonl files and through TensorBoard's own reader."""

import contextlib
import html
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy
import pytest
import torch
from child_environment import child_environment
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from chatgot.logs.logging_setup import escape_controls
from chatgot.logs.metrics import MetricsWriter, _fenced
from chatgot.report.run_record import read_board

ROOT = Path(__file__).resolve().parents[2]
KEYS = [
    "step",
    "train_loss",
    "val_loss",
    "val_bits_per_byte",
    "lr",
    "grad_norm",
    "tokens_per_s",
    "tokens",
    "time_s",
]
TAGS = [
    "optim/grad_norm",
    "optim/lr",
    "perf/tokens_per_s",
    "train/loss",
    "val/bits_per_byte",
    "val/bits_per_byte_full",
    "val/loss",
    "val/loss_full",
]


def read_rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict]:
    lines = (run_dir / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def samples(run_dir: Path) -> list[tuple]:
    """Return (step, index, text) of each sample."""
    made = read_rows(run_dir, "samples.jsonl")
    return [(sample["step"], sample["index"], sample["text"]) for sample in made]


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the (step, value) points that TensorBoard shows, by tag."""
    events = EventAccumulator(str(run_dir))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def texts(run_dir: Path) -> dict[str, list[tuple[int, str]]]:
    events = EventAccumulator(str(run_dir))
    events.Reload()
    tags = events.Tags()["tensors"]
    points = {tag: events.Tensors(tag) for tag in tags if tag.startswith("samples/")}
    return {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in points[tag]]
        for tag in points
    }


def write(
    run_dir: Path, steps: range, keep_rows_up_to: int | None = None, loss: float = 2.0
) -> None:
    with contextlib.closing(MetricsWriter(run_dir, keep_rows_up_to=keep_rows_up_to)) as metrics:
        for step in steps:
            metrics.row(step, train_loss=loss, lr=0.5, tokens=10 * step, time_s=float(step))


# --------------------------------------------------------------------------------------------------
# Rows and curves


def test_a_row_has_all_keys_in_order_and_a_curve_for_each_number(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path)) as metrics:
        metrics.row(0, val_loss=4.5)
        metrics.row(
            7,
            train_loss=1.1,
            val_loss=1.2,
            val_loss_full=1.3,
            val_bits_per_byte=1.7,
            val_bits_per_byte_full=1.8,
            lr=6e-4,
            grad_norm=0.5,
            tokens_per_s=9e3,
            tokens=70,
            time_s=1.5,
        )
        metrics.row(8, val_loss_full=None)
    first, second, third = read_rows(tmp_path)
    assert list(first) == KEYS
    assert first == dict.fromkeys(KEYS) | {"step": 0, "val_loss": 4.5, "tokens": 0, "time_s": 0.0}
    assert list(second) == [*KEYS, "val_loss_full", "val_bits_per_byte_full"]
    assert list(second.values()) == [7, 1.1, 1.2, 1.7, 6e-4, 0.5, 9e3, 70, 1.5, 1.3, 1.8]
    assert third["val_loss_full"] is None
    shown = curves(tmp_path)
    assert sorted(shown) == TAGS
    assert shown["val/loss"] == [(0, 4.5), (7, pytest.approx(1.2))]
    assert shown["val/loss_full"] == [(7, pytest.approx(1.3))]
    assert shown["optim/lr"] == [(7, pytest.approx(6e-4))]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_number_is_null_and_marked(tmp_path, value):
    with contextlib.closing(MetricsWriter(tmp_path)) as metrics:
        metrics.row(1, train_loss=value, lr=0.5)
        metrics.row(2, train_loss=2.0)
    row, next_row = read_rows(tmp_path)
    numbers = {"step": 1, "lr": 0.5, "tokens": 0, "time_s": 0.0}
    assert row == dict.fromkeys(KEYS) | numbers | {"nonfinite": True}
    assert "nonfinite" not in next_row
    assert not re.search("nan|inf", (tmp_path / "metrics.jsonl").read_text(), re.IGNORECASE)


def test_each_row_is_on_disk_when_the_call_returns(tmp_path):
    metrics = MetricsWriter(tmp_path)
    for step in range(3):
        metrics.row(step, train_loss=1.0)
        assert [row["step"] for row in read_rows(tmp_path)] == list(range(step + 1))
    metrics.close()


def test_writing_does_not_touch_the_random_generators(tmp_path):
    def states():
        return torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()

    before = states()
    with contextlib.closing(MetricsWriter(tmp_path, keep_rows_up_to=3)) as metrics:
        metrics.row(4, train_loss=1.0, val_loss=2.0)
        metrics.sample(4, 1, "KING:\n", "Hail.", 7)
    after = states()
    assert curves(tmp_path)["train/loss"] == [(4, 1.0)]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


# --------------------------------------------------------------------------------------------------
# Resume


def test_each_step_is_there_once_after_a_resume(tmp_path):
    write(tmp_path, range(10), loss=2.0)
    write(tmp_path, range(6, 12), keep_rows_up_to=5, loss=3.0)
    write(tmp_path, range(9, 14), keep_rows_up_to=8, loss=4.0)
    losses = [2.0] * 6 + [3.0] * 3 + [4.0] * 5
    assert [(row["step"], row["train_loss"]) for row in read_rows(tmp_path)] == list(
        enumerate(losses)
    )
    assert curves(tmp_path)["train/loss"] == list(enumerate(losses))


HOUR = 3600
YEAR = 365 * 24 * HOUR


@pytest.mark.parametrize(
    "clocks",
    [
        (0, -10 * HOUR, -9 * HOUR),
        (0, -HOUR, 0),
        (0, 30 * YEAR, -20 * YEAR),
        (0, -YEAR, -2 * YEAR),
        (0, 0, 0),
    ],
)
@pytest.mark.parametrize("rewind", [False, True])
def test_each_step_is_there_once_whatever_the_clock_says(tmp_path, monkeypatch, clocks, rewind):
    """The clock is set between three sessions, or it was always right in one second.

    TensorBoard sorts the files by the second in their names, then by a counter, as text.
    """
    now = time.time()
    kept = (None, 5, 8)
    for clock, keep, loss in zip(clocks, kept, (2.0, 3.0, 4.0), strict=True):
        monkeypatch.setattr(time, "time", lambda clock=clock: now + clock)
        with contextlib.closing(MetricsWriter(tmp_path, keep_rows_up_to=keep)) as metrics:
            for step in range(0 if keep is None else keep + 1, 12):
                metrics.row(step, train_loss=loss)
                metrics.curves(step, {"perf/memory_mib": loss})
            for step in range(9, 12) if rewind else ():
                metrics.row(step, train_loss=loss)
                metrics.curves(step, {"perf/memory_mib": loss})
    losses = list(enumerate([2.0] * 6 + [3.0] * 3 + [4.0] * 3))
    assert [(row["step"], row["train_loss"]) for row in read_rows(tmp_path)] == losses
    assert curves(tmp_path)["train/loss"] == losses
    assert curves(tmp_path)["perf/memory_mib"] == losses
    assert read_board(tmp_path).curves["train/loss"] == losses


def test_a_new_event_file_sorts_after_all_older_ones(tmp_path, monkeypatch):
    """Also those of other machines and processes, and after a hundred rewinds in a second."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    old = tmp_path / "events.out.tfevents.1700000042.zzz.99999.999"
    old.touch()
    (tmp_path / "events.out.tfevents.99999999999999999999.a.1.0").mkdir()
    with contextlib.closing(MetricsWriter(tmp_path)) as metrics:
        for _ in range(100):
            metrics.row(1, train_loss=1.0)
    names = sorted(path.name for path in tmp_path.glob("events.*"))
    assert names[0] == old.name
    seconds = [int(name.split(".")[3]) for name in names[:-1]]
    assert seconds == list(range(1_700_000_042, 1_700_000_042 + 101))


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 3, "train_l', b"\x00" * 50, b'{"step": 3}\n{"ste', b"\xff\xfe", b"[" * 10**5],
)
def test_a_torn_last_line_is_removed_before_the_next_row(tmp_path, tail):
    write(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    inode = path.stat().st_ino
    metrics = MetricsWriter(tmp_path, keep_rows_up_to=2)
    assert path.read_bytes() == whole + tail  # the file stays as it is until the first row
    metrics.row(3, train_loss=2.0)
    metrics.close()
    assert path.read_bytes().startswith(whole)
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2, 3]
    assert path.stat().st_ino != inode  # replaced atomically, not rewritten in place
    assert not list(tmp_path.glob(".*"))


def test_a_last_row_without_its_newline_is_kept(tmp_path):
    write(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    write(tmp_path, range(3, 4), keep_rows_up_to=2)
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2, 3]


def test_a_file_with_nothing_to_remove_is_not_rewritten(tmp_path):
    write(tmp_path, range(3))
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    write(tmp_path, range(3, 5), keep_rows_up_to=2)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_resume_without_a_file_starts_one(tmp_path):
    write(tmp_path / "new", range(3, 5), keep_rows_up_to=2)
    assert [row["step"] for row in read_rows(tmp_path / "new")] == [3, 4]


# --------------------------------------------------------------------------------------------------
# Samples


def test_a_sample_is_one_line_in_a_file_for_samples(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path)) as metrics:
        metrics.sample(5, 1, "KING:\n", "Hail\n\u2028\ud800 é.", 7)
        metrics.sample(5, 2, "QUEEN:\n", "", 7)
    made = read_rows(tmp_path, "samples.jsonl")
    assert list(made[0]) == ["time", "step", "index", "prompt", "text", "seed"]
    assert list(made[0].values())[1:] == [5, 1, "KING:\n", "Hail\n\u2028\ud800 é.", 7]
    assert datetime.fromisoformat(made[0]["time"]).utcoffset() == timedelta(0)
    assert [sample["prompt"] for sample in made] == ["KING:\n", "QUEEN:\n"]


def test_each_sample_is_there_once_after_a_resume(tmp_path):
    for keep, steps in ((None, (10, 20, 30)), (20, (20, 25)), (22, (28,))):
        with contextlib.closing(MetricsWriter(tmp_path, keep_rows_up_to=keep)) as metrics:
            for step in steps:
                for index in (1, 2):
                    metrics.sample(step, index, "A:", f"after {keep}", 7)
    old = "after None"
    again = "after 20"
    last = "after 22"
    assert samples(tmp_path) == [
        (10, 1, old),
        (10, 2, old),
        (20, 1, again),
        (20, 2, again),
        (28, 1, last),
        (28, 2, last),
    ]


@pytest.mark.parametrize("rows", [(10, 20, 30), (30,), ()])
def test_each_sample_is_there_once_after_a_rewind(tmp_path, rows):
    """The run goes back from step 31 to step 12, whichever steps have rows."""
    with contextlib.closing(MetricsWriter(tmp_path)) as metrics:
        for passage, first in (("before", 1), ("after", 13)):
            for step in range(first, 32):
                if step in rows:
                    metrics.row(step, train_loss=1.0)
                if step % 5 == 0:
                    metrics.sample(step, 1, "A:", passage, 7)
                    metrics.sample(step, 2, "A:", passage, 7)
    expected = [(5, "before"), (10, "before"), *((step, "after") for step in (15, 20, 25, 30))]
    assert samples(tmp_path) == [(s, i, text) for s, text in expected for i in (1, 2)]


@pytest.mark.parametrize("next_sample", [16, 22])
def test_samples_of_steps_undone_by_a_rewind_are_removed(tmp_path, next_sample):
    """Samples made by the clock come at other steps the second time."""
    with contextlib.closing(MetricsWriter(tmp_path)) as metrics:
        for step in (5, 14, 20):
            metrics.row(step, train_loss=1.0)
            metrics.sample(step, 1, "A:", "before", 7)
        metrics.row(13, train_loss=1.0)
        metrics.sample(next_sample, 1, "A:", "after", 7)
    assert samples(tmp_path) == [(5, 1, "before"), (next_sample, 1, "after")]


def test_a_sample_is_shown_with_line_breaks_but_no_control_characters(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path)) as metrics:
        text = "Come,\n\n<b>sweet</b> *lord* ```\n````\n\x1b[31m\u202e\ud800"
        metrics.sample(5, 1, "KING:\n", text, 7)
    ((tag, points),) = texts(tmp_path).items()
    assert tag == "samples/prompt_1/text_summary"
    ((step, markdown),) = points
    assert step == 5
    page = markdown_to_safe_html(markdown)
    blocks = [
        html.unescape(block)
        for block in re.findall("<pre><code>(.*?)</code></pre>", page, re.DOTALL)
    ]
    assert blocks == [
        "KING:\n\n",
        "Come,\n\n<b>sweet</b> *lord* ```\n````\n" + r"\x1b[31m\u202e\ud800" + "\n",
    ]


@settings(deadline=None)
@given(
    st.text(
        alphabet=st.one_of(st.sampled_from("`~\n #*<>&!-[]{}|\\_=\t\x1b"), st.characters()),
        max_size=80,
    )
)
def test_a_sample_never_breaks_out_of_its_code_block(text):
    page = markdown_to_safe_html(f"{_fenced(text)}\n\n{_fenced('end')}")
    expected = re.sub(
        "(?m)^ +$", "", escape_controls(text, "\n").expandtabs(4)
    )  # as Markdown reads lines of blanks
    blocks = re.fullmatch(
        "<pre><code>(.*?)</code></pre>\n*<pre><code>end\n</code></pre>", page, re.DOTALL
    )
    assert re.sub("(?m)^ +$", "", html.unescape(blocks[1])) == expected + "\n"


# --------------------------------------------------------------------------------------------------
# Faults: one warning, and training goes on


CHILD = """
import logging, os, resource, shutil, sys, threading, time
from pathlib import Path
logging.basicConfig(format="%(levelname)s %(message)s")
from chatgot.logs.metrics import MetricsWriter
run_dir = Path("run")
"""


def run(code: str, folder: Path, shell: str = '"$0" -c "$1"') -> subprocess.CompletedProcess:
    command = ["bash", "-c", shell, sys.executable, CHILD + code]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=child_environment(ROOT),
        check=False,
    )


def check_unharmed(done: subprocess.CompletedProcess, *warnings: str) -> None:
    """Assert that the child trained to its end and gave only these warnings, one a line."""
    assert (done.returncode, done.stdout) == (0, "trained on\n")
    lines = done.stderr.splitlines()
    assert len(lines) == len(warnings), done.stderr
    for line, warning in zip(sorted(lines), sorted(warnings), strict=True):
        assert warning in line


MANY_ROWS = """
def rows(first, last):
    for step in range(first, last):
        metrics.row(step, train_loss=1.0, lr=0.5)
        metrics.sample(step, 1, "KING:", "Hail.", 7)
        time.sleep(0.001)
"""
NO_BOARD = "WARNING no more TensorBoard curves in run, training continues: "
NO_ROW = "WARNING run/metrics.jsonl: the row of step "
NO_SAMPLE = "WARNING run/samples.jsonl: the sample of step "


def test_a_full_disk_costs_one_warning_per_file_and_tears_no_row(tmp_path):
    code = f"""{MANY_ROWS}
metrics = MetricsWriter(run_dir)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
rows(0, 3)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
rows(3, 60)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
rows(60, 62)
metrics.close()
assert metrics.lost_rows > 40
assert threading.excepthook is threading.__excepthook__
print("trained on")
"""
    check_unharmed(run(code, tmp_path), NO_BOARD + "OSError(27", NO_ROW, NO_SAMPLE)
    steps = [row["step"] for row in read_rows(tmp_path / "run")]
    assert steps[-2:] == [60, 61]
    assert steps[:-2] == list(range(len(steps) - 2))
    assert 3 <= len(steps) < 20
    assert curves(tmp_path / "run")["train/loss"][:3] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
    ]  # the written events are readable


def test_a_vanished_folder_costs_one_warning_per_file(tmp_path):
    code = f"""{MANY_ROWS}
metrics = MetricsWriter(run_dir)
rows(0, 3)
time.sleep(0.2)
shutil.rmtree(run_dir)
rows(3, 60)
metrics.close()
assert metrics.lost_rows == 57
print("trained on")
"""
    warnings = NO_BOARD + "FileNotFoundError", NO_ROW + "3 was lost", NO_SAMPLE + "3 was lost"
    check_unharmed(run(code, tmp_path), *warnings)
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_last_event_is_logged_at_the_end(tmp_path):
    code = """
metrics = MetricsWriter(run_dir)
time.sleep(0.2)
shutil.rmtree(run_dir)
metrics.sample(1, 1, "KING:", "Hail.", 7)
metrics.close()
metrics.close()
print("trained on")
"""
    check_unharmed(run(code, tmp_path), NO_BOARD + "FileNotFoundError", NO_SAMPLE + "1 was lost")


def test_a_folder_that_cannot_be_created_costs_one_warning_per_file(tmp_path):
    (tmp_path / "run").write_text("a file")
    code = f"""{MANY_ROWS}
metrics = MetricsWriter(run_dir)
rows(0, 3)
metrics.close()
print('trained on')
"""
    warnings = NO_BOARD + "FileExistsError", NO_ROW + "0 was lost", NO_SAMPLE + "0 was lost"
    check_unharmed(run(code, tmp_path), *warnings)


@pytest.mark.parametrize("module", ["tensorboard", "torch.utils.tensorboard"])
def test_a_missing_tensorboard_costs_one_warning_and_no_row(tmp_path, module):
    code = f"""{MANY_ROWS}
sys.modules[{module!r}] = None  # importing it now raises the error of a missing package
run_dir.mkdir()
metrics = MetricsWriter(run_dir)
rows(0, 3)
metrics.close()
print("trained on")
"""
    check_unharmed(run(code, tmp_path), NO_BOARD + "ModuleNotFoundError")
    assert [row["step"] for row in read_rows(tmp_path / "run")] == [0, 1, 2]


def test_an_exception_in_tensorboard_ends_only_the_curves(tmp_path, monkeypatch, caplog):
    from torch.utils.tensorboard import SummaryWriter

    calls = []

    def add_scalar(self, tag, value, step):
        calls.append(step)
        raise ValueError("of all things")

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, range(4))
    assert calls == [0]
    warnings = [
        record.getMessage() for record in caplog.records if record.name == "chatgot.metrics"
    ]
    assert warnings == [
        f"no more TensorBoard curves in {tmp_path}, training continues: ValueError('of all things')"
    ]
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2, 3]


def test_an_error_in_another_thread_is_still_shown(tmp_path):
    code = """
metrics = MetricsWriter(run_dir)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
metrics.close()
print("trained on")
"""
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "trained on\n")
    assert "ZeroDivisionError" in done.stderr


def test_a_failed_repair_of_an_old_file_is_tried_again(tmp_path, caplog):
    write(tmp_path, range(5))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 5, "tr')
    blocker = path.with_name(f".metrics.jsonl.{os.getpid()}.tmp")
    blocker.mkdir()  # a folder in the place of the temporary file
    with contextlib.closing(MetricsWriter(tmp_path, keep_rows_up_to=3)) as metrics:
        metrics.row(4, train_loss=3.0)
        assert metrics.lost_rows == 1
        assert b'{"step": 5, "tr' in path.read_bytes()
        shutil.rmtree(blocker)
        metrics.row(5, train_loss=3.0)
    assert [(row["step"], row["train_loss"]) for row in read_rows(tmp_path)] == [
        (0, 2.0),
        (1, 2.0),
        (2, 2.0),
        (3, 2.0),
        (5, 3.0),
    ]
    assert [r.name for r in caplog.records] == ["chatgot.metrics"]


def test_the_thread_hook_is_restored(tmp_path):
    before = threading.excepthook
    metrics = MetricsWriter(tmp_path)
    assert threading.excepthook != before
    metrics.close()
    assert threading.excepthook == before


def test_the_losses_share_a_chart_and_the_settings_have_a_table(
    tmp_path,
):
    settings = {
        "training.batch_size": 12,
        "model.bias": True,
        "data.path": None,
        "training.betas": [0.9, 0.95],
    }
    with contextlib.closing(MetricsWriter(tmp_path, hyperparameters=settings)) as metrics:
        metrics.row(1, train_loss=2.0)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [
        path.name for path in tmp_path.iterdir() if path.is_dir()
    ] == []  # no folder of another run
    (layout,) = events.Tensors("custom_scalars__config__")
    content = layout.tensor_proto.string_val[0]
    assert all(tag in content for tag in (b"train/loss", b"val/loss", b"val/loss_full"))
    content = str(events.summary_metadata.keys())
    assert "_hparams_/session_start_info" in content


def test_curves_outside_the_row_have_their_own_tags(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path)) as metrics:
        metrics.curves(3, {"batch/micro_batch_size": 4, "time/saving_s": 0.5})
    assert curves(tmp_path)["batch/micro_batch_size"] == [(3, 4.0)]
    assert curves(tmp_path)["time/saving_s"] == [(3, 0.5)]


def test_tensorboard_is_opened_for_the_first_curve_and_never_again(tmp_path):
    metrics = MetricsWriter(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    metrics.curves(1, {"perf/memory_mib": 1.0})
    metrics.close()
    (events,) = (tmp_path / "run").iterdir()
    metrics.curves(2, {"perf/memory_mib": 1.0})
    assert list((tmp_path / "run").iterdir()) == [events]
    assert curves(tmp_path / "run")["perf/memory_mib"] == [(1, 1.0)]


def test_a_rewind_before_a_resumed_runs_first_row_hides_old_points(tmp_path):
    write(tmp_path, range(10), loss=2.0)
    write(tmp_path, range(4, 6), keep_rows_up_to=7, loss=3.0)
    assert curves(tmp_path)["train/loss"] == list(enumerate([2.0] * 4 + [3.0] * 2))
