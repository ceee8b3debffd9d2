"""The subtitles of an ASS or SSA file, in the order of the file.

pysubs2 is not asked: it refuses a whole file for one wrong time, does not look at the order of the
fields, and takes time that grows with the square of a line that begins with a bracket.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from chatgot.data.preparation.readers.cues import LONGEST_CUE, Cue, Damage, start_ms

FIELDS = [
    "layer", "start", "end", "style", "name", "marginl", "marginr", "marginv", "effect", "text",
]  # fmt: skip
EVENT = re.compile(r"\s*(dialogue|comment)\s*:\s*", re.IGNORECASE)
FORMAT = re.compile(r"\s*format\s*:\s*", re.IGNORECASE)
NEEDED = {"start", "end", "text"}
# Lines that a karaoke program made out of others
EFFECTS = ("fx", "karaoke fx")

COMMENTS = "comments in the file"
KARAOKE = "karaoke effects"


def ass_cues(lines: Iterable[str], damage: Damage, left_out: Counter[str]) -> Iterator[Cue]:
    """Yield the subtitles of the lines of a file; it streams."""
    order = _Order(FIELDS)
    for line in lines:
        match = EVENT.match(line)
        if match is None:
            named = FORMAT.match(line)
            if named is not None:
                order = _Order.of(line[named.end() :]) or order
            continue
        if match[1][0] in "cC":
            left_out[COMMENTS] += 1
            continue
        cue = order.cue(line[match.end() :], damage)
        if cue is None:
            left_out[KARAOKE] += 1
        elif cue.text:
            yield cue


class _Order:
    """Where the fields of an event are."""

    def __init__(self, fields: list[str]) -> None:
        self.splits = len(fields) - 1
        self.start = fields.index("start")
        self.end = fields.index("end")
        self.text = fields.index("text")
        self.style = fields.index("style") if "style" in fields else None
        names = [at for at, field in enumerate(fields) if field in ("name", "actor")]
        self.name = names[0] if names else None
        self.effect = fields.index("effect") if "effect" in fields else None

    @classmethod
    def of(cls, line: str) -> "_Order | None":
        """Return the order that a line says; None: it is one of styles, or broken."""
        fields = [field.strip().lower() for field in line[:LONGEST_CUE].split(",")]
        return cls(fields) if NEEDED.issubset(fields) else None

    def cue(self, event: str, damage: Damage) -> Cue | None:
        """Return the subtitle of an event; None: it is a karaoke effect."""
        if len(event) > LONGEST_CUE:
            damage.overlong += 1
            event = event[:LONGEST_CUE]
        fields = event.split(",", self.splits)
        if len(fields) <= self.splits:
            damage.without_time += 1
            return Cue(0, 0, "")
        start = start_ms(fields[self.start])
        end = start_ms(fields[self.end])
        if start is None or end is None:
            damage.without_time += 1
            known = start if end is None else end
            start = end = known or 0
        if self.effect is not None and fields[self.effect].strip().lower() in EFFECTS:
            return None
        name = "" if self.name is None else fields[self.name].strip()
        style = "" if self.style is None else fields[self.style].strip()
        return Cue(start, end, fields[self.text].strip(), name, style)
