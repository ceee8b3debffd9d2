"""The report says what a run did, in one page that shows whatever it is given and fetches nothing."""

import base64
import html
import importlib.util
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
import numpy as np
import pytest
import spoilt_runs
import torch

from chatgot.errors import ConfigError, StorageError
from chatgot.logs.metrics import MetricsWriter
from chatgot.report import charts
from chatgot.report.page import (
    CONFIG_LENGTH,
    GROUP_FROM,
    SAMPLE_STEPS,
    TEXT_LENGTH,
    collapsed,
    write_report,
)
from chatgot.report.run_record import Event, read_board, read_log, read_rows

SCRIPT = harness.ROOT / "scripts" / "report.py"
PICTURE = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"')
FETCHES = re.compile(
    r"(?i)(src|href|srcset|action|data|poster|\bon\w+)\s*=|url\(|@import|<(script|link|iframe|object|base)"
)
TAG = re.compile(r"<[a-zA-Z!/][^>]*>")
CSS = re.compile(r"<style>.*?</style>", re.DOTALL)


def page_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def fetches(page: str) -> list[str]:
    """Return what in the page's tags and style could make a browser fetch or run something."""
    page = PICTURE.sub("", page)
    return [part for part in [*TAG.findall(page), *CSS.findall(page)] if FETCHES.search(part)]


def words(page: str) -> str:
    """Return what a reader sees of a page."""
    return html.unescape(TAG.sub(" ", CSS.sub("", page)))


def pictures(page: str) -> list[bytes]:
    return [base64.b64decode(code) for code in PICTURE.findall(page)]


def folder_with(tmp_path: Path, rows: bytes | None = None, log: bytes | None = None) -> Path:
    run_dir = tmp_path / "made_up_20250102-030405"
    run_dir.mkdir()
    for name, content in (("metrics.jsonl", rows), ("training.log", log)):
        if content is not None:
            (run_dir / name).write_bytes(content)
    return run_dir


def lines(*texts: str, level: str = "INFO") -> bytes:
    return "".join(
        f"2025-01-02 03:04:{i % 60:02d} - {level} - {text}\n" for i, text in enumerate(texts)
    ).encode()


# --------------------------------------------------------------------------------------------------
# A real run that meets everything


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> Path:
    """A run that skips a step, falls back in precision, halves its micro-batch, rewinds, is stopped and goes on."""
    folder = spoilt_runs.new(
        tmp_path_factory.mktemp("troubled") / "run", mixed_precision=True, precision_dtype="bf16", eval_interval=10,
        sample_interval_steps=5, amp_retry_steps=1000,
        dynamic_batch_size={"enabled": True, "initial": 4, "growth_interval_steps": 1000},
    )  # fmt: skip
    poison = spoilt_runs.poison({2, 6, 7, 8, 21, 22, 23})

    def spoil(state, loss):
        if state.global_step == 12 and state.micro_batch_size > 2:
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
    ("kind", "text"),
    [
        ("begin", "run tiny_"), ("save", "saved checkpoints/tiny_"), ("best", "| best so far"),
        ("skip", "step 3 skipped: loss nan"), ("precision", "mixed precision: bf16 is close to fp32"),
        ("precision", "precision falls back from bf16 to fp32 from step 10 on"),
        ("batch size", "out of memory: micro_batch_size 4 -> 2, the step is done again"),
        ("rewind", ": rewinding to step 20, data positions 21 to"), ("resume", "resumed from checkpoints/tiny_"),
        ("end", "stopped by SIGTERM: 31 steps"), ("end", "done: 40 steps"),
    ],
)  # fmt: skip
def test_each_event_of_a_real_run_is_recognised_and_told(troubled, page, kind, text):
    events = [event for event in read_log(troubled).events if event.kind == kind]
    assert any(text in event.text for event in events), events
    assert (
        f'<span class="badge {"warn" if kind in ("skip", "rewind", "batch size") else ""}' in page
    )
    assert f">{kind}</span>" in page
    assert kind in ("save", "best", "skip") or text in words(page)
    assert page.count(">begin</span>") == 1


@pytest.mark.parametrize(
    ("kind", "step"), [("skip", 3), ("rewind", 24), ("resume", 31), ("best", 10), ("save", 4)]
)
def test_an_event_knows_its_step(troubled, kind, step):
    assert step in [event.step for event in read_log(troubled).events if event.kind == kind]


