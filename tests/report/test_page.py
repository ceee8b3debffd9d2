"""The report says what a run did, in one page that treats all text as text and fetches nothing."""

import base64
import html
import importlib.util
import io
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import harness
import made_runs
import numpy as np
import pytest
import spoilt_runs
import torch
from child_environment import child_environment
from PIL import Image

from chatgot.errors import ConfigError, StorageError
from chatgot.logs.metrics import MetricsWriter
from chatgot.report import charts
from chatgot.report.page import SAMPLE_STEPS, write_report
from chatgot.report.run_record import Row, read_events, read_rows, read_samples

SCRIPT = harness.ROOT / "scripts" / "report.py"
TEXT_LENGTH = 300  # characters shown of an event
CONFIG_LENGTH = 20_000  # characters shown of the configuration
PICTURE = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"')
FETCHES = re.compile(
    r"(?i)(src|href|srcset|action|data|poster|\bon\w+)\s*=|url\(|@import"
    r"|<(script|link|iframe|object|base)"
)
TAG = re.compile(r"<[a-zA-Z!/][^>]*>")
CSS = re.compile(r"<style>.*?</style>", re.DOTALL)
SAMPLE = re.compile(r"<pre><b>(.*?)</b>(.*?)</pre>", re.DOTALL)


def page_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def fetches(page: str) -> list[str]:
    """Return all in the page's tags and style that could make a browser fetch or run something."""
    page = PICTURE.sub("", page)
    return [part for part in [*TAG.findall(page), *CSS.findall(page)] if FETCHES.search(part)]


def words(page: str) -> str:
    """Return the text of a page as a reader sees it."""
    return html.unescape(TAG.sub(" ", CSS.sub("", page)))


def samples_shown(page: str) -> list[tuple[str, str]]:
    """Return prompt and text of each sample over time, as a reader sees them."""
    page = page[page.index("Samples over time") :]
    return [(html.unescape(prompt), html.unescape(text)) for prompt, text in SAMPLE.findall(page)]


def pictures(page: str) -> list[bytes]:
    return [base64.b64decode(code) for code in PICTURE.findall(page)]


def folder_of_rows(tmp_path: Path) -> Path:
    run_dir = made_runs.write(tmp_path)
    metrics = MetricsWriter(run_dir)
    metrics.row(1, train_loss=1.0)
    metrics.close()
    return run_dir


# --------------------------------------------------------------------------------------------------
# A real run with every kind of trouble


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> Path:
    """A run that has every kind of trouble, and is stopped and resumed.

    It skips a step, falls back in precision, halves its micro-batch and rewinds.
    """
    folder = spoilt_runs.new(
        tmp_path_factory.mktemp("troubled") / "run",
        mixed_precision=True,
        precision_dtype="bf16",
        eval_interval=10,
        sample_interval_steps=5,
        safety={"amp_retry_steps": 1000},
        dynamic_batch_size={"enabled": True, "initial": 4, "growth_interval_steps": 1000},
    )
    poison = spoilt_runs.poison({2, 6, 7, 8, 21, 22, 23})

    def spoil(state, loss):
        if state.progress.global_step == 12 and state.micro_batch.size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return poison(state, loss)

    assert spoilt_runs.run(folder, spoil=spoil, stop_at=30) == 143
    assert spoilt_runs.run(folder, "--resume_from", "latest", spoil=spoil) == 0
    (run_dir,) = (folder / "logs" / "tensorboard").iterdir()
    return run_dir


@pytest.fixture(scope="module")
def page(troubled) -> str:
    return page_of(troubled)


@pytest.mark.parametrize(
    ("kind", "fields", "badge"),
    [
        ("start", {"ranks": 1, "precision": "bf16"}, 'calm">start'),
        ("choice", {"what": "precision"}, 'calm">choice'),
        ("save", {"best": False}, 'calm">save'),
        ("evaluation", {"best": True}, 'good">best'),
        ("skip", {"step": 3}, 'warn">skip'),
        ("precision", {"old": "bf16", "new": "fp32", "step": 9}, 'calm">precision'),
        ("micro_batch", {"old": 4, "new": 2, "reason": "oom"}, 'warn">micro batch'),
        ("rewind", {"to": 20}, 'warn">rewind'),
        ("resume", {"step": 31, "precision": "fp32"}, 'calm">resume'),
        ("stop", {"signal": "SIGTERM", "global_step": 31}, 'calm">stop'),
        ("done", {"global_step": 40}, 'good">done'),
    ],
)
def test_each_event_of_a_real_run_is_read_and_shown(troubled, page, kind, fields, badge):
    events = [event for event in read_events(troubled) if event.kind == kind]
    told = [{"step": event.step, **event.fields} for event in events]
    assert any(fields.items() <= event.items() for event in told), told
    assert f'<span class="badge {badge}</span>' in page
    assert page.count(">start</span>") == 1


