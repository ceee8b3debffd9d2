"""Train a small chat-style language model from scratch on text, and show samples while it learns.

    python scripts/train_with_samples.py --config configs/models/chatgot_quick.yaml

Writes checkpoints/{config}_{timestamp}_step_{step}.pt, logs/train_{config}_{timestamp}.log and, for TensorBoard,
logs/tensorboard/{config}_{timestamp}/ with metrics.jsonl. Stop it at any time (Ctrl+C) and go on with --resume_from.
"""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # runs from any folder, with this checkout's chatgot

from chatgot.stopping import StopRequest

STOP = StopRequest()
if __name__ == "__main__":
    STOP.install()  # before the heavy imports: importing torch takes seconds, and Ctrl+C must end them cleanly

import argparse
import logging
import os
import shlex
import subprocess
import time
from contextlib import ExitStack, closing

from chatgot.checkpointing.checkpoint_file import load_weights
from chatgot.checkpointing.run_files import (
    checkpoint_path,
    cleanup_old_checkpoints,
    files_after,
    newest_whole,
    probe_folder,
    set_aside,
    superseded_by,
    sweep_temporaries,
)
from chatgot.checkpointing.run_lock import lock_new_run, lock_old_run
from chatgot.checkpointing.saver import Saver
from chatgot.checkpointing.tensors import not_finite
from chatgot.config import Config, flat
from chatgot.config_file import effective_yaml, load_config
from chatgot.errors import OutOfMemory, StorageError, UserError
from chatgot.logs.logging_setup import (
    crash_trace,
    link_log,
    log_header,
    setup_console,
    setup_logging,
)
from chatgot.logs.metrics import MetricsWriter
from chatgot.logs.timing import Throughput
from chatgot.machine.device import pick_device
from chatgot.machine.memory import is_out_of_memory, peak_memory_mib
from chatgot.numerics.optim import lr_at, set_lr
from chatgot.report.page import write_report
from chatgot.run.assembly import Training, assemble, load_text, make_prompts, text_path
from chatgot.run.resuming import (
    ResumePoint,
    check_nothing_newer,
    find_checkpoint,
    resume,
    start_from,
)
from chatgot.sampling.generation import continue_text
from chatgot.stdout import write_to_stdout
from chatgot.training.batch_size import adapt
from chatgot.training.due import evaluation_due, samples_due, save_due, step_save_due
from chatgot.training.estimate import estimate
from chatgot.training.evaluation import validation_losses
from chatgot.training.log_lines import cautions, curves, end_line, header, step_line
from chatgot.training.progress import Progress
from chatgot.training.recovery import prove_again, recover, rewind
from chatgot.training.step import accumulate_gradients, apply_gradients

logger = logging.getLogger("chatgot.train")


# ---------------------------------------------------------------------------------------------------------------------
# From the command line to a run


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line; everything else is in the YAML."""
    parser = argparse.ArgumentParser(
        description="Train a small language model on text and show samples while it learns.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python scripts/train_with_samples.py --config configs/models/chatgot_quick.yaml
  python scripts/train_with_samples.py --config configs/models/chatgot_quick.yaml --resume_from latest
  python scripts/train_with_samples.py --config configs/models/chatgot_quick.yaml --set data.path=my_text.txt
  python scripts/train_with_samples.py --config configs/models/chatgot_quick.yaml --dry_run""",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="the experiment")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume_from",
        metavar="FILE|latest",
        help="go on, bit for bit, from a checkpoint of this config",
    )
    start.add_argument(
        "--init_from", type=Path, metavar="FILE", help="start a new run from another run's weights"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set any YAML key; may be repeated",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print size, memory and time, then end; writes no run",
    )
    return parser.parse_args(argv)


def open_run(
    args: argparse.Namespace, config: Config, run_id: str, at_end: ExitStack
) -> tuple[str, Path, Path]:
    """Take the run's id (a new one for an empty `run_id`), open its log; return the id, the log, the curves' folder."""
    checkpoint_dir, logs_dir, name = (
        Path(config.paths.checkpoints),
        Path(config.paths.logs),
        args.config.stem,
    )
    lock = lock_old_run(checkpoint_dir, run_id) if run_id else lock_new_run(checkpoint_dir, name)
    at_end.callback(lock.release)
    at_end.callback(
        lock_old_run(logs_dir, lock.run_id).release
    )  # two folders of checkpoints may share one of logs
    sweep_temporaries(checkpoint_dir, lock.run_id)
    log_path = setup_logging(name, lock.timestamp, logs_dir)
    run_dir = logs_dir / "tensorboard" / lock.run_id
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(effective_yaml(config), encoding="utf-8")
        link_log(log_path, run_dir)
    except OSError as error:  # best effort, like all that stands in that folder
        logger.warning(
            "%s cannot be written (%s): no curves; training goes on", run_dir, error.strerror
        )
    return lock.run_id, log_path, run_dir


