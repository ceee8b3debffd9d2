"""Which prompts suit a text: its own speakers, or how its paragraphs begin."""

import re
from collections import Counter

# A line of its own that ends with a colon, before a line with text: KING HENRY:
SPEAKER = re.compile(r"^([^\s:][^\n:]{0,39}):\n(?=\S)", re.MULTILINE)
LEAST_SPEECHES = 3  # of a speaker: a heading may end with a colon as well
PARAGRAPH = re.compile(r"\n\s*\n")
MOST_WORDS = 4  # of a prompt that is the beginning of a paragraph
MOST_CHARACTERS = 40


def is_speaker_name(name: str) -> bool:
    """Return whether a line `NAME:` would be a speaker's, and can be shown."""
    match = SPEAKER.match(f"{name}:\n.")
    return match is not None and match[1] == name and name.isprintable()


def prompts_of(text: str) -> tuple[list[str], str]:
    """Return up to two prompts for samples, and in words what they are.

    They are the lines of the two speakers that speak most often; in a text without such lines, the
    first words of two paragraphs. Empty: the text has no word that can be shown.
    """
    counts = Counter(match[1] for match in SPEAKER.finditer(text) if match[1].isprintable())
    often = [name for name, count in counts.most_common(2) if count >= LEAST_SPEECHES]
    if len(often) == 2:
        return [f"{name}:\n" for name in often], "the two speakers that speak most often"
    paragraphs = [paragraph for paragraph in PARAGRAPH.split(text) if _first_words(paragraph)]
    if len(paragraphs) < 2:
        paragraphs = [line for line in text.split("\n") if _first_words(line)]
    if not paragraphs:
        return [], "none"
    places = sorted({0, len(paragraphs) // 2})
    prompts = [_first_words(paragraphs[place]) for place in places]
    return list(dict.fromkeys(prompts)), "how paragraphs of the text begin"


def _first_words(paragraph: str) -> str:
    """Return the first words of a paragraph as they are there; empty: nothing to show."""
    words = re.match(rf"(?:\S+[ \t]*){{1,{MOST_WORDS}}}", paragraph.lstrip())
    shown = words[0].rstrip()[:MOST_CHARACTERS] if words else ""
    return shown if shown.isprintable() else ""