def test_the_page_begins_with_the_numbers_of_the_run(troubled, page):
    text = words(page)
    rows = read_rows(troubled)
    best = min(rows[1:], key=lambda row: row.numbers["val_loss"] or math.inf)
    full = next(row.numbers["val_loss_full"] for row in rows if "val_loss_full" in row.numbers)
    for part in (
        f"{best.numbers['val_loss']:.4f}  nats, step {best.step:,.0f}",
        f"{full:.4f}",
        f"{rows[-1].numbers['val_bits_per_byte_full']:.4f}  over all held-out text",
        f"{rows[-1].numbers['tokens']:,.0f}",
        "bf16, then fp32",
        troubled.name,
        "model: gpt, 0.0 M parameters",
        "--resume_from",
    ):
        assert part in text
    assert re.search(r'<span class="badge good">done</span> \d{4}-\d\d-\d\d \S+ to \d{4}-', page)
    assert re.search(r"<dt>optimizer steps</dt><dd>40</dd>", page)
    assert re.search(r"<dt>peak memory</dt><dd>[\d,]{3,} ", page)


def test_the_page_shows_samples_over_time_exactly(troubled, page):
    made = [sample for sample in read_samples(troubled) if sample.index == 1]
    steps = [int(step) for step in re.findall(r"<figcaption>step (\d+)\b", page)]
    assert steps[0] == made[0].step == 5
    assert steps[-1] == made[-1].step == 40
    assert len(set(steps)) == SAMPLE_STEPS < len(made)
    assert made[-1].prompt == "KING: "
    assert len(made[-1].text) > 3
    assert (made[-1].prompt, made[-1].text) in samples_shown(page)


def test_the_page_is_one_small_file_that_fetches_nothing(troubled, page):
    assert fetches(page) == []
    assert "default-src 'none'" in page
    assert [picture[:8] for picture in pictures(page)] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert page.count("<img ") == 2
    assert page.count('<img alt="loss over 40') == 1
    assert page.count('<img alt="learning rate') == 1
    assert len(page) < 300_000
    assert "gradient_checkpointing: false" in page  # the configuration is there
    assert not [path for path in troubled.iterdir() if path.name.endswith(".tmp")]


# --------------------------------------------------------------------------------------------------
# Events, samples and time of runs made by hand


def test_the_page_describes_a_run_from_its_events_alone(tmp_path, utc):
    run_dir = made_runs.write(
        tmp_path,
        made_runs.start(),
        made_runs.event("choice", 0, "bf16 is close to fp32", what="precision", chosen="bf16"),
        made_runs.event("precision", 10, "falls back", at=10, old="bf16", new="fp32"),
        made_runs.event("rewind", 24, "rewinding", at=20, to=20, skipped=[21, 25]),
        made_runs.event("stop", 31, "stopped", at=30, signal="SIGTERM", global_step=31),
        made_runs.start(precision="fp32", resumed_from="a_step_31.pt")
        | made_runs.event("resume", 31, "6,000 characters", at=40),
        made_runs.end("done", 1234, at=3600),
    )
    page = page_of(run_dir)
    text = words(page)
    assert '<span class="badge good">done</span> 2025-01-02 03:04:05 to 2025-01-02 04:04:05' in page
    assert "<dd>1,234</dd>" in page
    for part in (
        "bf16, then fp32",
        "model: gpt, 0.0 M parameters",
        "text: 6,000 characters",
        "device: cpu, 2 threads",
        "software: ChatGoT 1.0, torch 2.13.0",
        "train --resume_from a_step_40.pt",
        "resumed from a_step_31.pt",
        f"run {made_runs.RUN_ID}",
        "bf16 is close to fp32",
        "rewinding",
    ):
        assert part in text, part
    assert "could not be made" not in page


