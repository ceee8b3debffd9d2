"""A broken log -> a clean UTF-8 file next to it or in its place: whole, or not at all.

Nothing is lost silently. `decoding` makes text of the bytes, `cleaning` cleans it; here are the
files.
"""

import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from chatgot.atomic_file import atomic_file, fsync_folder
from chatgot.data.ebcdic import EBCDIC_ADVICE, is_ebcdic
from chatgot.data.wide import wide_encoding
from chatgot.encoding_names import codec_name
from chatgot.errors import ConfigError, StorageError
from chatgot.log_fixer.cleaning import (
    END_OF_DOS_FILE,
    LogCleaner,
    clean_ansi_escape_sequences,
    is_clean,
)
from chatgot.log_fixer.decoding import WIDE_BYTES, LogDecoder
from chatgot.log_fixer.docker_stream import DockerStream, text_of
from chatgot.log_fixer.pieces import EIGHT_BIT, READ_BYTES, Piece, SeekableFile, pieces
from chatgot.logs.waiting import Advance, waiting

__all__ = [
    "FixReport",
    "clean_ansi_escape_sequences",
    "detect_encoding",
    "fix_log_file",
    "fix_stream",
    "fixed_path",
]

HEAD_BYTES = 1 << 16  # enough to see that a file is not text
BINARY_MARKS = (
    b"\x7fELF",
    b"\x89PNG\r\n\x1a\n",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b",
    b"GIF8",
    b"\xff\xd8\xff",
    b"BZh",
    b"%PDF-",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"7z\xbc\xaf\x27\x1c",
    b"SQLite format 3\0",
    b"\xca\xfe\xba\xbe",
    b"MZ\x90\0",
)
# A tar archive has its mark at byte 257. A bitmap has two reserved fields of zeros, and the size
# of its second header.
BINARY_HEADS = re.compile(
    rb".{257}ustar[\0 ]|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}", re.DOTALL
)
# Terminal output has bell, backspace, form feed, ESC and the like, and NULs where a machine lost
# power
RARE_CONTROLS = bytes({*range(0x01, 0x20), 0x7F} - {*b"\a\b\t\n\v\f\r\x0e\x0f\x1b"})
# A head with more control characters than both of these is not text; random bytes have 8 %
MANY_CONTROLS = 8
CONTROL_SHARE = 0.02
NULS_OF_POWER_CUT = re.compile(rb"\0{8,}")
# More NULs than both, outside UTF-16 and long runs, are arrays of numbers
MANY_NULS = 64
NUL_SHARE = 0.2


@dataclass(frozen=True)
class Options:
    """How a log is mended."""

    remove_ansi: bool = True
    newline: str | None = None  # replaces every line end; None keeps each
    encoding: str | None = None  # of the lines that are not UTF-8; None: it is guessed
    keep_mojibake: bool = False


@dataclass
class FixReport:
    """What was wrong in one log, and what became of it."""

    path: str
    output: str | None = None  # None: nothing was written
    backup: str | None = None
    changed: bool = False  # the output differs from the input
    # Bytes above ASCII by the encoding they were read in; in UTF-16 every byte counts
    encodings: dict[str, int] = field(default_factory=dict)
    # How often each kind was removed, mended or shown as an escape
    counts: dict[str, int] = field(default_factory=dict)
    mended_line_numbers: list[int] = field(default_factory=list)  # of mojibake: the first 20
    undecodable_bytes: int = 0  # kept as visible escapes
    first_undecodable_offset: int | None = None  # in the input, in bytes

    def summary(self) -> str:
        """Return what was wrong, in words."""
        faults = []
        if any(name != "utf-8" for name in self.encodings):
            faults.append(f"read as {', '.join(self.encodings)}")
        for name, count in self.counts.items():
            fault = f"{count} {name.replace('_', ' ')}"
            if name == "mojibake_lines":
                fault += self._mended_lines(count)
            faults.append(fault)
        if self.undecodable_bytes:
            place = f"the first at byte offset {self.first_undecodable_offset}"
            faults.append(f"{self.undecodable_bytes} undecodable bytes kept as escapes, {place}")
        return "; ".join(faults) or "clean"

    def _mended_lines(self, count: int) -> str:
        """Return which lines were mended, in brackets: the first ones, and how many more."""
        numbers = ", ".join(map(str, self.mended_line_numbers))
        more = count - len(self.mended_line_numbers)
        line = "line" if count == 1 else "lines"
        return f" ({line} {numbers}{f' and {more} more' if more else ''})"


