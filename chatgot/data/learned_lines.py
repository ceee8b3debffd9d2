"""Which tokens training learns from, where `data.learn_from` names speakers: those they speak.

Letters: N tokens of a text, T `max_seq_length`.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from chatgot.data.prompts import LEAST_SPEECHES
from chatgot.data.speaker_lines import (
    DOCUMENT_END,
    Line,
    begins_speech,
    count_speeches,
    lines_of,
)
from chatgot.data.vocabulary import CHUNK, Ids, Vocabulary
from chatgot.errors import ConfigError
from chatgot.logs.waiting import waiting

logger = logging.getLogger(__name__)

Places = NDArray[np.int64]


class LearnedTokens:
    """The tokens of a text that training learns from, as spans [begin, end).

    begins, ends: (n,) ascending; the spans are not empty and do not overlap.
    """

    def __init__(self, begins: Places, ends: Places) -> None:
        self.begins = begins
        self.ends = ends
        lengths = ends - begins
        self._before_span = np.concatenate([[0], np.cumsum(lengths)])  # (n + 1,)
        self._end_of_previous = np.concatenate([[0], ends])  # (n + 1,)

    def __len__(self) -> int:
        """Return how many tokens they are."""
        return int(self._before_span[-1])

    def contain(self, places: Places) -> NDArray[np.bool_]:
        """Return for each place in the text whether its token is one of them."""
        spans_begun = np.searchsorted(self.begins, places, side="right")
        return places < self._end_of_previous[spans_begun]

    def in_windows(self, starts: Places, T: int) -> Places:
        """Return how many targets of each window are among them; its targets begin one later."""
        return self._before(starts + T + 1) - self._before(starts + 1)

    def targets(self, n_tokens: int) -> int:
        """Return how many targets of a text of that length are among them: its first is none."""
        return int(self.in_windows(np.array([0]), n_tokens - 1)[0])

    def _before(self, places: Places) -> Places:
        """Return how many of them come before each place."""
        spans_begun = np.searchsorted(self.begins, places, side="left")
        beyond = np.maximum(0, self._end_of_previous[spans_begun] - places)
        return self._before_span[spans_begun] - beyond

    def part(self, begin: int, end: int) -> "LearnedTokens":
        """Return those of a part of the text, counted from where that part begins."""
        begins = np.clip(self.begins, begin, end) - begin
        ends = np.clip(self.ends, begin, end) - begin
        return LearnedTokens(begins[begins < ends], ends[begins < ends])


def learned_tokens(
    ids: Ids, n_train: int, vocabulary: Vocabulary, names: Sequence[str]
) -> tuple[LearnedTokens, LearnedTokens]:
    """Return the tokens to learn from in the training part, and those to evaluate in the rest.

    They are the text of the speeches of `names`, each with the blank line that ends it, and the
    end-of-text token where the document ends with the speech. A speech is what
    `speakers.count_speakers` takes for one; the names are known speakers here even where they speak
    less often. Where none of them speaks in the held-out part, it is evaluated on everyone's
    speeches, which is logged.

    It streams, twice: memory does not grow with the text, but for 16 bytes for each speech.

    ids: (N,), of the whole text; the first `n_train` are the training part.
    Raises: ConfigError for a name that never speaks in the training part, and where nobody at all
        speaks in the held-out part.
    """
    with waiting("finding whose lines are learned from", n_train + len(ids)) as advance:
        speeches = count_speeches(lines_of(ids[:n_train], vocabulary, advance), names)
        _check_names(names, speeches)
        known = {name for name, count in speeches.items() if count >= LEAST_SPEECHES}
        known |= set(names)
        learned, everyones = _speeches(lines_of(ids, vocabulary, advance), known, frozenset(names))
    whole = _in_tokens(learned, ids, vocabulary)
    train = whole.part(0, n_train)
    held_out = whole.part(n_train, len(ids))
    if held_out.targets(len(ids) - n_train):
        return train, held_out
    held_out = _in_tokens(everyones, ids, vocabulary).part(n_train, len(ids))
    if not held_out.targets(len(ids) - n_train):
        raise ConfigError(
            "data.learn_from: nobody speaks in the held-out part (the end of the text), so "
            "val_loss cannot be measured; hold out more with data.test_split"
        )
    logger.warning(
        "data.learn_from: no line of %s is in the held-out part, so val_loss is that of "
        "everyone's lines there",
        ", ".join(names),
    )
    return train, held_out


def _check_names(names: Sequence[str], speeches: Counter[str]) -> None:
    """Refuse names that never speak. Raises: ConfigError."""
    unknown = [name for name in names if not speeches[name]]
    if not unknown:
        return
    name = unknown[0]
    speakers = [speaker for speaker, count in speeches.most_common() if count]
    if not speakers:
        hint = "nobody does; a speech is a line NAME: with text below it"
    else:
        hint = _nearest(name, speakers)
    raise ConfigError(
        f"data.learn_from: {name} never speaks in the training part of the text; {hint}"
    )


def _nearest(name: str, speakers: Sequence[str]) -> str:
    """Return up to three speakers: those most like a name, else those who speak most often."""
    by_folded = {speaker.casefold(): speaker for speaker in reversed(speakers)}
    close = get_close_matches(name.casefold().rstrip(": "), by_folded, n=3)
    if not close:
        return f"most often speak {', '.join(speakers[:3])}"
    return f"did you mean {' or '.join(by_folded[folded] for folded in close)}?"


class SpeechPlaces:
    """Where the speeches of somebody begin and end, in characters: [begin, end) by turns."""

    def __init__(self) -> None:
        self.places = array("q")

    def add(self, begin: int, end: int) -> None:
        self.places.append(begin)
        self.places.append(end)


def speech_places(lines: Iterable[Line], known: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the speeches of a text in order: who speaks, where the text begins and ends.

    Places are in characters. A speech has the blank line that ends it, and the end-of-text token
    where the document ends with it.

    known: whose lines begin a speech within a speech.
    """
    speaker: str | None = None  # whose speech goes on
    speech_begin = 0
    begin = 0  # of the line
    for (line, length), (next_line, _) in pairwise(lines):
        end = begin + length + 1  # with its line feed
        if not line:
            if speaker is not None:
                # a token more where the document ends with this speech
                yield speaker, speech_begin, end + 1 if next_line == DOCUMENT_END else end
            speaker = None
        elif begins_speech(line, next_line, speaker is not None, known):
            if speaker is not None:
                yield speaker, speech_begin, begin
            speaker = line[:-1]
            speech_begin = end
        elif line == DOCUMENT_END:
            if speaker is not None:
                yield speaker, speech_begin, begin + 1
            speaker = None
        begin = end
    if speaker is not None:
        yield speaker, speech_begin, begin


