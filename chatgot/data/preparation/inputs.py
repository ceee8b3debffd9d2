"""Which files a user means by files, folders, patterns and zips: each one found, or named.

Nothing is read here but the first bytes of a file, which show whether it is a zip.
"""

import glob
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from chatgot.data.preparation.natural_order import SEPARATORS, natural_key
from chatgot.data.preparation.reader import UnreadableError
from chatgot.data.preparation.zips import (
    Allowance,
    Member,
    is_zip,
    kind_of_document,
    members_of,
)
from chatgot.errors import ConfigError

# What systems and programs leave in folders, besides names that begin with a dot
NOT_OF_THE_USER = {"thumbs.db", "desktop.ini", "__macosx", "__pycache__"}
LOCK_OF_OFFICE = "~$"
PATTERN = "*?["
OUR_FOLDERS = (Path("data", "cache"), Path("logs", "tensorboard"), Path("checkpoints"))


@dataclass(frozen=True)
class Found:
    """A file to read: on the disk, or within a zip.

    name: as messages show it.
    path: the file, or the zip that it is in.
    size: in bytes; of a member, what the zip says.
    modified: seconds since 1970.
    allowance: of the zip, shared by its members.
    """

    name: str
    path: Path
    size: int
    modified: float
    member: Member | None = None
    allowance: Allowance | None = None


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the text, and why."""

    name: str
    reason: str


@dataclass
class Finding:
    """What was found.

    left_out: what somebody might miss. skipped: hidden files, and what this program has written.
    """

    files: list[Found] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    skipped: list[LeftOut] = field(default_factory=list)


def find_files(inputs: Sequence[str], ours: Collection[Path] = ()) -> Finding:
    """Find the files that inputs name, in natural order of their names.

    inputs: files, folders (with all that is in them), patterns (`*`, `?`, `[...]`, `**`).
    ours: files that this command writes, which are not read.
    Raises: ConfigError for an input that names nothing, or an output.
    """
    search = _Search(ours)
    for given in inputs:
        for path in _paths_of(given):
            search.take(path, is_named=True)
    search.finding.files.sort(key=lambda found: natural_key(found.name))
    search.finding.left_out.sort(key=lambda left_out: natural_key(left_out.name))
    return search.finding


def _paths_of(given: str) -> list[Path]:
    """Return what an input names. Raises: ConfigError."""
    if not given:
        raise ConfigError("an empty input: give a file, a folder, a pattern or a zip")
    if "\0" not in given and os.path.lexists(given):  # before patterns: `a[1].txt` may exist
        return [Path(given)]
    if any(character in given for character in PATTERN):
        paths = sorted(glob.glob(given, recursive=True), key=natural_key)  # noqa: PTH207 a text
        if not paths:
            raise ConfigError(f"{given}: no file matches this pattern in {Path.cwd()}")
        return [Path(path) for path in paths]
    absolute = "" if Path(given).is_absolute() else f" in {Path.cwd()}"
    raise ConfigError(
        f"{given}: no such file or folder{absolute}{_hint(Path(given))}; "
        "give a file, a folder, a pattern or a zip"
    )


def _hint(path: Path) -> str:
    """Return the name of what lies there and is most like a path; maybe empty."""
    try:
        names = os.listdir(path.parent)  # noqa: PTH208 names are all that is needed
    except (OSError, ValueError):
        return ""
    nearest = get_close_matches(path.name, names, n=1)
    return f", did you mean {path.with_name(nearest[0])}?" if nearest else ""


class _Search:
    """Goes through folders and zips, and takes each file once."""

    def __init__(self, ours: Collection[Path]) -> None:
        self.finding = Finding()
        self.ours = {_real(path) for path in (*ours, *OUR_FOLDERS)}
        self.taken: set[tuple[int, int]] = set()  # files and folders, as (device, inode)

    def take(self, path: Path, is_named: bool = False) -> None:
        """Take a file, or all that is in a folder.

        is_named: the user has named it, so that it is taken even where it is hidden.
        Raises: ConfigError for a file that the user names and that is to be written, too.
        """
        waiting = [(path, is_named)]
        while waiting:
            path, is_named = waiting.pop()
            if not is_named and is_hidden(path.name):
                self.skip(path, "hidden")
            elif _real(path) in self.ours:
                if is_named and path.is_file():
                    raise ConfigError(
                        f"{path}: an input and an output of one command; name another output"
                    )
                self.skip(path, "written by this program")
            else:
                waiting += [(child, False) for child in self._take_one(path)]

    def skip(self, path: Path, reason: str) -> None:
        """Note what is passed over, which nobody misses."""
        self.finding.skipped.append(LeftOut(str(path), reason))

    def leave_out(self, name: object, reason: str) -> None:
        """Note what is not in the text though it might be."""
        self.finding.left_out.append(LeftOut(str(name), reason))

    def _take_one(self, path: Path) -> list[Path]:
        """Take a file; return what is in a folder, the last first."""
        try:
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            if stat.S_ISDIR(status.st_mode):
                return self._take_folder(path, identity)
            if not stat.S_ISREG(status.st_mode):
                self.leave_out(path, f"{_kind(status.st_mode)}, no file")
            elif identity in self.taken:
                self.skip(path, "taken already")
            elif status.st_size == 0:
                self.leave_out(path, "empty")
            else:
                self.taken.add(identity)
                self._take_file(path, status)
        except OSError as error:
            self.leave_out(path, _reason(path, error))
        return []

    def _take_folder(self, path: Path, identity: tuple[int, int]) -> list[Path]:
        """Return what is in a folder, the last first. Raises: OSError."""
        if identity in self.taken:
            if path.is_symlink():
                self.leave_out(path, f"a symlink back to {path.readlink()}, which is read already")
            else:
                self.skip(path, "taken already")
            return []
        self.taken.add(identity)
        names = sorted(os.listdir(path), key=natural_key, reverse=True)  # noqa: PTH208
        if not names:
            self.leave_out(path, "an empty folder")
        return [path / name for name in names]

    def _take_file(self, path: Path, status: os.stat_result) -> None:
        """Take a file, or what is in a zip. Raises: OSError."""
        with path.open("rb") as file:
            head = file.read(4)
        if is_zip(head) and self._take_zip(path):
            return
        found = Found(str(path), path, status.st_size, status.st_mtime)
        self.finding.files.append(found)

    def _take_zip(self, path: Path) -> bool:
        """Take what is in a zip; return False for a document that is one, as .docx is."""
        try:
            if kind_of_document(path):
                return False
            members = members_of(path)
            allowance = Allowance.for_archive(path)
        except UnreadableError as error:
            self.leave_out(path, str(error))
            return True
        if not members:
            self.leave_out(path, "an empty zip")
        for member in members:
            self._take_member(path, member, allowance)
        return True

    def _take_member(self, path: Path, member: Member, allowance: Allowance) -> None:
        name = f"{path}: {member.name}"
        if any(map(is_hidden, SEPARATORS.split(member.name))):
            self.finding.skipped.append(LeftOut(name, "hidden"))
        elif member.refusal:
            self.leave_out(name, member.refusal)
        elif member.size == 0:
            self.leave_out(name, "empty")
        else:
            self.finding.files.append(
                Found(name, path, member.size, member.modified, member, allowance)
            )


def is_hidden(name: str) -> bool:
    """Return whether a name is of a hidden file, or of what systems leave in folders."""
    is_dotted = name.startswith(".") and name not in (".", "..")
    return is_dotted or name.startswith(LOCK_OF_OFFICE) or name.lower() in NOT_OF_THE_USER


def _real(path: Path) -> str:
    """Return one name for a path, however it is written."""
    return os.path.normcase(os.path.realpath(path))


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _reason(path: Path, error: OSError) -> str:
    """Return why a path cannot be read."""
    try:
        is_broken = path.is_symlink() and not path.exists()
    except OSError:  # links that lead to each other, names that are too long
        is_broken = False
    if is_broken:
        return f"a symlink to {path.readlink()}, which leads to no file"
    return f"cannot be read: {error.strerror or error}"


def in_order_of_time(files: Iterable[Found], times: Iterator[float | None]) -> list[Found]:
    """Return files the earliest first; without a time of its own a file's change counts.

    times: of the first message of each file, in the same order; None: it has none.
    """
    timed = [
        (found.modified if time is None else time, place, found)
        for place, (found, time) in enumerate(zip(files, times, strict=True))
    ]
    return [found for _, _, found in sorted(timed, key=lambda entry: entry[:2])]
