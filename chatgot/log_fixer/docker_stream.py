"""The text of a raw stream of Docker: what containers without a terminal write, between headers.

Source: Docker Engine API, "attach": each frame has eight bytes before it, which tell stdout (1) or
stderr (2), three NULs, and the size as a big-endian number.
"""

import re
from bisect import bisect_right

from chatgot.log_fixer.pieces import SeekableFile

HEADER_BYTES = 8
_HEADER = re.compile(rb"[\x01\x02]\0{3}[\x00-\xff]{4}")
CHECKED_FRAMES = 64  # at the file's begin; all of them have to have headers
LARGEST_FRAME = 1 << 24
BUFFER_BYTES = 1 << 16
MARK_EVERY = 1 << 20  # bytes of text; the memory for marks is small even for large logs
ENDLESS = 1 << 62


def text_of(file: SeekableFile) -> SeekableFile:
    """Return the text of a stream with headers; any other file as it is."""
    return DockerStream(file) if _is_stream(file) else file


def _is_stream(file: SeekableFile) -> bool:
    """Return whether a file begins with two frames at least, or is exactly one."""
    offset = 0
    frames = 0
    while frames < CHECKED_FRAMES:
        file.seek(offset)
        header = file.read(HEADER_BYTES)
        if not header and frames:
            return True
        size = _size(header)
        if size is None:
            return frames > 1
        offset += HEADER_BYTES + size
        frames += 1
        file.seek(offset - 1)
        if not file.read(1):  # the last frame is cut off
            return frames > 1
    return True


def _size(header: bytes) -> int | None:
    """Return the size of a frame's text; None if these bytes are no header."""
    if not _HEADER.fullmatch(header):
        return None
    size = int.from_bytes(header[4:], "big")
    return size if 0 < size <= LARGEST_FRAME else None


class DockerStream:
    """The text of a stream as a file of its own. What follows the last header is text as well."""

    def __init__(self, file: SeekableFile) -> None:
        self._file = file
        self._marks = [(0, 0, 0)]  # place in the text, in the file, frames before it
        self._text_place = 0
        self._file_place = 0
        self._left = 0  # of the current frame
        self._frames = 0  # up to the current one
        self._buffer = b""
        self.headers = 0  # that have been seen

    def seek(self, offset: int, /) -> None:
        if offset == self._text_place:
            return
        mark = bisect_right(self._marks, (offset, ENDLESS, 0)) - 1
        self._text_place, self._file_place, self._frames = self._marks[mark]
        self._left = 0
        self._buffer = b""
        while self._text_place < offset:
            if not self._left and not self._next_frame():
                return
            if not self._take(min(self._left, offset - self._text_place, BUFFER_BYTES)):
                return

    def read(self, size: int, /) -> bytes:
        parts = []
        while size:
            if not self._left and not self._next_frame():
                break
            part = self._take(min(self._left, size))
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def place_in_file(self, offset: int) -> int:
        """Return where a byte of the text lies in the file."""
        self.seek(offset)
        if not self._left:
            self._next_frame()
        return self._file_place

    def _take(self, size: int) -> bytes:
        """Take the next bytes of the current frame: as many as there are at once."""
        self._fill(1)
        taken = self._buffer[:size]
        self._buffer = self._buffer[len(taken) :]
        self._text_place += len(taken)
        self._file_place += len(taken)
        self._left -= len(taken)
        return taken

    def _next_frame(self) -> bool:
        """Go past the next header; return whether there is anything."""
        self._fill(HEADER_BYTES)
        if not self._buffer:
            return False
        if self._text_place >= self._marks[-1][0] + MARK_EVERY:
            self._marks.append((self._text_place, self._file_place, self._frames))
        size = _size(self._buffer[:HEADER_BYTES])
        if size is None:
            self._left = ENDLESS
            return True
        self._buffer = self._buffer[HEADER_BYTES:]
        self._file_place += HEADER_BYTES
        self._left = size
        self._frames += 1
        self.headers = max(self.headers, self._frames)
        return True

    def _fill(self, size: int) -> None:
        """Have that many bytes in the buffer, if the file has them."""
        while len(self._buffer) < size:
            self._file.seek(self._file_place + len(self._buffer))
            more = self._file.read(BUFFER_BYTES)
            if not more:
                return
            self._buffer += more
