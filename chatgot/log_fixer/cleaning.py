"""Text of a log -> text that any program shows alike: no escape sequences, progress bars, NULs, mojibake, controls.

It works by lines, and each line comes out as a fixed point: cleaning it again changes nothing. What is taken out is
only what shows nothing (complete escape sequences, NULs, byte order marks) or was overwritten (progress bars). Every
other control character becomes a visible escape: `\\x08`, `\\x1b` of a sequence that was cut off.
"""

import re
from collections import Counter

import ftfy
from ftfy.badness import is_bad
from ftfy.chardata import CHARMAP_ENCODINGS

HELD_CHARACTERS = 1 << 21  # of a line that has not ended; a longer one is cleaned in parts
SEQUENCE_CHARACTERS = 4096  # the longest escape sequence that such a cut leaves in one part
MOJIBAKE_CHARACTERS = 1 << 16  # in a longer line mojibake is left as it is

# ECMA-48, 5.2 to 5.6, with xterm's BEL as an end of OSC. A string holds no control characters, so that an unfinished
# one ends where the next sequence begins.
_STRING = r"[^\x00-\x08\x0a-\x1f\x7f-\x9f]*"
_CSI = r"[0-?]*[ -/]*[@-~]"
_AFTER_ESC = rf"(?:\[{_CSI}|\]{_STRING}(?:\x07|\x1b\\|\x9c)|[PX^_]{_STRING}(?:\x1b\\|\x9c)|[ -/]+[0-~]|[0-OQ-WYZ\\`-~])"
_SEQUENCE = rf"(?:\x1b{_AFTER_ESC})"
_C1_SEQUENCE = (
    rf"(?:\x9b{_CSI}|\x9d{_STRING}(?:\x07|\x1b\\|\x9c)|[\x90\x98\x9e\x9f]{_STRING}(?:\x1b\\|\x9c))"
)
SEQUENCE = re.compile(_SEQUENCE)
UNFINISHED = re.compile(rf"\x1b(?!{_AFTER_ESC})")
# The C1 controls that begin a sequence are also what half the letters of UTF-8 read as Latin-1 contain: those are not
# sequences, unless they have parameters and an end.
_PLAINLY_C1 = rf"\x9b[0-9;?]+[A-Za-z]|\x9d[0-9]+;{_STRING}(?:\x07|\x1b\\|\x9c)"
_TAIL = rf"(?!{_PLAINLY_C1})[\x80-\xbf{bytes(range(0x80, 0xA0)).decode('cp1252', 'ignore')}]"
_MISREAD = rf"[\xc2-\xdf]{_TAIL}|[\xe0-\xef](?:{_TAIL}){{2}}|[\xf0-\xf4](?:{_TAIL}){{3}}"
C1_INTRODUCER = re.compile("[\x90\x98\x9b\x9d-\x9f]")
C1 = re.compile(rf"(?P<misread>{_MISREAD})|(?P<sequence>{_C1_SEQUENCE})|[\x90\x98\x9b\x9d-\x9f]")

# A line's last state: what follows the last carriage return after which anything is shown.
OVERWRITTEN = re.compile(rf"^[^\n]*\r(?={_SEQUENCE}*[^\r\n\x1b])", re.MULTILINE)
STRAY_RETURN = re.compile(r"\r(?!\n)")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SEQUENCE_OR_CONTROL = re.compile(rf"{_SEQUENCE}|{_C1_SEQUENCE}|{CONTROL.pattern}")


def _mojibake_pair() -> re.Pattern[str]:
    """Two characters as which the first two bytes of a UTF-8 sequence read in an encoding that ftfy knows, or C1."""
    pairs = ["[\x80-\x9f]"]
    for encoding in CHARMAP_ENCODINGS:
        lead, tail = (
            bytes(span).decode(encoding) for span in (range(0xC2, 0xF5), range(0x80, 0xC0))
        )
        pairs.append(f"[{re.escape(lead)}][{re.escape(tail)}]")
    return re.compile("|".join(pairs))


MOJIBAKE = _mojibake_pair()
ABOVE_ASCII = re.compile("[^\x00-\x7f]+")
FEW_RUNS = (
    64  # so many are found faster one by one than among all runs; more would take quadratic time
)
ASCII_TO_BLANK = bytes([0x20] * 0x80) + bytes(range(0x80, 0x100))
C1_BYTES = re.compile(rb"\xc2[\x80-\x9f]")
CONTROL_BYTES = bytes({*range(0x20), 0x7F} - {*b"\t\n\r"})


def clean_ansi_escape_sequences(text: str) -> str:
    """Take out complete escape sequences: CSI, OSC, the other strings, charset switches, 7-bit and 8-bit ones.

    A link (OSC 8) keeps its text. An ESC, or an 8-bit introducer, whose sequence is cut off becomes `\\x1b`, `\\x9b`:
    what follows it may be text.
    """
    return SEQUENCE.sub("", _escape_unfinished(text, True, Counter()))


def _escape_unfinished(text: str, remove_ansi: bool, counts: Counter[str]) -> str:
    """Escape introducers that begin no sequence; of the complete sequences take out the 8-bit ones."""
    if "\x1b" in text:
        text, count = UNFINISHED.subn(r"\\x1b", text)
        counts["controls"] += count
    if C1_INTRODUCER.search(text):

        def replace(found: re.Match[str]) -> str:
            if found["misread"] or (found["sequence"] and not remove_ansi):
                return found[0]
            counts["escape_sequences" if found["sequence"] else "controls"] += 1
            return "" if found["sequence"] else rf"\x{ord(found[0]):02x}"

        text = C1.sub(replace, text)
    return text


