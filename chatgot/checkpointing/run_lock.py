"""One process per run: a lock on the run's id, which the kernel releases with the process."""

import errno
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from chatgot.checkpointing.names import TIMESTAMP, lock_path, newest_timestamp, second_after
from chatgot.errors import StorageError
from chatgot.file_owner import owner_of

logger = logging.getLogger(__name__)

NEXT_TRY_S = 0.05  # wait between two tries, as while this second's id is taken
TRIES = 3  # to lock an old run
# Never follow a link, and never wait if the lock file is a pipe. Windows has neither flag.
NO_FOLLOW_NO_WAIT = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# The umask removes some of these rights. In a shared folder, other users must open the lock too.
ALL_MAY_OPEN = 0o666


class RunLock:
    """Holds `.{run_id}.lock` until it is released or the process dies; no child inherits it.

    The file is never removed, so the id stays taken. It uses filelock's `lock_descriptor`, not its
    `FileLock`: on a file system without locks, `FileLock` makes a lock that outlives a killed
    process, and on Windows it removes the file.
    """

    def __init__(self, run_id: str, descriptor: int) -> None:
        self.run_id = run_id
        self._descriptor = descriptor

    @property
    def timestamp(self) -> str:
        return self.run_id.rpartition("_")[2]

    def release(self) -> None:
        """Unlock and close the file; it is not removed."""
        # unlock first, or a forked child with the descriptor would keep the lock
        with suppress(OSError):
            unlock_descriptor(self._descriptor)
        os.close(self._descriptor)


def lock_this_run(folder: Path, run_id: str) -> RunLock | None:
    """Lock a new run's id in another folder; None: it is taken there. Raises: StorageError."""
    path = lock_path(folder, run_id)
    try:
        descriptor = _create(path)
    except FileExistsError:
        return None
    return RunLock(run_id, descriptor) if _try_lock(descriptor, path) else None


def lock_new_run(
    checkpoint_dir: Path, config_name: str, record_dirs: Iterable[Path] = ()
) -> RunLock:
    """Choose a new run's id and lock it.

    The timestamp is the current second, or the next one if that is taken. It is always later than
    the timestamps of all runs with this name, because `latest` and the report compare names. If
    the clock is behind, there is one warning.

    record_dirs: folders with logs and curves of runs, some of them without checkpoints.
    Raises: StorageError.
    """
    while True:
        clock = time.strftime(TIMESTAMP)
        newest = _newest_timestamp(checkpoint_dir, record_dirs, config_name)
        if newest == clock:
            time.sleep(NEXT_TRY_S)
            continue
        timestamp = clock if newest is None or newest < clock else _second_after(newest)
        run_id = f"{config_name}_{timestamp}"
        path = lock_path(checkpoint_dir, run_id)
        try:
            descriptor = _create(path)
        except FileExistsError:
            time.sleep(NEXT_TRY_S)
            continue
        try:
            is_held = _try_lock(descriptor, path)
        except StorageError:
            path.unlink()
            raise
        if not is_held:
            continue
        if timestamp != clock:
            logger.warning(
                "the clock says %s, but a run of %s began at %s: this run is named %s",
                clock,
                config_name,
                newest,
                timestamp,
            )
        return RunLock(run_id, descriptor)


def lock_old_run(checkpoint_dir: Path, run_id: str) -> RunLock:
    """Lock a run that will be resumed.

    Raises: StorageError if another process trains it, or the lock cannot be opened.
    """
    path = lock_path(checkpoint_dir, run_id)
    for _ in range(TRIES):
        descriptor = _open_or_create(path)
        if _try_lock(descriptor, path):
            return RunLock(run_id, descriptor)
        time.sleep(NEXT_TRY_S)  # `is_being_trained` of another process holds it for an instant
    raise StorageError(
        f"run {run_id} is still being trained by another process: wait for it, or stop it first"
    )


def is_being_trained(checkpoint_dir: Path, run_id: str) -> bool:
    """Return whether a process trains a run; the lock is taken for an instant to find that out.

    False where it cannot be found out.
    """
    path = lock_path(checkpoint_dir, run_id)
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW_NO_WAIT)
    except OSError:
        return False
    try:
        if not _try_lock(descriptor, path):
            return True
    except StorageError:
        return False
    RunLock(run_id, descriptor).release()
    return False


def _newest_timestamp(
    checkpoint_dir: Path, record_dirs: Iterable[Path], config_name: str
) -> str | None:
    try:
        newest = [newest_timestamp([checkpoint_dir], config_name)]
    except OSError as error:
        raise StorageError(
            f"{error.filename}: cannot be listed: {error.strerror}; "
            "set paths.checkpoints to a folder that you can read and write"
        ) from error
    for folder in record_dirs:
        with suppress(OSError):  # a run goes on without logs and curves, too
            newest.append(newest_timestamp([folder], config_name))
    return max((timestamp for timestamp in newest if timestamp is not None), default=None)


def _second_after(timestamp: str) -> str:
    try:
        return second_after(timestamp)
    except OverflowError:
        raise StorageError(
            f"a run began at {timestamp}, the last possible timestamp: "
            "rename its files, or this configuration's YAML"
        ) from None


def _create(path: Path) -> int:
    """Create the lock file; return its descriptor. Raises: FileExistsError, StorageError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW_NO_WAIT, ALL_MAY_OPEN)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: the lock file cannot be created: {error.strerror}; "
            "set paths.checkpoints to a writable folder"
        ) from error


def _open_or_create(path: Path) -> int:
    """Open the lock file, or create it: a copied run has none. Raises: StorageError."""
    while True:
        if path.is_symlink():
            raise StorageError(f"{path}: found a link, expected a lock file: remove the link")
        try:
            return _open(path)
        except FileNotFoundError:
            with suppress(FileExistsError):
                return _create(path)
        except PermissionError as error:
            raise _belongs_to_another(path, error) from error
        except OSError as error:
            raise StorageError(
                f"{path}: the lock file cannot be opened: {error.strerror}; "
                "expected a file that this user can read"
            ) from error


def _open(path: Path) -> int:
    # without O_CREAT: in a shared sticky folder, Linux refuses O_CREAT for another user's file
    try:
        return os.open(path, os.O_RDWR | NO_FOLLOW_NO_WAIT)
    except PermissionError:
        # another user's file may be read-only for us; local file systems still lock it
        return os.open(path, os.O_RDONLY | NO_FOLLOW_NO_WAIT)


def _try_lock(descriptor: int, path: Path) -> bool:
    """Try to lock; return whether it worked. If not, the descriptor is closed.

    Raises: StorageError.
    """
    try:
        is_held = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBADF:  # NFS locks only files that were opened for writing
            raise _belongs_to_another(path, error) from error
        raise StorageError(
            f"{path}: this file system has no file locks ({error.strerror}): "
            "set paths.checkpoints and paths.logs to folders on another one"
        ) from error
    if not is_held:
        os.close(descriptor)
    return is_held


def _belongs_to_another(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: the lock file belongs to {owner_of(path)} and cannot be opened: "
        f"{error.strerror}; its owner can share it with: chmod a+rw {path}; "
        "if nobody trains that run any more, you can remove it"
    )
