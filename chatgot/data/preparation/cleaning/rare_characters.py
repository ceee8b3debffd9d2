"""Maps characters that are too rare to be learned to something that is not: `--min_count`.

It needs the counts of the whole text, so it comes after all else, as a second reading of it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from chatgot.data.preparation.cleaning.plain_characters import PLAIN
from chatgot.data.vocabulary import END_OF_TEXT

SUBSTITUTE = "\u25a1"  # a white square, for a character without a plain form
KEPT = "\n :"  # the layout of the text
LETTERS = {
    "\u00df": "ss",
    "\u00e6": "ae",
    "\u00c6": "Ae",
    "\u0153": "oe",
    "\u0152": "Oe",
    "\u00f8": "o",
    "\u00d8": "O",
    "\u0142": "l",
    "\u0141": "L",
    "\u0111": "d",
    "\u0110": "D",
    "\u00f0": "d",
    "\u00d0": "D",
    "\u00fe": "th",
    "\u00de": "Th",
    "\u0131": "i",
}


def plain_forms(counts: Mapping[str, int], min_count: int) -> dict[str, str]:
    """Return {character: what is written for it} for all that are there less than min_count times.

    A letter loses its marks, a quote becomes that of a keyboard, a capital a small letter, as long
    as that is frequent itself; else the character becomes SUBSTITUTE, or nothing if it is not seen.
    """
    frequent = {character for character, count in counts.items() if count >= min_count}
    frequent.update(KEPT)
    return {
        character: _plain_form(character, frequent)
        for character in sorted(counts)
        if character not in frequent
    }


def with_plain_forms(chunks: Iterable[str], forms: Mapping[str, str]) -> Iterator[str]:
    """Yield a text with its rare characters replaced; lines with the end-of-text token stay.

    chunks: cut anywhere.
    """
    if not forms:
        yield from chunks
        return
    rare = f"[{''.join(map(re.escape, forms))}]"
    within_line = re.compile(rare)
    whole_lines = re.compile(rf"^{re.escape(END_OF_TEXT)}$|{rare}", re.MULTILINE)

    def replacement(match: re.Match[str]) -> str:
        return forms.get(match[0], match[0])

    begun = ""  # of a line; it may become the token's
    is_within = False  # a line, whose beginning was yielded
    for chunk in chunks:
        text = begun + chunk
        begun = ""
        if is_within:
            end = text.find("\n") + 1 or len(text)
            yield within_line.sub(replacement, text[:end])
            is_within = not text[:end].endswith("\n")
            text = text[end:]
        start = text.rfind("\n") + 1
        if END_OF_TEXT.startswith(text[start:]):
            begun = text[start:]
            text = text[:start]
        if text:
            yield whole_lines.sub(replacement, text)
            is_within = not text.endswith("\n")
    yield whole_lines.sub(replacement, begun)


def _plain_form(character: str, frequent: set[str]) -> str:
    if character in PLAIN and set(PLAIN[character]) <= frequent:
        return PLAIN[character]
    without_marks = "".join(
        part
        for part in unicodedata.normalize("NFKD", character)
        if unicodedata.category(part)[0] != "M"
    )
    candidates = [
        without_marks,
        LETTERS.get(character, ""),
        character.lower(),
        character.upper(),
        without_marks.lower(),
    ]
    for candidate in candidates:
        if candidate and set(candidate) <= frequent:
            return candidate
    if unicodedata.category(character) in ("Mn", "Cf"):
        return ""
    return SUBSTITUTE


def replaced_count(counts: Mapping[str, int], forms: Mapping[str, str]) -> Counter[str]:
    """Return how many characters got a plain form, the substitute, or were left out."""
    result: Counter[str] = Counter()
    for character, form in forms.items():
        if form == SUBSTITUTE:
            kind = f"rare characters written as {SUBSTITUTE}"
        elif form:
            kind = "rare characters in their plain form"
        else:
            kind = "rare marks left out"
        result[kind] += counts[character]
    return result
