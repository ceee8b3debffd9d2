"""When a run ends, why, and how a finished one goes on.

What a run has done decides, not what was configured: a limit may have been changed since.
"""

from typing import Literal

from chatgot.config import MAX_EPOCHS, MAX_MINUTES, MAX_STEPS, TrainingConfig
from chatgot.numerics.optim import (
    Decay,
    epochs_beyond,
    last_step,
    planned_decay,
    schedule_horizon,
    steps_of_epochs,
)
from chatgot.run.run_state import Plateau, RunState

EndReason = Literal["max_steps", "epochs", "max_minutes", "no better", "decayed"]
END_WORDS: dict[EndReason, str] = {
    "max_steps": "max_steps reached",
    "epochs": "all epochs done",
    "max_minutes": "max_minutes over",
    "no better": "no better held-out loss",
    "decayed": "the learning rate's decay is over",
}


def decay_in_force(settings: TrainingConfig, state: RunState, per_epoch: int) -> Decay | None:
    """Return the decay of wsd that has begun or is planned; None: nobody knows when it begins.

    It is run state where max_minutes or a plateau has begun it. The planned one follows from the
    settings.

    per_epoch: training windows.
    """
    if settings.lr_schedule != "wsd":
        return None
    schedule = state.schedule
    if schedule.decay_began >= 0:
        return Decay(schedule.decay_began, schedule.decay_steps)
    return planned_decay(settings, schedule_horizon(settings, per_epoch))


def has_plateaued(settings: TrainingConfig, plateau: Plateau) -> bool:
    """Return whether as many evaluations in a row were not better as `stop_when_no_better` says."""
    most = settings.stop_when_no_better
    return most is not None and plateau.no_better >= most


def last_step_of(settings: TrainingConfig, state: RunState, per_epoch: int) -> int | None:
    """Return the step at which the run ends at the latest; None: no number of steps ends it."""
    ends = [last_step(settings, per_epoch)]
    if settings.lr_schedule == "wsd" and state.schedule.decay_began >= 0:
        ends.append(state.schedule.decay_began + state.schedule.decay_steps)
    return min((end for end in ends if end is not None), default=None)


def end_reason(
    settings: TrainingConfig, state: RunState, per_epoch: int, plateau: Plateau | None = None
) -> EndReason | None:
    """Return what has ended the run; None: it goes on.

    plateau: the one after an evaluation that is not counted yet; None: that of the state.
    """
    reasons = _reached(settings, state, per_epoch, plateau or state.plateau)
    return reasons[0] if reasons else None


def _reached(
    settings: TrainingConfig, state: RunState, per_epoch: int, plateau: Plateau
) -> list[EndReason]:
    """Return all limits that the run has reached."""
    step = state.progress.global_step
    schedule = state.schedule
    is_wsd = settings.lr_schedule == "wsd"
    reasons: list[EndReason] = []
    if settings.max_steps is not None and step >= settings.max_steps:
        reasons.append("max_steps")
    if settings.epochs is not None and step >= steps_of_epochs(
        settings.epochs, per_epoch, settings.sequences_per_step
    ):
        reasons.append("epochs")
    if settings.max_minutes is not None and state.progress.time_s >= 60 * settings.max_minutes:
        reasons.append("max_minutes")
    if has_plateaued(settings, plateau) and (schedule.in_decay or not is_wsd):
        reasons.append("no better")
    if is_wsd and schedule.decay_began >= 0 and step >= schedule.decay_began + schedule.decay_steps:
        reasons.append("decayed")
    return reasons


def how_to_extend(settings: TrainingConfig, state: RunState, per_epoch: int) -> str:
    """Return the `--set` options that let a finished run go on for at least one step."""
    done = state.progress
    step = done.global_step
    reasons = _reached(settings, state, per_epoch, state.plateau)
    longer: dict[str, object] = {}
    if "max_steps" in reasons:
        longer["max_steps"] = min(2 * step, MAX_STEPS)
    if settings.epochs is not None and "epochs" in reasons:
        S = settings.sequences_per_step
        epochs = max(settings.epochs + 1, epochs_beyond(step, per_epoch, S))
        if epochs <= MAX_EPOCHS:
            longer["epochs"] = epochs
        else:  # each step takes many epochs: steps can be counted further
            longer["epochs"] = "null"
            longer["max_steps"] = min(max(2 * step, settings.max_steps or 0), MAX_STEPS)
    if settings.max_minutes is not None and "max_minutes" in reasons:
        minutes = max(settings.max_minutes, done.time_s / 60)
        longer["max_minutes"] = f"{min(2 * minutes, MAX_MINUTES):g}"
    decayed_by = state.schedule.decay_cause if "decayed" in reasons else ""
    if decayed_by == "max_minutes":
        # so many that the decay is not due yet: it is taken back
        minutes = 2 * done.time_s / 60 / max(1 - settings.decay_share, 1e-9)
        if minutes < MAX_MINUTES:
            longer["max_minutes"] = f"{minutes:g}"
        else:
            longer["max_minutes"] = "null"
            longer["max_steps"] = min(2 * step, MAX_STEPS)
    if decayed_by == "no better" or "no better" in reasons:
        longer["stop_when_no_better"] = "null"
        others = (settings.max_steps, settings.epochs, settings.max_minutes)
        if all(other is None for other in others):
            longer["max_steps"] = min(2 * step, MAX_STEPS)
    return " ".join(f"--set training.{key}={value}" for key, value in longer.items())


def take_back_decay(settings: TrainingConfig, before: TrainingConfig, state: RunState) -> bool:
    """Forget a decay that the settings of a resumed run would not have begun; say if there was one.

    The learning rate is that of before the decay again. Without a change of settings nothing
    happens.

    before: the settings that the run had.
    """
    schedule = state.schedule
    most = settings.stop_when_no_better
    is_wanted = settings.lr_schedule == "wsd"
    if schedule.decay_cause == "max_minutes":
        is_wanted = is_wanted and minutes_near_end(settings, state)
    if schedule.decay_cause == "no better":
        had = before.stop_when_no_better
        is_wanted = is_wanted and most is not None and (had is None or most <= had)
    if schedule.decay_began < 0 or is_wanted:
        return False
    schedule.decay_began = -1
    schedule.decay_steps = 0
    schedule.decay_cause = ""
    return True


def leave_decay(state: RunState) -> None:
    """Count the evaluations anew, if the learning rate no longer decays."""
    if state.schedule.in_decay:
        state.schedule.in_decay = False
        state.plateau.no_better = 0


def minutes_near_end(settings: TrainingConfig, state: RunState) -> bool:
    """Return whether only the decay's share of max_minutes is left."""
    minutes = settings.max_minutes
    if minutes is None:
        return False
    return state.progress.time_s >= (1 - settings.decay_share) * 60 * minutes