def _speeches(
    lines: Iterable[Line], known: Collection[str], names: Collection[str]
) -> tuple[SpeechPlaces, SpeechPlaces]:
    """Return the speeches of `names`, and everyone's."""
    learned = SpeechPlaces()
    everyones = SpeechPlaces()
    for speaker, begin, end in speech_places(lines, known):
        everyones.add(begin, end)
        if speaker in names:
            learned.add(begin, end)
    return learned, everyones


def _in_tokens(speeches: SpeechPlaces, ids: Ids, vocabulary: Vocabulary) -> LearnedTokens:
    """Return the tokens whose first character is in one of the speeches."""
    begins, ends = token_places(speeches, ids, vocabulary)
    return LearnedTokens(begins[begins < ends], ends[begins < ends])


def token_places(speeches: SpeechPlaces, ids: Ids, vocabulary: Vocabulary) -> tuple[Places, Places]:
    """Return where speeches begin and end in tokens, both (n,): by their first characters."""
    places = np.array(speeches.places, dtype=np.int64)
    tokens = np.full(len(places), len(ids), dtype=np.int64)
    done = 0  # places whose token is known
    characters = 0  # in the tokens so far
    for first in range(0, len(ids), CHUNK):
        lengths = vocabulary.lengths(ids[first : first + CHUNK])
        begins = characters + np.cumsum(lengths) - lengths
        characters += int(lengths.sum())
        here = int(np.searchsorted(places, characters))
        tokens[done:here] = first + np.searchsorted(begins, places[done:here])
        done = here
    begins, ends = tokens.reshape(-1, 2).T
    return begins, ends
