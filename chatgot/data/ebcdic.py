"""Is a text in EBCDIC, the encoding of mainframes? Its letters and blanks are no ASCII at all."""

EBCDIC_ADVICE = (
    "is in EBCDIC, the encoding of mainframes; convert it to UTF-8 first, for example by "
    "iconv -f IBM1047 -t UTF-8"
)
SHORTEST = 16  # bytes; fewer say too little
# Source: IBM code pages 37 and 1047, which agree here
_BLANK = b"\x40"
_LETTERS_AND_DIGITS = b"".join(
    bytes(range(first, last + 1))
    for first, last in (
        (0x81, 0x89),
        (0x91, 0x99),
        (0xA2, 0xA9),
        (0xC1, 0xC9),
        (0xD1, 0xD9),
        (0xE2, 0xE9),
        (0xF0, 0xF9),
    )
)
_LINE_ENDS = b"\x0d\x15\x25"
_BLANKS_OF_ASCII = b" \t\n"
BLANK_SHARE = 0.05
SHARE_OF_LETTERS = 0.7  # of the bytes that are no blanks


def is_ebcdic(sample: bytes) -> bool:
    """Return whether bytes are text in EBCDIC: its letters, with its blanks between them."""
    if len(sample) < SHORTEST:
        return False
    others = sample.translate(None, _BLANK + _LINE_ENDS)
    blanks = sample.count(_BLANK)
    if blanks < BLANK_SHARE * len(sample):
        return False
    if len(others) - len(others.translate(None, _BLANKS_OF_ASCII)) > BLANK_SHARE * len(others):
        return False
    letters = len(others) - len(others.translate(None, _LETTERS_AND_DIGITS))
    return letters > SHARE_OF_LETTERS * len(others)
