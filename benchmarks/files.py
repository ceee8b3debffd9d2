"""The time that checkpoints, logs and curves cost a run, and the log fixer's speed and memory."""

import argparse
import codecs
import filecmp
import math
import os
import random
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.script_runs import ROOT, SCRIPT, Figures
from chatgot.checkpointing.checkpoint_file import is_whole, load_checkpoint, save_checkpoint
from chatgot.config_file import load_config
from chatgot.data.configured_text import encoded
from chatgot.data.corpus import fetch_default_text
from chatgot.logs.logging_setup import setup_logging
from chatgot.logs.metrics import MetricsWriter
from chatgot.run.assembly import Run, assemble
from chatgot.training.clock import StepClock
from chatgot.training.progress import ProgressBar
from chatgot.training.step import compute_gradients, set_learning_rate, update_weights

RUN_ID = "benchmark_20260101-000000"
TIMESTAMP = "20260101-000000"


def assemble_on_default_text(config_path: Path, folder: Path) -> Run:
    """Build a run on the CPU, in training mode, with the id RUN_ID; the text goes to `folder`."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(config_path)
    tokens = encoded(config.data, text, folder / "data" / "cache")
    run = assemble(config, tokens, torch.device("cpu"), None)
    run.state.run_id = RUN_ID
    run.model.train()
    return run


def saving(args: argparse.Namespace, folder: Path) -> Figures:
    """Time saving, verifying and loading the full state; the reference is torch.save with fsync."""
    run = assemble_on_default_text(args.config, folder)
    settings = run.config.training
    step_s = []
    for _ in range(args.steps):
        start = time.perf_counter()
        update_weights(run, compute_gradients(run))
        step_s.append(time.perf_counter() - start)
    usual_step_s = statistics.median(step_s[1:])  # the first one warms up
    timed: dict[str, list[float]] = {"plain": [], "save": [], "verify": [], "load": []}

    def measure(what: str, do: Callable[[], object]) -> None:
        start = time.perf_counter()
        do()
        timed[what].append(time.perf_counter() - start)

    for i in range(args.rounds):
        path = folder / f"{i}.pt"
        copy = folder / f"copy{i}.pt"
        measure("plain", partial(save_plainly, folder / "plain.pt", run))
        measure("save", partial(save, path, run))
        shutil.copyfile(path, copy)  # a new file, which no cache knows as verified
        measure("verify", partial(is_whole, copy))
        measure("load", partial(load_checkpoint, copy))
    median = {what: statistics.median(times) for what, times in timed.items()}
    pairs = zip(timed["save"], timed["plain"], strict=True)
    between_s = min(
        (settings.save_checkpoint_steps or math.inf) * usual_step_s,
        60 * (settings.checkpoint_interval_minutes or math.inf),
    )
    return {
        "checkpoint_mb": path.stat().st_size / 1e6,
        "save_s": median["save"],
        "plain_torch_save_and_fsync_s": median["plain"],
        "save_over_plain": statistics.median(save_s / plain_s for save_s, plain_s in pairs),
        "verify_s": median["verify"],
        "load_s": median["load"],
        "step_s": usual_step_s,
        "seconds_between_saves": between_s,
        "share_of_the_time_percent": 100 * median["save"] / between_s,
    }


def save(path: Path, run: Run) -> None:
    """Save a run as training does."""
    save_checkpoint(path, run.checkpoint())


def save_plainly(path: Path, run: Run) -> None:
    """Write a run's checkpoint with torch.save alone, and fsync it."""
    with path.open("wb") as file:
        torch.save(run.checkpoint(), file)
        file.flush()
        os.fsync(file.fileno())