def test_events_that_a_resume_undid_are_not_shown(tmp_path):
    run_dir = made_runs.write(tmp_path)
    for keep, numbers in ((None, (10, 20, 30)), (20, (25,)), (22, (26,))):
        metrics = MetricsWriter(run_dir, keep_rows_up_to=keep)
        for step in numbers:
            metrics.row(step, train_loss=1.0)
            metrics.sample(step, 1, "A:", f" of step {step} from {keep}", 7)
        metrics.close()
    page = page_of(run_dir)
    assert "of step 20" in page
    assert "of step 25" not in page


HOSTILE = [
    "<script>alert(1)</script>",
    "</pre><img src=http://example.org/x onerror=alert(1)>",
    "\x1b[31mred\x07",
    "{{ 7 * 7 }}{% for x in y %}",
    "a\u202eb",
    "' \" & &lt;",
    "</style><script>alert(1)</script>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(tmp_path, text):
    """It is in samples, events and settings, and in the description of the run."""
    named = dict.fromkeys(("model", "text", "device", "version", "precision", "run_id"), text)
    run_dir = made_runs.write(
        tmp_path,
        made_runs.start(**named),
        made_runs.event("resume", 3, resumed_from=text),
        made_runs.event(text, 3, text),
        made_runs.event("warning", 3, text, level=text),
        made_runs.end("stop", 3, signal=text, resume_command=text),
    )
    (run_dir / "config.yaml").write_text(text, encoding="utf-8")
    metrics = MetricsWriter(run_dir)
    metrics.row(1, train_loss=1.0)
    metrics.sample(1, 1, text, text, 7)
    metrics.close()
    page = page_of(run_dir)
    assert fetches(page) == []
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    visible = text.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\u202e", "\\u202e")
    assert samples_shown(page) == [(visible, visible)]
    assert html.unescape(page).count(visible) >= 12
    assert page.count("<section") == page.count("</section>") == 7
    assert "could not be made" not in page


def test_a_hostile_name_of_a_run_is_shown_as_text(tmp_path):
    name = "<img src=x onerror=alert(1)>\x1b"
    page = page_of(made_runs.write(tmp_path, made_runs.start(), name=name))
    assert fetches(page) == []
    assert "<h1>&lt;img src=x onerror=alert(1)&gt;\\x1b</h1>" in page


def test_the_time_is_split_into_shares_of_the_whole(tmp_path):
    run_dir = made_runs.write(tmp_path)
    metrics = MetricsWriter(run_dir)
    seconds = {"time/forward_backward_s": 30.0, "time/update_s": 7.5, "time/saving_s": 2.5}
    for step in (1, 2):
        metrics.row(step, train_loss=1.0)
        metrics.curves(step, seconds)
    metrics.close()
    page = page_of(run_dir)
    shares = dict(re.findall(r"</i>([a-z ]+)</td><td>[^<]+</td><td>([\d.]+)%", page))
    expected = {"forward and backward": "75.0", "update": "18.8", "saving": "6.2"}
    assert shares == dict.fromkeys(("data", "evaluation", "sampling"), "0.0") | expected
    assert "<td>1 min 20 s</td><td>100.0%</td>" in page
    assert "width:75.000%" in page


def test_the_page_says_when_the_split_of_the_time_is_missing(tmp_path):
    assert "has no measurements of its time" in page_of(folder_of_rows(tmp_path))


@pytest.mark.parametrize(
    ("module", "pictures_left", "said"),
    [
        (
            "tensorboard.backend.event_processing.event_accumulator",
            2,
            "TensorBoard's event files could not be read",
        ),
        ("matplotlib.figure", 0, "this part could not be made: ModuleNotFoundError"),
    ],
)
def test_a_missing_library_leaves_the_rest_of_the_page(
    troubled, tmp_path, monkeypatch, module, pictures_left, said
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "chatgot.report.charts", raising=False)
    page = write_report(troubled, tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(pictures(page)) == pictures_left
    assert said in words(page)
    assert ">rewind</span>" in page
    assert "<h2>Configuration</h2>" in page


def test_the_readable_part_of_damaged_event_files_is_shown(tmp_path, caplog):
    run_dir = folder_of_rows(tmp_path)
    (events,) = run_dir.glob("*tfevents*")
    for content in (events.read_bytes()[:-9], b"\x00\xff" * 5000, b""):
        events.write_bytes(content)
        with caplog.at_level(logging.DEBUG):
            page = page_of(run_dir)
        assert len(pictures(page)) == 2
        assert "no measurements of its time" in page or "could not be read" in page
    assert logging.getLogger("tensorboard").disabled is False


def test_the_page_says_what_is_missing_where_a_run_has_no_events(tmp_path):
    run_dir = folder_of_rows(tmp_path)
    (run_dir / "training.log").write_text("2025-01-02 03:04:05 - INFO - done: 9 steps\n")
    page = page_of(run_dir)
    text = words(page)
    assert "it is not known how the run ended" in text
    assert "no events.jsonl: its times are not known" in text
    assert "events.jsonl is missing or has no readable event" in text
    assert "samples.jsonl is missing or has no readable sample" in text
    assert "done: 9 steps" not in text
    assert len(pictures(page)) == 2
    assert "could not be made" not in page


def test_numbers_that_are_in_the_events_need_no_tensorboard(tmp_path, monkeypatch):
    rows = made_runs.json_lines([{"step": 1, "lr": 1.0}, {"step": 9, "lr": 1.0}])
    events = [
        made_runs.start(),
        made_runs.event("micro_batch", 3, old=4, new=2, reason="oom"),
        made_runs.event("skip", 4),
        made_runs.event("precision", 5, old="bf16", new="fp32"),
    ]
    drawn = []
    draw = charts.health_panels

    def health_panels(*arguments):
        drawn.extend(draw(*arguments))
        return drawn

    monkeypatch.setattr(charts, "health_panels", health_panels)
    write_report(made_runs.write(tmp_path, *events, rows=rows))
    titles = [panel.title for panel in drawn]
    assert titles[-3:] == ["micro_batch_size", "precision", "skipped steps so far"]


# --------------------------------------------------------------------------------------------------
# Rows


GARBAGE = b"""\xff\xfe\x00garbage
[1, 2]
{"step": true, "train_loss": 1}
{"step": 1e999, "train_loss": 1}
{"step": 3, "train_loss": 2.5, "tokens_per_s": "fast", "grad_norm": 1e300, "lr": NaN}
{"step": 4, "train_loss": null, "nonfinite": true}
{"step": 1, "train_loss": 3.5, "val_loss": [1], "time_s": -Infinity}
{"step": 5, "tra"""


def test_only_the_valid_rows_among_garbage_are_drawn(tmp_path):
    page = page_of(made_runs.write(tmp_path, rows=GARBAGE))
    assert len(pictures(page)) == 2
    assert "could not be made" not in page
    assert '<img alt="loss over 4 steps; last: train_loss 2.5000"' in page


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x00" * 1000, b"{}"])
def test_the_page_says_when_there_is_no_row(tmp_path, content):
    page = page_of(made_runs.write(tmp_path, rows=content))
    assert "metrics.jsonl is missing or has no readable row" in page
    assert "could not be made" not in page
    assert pictures(page) == []


def test_a_non_finite_row_is_a_gap_and_a_mark():
    """The line of the validation loss has no gap."""
    names = ("train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s")
    whole = [Row(float(step), dict.fromkeys(names, 1.0)) for step in range(5)]
    gap = dict.fromkeys(names, 1.0) | {"train_loss": None, "val_loss": None}
    rows = [*whole[:2], Row(2.0, gap, nonfinite=True), *whole[3:]]
    values = charts.column(rows, "train_loss", gaps=True)[1]
    assert np.isnan(values).tolist() == [False, False, True, False, False]
    assert len(charts.column(rows, "val_loss")[1]) == 4
    unmarked = [*whole[:2], Row(2.0, gap), *whole[3:]]
    assert charts.loss_chart(rows, []) != charts.loss_chart(unmarked, [])
    only = [Row(1.0, dict.fromkeys(names), nonfinite=True)]
    assert charts.loss_chart(only, [])
    assert charts.health_chart(only, {}, [])


def test_thinning_keeps_each_spike_and_smoothing_keeps_the_mean():
    x = np.arange(50_000.0)
    y = np.zeros(50_000)
    y[[17, 31_234]] = 9.0, -9.0
    y[100:5000] = np.nan
    thin_x, thin_y = charts.thinned((x, y))
    assert len(thin_x) <= 2 * charts.POINTS
    assert (np.nanmax(thin_y), np.nanmin(thin_y)) == (9.0, -9.0)
    assert np.isnan(thin_y).any()
    assert (np.diff(thin_x) > 0).all()
    noisy = np.where(np.arange(1000) % 2, 3.0, 1.0)
    noisy[500] = np.nan
    assert charts.smoothed((np.arange(1000.0), noisy))[1] == pytest.approx(2.0, abs=0.2)


def test_the_page_of_a_long_run_is_made_in_seconds_and_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "step": step,
            "train_loss": 1.5 + 3 / (1 + step / 500) + rng.normal(0, 0.1),
            "lr": 1e-3,
            "nonfinite": False,
            "val_loss": 2.0 if step % 10 == 0 else None,
            "grad_norm": math.exp(rng.normal()),
            "tokens_per_s": 5e3,
            "tokens": step * 1000,
            "time_s": step * 1.0,
        }
        for step in range(20_000)
    ]
    events = [made_runs.start()]
    for step in range(20_000):
        path = f"{made_runs.RUN_ID}_step_{step}.pt"
        events.append(made_runs.event("save", step, f"saved {path}", at=step, path=path))
        if step % 20 == 0:
            text = f"precision falls back from step {step} on"
            events.append(made_runs.event("precision", step, text, at=step, new="fp32"))
    run_dir = made_runs.write(tmp_path, *events, rows=made_runs.json_lines(rows))
    begin = time.perf_counter()
    page = page_of(run_dir)
    assert time.perf_counter() - begin < 10
    assert len(page) < 600_000
    assert "<dd>19,999</dd>" in page
    assert re.search(r"1,9\d\d lines are left out here", page)
    assert "step 19980 on" in page