# ---------------------------------------------------------------------------------------------------------------------
# What is done once in a while


def show_samples(training: Training, metrics: MetricsWriter, prompts: list[str]) -> None:
    """Let the model continue each prompt; log it and put it beside the curves. Changes nothing in the training."""
    config, run = training.config, training.run
    for i, prompt in enumerate(prompts, start=1):
        text = ""
        try:
            for piece in continue_text(
                training.model,
                training.vocabulary,
                prompt,
                config.sampling,
                config.seed,
                run.global_step,
                i,
            ):
                text += piece
                if STOP.requested():
                    return
        except Exception as error:  # noqa: BLE001 best effort: whatever fails in a sample, training goes on unchanged
            training.failed_samples += 1
            if training.failed_samples == 1:
                logger.warning(
                    "sample %d at step %d failed, training goes on: %r", i, run.global_step, error
                )
            continue
        block = f"sample {i} of {len(prompts)} at step {run.global_step}, prompt {prompt!r}:\n{prompt}{text}"
        logger.info("%s", block, extra={"block": True})
        metrics.sample(run.global_step, i, prompt, text, config.seed)
    run.last_sample_step = run.global_step


def evaluate_and_log(training: Training, metrics: MetricsWriter) -> bool:
    """Measure the loss on held-out text and write the step's row; return whether it is the best so far."""
    run = training.run
    with training.times.of("evaluation"):
        val_loss, full = validation_losses(training, STOP.requested)
    if STOP.requested():
        return False  # this evaluation is made again after the resume
    run.val_loss, run.last_eval_step = val_loss, run.global_step
    best = run.global_step > 0 and val_loss < run.best_val_loss and not run.bad_steps
    if best:
        run.best_val_loss, run.best_step = val_loss, run.global_step
    over_all = "" if full is None else f" | val_loss_full {full:.4f} over every validation token"
    logger.info(
        "step %d | val_loss %.4f%s%s",
        run.global_step,
        val_loss,
        over_all,
        " | best so far" if best else "",
    )
    write_row(training, metrics, full)
    return best


def write_row(training: Training, metrics: MetricsWriter, full: float | None = None) -> None:
    """Write this step's row of metrics, once."""
    run = training.run
    row = {
        "train_loss": run.train_loss,
        "lr": run.lr,
        "grad_norm": run.grad_norm,
        "tokens_per_s": run.tokens_per_s,
    }
    row["val_loss"] = run.val_loss if run.last_eval_step == run.global_step else None
    if full is not None:
        row["val_loss_full"] = full
    metrics.row(run.global_step, **row, tokens=run.tokens, time_s=run.time_s)
    metrics.curves(run.global_step, curves(training))


