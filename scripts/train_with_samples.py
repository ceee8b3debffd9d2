"""Train a small chat-style language model from scratch on text, and show samples while it learns.

    python scripts/train_with_samples.py my_text.txt --minutes 10
    python scripts/train_with_samples.py my_text.txt --until_best
    python scripts/train_with_samples.py episodes/ --minutes 10
    python scripts/train_with_samples.py --config configs/models/chatgot_quick.yaml

Writes checkpoints/{name}_{timestamp}_step_{step}.pt, logs/train_{name}_{timestamp}.log and, for
TensorBoard and the report, logs/tensorboard/{name}_{timestamp}/; the name is that of the YAML or of
the text. Stop it at any time (Ctrl+C) and go on with --resume_from latest.

This file is the story of a run: from top to bottom it reads as things happen.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
import gc
import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chatgot.command_line import add_set, as_typed, command_name, command_of, command_words
from chatgot.given_path import given_path, given_text
from chatgot.leaving import leave_at_once_in_the_end
from chatgot.shipped import shipped_names, yaml_named
from chatgot.spinning import spin_briefly
from chatgot.stopping import Stopped, StopRequest, reserve_time_to_save
from chatgot.torchrun import is_rank, quiet_rank, speaks_for_its_machine, was_started_again

if TYPE_CHECKING:
    from chatgot.config import Config
    from chatgot.data.own_text import Request

STOP = StopRequest()
logger = logging.getLogger("chatgot.train")


# --------------------------------------------------------------------------------------------------
# The command line: checked before torch is imported, which takes seconds


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line; everything else is in the YAML."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Train a small language model on text and show samples while it learns.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s my_text.txt --minutes 10
  %(prog)s my_text.txt --until_best
  %(prog)s episodes/ --minutes 10
  %(prog)s my_text.txt --resume_from latest
  %(prog)s --config chatgot_quick
  %(prog)s --config my.yaml --set data.path=my_text.txt
  %(prog)s --config my.yaml --dry_run""",
    )
    parser.add_argument(
        "text",
        type=given_path,
        nargs="?",
        metavar="TEXT|FOLDER",
        help="what to train on: a recipe is chosen for it, no YAML is needed; "
        "a folder, a zip, subtitles or a chat become data/NAME.txt first",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="with TEXT: how long to train, in minutes (default: 10)",
    )
    parser.add_argument(
        "--until_best",
        action="store_true",
        help="with TEXT: train until nothing gets better; with --minutes: at most so many",
    )
    parser.add_argument(
        "--config",
        type=yaml_named,
        metavar="YAML",
        help="the experiment: a file, or the name of a YAML that comes with the program",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume_from",
        type=given_text,
        metavar="FILE|latest",
        help="go on, bit for bit, from a checkpoint of this YAML or text",
    )
    start.add_argument(
        "--init_from",
        type=given_path,
        metavar="FILE|FOLDER",
        help="start a new run from a checkpoint, a model folder of transformers, or a .gguf",
    )
    add_set(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="print size, memory and time, then end"
    )
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{keys_meant(unknown)}")
    problem = misused(args)
    if problem:
        said = f"{parser.prog}: {problem}\n" if speaks_for_its_machine(os.environ) else None
        parser.exit(2, said)
    return args