# --------------------------------------------------------------------------------------------------
# Long texts


def test_a_text_of_a_megabyte_is_cut(tmp_path):
    run_dir = made_runs.write(
        tmp_path,
        made_runs.event("warning", 1, "x" * 1_000_000, level="WARNING"),
        made_runs.event("warning", 1, "short \ufffd", level="ERROR"),
    )
    page = page_of(run_dir)
    assert [len(part) for part in re.findall("xxx+", page)] == [TEXT_LENGTH]
    assert "xxx ..." in page
    assert "short \ufffd" in page
    assert 'badge bad">error</span>' in page


def test_long_samples_prompts_and_configurations_are_cut_too(tmp_path):
    run_dir = made_runs.write(tmp_path)
    (run_dir / "config.yaml").write_text("y" * 1_000_000, encoding="utf-8")
    metrics = MetricsWriter(run_dir)
    for i in range(1, 12):
        metrics.sample(1, i, "p" * 100_000, "x" * 100_000, 7)
    metrics.row(1, train_loss=1.0)
    metrics.close()
    page = page_of(run_dir)
    assert len(PICTURE.sub("", page)) < 100_000 + CONFIG_LENGTH
    assert "<h3>prompt 8 " in page
    assert "<h3>prompt 9 " not in page
    assert "3 more prompts are not shown" in page


