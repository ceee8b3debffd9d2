"""Quotes, dashes, ellipses and odd spaces, as a keyboard has them."""

import re

PLAIN = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u2032\u02bc\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
    **dict.fromkeys("\u2014\u2015", "--"),
    "\u2026": "...",
    # spaces of other widths, that break no line, or that end one
    **dict.fromkeys("\u00a0\u1680\u202f\u205f\u3000\u2028\u2029", " "),
    **dict.fromkeys(map(chr, range(0x2000, 0x200B)), " "),
    # not seen: zero width space, word joiner, byte order mark, soft hyphen
    **dict.fromkeys("\u200b\u2060\ufeff\u00ad", ""),
}
ODD = re.compile(f"[{''.join(PLAIN)}]")


def in_plain_characters(text: str) -> tuple[str, int]:
    """Return a text with quotes, dashes and spaces in ASCII, and how many were replaced."""
    if text.isascii():
        return text, 0
    return ODD.subn(lambda match: PLAIN[match[0]], text)
