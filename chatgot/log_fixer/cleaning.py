r"""Text of a log -> text that any program shows alike.

No escape sequences, progress bars, NULs, mojibake or control characters are left. It works by
lines, and each line comes out as a fixed point: cleaning it again changes nothing. Only what shows
nothing (complete escape sequences, NULs, byte order marks) or was overwritten (progress bars) is
removed. Every other control character becomes a visible escape: `\x08`, or `\x1b` for a sequence
that was cut off.
"""

import re
from collections import Counter

import ftfy
from ftfy.badness import is_bad
from ftfy.chardata import CHARMAP_ENCODINGS

HELD_CHARACTERS = 1 << 21  # of a line that has not ended; a longer line is cleaned in parts
SEQUENCE_CHARACTERS = 4096  # the longest escape sequence that such a cut leaves in one part
MOJIBAKE_CHARACTERS = 1 << 16  # in a longer line mojibake stays as it is

# Source: ECMA-48, 5.2 to 5.6, with xterm's BEL as an end of OSC. A string has no control
# characters, so that an unfinished one ends where the next sequence begins.
_STRING = r"[^\x00-\x08\x0a-\x1f\x7f-\x9f]*"
_CSI = r"[0-?]*[ -/]*[@-~]"
_STRING_END = r"(?:\x1b\\|\x9c)"
_OSC = rf"{_STRING}(?:\x07|\x1b\\|\x9c)"
_AFTER_ESC = rf"(?:\[{_CSI}|\]{_OSC}|[PX^_]{_STRING}{_STRING_END}|[ -/]+[0-~]|[0-OQ-WYZ\\`-~])"
_SEQUENCE = rf"(?:\x1b{_AFTER_ESC})"
_C1_SEQUENCE = rf"(?:\x9b{_CSI}|\x9d{_OSC}|[\x90\x98\x9e\x9f]{_STRING}{_STRING_END})"
SEQUENCE = re.compile(_SEQUENCE)
UNFINISHED = re.compile(rf"\x1b(?!{_AFTER_ESC})")
# The C1 controls that begin a sequence also occur in half the letters of UTF-8 that was read as
# Latin-1. Those are no sequences, unless they have parameters and an end.
_PLAINLY_C1 = rf"\x9b[0-9;?]+[A-Za-z]|\x9d[0-9]+;{_OSC}"
_CP1252_TAILS = bytes(range(0x80, 0xA0)).decode("cp1252", "ignore")
_TAIL = rf"(?!{_PLAINLY_C1})[\x80-\xbf{_CP1252_TAILS}]"
_MISREAD = rf"[\xc2-\xdf]{_TAIL}|[\xe0-\xef](?:{_TAIL}){{2}}|[\xf0-\xf4](?:{_TAIL}){{3}}"
C1_INTRODUCER = re.compile("[\x90\x98\x9b\x9d-\x9f]")
C1 = re.compile(rf"(?P<misread>{_MISREAD})|(?P<sequence>{_C1_SEQUENCE})|[\x90\x98\x9b\x9d-\x9f]")

# What a line's last state overwrote: up to the last carriage return after which anything is shown
OVERWRITTEN = re.compile(rf"^[^\n]*\r(?={_SEQUENCE}*[^\r\n\x1b])", re.MULTILINE)
STRAY_RETURN = re.compile(r"\r(?!\n)")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SEQUENCE_OR_CONTROL = re.compile(rf"{_SEQUENCE}|{_C1_SEQUENCE}|{CONTROL.pattern}")


def _mojibake_pattern() -> re.Pattern[str]:
    """Match what may be mojibake: a C1 control, or two characters that misread two bytes of UTF-8.

    They are the first two bytes of a sequence, read in an encoding that ftfy knows.
    """
    pairs = ["[\x80-\x9f]"]
    for encoding in CHARMAP_ENCODINGS:
        lead = bytes(range(0xC2, 0xF5)).decode(encoding)
        tail = bytes(range(0x80, 0xC0)).decode(encoding)
        pairs.append(f"[{re.escape(lead)}][{re.escape(tail)}]")
    return re.compile("|".join(pairs))


MOJIBAKE = _mojibake_pattern()
ABOVE_ASCII = re.compile("[^\x00-\x7f]+")
# Up to this many suspects, one regex of theirs beats scanning every run; more would take quadratic
# time
FEW_SUSPECTS = 64
ASCII_TO_BLANK = bytes([0x20] * 0x80) + bytes(range(0x80, 0x100))
C1_BYTES = re.compile(rb"\xc2[\x80-\x9f]")
CONTROL_BYTES = bytes({*range(0x20), 0x7F} - {*b"\t\n\r"})


def clean_ansi_escape_sequences(text: str) -> str:
    r"""Remove whole escape sequences: CSI, OSC, other strings, charset switches, 7-bit or 8-bit.

    A link (OSC 8) keeps its text. An ESC or an 8-bit introducer whose sequence is cut off becomes
    `\x1b` or `\x9b`: what follows it may be text.
    """
    return SEQUENCE.sub("", _escape_unfinished(text, True, Counter()))


def _escape_unfinished(text: str, remove_ansi: bool, counts: Counter[str]) -> str:
    """Escape introducers that begin no sequence; remove 8-bit sequences, if `remove_ansi`."""
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
            counts["escape_sequences"] += 1
            return ""
        counts["controls"] += 1
        return rf"\x{ord(match[0]):02x}"

    return C1.sub(replace, text)


