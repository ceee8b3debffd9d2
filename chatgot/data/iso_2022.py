r"""Read the 7-bit encodings of East Asia: ISO-2022-JP and its kin, ISO-2022-KR, -CN, and HZ.

All their bytes are ASCII. An escape sequence, the designator, says which character set the bytes
after it are in; HZ writes `~{` and `~}` around Chinese. The designator counts up to the end of the
line; only the set that SO (`\x0e`) switches to is designated for all lines that follow.

Source: ECMA-35; RFC 1468, 1554, 2237 (Japanese), 1557 (Korean), 1922 and 1843 (Chinese).
"""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chatgot.data.alphabets import common_characters

_TO_HIGH = bytes(byte | 0x80 for byte in range(0x100))
# Terminals switch back to ASCII by this, too, so alone it says nothing
_TO_ASCII = b"\x1b(B"
_ROMAN = str.maketrans("\\~", "¥‾")


@dataclass(frozen=True)
class _Charset:
    """A set of characters with two bytes each, or one."""

    width: int
    codec: str  # has the same characters, with the high bits set
    prefix: bytes  # before each of them
    encoding: str  # the smallest encoding that has this set


_JIS_0208 = _Charset(2, "euc_jp", b"", "iso2022_jp")
_KANA = _Charset(1, "cp932", b"", "iso2022_jp_ext")
_GB_2312 = _Charset(2, "gb2312", b"", "iso2022_jp_2")
_KS_1001 = _Charset(2, "euc_kr", b"", "iso2022_jp_2")
# Designator -> the set that bytes below 0x80 are then in
_SETS = {
    b"\x1b$@": _JIS_0208,
    b"\x1b$B": _JIS_0208,
    b"\x1b$(@": _JIS_0208,
    b"\x1b$(B": _JIS_0208,
    b"\x1b$A": _GB_2312,
    b"\x1b$(A": _GB_2312,
    b"\x1b$(C": _KS_1001,
    b"\x1b$(D": _Charset(2, "euc_jp", b"\x8f", "iso2022_jp_1"),
    b"\x1b$(O": _Charset(2, "euc_jisx0213", b"", "iso2022_jp_3"),
    b"\x1b$(P": _Charset(2, "euc_jisx0213", b"\x8f", "iso2022_jp_3"),
    b"\x1b$(Q": _Charset(2, "euc_jis_2004", b"", "iso2022_jp_2004"),
    b"\x1b(I": _KANA,
}
# The sets that SO switches to
_SHIFTED_SETS = {
    b"\x1b$)C": _Charset(2, "euc_kr", b"", "iso2022_kr"),
    b"\x1b$)A": _Charset(2, "gb2312", b"", "iso2022_cn"),
}
# The sets that ESC N takes one character of
_SINGLE_SETS = {b"\x1b.A": "iso8859-1", b"\x1b.F": "iso8859-7"}
_ENDS = (_TO_ASCII, b"\x1b(J", b"\x1b(H")
# From the smallest to the largest
_CODECS = (
    *("iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_3", "iso2022_jp_2004"),
    *("iso2022_jp_ext", "iso2022_kr"),
)
_TOKEN = re.compile(
    rb"(?P<switch>\x1b(?:\$\)?[@AB]|\$[()][@-Q]|\([BHIJ]|\.[AF]))"
    rb"|\x1bN(?P<single>[\x20-\x7f])|\x0e(?P<word>[\x21-\x7e]+)\x0f|(?P<shift>[\x0e\x0f])"
    # other escape sequences, such as colours, are left to others
    rb"|(?P<other>\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\r\n]*(?:\x07|\x1b\\)?|[\x00-\x7f]?)"
    rb"|[\x00-\x1f\x7f])"
    rb"|(?P<run>[\x20-\x7e]+)|(?P<high>[\x80-\xff]+)",
    re.DOTALL,
)
_DESIGNATOR = re.compile(rb"\x1b(?:\$[@AB]|\$\([@-Q]|\$\)[AC]|\(I)")
_HZ_PAIRS = rb"(?:[\x21-\x77][\x21-\x7e])+"
_HZ = re.compile(rb"~\{(%s)(?:~\}|(?=[\r\n]*$))|~~|~\{" % _HZ_PAIRS)
# A byte that an earlier mending made visible
_VISIBLE = re.compile(rb"\\x[0-9a-f]{2}")
# As many characters of usual Chinese as are no chance, and their share
_HZ_CHARACTERS = 2
_HZ_SHARE = 0.5
# As many bytes of a line may be torn, or as many to each character
_TORN_BYTES = 2
_TORN_SHARE = 0.25