def keys_meant(words: list[str]) -> str:
    """Return how to set the keys that unknown options name, as other trainers have them."""
    from chatgot.config_file import key_meant

    options = [word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")]
    keys = [key for key in map(key_meant, options) if key is not None]
    if keys:
        return "; keys are set by " + " ".join(f"--set {key}=VALUE" for key in keys)
    return ""


def misused(args: argparse.Namespace) -> str:
    """Return which options do not go together, and what to do; empty: all do."""
    if args.text is None and args.config is None:
        return (
            "nothing to train on: give a text file (my_text.txt --minutes 10), or --config with "
            f"a YAML or one of the shipped names: {', '.join(shipped_names())}"
        )
    if args.text is not None and args.config is not None:
        return (
            f"a text ({args.text}) and --config: give one of them; "
            f"for a YAML on this text, --set data.path={args.text}"
        )
    if args.text is not None and is_rank(os.environ):
        return (
            f"a text ({args.text}) and torchrun: give --config with a YAML, so that all ranks "
            f"train with the same settings; for this text, --set data.path={args.text}"
        )
    if args.text is not None and is_yaml(args.text):
        return f"{args.text} is a YAML, expected a text: did you mean --config {args.text}?"
    return misused_time(args)


def misused_time(args: argparse.Namespace) -> str:
    """Return why --minutes and --until_best cannot be taken; empty: they can."""
    if args.minutes is None and not args.until_best:
        return ""
    option = "--minutes" if args.minutes is not None else "--until_best"
    if args.config is not None:
        keys = "--set training.max_minutes=M"
        if args.until_best:
            keys = "--set training.stop_when_no_better=N and --set training.lr_schedule=wsd"
            option = "--until_best"
        return f"{option} goes with a text; with --config say {keys}"
    if args.resume_from is not None:
        return (
            f"{option} goes with a new run; one that goes on has its own end, "
            "to move it say --set training.max_steps=N and --set training.max_minutes=M"
        )
    if args.minutes is None:
        return ""
    from chatgot.config import MAX_MINUTES, MIN_MINUTES

    if not MIN_MINUTES <= args.minutes <= MAX_MINUTES:
        return f"--minutes: found {args.minutes:g}, expected a number above 0, at most 1e9"
    return ""


def is_yaml(path: Path) -> bool:
    """Return whether a path is a YAML, or the name of a shipped one."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    return str(path) in shipped_names() and not path.exists()


def request_of(args: argparse.Namespace) -> "Request":
    """Return what the user asks for with a text."""
    from chatgot.data.own_text import DEFAULT_MINUTES, MINUTES_UNTIL_BEST, Request

    minutes = args.minutes
    if minutes is None:
        minutes = MINUTES_UNTIL_BEST if args.until_best else DEFAULT_MINUTES
    return Request(
        args.text,
        minutes,
        tuple(args.set),
        until_best=args.until_best,
        has_limit=args.minutes is not None or not args.until_best,
        resumes=args.resume_from is not None,
        imports=args.init_from is not None,
    )


def check_text(args: argparse.Namespace) -> "Request":
    """Return what the user asks for with a text, or with what becomes one. Raises: ConfigError."""
    from chatgot.data.own_text import check_keys, check_request
    from chatgot.data.preparation.for_training import (
        is_to_be_prepared,
        prepared_path,
        refuse_nothing,
    )

    request = request_of(args)
    if not is_to_be_prepared(args.text):
        check_request(request)
        return request
    refuse_nothing(args.text)
    request = replace(request, text=prepared_path(args.text))
    check_keys(request)
    return request


def refuse_missing_start(args: argparse.Namespace, config: "Config") -> None:
    """Make sure that a new run with LoRA or old text has a model to start from.

    Raises: ConfigError.
    """
    from chatgot.errors import ConfigError

    is_new = args.resume_from is None and args.init_from is None
    if is_new and config.data.replay is not None:
        raise ConfigError(
            f"data.replay={config.data.replay:g}: replays the text of an earlier run: "
            "name a checkpoint of that run with --init_from, or set data.replay=null"
        )
    if is_new and config.training.lora.enabled:
        raise ConfigError(
            f"training.lora.rank={config.training.lora.rank}: LoRA adds to a trained model: "
            "name it with --init_from, or set training.lora.rank=null"
        )


def log_error(error: Exception) -> None:
    """Log a user's mistake, which is one or two lines."""
    for line in str(error).splitlines():
        logger.error("%s", line)


def refuse_mistakes(argv: list[str]) -> None:
    """Exit with a message if the command line, the YAML or the text is unusable."""
    args = parse_arguments(argv)
    from chatgot.config_file import load_config
    from chatgot.data.own_text import candidates
    from chatgot.data.text_sources import listed_paths, text_sources
    from chatgot.errors import ConfigError, UserError
    from chatgot.logs.logging_setup import setup_console

    try:
        if args.text is not None:
            request = check_text(args)
            if args.resume_from is None and args.init_from is None:
                refuse_missing_start(args, candidates(request)[0].config)
            return
        try:
            config, _ = load_config(args.config, args.set)
        except ConfigError:
            if args.init_from is None:
                raise
            return  # it may fit the shape of that model, which is read later
        refuse_missing_start(args, config)
        if config.data.path is not None:
            text_sources(listed_paths(config.data), yaml_path=args.config)
    except UserError as error:
        if speaks_for_its_machine(os.environ):
            setup_console()
            log_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":  # here, above the imports that take seconds
    STOP.install()
    if quiet_rank(os.environ) is not None:
        os.environ["TQDM_DISABLE"] = "1"
    refuse_mistakes(sys.argv[1:])
    spin_briefly(os.environ)
    gc.disable()  # what is imported stays; a quarter of a second goes into looking for garbage

from collections.abc import Callable, Sequence
from contextlib import closing

import torch

from chatgot.checkpointing.run_files import newest_whole, probe_folder
from chatgot.checkpointing.stored_vocabulary import subwords_of
from chatgot.config import Config, PathsConfig, flat
from chatgot.config_file import load_config
from chatgot.data.configured_text import load_text, text_path, text_places
from chatgot.data.old_text import OldText, old_texts_in, with_old_text
from chatgot.data.own_text import FINE_TUNING, check_request, paths_of, recipe, setting
from chatgot.data.preparation.for_training import (
    is_to_be_prepared,
    rather_prepared,
    text_of,
)
from chatgot.data.vocabulary import Vocabulary
from chatgot.distributed.joining import join, own_device
from chatgot.distributed.ranks import Ranks
from chatgot.errors import ConfigError, OutOfMemory, UserError
from chatgot.exchange.importing import read_start
from chatgot.logs.events import event
from chatgot.logs.logging_setup import crash_trace, log_header, setup_console
from chatgot.logs.metrics import MetricsWriter, NoMetrics
from chatgot.logs.origins import text_of_yaml
from chatgot.machine.device import pick_device
from chatgot.machine.memory import is_out_of_memory, peak_memory_mib
from chatgot.machine.priority import lower_priority
from chatgot.model.gpt import GPT
from chatgot.run.assembly import Run, assemble_together, make_prompts
from chatgot.run.ending import END_WORDS
from chatgot.run.folder import RunPaths, open_folder
from chatgot.run.restarting import agent_began_s, last_good_point
from chatgot.run.resuming import (
    ResumePoint,
    find_checkpoint,
    has_newer_files,
    leave_newer_files_behind,
    resume,
    start_from,
)
from chatgot.run.starting import Start
from chatgot.run.teachers import Student, load_teachers
from chatgot.run.text_runs import yaml_to_resume
from chatgot.sampling.generation import continue_texts
from chatgot.stdout import write_to_stdout
from chatgot.training.against_teachers import compare_with_teachers
from chatgot.training.batch_size import fit_micro_batch
from chatgot.training.best import best_line, best_step_with, log_best, measure_best
from chatgot.training.choosing import Choice, choose
from chatgot.training.clock import StepClock
from chatgot.training.copies import CopiesInSamples
from chatgot.training.decay import begin_decay_where_due, log_plateau
from chatgot.training.due import Due, evaluation_due, is_new_best
from chatgot.training.estimate import estimate
from chatgot.training.evaluation import measure_held_out
from chatgot.training.log_lines import (
    by_source,
    cautions,
    change_lines,
    curves,
    end_facts,
    end_line,
    evaluation_facts,
    evaluation_line,
    header,
    multi_token_line,
    start_facts,
    step_line,
    taught_facts,
)
from chatgot.training.neighbours import Neighbours
from chatgot.training.progress import ProgressBar
from chatgot.training.recovery import Outcome, recover
from chatgot.training.saving import Saver
from chatgot.training.step import compute_gradients, set_learning_rate, update_weights

if __name__ == "__main__":
    gc.freeze()  # later collections leave out what was imported
    gc.enable()

# --------------------------------------------------------------------------------------------------
# What to train: the settings of a YAML, or those that are chosen for a text


@dataclass(frozen=True)
class Experiment:
    """The settings of a run, and the YAML that holds them.

    yaml: None for a text whose run has no folder yet; its YAML is written there.
    overrides: what `--set` puts over the YAML.
    """

    name: str
    config: Config
    named_by_set: set[str]
    yaml: Path | None
    overrides: list[str]
    choice: Choice | None = None


def find_experiment(args: argparse.Namespace, start: Start | None) -> Experiment:
    """Return what to train; for a new run of a text this machine is measured, and it is chosen.

    start: a model from elsewhere gives the run its shape and its vocabulary.
    Raises: ConfigError, CheckpointRejected, StorageError.
    """
    if args.text is None:
        if start is None or not start.binds_yaml:
            return experiment_of(args.config, args.set)
        return experiment_with_shape(args, start)
    request = request_of(args)
    check_request(request)
    if args.resume_from is not None:
        yaml = yaml_to_resume(request, args.resume_from)
        return experiment_of(yaml, [*args.set, *text_has_moved(yaml, args.text)])
    if not args.dry_run:
        probe_folders(paths_of(request))
    if start is not None:
        request = fine_tuning(request, start, args.init_from)
    vocabulary = None if start is None else start.vocabulary
    choice = choose(request, vocabulary, args.dry_run, from_scratch=start is None)
    return Experiment(request.name, choice.config, set(), None, [], choice)


def experiment_with_shape(args: argparse.Namespace, start: Start) -> Experiment:
    """Return the experiment of a YAML with the shape of the model that its run starts from.

    Raises: ConfigError.
    """
    start.check_overrides(args.set, args.init_from)
    overrides = [*start.overrides, *args.set]
    context = experiment_of(args.config, overrides).config.model.max_seq_length
    experiment = experiment_of(args.config, [*start.shorter_context(context), *overrides])
    start.check_context(experiment.config, args.init_from)
    if experiment.config.model.max_seq_length < context:
        logger.warning("%s", context_line(experiment.config, context, args.init_from))
    try:
        load_config(args.config, args.set)
    except ConfigError:  # what the user sets fits that shape alone
        return experiment
    # a resumed run finds the shape in its checkpoint
    return replace(experiment, overrides=args.set)


def fine_tuning(request: "Request", start: Start, path: Path) -> "Request":
    """Return a request with the shape of the model that its run starts from, if it has one.

    Raises: ConfigError.
    """
    if not start.shape:  # weights alone: the recipe gives the shape
        return replace(request, imports=False, tokens=("data.tokenizer=char",))
    start.check_overrides(request.overrides, path)
    request = replace(request, shape=tuple(start.overrides))
    context = recipe(request, FINE_TUNING).model.max_seq_length
    shape = (*start.shorter_context(context), *request.shape)
    request = replace(request, shape=shape)
    config = recipe(request, FINE_TUNING)
    start.check_context(config, path)
    if config.model.max_seq_length < context:
        logger.info("%s", context_line(config, context, path))
    return request


def context_line(config: Config, asked: int, path: Path) -> str:
    """Return which context a run has instead of the one that was asked for, and why."""
    context = config.model.max_seq_length
    return f"model.max_seq_length: {context} instead of {asked}, which {path} was not trained with"


def experiment_of(yaml: Path, overrides: list[str]) -> Experiment:
    """Return the experiment of a YAML. Raises: ConfigError."""
    config, named_by_set = load_config(yaml, overrides)
    return Experiment(yaml.stem, config, named_by_set, yaml, overrides)


def text_has_moved(yaml: Path, text: Path) -> list[str]:
    """Return what `--set` has to say where a text is no longer where its run's YAML says."""
    path = str(text.resolve())
    return [] if text_of_yaml(yaml) == path else [setting("data.path", path)]


def probe_folders(paths: PathsConfig) -> None:
    """Make sure that a run's folders can be written. Raises: StorageError."""
    probe_folder(Path(paths.checkpoints))
    probe_folder(Path(paths.logs))


# --------------------------------------------------------------------------------------------------
# Before the first step: all that the user gave is checked, the cheapest first


def prepare(
    args: argparse.Namespace,
    experiment: Experiment,
    start: Start | None,
    ranks: Ranks,
    device: torch.device,
) -> tuple[Run, ResumePoint | None, list[str]]:
    """Build the run; return it, the checkpoint it goes on from, and what the log will say."""
    config = experiment.config
    point = point_to_go_on_from(args, experiment, ranks)
    if point is not None:
        config = point.config
    leave_cores_to_others(config.training.niceness)
    text = text_path(config, experiment.yaml)
    if not args.dry_run:
        probe_folders(config.paths)
    if experiment.choice is None:
        with ranks.main_first():  # it writes the cache that the others read
            tokens = load_text(config, text, vocabulary_of(start, point))
    else:
        tokens = experiment.choice.tokens
    old_texts: list[OldText] = []
    if config.data.replay is not None:
        behind = old_texts_in(point.content) if point is not None else texts_of(start)
        tokens, old_texts = with_old_text(tokens, config, text.name, behind, is_new=point is None)
    stored = None if point is None else point.content
    student = Student(config, tokens, old_texts)
    going_on = None if point is None else point.path
    teachers = load_teachers(student, device, read_start, stored, going_on)
    weights = None if start is None else start.tensors
    run = assemble_together(config, tokens, device, stored, weights, teachers, ranks)
    if experiment.yaml is not None:
        run.config_path = str(experiment.yaml.resolve())
    run.old_texts = old_texts
    remarks = [f"text in {place}" for place in text_places(config, text)]
    remarks += [f"old text in {old.path.resolve()}" for old in old_texts]
    if point is not None:
        resume(run, point, read_start)
        remarks += point.changes
    elif start is not None:
        start_from(run, start, args.init_from)
        remarks += given_subwords(start, config, args.init_from)
    if ranks.is_sharded:
        from chatgot.run.sharding import shard_run  # one process alone needs none of it

        shard_run(run)
    return run, point, remarks


def point_to_go_on_from(
    args: argparse.Namespace, experiment: Experiment, ranks: Ranks
) -> ResumePoint | None:
    """Return the checkpoint that a run goes on from; None: a new run begins.

    A group that was lost and is started again goes on from its last good checkpoint by itself.
    Raises: CheckpointRejected.
    """
    asked = args.resume_from
    yaml = experiment.yaml

    def find(resume_from: str) -> ResumePoint:
        assert yaml is not None, "only a new run has no YAML yet"
        return find_checkpoint(resume_from, experiment.config, yaml, experiment.named_by_set)

    if ranks.is_alone:
        return None if asked is None else find(asked)
    assert yaml is not None, "a text alone is refused"
    told = ranks.all((was_started_again(os.environ), agent_began_s()))
    is_known = any(again for again, _ in told)
    began_s = min(began for _, began in told)

    def find_last() -> ResumePoint | None:
        return last_good_point(experiment.config, yaml, asked, began_s, find, is_known=is_known)

    return ranks.on_main(find_last, patient=True)


def leave_cores_to_others(niceness: int) -> None:
    """Lower this program's priority, if that is asked for; training goes on if it cannot be."""
    if niceness == 0:
        return
    try:
        problem = lower_priority(niceness)
    except OSError as error:
        problem = f"the priority cannot be lowered ({error.strerror})"
    if problem:
        logger.warning("training.niceness: %s", problem)


def texts_of(start: Start | None) -> Sequence[OldText]:
    """Return the texts that a new run's model was trained on; empty: unknown."""
    return () if start is None else start.texts


def vocabulary_of(start: Start | None, point: ResumePoint | None) -> Vocabulary | None:
    """Return the subwords that the text is read as; None: its own characters."""
    if point is not None:
        return subwords_of(point.content, point.path)
    return None if start is None else start.vocabulary


def given_subwords(start: Start, config: Config, path: Path) -> list[str]:
    """Return what to say where a model brings the subwords that a run would have trained."""
    if config.data.tokenizer == "char" or start.vocabulary is None:
        return []
    return [f"data.vocab_size={config.data.vocab_size} has no effect: {path} brings its subwords"]


# --------------------------------------------------------------------------------------------------
# The run's folder is open: log what runs, and set aside what a resumed run leaves behind


def log_start(run: Run, point: ResumePoint | None, remarks: list[str], paths: RunPaths) -> None:
    """Log which run this is, on what, with which settings, and what to beware of."""
    step = run.state.progress.global_step
    log_header(header(run, paths.log_path, paths.run_dir))
    for remark in remarks:
        logger.info("%s", remark)
    facts = start_facts(run)
    if point is None:
        logger.info("a new run", extra=event("start", step=step, **facts))
    else:
        facts |= {"resumed_from": str(point.path)}
        resumed = event("resume", step=step, **facts)
        logger.info("resumed from %s at step %d", point.path, step, extra=resumed)
    for caution in cautions(run):
        logger.warning("%s", caution)


def open_metrics(run: Run, point: ResumePoint | None, paths: RunPaths) -> MetricsWriter:
    """Open the rows and curves; of a resumed run those of later steps go."""
    if not run.ranks.is_main:
        return NoMetrics()
    settings = flat(run.config.model_dump(mode="json"))
    if point is None:
        return MetricsWriter(paths.run_dir, hyperparameters=settings)
    step = run.state.progress.global_step
    return MetricsWriter(
        paths.run_dir,
        keep_rows_up_to=step - 1 if evaluation_due(run) else step,  # it writes this step's row
        keep_samples_up_to=step,
        hyperparameters=settings,
    )


# --------------------------------------------------------------------------------------------------
# Once in a while


def evaluate_and_log(run: Run, metrics: MetricsWriter) -> None:
    """Measure the loss on held-out text, log it and write the step's row.

    At the run's end it is measured over every token, also of the best checkpoint. When stopped,
    nothing is noted: the evaluation is made again after the resume.
    """
    marks = run.state.marks
    step = run.state.progress.global_step
    with run.times.of("evaluation"):
        found = measure_held_out(run, STOP.requested)
    if found is None or not measure_best(run, found):
        return
    best_step = best_step_with(run, found.loss)
    marks.val_loss = found.loss
    marks.last_eval_step = step
    if run.held_out:
        marks.loss_by_source = found.by_source
        marks.first_loss_by_source = marks.first_loss_by_source or found.by_source
    run.state.plateau = found.plateau
    best = is_new_best(run)
    facts = {"val_loss_full": None, **evaluation_facts(run, found.full_loss)}
    logger.info(
        "step %d | %s%s",
        step,
        evaluation_line(run, found.full_loss),
        " | best so far" if best else "",
        extra=event("evaluation", step, **facts, val_loss_by_source=by_source(run), best=best),
    )
    write_row(run, metrics, found.full_loss)
    if run.end_reason() == "no better":
        log_plateau(run, best_step)
    log_best(run, best_step)


def show_samples(
    run: Run, metrics: MetricsWriter, prompts: list[str], copies: CopiesInSamples
) -> None:
    """Let the model continue the prompts, into the log and samples.jsonl; training is untouched.

    When stopped, nothing is noted: they are made again after the resume.
    """
    model = run.whole_model()  # of which other ranks may have parts

    def show(stopped: Stopped) -> bool:
        assert model is not None  # on rank 0, which shows them
        return show_samples_of(model, run, metrics, prompts, copies, stopped)

    if run.ranks.long_on_main(show):
        run.state.marks.last_sample_step = run.state.progress.global_step


def show_samples_of(
    model: GPT,
    run: Run,
    metrics: MetricsWriter,
    prompts: list[str],
    copies: CopiesInSamples,
    stopped: Stopped,
) -> bool:
    """Show the samples of a run's whole model; return False when stopped."""
    step = run.state.progress.global_step
    seed = run.config.seed
    texts: list[str] = []
    try:
        growing = continue_texts(model, run.vocabulary, prompts, run.config.sampling, seed)
        for so_far in growing:
            if stopped():
                return False
            texts = so_far
    except Exception as error:  # noqa: BLE001 best effort: whatever fails, training goes on
        run.failed_samples += 1
        if run.failed_samples == 1:
            logger.warning("the samples of step %d failed, training goes on: %r", step, error)
        texts = []
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=False), start=1):
        shown = run.vocabulary.decode(run.vocabulary.encode(prompt))  # without end-of-text tokens
        title = f"sample {i} of {len(prompts)} at step {step}, prompt {shown!r}:"
        logger.info("%s\n%s%s", title, shown, text, extra={"block": True})
        metrics.sample(step, i, shown, text, seed)
    metrics.curves(step, copies.measure(texts))
    return True


