"""What is in a zip archive, and its members unpacked one at a time, each within limits.

A zip may lie: its headers name any size and any path. So members are written under names of our
own, and their bytes are counted as they come.
"""

import os
import re
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from chatgot.data.preparation.reader import UnreadableError
from chatgot.errors import StorageError

SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
# Members that show that a zip is a document or a program, for a reader or for nobody
MARKS_OF_DOCUMENTS = {
    "[Content_Types].xml": "an Office document",
    "mimetype": "a book or an OpenDocument file",
    "META-INF/MANIFEST.MF": "a Java program",
    "AndroidManifest.xml": "an Android program",
}
# Of PyTorch's checkpoints and NumPy's arrays
MARK_OF_ARRAYS = re.compile(r"[^/]+/data\.pkl|.+\.npy")
# Text shrinks to a tenth, a chat with much repetition to a fiftieth; deflate's own limit is 1032
MOST_RATIO = 200
NEEDED_BY_OTHERS = ("users.json",)  # the names of the people in Slack's exports
FREE_BYTES = 1 << 20  # so much may come out of any archive, however small it is
MOST_MEMBERS_BYTES = 1 << 26  # of the list of members, which is read into memory
END_RECORD_BYTES = 22 + (1 << 16)  # a zip ends with its end record and a comment
# Others take memory as the archive says (LZMA), or are not in Python
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
COPY_BYTES = 1 << 20
DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """A file in a zip.

    place: in the archive's list of members; names may occur twice.
    refusal: why it is not unpacked; empty: it may be.
    """

    name: str
    place: int
    size: int
    modified: float
    refusal: str = ""


@dataclass
class Allowance:
    """How many bytes may come out of one archive, all members together."""

    most: int
    given: dict[int, int] = field(default_factory=dict)  # by each member
    total: int = 0

    @classmethod
    def for_archive(cls, path: Path) -> "Allowance":
        """Return what an archive may give, by its size on the disk. Raises: OSError."""
        return cls(MOST_RATIO * path.stat().st_size + FREE_BYTES)

    def covers(self, place: int, count: int) -> bool:
        """Return whether so many bytes may come out of a member, and note it.

        One that is unpacked again counts once.
        """
        given = self.given.get(place, 0)
        if count > given:
            self.given[place] = count
            self.total += count - given
        return self.total <= self.most


def is_zip(head: bytes) -> bool:
    """Return whether a file that begins so is a zip, of whatever kind."""
    return head.startswith(SIGNATURES)


def kind_of_document(path: Path) -> str:
    """Return in words what a zip is that is no archive of files; empty: it is one.

    Raises: UnreadableError, OSError.
    """
    with _opened(path) as archive:
        names = set(archive.namelist())
    for name, kind in MARKS_OF_DOCUMENTS.items():
        if name in names:
            return kind
    if any(MARK_OF_ARRAYS.fullmatch(name) for name in names):
        return "a file of weights or numbers"
    return ""


def members_of(path: Path) -> list[Member]:
    """Return the files in a zip, in its own order, with the reason where one is refused.

    Raises: UnreadableError, OSError.
    """
    with _opened(path) as archive:
        return [
            Member(
                _readable_name(info), place, info.file_size, _seconds_of(info), _refusal_of(info)
            )
            for place, info in enumerate(archive.infolist())
            if not info.is_dir()
        ]


@contextmanager
def unpacked(path: Path, member: Member, allowance: Allowance) -> Iterator[Path]:
    """Unpack one member into a temporary file, which is gone after the block.

    Beside it are those of NEEDED_BY_OTHERS that are in its folder in the zip, or one above.

    allowance: of the archive; what comes out is taken off.
    Raises: UnreadableError; StorageError where the temporary folder has no room; OSError.
    """
    with tempfile.TemporaryDirectory(prefix="chatgot-", ignore_cleanup_errors=True) as folder:
        target = Path(folder, "folder", "member")
        target.parent.mkdir()
        with _opened(path) as archive:
            infos = archive.infolist()
            if member.place >= len(infos):
                raise UnreadableError("the archive has changed since it was looked at")
            info = infos[member.place]
            _unpack(archive, info, target, _limit(info, member.place, allowance))
            for other, beside in _needed(archive, info, target):
                limit = _limit(other, infos.index(other), allowance)
                _unpack(archive, other, beside, limit)
        yield target