def may_be_escaped(data: bytes) -> bool:
    """Return whether lines may be in one of these encodings; a quick test."""
    if b"\x1b" in data and (b"\x1b$" in data or b"\x1b(I" in data):
        return True
    # one byte is found ten times as fast as two
    return b"\x0e" in data or (b"~" in data and b"~{" in data)


def has_designator(data: bytes) -> bool:
    """Return whether an escape sequence designates a set with two bytes a character, or kana."""
    return bool(_DESIGNATOR.search(data))


def escaped_encoding(sample: bytes) -> str | None:
    """Return the codec of a 7-bit text with designators, or None; the sample may be cut anywhere.

    The codec decodes the sample strictly. UTF-7 is not recognised.
    """
    if not sample.isascii():
        return None
    if _DESIGNATOR.search(sample):
        return next((codec for codec in _CODECS if _decodes(sample, codec)), None)
    if b"~{" in sample and _decodes(sample, "hz"):
        lines = [_hz_line(line, 1) for line in sample.splitlines(keepends=True)]
        texts = [text for text in lines if text is not None]
        if sum(len(_above_ascii(text)) for text in texts) >= _HZ_CHARACTERS:
            return "hz"
    return None


def _decodes(sample: bytes, codec: str) -> bool:
    try:
        text = codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return False
    return "\x1b$" not in text and not text.isascii()


@dataclass(frozen=True)
class EscapedText:
    r"""A line that was read; a byte that is torn is one of U+DC00 to U+DCFF.

    Python's `surrogateescape` writes bytes above ASCII like that.
    """

    characters: str
    encoding: str


class EscapedLines:
    """Reads lines one after another; knows what earlier lines have designated."""

    def __init__(self) -> None:
        self._shifted: _Charset | None = None  # what SO switches to
        self._has_hz = False

    def text(self, line: bytes) -> EscapedText | None:
        """Return the text of a line, or None: it is in none of these encodings."""
        if b"\x1b$" in line or b"\x1b(I" in line or (self._shifted and b"\x0e" in line):
            reader = _Line(self._shifted)
            reader.read(line)
            self._shifted = reader.shifted
            return reader.text()
        if b"~{" in line and line.isascii() and not _VISIBLE.search(line):
            text = _hz_line(line, 1 if self._has_hz else _HZ_CHARACTERS)
            if text is not None:
                self._has_hz = True
                return EscapedText(text, "hz")
        return None