def log_step(
    run: Run, metrics: MetricsWriter, bar: ProgressBar, clock: StepClock, neighbours: Neighbours
) -> None:
    """Log the step just done and write its row, where they are due."""
    interval = run.config.training.log_interval
    line_due = interval is not None and run.state.progress.global_step % interval == 0
    evaluation_follows = evaluation_due(run)  # which writes this step's row
    row_due = line_due or evaluation_follows or run.ended()
    if row_due:
        with clock.stopped():
            if not neighbours.take_the_cores:
                run.measure_peak()
            metrics.open_board()
    with clock.logging():
        if row_due:
            run.state.progress.tokens_per_s = clock.tokens_per_s()
        if line_due:
            logger.info("%s", step_line(run))
        if (line_due or run.ended()) and not evaluation_follows:
            write_row(run, metrics)
        bar.step_done(run, line_due)


def write_row(run: Run, metrics: MetricsWriter, full_loss: float | None = None) -> None:
    """Write this step's row of metrics and its points of the curves."""
    progress = run.state.progress
    marks = run.state.marks
    evaluated = marks.last_eval_step == progress.global_step
    row = {
        **(evaluation_facts(run, full_loss) if evaluated else {}),
        "train_loss": progress.train_loss,
        **taught_facts(run),
        "lr": progress.lr,
        "grad_norm": progress.grad_norm,
        "tokens_per_s": progress.tokens_per_s,
    }
    metrics.row(
        progress.global_step,
        **row,
        val_loss_by_source=by_source(run) if evaluated else None,
        tokens=progress.tokens,
        time_s=progress.time_s,
    )
    metrics.curves(progress.global_step, curves(run))


