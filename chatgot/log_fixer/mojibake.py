"""Find and mend mojibake: UTF-8 that was read in a wrong encoding and written again."""

import re

import ftfy
from ftfy.badness import is_bad
from ftfy.chardata import CHARMAP_ENCODINGS

LONGEST_LINE = 1 << 16  # characters; mojibake in a longer line is not mended


def _mojibake_pattern() -> re.Pattern[str]:
    """Match text that may be mojibake: a C1 control, or two characters that were UTF-8 bytes.

    That is: the first two bytes of a UTF-8 sequence, misread in an encoding that ftfy knows.
    """
    pairs = ["[\x80-\x9f]"]
    for encoding in CHARMAP_ENCODINGS:
        lead = bytes(range(0xC2, 0xF5)).decode(encoding)
        tail = bytes(range(0x80, 0xC0)).decode(encoding)
        pairs.append(f"[{re.escape(lead)}][{re.escape(tail)}]")
    return re.compile("|".join(pairs))


MOJIBAKE = _mojibake_pattern()
ABOVE_ASCII = re.compile("[^\x00-\x7f]+")
# Up to this many suspects, one regex of all suspects is faster than scanning every run. With more
# it would take quadratic time.
FEW_SUSPECTS = 64
ASCII_TO_BLANK = bytes([0x20] * 0x80) + bytes(range(0x80, 0x100))


def may_hold_mojibake(utf8: bytes) -> bool:
    """Return whether ftfy has to look at these lines: some run above ASCII looks like mojibake.

    For a block the answer is True if it is for any of its lines. Looking only once at each
    distinct run is 30 times faster.
    """
    runs = b" ".join(set(utf8.translate(ASCII_TO_BLANK).split())).decode()
    if not MOJIBAKE.search(runs):
        return False
    suspects = {run for run in runs.split(" ") if MOJIBAKE.search(run)}
    return any(is_bad(context) for context in _contexts(utf8.decode(), suspects))


def _contexts(text: str, suspects: set[str]) -> set[str]:
    """Return each suspect run with up to two characters of its line before and after it."""
    pattern = ABOVE_ASCII
    if len(suspects) <= FEW_SUSPECTS:
        longest_first = sorted(suspects, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)))
    contexts = set()
    for run in pattern.finditer(text):
        before = text[max(run.start() - 2, 0) : run.start()]
        after = text[run.end() : run.end() + 2]
        is_whole = (before[-1:] + after[:1]).isascii()  # a run, not a part of one
        if is_whole and run[0] in suspects:
            contexts.add(before.rpartition("\n")[2] + run[0] + after.partition("\n")[0])
    return contexts


def is_suspect(line: str) -> bool:
    return not line.isascii() and may_hold_mojibake(line.encode())


def fix_once(line: str) -> str:
    """Return a line with one layer of mojibake undone; the same line where there is none."""
    return ftfy.fix_encoding(line, restore_byte_a0=False, replace_lossy_sequences=False)
