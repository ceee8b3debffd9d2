"""Files such as people have, made up in any size: prose, plays, chats, subtitles, tables.

No two lines are alike, as in real texts. The words are no words of any language; some have letters
beyond ASCII, and so has the punctuation.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SEED = 7
WORDS = 20_000  # different ones
BATCH = 2_000  # lines that are made at a time
LINE = 9  # words of a line
ZIPF = 0.9  # exponent: the n-th most frequent word is there n ** -ZIPF times as often
SYLLABLES = [
    "ba",
    "de",
    "li",
    "mo",
    "ru",
    "sa",
    "te",
    "vi",
    "no",
    "ka",
    "per",
    "stra",
    "len",
    "dor",
    "win",
    "tho",
    "ga",
    "fi",
    "sho",
    "eth",
]
ODD_WORDS = 0.02  # of them have a letter beyond ASCII
NAMES = ["MIRA DOLAN", "OLD TERN", "VESH", "CAPTAIN ROW", "ISOBEL", "THE MILLER", "JUN", "KASPAR"]
ENDS = (". ", ", ", "? ", "! ", "; ", "... ", " \u2014 ", ". ", ", ", ". ")
MINUTE = 60


def make_file(kind: str, path: Path, size: int) -> int:
    """Write a made-up file of at least `size` bytes; return its size.

    kind: one of KINDS.
    """
    opening, pieces, closing = KINDS[kind]
    written = 0
    with path.open("wb") as file:
        written += file.write(opening.encode())
        for piece in pieces(_lines()):
            written += file.write(piece.encode())
            if written >= size:
                break
        written += file.write(closing.encode())
    return written


def _words(random: np.random.Generator) -> list[str]:
    syllables = np.array(SYLLABLES)
    words = []
    for length in random.integers(1, 4, WORDS).tolist():
        word = "".join(syllables[random.integers(0, len(syllables), length)].tolist())
        words.append(word.replace("e", "\u00e9", 1) if random.random() < ODD_WORDS else word)
    return words


def _lines() -> Iterator[str]:
    """Yield lines without end, each of LINE words and some punctuation."""
    random = np.random.default_rng(SEED)
    words = _words(random)
    shares = np.arange(1, WORDS + 1) ** -ZIPF
    edges = np.cumsum(shares / shares.sum())
    while True:
        drawn = np.searchsorted(edges, random.random(BATCH * LINE)).clip(max=WORDS - 1).tolist()
        ends = random.integers(0, len(ENDS), BATCH).tolist()
        for line in range(BATCH):
            chosen = [words[place] for place in drawn[line * LINE : (line + 1) * LINE]]
            half = LINE // 2
            end = ENDS[ends[line]]
            first = " ".join(chosen[:half])
            yield f"{first.capitalize()}{end}{' '.join(chosen[half:])}."


def _paragraphs(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the lines of each paragraph, one to six of them."""
    number = 0
    while True:
        yield number, [next(lines) for _ in range(1 + number * 7 % 6)]
        number += 1


def _prose(lines: Iterator[str]) -> Iterator[str]:
    for _, paragraph in _paragraphs(lines):
        yield "\n".join(paragraph) + "\n\n"


def _play(lines: Iterator[str]) -> Iterator[str]:
    for number, paragraph in _paragraphs(lines):
        yield f"{_name(number)}:\n" + "\n".join(paragraph) + "\n\n"


def _transcript(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{_name(number).title()}: {line}\n"


def _whatsapp(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        minute = number * 3
        day = minute // (24 * MINUTE)
        yield (
            f"{day // 28 % 12 + 1}/{day % 28 + 1}/{15 + day // 336 % 10}, "
            f"{minute // MINUTE % 24:02}:{minute % MINUTE:02} - {_name(number).title()}: {line}\n"
        )


def _telegram(lines: Iterator[str]) -> Iterator[str]:
    start = np.datetime64("2019-01-01T00:00:00")
    for number, line in enumerate(lines):
        message = {
            "id": number,
            "type": "message",
            "date": str(start + np.timedelta64(MINUTE * 3 * number, "s")),
            "date_unixtime": str(1_546_300_800 + MINUTE * 3 * number),
            "from": _name(number).title(),
            "from_id": f"user{number % len(NAMES)}",
            "text": line,
            "text_entities": [{"type": "plain", "text": line}],
        }
        comma = "," if number else ""
        yield f"{comma}\n  {json.dumps(message, indent=1, ensure_ascii=False)}"


def _srt(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        start, end = (_moment(3_000 * number + shift) for shift in (0, 2_500))
        middle = line.find(" ", len(line) // 2)
        yield f"{number}\n{start} --> {end}\n{line[:middle]}\n{line[middle + 1 :]}\n\n"


def _moment(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    hours, seconds = divmod(seconds, MINUTE * MINUTE)
    return f"{hours:02}:{seconds // MINUTE:02}:{seconds % MINUTE:02},{milliseconds:03}"


def _csv(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f'{number},{_name(number).title()},"{line}"\n'


def _name(number: int) -> str:
    return NAMES[number * number // 3 % len(NAMES)]


Pieces = Callable[[Iterator[str]], Iterator[str]]

# opening, pieces, closing
KINDS: dict[str, tuple[str, Pieces, str]] = {
    "prose": ("", _prose, ""),
    "play": ("", _play, ""),
    "transcript": ("", _transcript, ""),
    "whatsapp": ("", _whatsapp, ""),
    "telegram": ('{"name": "Team", "type": "private_group", "messages": [', _telegram, "]}\n"),
    "srt": ("", _srt, ""),
    "csv": ("id,speaker,line\n", _csv, ""),
}