# --------------------------------------------------------------------------------------------------
# Training


def train(
    run: Run, metrics: MetricsWriter, bar: ProgressBar, saver: Saver, neighbours: Neighbours
) -> None:
    """Run optimizer steps until the run has ended or a signal asks to stop."""
    due = Due(run)
    clock = StepClock(run, STOP)
    prompts = make_prompts(run)
    copies = CopiesInSamples(run)
    run.model.train()
    while True:
        # a signal asked to stop; the step in hand is done
        if STOP.requested():
            run.ranks.note_stop()
            saver.save_before_leaving()
            return

        # once in a while: the loss on held-out text
        if due.evaluation():
            evaluate_and_log(run, metrics)

        # once in a run: the learning rate begins to decay
        begin_decay_where_due(run)

        # once in a while: samples
        if due.samples():
            with run.times.of("sampling"):
                show_samples(run, metrics, prompts, copies)
            due.sampled()

        # once in a while: a checkpoint; one that was written beside the last steps is whole now
        with run.times.of("saving"):
            saver.finish()
        if due.checkpoint():
            with run.times.of("saving"):
                saver.save()
            due.saved()

        if STOP.requested():
            continue  # the signal came during one of these: save at the top of the loop
        if run.ended():
            compare_with_teachers(run, STOP.requested)
            return

        # the micro-batch follows the memory
        if not fit_micro_batch(run, STOP.requested):
            continue

        # other programs may take the cores
        neighbours.look()

        # one optimizer step
        with clock.step():
            set_learning_rate(run)
            loss = compute_gradients(run)
            update_weights(run, loss)
        if recover(run) is Outcome.REWOUND:
            continue  # the step just done is undone: there is nothing to log

        # once in a while: a line of the log and a row of metrics
        log_step(run, metrics, bar, clock, neighbours)


