"""The look at a prepared text, in one HTML file that looks like the report of a run.

The file needs no other files and no network. This module collects the content; text_page.html.j2
has the layout.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.data.preparation.look import CharacterLook, FileLook, Look, SpeakerLook, visible
from chatgot.errors import StorageError
from chatgot.report.page import Fact, load_template, refuse_foreign

LAYOUT = "text_page.html.j2"
# shown of what may be long
FILES = 100
SPEAKERS = 25
CHARACTERS = 400
RARE_CHARACTERS = 60
SIZE_UNITS = ("bytes", "kB", "MB", "GB")
SPEAKER_LINE = re.compile(r"^\S[^\n:]{0,39}:$")


@dataclass(frozen=True)
class FileRow:
    """A row of the table of files."""

    file: FileLook
    size: str
    encoding: str
    notes: list[str]


@dataclass(frozen=True)
class SpeakerBar:
    """A speaker, with the width of the bar."""

    speaker: SpeakerLook
    width: str
    share: str


@dataclass(frozen=True)
class CharacterTile:
    """A character as it is shown."""

    character: CharacterLook
    shown: str


@dataclass(frozen=True)
class PreviewLine:
    """A line of the text."""

    text: str
    is_speaker: bool


@dataclass(frozen=True)
class Count:
    """How many things there are of a kind."""

    kind: str
    count: int


@dataclass(frozen=True)
class Shown:
    """The first things of many, and how many more there are."""

    first: Sequence[object]
    more: int


def write_text_page(look: Look, path: Path, choices: list[str]) -> None:
    """Write the page of a prepared text.

    choices: what training will choose for it, in lines.
    Raises: ConfigError if the path is of something else than a report, StorageError if the page
    cannot be written.
    """
    refuse_foreign(path)
    page = render(look, choices)
    try:
        with atomic_file(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise StorageError(
            f"{path}: the page cannot be written: {error.strerror or error}"
        ) from error


def render(look: Look, choices: list[str]) -> str:
    """Return the page of a prepared text."""
    speakers = look.speakers()
    alphabet = look.alphabet()
    rare = [character for character in alphabet if character.is_rare]
    return load_template(LAYOUT).render(
        name=look.name or "Your text",
        look=look,
        facts=facts(look, len(speakers), len(alphabet)),
        kinds=counts(Counter(file.kind for file in look.files)),
        files=_first([_row(file) for file in look.files[:FILES]], look.n_files),
        speakers=_first(bars(speakers), len(speakers)),
        tiles=_first([_tile(character) for character in alphabet[:CHARACTERS]], len(alphabet)),
        rare=_first([_tile(character) for character in rare[:RARE_CHARACTERS]], len(rare)),
        lengths=lengths(look),
        repeated=counts(look.findings.repeated),
        is_dropped=bool(look.findings.repeated & look.findings.left_out),
        changed=counts(look.findings.changed),
        dropped=counts(left_out(look)),
        left_out=_first(look.left_out[:FILES], look.n_left_out),
        previews=[
            (title, preview(text))
            for title, text in (
                ("the beginning", look.first_lines),
                ("a random place", look.random_lines),
            )
            if text
        ],
        choices=choices,
    )


def facts(look: Look, n_speakers: int, n_characters: int) -> list[Fact]:
    """Return the text's main numbers."""
    return [
        Fact("characters", f"{look.characters:,}"),
        Fact("documents", f"{look.documents:,}"),
        Fact("files read", f"{look.n_files:,}"),
        Fact("files left out", f"{look.n_left_out:,}"),
        Fact("speakers", f"{n_speakers:,}"),
        Fact("different characters", f"{n_characters:,}"),
        Fact("repeated", f"{look.findings.repeated.total():,}"),
        Fact("replaced", f"{look.findings.changed.total():,}"),
    ]


def bars(speakers: list[SpeakerLook]) -> list[SpeakerBar]:
    """Return those who speak most, with bars from their speeches."""
    if not speakers:
        return []
    most = speakers[0].speeches
    total = sum(speaker.speeches for speaker in speakers)
    return [
        SpeakerBar(
            speaker,
            f"{100 * speaker.speeches / most:.1f}%",
            f"{100 * speaker.speeches / total:.1f}%",
        )
        for speaker in speakers[:SPEAKERS]
    ]


def lengths(look: Look) -> list[Fact]:
    """Return how long the documents are."""
    return [
        Fact("shortest", f"{look.shortest:,}", "characters"),
        Fact("median", f"{look.median_length():,}", "characters"),
        Fact("longest", f"{look.longest:,}", "characters"),
        Fact("dropped", f"{look.dropped_documents:,}", "that repeat another"),
    ]


def left_out(look: Look) -> Counter[str]:
    """Return how many things of a kind were not taken, in all files."""
    total = Counter(look.findings.left_out)
    for file in look.files:
        total.update(file.left_out)
    return total


def counts(counter: Counter[str]) -> list[Count]:
    """Return counts as they are shown, the greatest first."""
    return [Count(kind, count) for kind, count in counter.most_common() if count]


def preview(text: str) -> list[PreviewLine]:
    """Return lines of the text, the speakers' marked."""
    return [PreviewLine(line, bool(SPEAKER_LINE.match(line))) for line in text.split("\n")]


def human_size(size: int) -> str:
    """Return a size in bytes, kB, MB or GB."""
    number = float(size)
    for unit in SIZE_UNITS:
        if number < 1000 or unit == SIZE_UNITS[-1]:
            break
        number /= 1000
    return f"{size:,} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


def _row(file: FileLook) -> FileRow:
    notes = [f"not read to its end: {file.fault}"] if file.fault else []
    notes += file.remarks
    notes += [f"{count:,} {kind} left out" for kind, count in file.left_out.most_common()]
    return FileRow(file, human_size(file.size), file.encoding or "", notes)


def _tile(character: CharacterLook) -> CharacterTile:
    return CharacterTile(character, visible(character.character))


def _first(shown: Sequence[object], total: int) -> Shown:
    return Shown(shown, total - len(shown))