def test_its_head_has_the_numbers_of_the_run(troubled, page):
    text, rows = words(page), read_rows(troubled)
    best = min(rows[1:], key=lambda row: row["val_loss"] or math.inf)
    full = next(row["val_loss_full"] for row in rows if "val_loss_full" in row)
    for part in (
        f"{best['val_loss']:.4f}  nats, step {best['step']:,.0f}", f"{full:.4f}", f"{rows[-1]['tokens']:,.0f}",
        "bf16, then fp32", troubled.name, "model: gpt, 0.0 M parameters", "--resume_from",
    ):  # fmt: skip
        assert part in text
    assert re.search(r'<span class="badge good">done</span> \d{4}-\d\d-\d\d \S+ to \d{4}-', page)
    assert re.search(r"<dt>optimizer steps</dt><dd>40</dd>", page)
    assert re.search(r"<dt>peak memory</dt><dd>[\d,]{3,} ", page)


def test_it_shows_samples_over_time_as_they_were_made(troubled, page):
    made = read_board(troubled).samples["prompt_1"]
    steps = [int(step) for step in re.findall(r"<figcaption>step (\d+)</figcaption>", page)]
    assert steps[0] == made[0][0] == 5
    assert steps[-1] == made[-1][0] == 40
    assert len(set(steps)) == SAMPLE_STEPS < len(made)
    _, prompt, text = made[-1]
    assert (prompt, len(text) > 3) == ("KING: ", True)
    assert f"<pre><b>{html.escape(prompt)}</b>{html.escape(text)}</pre>" in page


def test_it_is_one_small_file_that_fetches_nothing(troubled, page):
    assert fetches(page) == []
    assert "default-src 'none'" in page
    assert [picture[:8] for picture in pictures(page)] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert (
        page.count("<img ")
        == page.count('<img alt="loss over 40') + page.count('<img alt="learning rate')
        == 2
    )
    assert len(page) < 300_000
    assert "gradient_checkpointing: false" in page  # of the configuration
    assert not [path for path in troubled.iterdir() if path.name.endswith(".tmp")]


# --------------------------------------------------------------------------------------------------
# Samples, curves and time of TensorBoard


def test_what_a_resumed_run_left_behind_is_not_shown(tmp_path):
    run_dir = folder_with(tmp_path)
    for keep, numbers in ((None, (10, 20, 30)), (20, (25,)), (22, ())):
        metrics = MetricsWriter(run_dir, keep_rows_up_to=keep)
        for step in numbers:
            metrics.row(step, train_loss=1.0)
            metrics.sample(step, "prompt_1", "A:", f" of step {step} from {keep}")
        metrics.close()
    assert [step for step, _, _ in read_board(run_dir).samples["prompt_1"]] == [10, 20]
    page = page_of(run_dir)
    assert "of step 20" in page
    assert "of step 25" not in page


