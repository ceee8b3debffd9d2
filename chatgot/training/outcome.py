"""What was predicted for a run, what came out, and what more minutes would bring.

All of it is read from the run's events, so that a resumed run knows it too.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chatgot.logs.events import event
from chatgot.report.ending import HARDLY_LESS, more_minutes_words, share_words
from chatgot.report.run_record import Event, number, read_events
from chatgot.run.assembly import Run
from chatgot.run.text_runs import began_from_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A prediction and what came out; losses in nats per token.

    gain: how much lower twice the minutes would end; 0: the text is learnt; None: nobody knows.
    share: of the planned tokens that the run has seen.
    """

    predicted: float
    low: float
    high: float
    val_loss_full: float
    gain: float | None
    share: float | None

    @property
    def inside(self) -> bool:
        """Whether it came out within the error bar."""
        return self.low <= self.val_loss_full <= self.high

    @property
    def is_learnt(self) -> bool:
        """Whether more minutes of this run would bring hardly anything."""
        return self.gain is not None and self.gain < HARDLY_LESS

    @property
    def words(self) -> str:
        """The line of the log."""
        off = self.val_loss_full - self.predicted
        where = "inside" if self.inside else "outside"
        than = "lower" if off < 0 else "higher"
        line = (
            f"predicted: held-out loss {self.predicted:.4g} ({self.low:.4g} to {self.high:.4g}); "
            f"came out: {self.val_loss_full:.4g}, {abs(off):.2g} {than}, {where} the bar"
        )
        parts = [line + share_words(self.share), more_minutes_words(self.gain)]
        return ". ".join(filter(None, parts))


def log_outcome(run: Run, run_dir: Path) -> Outcome | None:
    """Log what was predicted for a run of a text that has ended, and what came out; return it.

    None: one of the two is not known, and nothing is logged.
    """
    if not began_from_text(run.state.run_id, run.config_path):
        return None
    # a resumed run may write elsewhere by now: the prediction is where it began
    began = Path(run.config_path).parent
    folders = dict.fromkeys([began.resolve(), run_dir.resolve()])
    events = [found for folder in folders for found in read_events(folder)]
    found = outcome(events, run.state.progress.tokens)
    if found is None:
        return None
    logger.info(
        "%s",
        found.words,
        extra=event(
            "outcome",
            predicted=found.predicted,
            low=found.low,
            high=found.high,
            val_loss_full=found.val_loss_full,
            inside=found.inside,
            twice_the_minutes=found.gain,
        ),
    )
    return found


def outcome(events: Iterable[Event], tokens: int) -> Outcome | None:
    """Return what came out of a run that has ended, and was predicted; None: one is not known."""
    prediction = None
    reached = None
    learnt = False
    cut_short = False  # the decay began because the minutes were nearly over
    for found in events:
        if found.kind == "choice" and found.word("what") == "prediction":
            prediction = found
        elif found.kind == "evaluation":
            reached = found.number("val_loss_full")  # None: the run goes on
        elif found.kind == "best":  # an earlier step than the last one
            reached = found.number("val_loss_full") or reached
        elif found.kind == "decay":
            cut_short = found.word("reason") == "max_minutes"
            learnt = found.word("reason") == "no better"
        elif found.kind == "plateau":
            learnt = not cut_short
    numbers = {} if prediction is None else _numbers(prediction)
    loss = None if prediction is None else prediction.number("chosen")
    if reached is None or loss is None or not {"low", "high"} <= numbers.keys():
        return None
    twice = numbers.get("twice_the_minutes")
    gain = 0.0 if learnt else None
    if twice is not None and not learnt:
        # the same share lower as of the prediction
        gain = max(0.0, reached * (1 - twice / loss))
    planned = numbers.get("tokens")
    share = tokens / planned if planned else None
    return Outcome(loss, numbers["low"], numbers["high"], reached, gain, share)


def _numbers(prediction: Event) -> dict[str, float]:
    """Return the numbers that were predicted, by name."""
    measured = prediction.fields.get("measured")
    if not isinstance(measured, Mapping):
        return {}
    found = {name: number(value) for name, value in measured.items()}
    return {name: value for name, value in found.items() if value is not None}