def _limit(info: zipfile.ZipInfo, place: int, allowance: Allowance) -> Callable[[int], bool]:
    """Return what says whether so many bytes may come out of a member."""
    most = MOST_RATIO * info.compress_size + FREE_BYTES
    return lambda count: count <= most and allowance.covers(place, count)


def _needed(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path
) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    """Yield the members that a member's reader may look for, and where it does."""
    folder = PurePosixPath(info.filename).parent
    for name in NEEDED_BY_OTHERS:
        for place, beside in ((folder, target.parent), (folder.parent, target.parent.parent)):
            other = archive.NameToInfo.get(str(place / name))
            if other is not None and other is not info and not _refusal_of(other):
                yield other, beside / name
                break


def _unpack(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, may_be: Callable[[int], bool]
) -> None:
    """Copy a member.

    may_be: whether so many bytes may come of it.
    Raises: UnreadableError, StorageError, OSError.
    """
    count = 0
    with target.open("wb") as file, _faults_of_archives(), archive.open(info) as source:
        while block := source.read(COPY_BYTES):
            count += len(block)
            if not may_be(count):
                raise UnreadableError(
                    f"unpacks to more than {MOST_RATIO} times its size: a zip bomb, or no text"
                )
            _write(file.fileno(), block, target.parent)


def _write(descriptor: int, block: bytes, folder: Path) -> None:
    """Write a whole block. Raises: StorageError."""
    try:
        while block:
            block = block[os.write(descriptor, block) :]
    except OSError as error:
        raise StorageError(
            f"{folder.parent}: a zip cannot be unpacked there: {error.strerror or error}; "
            "make room, or set TMPDIR to a folder that has it"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip. Raises: UnreadableError, OSError."""
    _refuse_long_list(path)
    with _faults_of_archives():
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


@contextmanager
def _faults_of_archives() -> Iterator[None]:
    """Turn what Python raises on a damaged archive into words."""
    try:
        yield
    except NotImplementedError as error:
        raise UnreadableError(f"packed in a way that is not read: {error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error) as error:
        raise UnreadableError(f"a damaged zip: {str(error) or 'it ends too early'}") from error
    except RuntimeError as error:  # a password
        raise UnreadableError(str(error)) from error


def _refuse_long_list(path: Path) -> None:
    """Refuse an archive whose list of members would fill the memory.

    Source: APPNOTE.TXT 4.3.14 to 4.3.16 (end of central directory record, also that of zip64).
    Raises: UnreadableError, OSError.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END_RECORD_BYTES))
        tail = file.read(END_RECORD_BYTES)
    long_end = tail.rfind(b"PK\x06\x06")
    end = tail.rfind(b"PK\x05\x06")
    length = 0
    with suppress(struct.error):
        if end >= 0:
            (length,) = struct.unpack_from("<I", tail, end + 12)
        if long_end >= 0:
            (long_length,) = struct.unpack_from("<Q", tail, long_end + 40)
            length = max(long_length, 0 if length == 0xFFFFFFFF else length)
    if length > MOST_MEMBERS_BYTES:
        raise UnreadableError("a zip with more members than any collection of texts has")


def _readable_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; many programs write UTF-8 without saying so."""
    name = info.filename
    if not info.flag_bits & 0x800:  # Python has read it as cp437
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name


def _seconds_of(info: zipfile.ZipInfo) -> float:
    """Return when a member was changed, in seconds since 1970 by the local clock; 0: unknown."""
    with suppress(ValueError, OverflowError):
        return time.mktime((*info.date_time, 0, 0, -1))
    return 0.0


def _refusal_of(info: zipfile.ZipInfo) -> str:
    """Return why a member is not unpacked; empty: it may be."""
    name = info.orig_filename.replace("\\", "/")
    if name.startswith("/") or DRIVE.match(name):
        return "its name is an absolute path; such an archive is not trusted"
    if ".." in name.split("/"):
        return "its name leads out of the archive (..); such an archive is not trusted"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a symlink within a zip"
    if info.flag_bits & 0x1:
        return "encrypted; unpack it with its password"
    if info.compress_type not in METHODS:
        return "packed in a way that is not read; unpack it, or pack it as an ordinary zip"
    return ""