class _Line:
    """One line while it is read."""

    def __init__(self, shifted: _Charset | None) -> None:
        self.shifted = shifted
        self._set: _Charset | None = None
        self._is_roman = False
        self._is_shifted = False
        self._single: str | None = None
        self._encodings: list[str] = []
        self._parts: list[str] = []
        self._characters = 0
        self._torn = 0

    def text(self) -> EscapedText | None:
        if self._characters == 0 or self._torn > max(_TORN_BYTES, _TORN_SHARE * self._characters):
            return None
        order = [*_CODECS, "iso2022_cn"]
        return EscapedText("".join(self._parts), max(self._encodings, key=order.index))

    def read(self, line: bytes) -> None:
        take: dict[str, Callable[[bytes], None]] = {
            "switch": self._switch,
            "single": self._take_single,
            "word": self._take_shifted_word,
            "shift": self._shift,
            "other": self._keep,
            "run": self._take_run,
            "high": self._take_high,
        }
        for token in _TOKEN.finditer(line):
            kind = token.lastgroup
            assert kind is not None  # each alternative is a group
            take[kind](token[kind])

    def _switch(self, designator: bytes) -> None:
        if designator in _SHIFTED_SETS:
            self.shifted = _SHIFTED_SETS[designator]
        elif designator in _SINGLE_SETS:
            self._single = _SINGLE_SETS[designator]
        elif designator in _SETS or designator in _ENDS:
            self._set = _SETS.get(designator)
            self._is_roman = designator == b"\x1b(J"
        else:
            self._keep(designator)

    def _shift(self, byte: bytes) -> None:
        if self.shifted is None:
            self._keep(byte)
            return
        self._is_shifted = byte == b"\x0e"

    def _take_shifted_word(self, word: bytes) -> None:
        """Take a word between SO and SI: in Korean text nearly each one."""
        if self.shifted is None:
            self._keep(b"\x0e")
            self._take_run(word)
            self._keep(b"\x0f")
            return
        self._encodings.append(self.shifted.encoding)
        self._parts.append(self._word(word, self.shifted))
        self._is_shifted = False

    def _take_single(self, byte: bytes) -> None:
        if self._single is None:
            self._keep(b"\x1bN" + byte)
            return
        self._parts.append(byte.translate(_TO_HIGH).decode(self._single, "surrogateescape"))
        self._encodings.append("iso2022_jp_2")

    def _keep(self, data: bytes) -> None:
        self._parts.append(data.decode("utf-8", "surrogateescape"))

    def _take_high(self, data: bytes) -> None:
        """Take bytes that this encoding does not have: UTF-8, or torn."""
        text = data.decode("utf-8", "surrogateescape")
        self._torn += sum("\udc80" <= character <= "\udcff" for character in text)
        self._parts.append(text)

    def _take_run(self, run: bytes) -> None:
        charset = self.shifted if self._is_shifted else self._set
        if charset is None:
            text = run.decode("ascii")
            self._parts.append(text.translate(_ROMAN) if self._is_roman else text)
            return
        self._encodings.append(charset.encoding)
        for word in run.split(b" "):
            self._parts.append(self._word(word, charset))
            self._parts.append(" ")
        self._parts.pop()

    def _word(self, word: bytes, charset: _Charset) -> str:
        if not charset.prefix and len(word) % charset.width == 0:
            try:
                text = word.translate(_TO_HIGH).decode(charset.codec)
            except UnicodeDecodeError:
                pass
            else:
                self._characters += len(text)
                return text
        return "".join(
            self._character(word[start : start + charset.width], charset)
            for start in range(0, len(word), charset.width)
        )

    def _character(self, data: bytes, charset: _Charset) -> str:
        high = charset.prefix + data.translate(_TO_HIGH)
        try:
            character = high.decode(charset.codec)
        except UnicodeDecodeError:
            self._torn += 1
            return "".join(chr(0xDC00 + byte) for byte in data)
        self._characters += 1
        return character


def _hz_line(line: bytes, least: int) -> str | None:
    """Return the text of a line in HZ with at least so many characters, or None: it is none."""
    parts = list(_hz_parts(line))
    if None in parts:
        return None
    text = "".join(part for part in parts if part is not None)
    characters = _above_ascii(text)
    usual = common_characters("zh_CN")
    if len(characters) < least:
        return None
    if sum(character in usual for character in characters) < _HZ_SHARE * len(characters):
        return None
    return text


def _hz_parts(line: bytes) -> Iterator[str | None]:
    """Yield the parts of a line in HZ; None for one that cannot be read."""
    end = 0
    for token in _HZ.finditer(line):
        yield line[end : token.start()].decode("ascii")
        end = token.end()
        if token[1]:
            try:
                yield token[1].translate(_TO_HIGH).decode("gb2312")
            except UnicodeDecodeError:
                yield None
        else:
            yield "~" if token[0] == b"~~" else None
    yield line[end:].decode("ascii")


def _above_ascii(text: str) -> str:
    return "".join(character for character in text if character > "\x7f")
