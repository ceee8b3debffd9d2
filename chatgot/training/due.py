"""What is due now: an evaluation, samples, a checkpoint; by steps, by minutes, at the end of the run."""

from chatgot.run.assembly import Training


def evaluation_due(training: Training) -> bool:
    """Return whether the present weights are still to be evaluated: by the interval, and at the end of the run."""
    run, interval = training.run, training.config.training.eval_interval
    at_end = interval is not None and training.ended() and run.last_eval_step != run.global_step
    return at_end or run.due(interval, run.last_eval_step)


def samples_due(training: Training, seconds_since: float) -> bool:
    """Return whether samples are to be shown now: by steps, by minutes, or at the end of the run."""
    run, settings = training.run, training.config.training
    steps, minutes = settings.sample_interval_steps, settings.sample_interval_minutes
    by_clock = minutes is not None and seconds_since >= 60 * minutes
    at_end = training.ended() and (steps is not None or minutes is not None)
    new = run.last_sample_step != run.global_step
    return new and (by_clock or at_end or run.due(steps, run.last_sample_step))


def save_due(training: Training, seconds_since: float) -> bool:
    """Return whether a checkpoint is to be saved now: by steps, by minutes, or at the end of the run.

    While bad steps come one after the other there is no telling whether the weights are any good.
    """
    run, minutes = training.run, training.config.training.checkpoint_interval_minutes
    by_clock = minutes is not None and seconds_since >= 60 * minutes
    new = run.last_save_step != run.global_step
    return new and (
        training.ended() or (not run.bad_steps and (by_clock or step_save_due(training)))
    )


def step_save_due(training: Training) -> bool:
    """Return whether this step is one whose checkpoint a rewind may go back to."""
    run = training.run
    return run.due(training.config.training.save_checkpoint_steps, run.last_save_step)