HOSTILE = [
    "<script>alert(1)</script>", "</pre><img src=http://example.org/x onerror=alert(1)>", "\x1b[31mred\x07",
    "```\n````", "**continuation**\n\n```\nforged\n```", "a\u202eb", "' \" & &lt;",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_sample_is_text_like_any_other(tmp_path, text):
    run_dir = folder_with(
        tmp_path,
        log=lines(f"resumed from {text} at step 3", f"model: {text}", f"resume with: {text}"),
    )
    (run_dir / "config.yaml").write_text(text, encoding="utf-8")
    metrics = MetricsWriter(run_dir)
    metrics.row(1, train_loss=1.0)
    metrics.sample(1, "prompt_1", text, text)
    metrics.close()
    page = page_of(run_dir)
    assert fetches(page) == []
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    visible = text.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\u202e", "\\u202e")
    assert f"<pre><b>{html.escape(visible)}</b>{html.escape(visible)}</pre>" in page
    assert page.count("<section>") == page.count("</section>") == 6


def test_the_time_is_split_into_shares_of_the_whole(tmp_path):
    run_dir = folder_with(tmp_path)
    metrics = MetricsWriter(run_dir)
    for step in (1, 2):
        metrics.row(step, train_loss=1.0)
        metrics.curves(
            step, {"time/forward_backward_s": 30.0, "time/update_s": 7.5, "time/saving_s": 2.5}
        )
    metrics.close()
    page = page_of(run_dir)
    shares = dict(re.findall(r"</i>([a-z ]+)</td><td>[^<]+</td><td>([\d.]+)%", page))
    expected = {"forward and backward": "75.0", "update": "18.8", "saving": "6.2"}
    assert shares == dict.fromkeys(("data", "evaluation", "sampling"), "0.0") | expected
    assert "<td>1 min 20 s</td><td>100.0%</td>" in page
    assert "width:75.000%" in page


def test_without_a_split_of_the_time_it_says_so(tmp_path):
    assert "did not measure where its time went" in page_of(folder_of_rows(tmp_path))


def folder_of_rows(tmp_path: Path) -> Path:
    run_dir = folder_with(tmp_path)
    metrics = MetricsWriter(run_dir)
    metrics.row(1, train_loss=1.0)
    metrics.close()
    return run_dir


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
def test_without_a_library_the_rest_of_the_page_is_there(
    troubled, tmp_path, monkeypatch, module, pictures_left, said
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "chatgot.report.charts", raising=False)
    page = write_report(troubled, tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(pictures(page)) == pictures_left
    assert said in words(page)
    assert ">rewind</span>" in page
    assert "<h2>Configuration</h2>" in page


def test_of_damaged_event_files_what_can_be_read_is_shown(tmp_path, caplog):
    run_dir = folder_of_rows(tmp_path)
    (events,) = run_dir.glob("*tfevents*")
    for content in (events.read_bytes()[:-9], b"\x00\xff" * 5000, b""):
        events.write_bytes(content)
        with caplog.at_level(logging.DEBUG):
            page = page_of(run_dir)
        assert len(pictures(page)) == 2
        assert "the run made no samples" in page or "could not be read" in page
    assert logging.getLogger("tensorboard").disabled is False


# --------------------------------------------------------------------------------------------------
# Rows


GARBAGE = b"""\xff\xfe\x00garbage
[1, 2]
"step"
{"step": "7", "train_loss": 1}
{"step": true, "train_loss": 1}
{"step": 1e999, "train_loss": 1}
{"step": 3, "train_loss": 2.5, "val_loss": null, "tokens_per_s": "fast", "grad_norm": 1e300, "lr": NaN}
{"step": 4, "train_loss": null, "nonfinite": true}
{"step": 1e31}
{"step": 1, "train_loss": 3.5, "val_loss": [1], "time_s": -Infinity}
{"step": 5, "tra"""


def test_of_garbage_the_rows_are_read_and_nothing_else(tmp_path):
    run_dir = folder_with(tmp_path, GARBAGE + b"\n" + b"[" * 100_000 + b"\n")
    rows = read_rows(run_dir)
    assert [(row["step"], row["train_loss"], row["nonfinite"]) for row in rows] == [
        (1, 3.5, 0),
        (3, 2.5, 0),
        (4, None, 1),
    ]
    assert rows[1]["grad_norm"] is rows[1]["lr"] is rows[1]["tokens_per_s"] is None
    page = page_of(run_dir)
    assert len(pictures(page)) == 2
    assert "could not be made" not in page


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x00" * 1000, b"{}"])
def test_without_a_row_it_says_so(tmp_path, content):
    page = page_of(folder_with(tmp_path, content))
    assert "metrics.jsonl is missing or has no row" in page
    assert "could not be made" not in page
    assert pictures(page) == []


def test_a_row_that_is_not_finite_is_a_gap_and_a_mark_and_leaves_the_validation_line_whole():
    names = ("train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s")
    rows = [
        dict.fromkeys(names, 1.0) | {"step": float(step), "nonfinite": 0.0} for step in range(5)
    ]
    rows[2] |= {"train_loss": None, "val_loss": None, "nonfinite": 1.0}
    assert np.isnan(charts.column(rows, "train_loss", gaps=True)[1]).tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert len(charts.column(rows, "val_loss")[1]) == 4
    whole = [row | {"nonfinite": 0.0} for row in rows]
    assert charts.loss_chart(rows, []) != charts.loss_chart(whole, [])
    only = [dict.fromkeys(names) | {"step": 1.0, "nonfinite": 1.0}]
    assert charts.loss_chart(only, []) and charts.health_chart(only, {})


def test_thinning_keeps_each_spike_and_smoothing_each_mean():
    x, y = np.arange(50_000.0), np.zeros(50_000)
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


def test_a_long_run_is_drawn_in_seconds_and_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "step": step, "train_loss": 1.5 + 3 / (1 + step / 500) + rng.normal(0, 0.1), "lr": 1e-3, "nonfinite": False,
            "val_loss": 2.0 if step % 10 == 0 else None, "grad_norm": math.exp(rng.normal()), "tokens_per_s": 5e3,
            "tokens": step * 1000, "time_s": step * 1.0,
        }
        for step in range(20_000)
    ]  # fmt: skip
    texts = []
    for step in range(20_000):
        texts += [
            f"saved checkpoints/made_up_20250102-030405_step_{step}.pt (1.0 MB in 0.1 s, after 1 s without)"
        ]
        texts += (
            [f"precision falls back from bf16 to fp32 from step {step} on"]
            if step % 20 == 0
            else []
        )
    log = lines(*texts)
    run_dir = folder_with(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode(), log)
    begun = time.perf_counter()
    page = page_of(run_dir)
    assert time.perf_counter() - begun < 10
    assert len(page) < 600_000
    assert "<dd>19,999</dd>" in page
    assert re.search(r"1,9\d\d lines are left out here", page)
    assert "step 19981 on" in page.replace(",", "") or "step 19980 on" in page.replace(",", "")