def is_clean(block: bytes, newline: str | None) -> bool:
    """Tell quickly whether whole 8-bit lines come out as they are; False also where it would take longer to tell."""
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
    """Tell whether ftfy has to look at these lines: a run of characters above ASCII is bad with its neighbours.

    The answer for a block is that for any of its lines. It looks once at each distinct run: 30 times faster.
    """
    runs = b" ".join(set(utf8.translate(ASCII_TO_BLANK).split())).decode()
    if not MOJIBAKE.search(runs):
        return False
    suspects = {run for run in runs.split(" ") if MOJIBAKE.search(run)}
    few = (
        "|".join(map(re.escape, sorted(suspects, key=len, reverse=True)))
        if len(suspects) <= FEW_RUNS
        else None
    )
    text, seen = utf8.decode(), set()
    for found in re.finditer(few, text) if few else ABOVE_ASCII.finditer(text):
        before, after = (
            text[max(found.start() - 2, 0) : found.start()],
            text[found.end() : found.end() + 2],
        )
        whole = (before[-1:] + after[:1]).isascii()  # a run, not a part of one
        if not whole or found[0] not in suspects:
            continue
        seen.add(before.rpartition("\n")[2] + found[0] + after.partition("\n")[0])
    return any(is_bad(context) for context in seen)


def _is_suspect(line: str) -> bool:
    return not line.isascii() and _may_hold_mojibake(line.encode())


class LogCleaner:
    """Cleans text as it comes, and counts what it changes; memory is bounded, also for a line that never ends.

    remove_ansi: False keeps complete escape sequences. newline: "\\n" makes every line end that; None keeps them.
    """

    def __init__(
        self, remove_ansi: bool = True, newline: str | None = None, held: int = HELD_CHARACTERS
    ) -> None:
        self._remove_ansi, self._newline, self._limit = remove_ansi, newline, held
        self._held = ""  # a line that has not ended, as it came
        self._in_long_line = self._written = False  # written: its beginning has gone out already
        self._state = ""  # the cleaned last state of a long line
        self.counts: Counter[str] = Counter()

    def holds(self) -> bool:
        return bool(self._held) or self._in_long_line

    def feed(self, text: str) -> str:
        """Take the next characters; return what is certain by now."""
        self._held += text
        out = []
        while True:
            if self._in_long_line and 0 < (end := self._held.find("\n") + 1) <= self._limit:
                out.append(self._long_line_end(self._held[:end]))
            elif len(self._held) <= self._limit:
                if self._in_long_line:
                    return "".join(out)
                end = self._held.rfind("\n") + 1
                out.append(self._lines(self._held[:end]))
                self._held = self._held[end:]
                return "".join(out)
            elif not self._in_long_line and (end := self._held.rfind("\n", 0, self._limit) + 1):
                out.append(self._lines(self._held[:end]))
            else:
                end = self._part_end()
                out.append(self._long_line_part(self._held[:end]))
            self._held = self._held[end:]

    def end(self) -> str:
        """Return the rest: a last line that has no end."""
        rest, self._held = self._held, ""
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
        """Mend one line until nothing changes; each change leaves fewer characters above ASCII, or fewer controls."""
        body = line.removesuffix("\r")
        if len(body) > MOJIBAKE_CHARACTERS:
            return line
        before = body
        while True:
            mended = ftfy.fix_encoding(body, restore_byte_a0=False, replace_lossy_sequences=False)
            mended = self._without_sequences(self._escape_unfinished(self._without_nothing(mended)))
            if mended == body:
                mended = self._escape_controls(body)
                if mended == body:
                    break
            body = mended
        self.counts["mojibake_lines"] += body != before
        return body + line[len(before) :]

    def _without_nothing(self, text: str) -> str:
        """Take out NULs and byte order marks."""
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

        def escape(found: re.Match[str]) -> str:
            if len(found[0]) > 1:
                return found[0]
            self.counts["controls"] += 1
            return rf"\x{ord(found[0]):02x}"

        return (CONTROL if self._remove_ansi else SEQUENCE_OR_CONTROL).sub(escape, text)

    # A line that is too long to hold

    def _part_end(self) -> int:
        """Return where the held text is cut: after a carriage return, else before a sequence, else at the limit."""
        end = self._held.rfind("\r", 0, self._limit - 1) + 1
        if end == 0:
            end = self._held.rfind("\x1b", max(1, self._limit - SEQUENCE_CHARACTERS), self._limit)
        return end if end > 0 else self._limit

    def _long_line_part(self, part: str) -> str:
        """Take a part of a line without its end. Its last state is held back while it is short enough to be a bar."""
        self._in_long_line = True
        text = self._state + self._without_sequences(
            self._escape_unfinished(self._without_nothing(part))
        )
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
        return self._written_text(body)

    def _written_text(self, text: str) -> str:
        """Text after the beginning has gone out: a carriage return cannot overwrite that any more, so it is shown."""
        self.counts["controls"] += text.count("\r")
        return self._escape_controls(text.replace("\r", r"\x0d"))

    def _long_line_end(self, rest: str) -> str:
        body = rest.removesuffix("\n")
        line_end = rest[len(body) :]
        if not self._written:
            out = self._lines(self._state + rest)
        else:
            text = self._state + self._without_sequences(
                self._escape_unfinished(self._without_nothing(body))
            )
            shown = text.rstrip("\r")
            if len(shown) < len(text) and line_end and not self._newline:
                line_end = "\r\n"
            self.counts["carriage_returns"] += len(text) - len(shown) - (line_end == "\r\n")
            out = self._written_text(shown) + line_end
        self._in_long_line, self._written, self._state = False, False, ""
        return out