def fixed_path(path: Path) -> Path:
    """Return the default output, `{name}_fixed{ext}` next to the input."""
    return path.with_name(f"{path.stem}_fixed{path.suffix}")


def detect_encoding(path: str | os.PathLike[str]) -> tuple[str, float]:
    """Return the encoding of most of a log's bytes above ASCII, and how sure that is, from 0 to 1.

    "utf-8" for plain ASCII. The second figure is the share of those bytes times the confidence: 1
    for UTF-8, UTF-16 and ISO-2022, which are checked, not guessed; that of the guess for an older
    encoding. Bytes that no encoding explains count as a share that is not known.

    Raises: ConfigError.
    """
    with _open_log(Path(path)) as file:
        decoder = LogDecoder(text_of(file))
        for piece in decoder.pieces():
            for _ in decoder.texts(piece):
                pass
    total = decoder.sizes.total() + decoder.unread_bytes
    if not decoder.sizes:
        return "utf-8", 0.0 if total else 1.0
    encoding, size = decoder.sizes.most_common(1)[0]
    share = size / total
    return encoding, share * decoder.confidences.get(encoding, 1.0)


def fix_log_file(  # noqa: PLR0913 each is an option of the command line
    input_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str] | None = None,
    remove_ansi: bool = True,
    *,
    in_place: bool = False,
    check: bool = False,
    newline: str | None = None,
    force: bool = False,
    encoding: str | None = None,
    keep_mojibake: bool = False,
) -> FixReport:
    r"""Mend one log of any program, write it to `output_path`, and say what was wrong.

    output_path: by default `{name}_fixed{ext}` next to the input; a file there is replaced, and a
    symbolic link there is followed. The output has the permissions of the input. in_place: replace
    the input, after keeping it as `{name}.bak` (`.bak.1` ... where that exists); a clean log stays
    as it is. check: write nothing. newline: "\n" makes every line end that; None keeps each. force:
    mend also a binary file. encoding: of the lines that are not UTF-8; None: it is guessed.
    keep_mojibake: leave mojibake as it is.

    Raises: ConfigError for an unknown encoding, or an input that cannot be read, is no text,
    changes meanwhile or would be overwritten; StorageError for an output that cannot be written. In
    both cases nothing has changed.
    """
    path = Path(input_path)
    if encoding is not None:
        try:
            encoding = codec_name(encoding)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    options = Options(remove_ansi, newline, encoding, keep_mojibake)
    report = FixReport(str(path))
    with _open_log(path) as file:
        if in_place:
            # The file that a symbolic link names is mended, and the link stays
            path = Path(os.path.realpath(path))
            report.path = str(path)
        output = fixed_path(path) if output_path is None else Path(output_path)
        destination = path if in_place or check else _destination(path, output)
        before = os.fstat(file.fileno())
        if not force and encoding not in WIDE_BYTES:
            _refuse_binary(file, path)
        if check or in_place:
            with waiting(f"reading {path.name}", before.st_size) as advance:
                fix_stream(file, None, report, options, advance)
            _refuse_changed(file, before, path)
        if check or (in_place and not report.changed):
            return report

        def verify(temporary: Path) -> None:
            _refuse_changed(file, before, path)
            if os.name != "nt":  # a mode is "read only" there, and no rename replaces such a file
                if in_place:
                    _keep_owner(path, temporary, before)
                with suppress(PermissionError):  # some file systems have no modes
                    temporary.chmod(stat.S_IMODE(before.st_mode))
            if in_place:
                report.backup = str(_keep_backup(path))
                file.close()  # Windows replaces no open file

        try:
            with (
                waiting(f"mending {path.name}", before.st_size) as advance,
                atomic_file(destination, verify) as target,
            ):
                fix_stream(file, target, report, options, advance)
        except OSError as error:
            named = path if in_place else output
            raise StorageError(f"{named}: cannot be written: {error.strerror or error}") from error
    report.output = str(path if in_place else output)
    return report