def save(training: Training, saver: Saver, last_chance: bool = False) -> bool:
    """Save a checkpoint, then let go of old ones; return whether it is there. What is not finite is rewound instead.

    Raises: Diverged, StorageError.
    """
    config, run = training.config, training.run
    path = checkpoint_path(Path(config.paths.checkpoints), run.run_id, run.global_step)
    by_steps = step_save_due(training)
    before, run.last_save_step = run.last_save_step, run.global_step
    checkpoint = training.checkpoint()
    if bad := not_finite(checkpoint):
        logger.warning(
            "step %d is not saved: NaN or infinity in %s", run.global_step, ", ".join(bad[:3])
        )
        run.last_save_step = before
        if not STOP.requested():
            rewind(training)
        return False
    if by_steps:
        prove_again(training)
        checkpoint = training.checkpoint()  # with what the proof has found
    set_aside(training.abandoned)
    training.abandoned = []
    if not saver.save(path, checkpoint, config.training, last_chance):
        run.last_save_step = before
        return False
    config_name, _, timestamp = run.run_id.rpartition("_")
    keep = config.training.max_checkpoints_to_keep
    every = config.training.save_checkpoint_steps
    cleanup_old_checkpoints(
        path.parent, config_name, timestamp, keep, keep=[run.best_step], every=every
    )
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train(training: Training, metrics: MetricsWriter, progress: Progress) -> None:
    """Run optimizer steps until the run has ended or a signal asks to stop."""
    config, run, model = training.config, training.run, training.model
    settings, prompts, throughput, times = (
        config.training,
        make_prompts(training),
        Throughput(),
        training.times,
    )
    tokens_per_step = settings.tokens_per_step(config.model)
    stepped, saver = False, Saver(run.global_step)
    begun, last_save, last_sample = (
        time.monotonic() - run.time_s,
        time.monotonic(),
        time.monotonic(),
    )
    model.train()
    while True:
        # a signal asked to stop: the step in hand is done
        if STOP.requested():
            if stepped and run.last_save_step != run.global_step:
                save(training, saver, last_chance=True)
            break

        # once in a while: the loss on held-out text
        best_before, seen_before = (
            (run.best_val_loss, run.best_step),
            (run.last_eval_step, run.last_sample_step),
        )
        best = evaluation_due(training) and evaluate_and_log(training, metrics)

        # once in a while: samples, by steps or by minutes, and at the end
        if samples_due(training, time.monotonic() - last_sample):
            with times.of("sampling"):
                show_samples(training, metrics, prompts)
            last_sample = time.monotonic()

        # once in a while: a checkpoint, by steps or by minutes, at the best evaluation and at the end
        seen_late = training.ended() and seen_before != (
            run.last_eval_step,
            run.last_sample_step,
        )  # after a resume
        if best or seen_late or save_due(training, time.monotonic() - last_save):
            rewinds = run.rewinds
            with times.of("saving"):
                saved = save(training, saver, last_chance=training.ended())
            if not saved and run.rewinds == rewinds:
                run.best_val_loss, run.best_step = (
                    best_before  # what has no file is not the best: retention keeps that
                )
            last_save = time.monotonic()

        if STOP.requested():
            continue
        if training.ended():
            break
        if not adapt(training, STOP.requested):
            continue

        # one optimizer step
        start, stepped = time.perf_counter(), True
        run.lr = lr_at(run.global_step, settings, training.decay_steps)
        set_lr(training.optimizer, run.lr, settings)
        loss = None
        while loss is None:  # again without gradient checkpointing, or with a smaller micro-batch
            with times.of("forward_backward"):
                loss = accumulate_gradients(
                    model, training.train_windows, run, config, training.scaler
                )
        with times.of("update"):
            apply_gradients(loss, model, training.optimizer, run, config, training.scaler)
        run.time_s = time.monotonic() - begun
        throughput.add(tokens_per_step, time.perf_counter() - start)
        if recover(training) == "rewound":
            continue

        # once in a while: a line and a row; where an evaluation follows, it writes the row
        start = time.perf_counter()
        log_due = settings.log_interval is not None and run.global_step % settings.log_interval == 0
        row_follows = evaluation_due(training)
        if log_due or row_follows or training.ended():
            run.tokens_per_s = throughput.take()
        if log_due:
            logger.info("%s", step_line(training))
        if (log_due or training.ended()) and not row_follows:
            write_row(training, metrics)
        progress.step_done(training, log_due)
        throughput.add(0, time.perf_counter() - start)


def save_what_is_whole(training: Training, error: OutOfMemory) -> None:
    """Save the step before the one that did not fit, unless its update has begun."""
    run = training.run
    if error.unchanged and run.last_save_step != run.global_step:
        try:
            save(training, Saver(run.global_step), last_chance=True)
        except StorageError as another:
            logger.error("%s", another)


def say_how_to_go_on(
    args: argparse.Namespace, training: Training, resumed_from: Path | None
) -> None:
    """Log the best evaluation, the newest checkpoint, and the command that resumes from it."""
    run = training.run
    if run.best_step > 0:
        logger.info("best_val_loss %.4f at step %d", run.best_val_loss, run.best_step)
    if training.failed_samples:
        logger.warning("%d samples failed", training.failed_samples)
    path = newest_whole(Path(training.config.paths.checkpoints), run.run_id) or resumed_from
    if path is None or not path.exists():
        logger.info("no checkpoint was saved")
        return
    overrides = [word for override in args.set for word in ("--set", override)]
    command = [
        sys.executable,
        sys.argv[0],
        "--config",
        str(args.config),
        "--resume_from",
        str(path),
        *overrides,
    ]
    logger.info("newest checkpoint: %s", path.resolve())
    logger.info(
        "resume with: %s",
        subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command),
    )


