"""Who speaks in a text: names, how many lines each one speaks, and with whom."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chatgot.checkpointing.checkpoint_file import MOST_SPEAKERS
from chatgot.data.prompts import LEAST_SPEECHES
from chatgot.data.speaker_lines import (
    DOCUMENT_END,
    begins_speech,
    count_speeches,
    lines_of,
)
from chatgot.data.vocabulary import Ids, Vocabulary
from chatgot.logs.waiting import waiting

OTHERS = ""  # those whose names are not known
MOST_COUNTED = 100_000  # pairs of names; later ones are not counted


@dataclass(frozen=True)
class Speaker:
    """One who speaks in the training text.

    name: as it stands before the colon of a speaker's line.
    lines: of text that this one speaks; share: of all spoken lines, 0 to 1.
    partner: with whom this one exchanges most speeches; empty: with nobody who is known.
    """

    name: str
    lines: int
    share: float
    partner: str


class _Counts:
    """What is counted while the lines of a text go by, when it is known who speaks in it."""

    def __init__(self, names: Collection[str]) -> None:
        self.lines: Counter[str] = Counter()  # OTHERS: of all who are not known
        self.exchanges: Counter[tuple[str, str]] = Counter()  # by both names, sorted
        self._names = names
        self._last = OTHERS  # who spoke last in this document
        self._speaking: str | None = None  # whose speech goes on

    def add(self, line: str, next_line: str) -> None:
        """Count one line of the text."""
        if not line:
            self._speaking = None
        elif begins_speech(line, next_line, self._speaking is not None, self._names):
            self._begin_speech(line[:-1])
        elif line == DOCUMENT_END:
            self._speaking = None
            self._last = OTHERS
        elif self._speaking is not None:
            self.lines[self._speaking] += 1

    def _begin_speech(self, name: str) -> None:
        speaker = name if name in self._names else OTHERS
        if OTHERS not in (self._last, speaker) and self._last != speaker:
            pair = (min(self._last, speaker), max(self._last, speaker))
            if pair in self.exchanges or len(self.exchanges) < MOST_COUNTED:
                self.exchanges[pair] += 1
        self._speaking = speaker
        self._last = speaker


def count_speakers(ids: Ids, vocabulary: Vocabulary) -> list[Speaker]:
    """Return those who speak in a text, the one with most lines first.

    A speech begins with a speaker's line and ends at a blank line. Two exchange speeches where one
    speaks after the other in the same document. Whoever speaks fewer than LEAST_SPEECHES times is
    left out: a heading may end with a colon as well. At most MOST_SPEAKERS are returned.

    It streams, twice: memory does not grow with the text. The same ids give the same result.

    ids: (N,), of the training part.
    """
    if not vocabulary.can_write(":\n"):
        return []
    with waiting("counting who speaks in the text", 2 * len(ids)) as advance:
        speeches = count_speeches(lines_of(ids, vocabulary, advance))
        known = {name for name, count in speeches.items() if count >= LEAST_SPEECHES}
        counts = _Counts(known)
        if known:
            for (line, _), (next_line, _) in pairwise(lines_of(ids, vocabulary, advance)):
                counts.add(line, next_line)
    names = sorted(known, key=lambda name: (-counts.lines[name], name))[:MOST_SPEAKERS]
    partners = _partners(names, counts.exchanges)
    total = max(1, counts.lines.total())
    return [
        Speaker(name, counts.lines[name], counts.lines[name] / total, partners.get(name, ""))
        for name in names
    ]


def _partners(names: Sequence[str], exchanges: Mapping[tuple[str, str], int]) -> dict[str, str]:
    """Return for each name the other one with whom it exchanges most speeches."""
    rank = {name: place for place, name in enumerate(names)}
    best: dict[str, tuple[int, int]] = {}  # speeches exchanged, and minus the partner's rank
    for (one, other), count in exchanges.items():
        if one in rank and other in rank:
            best[one] = max(best.get(one, (0, 0)), (count, -rank[other]))
            best[other] = max(best.get(other, (0, 0)), (count, -rank[one]))
    return {name: names[-place] for name, (_, place) in best.items()}


def default_pair(speakers: Sequence[Speaker]) -> tuple[str, str]:
    """Return who the user is and who answers, where nobody says: (user, character).

    They are the two with most lines that talk to each other, and the one with more lines answers.
    Where nobody talks to anybody they are the first two. ("", ""): fewer than two are known.
    """
    lines = {speaker.name: speaker.lines for speaker in speakers}
    pairs = [(s.lines + lines[s.partner], s) for s in speakers if s.partner in lines]
    if pairs:
        one = max(pairs, key=lambda pair: pair[0])[1]
        if lines[one.partner] > one.lines:
            return one.name, one.partner
        return one.partner, one.name
    if len(speakers) < 2:
        return "", ""
    return speakers[1].name, speakers[0].name