# --------------------------------------------------------------------------------------------------
# The log


def saves(*steps: int) -> list[Event]:
    return [
        Event(
            f"2025-01-02 03:{s // 60:02d}:{s % 60:02d}", "INFO", "save", f"saved a_step_{s}.pt (1"
        )
        for s in steps
    ]


def test_many_of_a_kind_become_one_line_between_turning_points_only():
    resume = Event("2025-01-02 03:30:00", "INFO", "resume", "resumed from a_step_9.pt at step 9")
    table = collapsed([*saves(*range(100, 1000, 100)), resume, *saves(1200, 1300)])
    assert [text.partition(";")[0] for _, text, _ in table] == [
        "<b>9 times, step 100 to 900</b>", resume.text, "saved a_step_1200.pt (1", "saved a_step_1300.pt (1"
    ]  # fmt: skip
    assert table[0][0] == "2025-01-02 03:01:40<br>to 03:15:00"
    assert len(collapsed(saves(*range(1, GROUP_FROM)))) == GROUP_FROM - 1


def test_warnings_of_different_words_stay_apart_and_none_is_lost():
    warnings = [
        Event("2025-01-02 03:00:00", "WARNING", "warning", f"disk {i} is slow") for i in range(5)
    ]
    other = Event("2025-01-02 03:00:01", "WARNING", "warning", "another matter")
    error = Event("2025-01-02 03:00:02", "ERROR", "error", "out of room")
    assert [text for _, text, _ in collapsed([*warnings, other, error])] == [
        "<b>5 times</b>; the last one: disk 4 is slow", "another matter", "out of room"
    ]  # fmt: skip


def test_the_log_is_read_from_its_oldest_part_on_and_samples_forge_no_record(tmp_path):
    run_dir = folder_with(
        tmp_path, log=lines("run a_20250102-030405") + b"    2025-01-02 03:04:59 - ERROR - forged\n"
    )
    for number, step in ((1, 30), (2, 20), (10, 10)):
        (run_dir / f"training.log.{number}").write_bytes(lines(f"resumed from x at step {step}"))
    assert [event.step or event.kind for event in read_log(run_dir).events] == [10, 20, 30, "begin"]


def test_a_record_of_a_megabyte_is_cut_and_undecodable_bytes_are_replaced(tmp_path):
    log = (
        lines("x" * 1_000_000, "short", level="WARNING")
        + b"2025-01-02 03:05:00 - ERROR - \xff\xfe\n"
    )
    page = page_of(folder_with(tmp_path, log=log))
    assert [len(part) for part in re.findall("xxx+", page)] == [TEXT_LENGTH]
    assert "xxx ..." in page
    assert "short" in page
    assert "\ufffd\ufffd" in page


def test_long_samples_many_prompts_and_a_long_configuration_are_cut_too(tmp_path):
    run_dir = folder_with(tmp_path, log=lines("hello"))
    (run_dir / "config.yaml").write_text("y" * 1_000_000, encoding="utf-8")
    metrics = MetricsWriter(run_dir)
    for i in range(1, 12):
        metrics.sample(1, f"prompt_{i}", "p" * 100_000, "x" * 100_000)
    metrics.close()
    page = page_of(run_dir)
    assert len(page) < 100_000 + CONFIG_LENGTH
    assert "<h3>prompt 8 " in page
    assert "<h3>prompt 9 " not in page
    assert "3 more prompts are left out" in page


