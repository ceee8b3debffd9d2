"""How did a run end, and what came of it? In plain words, from its events.

Nothing is said of what a run does not have: a decay, a best step, a prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from chatgot.report import story
from chatgot.report.run_record import Event, Row, number

HARDLY_LESS = 0.005  # nats per token: less is noise
NEARLY = 0.2  # of the planned tokens more or less are no other run than the planned one
RISE = 1.001  # a learning rate that is so many times the one before does not decay
SAME = 1e-9  # difference of two losses that were measured on the same tokens

END_WORDS = {
    "max_steps": "all its steps are done (training.max_steps)",
    "epochs": "all its passes over the training text are done (training.epochs)",
    "max_minutes": "its minutes are over (training.max_minutes)",
    "no better": "no evaluation was better any more, so the run ended by itself",
    "decayed": "the decay of the learning rate is over, and nothing comes after it",
}
DECAY_WORDS = {
    "planned": "as planned for the last part of the steps (training.decay_share)",
    "max_minutes": "since the minutes neared their end (training.max_minutes)",
}


@dataclass(frozen=True)
class Said:
    """What is said of a run's end, and what it is about."""

    about: str
    text: str


def ending(events: Sequence[Event], rows: Sequence[Row]) -> list[Said]:
    """Return what there is to say of a run's end; of a run that goes on, of its decay alone."""
    session = last_session(events)
    said = {
        "why it ended": _why(session, events),
        "decay": _decay_line(decay_of(events, rows), rows),
        "best weights": _best_line(session),
        "prediction": _prediction_line(session, events, rows),
        "more minutes": _more_minutes(session),
    }
    return [Said(about, text) for about, text in said.items() if text]


def last_session(events: Sequence[Event]) -> list[Event]:
    """Return the events since the last beginning: an older end was not the last one."""
    begins = [i for i, event in enumerate(events) if event.kind in story.BEGINNINGS]
    return list(events[begins[-1] :]) if begins else list(events)


# --------------------------------------------------------------------------------------------------
# Why it ended


def _why(session: list[Event], events: Sequence[Event]) -> str:
    end = story.end_of(session)
    if end is None or end.kind != "done":
        return ""  # the badge says enough
    reason = end.word("reason")
    words = END_WORDS.get(reason, "")
    plateau = story.last_of(session, ["plateau"])
    if reason == "no better" and plateau is not None:
        words = f"{_not_better(plateau)}, so the run ended by itself"
        if plateau.number("since_val_loss") is not None:
            words += ": it has learnt what this text can teach it"
    if reason == "max_steps":
        words += _passes(events)
    return _as_sentence(words)


def _not_better(event: Event) -> str:
    """Return how many evaluations were not better than which one."""
    count = int(event.number("evaluations") or 0)
    evaluations = "1 evaluation" if count == 1 else f"{count:,} evaluations in a row"
    loss = event.number("since_val_loss")
    if loss is None:
        return f"{evaluations} could not be measured"
    noise = event.number("noise")
    beyond = "" if noise is None else f" by more than the noise ({noise:.4f})"
    since = event.number("since_step") or 0
    verb = "was" if count == 1 else "were"
    return f"{evaluations} {verb} not better than that of step {since:,.0f} ({loss:.4f}){beyond}"


def _passes(events: Sequence[Event]) -> str:
    """Return how many passes over a text were chosen for it; empty: its run has a YAML."""
    chosen = [e for e in events if e.kind == "choice" and e.word("what") == "steps"]
    passes = measured_number(chosen[-1], "passes") if chosen else None
    if passes is None:
        return ""
    return f"; they were chosen for this text and make {passes:.2g} passes over it"


# --------------------------------------------------------------------------------------------------
# The decay of the learning rate


def decay_of(events: Sequence[Event], rows: Sequence[Row]) -> Event | None:
    """Return the event of the decay that is in force or has ended; None: there is none.

    A rewind to before the decay takes it back. So may a resume with other settings, which no event
    says: then the learning rate rises again.
    """
    decay = None
    for event in events:
        if event.kind == "decay":
            decay = event
        elif event.kind == "rewind" and decay is not None:
            back_to = event.number("to")
            if back_to is not None and back_to < (began(decay) or 0):
                decay = None
    if decay is None or began(decay) is None:
        return None
    since = began(decay) or 0
    rates = [row.numbers.get("lr") for row in rows if row.step > since]
    known = [rate for rate in rates if rate is not None]
    rises = any(rate > RISE * before for before, rate in pairwise(known))
    return None if rises else decay


def began(decay: Event) -> float | None:
    """Return the step at which a decay began."""
    step = decay.number("began")
    if step is None and decay.step is not None:
        return float(decay.step)
    return step


