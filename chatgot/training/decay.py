"""When the learning rate of `lr_schedule: wsd` begins to decay, and the log's line about that."""

import logging

from chatgot.logs.events import event
from chatgot.logs.timing import human_time
from chatgot.numerics.optim import Decay, decay_from
from chatgot.run.assembly import Run
from chatgot.run.ending import has_plateaued, minutes_near_end
from chatgot.training.plateau import mean_of

logger = logging.getLogger(__name__)


def begin_decay_where_due(run: Run) -> None:
    """Begin the decay, once in a run: at its planned step, near max_minutes, or at a plateau.

    The evaluations without a better loss are counted anew from here. To be called before each step:
    a checkpoint of this step has the decision, and a run resumed from an earlier one takes it
    again. A rewind to before the decay takes it back; max_minutes begin another one at once, a
    plateau when the evaluations say so again.
    """
    settings = run.config.training
    schedule = run.state.schedule
    if settings.lr_schedule != "wsd" or schedule.in_decay or run.ended():
        return
    step = run.state.progress.global_step
    decay = run.decay
    why = ""
    facts: dict[str, object] = {"reason": "planned"}
    if decay is None or step < decay.began:
        if has_plateaued(settings, run.state.plateau):
            schedule.decay_cause = "no better"
            why = f"{plateau_words(run)}: "
            facts = plateau_facts(run)
        elif step > 0 and minutes_near_end(settings, run.state):
            schedule.decay_cause = "max_minutes"
            over = human_time(run.state.progress.time_s)
            why = f"{over} of {human_time(60 * (settings.max_minutes or 0))} are over: "
            facts = {}
        else:
            return
        facts["reason"] = schedule.decay_cause
        decay = _decay_from_here(run)
        schedule.decay_began = decay.began
        schedule.decay_steps = decay.steps
    schedule.in_decay = True
    run.state.plateau.no_better = 0
    steps = decay.began + decay.steps - step
    logger.info(
        "step %s: %sthe learning rate decays from here, in %s steps",
        f"{step:,}",
        why,
        f"{steps:,}",
        extra=event("decay", step=step, began=decay.began, steps=decay.steps, **facts),
    )


def _decay_from_here(run: Run) -> Decay:
    """Return a decay that begins now, is its share of the run, and passes no last step."""
    ends = [end for end in (run.decay_steps, run.last_step) if end is not None]
    return decay_from(run.state.progress.global_step, run.config.training, min(ends, default=None))


def log_plateau(run: Run, best_step: int) -> None:
    """Log that the last evaluation has ended the run, because nothing better comes."""
    step = run.state.progress.global_step
    words = "the run ends"
    if run.state.plateau.reference:
        words += ": it has learnt what this text can teach it"
    if best_step > 0:
        words += f"; its best is step {best_step:,}"
    facts = {"best_step": best_step, **plateau_facts(run)}
    said = event("plateau", step=step, **facts)
    logger.info("step %s: %s: %s", f"{step:,}", plateau_words(run), words, extra=said)


def plateau_words(run: Run) -> str:
    """Return how many evaluations were not better than which one."""
    plateau = run.state.plateau
    if not plateau.reference:
        return f"no evaluation could be measured, {plateau.no_better} in a row"
    noise = "" if plateau.noise is None else f" +- {plateau.noise:.4f}"
    evaluations = "evaluation" if plateau.no_better == 1 else "evaluations"
    return (
        f"no better held-out loss in {plateau.no_better} {evaluations} since "
        f"step {plateau.reference_step:,} ({mean_of(plateau.reference):.4f}{noise})"
    )


def plateau_facts(run: Run) -> dict[str, object]:
    """Return the same for programs."""
    plateau = run.state.plateau
    return {
        "evaluations": plateau.no_better,
        "since_step": plateau.reference_step,
        "since_val_loss": mean_of(plateau.reference),
        "noise": plateau.noise,
    }