@pytest.mark.parametrize(
    ("last", "level", "badge"),
    [
        ("done: 1,234 steps, 0 skipped, 0 rewinds, fp32 throughout", "INFO", 'good">done'),
        (
            "stopped by SIGINT: 1,234 steps, 0 skipped, 0 rewinds, fp32 throughout",
            "INFO",
            'calm">stopped by SIGINT',
        ),
        ("diverged at step 5: losses nan", "ERROR", 'bad">ended by an error'),
        ("resumed from x at step 3", "INFO", 'warn">the log has no end'),
    ],
)
def test_how_the_run_stands_is_what_its_log_says_last(tmp_path, last, level, badge):
    log = lines("run a_20250102-030405", "done: 9 steps, 0 skipped") + lines(last, level=level)
    page = page_of(folder_with(tmp_path, log=log))
    assert f'<span class="badge {badge}' in page
    assert ("<dd>1,234</dd>" in page) is ("1,234" in last)


def test_a_log_without_events_or_records_says_so(tmp_path):
    assert "training.log is missing or has no record" in page_of(
        folder_with(tmp_path, log=b"\x00garbage\n" * 10)
    )
    (tmp_path / "made_up_20250102-030405" / "training.log").write_bytes(lines("hello"))
    assert "tells of no event" in page_of(tmp_path / "made_up_20250102-030405")


# --------------------------------------------------------------------------------------------------
# Where there is nothing to report, and the script


def test_a_folder_that_holds_no_run_is_refused_in_one_line(tmp_path):
    for folder, why in ((tmp_path, "holds no run"), (tmp_path / "nowhere", "is no folder")):
        with pytest.raises(ConfigError, match=why) as caught:
            write_report(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_a_storage_error(tmp_path):
    run_dir = folder_with(tmp_path, log=lines("hello"))
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(run_dir, tmp_path / "no" / "page.html")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Three runs of two configurations in logs/tensorboard/ of the current folder; one name begins with the other."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "logs" / "tensorboard"
    for name in ("a_20250102-030405", "a_20250102-030500", "a_b_20260101-000000"):
        (folder / name).mkdir(parents=True)
        (folder / name / "training.log").write_bytes(lines(f"run {name}"))
    return folder


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("a", "a_20250102-030500"), ("a_b", "a_b_20260101-000000"), ("a_20250102-030405", "a_20250102-030405"),
        ("logs/tensorboard/a_20250102-030405/", "a_20250102-030405"),
    ],
)  # fmt: skip
def test_a_run_is_found_by_its_folder_its_id_or_its_configuration(runs, capsys, asked, found):
    assert load_script().main([asked]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written.resolve() == runs / found / "report.html"
    assert f"<h1>{found}</h1>" in written.read_text(encoding="utf-8")


def test_of_several_runs_each_is_written_that_can_be(runs, capsys):
    assert load_script().main(["a", "no.such", "a_b"]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.count("\n") == 1
    assert "no.such" in err


def test_the_page_can_be_written_elsewhere_for_one_run(runs, capsys):
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
import chatgot.report.charts
chatgot.report.charts.loss_chart([{{"step": 1.0, "train_loss": 2.0, "nonfinite": 0.0}}], [])
print([name for name in ("torch", "matplotlib.pyplot") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        load_script().main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.count("python scripts/report.py ") >= 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", ".", "pipe", "loop"])
def test_what_is_no_report_is_not_replaced_by_one(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "train_loss": 2.0}\n', encoding="utf-8")
    (folder / "config.yaml").write_text("seed: 1\n", encoding="utf-8")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    before = {path: path.lstat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="is there already and no report"):
        write_report(folder, folder / name)
    assert {path: path.lstat().st_mtime_ns for path in folder.iterdir()} == before
    assert write_report(folder, tmp_path / "new.html") == write_report(
        folder, tmp_path / "new.html"
    )


def test_the_scripts_bad_input_is_one_line_without_controls(tmp_path):
    script = harness.ROOT / "scripts" / "report.py"
    (tmp_path / "lögs✓").mkdir()
    (tmp_path / "lögs✓" / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    for run, code in (("x" * 300, 2), ("a\x1b[31mb\nc", 2), ("lögs✓", 0)):
        done = subprocess.run(
            [sys.executable, str(script), run], cwd=tmp_path, capture_output=True, check=False,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert len((done.stdout + done.stderr).splitlines()) == 1
        assert b"\x1b" not in done.stdout + done.stderr
