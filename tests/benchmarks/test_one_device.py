"""The benchmark of one device: its limits, its failures and its table."""

import argparse
import os
import sys
import time
from pathlib import Path

import parts
import pytest
import torch

from benchmarks import gpu
from benchmarks.limited_runs import CaseFailedError, run_limited
from benchmarks.one_device import OneDevice
from benchmarks.resume_bits import equal_bits


def one_device(folder: Path, left_s: float) -> OneDevice:
    """Return a CPU with some seconds left."""
    return OneDevice(
        device=parts.CPU,
        folder=folder,
        text=folder / "text.txt",
        made_up=True,
        tokens=parts.tokens(),
        peak=1e9,
        deadline=time.monotonic() + left_s,
    )


def python(code: str, folder: Path, limit_s: float, enough=None) -> tuple[str, float]:
    return run_limited([sys.executable, "-c", code], folder, limit_s, os.environ, enough)


def test_program_that_takes_too_long_is_ended_and_named(tmp_path):
    with pytest.raises(CaseFailedError, match="not done within 0 s"):
        python("import time; time.sleep(60)", tmp_path, 0.2)


def test_program_that_fails_is_shown_with_its_last_words(tmp_path):
    with pytest.raises(CaseFailedError, match="exit code 3: no memory"):
        python("import sys; print('no memory'); sys.exit(3)", tmp_path, 60)


def test_program_that_has_done_enough_is_stopped_without_a_failure(tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)"
    )
    _, seconds = python(code, tmp_path, 60, (tmp_path / "ready").exists)
    assert seconds < 30


def test_failed_case_costs_no_other_case(tmp_path, capsys):
    def fails(one, folder):
        raise ZeroDivisionError("of its own")

    def works(one, folder):
        return {"tokens_per_s": 5.0}

    one = one_device(tmp_path, 60)
    figures = gpu.measure(gpu.Case("first", 1, fails), one)
    figures |= gpu.measure(gpu.Case("second", 1, works), one)
    assert figures["first.failed"] == "ZeroDivisionError: of its own"
    assert figures["second.tokens_per_s"] == 5.0
    gpu.print_table(figures)
    said = capsys.readouterr().out
    assert "first: failed: ZeroDivisionError: of its own" in said
    assert " 5.00 |" in said


def test_case_that_does_not_fit_is_left_out_and_says_so(tmp_path):
    def never(one, folder):
        raise AssertionError

    figures = gpu.measure(gpu.Case("large", 110, never), one_device(tmp_path, 0.5))
    assert list(figures) == ["large.skipped"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([torch.ones(2), {"a": 1}], True),
        ([torch.nextafter(torch.ones(2), torch.tensor(2.0)), {"a": 1}], False),
        ([torch.ones(2).double(), {"a": 1}], False),
        ([torch.ones(2), {"a": 2}], False),
        ([torch.ones(2), {"b": 1}], False),
        ([torch.ones(2)], False),
    ],
)
def test_states_are_equal_only_bit_for_bit(other, expected):
    assert equal_bits([torch.ones(2), {"a": 1}], other) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a CUDA device")
def test_benchmark_without_a_card_is_refused_in_one_line(tmp_path, capsys):
    args = argparse.Namespace(device="cuda", minutes=1)
    with pytest.raises(SystemExit) as raised:
        gpu.gpu(args, tmp_path)
    assert raised.value.code == gpu.NO_DEVICE
    assert len(capsys.readouterr().err.splitlines()) == 1
