r"""Text of a log -> text that looks the same in every program.

Cleaning works line by line and mends mojibake. It removes what is invisible (complete escape
sequences, NULs, byte order marks) and what was overwritten (earlier states of a progress bar):
`screen` draws the lines that move the cursor. Every other control character becomes a visible
escape: `\x07`, or `\x1b` for a sequence that was cut off. A cleaned line is a fixed point: cleaning
it again changes nothing.
"""

import re
from collections import Counter
from functools import lru_cache

from chatgot.log_fixer.dec_graphics import draw_lines
from chatgot.log_fixer.mojibake import (
    LONGEST_LINE,
    may_hold_mojibake,
    mended,
    mojibake_words,
    quoted_words,
)
from chatgot.log_fixer.redraws import is_alike, is_bar, is_record, is_state, keeps_alarms
from chatgot.log_fixer.screen import CURSOR, IS_MOVE, Screen

HELD_CHARACTERS = 1 << 21  # of an unfinished line; a longer line is cleaned in parts
SEQUENCE_CHARACTERS = 4096  # longest escape sequence that is never cut between two such parts

# Source: ECMA-48, 5.2 to 5.6; xterm also ends an OSC with BEL. Strings contain no control
# characters here, so an unfinished string ends where the next sequence begins.
_STRING = r"[^\x00-\x08\x0a-\x1f\x7f-\x9f]*"
_CSI = r"[0-?]*[ -/]*[@-~]"
_STRING_END = r"(?:\x1b\\|\x9c)"
_OSC = rf"{_STRING}(?:\x07|\x1b\\|\x9c)"
# The console of Linux sets its colours by strings without an end. `\x1bk` is a title of screen.
_AFTER_ESC = (
    rf"(?:\[{_CSI}|\](?:P[0-9A-Fa-f]{{7}}|R|{_OSC})|[PX^_k]{_STRING}{_STRING_END}"
    r"|[ -/]+[0-~]|[0-OQ-WYZ\\`-~])"
)
_SEQUENCE = rf"(?:\x1b{_AFTER_ESC})"
_C1_SEQUENCE = rf"(?:\x9b{_CSI}|\x9d{_OSC}|[\x90\x98\x9e\x9f]{_STRING}{_STRING_END})"
SEQUENCE = re.compile(_SEQUENCE)
# One that does not move the cursor
OTHER_SEQUENCE = re.compile(rf"(?!{IS_MOVE.pattern}){_SEQUENCE}")
UNFINISHED = re.compile(rf"\x1b(?!{_AFTER_ESC})")
# In UTF-8 that was misread as Latin-1, half of all letters contain a C1 control that could begin a
# sequence. It counts as one only if parameters and an end follow.
_PLAINLY_C1 = rf"\x9b[0-9;?]+[A-Za-z]|\x9d[0-9]+;{_OSC}"
_CP1252_TAILS = bytes(range(0x80, 0xA0)).decode("cp1252", "ignore")
_TAIL = rf"(?!{_PLAINLY_C1})[\x80-\xbf{_CP1252_TAILS}]"
_MISREAD = rf"[\xc2-\xdf]{_TAIL}|[\xe0-\xef](?:{_TAIL}){{2}}|[\xf0-\xf4](?:{_TAIL}){{3}}"
C1_INTRODUCER = re.compile("[\x90\x98\x9b\x9d-\x9f]")
C1 = re.compile(rf"(?P<misread>{_MISREAD})|(?P<sequence>{_C1_SEQUENCE})|[\x90\x98\x9b\x9d-\x9f]")

