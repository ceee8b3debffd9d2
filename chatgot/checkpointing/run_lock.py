"""One process per run: a run's id is taken by a lock that the kernel releases with the process."""

import errno
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from chatgot.checkpointing.names import TIMESTAMP, lock_path, newest_timestamp, second_after
from chatgot.errors import StorageError

logger = logging.getLogger(__name__)

NEXT_TRY_S = 0.05  # between two looks at the clock while this second's id is taken
# A link is never followed, a pipe in the lock's place never waited for; Windows has neither flag.
NO_FOLLOW_NO_WAIT = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# The umask narrows it; members of a group's folder must be able to open the lock.
ALL_MAY_OPEN = 0o666


class RunLock:
    """Holds `.{run_id}.lock` until it is released or the process dies; no child inherits it.

    The file stays in place: it keeps the id taken. filelock's `lock_descriptor` is used rather than
    its `FileLock`, since that one falls back to a lock that outlives a killed process where the
    file system has none, and removes the file on Windows.
    """

    def __init__(self, run_id: str, descriptor: int) -> None:
        self.run_id = run_id
        self._descriptor = descriptor

    @property
    def timestamp(self) -> str:
        return self.run_id.rpartition("_")[2]

    def release(self) -> None:
        """Unlock and close the file, which stays."""
        # unlocked first: a forked child that still has the descriptor does not keep the lock
        with suppress(OSError):
            unlock_descriptor(self._descriptor)
        os.close(self._descriptor)


def lock_this_run(folder: Path, run_id: str) -> RunLock | None:
    """Take a new run's id in one more folder; None: it is taken there. Raises: StorageError."""
    path = lock_path(folder, run_id)
    try:
        descriptor = _create(path)
    except FileExistsError:
        return None
    return RunLock(run_id, descriptor) if _try_lock(descriptor, path) else None


def lock_new_run(checkpoint_dir: Path, config_name: str) -> RunLock:
    """Take a new run's id, and with it the lock.

    The timestamp is this second's; where that one is taken, the next second's. It is later than
    that of every run of this name, because `latest` compares names; a clock that is behind is one
    warning.

    Raises: StorageError.
    """
    while True:
        clock = time.strftime(TIMESTAMP)
        newest = _newest_timestamp(checkpoint_dir, config_name)
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
                "the clock says %s, but a run of %s began at %s: this one is named %s",
                clock,
                config_name,
                newest,
                timestamp,
            )
        return RunLock(run_id, descriptor)


def lock_old_run(checkpoint_dir: Path, run_id: str) -> RunLock:
    """Take the lock of a run that is to be resumed.

    Raises: StorageError when another process trains it, or the lock cannot be opened.
    """
    path = lock_path(checkpoint_dir, run_id)
    descriptor = _open_or_create(path)
    if not _try_lock(descriptor, path):
        raise StorageError(
            f"run {run_id} is still being trained by another process: wait for it, or stop it first"
        )
    return RunLock(run_id, descriptor)


def _newest_timestamp(checkpoint_dir: Path, config_name: str) -> str | None:
    try:
        return newest_timestamp(checkpoint_dir, config_name)
    except OSError as error:
        raise StorageError(
            f"{checkpoint_dir}: cannot be listed: {error.strerror}; "
            "set paths.checkpoints to a writable folder"
        ) from error


def _second_after(timestamp: str) -> str:
    try:
        return second_after(timestamp)
    except OverflowError:
        raise StorageError(
            f"a run began at {timestamp}, the last second that a name can hold: "
            "rename its files, or this configuration"
        ) from None


def _create(path: Path) -> int:
    """Create the lock file, not inheritable. Raises: FileExistsError, StorageError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW_NO_WAIT, ALL_MAY_OPEN)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: the lock cannot be made: {error.strerror}; "
            "set paths.checkpoints to a writable folder"
        ) from error


def _open_or_create(path: Path) -> int:
    """Open the lock file; a run from another folder has none yet. Raises: StorageError."""
    while True:
        if path.is_symlink():
            raise StorageError(f"{path}: is a link, expected a lock file: remove it")
        try:
            return _open(path)
        except FileNotFoundError:
            with suppress(FileExistsError):
                return _create(path)
        except PermissionError as error:
            raise _belongs_to_another(path, error) from error
        except OSError as error:
            raise StorageError(f"{path}: the lock cannot be opened: {error.strerror}") from error


def _open(path: Path) -> int:
    # without O_CREAT: in a shared sticky folder Linux refuses it for another user's file
    try:
        return os.open(path, os.O_RDWR | NO_FOLLOW_NO_WAIT)
    except PermissionError:
        # another user's file that may only be read: local file systems lock it all the same
        return os.open(path, os.O_RDONLY | NO_FOLLOW_NO_WAIT)


def _try_lock(descriptor: int, path: Path) -> bool:
    """Return whether the lock is held now; if it is not, close the descriptor.

    Raises: StorageError.
    """
    try:
        is_held = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBADF:  # NFS locks only what may be written
            raise _belongs_to_another(path, error) from error
        raise StorageError(
            f"this file system has no locks ({error.strerror}): "
            "set paths.checkpoints and paths.logs to another one"
        ) from error
    if not is_held:
        os.close(descriptor)
    return is_held


def _belongs_to_another(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: the lock belongs to {_owner(path)} and cannot be opened: {error.strerror}; "
        "its owner can share it with: chmod a+rw"
    )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"
    except (OSError, NotImplementedError):
        return "somebody else"