@pytest.mark.parametrize(
    ("last", "badge"),
    [
        (made_runs.end("done", 1234), 'good">done'),
        (made_runs.end("stop", 1234, signal="SIGINT"), 'calm">stopped by SIGINT'),
        (made_runs.end("crash", 1234, exit_code=4), 'bad">ended by an error'),
        (made_runs.event("resume", 3), 'warn">still running, or killed'),
    ],
)
def test_the_state_of_the_run_is_that_of_its_last_event(tmp_path, last, badge):
    run_dir = made_runs.write(tmp_path, made_runs.start(), made_runs.end("done", 9), last)
    page = page_of(run_dir)
    assert f'<span class="badge {badge}</span>' in page
    over = last["kind"] != "resume"
    assert ("<dd>1,234</dd>" in page) is over
    assert ("go on with" in page) is over


def test_the_page_says_when_the_file_of_events_is_empty(tmp_path):
    run_dir = made_runs.write(tmp_path)
    (run_dir / "events.jsonl").write_bytes(b"\x00garbage\n" * 10)
    assert "events.jsonl is missing or has no readable event" in page_of(run_dir)


# --------------------------------------------------------------------------------------------------
# The style of the pictures


def test_chart_is_sharp_on_a_screen_of_high_density_and_small():
    rows = [Row(float(step), {"train_loss": 3 - step / 1000}) for step in range(1000)]
    content = charts.loss_chart(rows, [])
    picture = Image.open(io.BytesIO(content))
    assert picture.width == 1920  # the page shows it 960 wide
    assert picture.mode == "P"
    assert len(content) < 60_000