def prepare(args: argparse.Namespace) -> tuple[Training, ResumePoint | None, list[str]]:
    """Check all that the user gave, cheapest first, and build the run; return it, its checkpoint, and what to log."""
    config, named_by_set = load_config(args.config, args.set)
    resumes, starts_from = (
        args.resume_from is not None,
        args.init_from is not None,
    )  # an empty path is a mistake
    point = (
        find_checkpoint(args.resume_from, config, args.config.stem, named_by_set)
        if resumes
        else None
    )
    weights = load_weights(args.init_from) if starts_from else None
    device, text = pick_device(config.device), text_path(config)
    if not args.dry_run:
        probe_folder(Path(config.paths.checkpoints))
        probe_folder(Path(config.paths.logs))
    training = assemble(config, load_text(config, text), device, point and point.content)
    lines = [f"text in {text.resolve()}"]
    if point:
        resume(training, point)
        lines += [*point.changes, f"resumed from {point.path} at step {training.run.global_step}"]
    elif weights:
        start_from(training, weights, args.init_from)
    return training, point, lines


def complete_folder(log_path: Path, run_dir: Path, config: Config) -> None:
    """Put the last part of the log and the report beside the curves; best effort."""
    link_log(log_path, run_dir)
    if config.training.report:
        try:
            write_report(run_dir)
        except Exception as error:  # noqa: BLE001 whatever fails in it, the run is over and saved
            logger.warning("%s: no report: %s", run_dir, error)


def run_training(args: argparse.Namespace, at_end: ExitStack) -> int:
    """Prepare everything, train, and say how to go on; return the exit code. `at_end`: what is done after all that."""
    training, point, lines = prepare(args)
    config, run = training.config, training.run
    if args.dry_run:
        write_to_stdout([f"{line}\n".encode() for line in estimate(training)])
        return 0
    if training.ended() and not (
        evaluation_due(training)
        and not files_after(Path(config.paths.checkpoints), run.run_id, run.global_step)
    ):
        logger.info(
            "%s is finished at step %d; to go on add %s",
            run.run_id,
            run.global_step,
            training.how_to_extend(),
        )
        return 0
    run.run_id, log_path, run_dir = open_run(args, config, run.run_id, at_end)
    at_end.callback(complete_folder, log_path, run_dir, config)
    try:
        log_header(header(training, log_path, run_dir))
        log_and_train(training, point, lines, run_dir)
    finally:
        say_how_to_go_on(args, training, point and point.path)
    return STOP.exit_code or 0


def log_and_train(
    training: Training, point: ResumePoint | None, lines: list[str], run_dir: Path
) -> None:
    """Log what runs, make the resumed run's folder fit, and train."""
    run, checkpoint_dir = training.run, Path(training.config.paths.checkpoints)
    for line in lines:
        logger.info("%s", line)
    for line in cautions(training):
        logger.warning("%s", line)
    keep_rows_up_to = None
    if point:
        check_nothing_newer(point, checkpoint_dir)
        if not training.ended():
            set_aside(superseded_by(checkpoint_dir, run.run_id, run.global_step, point.path))
        keep_rows_up_to = run.global_step - evaluation_due(
            training
        )  # an evaluation to come writes this step's row
    settings = flat(training.config.model_dump(mode="json"))
    metrics = MetricsWriter(run_dir, keep_rows_up_to=keep_rows_up_to, hyperparameters=settings)
    STOP.training = True
    with closing(metrics), Progress(training) as progress, crash_trace(run_dir / "crash.txt"):
        try:
            train(training, metrics, progress)
        except OutOfMemory as error:
            save_what_is_whole(training, error)
            raise
    logger.info(
        "%s: %s",
        f"stopped by {STOP.signal_name}" if STOP.requested() else "done",
        end_line(training),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code. A user's mistake is one or two lines, a defect of ours a traceback."""
    args = parse_arguments(argv)
    setup_console()
    with ExitStack() as at_end:
        try:
            return run_training(args, at_end)
        except UserError as error:
            for line in str(error).splitlines():
                logger.error("%s", line)
            return error.exit_code
        except SystemExit:
            logger.error("stopped by %s before the first step: nothing was saved", STOP.signal_name)
            raise
        except Exception as error:  # whatever it is, the log shall name it; the exit code says that it was no success
            if is_out_of_memory(error):
                logger.error(
                    "out of memory, %.0f MiB were in use: lower training.batch_size",
                    peak_memory_mib(),
                )
                return OutOfMemory.exit_code
            logger.exception("a defect of ChatGoT, not of your input:")
            return 1


if __name__ == "__main__":
    sys.exit(main())
