"""From messages to text and back: a message is a speech.

A speech is the speaker's line `NAME:`, the text and a blank line, as in the text that the model was
trained on. The text of a speech stays as it is, but for the white space at its end. So a blank line
in it, or a line that looks like a speaker's, means to the model what it means in any text: the
speech has ended, or another one speaks. A line that is exactly the end-of-text token is that token.
The format has no sign that could escape them, and the model has never seen one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatgot.data.vocabulary import Vocabulary
from chatgot.sampling.engine import Engine
from chatgot.sampling.prefixes import as_ids, common_length

MOST_RANKED = 40  # names that are ranked, besides those who have spoken already


@dataclass(frozen=True)
class Speech:
    """What one speaker says. An empty name: a text of nobody, such as a scene's heading."""

    name: str
    text: str


def prompt_text(speeches: Sequence[Speech], character: str) -> str:
    """Return the text after which the model speaks as `character`.

    character: empty: the text ends where the next speaker's line begins.
    """
    parts = []
    for speech in speeches:
        line = f"{speech.name}:\n" if speech.name else ""
        parts.append(f"{line}{tidy(speech.text)}\n\n")
    if character:
        parts.append(f"{character}:\n")
    return "".join(parts)


def speech_lines(names: Iterable[str]) -> frozenset[str]:
    """Return the lines that begin a speech of these speakers: `NAME:`."""
    return frozenset(f"{name}:" for name in names)


def choose_speaker(
    engine: Engine, vocabulary: Vocabulary, speeches: Sequence[Speech], names: Sequence[str]
) -> list[tuple[str, float]]:
    """Return each name with its probability of speaking next, the likeliest first.

    The probabilities are those of the lines `NAME:` as the model sees them, and sum to 1. Of many
    names only the first MOST_RANKED are ranked, and those who have spoken already.

    names: those with most lines first.
    Returns: empty where there is no name, or none whose line fits into half of the context.
    """
    spoken = {speech.name for speech in speeches}
    candidates = [
        name
        for place, name in enumerate(dict.fromkeys(names))
        if place < MOST_RANKED or name in spoken
    ]
    text, _ = vocabulary.replace_unknown(prompt_text(speeches, ""))
    cut = vocabulary.last_cut(text)
    prompt = vocabulary.encode(text[:cut])
    # a subword may reach over the end of the prompt: its last line is encoded with what follows
    last_line = text[cut:]
    lines = {name: _encode(vocabulary, f"{last_line}{name}:\n") for name in candidates}
    begun = as_ids(vocabulary.encode(last_line))
    shared = min((common_length(begun, as_ids(line)) for line in lines.values()), default=0)
    prompt += begun[:shared].tolist()
    lines = {name: line[shared:] for name, line in lines.items()}
    # a line that fills more than half of a tiny context cannot be ranked
    candidates = [name for name in candidates if len(lines[name]) <= engine.context // 2]
    if not candidates:
        return []
    continuations = [lines[name] for name in candidates]
    scores = engine.rank(prompt, continuations)  # nats
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = math.fsum(weights)
    chances = [(name, weight / total) for name, weight in zip(candidates, weights, strict=True)]
    return sorted(chances, key=lambda chance: -chance[1])


def _encode(vocabulary: Vocabulary, text: str) -> list[int]:
    known, _ = vocabulary.replace_unknown(text)
    return vocabulary.encode(known)


def tidy(text: str) -> str:
    """Return a speech's text as it is kept: without blank lines and white space at its end."""
    return text.rstrip()