DRAW = """
import hashlib, os
from chatgot.report.charts import health_chart, loss_chart
from chatgot.report.run_record import Row
rows = [Row(float(s), {"train_loss": 2.0 / (s + 1), "lr": 1e-3}) for s in range(9)]
before = dict(os.environ), os.getcwd()
for png in (loss_chart(rows, []), health_chart(rows, {}, [])):
    print(hashlib.sha256(png).hexdigest())
assert before == (dict(os.environ), os.getcwd())
"""
STYLE = """
axes.facecolor: black
font.size: 30
font.family: fantasy
text.usetex: True
figure.dpi: 2000
savefig.dpi: 30
savefig.format: svg
savefig.bbox: tight
svg.fonttype: none
agg.path.chunksize: 5
lines.antialiased: False
axes.formatter.use_locale: True
backend: Qt5Agg
"""


@pytest.fixture(scope="module")
def plain_pictures(tmp_path_factory) -> str:
    """Return what DRAW says where no setting is around."""
    return drawn(tmp_path_factory.mktemp("plain"), {})


def drawn(folder: Path, variables: dict[str, str]) -> str:
    """Run DRAW in a folder; return the hashes of the pictures. Nothing else is said."""
    done = subprocess.run(
        [sys.executable, "-c", DRAW],
        cwd=folder,
        env=child_environment(harness.ROOT, without="MPL") | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("variables", "settings"),
    [
        pytest.param({"MPLBACKEND": "no such backend"}, STYLE.encode(), id="another style"),
        pytest.param(
            {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": "gone"},
            "text.usetex: True".encode("utf-16"),
            id="not UTF-8",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"MATPLOTLIBRC": "there", "MPLCONFIGDIR": "/proc/x"},
            None,
            id="by variable",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_pictures_do_not_depend_on_the_users_matplotlib_settings(
    tmp_path, plain_pictures, variables, settings
):
    """Each case is a new process, since matplotlib reads them when it is imported."""
    (tmp_path / "there").write_bytes(b"\xff\xfe not text")
    if settings is not None:
        (tmp_path / "matplotlibrc").write_bytes(settings)
    assert drawn(tmp_path, variables) == plain_pictures


# --------------------------------------------------------------------------------------------------
# Folders without a run, and the script


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path):
    for folder, problem in (
        (tmp_path, "is not the folder of a run"),
        (tmp_path / "nowhere", "is not a folder"),
    ):
        with pytest.raises(ConfigError, match=problem) as caught:
            write_report(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "training.log"])
def test_a_single_file_of_a_run_is_enough_for_a_page(tmp_path, name):
    (tmp_path / name).write_text("", encoding="utf-8")
    assert "could not be made" not in page_of(tmp_path)


def test_a_page_that_cannot_be_written_is_a_storage_error(tmp_path):
    run_dir = made_runs.write(tmp_path, made_runs.start())
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(run_dir, tmp_path / "no" / "page.html")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Three runs of two configurations in logs/tensorboard/ of the current folder.

    The name of one configuration begins with the other's.
    """
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "logs" / "tensorboard"
    for name in ("a_20250102-030405", "a_20250102-030500", "a_b_20260101-000000"):
        made_runs.write(folder, made_runs.start(), name=name)
    return folder


def test_a_name_that_two_yamls_share_is_refused_with_a_command_for_each(runs, capsys):
    yamls = [runs / "first" / "a.yaml", runs / "second" / "a.yaml"]
    for yaml, run_dir in zip(yamls, sorted(runs.glob("a_2025*")), strict=True):
        yaml.parent.mkdir()
        yaml.touch()
        (run_dir / "run.json").write_text(json.dumps({"config_path": str(yaml)}))
    assert load_script().main(["a"]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for yaml, run_id in zip(yamls, ("a_20250102-030405", "a_20250102-030500"), strict=True):
        assert re.search(rf"{re.escape(str(yaml))}: \S+ .*?{run_id}\b", error)


@pytest.mark.parametrize("gone", [0, 1, None])
def test_a_run_of_a_yaml_that_is_gone_comes_after_the_others(runs, capsys, gone):
    """As `latest` chooses. If both YAMLs are gone, it is the newest run."""
    yamls = [runs / "first" / "a.yaml", runs / "second" / "a.yaml"]
    run_dirs = sorted(runs.glob("a_2025*"))
    for number, (yaml, run_dir) in enumerate(zip(yamls, run_dirs, strict=True)):
        yaml.parent.mkdir()
        if gone is not None and number != gone:
            yaml.touch()
        (run_dir / "run.json").write_text(json.dumps({"config_path": str(yaml)}))
    assert load_script().main(["a"]) == 0
    expected = run_dirs[0 if gone == 1 else 1]
    assert capsys.readouterr().out.strip().endswith(f"{expected.name}/report.html")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "", 7])
def test_a_run_json_without_a_valid_path_does_not_stop_the_report(runs, path):
    (runs / "a_20250102-030500" / "run.json").write_text(json.dumps({"config_path": path}))
    assert load_script().main(["a"]) == 0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("a", "a_20250102-030500"),
        ("a_b", "a_b_20260101-000000"),
        ("a_20250102-030405", "a_20250102-030405"),
        ("logs/tensorboard/a_20250102-030405/", "a_20250102-030405"),
    ],
)
def test_a_run_is_found_by_its_folder_id_or_configuration(runs, capsys, asked, expected):
    assert load_script().main([asked]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written.resolve() == runs / expected / "report.html"
    assert f"<h1>{expected}</h1>" in written.read_text(encoding="utf-8")


def test_a_missing_run_does_not_stop_the_pages_of_the_others(runs, capsys):
    assert load_script().main(["a", "no.such", "a_b"]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.count("\n") == 1
    assert "no.such" in err


def test_the_page_of_one_run_can_be_written_elsewhere(runs, capsys):
    assert load_script().main(["a", "--output", "page.html"]) == 0
    assert Path("page.html").is_file()
    assert not list(runs.glob("*/report.html"))
    assert load_script().main(["a", "--output", "no/page.html"]) == 5
    with pytest.raises(SystemExit) as caught:
        load_script().main(["a", "a_b", "--output", "page.html"])
    assert caught.value.code == 2


def test_the_script_needs_no_torch_and_no_pyplot(runs):
    code = f"""
import runpy, sys
sys.argv = ["report.py", "a"]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
from chatgot.report.charts import loss_chart
from chatgot.report.run_record import Row
loss_chart([Row(1.0, {{"train_loss": 2.0}})], [])
import chatgot.logs.events, chatgot.logs.json_lines, chatgot.logs.timing
print([name for name in ("torch", "matplotlib.pyplot") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr


def test_help_comes_before_the_heavy_imports():
    heavy = ("torch", "numpy", "matplotlib", "jinja2", "tensorboard")
    code = f"""
import runpy, sys
sys.argv = ["report.py", "--help"]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print([name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        load_script().main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.count("python scripts/report.py ") >= 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", ".", "pipe", "loop"])
def test_a_file_that_is_not_a_report_is_never_replaced(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "train_loss": 2.0}\n', encoding="utf-8")
    (folder / "config.yaml").write_text("seed: 1\n", encoding="utf-8")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    before = {path: path.lstat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="exists and is not a report"):
        write_report(folder, folder / name)
    assert {path: path.lstat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_report_is_replaced_by_a_new_one(tmp_path):
    folder = made_runs.write(tmp_path, made_runs.start())
    page = write_report(folder, tmp_path / "new.html")
    before = page.read_text(encoding="utf-8")
    assert "new words" not in before
    other = made_runs.write(tmp_path / "other", made_runs.event("new words", 3))
    assert write_report(other, page) == page
    assert "new words" in page.read_text(encoding="utf-8")


def test_bad_input_to_the_script_gives_one_line_without_controls(tmp_path):
    script = harness.ROOT / "scripts" / "report.py"
    (tmp_path / "lögs✓").mkdir()
    (tmp_path / "lögs✓" / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    for run, code in (("x" * 300, 2), ("a\x1b[31mb\nc", 2), ("lögs✓", 0)):
        done = subprocess.run(
            [sys.executable, str(script), run],
            cwd=tmp_path,
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )
        assert done.returncode == code, done.stderr
        assert len((done.stdout + done.stderr).splitlines()) == 1
        assert b"\x1b" not in done.stdout + done.stderr
