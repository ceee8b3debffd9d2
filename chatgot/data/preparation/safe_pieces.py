"""Make what readers yield fit for the layout of a prepared text, whatever a hostile file had."""

import re
from collections.abc import Iterator
from functools import lru_cache

from chatgot.data.preparation.pieces import Passage, Piece, PlainText, Speech
from chatgot.data.prompts import is_speaker_name

LONGEST_NAME = 40  # characters, as chatgot.data.prompts.SPEAKER takes them
UNNAMED = "Unnamed"
COLON = ":"
BLANK_LINES = re.compile(r"\n\s*\n")
# JSON may have halves of a character, which no file can hold
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"
# NULs of torn files, the end sign of DOS, colours of terminals: no text has them
CONTROL = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+")
NAMES_REMEMBERED = 1 << 14


def safe_pieces(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield pieces with names that begin a speech, and texts with the line ends that they may have.

    Control characters are dropped, but not those of a plain text.
    A speech or passage without text is dropped.
    """
    for piece in pieces:
        if isinstance(piece, Speech):
            # as most are: there is nothing to do
            if _is_plain(piece.text) and safe_name(piece.name) == piece.name:
                yield piece
                continue
            speech = _safe_speech(piece)
            if speech is not None:
                yield speech
        elif isinstance(piece, Passage):
            text = _safe_text(piece.text).strip("\n")
            if text and not text.isspace():
                yield piece if text == piece.text else Passage(text, piece.time)
        elif isinstance(piece, PlainText):
            text = _without_surrogates(piece.text)
            yield piece if text is piece.text else PlainText(text)
        else:
            yield piece


@lru_cache(maxsize=NAMES_REMEMBERED)
def safe_name(name: str) -> str:
    """Return a name as a line `NAME:` may have it: one line, no colon, at most LONGEST_NAME."""
    name = _without_surrogates(name).replace(COLON, " ")
    shown = "".join(c if c.isprintable() else " " for c in name if c.isprintable() or c.isspace())
    name = " ".join(shown.split())[:LONGEST_NAME].rstrip()
    return name if is_speaker_name(name) else UNNAMED


def _is_plain(text: str) -> bool:
    """Return whether a text is one line in ASCII without blanks around it: a quick test."""
    return text.isascii() and text.isprintable() and text.strip() == text != ""


def _safe_speech(piece: Speech) -> Speech | None:
    """Return a speech that a line `NAME:` can begin; None: it has no text."""
    name = safe_name(piece.name)
    text = _safe_text(piece.text).strip()  # a speaker's line is one before a line with text
    if not text:
        return None
    if "\n" in text:
        text = BLANK_LINES.sub("\n", text)
    if name == piece.name and text == piece.text:
        return piece
    return Speech(name, text, piece.time)


def _safe_text(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if CONTROL.search(text):
        text = CONTROL.sub("", text)
    return _without_surrogates(text)


def _without_surrogates(text: str) -> str:
    """Return a text that UTF-8 can hold; the same object where nothing is to be done."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return SURROGATE.sub(REPLACEMENT, text)
    return text