# --------------------------------------------------------------------------------------------------
# The end


def say_how_to_go_on(
    experiment: Experiment, run: Run, resumed_from: Path | None, exit_code: int
) -> None:
    """Log how the run ended, its best evaluation, and the command that resumes it."""
    marks = run.state.marks
    given_up = run.abandoned  # by a rewind
    path = newest_whole(run.checkpoint_dir, run.state.run_id, without=given_up) or resumed_from
    if path is not None and not path.exists():
        path = None
    if run.failed_samples:
        logger.warning("sampling failed %d times", run.failed_samples)
    for line in change_lines(run):
        logger.info("%s", line)
    unfinished = multi_token_line(run)
    if unfinished:
        logger.warning("%s", unfinished)
    log_end(run, exit_code, path, None if path is None else resume_command(experiment, path))
    if marks.best_step > 0:
        logger.info(
            "best_val_loss %.4f (%.4f bits per byte) at step %d",
            marks.best_val_loss,
            run.bits_per_byte(marks.best_val_loss),
            marks.best_step,
        )
    best = best_line(run)
    if best:
        logger.info("%s", best)
    if path is None:
        logger.info("no checkpoint was saved")
        return
    logger.info("newest checkpoint: %s", path.resolve())
    logger.info("resume with: %s", resume_command(experiment, path))