# What Jenkins hides in its console: a note in base64
CONSOLE_NOTE = re.compile(r"\x1b\[8mha:[A-Za-z0-9+/=]*\x1b\[0m")
# What tmux and screen hand on to the terminal around them; tmux doubles each ESC in it
PASSED_ON = re.compile(
    r"\x1bP(?:tmux;(?:\x1b\x1b|[^\x00-\x06\x08\x0a-\x1f\x7f-\x9f])*+"
    r"|\x1b[\]P_][^\x00-\x06\x08\x0a-\x1f\x7f-\x9f]*+)\x1b\\"
)
CLEARS = re.compile(r"\x1b\[[02]?K")
STRAY_RETURN = re.compile(r"\r(?!\n)")
# Beside control characters, what makes one program show a line in another order or as two lines.
# Marks that belong to words and emoji stay: soft hyphen, joiners, left-to-right mark and the like.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb]")
SEQUENCE_OR_CONTROL = re.compile(rf"{_SEQUENCE}|{_C1_SEQUENCE}|{CONTROL.pattern}")
MISREAD_OR_SEQUENCE = re.compile(rf"(?P<misread>{_MISREAD})|{_SEQUENCE}|{_C1_SEQUENCE}")


C1_BYTES = re.compile(rb"\xc2[\x80-\x9f]")
FORMAT_BYTES = re.compile(rb"\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xaf]|\xef\xbf[\xb9-\xbb]")
# UTF-32 that was not recognised
NULS_OF_UTF32 = re.compile(r"(?:[^\0]\0{3}){4,}")
# NULs between two characters of one line join two records
JOINING_NULS = re.compile(r"(?<=[^\0\r\n])\0++(?=[^\r\n])")
# Terminals ignore NULs in and next to escape sequences; some programs wait by sending them
_STRING_OR_NULS = r"[^\x01-\x08\x0a-\x1f\x7f-\x9f]*"
NULS_AT_SEQUENCE = re.compile(
    rf"(?<!\0)\0*+(?:\x1b\0*+[\]PX^_]{_STRING_OR_NULS}(?:\x07|\x1b\0*\\|\x9c)"
    r"|(?:\x1b\0*+\[|\x9b)[0-?\0]*+[ -/\0]*+[@-~]|\x1b[ -/\0]*[0-~])\0*"
)
END_OF_DOS_FILE = "\x1a"  # Ctrl+Z; CP/M fills the last sector with it
MENDED_LINE_NUMBERS = 20  # how many the report names
QUOTED_WORDS = 1000  # how many are remembered
CONTROL_BYTES = bytes({*range(0x20), 0x7F} - {*b"\t\n\r"})


def clean_ansi_escape_sequences(text: str) -> str:
    r"""Remove whole escape sequences: CSI, OSC, other strings, charset switches, 7-bit or 8-bit.

    A link (OSC 8) keeps its text. If a sequence is cut off, only its ESC or 8-bit introducer
    becomes `\x1b` or `\x9b`, because the characters after it may be text.
    """
    return SEQUENCE.sub("", _escape_unfinished(text, True, Counter()))


def _escape_unfinished(text: str, remove_ansi: bool, counts: Counter[str]) -> str:
    """Escape introducers of unfinished sequences; remove 8-bit sequences if `remove_ansi`."""
    if remove_ansi and "\x1bP" in text:
        text, count = PASSED_ON.subn("", text)
        counts["escape_sequences"] += count
    if "\x1b" in text:
        text, count = UNFINISHED.subn(r"\\x1b", text)
        counts["controls"] += count
    if not C1_INTRODUCER.search(text):
        return text

    def replace(match: re.Match[str]) -> str:
        if match["misread"]:
            return match[0]
        if match["sequence"]:
            if not remove_ansi:
                return match[0]
            if match[0][0] == "\x9b":
                return "\x1b[" + match[0][1:]  # the 7-bit form, which is drawn or removed
            counts["escape_sequences"] += 1
            return ""
        counts["controls"] += 1
        return _escape(match[0])

    return C1.sub(replace, text)


@lru_cache(maxsize=256)  # of millions of them, each is one string in memory
def _escape(character: str) -> str:
    code = ord(character)
    return rf"\x{code:02x}" if code < 0x100 else rf"\u{code:04x}"


def _without_nuls(match: re.Match[str]) -> str:
    return match[0].replace("\0", "")


