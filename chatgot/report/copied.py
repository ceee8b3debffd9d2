"""What did the samples copy from the training text? From a run's events of kind `originality`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatgot.report.run_record import Curves, Event

KIND = "originality"
# Curves of the copied share in percent
OF_SAMPLES = "samples/copied_percent"
OF_HELD_OUT = "samples/held_out_copied_percent"
Span = tuple[int, int]  # of characters in a sample, up to before the second


@dataclass(frozen=True)
class Run:
    """A run of characters of a sample: copied, or its own."""

    text: str
    copied: bool


def last_measured(events: Iterable[Event]) -> Event | None:
    """Return the last measurement; None: there is none."""
    measured = [event for event in events if event.kind == KIND]
    return measured[-1] if measured else None


def curves(events: Iterable[Event]) -> Curves:
    """Return the copied shares of samples and of held-out text in percent; empty: not measured."""
    samples: dict[float, float] = {}
    held_out: dict[float, float] = {}
    for event in events:
        if event.kind != KIND or event.step is None:
            continue
        for name, points in (("copied_share", samples), ("held_out_share", held_out)):
            share = event.number(name)
            if share is not None:
                points[float(event.step)] = 100 * share
    if not samples or not held_out:
        return {}
    return {OF_SAMPLES: sorted(samples.items()), OF_HELD_OUT: sorted(held_out.items())}


def copies_by_sample(events: Iterable[Event]) -> dict[tuple[int, int], list[Span]]:
    """Return the copied stretches of each sample, by (step, number of the prompt)."""
    copies = {}
    for event in events:
        of_samples = event.fields.get("copies")
        if event.kind != KIND or event.step is None or not isinstance(of_samples, list):
            continue
        for index, spans in enumerate(of_samples, 1):
            copies[event.step, index] = _readable(spans)
    return copies


def _readable(spans: object) -> list[Span]:
    """Return the stretches among what a line of events.jsonl says."""
    pairs = spans if isinstance(spans, list) else []
    return [
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and [type(place) for place in pair] == [int, int]
    ]


def runs(text: str, spans: Sequence[Span]) -> list[Run]:
    """Return a sample cut where copied stretches begin and end."""
    parts = []
    done = 0
    for start, end in sorted(spans):
        start = max(start, done)
        if end <= start or start >= len(text):
            continue
        parts += [Run(text[done:start], copied=False), Run(text[start:end], copied=True)]
        done = end
    return [part for part in [*parts, Run(text[done:], copied=False)] if part.text]