def log_end(run: Run, exit_code: int, path: Path | None, command: str | None) -> None:
    """Log the last word on the run; its event is the last one of this session."""
    kind = "done"
    words = "done"
    reason = run.end_reason()
    facts: dict[str, object] = {"reason": reason}
    if STOP.requested() and exit_code == STOP.exit_code:
        kind = "stop"
        words = f"stopped by {STOP.signal_name}"
        facts = {"signal": STOP.signal_name, "exit_code": exit_code}
    elif exit_code != 0:
        kind = "crash"
        words = f"ended with exit code {exit_code}"
        facts = {"exit_code": exit_code}
    facts |= end_facts(run)
    facts |= {"checkpoint": None if path is None else str(path), "resume_command": command}
    last_event = event(kind, step=run.state.progress.global_step, **facts)
    ended_by = "" if kind != "done" or reason is None else f"; {END_WORDS[reason]}"
    logger.info("%s: %s%s", words, end_line(run), ended_by, extra=last_event)


def resume_command(experiment: Experiment, path: Path) -> str:
    """Return the command line that goes on from a checkpoint."""
    return command_with(experiment, "--resume_from", str(path))


def command_with(experiment: Experiment, *options: str) -> str:
    """Return the command line that trains with the experiment's YAML."""
    words = [*command_words(), "--config", str(experiment.yaml), *options]
    for override in experiment.overrides:
        words += ["--set", override]
    return as_typed(words)