def fix_stream(
    file: SeekableFile,
    target: BinaryIO | None,
    report: FixReport,
    options: Options = Options(),
    advance: Advance | None = None,
) -> None:
    """Mend a seekable file from its beginning into `target` (None: only look); fill the report.

    advance: is told the bytes that have been mended.
    """
    newline = options.newline
    keep_mojibake = options.keep_mojibake
    source = text_of(file)
    decoder = LogDecoder(source, encoding=options.encoding)
    cleaner = LogCleaner(options.remove_ansi, newline, keep_mojibake=keep_mojibake)
    write = target.write if target else len
    for piece in decoder.pieces():
        is_text = decoder.is_plain(piece) and not cleaner.holds()
        if is_text and is_clean(piece.data, newline, keep_mojibake):
            decoder.count_utf8(piece.data)
            write(cleaner.feed_clean(piece.data))
        else:
            for text in decoder.texts(piece):
                write(cleaner.feed(text.characters, text.is_guess).encode())
        if advance is not None:
            advance(len(piece.data))
    write(cleaner.end().encode())
    cleaner.counts["nuls"] += decoder.wide_nuls
    if isinstance(source, DockerStream):
        cleaner.counts["docker_headers"] += source.headers
    report.encodings = dict(decoder.sizes)
    report.counts = {name: count for name, count in cleaner.counts.items() if count}
    report.mended_line_numbers = cleaner.mended_line_numbers
    report.undecodable_bytes = decoder.undecodable_bytes
    report.first_undecodable_offset = decoder.first_undecodable
    if isinstance(source, DockerStream) and decoder.first_undecodable is not None:
        report.first_undecodable_offset = source.place_in_file(decoder.first_undecodable)
    other_encodings = set(report.encodings) - {"utf-8"}
    report.changed = bool(report.counts or report.undecodable_bytes or other_encodings)


