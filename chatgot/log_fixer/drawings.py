"""Which lines are drawings of lines and boxes in a code page of DOS, and which bytes draw?"""

import re

BOX_BYTES = bytes.fromhex(
    "b0 b1 b2 b3 b4 b9 ba bb bc bf c0 c1 c2 c3 c4 c5 c8 c9 ca cb cc cd ce d9 da db fe"
)
# The bytes of a table's lines are also letters: ÄÄÄ, ÚÄÄ, ³ ... ³ in cp1252, and ИНН in cp1251 is
# C8 CD CD. So dashes count as a drawing only inside a run of box bytes without a letter next to it,
# and corners only together with matching dashes.
_BOX = b"[" + re.escape(BOX_BYTES) + b"]"
_RUN = rb"(?<![\x80-\xffA-Za-z])(?=%s*+(?![\x80-\xffA-Za-z]))%s*?"
_BAR = rb"[\xb3\xba]"
_FRAME = (
    rb"\xda[\xc2\xc4]+\xbf|\xc3[\xc4\xc5]+\xb4|\xc0[\xc1\xc4]+\xd9"
    rb"|\xc9[\xcb\xcd]+\xbb|\xcc[\xcd\xce]+\xb9|\xc8[\xca\xcd]+\xbc"
)
_BRANCH = rb"^[\xb3\xff \t]*[\xc0\xc3]\xc4{3}"
_TREE = rb"%s|^\xb3   " % _BRANCH
DRAWINGS = [
    _RUN % (rb"[\xb0-\xdf\xfe]", rb"[\xb0-\xdf\xfe]") + rb"(?:\xc4{3}|\xcd{3})",
    _RUN % (_BOX, _BOX) + rb"[\xc0\xc3\xda]\xc4{2}",
    # double lines, also with a title
    rb"^[ \t]*(?:\xc9\xcd.*\xcd\xbb|\xc8\xcd.*\xcd\xbc|\xcc\xcd.*\xcd\xb9)[ \t]*[\r\n]*$",
    # what `tree` prints
    _TREE,
    # bars
    rb"\xdb{4}|[\xb0-\xb2]{4}",
    # rows of tables
    rb"^[ \t]*%s[ \t].*[ \t]%s[ \t]*[\r\n]*$" % (_BAR, _BAR),
    rb"^[ \t]*%s(?:[\t -~]|%s)*%s[ \t]*[\r\n]*$" % (_BAR, _BOX, _BAR),
    rb"^[ \t]*(?:(?:%s)[ \t]*+)++[\r\n]*$" % _FRAME,
]
DRAWING = re.compile(b"|".join(DRAWINGS), re.DOTALL)
# What the lines of a drawing have in common: a quick test
_MAY_DRAW = re.compile(
    rb"\xc4\xc4|\xcd\xcd|\xdb\xdb|[\xb0-\xb2]{4}|^[ \t]*[\xb3\xba\xc8\xc9\xcc\xda\xc3\xc0]"
)
# The bytes that draw: the branches of a tree, bars, or a run without a letter next to it
_DRAWN = re.compile(rb"%s|(?<![\x80-\xffA-Za-z])%s+(?![\x80-\xffA-Za-z])|%s" % (_TREE, _BOX, _BAR))
# Letters in cp850 that are lines or Greek in cp437, next to a letter
_ONLY_CP850 = rb"[\xb5-\xb7\xc6\xc7\xd0-\xd8\xde\xe0\xe2-\xe5\xe7-\xed]"
CP850_LETTER = re.compile(rb"[A-Za-z]%s|%s[A-Za-z]" % (_ONLY_CP850, _ONLY_CP850))
BRANCH = re.compile(_BRANCH)


def is_drawing(line: bytes, high: bytes) -> bool:
    """Return whether a line is a drawing. high: its bytes above ASCII."""
    if b"\xc4\xc4\xc4" in high and BRANCH.match(line):  # its name may be long
        return True
    if 2 * len(high.translate(None, BOX_BYTES)) > len(high) or not _MAY_DRAW.search(line):
        return False
    return bool(DRAWING.search(line))


def drawn_and_named(line: bytes) -> list[tuple[bytes, bool]]:
    """Return the parts of a drawing's line, and whether each is drawn; the others are names."""
    parts = []
    end = 0
    for drawn in _DRAWN.finditer(line):
        parts.append((line[end : drawn.start()], False))
        parts.append((drawn[0], True))
        end = drawn.end()
    parts.append((line[end:], False))
    return [part for part in parts if part[0]]


def names_in(line: bytes) -> bytes:
    """Return a drawing's line without what draws; b"" if all its bytes may be drawn."""
    if line.translate(None, BOX_BYTES).isascii():
        return b""
    parts = drawn_and_named(line)
    return b"".join(b" " if is_drawn else part for part, is_drawn in parts)


def code_page_of(line: bytes) -> str:
    """Return the code page of a drawing with letters, judged by this line alone."""
    return "cp850" if CP850_LETTER.search(line) else "cp437"
