"""The numbers of a run: metrics.jsonl, TensorBoard's curves and samples, tokens per second, times for people.

All of it is best effort: what cannot be written is one warning, and training goes on unchanged.
"""

import errno
import json
import logging
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import EllipsisType
from typing import Any

from chatgot.atomic_file import atomic_file
from chatgot.logs.logging_setup import escape_controls

logger = logging.getLogger("chatgot.metrics")

TAGS = {
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "val_loss_full": "val/loss_full",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "tokens_per_s": "perf/tokens_per_s",
}


LAYOUT = {  # charts that hold several curves, in the tab of custom scalars
    "loss": {"train and validation": ["Multiline", ["train/loss", "val/loss", "val/loss_full"]]},
    "machine": {
        "seconds since the row before": ["Multiline", [r"time/.*"]],
        "memory in MiB": ["Multiline", ["perf/memory_mib"]],
    },
}


class MetricsWriter:
    """Write `run_dir`/metrics.jsonl and TensorBoard's event files beside it; x axis: optimizer steps done.

    keep_rows_up_to: of a resumed run, the last step whose row stays; later ones are removed before the first new row
    (and hidden in TensorBoard), and so is a torn last line. None: a fresh run.
    hyperparameters: the configuration, flat, for TensorBoard's table of runs.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        keep_rows_up_to: int | None = None,
        hyperparameters: dict[str, Any] | None = None,
    ) -> None:
        self.lost_rows = 0
        self._path = run_dir / "metrics.jsonl"
        self._keep_rows_up_to = keep_rows_up_to
        self._last_step = -1 if keep_rows_up_to is None else keep_rows_up_to  # of the last row
        self._board: Any = None
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_thread_error  # until close
        with self._board_best_effort():
            from torch.utils.tensorboard import (
                SummaryWriter,  # here: it takes a quarter of a second
            )
            from torch.utils.tensorboard.summary import hparams

            purge_step = None if keep_rows_up_to is None else keep_rows_up_to + 1
            self._board = SummaryWriter(str(run_dir), purge_step=purge_step)
            self._board.add_custom_scalars(LAYOUT)
            if hyperparameters:
                plain = {
                    k: v if isinstance(v, bool | int | float) else str(v)
                    for k, v in hyperparameters.items()
                }
                for summary in hparams(plain, dict.fromkeys(("val/loss", "val/loss_full"), 0.0)):
                    self._board.file_writer.add_summary(
                        summary
                    )  # here: add_hparams makes a folder of its own

    def row(
        self, step: int, *, train_loss: float | None = None, val_loss: float | None = None,
        val_loss_full: float | EllipsisType | None = ..., lr: float | None = None, grad_norm: float | None = None,
        tokens_per_s: float | None = None, tokens: int = 0, time_s: float = 0.0,
    ) -> None:  # fmt: skip
        """Write one row and its curves; `val_loss_full` is in the row only when given. Non-finite numbers are null.

        A step that is not after the last one: the run was rewound, and the rows from it on are removed.
        """
        if step <= self._last_step:
            self._rewind(step - 1)
        self._last_step = step
        row: dict[str, Any] = {
            "step": step,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "lr": lr,
        }
        row |= {
            "grad_norm": grad_norm,
            "tokens_per_s": tokens_per_s,
            "tokens": tokens,
            "time_s": time_s,
        }
        if val_loss_full is not ...:
            row["val_loss_full"] = val_loss_full
        numbers = {key: value for key, value in row.items() if value is not None}
        strange = [key for key, value in numbers.items() if not math.isfinite(value)]
        self._append(row | dict.fromkeys(strange) | ({"nonfinite": True} if strange else {}))
        with self._board_best_effort():
            for key, tag in TAGS.items():
                if self._board and key in numbers:
                    self._board.add_scalar(tag, numbers[key], step)

    def curves(self, step: int, numbers: dict[str, float]) -> None:
        """Draw numbers, by their tags, that `metrics.jsonl` does not have."""
        with self._board_best_effort():
            for tag, number in numbers.items():
                if self._board:
                    self._board.add_scalar(tag, number, step)

    def _rewind(self, step: int) -> None:
        """Remove the rows after a step, and hide them in TensorBoard."""
        self._keep_rows_up_to = step
        with self._board_best_effort():
            if self._board:
                self._board.close()
                self._board = type(self._board)(str(self._path.parent), purge_step=step + 1)

    def sample(self, step: int, name: str, prompt: str, text: str) -> None:
        """Show what the model made of a prompt, in TensorBoard's tab of texts."""
        parts = (
            f"**{title}**\n\n{_fenced(part)}"
            for title, part in (("prompt", prompt), ("continuation", text))
        )
        with self._board_best_effort():
            if self._board:
                self._board.add_text(f"samples/{name}", "\n\n".join(parts), step)

    def close(self) -> None:
        """Write what TensorBoard's thread still has."""
        board, self._board = self._board, None
        try:
            with self._board_best_effort():
                if board:
                    board.close()
        finally:
            if threading.excepthook == self._on_thread_error:
                threading.excepthook = self._excepthook

    def _append(self, row: dict[str, Any]) -> None:
        """Append one row, whole or not at all, in one write; the file is opened anew, since it may have been moved."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            if self._keep_rows_up_to is not None:
                _keep_rows(self._path, self._keep_rows_up_to)
                self._keep_rows_up_to = None
            with self._path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if file.write(line) < len(line):  # the disk is full now
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.lost_rows += 1
            if self.lost_rows == 1:
                logger.warning(
                    "%s: the row of step %s was lost, training goes on: %s",
                    self._path,
                    row["step"],
                    error,
                )

    @contextmanager
    def _board_best_effort(self) -> Iterator[None]:
        """Let nothing that TensorBoard raises out: a broken installation, a full disk, its thread's last error."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 whatever it is, training goes on, without curves
            self._board = None
            logger.warning(
                "no more TensorBoard in %s, training goes on: %r", self._path.parent, error
            )

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Keep TensorBoard's thread from printing a traceback when it cannot write: its next call raises the error."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._excepthook(args)


def _keep_rows(path: Path, last_step: int) -> None:
    """Remove the rows after `last_step` and a torn last line, atomically; leave a file without them untouched."""
    content = path.read_bytes() if path.exists() else b""
    kept = b"".join(line + b"\n" for line in content.split(b"\n") if _step_of(line) <= last_step)
    if kept != content:
        with atomic_file(path) as file:
            file.write(kept)


def _step_of(line: bytes) -> float:
    with suppress(
        ValueError, TypeError, KeyError, RecursionError
    ):  # not JSON, no object, no step: no row
        step = json.loads(line)["step"]
        if isinstance(step, int | float):
            return step
    return math.inf


def _fenced(text: str) -> str:
    """Return Markdown that shows the text as it is: its fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return "\n".join((fence, escape_controls(text, newline="\n"), fence))
