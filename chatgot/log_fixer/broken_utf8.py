r"""Lines of UTF-8 with broken characters: what they say, and how they are told from other lines.

CESU-8 writes a character beyond U+FFFF as two surrogates of three bytes each, and modified UTF-8
(Java) a NUL as `\xc0\x80`; both are read. Torn characters and other overlong forms stay visible.
"""

import re
from dataclasses import dataclass

from chatgot.data.encoding import ASCII, UTF8_SEQUENCE, is_mostly_utf8

# An incomplete UTF-8 character at the end of a line
_CUT_OFF = re.compile(rb"(?:[\xc2-\xf4]|[\xe0-\xf4][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2})[\r\n]*\Z")
NUL = b"\xc0\x80"
_SURROGATES = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")
_OTHER_FORM = re.compile(rb"%s|%s" % (NUL, _SURROGATES.pattern))
# The mark of UTF-16 where UTF-16 does not follow is noise; in code pages it is `ÿþ` or `яю`
_FALSE_MARK = re.compile(rb"\xff\xfe|\xfe\xff")
# In no code page do these bytes begin a word
_TORN_EMOJI = re.compile(rb"\xf0\x9f[\x80-\xbf]?(?![\x80-\xff])")
_TORN = re.compile(
    rb"(?P<lead>[\xc2-\xf4])(?![\x80-\xff])"
    rb"|(?:\xe0[\xa0-\xbf]|[\xe1-\xef][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]?"
    rb"|[\xf1-\xf3][\x80-\xbf]{1,2}|\xf4[\x80-\x8f][\x80-\xbf]?)(?![\x80-\xff])"
    # forms that are too long, and halves of a pair of surrogates
    rb"|(?P<overlong>[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}"
    rb"|\xed[\xa0-\xbf][\x80-\xbf])(?![\x80-\xff])"
    # the end of a character whose beginning is missing
    rb"|^[\x80-\xbf]{1,3}(?![\x80-\xff])"
)

_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
# In no language does a capital above ASCII end a word in small letters
_CUT_OFF_WORD = re.compile(rb"[a-z][\xc2-\xdf][\r\n]*\Z")

CUT_OFF_BYTES = 3  # at most, of the last character; they count as one
_NOT_CONTINUING = bytes({*range(0x100)} - {*range(0x80, 0xC0)})
MANY_TORN_BYTES = 8  # a line with more of them is in another encoding


def is_broken_utf8(line: bytes, high: bytes) -> bool:
    """Return whether a line that is not UTF-8 is so for the most part.

    high: its bytes above ASCII.
    """
    if _FALSE_MARK.match(line) and not line.lstrip(b"\xfe\xff").translate(None, ASCII):
        return True
    if NUL in line:
        line = line.replace(NUL, b"\0")
        high = line.translate(None, ASCII)
        if not high:
            return True
    # Each whole character has one byte at least that continues it, and there may be one broken
    # byte for each
    if len(high) > 3 * len(high.translate(None, _NOT_CONTINUING)) + CUT_OFF_BYTES:
        return False
    whole = UTF8_SEQUENCE.findall(line)
    stray = len(high) - len(b"".join(whole))
    if not whole:
        return b"\xf0\x9f" in line and _TORN_EMOJI.sub(b"", line).isascii()
    if is_mostly_utf8(len(whole), stray):
        return True
    if not is_mostly_utf8(len(whole), stray - CUT_OFF_BYTES):
        return False
    cut_off = _CUT_OFF.search(line)
    if cut_off is None:
        return False
    stray -= len(cut_off[0].rstrip(b"\r\n"))
    return is_mostly_utf8(len(whole), stray + 1)


def decoded(line: bytes) -> list[tuple[int, str]]:
    """Return the parts of a line, each with its start, decoded.

    Every byte that is broken becomes one of U+DC80 to U+DCFF (`surrogateescape`).
    """
    parts = []
    end = 0
    for form in _OTHER_FORM.finditer(line):
        parts.append((end, line[end : form.start()].decode("utf-8", "surrogateescape")))
        parts.append((form.start(), _character(form[0])))
        end = form.end()
    parts.append((end, line[end:].decode("utf-8", "surrogateescape")))
    return parts


def cesu_bytes(line: bytes) -> int:
    """Return how many bytes are pairs of surrogates."""
    return len(b"".join(_SURROGATES.findall(line))) if b"\xed" in line else 0


def _character(form: bytes) -> str:
    if form == NUL:
        return "\0"
    surrogates = form.decode("utf-8", "surrogatepass")
    return surrogates.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


@dataclass(frozen=True)
class TornUtf8:
    """Places where a character of UTF-8 may have been torn."""

    lead: int | None  # a first byte that stands alone: in a code page it is a letter
    is_overlong: bool  # all of them are forms that are too long


def torn_utf8(line: bytes) -> TornUtf8 | None:
    """Return what is torn in a line without whole characters of UTF-8 that may be UTF-8, or None.

    Several letters of a code page look like torn characters, too. So at most one lone byte counts.
    """
    if len(line.translate(None, ASCII)) > MANY_TORN_BYTES:
        return None
    rest = _TORN.sub(b"", line)
    if not rest.isascii():
        return None
    places = list(_TORN.finditer(line))
    leads = [place["lead"] for place in places if place["lead"]]
    if not places or len(leads) > 1:
        return None
    return TornUtf8(leads[0][0] if leads else None, all(place["overlong"] for place in places))


def missing_bytes(line: bytes) -> int:
    """Return how many bytes the character lacks that a line is cut off in; 0: there is none."""
    cut_off = _CUT_OFF.search(line)
    if cut_off is None:
        return 0
    torn = cut_off[0].rstrip(b"\r\n")
    if torn[0] < 0xE0:
        return 2 - len(torn)
    return (3 if torn[0] < 0xF0 else 4) - len(torn)


def goes_on(line: bytes, missing: int) -> bool:
    """Return whether a line has the end of a character whose beginning ended an earlier line.

    Before it may be what begins each line of a log, in ASCII.
    """
    run = _HIGH_RUN.search(line)
    if run is None:
        return False
    tail = run[0][:missing]
    if len(tail) < missing or tail.translate(None, _NOT_CONTINUING) != tail:
        return False
    try:
        line[run.start() + missing :].decode()
    except UnicodeDecodeError:
        return False
    return True


def split_lead(line: bytes, following: bytes) -> int | None:
    """Return the first byte of a character that is plainly split between two lines, or None."""
    if not _CUT_OFF_WORD.search(line) or not goes_on(following, 1):
        return None
    return line.rstrip(b"\r\n")[-1]


def leads_in(high: bytes, candidates: set[int]) -> set[int]:
    """Return which of these first bytes of UTF-8 characters occur."""
    return {lead for lead in candidates if lead in high}
