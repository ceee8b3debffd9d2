"""Speeches and passages from whatever text a file has, in the shape that pieces must have."""

from functools import lru_cache

from chatgot.data.preparation.pieces import Passage, Speech

LONGEST_SHOWN = 100  # characters
NAMES_REMEMBERED = 1 << 12


def speech_of(name: str, text: str) -> Speech | Passage | None:
    """Return what somebody says; without a name a passage; None: it has no text."""
    words = spoken_text(text)
    if not words:
        return None
    speaker = speaker_name(name)
    return Speech(speaker, words) if speaker else Passage(words)


def passage_of(text: str) -> Passage | None:
    """Return text that nobody speaks, with its blank lines; None: it has none."""
    if "\n" in text or "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = [line.rstrip() for line in text.split("\n")]
        words = "\n".join(lines).strip("\n")
    else:
        words = text.strip()
    return Passage(words) if words else None


def shown(words: str, most: int = LONGEST_SHOWN) -> str:
    """Return words of a file as titles and messages may have them: one line, not too long."""
    line = " ".join(words[: 2 * most].split())[:most]
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)


@lru_cache(maxsize=NAMES_REMEMBERED)
def speaker_name(name: str) -> str:
    """Return a name on one line, without colons and characters that cannot be shown."""
    visible = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in name)
    return " ".join(visible.replace(":", " ").split())


def spoken_text(text: str) -> str:
    """Return a text without blank lines and blanks at the ends of lines."""
    if "\n" not in text and "\r" not in text:
        return text.strip()
    lines = (line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return "\n".join(line for line in lines if line).strip()
