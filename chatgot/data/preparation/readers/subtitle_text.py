"""The text of one subtitle without its tags, and who is named in it."""

import html
import re

VOICE = "\x01"  # stands before and after the name of a WebVTT voice, at the start of a line
LONGEST_TAG = 300  # characters

# All of ASS, in which other braces are comments; elsewhere only what can be no text
BRACES = re.compile(r"\{[^{}]*\}")
TAG_BRACES = re.compile(r"\{[ \t]*(?:[\\=*/][^{}]*|[A-Za-z]:[^{}]*)\}")
DRAWING = re.compile(r"\{[^{}]*\\p[1-9][^{}]*\}.*?(?:\{[^{}]*\\p0[^{}]*\}|\Z)", re.DOTALL)
BREAK_TAG = re.compile(r"<[ \t]*br[ \t]*/?>", re.IGNORECASE)
RUBY = re.compile(r"<rt>[^<]*(?:</rt>)?")
VOICE_TAG = re.compile(r"(?m:^[ \t]*[-–—][ \t]*)?<v(?:\.[^\s>]*)?[ \t]+([^<>\n]{1,100})>")
TAG = re.compile(rf"<[ \t]*/?[ \t]*(?:[A-Za-z]|\d\d:)[^<>]{{0,{LONGEST_TAG}}}>|</>|<[ic]?\.>")
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8});")
# Marks that show nothing: of direction, widths and joined files
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e"))
INVISIBLE.update(dict.fromkeys(map(ord, "\u2066\u2067\u2068\u2069\u00ad\x00\x01")))
INVISIBLE.update(dict.fromkeys(map(ord, "\u00a0\u202f\u2007"), " "))
MAY_BE_INVISIBLE = re.compile(
    "[\x00\x01\u00a0\u00ad\u2007\u200b\u200e\u200f\u202a-\u202f\u2066-\u2069\ufeff]"
)


def shown_text(text: str, is_ass: bool = False) -> str:
    r"""Return what a viewer sees of a subtitle; "\n" between its lines.

    A WebVTT voice becomes a line that begins with its name, between two VOICE.
    """
    if not (text.isascii() and text.isprintable()) and MAY_BE_INVISIBLE.search(text):
        text = text.translate(INVISIBLE)
    if "{" in text:
        if "\\p" in text:
            text = DRAWING.sub("", text)
        text = (BRACES if is_ass else TAG_BRACES).sub("", text)
    if "\\" in text:
        soft = " " if is_ass else "\n"
        text = text.replace("\\N", "\n").replace("\\n", soft).replace("\\h", " ")
    if "<" in text and not is_ass:
        text = RUBY.sub("", BREAK_TAG.sub("\n", text))
        text = TAG.sub("", VOICE_TAG.sub(_voice_line, text))
    if "&" in text and not is_ass:
        text = ENTITY.sub(_character, text)
    return text


def _voice_line(match: re.Match[str]) -> str:
    return f"\n{VOICE}{html.unescape(match[1]).strip()}{VOICE}"


def _character(match: re.Match[str]) -> str:
    character = html.unescape(match[0]).translate(INVISIBLE)
    return character if character.isprintable() else " "
