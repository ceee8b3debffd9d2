"""How is a conversation written to a file, and read again?

As text it is what the model reads: the line `NAME:`, what was said, a blank line. As JSON it also
has who typed what, and how the answers were drawn.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from chatgot.chat.conversation import Turn, plain_text
from chatgot.chat.limits import read_number, read_whole_number
from chatgot.data.prompts import is_speaker_name
from chatgot.errors import ConfigError
from chatgot.sampling.speeches import Speech, prompt_text

Kind = TypeVar("Kind")
JSON_SUFFIX = ".json"
LARGEST_FILE = 10_000_000  # bytes


@dataclass(frozen=True)
class Settings:
    """Who takes part, and how the answers were drawn."""

    user: str
    character: str
    room: list[str] | None
    seed: int
    temperature: float


@dataclass
class Transcript:
    """A conversation and its circumstances. settings: None in a text, which has none."""

    opening: str
    turns: list[Turn]
    settings: Settings | None = None


def write_transcript(path: Path, transcript: Transcript) -> bytes:
    """Return the content of a file: JSON if its name ends in .json, else text."""
    if path.suffix.lower() == JSON_SUFFIX:
        turns = [
            {"name": turn.name, "text": turn.text, "typed": turn.typed} for turn in transcript.turns
        ]
        settings = {} if transcript.settings is None else asdict(transcript.settings)
        content = {**settings, "opening": transcript.opening, "turns": turns}
        return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode(
            "utf-8", "backslashreplace"
        )
    opening = [Speech("", transcript.opening)] if transcript.opening else []
    speeches = opening + [Speech(turn.name, turn.text) for turn in transcript.turns]
    is_named = any(speech.name for speech in speeches)
    text = prompt_text(speeches, "") if is_named else plain_text(speeches)
    return (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace")


def read_transcript(path: Path, user: str) -> Transcript:
    """Return the conversation in a file: JSON if its name ends in .json, else text.

    user: whose lines in a text count as typed.
    Raises: ConfigError.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path}: too large for a conversation (more than {LARGEST_FILE} bytes)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text in UTF-8: save it in UTF-8") from error
    if path.suffix.lower() == JSON_SUFFIX:
        return _from_json(path, text)
    return _from_text(text.replace("\r\n", "\n"), user)


def _from_json(path: Path, text: str) -> Transcript:
    try:
        content = json.loads(text)
        opening = _of_kind(content["opening"], str)
        turns = [_turn(turn) for turn in _of_kind(content["turns"], list)]
        return Transcript(opening, turns, _settings(content))
    except (ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{path}: not a conversation that /save has written") from error


def _turn(content: dict[str, Any]) -> Turn:
    """Return a stored turn. Raises: TypeError; KeyError; ValueError."""
    name = _of_kind(content["name"], str)
    if name and not is_speaker_name(name):
        raise ValueError(name)
    return Turn(name, _of_kind(content["text"], str), _of_kind(content["typed"], bool))


def _settings(content: dict[str, Any]) -> Settings:
    """Return the stored settings. Raises: TypeError; KeyError; ValueError; ConfigError."""
    user = _of_kind(content["user"], str)
    character = _of_kind(content["character"], str)
    room = None if content["room"] is None else _of_kind(content["room"], list)
    for name in (user, character, *(room or [])):
        if _of_kind(name, str) and not is_speaker_name(name):
            raise ValueError(name)
    return Settings(
        user,
        character,
        room,
        read_whole_number("seed", str(content["seed"]), "seed"),
        read_number("temperature", str(content["temperature"]), "temperature"),
    )


def _of_kind(value: Any, kind: type[Kind]) -> Kind:
    """Return a value that has the right type. Raises: TypeError."""
    if not isinstance(value, kind):
        raise TypeError
    return value


def _from_text(text: str, user: str) -> Transcript:
    """Return the speeches of a text; what stands before the first of them is the opening."""
    opening: list[str] = []
    speeches: list[tuple[str, list[str]]] = []
    lines = opening
    after_blank_line = True
    for line in text.split("\n"):
        name = line.removesuffix(":")
        if after_blank_line and name != line and is_speaker_name(name):
            lines = []
            speeches.append((name, lines))
        else:
            lines.append(line)
        after_blank_line = not line.strip()
    turns = [Turn(name, "\n".join(said).strip(), typed=name == user) for name, said in speeches]
    return Transcript("\n".join(opening).strip(), [turn for turn in turns if turn.text])