# --------------------------------------------------------------------------------------------------
# One run from its beginning to its end


def prepare_and_train(args: argparse.Namespace) -> int:
    """Train on what the user names; a folder, a zip or a file that is no text becomes one first."""
    if args.text is None:
        return run_training(args)
    if not is_to_be_prepared(args.text):
        if args.resume_from is None:
            hint_at_preparing(args.text)
        return run_training(args)
    cache = Path(paths_of(request_of(args)).cache)
    with text_of(args.text, cache, args.resume_from is not None, args.dry_run) as text:
        args.text = text
        return run_training(args)


def hint_at_preparing(text: Path) -> None:
    """Say so where a text file is trained on as it is, though a reader knows who speaks in it."""
    kind = rather_prepared(text)
    if kind:
        command = command_of("prepare", [str(text), "--output", f"data/{text.stem}_prepared.txt"])
        logger.info("%s is trained on as it is; it seems to be a %s: %s", text, kind, command)


def run_training(args: argparse.Namespace) -> int:
    """Join the ranks that train together, if there are several, and train; return the exit code."""
    start = None if args.init_from is None else read_start(args.init_from)
    experiment = find_experiment(args, start)
    refuse_missing_start(args, experiment.config)
    device = own_device(pick_device(experiment.config.device))
    with closing(join(experiment.config, device)) as ranks:
        return train_together(args, experiment, start, ranks, device)


