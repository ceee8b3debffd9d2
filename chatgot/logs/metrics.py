"""The numbers and samples of a run: metrics.jsonl, samples.jsonl, and TensorBoard's event files.

All of it is best effort: if writing fails there is one warning, and training continues unchanged.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, cast

from chatgot.logs.event_files import sorted_last
from chatgot.logs.events import utc_time
from chatgot.logs.json_lines import JsonLines
from chatgot.logs.logging_setup import escape_controls

if TYPE_CHECKING:
    from torch.utils import tensorboard

logger = logging.getLogger("chatgot.metrics")

TAGS = {
    "train_loss": "train/loss",
    "distillation_loss": "train/distillation_loss",
    "val_loss": "val/loss",
    "val_loss_full": "val/loss_full",
    "val_bits_per_byte": "val/bits_per_byte",
    "val_bits_per_byte_full": "val/bits_per_byte_full",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "tokens_per_s": "perf/tokens_per_s",
}

SOURCE_TAG = "val/loss_of/"  # of each source alone, with its name
ODD_IN_TAG = re.compile(r"[^-/\w. ]")  # TensorBoard's own rule, and spaces

LAYOUT = {  # charts with several curves, in TensorBoard's tab "custom scalars"
    "loss": {"train and validation": ["Multiline", ["train/loss", "val/loss", "val/loss_full"]]},
    "machine": {
        "seconds since the last row": ["Multiline", [r"time/.*"]],
        "memory in MiB": ["Multiline", ["perf/memory_mib"]],
    },
}


class MetricsWriter:
    """Write `run_dir`/metrics.jsonl, samples.jsonl and TensorBoard's curves; x = optimizer steps.

    TensorBoard is imported when the first curve or sample is written, or by `open_board`.

    keep_rows_up_to: in a resumed run, the last step whose row stays. Later rows and an incomplete
        last line are removed before the first new row, and hidden in TensorBoard. None: a fresh
        run.
    keep_samples_up_to: the same for samples; None: same as for the rows.
    hyperparameters: the configuration by dotted names, for TensorBoard's table of runs.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        keep_rows_up_to: int | None = None,
        keep_samples_up_to: int | None = None,
        hyperparameters: Mapping[str, object] | None = None,
    ) -> None:
        self.lost_rows = 0
        self.lost_samples = 0
        self._run_dir = run_dir
        if keep_samples_up_to is None:
            keep_samples_up_to = keep_rows_up_to
        self._rows = JsonLines(run_dir / "metrics.jsonl", keep_rows_up_to)
        self._samples = JsonLines(run_dir / "samples.jsonl", keep_samples_up_to)
        self._last_row = -1 if keep_rows_up_to is None else keep_rows_up_to  # its step
        last_step = -1 if keep_samples_up_to is None else keep_samples_up_to
        self._last_sample = (last_step, math.inf)  # step and index
        self._board: tensorboard.SummaryWriter | None = None
        self._board_is_due = True  # not opened yet; no error before
        self._purge_step = None if keep_rows_up_to is None else keep_rows_up_to + 1
        self._hyperparameters = hyperparameters
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_thread_error  # until close
        with self._board_best_effort():
            run_dir.mkdir(parents=True, exist_ok=True)

    def open_board(self) -> None:
        """Import TensorBoard and begin its file, unless that is done or has failed."""
        if not self._board_is_due:
            return
        self._board_is_due = False
        with self._board_best_effort():
            self._run_dir.stat()  # a folder that is gone is not made again
            from torch.utils.tensorboard import SummaryWriter  # not at the top: it takes 0.25 s

            with sorted_last(self._run_dir):
                self._board = SummaryWriter(str(self._run_dir), purge_step=self._purge_step)
            self._board.add_custom_scalars(LAYOUT)
            if self._hyperparameters:
                _add_hyperparameters(self._board, self._hyperparameters)

    def row(  # noqa: PLR0913 one argument for each column, all by name
        self,
        step: int,
        *,
        train_loss: float | None = None,
        distillation_loss: float | EllipsisType | None = ...,
        val_loss: float | None = None,
        val_loss_full: float | EllipsisType | None = ...,
        val_bits_per_byte: float | None = None,
        val_bits_per_byte_full: float | EllipsisType | None = ...,
        val_loss_by_source: Mapping[str, float] | None = None,
        lr: float | None = None,
        grad_norm: float | None = None,
        tokens_per_s: float | None = None,
        tokens: int = 0,
        time_s: float = 0.0,
    ) -> None:
        """Write one row and its curves.

        The row has the numbers of the full evaluation, of single sources and of teachers only if
        they are given. Non-finite numbers become null.
        A step that is not after the last row means a rewind: rows from that step on are removed.
        """
        if step <= self._last_row:
            self._rewind(step - 1)
        self._last_row = step
        columns: dict[str, float | None] = {
            "step": step,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_bits_per_byte": val_bits_per_byte,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_s": tokens_per_s,
            "tokens": tokens,
            "time_s": time_s,
        }
        if not isinstance(distillation_loss, EllipsisType):
            columns["distillation_loss"] = distillation_loss
        if not isinstance(val_loss_full, EllipsisType):
            columns["val_loss_full"] = val_loss_full
        if not isinstance(val_bits_per_byte_full, EllipsisType):
            columns["val_bits_per_byte_full"] = val_bits_per_byte_full
        numbers = {name: value for name, value in columns.items() if value is not None}
        sources = val_loss_by_source or {}
        finite = all(math.isfinite(value) for value in (*numbers.values(), *sources.values()))
        row: dict[str, object] = {**columns}
        if val_loss_by_source is not None:
            row["val_loss_by_source"] = dict(sources)
        self._append_row(step, row if finite else row | {"nonfinite": True})
        curves = {tag: numbers[name] for name, tag in TAGS.items() if name in numbers}
        curves |= {f"{SOURCE_TAG}{tag_name(name)}": loss for name, loss in sources.items()}
        self.curves(step, curves)

    def curves(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add points to TensorBoard's curves: {tag: number}."""
        self.open_board()
        with self._board_best_effort():
            for tag, number in numbers.items():
                if self._board:
                    self._board.add_scalar(tag, number, step)

    def sample(self, step: int, index: int, prompt: str, text: str, seed: int) -> None:
        """Write one sample, and show it in TensorBoard's tab "text".

        index: number of the prompt, from 1. text: the model's continuation.
        """
        if (step, index) <= self._last_sample:
            self._samples.cut_back(step - 1)  # the run was rewound
        self._last_sample = (step, index)
        self._append_sample(step, index, prompt, text, seed)
        parts = (("prompt", prompt), ("continuation", text))
        markdown = "\n\n".join(f"**{title}**\n\n{_fenced(part)}" for title, part in parts)
        self.open_board()
        with self._board_best_effort():
            if self._board:
                self._board.add_text(f"samples/prompt_{index}", markdown, step)

    def close(self) -> None:
        """Write everything that TensorBoard's thread has not written yet.

        A resumed run that has written no curve hides those of later steps now.
        """
        if self._purge_step is not None:
            self.open_board()
        board = self._board
        self._board = None
        self._board_is_due = False
        try:
            with self._board_best_effort():
                if board:
                    board.close()
        finally:
            if threading.excepthook == self._on_thread_error:
                threading.excepthook = self._excepthook

    def _rewind(self, step: int) -> None:
        """Remove rows and samples after a step, and hide them in TensorBoard."""
        self._rows.cut_back(step)
        self._samples.cut_back(step)
        self._purge_step = min(step + 1, self._purge_step or step + 1)
        with self._board_best_effort():
            if self._board:
                self._board.close()
                with sorted_last(self._run_dir):
                    self._board = type(self._board)(str(self._run_dir), purge_step=step + 1)

    def _append_row(self, step: int, columns: Mapping[str, object]) -> None:
        try:
            self._rows.append(columns)
        except OSError as error:
            self.lost_rows += 1
            if self.lost_rows == 1:
                self._warn_of_lost_record(self._rows.path, "row", step, error)

    def _append_sample(self, step: int, index: int, prompt: str, text: str, seed: int) -> None:
        try:
            self._samples.append(sample_line(step, index, prompt, text, seed))
        except OSError as error:
            self.lost_samples += 1
            if self.lost_samples == 1:
                self._warn_of_lost_record(self._samples.path, "sample", step, error)

    def _warn_of_lost_record(self, path: Path, what: str, step: int, error: OSError) -> None:
        message = "%s: the %s of step %s was lost, training continues: %s"
        logger.warning(message, path, what, step, error)

    @contextmanager
    def _board_best_effort(self) -> Iterator[None]:
        """Turn any error of TensorBoard into a warning, and stop using it.

        Reasons are a broken installation, a full disk, or an earlier error in its thread.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 whatever it is, training goes on, without curves
            self._board = None
            self._board_is_due = False
            logger.warning(
                "no more TensorBoard curves in %s, training continues: %r", self._run_dir, error
            )

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Ignore errors of TensorBoard's own thread; its next call raises them here."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._excepthook(args)


def sample_line(step: int, index: int, prompt: str, text: str, seed: int) -> dict[str, object]:
    """Return a sample as samples.jsonl has it; `index` counts the prompts from 1."""
    return {
        "time": utc_time(time.time()),
        "step": step,
        "index": index,
        "prompt": prompt,
        "text": text,
        "seed": seed,
    }


def tag_name(source: str) -> str:
    """Return a source's name as a tag has it."""
    return ODD_IN_TAG.sub("_", source).replace(" ", "_")


def _add_hyperparameters(
    board: "tensorboard.SummaryWriter", hyperparameters: Mapping[str, object]
) -> None:
    """Add a run's settings to TensorBoard's table of runs.

    `SummaryWriter.add_hparams` would make another folder for them.
    """
    from torch.utils.tensorboard import FileWriter
    from torch.utils.tensorboard.summary import hparams

    writer = cast(FileWriter, board.file_writer)
    plain = {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in hyperparameters.items()
    }
    metrics = dict.fromkeys(("val/loss", "val/loss_full"), 0.0)
    for summary in hparams(plain, metrics):  # type: ignore[no-untyped-call]  # torch has no types here
        writer.add_summary(summary)


def _fenced(text: str) -> str:
    """Return Markdown that shows the text unchanged; its fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join((fence, escape_controls(text, newline="\n"), fence))


class NoMetrics(MetricsWriter):
    """Writes nothing: another rank of the run writes its metrics."""

    def __init__(self) -> None:
        pass

    def open_board(self) -> None:
        """Open nothing."""

    def row(self, step: int, **columns: object) -> None:
        """Write no row."""

    def curves(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write no curves."""

    def sample(self, step: int, index: int, prompt: str, text: str, seed: int) -> None:
        """Write no sample."""

    def close(self) -> None:
        """Close nothing."""