class _LogFile:
    """A log that is open for reading; its read errors are not taken for errors of the output."""

    def __init__(self, file: FileIO, path: Path) -> None:
        self._file = file
        self._path = path

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        """Close the file; nothing more is read of it."""
        self._file.close()

    def seek(self, offset: int, /) -> None:
        self._file.seek(offset)

    def read(self, size: int, /) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def _open_log(path: Path) -> Iterator[_LogFile]:
    """Open a regular file. Raises: ConfigError, also when reading fails later in the block."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ConfigError(
                f"{path}: is a folder; expected a log (the script takes folders with --recursive)"
            )
        if not stat.S_ISREG(kind):  # opening a pipe would wait for its writer
            raise ConfigError(
                f"{path}: is a pipe or a device; expected a file (pipe it into - instead)"
            )
        file = path.open("rb", buffering=0)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {_reason(error)}") from error
    with file:
        yield _LogFile(file, path)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _destination(path: Path, output: Path) -> Path:
    """Return the file to write or replace: what `output` names, or what that links to.

    Raises: ConfigError for the input itself and for what is no file; StorageError for what cannot
    be reached.
    """
    try:
        destination = Path(os.path.realpath(output))
        with suppress(FileNotFoundError):
            _refuse_output(output, path)
    except (OSError, ValueError) as error:
        raise StorageError(f"{output}: cannot be written: {_reason(error)}") from error
    return destination


def _refuse_output(output: Path, path: Path) -> None:
    """Raise ConfigError for an output that is no file, or that is the input."""
    status = output.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{output}: is a folder; expected the name of a file to write")
    if os.path.samestat(status, path.stat()):
        raise ConfigError(
            f"{output}: output and input are the same file; use --in-place to replace it"
        )
    if not stat.S_ISREG(status.st_mode):  # a rename would put a file in the place of the device
        raise ConfigError(f"{output}: is a pipe or a device; expected the name of a file to write")


def _refuse_changed(file: _LogFile, before: os.stat_result, path: Path) -> None:
    after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ConfigError(
            f"{path}: changed while it was read; mend it when the program that writes it has ended"
        )


def _refuse_binary(log: _LogFile, path: Path) -> None:
    file = text_of(log)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if is_ebcdic(head):
        raise ConfigError(f"{path}: {EBCDIC_ADVICE}")
    is_marked = head.startswith(BINARY_MARKS) or BINARY_HEADS.match(head)
    if is_marked or _is_binary(head, file):
        raise ConfigError(
            f"{path}: looks like a binary file; expected a log (--force mends it all the same)"
        )


def _is_binary(head: bytes, file: SeekableFile) -> bool:
    """Tell by its control characters and NULs whether the head of a file is no text.

    The head begins after NULs: a log that is cut off while its program writes to it has them there.
    """
    start = _first_byte(file) if head.startswith(b"\0") else 0
    if start is None:
        return True
    head = _read_at(file, start)
    eight_bit = b"".join(
        piece.data for piece in _head_pieces(file, start) if piece.kind == EIGHT_BIT
    )
    text = eight_bit.translate(None, b"\0").rstrip(END_OF_DOS_FILE.encode())
    controls = len(text) - len(text.translate(None, RARE_CONTROLS))
    nuls = NULS_OF_POWER_CUT.sub(b"", eight_bit).count(b"\0")
    has_many_controls = controls > max(MANY_CONTROLS, CONTROL_SHARE * len(text))
    has_many_nuls = nuls > max(MANY_NULS, NUL_SHARE * len(eight_bit))
    if has_many_nuls:
        return has_many_controls or wide_encoding(head) is None
    return has_many_controls


def _first_byte(file: SeekableFile) -> int | None:
    """Return where the NULs at the start of a file end, or a few before; None: there is no more.

    A character of UTF-16 or UTF-32 may begin with NULs, and stays aligned.
    """
    offset = 0
    file.seek(0)
    while block := file.read(READ_BYTES):
        rest = block.lstrip(b"\0")
        if rest:
            first = offset + len(block) - len(rest)
            return first // 4 * 4
        offset += len(block)
    return None


def _read_at(file: SeekableFile, offset: int) -> bytes:
    file.seek(offset)
    return file.read(HEAD_BYTES)


def _head_pieces(file: SeekableFile, start: int) -> Iterator[Piece]:
    for piece in pieces(file, start, HEAD_BYTES):
        if piece.offset >= start + HEAD_BYTES:
            return
        yield piece


def _keep_backup(path: Path) -> Path:
    """Keep the file under a free name: as a second link, or as a copy where there are no links."""
    number = 0
    while True:
        suffix = f".bak.{number}" if number else ".bak"
        backup = path.with_name(path.name + suffix)
        try:
            os.link(path, backup)
            break
        except FileExistsError:
            number += 1
        except OSError:
            if not backup.exists():
                _copy(path, backup)
                break
            number += 1
    fsync_folder(path.parent)
    return backup


def _keep_owner(path: Path, temporary: Path, before: os.stat_result) -> None:
    """Give a mended log the owner and the extended attributes of the log, as far as that goes."""
    with suppress(OSError):
        os.chown(temporary, -1, before.st_gid)
    with suppress(OSError):
        os.chown(temporary, before.st_uid, -1)
    if sys.platform == "linux":
        with suppress(OSError):
            for name in os.listxattr(path):
                with suppress(OSError):
                    os.setxattr(temporary, name, os.getxattr(path, name))


def _copy(path: Path, backup: Path) -> None:
    with path.open("rb") as source, atomic_file(backup) as target:
        shutil.copyfileobj(source, target, READ_BYTES)
    shutil.copystat(path, backup)