def train_together(
    args: argparse.Namespace,
    experiment: Experiment,
    start: Start | None,
    ranks: Ranks,
    device: torch.device,
) -> int:
    """Prepare everything, train, and say how to go on; return the exit code."""
    stop = ranks.stopped_before()
    if stop is not None:
        exit_code, name = stop
        logger.warning(
            "this group was stopped by %s, so torchrun's new start does not go on; "
            "start torchrun again with --resume_from latest",
            name,
        )
        return exit_code
    notes = [] if experiment.choice is None else experiment.choice.notes
    if not args.dry_run:
        for note in notes:
            note.log()
    run, point, remarks = prepare(args, experiment, start, ranks, device)
    del start  # its weights are in the model now
    if args.dry_run and not ranks.is_main:
        return 0
    if args.dry_run:
        lines = [*(note.text for note in notes), *estimate(run)]
        write_to_stdout([f"{line}\n".encode() for line in lines])
        return 0
    newer = ranks.on_main(lambda: has_newer_files(run))
    last_evaluation_is_missing = evaluation_due(run) and not newer
    reason = run.end_reason()
    if reason is not None and not last_evaluation_is_missing:
        logger.info(
            "%s (%s) is finished at step %d; to go on add %s",
            run.state.run_id,
            END_WORDS[reason],
            run.state.progress.global_step,
            run.how_to_extend(),
        )
        return 0
    chosen_yaml = None if experiment.choice is None else experiment.choice.yaml
    with open_folder(run, experiment.name, point, chosen_yaml) as paths:
        if paths.chosen_yaml is not None:
            experiment = replace(experiment, yaml=paths.chosen_yaml)
            remarks.append(f"settings in {experiment.yaml}")
            begins = [] if args.init_from is None else ["--init_from", str(args.init_from)]
            remarks.append(f"the same run again: {command_with(experiment, *begins)}")
        # here too, so that an error stands in this run's log, above the command that resumes it
        exit_code = with_exit_code(lambda: train_in_folder(run, point, remarks, paths))
        # not at the top: no step waits for these
        from chatgot.training.outcome import log_outcome
        from chatgot.training.what_now import show_best_model, show_student

        has_ended = exit_code == 0
        if not ranks.is_main:
            return exit_code
        outcome = log_outcome(run, paths.run_dir) if has_ended else None
        say_how_to_go_on(experiment, run, None if point is None else point.path, exit_code)
        if has_ended:
            show_best_model(run, paths.run_dir)
        if outcome is not None and outcome.is_learnt and experiment.yaml is not None:
            show_student(run, experiment.yaml, experiment.overrides)
    return exit_code


def train_in_folder(
    run: Run, point: ResumePoint | None, remarks: list[str], paths: RunPaths
) -> int:
    """Log what runs, and train; return the exit code."""
    log_start(run, point, remarks, paths)
    if point is not None:
        run.ranks.on_main(lambda: leave_newer_files_behind(run, point))
    saver = Saver(run, STOP.requested)
    metrics = open_metrics(run, point, paths)
    run.ranks.obey(STOP)
    STOP.training = True  # from now on a signal waits for the step in hand, and its checkpoint
    reserve_time_to_save()
    with (
        closing(metrics),
        closing(Neighbours(run)) as neighbours,
        ProgressBar(run) as bar,
        crash_trace(paths.run_dir / "crash.txt"),
        saver,  # waits for a checkpoint that is still being written
    ):
        try:
            train(run, metrics, bar, saver, neighbours)
        except OutOfMemory as error:
            saver.save_what_is_whole(error)
            raise
        except RuntimeError as error:
            lost = run.ranks.lost_by(error)
            if lost is None:
                raise
            raise lost from error
    if not STOP.requested():  # a signal to a rank of a group that came too late to be agreed on
        return 0
    return STOP.exit_code or 0


def with_exit_code(do: Callable[[], int]) -> int:
    """Return the exit code: a user's mistake is one or two lines, a defect of ours a traceback."""
    try:
        return do()
    except UserError as error:
        if not error.is_said:
            log_error(error)
        return error.exit_code
    except SystemExit:
        logger.error("stopped by %s before the first step: nothing was saved", STOP.signal_name)
        return STOP.exit_code or 1
    except Exception as error:  # whatever it is, the log names it
        if is_out_of_memory(error):
            used_mib = peak_memory_mib()
            logger.error("out of memory, %.0f MiB were in use: lower training.batch_size", used_mib)
            return OutOfMemory.exit_code
        logger.exception("a defect of ChatGoT, not of your input:")
        return 1


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = parse_arguments(argv)
    setup_console(quiet_rank(os.environ))
    return with_exit_code(lambda: prepare_and_train(args))


if __name__ == "__main__":
    sys.exit(leave_at_once_in_the_end(main()))