def _decay_line(decay: Event | None, rows: Sequence[Row]) -> str:
    if decay is None:
        return ""
    reason = decay.word("reason")
    why = DECAY_WORDS.get(reason, "")
    if reason == "no better":
        why = f"since {_not_better(decay)}"
    step = began(decay) or 0
    steps = decay.number("steps")
    over = "" if steps is None else f", over {steps:,.0f} steps"
    done = rows[-1].step - step if rows else 0
    if steps is not None and 0 < done < steps:
        over += f", of which it did {done:,.0f}"
    return _as_sentence(
        f"from step {step:,.0f} on the learning rate decayed{over}{', ' if why else ''}{why}"
    )


# --------------------------------------------------------------------------------------------------
# The best weights


def best_step(events: Sequence[Event]) -> int | None:
    """Return the best step of a run that has ended; None: it goes on, or has none."""
    end = story.end_of(list(events))
    step = None if end is None else end.number("best_step")
    return int(step) if step is not None and step > 0 else None


def best_full_loss(events: Sequence[Event]) -> float | None:
    """Return the loss of the best weights over every held-out token; None: not measured."""
    end = story.end_of(list(events))
    if end is None or best_step(events) is None:
        return None
    return end.number("best_val_loss_full")


def _best_line(session: list[Event]) -> str:
    end = story.end_of(session)
    step = best_step(session)
    loss = None if end is None else end.number("best_val_loss")
    if end is None or step is None or loss is None:
        return ""
    full = best_full_loss(session)
    last = end.number("global_step")
    last_full = end.number("val_loss_full")
    is_last = step == last
    which = f"step {step:,}, the last one" if is_last else f"step {step:,}"
    if full is not None and abs(full - loss) <= SAME:
        line = f"{which}: held-out loss {full:.4f} over every held-out token"
    else:
        line = f"{which}: held-out loss {loss:.4f} over the tokens that each evaluation measures"
        if full is not None:
            line += f", and {full:.4f} over every held-out token"
    if not is_last and last is not None and last_full is not None:
        line += f"; the last step, {last:,.0f}, has {last_full:.4f} over every held-out token"
    if not is_last:
        line += ". chat, serve and export take the best weights"
    return _as_sentence(line)


# --------------------------------------------------------------------------------------------------
# The prediction


def _prediction_line(session: list[Event], events: Sequence[Event], rows: Sequence[Row]) -> str:
    if story.end_of(session) is None:
        return ""
    predicted = story.prediction(list(events))
    if predicted is None:
        return ""
    low, loss, high = predicted
    line = f"held-out loss {loss:.4g}, in 9 of 10 runs between {low:.4g} and {high:.4g}"
    outcome = story.last_of(session, ["outcome"])
    reached = None if outcome is None else outcome.number("val_loss_full")
    if outcome is None or reached is None:
        return _as_sentence(line)
    off = reached - loss
    than = "lower" if off < 0 else "higher"
    where = "inside" if outcome.holds("inside") else "outside"
    line += f"; came out: {reached:.4f}, {abs(off):.2g} {than}, {where} the error bar"
    return _as_sentence(line + share_words(_share_of_tokens(events, rows)))


def _share_of_tokens(events: Sequence[Event], rows: Sequence[Row]) -> float | None:
    """Return the share of the planned tokens that a run has seen."""
    chosen = [e for e in events if e.kind == "choice" and e.word("what") == "prediction"]
    planned = measured_number(chosen[-1], "tokens") if chosen else None
    seen = [row.numbers["tokens"] for row in rows if row.numbers.get("tokens") is not None]
    if not planned or not seen or seen[-1] is None:
        return None
    return seen[-1] / planned


def share_words(share: float | None) -> str:
    """Return that a run saw more or fewer tokens than was planned; empty: about as many."""
    if share is None or abs(share - 1) <= NEARLY:
        return ""
    return f" (the run saw {share:.2g} times the tokens that were planned)"


def more_minutes_words(gain: float | None) -> str:
    """Return what more minutes would bring; empty: nobody knows.

    gain: how much lower twice the minutes would end, in nats per token; 0: the text is learnt.
    """
    if gain is None:
        return ""
    if gain == 0:
        return "More minutes would bring nothing: the text is learnt"
    if gain < HARDLY_LESS:
        return "Twice the minutes would bring hardly anything"
    return f"Twice the minutes: about {gain:.2g} lower"


def _more_minutes(session: list[Event]) -> str:
    outcome = story.last_of(session, ["outcome"])
    if story.end_of(session) is None or outcome is None:
        return ""
    return _as_sentence(more_minutes_words(outcome.number("twice_the_minutes")))


# --------------------------------------------------------------------------------------------------


def measured_number(choice: Event, name: str) -> float | None:
    """Return a number that a choice was made by; None: it has none of that name."""
    measured = choice.fields.get("measured")
    return number(measured.get(name)) if isinstance(measured, dict) else None


def _as_sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""
