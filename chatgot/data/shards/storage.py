"""A folder that fsspec reads and writes: on this machine, in memory, or in an object storage.

What may be over in a moment, such as a broken connection, is tried again after a while.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from chatgot.atomic_file import atomic_file
from chatgot.errors import ConfigError, StorageError

WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # between two tries
# Another try brings nothing else
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

Result = TypeVar("Result")


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return what reads an address, and the path in it; a local path is an address, too.

    Raises: ConfigError for a protocol that nobody knows, or whose package is missing.
    """
    try:
        files, path = url_to_fs(url)
    except ImportError as error:
        protocol = url.partition("://")[0]
        raise ConfigError(
            f"{url}: {protocol}:// needs a package that is not here: {error} (pip install it into "
            "the same environment)"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{url}: {error}; expected a folder, or an address that fsspec knows, such as s3://"
        ) from error
    return files, str(path)


class Folder:
    """A folder of shards.

    url: as the user writes it. Raises: ConfigError, see `file_system`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or url
        self._files, self._path = file_system(url)
        self.is_local = isinstance(self._files, LocalFileSystem)

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Return a file's bytes from `begin` up to before `end`; without them, all.

        Raises: FileNotFoundError; StorageError for what stays unreadable.
        """
        return self._tried(
            name,
            "read",
            lambda: bytes(self._files.cat_file(self._path_of(name), start=begin, end=end)),
        )

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file; on an object storage, it is there whole or not at all.

        Raises: StorageError.
        """
        path = self._path_of(name)

        def write() -> None:
            if self.is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(Path(path)) as file:
                    file.write(content)
            else:
                self._files.pipe_file(path, content)

        try:
            self._tried(name, "written", write)
        except FileNotFoundError as error:
            raise StorageError(f"{self.url}/{name}: cannot be written: {error}") from error

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None: there is none. Raises: StorageError."""
        try:
            return self._tried(name, "read", lambda: int(self._files.size(self._path_of(name))))
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """Return the names of all files. Raises: StorageError."""
        try:
            found = self._tried("", "listed", lambda: self._files.ls(self._path, detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str) -> None:
        """Remove a file. Raises: StorageError."""
        self._tried(name, "removed", lambda: self._files.rm_file(self._path_of(name)))

    def _path_of(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def _tried(self, name: str, what: str, do: Callable[[], Result]) -> Result:
        """Return the result of the first try that does not fail.

        Raises: FileNotFoundError, StorageError.
        """
        for wait_s in (*WAITS_S, None):
            try:
                return do()
            except FileNotFoundError:
                raise
            except Exception as error:  # each storage's package raises errors of its own
                if wait_s is None or isinstance(error, FINAL):
                    tries = 1 if isinstance(error, FINAL) else len(WAITS_S) + 1
                    raise StorageError(
                        f"{self.url}/{name}: cannot be {what}, tried "
                        f"{'once' if tries == 1 else f'{tries} times'}: "
                        f"{type(error).__name__}: {error}; try again later"
                    ) from error
            time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")
