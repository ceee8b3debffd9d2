r"""Letters that a terminal shows as lines: `\x1b(0lqk\x1b(B` is ┌─┐.

Programs that draw by curses switch to the special graphics of DEC and back for each line of a box:
by `\x1b(0` and `\x1b(B`, or by the control characters SO and SI.
"""

import re
from collections import Counter

# Source: VT220 Programmer Reference Manual, table 2-4. The letters b to e are signs of control
# characters, which nobody draws with: a run that has them is a word.
_GRAPHICS = str.maketrans("`afghijklmnopqrstuvwxyz{|}~", "◆▒°±␤␋┘┐┌└┼⎺⎻─⎼⎽├┤┴┬│≤≥π≠£·")
_CSI = r"\x1b\[[0-?]*[ -/]*[@-~]"
_LINES = "[ `afgjklmnqtuvwx~]"
# Up to the switch back; without one in its line, a run of lines and blanks only
_BY_ESCAPE = re.compile(
    rf"\x1b\(0((?:{_CSI}|[ -af-~])*+(?=\x1b\([^0])|(?:{_CSI}|{_LINES})*+(?=[\r\n]|\Z))"
)
_BY_SHIFT = re.compile(rf"\x0e((?:{_CSI}|{_LINES})++)\x0f")
_LETTERS = re.compile(rf"{_CSI}|[^\x1b]+")
# Terminals of old end colours by a switch to the usual letters as well
_IDLE_SHIFT = re.compile(rf"({_CSI}|\x1b[()][0-9A-Z])\x0f+|\x0f+(?=\x1b[(\[])")


def draw_lines(text: str, counts: Counter[str]) -> str:
    """Replace the letters that draw; remove shifts to the usual letters next to a sequence."""
    if "\x1b(0" in text:
        text = _BY_ESCAPE.sub(lambda run: "\x1b(0" + _drawn(run[1]), text)
    if "\x0e" in text or "\x0f" in text:
        text, drawn = _BY_SHIFT.subn(lambda run: _drawn(run[1]), text)
        text, idle = _IDLE_SHIFT.subn(lambda shift: shift[1] or "", text)
        counts["escape_sequences"] += 2 * drawn + idle
    return text


def _drawn(run: str) -> str:
    return _LETTERS.sub(
        lambda part: part[0] if part[0][0] == "\x1b" else part[0].translate(_GRAPHICS), run
    )
