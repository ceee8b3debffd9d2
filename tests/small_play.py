"""A small play with known truth, what it looks like as subtitles, and how a reader reads a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from chatgot.data.encoding import detect_encoding
from chatgot.data.preparation.pieces import DocumentStart, Passage, Piece, Speech
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.source import SAMPLE_BYTES, Source
from chatgot.data.text_file import text_chunks
from chatgot.errors import ConfigError

# Who says what: each line is a sentence or two, as subtitles break them
ENGLISH = (
    ("ANNA", "Who is at the door at this hour?", "I heard three knocks, and then nothing at all."),
    ("BEN", "Nobody."),
    ("ANNA", "Nobody knocks three times, my dear, and nobody has such muddy boots."),
    ("BEN", "Perhaps the wind has learned to count.", "It has had the time."),
    ("OLD MAN 2", "Good evening, you two."),
    ("ANNA", "There! A voice, and it comes from the hall where the lamp is broken."),
    ("BEN", "The wind has also learned to speak.", "What a gifted wind!"),
    ("OLD MAN 2", "I have walked for nine days, and I own five coins, a hat and this letter."),
    ("ANNA", "Read it."),
    ("OLD MAN 2", "It says that the house is mine, with its roof and its debts."),
    ("BEN", "Take the debts first.", "They are in the cellar, next to the apples."),
    ("ANNA", "Ben!"),
    ("OLD MAN 2", "No, no, he is right.", "A man begins at the bottom, even in his own house."),
    ("BEN", "You see?", "He is one of us already, and he has not even sat down."),
)
GERMAN = (
    ("ÄGIDIUS", "Wer hat den Schlüssel?", "Ich nicht, und der Kater schweigt wie immer."),
    ("FRAU GRÖß", "Der Kater hat ihn gefressen."),
    ("ÄGIDIUS", "Dann öffnen wir die Tür mit dem Kater, und zwar ganz vorsichtig."),
    ("FRAU GRÖß", "Das ist kein Plan, das ist ein Wunsch.", "Aber er gefällt mir."),
    ("ÄGIDIUS", "Still!", "Er kommt."),
    ("FRAU GRÖß", "Er kommt nie, wenn man ihn ruft, und immer, wenn man ihn nicht braucht."),
)
RUSSIAN = (
    ("ВЕРА", "Где мой зонт?", "Он стоял здесь, у самой двери, ещё вчера вечером."),
    ("ПЁТР", "Он ушёл."),
    ("ВЕРА", "Зонты не ходят, даже в такую погоду, и ты это прекрасно знаешь."),
    ("ПЁТР", "Этот ходил.", "Я сам видел."),
)
GREEK = (
    ("ΕΛΈΝΗ", "Πού είναι το πλοίο;", "Έφυγε χωρίς εμάς, όπως το είχε υποσχεθεί."),
    ("ΝΊΚΟΣ", "Θα γυρίσει."),
    ("ΕΛΈΝΗ", "Τα πλοία γυρίζουν, αλλά εμείς δεν θα είμαστε πια εδώ για να το δούμε."),
    ("ΝΊΚΟΣ", "Τότε ας κολυμπήσουμε.", "Η νύχτα είναι ζεστή."),
)
PLAYS = {"en": ENGLISH, "de": GERMAN, "ru": RUSSIAN, "el": GREEK}
PLAY = ENGLISH + GERMAN + RUSSIAN + GREEK  # 28 speeches

ROW = 36  # characters of a row of a subtitle
ROWS = 2


@dataclass(frozen=True)
class Subtitle:
    """One subtitle: rows of what `name` says; `is_first` of a speech. Times in milliseconds."""

    start: int
    end: int
    name: str
    rows: tuple[str, ...]
    is_first: bool


def subtitles(play=PLAY) -> Iterator[Subtitle]:
    """Yield a play as subtitles of at most two rows; long sentences take several."""
    start = 61_250
    for name, *lines in play:
        is_first = True
        for line in lines:
            rows = wrap(line, ROW)
            for place in range(0, len(rows), ROWS):
                yield Subtitle(
                    start, start + 1900, name, tuple(rows[place : place + ROWS]), is_first
                )
                is_first = False
                start += 2000


def clock(ms: int, point: str = ",") -> str:
    """Return a time as subtitles have it."""
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{ms:03}"


def as_srt(play=PLAY) -> str:
    blocks = []
    for number, shown in enumerate(subtitles(play), 1):
        name = f"{shown.name}: " if shown.is_first else ""
        text = name + "\n".join(shown.rows)
        blocks.append(f"{number}\n{clock(shown.start)} --> {clock(shown.end)}\n{text}\n\n")
    return "".join(blocks)


def as_vtt(play=PLAY) -> str:
    blocks = ["WEBVTT - a play\nKind: captions\n\nSTYLE\n::cue { color: lime }\n\n"]
    for shown in subtitles(play):
        times = f"{clock(shown.start, '.')} --> {clock(shown.end, '.')} align:start line:0"
        text = f"<v.loud {shown.name}>" + "\n".join(shown.rows)
        blocks.append(f"{times}\n{text}\n\nNOTE a remark\n\n")
    return "".join(blocks)


def as_ass(play=PLAY) -> str:
    fields = "Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"
    lines = [
        f"[Script Info]\nTitle: A play\n\n[V4+ Styles]\nStyle: Default,Arial,20\n\n"
        f"[Events]\nFormat: {fields}\n"
    ]
    for shown in subtitles(play):
        times = f"{clock(shown.start, '.')[1:-1]},{clock(shown.end, '.')[1:-1]}"
        text = "{\\an8\\fs20}" + "\\N".join(shown.rows)
        lines.append(f"Dialogue: 0,{times},Default,{shown.name},0,0,0,,{text}\n")
    return "".join(lines)


def truth(play=PLAY) -> list[tuple[str, str]]:
    """Return who says what."""
    return [(name, "\n".join(lines)) for name, *lines in play]


def source_of(path: Path, name: str = "") -> Source:
    """Return a file as a reader gets it."""
    head = path.read_bytes()[:SAMPLE_BYTES]
    try:
        encoding = detect_encoding(path)
        beginning = next(text_chunks(path, encoding, SAMPLE_BYTES), "")
    except ConfigError:
        encoding = None
        beginning = ""
    return Source(name or path.name, path, path.stat().st_size, encoding, head, beginning)


class Reading:
    """What a reader makes of a file."""

    def __init__(self, reader: Reader, path: Path, **options) -> None:
        source = source_of(path)
        self.certainty = reader.certainty(source)
        self.findings = Findings()
        self.pieces: list[Piece] = list(
            reader.read(source, ReadingOptions(**options), self.findings)
        )

    @property
    def said(self) -> list[tuple[str, str]]:
        """Name and text of all speeches; passages have an empty name."""
        return [
            (piece.name if isinstance(piece, Speech) else "", piece.text)
            for piece in self.pieces
            if isinstance(piece, Speech | Passage)
        ]

    @property
    def titles(self) -> list[str]:
        return [piece.title for piece in self.pieces if isinstance(piece, DocumentStart)]
