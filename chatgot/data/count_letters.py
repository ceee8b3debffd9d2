"""Count how usual the letters above ASCII are in each language, and write alphabets.txt.

Run as `python -m chatgot.data.count_letters FOLDER...`; the folders hold message catalogues of
programs, `LANGUAGE/LC_MESSAGES/PROGRAM.mo`, as /usr/share/locale does.
"""

import gettext
import math
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from chatgot.data.alphabets import BOUNDARY, NATS_PER_LEVEL, TABLE

# The language in the table -> the languages of the catalogues
LATIN = (
    "pl cs sk hu sl hr=hr,sr@latin,bs ro sq tr az de fr es pt=pt,pt_BR it nl sv da nb=nb,nn,no fi "
    "is ca gl eu et ga eo lt lv vi"
)
OTHERS = "ru bg uk be sr mk kk el he ar fa th"
IDEOGRAPHIC = "zh_CN=zh_CN,zh_Hans zh_TW=zh_TW,zh_Hant ja ko"
# Lists of names, not messages; and programs whose messages measure the guess
LEFT_OUT = re.compile(
    r"iso_|xdg|xkey|gtk20|coreutils|dpkg|apt|make|sed|shadow|psmisc|libapt|diffutils|python-apt"
    r"|gettext|Linux-PAM|grep|postgres|initdb"
)
PLACEHOLDER = re.compile(r"%\([a-z_]+\)[sd]|%-?[0-9]*[lzh]*[a-zA-Z]|[\x00-\x1f_]")
WORD = re.compile(r"[\w\u0300-\u0323\u0e31-\u0e4e\u064b-\u0652]+")
MARKS_OF_CP1258 = "\u0302\u0306\u031b"  # circumflex, breve and horn are parts of its letters
RARE = 1e-4  # share of a language's letters: below it, a letter is a foreign one
SMOOTHING = 4.0  # so many letters without a known neighbour are added to each neighbour's letters
MIN_COUNT = 3
MAX_LINE = 100  # characters of a line of the table
HEADER = """\
# Made by `python -m chatgot.data.count_letters`: counts of letters in the translated messages of
# free programs. Language, table, level (half a nat of surprise each), letters or pairs of letters.
"""


def messages(folders: Iterable[Path], language: str) -> Iterator[str]:
    """Yield the distinct translated messages that are not all ASCII."""
    known = set()
    for folder in folders:
        for path in sorted(folder.glob(f"**/{language}/LC_MESSAGES/*.mo")):
            if LEFT_OUT.match(path.name):
                continue
            with path.open("rb") as file:
                try:
                    catalogue = gettext.GNUTranslations(file)
                except (OSError, UnicodeDecodeError, ValueError):
                    continue
            for key, message in vars(catalogue)["_catalog"].items():
                if key and not message.isascii() and message not in known:
                    known.add(message)
                    yield PLACEHOLDER.sub(" ", message)


def count_letters(language: str, texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """Return how often each letter above ASCII occurs, and each pair with such a letter."""
    letters: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    for text in texts:
        for word in WORD.findall(text):
            if word.isascii():
                continue
            characters = BOUNDARY + _as_on_code_pages(word, language) + BOUNDARY
            for pair in map("".join, pairwise(characters)):
                if not pair.isascii():
                    pairs[pair] += 1
            letters.update(c for c in characters if c > "\x7f")
    return letters, pairs


def _as_on_code_pages(word: str, language: str) -> str:
    """Return a word in lower case, its letters as the language's old code pages have them."""
    if language == "tr":
        return word.replace("İ", "i").replace("I", "ı").lower()
    word = word.lower()
    if language == "ro":
        return word.replace("ș", "ş").replace("ț", "ţ")
    if language == "vi":
        return "".join(map(_with_marks, word))
    return word


def _with_marks(letter: str) -> str:
    """Return a Vietnamese letter in Windows-1258: the tone is a character of its own."""
    base, *marks = list(unicodedata.normalize("NFD", letter))
    own = "".join(mark for mark in marks if mark in MARKS_OF_CP1258)
    tone = "".join(mark for mark in marks if mark not in MARKS_OF_CP1258)
    whole = unicodedata.normalize("NFC", letter)
    if whole in "àáâãèéêìíòóôõùúý":
        return whole
    return unicodedata.normalize("NFC", base + own) + tone


def alphabet_rows(language: str, texts: Iterable[str]) -> Iterator[str]:
    letters, pairs = count_letters(language, texts)
    total = letters.total()
    usual = {letter: n / total for letter, n in letters.items() if n / total > RARE}
    yield from _rows(language, "letters", {c: -math.log(p) for c, p in usual.items()})
    for table, letter_at in (("left", 1), ("right", 0)):
        neighbours: Counter[str] = Counter()
        for pair, n in pairs.items():
            if pair[letter_at] > "\x7f":
                neighbours[pair[1 - letter_at]] += n
        surprises = {}
        for pair, n in pairs.items():
            letter = pair[letter_at]
            neighbour = pair[1 - letter_at]
            # a pair of two letters above ASCII is in the left table only
            if letter not in usual or n < MIN_COUNT or (letter_at == 0 and neighbour > "\x7f"):
                continue
            smoothed = (n + SMOOTHING * usual[letter]) / (neighbours[neighbour] + SMOOTHING)
            surprises[pair] = -math.log(smoothed)
        yield from _rows(language, table, surprises)


def character_rows(language: str, texts: Iterable[str]) -> Iterator[str]:
    counts = Counter(c for text in texts for c in text if c > "\x7f")
    total = counts.total()
    surprises = {c: -math.log(n / total) for c, n in counts.items() if n > 1}
    yield from _rows(language, "characters", surprises)


def _rows(language: str, table: str, surprises: dict[str, float]) -> Iterator[str]:
    levels = defaultdict(list)
    for entry, nats in surprises.items():
        levels[round(nats / NATS_PER_LEVEL)].append(entry)
    for level, entries in sorted(levels.items()):
        width = len(entries[0])
        text = "".join(sorted(entries))
        length = (MAX_LINE - 24) // width * width
        for start in range(0, len(text), length):
            yield f"{language} {table} {level} {text[start : start + length]}"


def main(folders: list[Path]) -> None:
    rows: list[str] = []
    for names, make_rows in (
        (f"{LATIN} {OTHERS}", alphabet_rows),
        (IDEOGRAPHIC, character_rows),
    ):
        for name in names.split():
            language, _, catalogues = name.partition("=")
            texts = (
                text
                for catalogue in (catalogues or language).split(",")
                for text in messages(folders, catalogue)
            )
            rows.extend(make_rows(language, texts))
    TABLE.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