def logging_cost(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure which share of the quick config's time goes to log, rows, curves and progress."""
    run = assemble_on_default_text(ROOT / "configs/models/chatgot_quick.yaml", folder)
    interval = run.config.training.log_interval
    assert interval is not None, "the quick config logs"
    setup_logging("benchmark", TIMESTAMP, folder / "logs")
    log_step = runpy.run_path(str(SCRIPT))["log_step"]
    metrics = MetricsWriter(folder)
    clock = StepClock(run)
    steps_s = 0.0
    logging_s = []
    with ProgressBar(run) as progress:
        for _ in range(args.steps * interval):
            start = time.perf_counter()
            with clock.step():
                set_learning_rate(run)
                update_weights(run, compute_gradients(run))
            trained = time.perf_counter()
            log_step(run, metrics, progress, clock)
            logging_s.append(time.perf_counter() - trained)
            steps_s += trained - start
    metrics.close()
    return {
        "steps": len(logging_s),
        "step_ms": 1000 * steps_s / len(logging_s),
        "logged_step_ms": 1000 * statistics.median(sorted(logging_s)[-args.steps :]),
        "share_percent": 100 * sum(logging_s) / (steps_s + sum(logging_s)),
    }


def make_log(path: Path, size: int, with_terminal: bool) -> None:
    """Write a UTF-8 log of `size` bytes.

    with_terminal: coloured, and a progress bar of 20 states every 50 lines.
    """
    green, bold, off = ("\x1b[32m", "\x1b[1m", "\x1b[0m") if with_terminal else ("", "", "")
    lines = []
    for step in range(100_000):
        lines.append(
            f"{green}2026-11-24 10:00:00{off} - INFO - "
            f"{bold}step {step}{off} | loss 1.25 | 3,204 tokens/s\n"
        )
        if step % 10 == 0:
            lines.append("sample: “naïve café”, Größe → ✓ 日本語\n")
        if with_terminal and step % 50 == 0:
            states = [f"\r{n:3}%|{'█' * (n // 5):20}| {n}/100" for n in range(5, 101, 5)]
            lines.append("".join(states) + "\n")
    block = "".join(lines).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(block)


# Words of logs in old encodings; "mixed": every second line above ASCII is UTF-8
WORDS = {
    "cp1252": "Größe Überprüfung läuft für Jörg möglich",
    "cp1250": "Błąd: nie można otworzyć pliku połączenie przerwane",
    "gbk": "错误：无法连接数据库服务器 文件已经成功保存到磁盘 用户登录失败",
    "shift_jis": "エラー：データベースに接続できませんでした ファイルの保存が完了しました",
    "euc_kr": "오류: 데이터베이스에 연결할 수 없습니다 파일을 저장하는 중입니다",
    "koi8-r": "Ошибка: не удалось открыть файл Соединение с сервером потеряно",
    "utf-16-le": "Größe Überprüfung läuft",
    "utf-16-be": "Größe Überprüfung läuft",
    "iso2022_jp": "エラー：データベースに接続できませんでした ファイルの保存が完了しました",
    "mixed": "Größe Überprüfung läuft für Jörg möglich",
}


def make_encoded_log(path: Path, size: int, encoding: str) -> None:
    """Write a log of `size` bytes in an old encoding: no two lines alike, each second in ASCII."""
    chance = random.Random(0)
    words = WORDS[encoding].split()
    with path.open("wb") as file:
        step = 0
        while file.tell() < size:
            step += 1
            said = " ".join(chance.choices(words, k=4)) if step % 2 else "plain ASCII"
            line = f"2026-11-24 10:00:00 - INFO - step {step} | {said} | {chance.random():.4f}\n"
            codec = encoding
            if encoding == "mixed":
                codec = "utf-8" if step % 4 == 1 else "cp1252"
            file.write(line.encode(codec))


def plain_copy_mb_per_s(source: Path, target: Path) -> float:
    """Copy a file, decoding it strictly, and fsync it."""
    start = time.perf_counter()
    decoder = codecs.getincrementaldecoder("utf-8")()
    with source.open("rb") as file, target.open("wb") as copy:
        while chunk := file.read(1 << 20):
            copy.write(decoder.decode(chunk).encode())
        os.fsync(copy.fileno())
    return source.stat().st_size / 1e6 / (time.perf_counter() - start)


def fix_log(source: Path, target: Path) -> tuple[float, float]:
    """Run the log fixer in another process; return its MB/s and its peak memory in MiB."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "peak_memory.py"),
        str(ROOT / "scripts" / "fix_log_encoding.py"),
        str(source),
        "--output",
        str(target),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    mb_per_s = source.stat().st_size / 1e6 / (time.perf_counter() - start)
    return mb_per_s, int(done.stdout.split()[-1]) / 1024


def log_fixer(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure the log fixer on logs in UTF-8 and in old encodings.

    A plain decoding copy is measured on a clean log and on a terminal's log.
    """
    figures: Figures = {}
    source = folder / "run.log"
    target = folder / "out.log"
    for name, with_terminal in (("clean", False), ("terminal", True)):
        make_log(source, int(args.gigabytes * 1e9), with_terminal)
        speeds = []
        peaks = []
        copies = []
        for _ in range(args.rounds):
            mb_per_s, peak_mib = fix_log(source, target)
            speeds.append(mb_per_s)
            peaks.append(peak_mib)
            if not with_terminal and not filecmp.cmp(source, target, shallow=False):
                sys.exit("the log fixer changed a clean log")
            copies.append(plain_copy_mb_per_s(source, target))
        figures |= {
            f"{name}_bytes": source.stat().st_size,
            f"{name}_mb_per_s": statistics.median(speeds),
            f"{name}_plain_copy_mb_per_s": statistics.median(copies),
            f"{name}_peak_mib": max(peaks),
        }
    for encoding in WORDS:
        make_encoded_log(source, int(args.encoded_megabytes * 1e6), encoding)
        runs = [fix_log(source, target) for _ in range(args.rounds)]
        figures |= {
            f"{encoding}_mb_per_s": statistics.median(mb_per_s for mb_per_s, _ in runs),
            f"{encoding}_peak_mib": max(peak_mib for _, peak_mib in runs),
        }
    return figures