def is_clean(block: bytes, newline: str | None, keep_mojibake: bool = False) -> bool:
    """Return whether cleaning would leave these complete 8-bit lines unchanged.

    A quick test: False may also mean that the answer would take longer.
    """
    if not block.endswith(b"\n") or len(block.translate(None, CONTROL_BYTES)) < len(block):
        return False
    if b"\r" in block and (newline or block.count(b"\r") != block.count(b"\r\n")):
        return False
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    if b"\xef\xbb\xbf" in block or C1_BYTES.search(block) or FORMAT_BYTES.search(block):
        return False
    return keep_mojibake or not may_hold_mojibake(block)


def _mended_around_sequences(line: str) -> str:
    """Mend a line, but not inside its complete escape sequences.

    While it is mended, ESC takes their place: all other ESC have become escapes before.
    """
    sequences = []

    def hide(match: re.Match[str]) -> str:
        if match["misread"]:
            return match[0]
        sequences.append(match[0])
        return "\x1b"

    hidden = mended(MISREAD_OR_SEQUENCE.sub(hide, line))
    return re.sub("\x1b", lambda _: sequences.pop(0), hidden)


class LogCleaner:
    r"""Cleans text as it comes, and counts what it changes.

    Memory is bounded, also for a line that never ends.

    remove_ansi: False keeps complete escape sequences.
    newline: "\n" replaces every line end; None keeps the line ends as they are.
    held: number of characters to keep of a line whose end has not come yet.
    keep_mojibake: True leaves mojibake as it is.
    """

    def __init__(
        self,
        remove_ansi: bool = True,
        newline: str | None = None,
        held: int = HELD_CHARACTERS,
        *,
        keep_mojibake: bool = False,
    ) -> None:
        self._remove_ansi = remove_ansi
        self._newline = newline
        self._limit = held
        self._keep_mojibake = keep_mojibake
        self._is_guess = False  # the encoding of the held text was guessed
        self._held = ""  # an unfinished line, not cleaned yet
        self._in_long_line = False
        self._written = False  # the beginning of a long line has been returned already
        self._state = ""  # the last state of a long line, cleaned
        self._line_number = 1  # of the line that is written next
        self._quoted_words: set[str] = set()  # mojibake that the log quotes
        self.mended_line_numbers: list[int] = []  # the first ones
        self.counts: Counter[str] = Counter()
        self._screen = Screen(self._finished, self._count_lines, self.counts, newline)

    def holds(self) -> bool:
        return bool(self._held) or self._in_long_line or not self._screen.is_at_rest()

    def feed_clean(self, block: bytes) -> bytes:
        """Take complete lines that are clean, while nothing is held; return what is final."""
        self._count_lines(block.count(b"\n"))
        return self._screen.pass_bytes(block) if self._remove_ansi else block

    def feed(self, text: str, is_guess: bool = False) -> str:
        """Take the next characters; return the cleaned text that later input cannot change.

        is_guess: their encoding was guessed, so what looks like mojibake may be a wrong guess.
        A line of which any part is a guess is not mended.
        """
        if is_guess == self._is_guess or not self.holds():
            self._is_guess = is_guess
            return self._feed(text)
        end = text.find("\n") + 1
        self._is_guess = True
        if end == 0:
            return self._feed(text)
        line_end = self._feed(text[:end])
        self._is_guess = is_guess
        return line_end + self._feed(text[end:])

    def _feed(self, text: str) -> str:
        self._held += text
        out = []
        while True:
            if self._in_long_line:
                end = self._held.find("\n") + 1
                if 0 < end <= self._limit:
                    out.append(self._long_line_end(self._take(end)))
                    continue
            if len(self._held) <= self._limit:
                break
            end = 0 if self._in_long_line else self._held.rfind("\n", 0, self._limit) + 1
            if end:
                out.append(self._lines(self._take(end)))
            else:
                out.append(self._long_line_part(self._take(self._part_end())))
        if not self._in_long_line:
            end = self._held.rfind("\n") + 1
            out.append(self._lines(self._take(end)))
        return "".join(out)

    def _take(self, end: int) -> str:
        """Remove the first `end` of the held characters and return them."""
        taken = self._held[:end]
        self._held = self._held[end:]
        return taken

    def end(self) -> str:
        """Return the cleaned rest: a last line without a line end."""
        rest = self._take(len(self._held))
        shown = rest.rstrip(END_OF_DOS_FILE + "\0")
        marks = rest.count(END_OF_DOS_FILE, len(shown))
        if marks:
            self.counts["end_of_file_marks"] += marks
            self.counts["nuls"] += len(rest) - len(shown) - marks
            rest = shown
        text = self._long_line_end(rest) if self._in_long_line else self._lines(rest)
        return text + self._screen.end()

    # Lines of ordinary length

    def _lines(self, text: str) -> str:
        if not self._remove_ansi:
            return self._undrawn_lines(text)
        text = self._ready_to_draw(text)
        place = 0
        while place < len(text):
            if self._screen.is_at_rest():
                cursor = CURSOR.search(text, place)
                end = text.rfind("\n", place, cursor.start()) + 1 if cursor else len(text)
                if end > place:
                    self._pass_by(text[place:end])
                    place = end
                    continue
            end = text.find("\n", place) + 1 or len(text)
            self._screen.draw(text[place:end], self._is_guess)
            place = end
        return self._screen.take()

    def _pass_by(self, text: str) -> None:
        """Clean lines that do not move the cursor."""
        text = self._finish(self._without_sequences(text))
        if self._newline and "\r" in text:
            self.counts["line_ends"] += text.count("\r\n")
            text = text.replace("\r\n", self._newline)
        self._screen.pass_by(text, self._is_guess)

    def _undrawn_lines(self, text: str) -> str:
        """Clean lines of which the escape sequences are kept."""
        text = self._escape_unfinished(self._without_invisible(text))
        if STRAY_RETURN.search(text):
            text = "\n".join(map(self._without_returns, text.split("\n")))
            text, count = STRAY_RETURN.subn("", text)
            self.counts["carriage_returns"] += count
        text = self._finish(text)
        if self._newline and "\r" in text:
            self.counts["line_ends"] += text.count("\r\n")
            text = text.replace("\r\n", self._newline)
        return text

    def _without_returns(self, line: str) -> str:
        """Remove a bar's states; if the line also moves the cursor, only write returns otherwise.

        Without a state's moves, all that follows would be drawn elsewhere.
        """
        if all(CLEARS.fullmatch(move[0]) for move in IS_MOVE.finditer(line)):
            return self._without_states(line)
        body = line.removesuffix("\r")
        self.counts["carriage_returns"] += body.count("\r")
        return body.replace("\r", "\x1b[G") + line[len(body) :]

    def _without_states(self, line: str) -> str:
        """Remove the states of a progress bar; show other carriage returns inside a line."""
        body = line.rstrip("\r")
        if "\r" not in body:
            return line
        states = [""]
        for state in body.split("\r"):
            if SEQUENCE.sub("", state):
                states.append(state)
            else:  # nothing but sequences
                states[-1] += state
        # those that stand between no two states
        self.counts["carriage_returns"] += body.count("\r") - max(len(states) - 2, 0)
        kept = []
        for number, state in enumerate(states[:-1]):
            old = SEQUENCE.sub("", state)
            new = SEQUENCE.sub("", states[number + 1])
            if not old:
                continue
            is_cleared = CLEARS.match(states[number + 1]) and not is_record(old)
            if not new.strip():
                is_gone = is_state(old)
            else:
                is_gone = is_bar(old) or is_alike(old, new)
                is_gone = is_gone or (bool(is_cleared) and keeps_alarms(old, new))
            if is_gone or not old.strip():
                self.counts["progress_bars"] += 1
            else:
                self.counts["carriage_returns"] += 1
                kept.append(state)
        return r"\x0d".join([*kept, *states[-1:]]) + line[len(body) :]

    def _ready_to_draw(self, text: str) -> str:
        """Remove what is invisible; keep the sequences that move the cursor, if there are any."""
        text = self._without_invisible(text)
        if "\x1b" in text:
            text, count = CONSOLE_NOTE.subn("", text)
            self.counts["console_notes"] += count
        text = draw_lines(self._escape_unfinished(text), self.counts)
        if "\x1b" in text and (not self._screen.is_at_rest() or CURSOR.search(text)):
            text = OTHER_SEQUENCE.sub("\x1b[m", text)
            self.counts["escape_sequences"] += text.count("\x1b")
        return text

    def _finished(self, text: str, is_guess: bool) -> str:
        """Clean the text of rows that the screen has drawn."""
        before = self._is_guess
        self._is_guess = is_guess
        finished = self._finish(text)
        self._is_guess = before
        if not text.endswith("\n"):  # the screen adds the line end
            self._count_lines(1)
        return finished

    def _count_lines(self, count: int) -> None:
        """Count lines that will be written; below 0, lines that the screen draws once more."""
        self._line_number += count

    def _finish(self, text: str) -> str:
        """Mend mojibake and escape the remaining control characters."""
        if (
            not self._keep_mojibake
            and not text.isascii()
            and (CONTROL.search(text) or may_hold_mojibake(text.encode()))
        ):
            mend = self._without_suspects if self._is_guess else self._without_mojibake
            lines = text.split("\n")  # splitlines would also split at U+2028 and others
            text = "\n".join(
                line if line.isascii() else mend(line, number)
                for number, line in enumerate(lines, self._line_number)
            )
        self._count_lines(text.count("\n"))
        return self._escape_controls(text)

    def _without_mojibake(self, line: str, number: int) -> str:
        """Mend one line until nothing changes.

        This ends, because each change reduces the characters above ASCII or the control characters.
        """
        body = line.removesuffix("\r")
        if len(body) > LONGEST_LINE:
            return line
        before = body
        is_mended = False
        while True:
            layer_undone = self._mended(body)
            is_mended = is_mended or layer_undone != body
            layer_undone = self._plain(layer_undone)
            if layer_undone == body:
                layer_undone = self._escape_controls(body)
                if layer_undone == body:
                    break
            body = layer_undone
        if is_mended:
            self.counts["mojibake_lines"] += 1
            if len(self.mended_line_numbers) < MENDED_LINE_NUMBERS:
                self.mended_line_numbers.append(number)
        elif len(self._quoted_words) < QUOTED_WORDS:
            self._quoted_words |= quoted_words(before)
        return body + line[len(before) :]

    def _mended(self, line: str) -> str:
        """Mend a line, but not inside its escape sequences, nor what the log has quoted before."""
        text = self._without_layers(line)
        if text != line and self._quoted_words and mojibake_words(line) <= self._quoted_words:
            return line
        return text

    def _without_layers(self, line: str) -> str:
        return mended(line) if self._remove_ansi else _mended_around_sequences(line)

    def _without_suspects(self, line: str, number: int) -> str:
        r"""Show the letters of a guessed line as escapes (`\xc3`) where it looks like mojibake.

        Read as UTF-8 the next time, it would be mended, though the guess may have been right.
        """
        line = self._escape_controls(line)
        body = line.removesuffix("\r")
        if self._without_layers(body) == body:
            return line
        self.counts["uncertain_lines"] += 1
        return line.encode("ascii", "backslashreplace").decode("ascii")

    def _plain(self, text: str) -> str:
        """Remove what is invisible: NULs, byte order marks, complete escape sequences."""
        return self._without_sequences(self._escape_unfinished(self._without_invisible(text)))

    def _without_invisible(self, text: str) -> str:
        r"""Remove byte order marks and NULs; `\x00` shows NULs between two characters of a line."""
        if "\ufeff" in text:
            self.counts["byte_order_marks"] += text.count("\ufeff")
            text = text.replace("\ufeff", "")
        if "\0" in text:
            self.counts["nuls"] += text.count("\0")
            text = NULS_OF_UTF32.sub(_without_nuls, text)
            text = NULS_AT_SEQUENCE.sub(_without_nuls, text)
            text = JOINING_NULS.sub(r"\\x00", text).replace("\0", "")
        return text

    def _escape_unfinished(self, text: str) -> str:
        return _escape_unfinished(text, self._remove_ansi, self.counts)

    def _without_sequences(self, text: str) -> str:
        if self._remove_ansi and "\x1b" in text:
            text, count = SEQUENCE.subn("", text)
            self.counts["escape_sequences"] += count
        return text

    def _escape_controls(self, text: str) -> str:
        if not CONTROL.search(text):
            return text

        def escape(match: re.Match[str]) -> str:
            if len(match[0]) > 1:  # a complete escape sequence
                return match[0]
            self.counts["controls"] += 1
            return _escape(match[0])

        pattern = CONTROL if self._remove_ansi else SEQUENCE_OR_CONTROL
        return pattern.sub(escape, text)

    # A line that is too long to hold

    def _part_end(self) -> int:
        """Return where to cut the held text.

        It is cut after a carriage return, else before an escape sequence, else at the limit.
        """
        end = self._held.rfind("\r", 0, self._limit - 1) + 1
        if end == 0:
            end = self._held.rfind("\x1b", max(1, self._limit - SEQUENCE_CHARACTERS), self._limit)
        return end if end > 0 else self._limit

    def _long_line_part(self, part: str) -> str:
        """Clean a part of a line whose end has not come yet.

        The line's last state is held back as long as it may be a progress bar, which is short.
        """
        self._in_long_line = True
        if not self._written and self._remove_ansi:
            return self._drawn_part(part)
        text = self._state + self._plain(part)
        if not self._written:
            text = self._without_states(text)
            if len(text) <= LONGEST_LINE:
                self._state = text
                return ""
        self._written = True
        body = text.rstrip("\r")
        self._state = "\r" if len(body) < len(text) else ""
        self.counts["carriage_returns"] += max(len(text) - len(body) - 1, 0)
        return self._shown(body)

    def _drawn_part(self, part: str) -> str:
        """Draw a part of a line; give the line up if more of it is held than a bar may have."""
        text = self._ready_to_draw(part)
        if self._screen.is_at_rest() and not CURSOR.search(text):
            self._written = True
            return self._screen.end() + self._shown(self._without_sequences(text))
        self._screen.draw(text, self._is_guess)
        self._screen.write_lines_ended_by_returns()
        if self._screen.width() <= LONGEST_LINE:
            return self._screen.take()
        self._written = True
        text, returns = self._screen.give_up()
        self._state = "\r" if returns else ""
        self.counts["carriage_returns"] += max(returns - 1, 0)
        return text

    def _shown(self, text: str) -> str:
        """Escape all control characters in a line whose beginning has been returned already.

        A carriage return can no longer overwrite that beginning, so it is escaped too.
        """
        self.counts["controls"] += text.count("\r")
        return self._escape_controls(text.replace("\r", r"\x0d"))

    def _long_line_end(self, rest: str) -> str:
        out = self._written_line_end(rest) if self._written else self._lines(self._state + rest)
        self._in_long_line = False
        self._written = False
        self._state = ""
        return out

    def _written_line_end(self, rest: str) -> str:
        """Return the end of a long line whose beginning has been returned already."""
        body = rest.removesuffix("\n")
        line_end = rest[len(body) :]
        text = self._state + self._plain(body)
        shown = text.rstrip("\r")
        returns = len(text) - len(shown)
        if returns and line_end and not self._newline:
            line_end = "\r\n"
            returns -= 1
        self.counts["carriage_returns"] += returns
        self._count_lines(line_end.count("\n"))
        return self._shown(shown) + line_end
