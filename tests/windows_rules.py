"""Rules of Windows, put over those of this system."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# What Python lacks there
UNIX_ONLY = re.compile(
    r"^import (?:fcntl|pty|pwd|resource|termios)$|signal\.SIG(?:HUP|KILL|STOP)\b", re.MULTILINE
)
LINK_REFUSED = OSError(errno.EPERM, "A required privilege is not held by the client")


def needs_unix(path: Path) -> bool:
    """Return whether a folder or module of tests cannot be imported on Windows."""
    if path.name == "faults":  # the kernel's limits, signals and file systems of their own
        return True
    if path.suffix != ".py":
        return False
    return UNIX_ONLY.search(path.read_text(encoding="utf-8")) is not None


def open_paths() -> Iterator[str]:
    """Yield the paths of the files that this process has open or mapped."""
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            yield str(descriptor.readlink())
        except OSError:  # the descriptor with which the folder was read
            continue
    for line in Path("/proc/self/maps").read_text().splitlines():
        _, _, path = line.partition("/")
        if path:
            yield f"/{path}"


class WindowsFiles:
    """The functions of `os` as Windows has them; `refused` has what they refused."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refused: list[str] = []
        self.replace = os.replace
        self.unlink = os.unlink
        patch.setattr(os, "replace", self.checked_replace)
        patch.setattr(os, "rename", self.checked_rename)
        patch.setattr(os, "unlink", self.checked_unlink)
        patch.setattr(os, "remove", self.checked_unlink)
        patch.setattr(os, "symlink", self.no_symlink)

    def refuse_if_open(self, *paths: str | os.PathLike[str]) -> None:
        in_use = set(open_paths())
        for path in paths:
            if os.path.realpath(path) in in_use:
                self.refused.append(str(path))
                raise PermissionError(errno.EACCES, "The file is used by a process", str(path))

    def checked_replace(self, source, target, **options) -> None:
        self.refuse_if_open(source, target)
        self.replace(source, target, **options)

    def checked_rename(self, source, target, **options) -> None:
        self.refuse_if_open(source, target)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "The file exists", str(target))
        self.replace(source, target, **options)

    def checked_unlink(self, path, **options) -> None:
        if not options.get("dir_fd"):
            self.refuse_if_open(path)
        self.unlink(path, **options)

    def no_symlink(self, *arguments, **options) -> None:
        raise LINK_REFUSED


def os_named(name: str) -> object:
    """Return a stand-in for one module's `os`: pathlib and pytest must not believe the name."""
    return type("System", (), {**vars(os), "name": name})