def is_clean(block: bytes, newline: str | None) -> bool:
    """Tell quickly whether whole 8-bit lines come out as they are.

    False also where it would take longer to tell.
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
    if b"\xef\xbb\xbf" in block or C1_BYTES.search(block):
        return False
    return not _may_hold_mojibake(block)


def _may_hold_mojibake(utf8: bytes) -> bool:
    """Tell whether ftfy has to look at these lines: a run above ASCII is bad with its neighbours.

    The answer for a block is that for any of its lines. It looks once at each distinct run, which
    is 30 times faster.
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


def _is_suspect(line: str) -> bool:
    return not line.isascii() and _may_hold_mojibake(line.encode())


class LogCleaner:
    r"""Cleans text as it comes, and counts what it changes.

    Memory is bounded, also for a line that never ends.

    remove_ansi: False keeps complete escape sequences. newline: "\n" makes every line end that;
    None keeps them. held: so many characters of a line are kept until its end is seen.
    """

    def __init__(
        self, remove_ansi: bool = True, newline: str | None = None, held: int = HELD_CHARACTERS
    ) -> None:
        self._remove_ansi = remove_ansi
        self._newline = newline
        self._limit = held
        self._held = ""  # a line that has not ended, as it came
        self._in_long_line = False
        self._written = False  # the beginning of a long line has gone out already
        self._state = ""  # the cleaned last state of a long line
        self.counts: Counter[str] = Counter()

    def holds(self) -> bool:
        return bool(self._held) or self._in_long_line

    def feed(self, text: str) -> str:
        """Take the next characters; return what is certain by now."""
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
        """Take the first characters out of those that are held."""
        taken = self._held[:end]
        self._held = self._held[end:]
        return taken

    def end(self) -> str:
        """Return the rest: a last line that has no end."""
        rest = self._take(len(self._held))
        return self._long_line_end(rest) if self._in_long_line else self._lines(rest)

    # Lines of ordinary length

    def _lines(self, text: str) -> str:
        text = self._escape_unfinished(self._without_nothing(text))
        if "\r" in text:
            text, count = OVERWRITTEN.subn("", text)
            self.counts["progress_bars"] += count
            text, count = STRAY_RETURN.subn("", text)
            self.counts["carriage_returns"] += count
        text = self._finish(self._without_sequences(text))
        if self._newline and "\r" in text:
            self.counts["line_ends"] += text.count("\r\n")
            text = text.replace("\r\n", self._newline)
        return text

    def _finish(self, text: str) -> str:
        """Mend mojibake and escape what control characters are left."""
        if not text.isascii() and _may_hold_mojibake(text.encode()):
            lines = text.split("\n")  # not splitlines: U+2028 and others are no line ends
            text = "\n".join(
                self._without_mojibake(line) if _is_suspect(line) else line for line in lines
            )
        return self._escape_controls(text)

    def _without_mojibake(self, line: str) -> str:
        """Mend one line until nothing changes.

        It ends: each change leaves fewer characters above ASCII, or fewer control characters.
        """
        body = line.removesuffix("\r")
        if len(body) > MOJIBAKE_CHARACTERS:
            return line
        before = body
        while True:
            mended = ftfy.fix_encoding(body, restore_byte_a0=False, replace_lossy_sequences=False)
            mended = self._plain(mended)
            if mended == body:
                mended = self._escape_controls(body)
                if mended == body:
                    break
            body = mended
        mended_lines = 0 if body == before else 1
        self.counts["mojibake_lines"] += mended_lines
        return body + line[len(before) :]

    def _plain(self, text: str) -> str:
        """Remove what shows nothing: NULs, byte order marks, complete escape sequences."""
        return self._without_sequences(self._escape_unfinished(self._without_nothing(text)))

    def _without_nothing(self, text: str) -> str:
        """Remove NULs and byte order marks."""
        for name, character in (("nuls", "\0"), ("byte_order_marks", "\ufeff")):
            if character in text:
                self.counts[name] += text.count(character)
                text = text.replace(character, "")
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
            return rf"\x{ord(match[0]):02x}"

        pattern = CONTROL if self._remove_ansi else SEQUENCE_OR_CONTROL
        return pattern.sub(escape, text)

    # A line that is too long to hold

    def _part_end(self) -> int:
        """Return where the held text is cut.

        After a carriage return, else before a sequence, else at the limit.
        """
        end = self._held.rfind("\r", 0, self._limit - 1) + 1
        if end == 0:
            end = self._held.rfind("\x1b", max(1, self._limit - SEQUENCE_CHARACTERS), self._limit)
        return end if end > 0 else self._limit

    def _long_line_part(self, part: str) -> str:
        """Take a part of a line without its end.

        The line's last state is held back while it is short enough to be a progress bar.
        """
        self._in_long_line = True
        text = self._state + self._plain(part)
        if not self._written:
            text, count = OVERWRITTEN.subn("", text)
            self.counts["progress_bars"] += count
            if len(text) <= MOJIBAKE_CHARACTERS:
                self._state = text
                return ""
        self._written = True
        body = text.rstrip("\r")
        self._state = "\r" if len(body) < len(text) else ""
        self.counts["carriage_returns"] += max(len(text) - len(body) - 1, 0)
        return self._shown(body)

    def _shown(self, text: str) -> str:
        """Show every control character of text whose line's beginning has gone out.

        A carriage return cannot overwrite that any more, so it is shown, too.
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
        """Return the end of a long line whose beginning has gone out."""
        body = rest.removesuffix("\n")
        line_end = rest[len(body) :]
        text = self._state + self._plain(body)
        shown = text.rstrip("\r")
        returns = len(text) - len(shown)
        if returns and line_end and not self._newline:
            line_end = "\r\n"
            returns -= 1
        self.counts["carriage_returns"] += returns
        return self._shown(shown) + line_end
