"""What does a byte above ASCII look like in a single-byte code page, next to its neighbours?"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

from chatgot.data.alphabets import BOUNDARY

# Nats of surprise
UNASSIGNED = 12.0  # no character, or a C1 control
USUAL_SIGN = 3.5
LESS_USUAL_SIGN = 5.0
FRAME = 7.0
ODD_SIGN = 8.0
CURRENCY_SIGN = 11.0  # nobody means ¤: it is € in ISO 8859-15
SIGN_IN_WORD = 4.0  # B³¹d
CAPITAL_IN_WORD = 4.0  # grÓe
TWO_SCRIPTS = 6.0  # Josи
NEXT_TO_DIGIT = 2.5  # Ł5
LONE_LETTER = 2.0
LONE_CAPITAL = 4.0
MISPLACED = 3.0  # ¿ after a word, ’ or ® before one, ½ after a letter

USUAL_SIGNS = "°§€µ£«»“”„’–…±·•©®²½×№\xa0"
LESS_USUAL_SIGNS = "‘—¡¿´ºª³¼¾™†‡¬¶‰¢¥÷"
OPENING = "¡¿"
CLOSING = "’®"
FRACTIONS = "¼½¾"
SUPERSCRIPTS = "²³"
IN_WORDS = "’·"
PREFIXES = "µ"  # micro, before the letter of a unit
FRAMES = re.compile("[\u2500-\u25ff]")
SCRIPTS = (
    (0x250, "latin"),
    (0x300, "other"),
    (0x370, "latin"),  # the marks that cp1258 puts after a letter
    (0x400, "greek"),
    (0x530, "cyrillic"),
    (0x590, "other"),
    (0x600, "hebrew"),
    (0x700, "arabic"),
    (0xE00, "other"),
    (0xE80, "thai"),
)

CENTRAL = "pl cs sk hu sl hr ro sq de"
WESTERN = "de fr es pt it nl sv da nb fi is ca gl eu et ga sq"
CYRILLIC = "ru bg uk be sr mk kk"
BALTIC = "lt lv et"
# Lists of names are in all of them
CENTRAL += " " + CENTRAL.replace(" ", "+")
WESTERN += " " + WESTERN.replace(" ", "+")

# Codec -> what speaks against it before a byte is seen, in nats; the languages that used it
CODE_PAGES: dict[str, tuple[float, str]] = {
    "cp1252": (0.0, WESTERN),
    "cp1250": (4.5, CENTRAL),
    "cp1251": (4.5, CYRILLIC),
    "cp1253": (5.0, "el"),
    "cp1254": (5.0, "tr az"),
    "cp1255": (5.0, "he"),
    "cp1256": (5.0, "ar fa"),
    "cp1257": (5.5, BALTIC),
    "cp1258": (6.0, "vi"),
    "cp874": (5.0, "th"),
    "koi8-r": (5.0, "ru"),
    "koi8-u": (6.0, "uk"),
    "cp866": (5.0, "ru bg uk be"),
    "iso8859-2": (5.5, CENTRAL),
    "cp852": (5.5, CENTRAL),
    "cp850": (5.5, WESTERN),
    "cp437": (6.0, "de fr es it nl sv fi ca"),
    "cp857": (6.0, "tr az"),
    "cp737": (6.0, "el"),
    "cp862": (6.0, "he"),
    "cp775": (6.5, BALTIC),
    "iso8859-7": (5.5, "el"),
    "iso8859-5": (6.0, CYRILLIC),
    "iso8859-6": (6.0, "ar"),
    "iso8859-8": (6.0, "he"),
    "iso8859-13": (6.5, BALTIC),
    "cp869": (7.0, "el"),
    "cp720": (7.0, "ar"),
    "cp1125": (7.0, "uk"),
    "mac-roman": (8.0, WESTERN),
    "cp855": (8.0, "ru sr bg mk"),
    "iso8859-15": (5.5, "fr fi et"),
    "iso8859-3": (9.0, "eo tr"),
    "mac-cyrillic": (8.0, "ru uk"),
    "cp860": (8.0, "pt"),
    "cp861": (8.0, "is"),
    "cp863": (8.5, "fr"),
    "cp865": (8.0, "da nb sv"),
    "iso8859-4": (7.5, BALTIC),
    "iso8859-10": (9.0, "is et lt"),
    "iso8859-16": (8.5, "ro pl hu"),
    "mac-latin2": (9.0, CENTRAL),
    "mac-croatian": (9.5, "hr sl"),
    "mac-romanian": (9.5, "ro"),
    "mac-iceland": (9.5, "is"),
    "mac-greek": (9.0, "el"),
    "mac-turkish": (9.0, "tr"),
}
# The table of letters has the cedilla, as most code pages have
COMMA_BELOW = str.maketrans("șț", "şţ")


@dataclass(frozen=True)
class Sign:
    """A character of a code page, and what counts about it."""

    lower: str
    script: str  # "" for what is no letter
    upper_case: bool
    lower_case: bool
    nats: float  # of what is no letter, alone


@dataclass(frozen=True)
class Reading:
    """A byte in a code page: the surprise of its shape, and the letter that it is between others.

    `letters` is empty for what is no letter.
    """

    nats: float
    letters: tuple[str, ...]


@cache
def signs(codec: str) -> tuple[Sign, ...]:
    """Return what each of the 256 bytes is in a code page."""
    return tuple(_sign(bytes([byte]).decode(codec, "replace"), codec) for byte in range(256))


def _sign(character: str, codec: str) -> Sign:
    category = unicodedata.category(character)
    if character < "\x80":
        script = "ascii" if character.isalpha() else ""
        nats = 0.0
    elif character == "\ufffd" or character < "\xa0":
        script = ""
        nats = UNASSIGNED
    elif (category.startswith("L") and character not in "ºªµ") or category in ("Mn", "Mc"):
        code = ord(character)
        script = next((name for end, name in SCRIPTS if code < end), "other")
        nats = 0.0
    else:
        script = ""
        nats = _alone_nats(character)
    lower = "i" if character == "İ" else character.lower().translate(COMMA_BELOW)
    if script == "":
        lower = character
    return Sign(lower, script, character.isupper(), character.islower(), nats)


def _alone_nats(character: str) -> float:
    if character in USUAL_SIGNS:
        return USUAL_SIGN
    if character in LESS_USUAL_SIGNS:
        return LESS_USUAL_SIGN
    if character == "¤":
        return CURRENCY_SIGN
    return FRAME if FRAMES.match(character) else ODD_SIGN


@lru_cache(maxsize=1 << 16)
def reading(codec: str, context: bytes) -> Reading:
    """Return what the middle one of three bytes is; it is above ASCII."""
    table = signs(codec)
    before, sign, after = (table[byte] for byte in context)
    if not sign.script:
        return Reading(_sign_nats(before, sign, after), ())
    nats = 0.0
    if _is_case_fault(before, sign):
        nats += CAPITAL_IN_WORD
    if after.script == "ascii" and _is_case_fault(sign, after):
        nats += CAPITAL_IN_WORD
    if before.script and not _same_script(before, sign):
        nats += TWO_SCRIPTS
    if after.script == "ascii" and sign.script != "latin":
        nats += TWO_SCRIPTS
    if before.lower.isdigit() or after.lower.isdigit():
        nats += NEXT_TO_DIGIT
    if not before.script and not after.script:
        nats += LONE_CAPITAL if sign.upper_case else LONE_LETTER
    return Reading(nats, (_neighbour(before), sign.lower, _neighbour(after)))


def _sign_nats(before: Sign, sign: Sign, after: Sign) -> float:
    if sign.lower in PREFIXES and after.script == "ascii":
        return sign.nats + (SIGN_IN_WORD if before.script else 0.0)
    if before.script and after.script and sign.lower not in IN_WORDS:
        return sign.nats + SIGN_IN_WORD + (MISPLACED if sign.lower in FRACTIONS else 0.0)
    if sign.lower in SUPERSCRIPTS and not (before.script or before.lower.isdigit()):
        return sign.nats + MISPLACED
    opens = not before.script and bool(after.script)
    closes = bool(before.script) and not after.script
    if (sign.lower in OPENING and closes) or (sign.lower in CLOSING and opens):
        return sign.nats + MISPLACED
    return sign.nats


def _is_case_fault(before: Sign, sign: Sign) -> bool:
    return before.lower_case and sign.upper_case


def _same_script(before: Sign, sign: Sign) -> bool:
    if before.script == "ascii":
        return sign.script == "latin"
    return before.script == sign.script


def _neighbour(sign: Sign) -> str:
    return sign.lower[0] if sign.script else BOUNDARY
