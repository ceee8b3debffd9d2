"""What a run leaves: its best model, samples of it, and the commands that use it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from chatgot.checkpointing.run_files import checkpoint_path
from chatgot.command_line import command_of
from chatgot.config import SEEDS, PathsConfig
from chatgot.exchange.importing import read_start
from chatgot.logs.json_lines import JsonLines
from chatgot.logs.metrics import sample_line
from chatgot.report.run_record import read_samples
from chatgot.run.assembly import Run, make_prompts
from chatgot.run.text_runs import began_from_text
from chatgot.sampling.generation import continue_texts
from chatgot.sampling.loading import load_model

logger = logging.getLogger(__name__)

MOST_LINES = 8  # of the sample
MOST_CHARACTERS = 400


def show_best_model(run: Run, run_dir: Path) -> None:
    """Log which checkpoint of a run is the best, a short sample of it, and what to do now.

    Of a text's run, and of one that may end by itself. Nothing is logged of a run without an
    evaluation: there is no best one. Samples that the run has not shown yet also go to
    samples.jsonl.
    """
    marks = run.state.marks
    step = marks.best_step
    may_end_by_itself = run.config.training.stop_when_no_better is not None
    is_shown = may_end_by_itself or began_from_text(run.state.run_id, run.config_path)
    if step <= 0 or not is_shown:
        return
    path = checkpoint_path(run.checkpoint_dir, run.state.run_id, step)
    sample = _sample(run, run_dir, path)
    title = f"the best model, of step {step:,}, val_loss {marks.best_val_loss:.4f}"
    if sample:
        logger.info("%s, writes:\n%s", title, sample, extra={"block": True})
    name = run.state.run_id
    if run.checkpoint_dir != Path(PathsConfig().checkpoints):
        name = str(path)  # where chat and export would not look
    logger.info("talk to it: %s", command_of("chat", [name]))
    logger.info(
        "take it anywhere: %s", command_of("export", [name, "--to", "out", "--format", "hf"])
    )


def show_student(run: Run, yaml: Path, overrides: Sequence[str]) -> None:
    """Log the commands that make a better model of a text than more minutes of one run would.

    They train a second run with another seed, and a student of both. A step of the student takes
    longer, so minutes that were enough for this run would cut it short: it has none. Nothing is
    logged of a run that is a student itself.

    yaml, overrides: of this run; the overrides are what `--set` puts over its YAML.
    """
    if run.teachers:
        return
    settings = [word for override in overrides for word in ("--set", override)]
    second, student = ((run.config.seed + more) % SEEDS for more in (1, 2))
    # the last one counts, if the overrides have a seed, too
    again = ["--config", str(yaml), *settings, "--set", f"seed={second}"]
    of_both = [run.state.run_id, "RUN", "--to", str(yaml), *settings, "--set", f"seed={student}"]
    training = run.config.training
    ends_by_itself = training.max_steps or training.epochs or training.stop_when_no_better
    if training.max_minutes is not None and ends_by_itself:
        of_both += ["--set", "training.max_minutes=null"]
    logger.info(
        "a student of two runs usually does better; train a second run with: %s",
        command_of("train", again),
    )
    logger.info(
        "then the student, with that run's id in place of RUN: %s", command_of("distil", of_both)
    )


def _sample(run: Run, run_dir: Path, path: Path) -> str:
    """Return a text of the best model: one that the run has shown, or a new one; best effort."""
    made = [sample for sample in read_samples(run_dir) if sample.step == run.state.marks.best_step]
    try:
        text = made[0].prompt + made[0].text if made else _new_sample(run, run_dir, path)
    except Exception as error:  # noqa: BLE001 best effort: the run is over and saved
        logger.warning("the best model could not be sampled: %r", error)
        return ""
    lines = text[:MOST_CHARACTERS].splitlines()[:MOST_LINES]
    return "\n".join(lines)


def _new_sample(run: Run, run_dir: Path, path: Path) -> str:
    """Let the best checkpoint continue all prompts, into samples.jsonl; return the first text.

    Raises: CheckpointRejected, OSError, and others.
    """
    best = load_model(path, run.device, read_start)
    prompts = make_prompts(run)
    seed = run.config.seed
    texts = [""] * len(prompts)
    for so_far in continue_texts(best.model, best.vocabulary, prompts, run.config.sampling, seed):
        texts = so_far
    shown = [best.vocabulary.decode(best.vocabulary.encode(prompt)) for prompt in prompts]
    file = JsonLines(run_dir / "samples.jsonl")
    for i, (prompt, text) in enumerate(zip(shown, texts, strict=True), start=1):
        file.append(sample_line(run.state.marks.best_step, i, prompt, text, seed))
    return shown[0] + texts[0]
