"""One process per run: a run id is taken by a lock that the kernel releases when the process dies."""

import errno
import os
import re
import time
from pathlib import Path

from chatgot.errors import StorageError

TIMESTAMP = "%Y%m%d-%H%M%S"
RUN_ID = re.compile(r"(?P<config>[^/\\\0]+)_(?P<timestamp>\d{8}-\d{6})", re.ASCII)


class RunLock:
    """Holds `checkpoints/.{run_id}.lock` as long as the object lives; no child process inherits it."""

    def __init__(self, run_id: str, descriptor: int) -> None:
        self.run_id, self._descriptor = run_id, descriptor

    @property
    def timestamp(self) -> str:
        return RUN_ID.fullmatch(self.run_id)["timestamp"]

    def release(self) -> None:
        os.close(self._descriptor)


def lock_new_run(checkpoint_dir: Path, config_name: str) -> RunLock:
    """Take the run id of this second; where it is taken already, the next second's. Raises: StorageError."""
    while True:
        run_id = f"{config_name}_{time.strftime(TIMESTAMP)}"
        try:
            descriptor = _open_lock(checkpoint_dir, run_id, os.O_EXCL)
        except FileExistsError:
            time.sleep(0.05)
            continue
        try:
            if _try_lock(descriptor):
                return RunLock(run_id, descriptor)
        except StorageError:
            (checkpoint_dir / f".{run_id}.lock").unlink()
            raise


def lock_old_run(checkpoint_dir: Path, run_id: str) -> RunLock:
    """Take the lock of a run that is to be resumed. Raises: StorageError when a process holds it."""
    descriptor = _open_lock(checkpoint_dir, run_id, 0)
    if not _try_lock(descriptor):
        raise StorageError(
            f"run {run_id} is still being trained by another process: wait for it, or stop it first"
        )
    return RunLock(run_id, descriptor)


def _open_lock(checkpoint_dir: Path, run_id: str, exclusive: int) -> int:
    path = checkpoint_dir / f".{run_id}.lock"
    try:
        return os.open(
            path, os.O_RDWR | os.O_CREAT | exclusive | getattr(os, "O_NOFOLLOW", 0), 0o600
        )
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: the lock cannot be made: {error.strerror}; set paths.checkpoints to a writable folder"
        ) from error


def _try_lock(descriptor: int) -> bool:
    """Return whether the lock is taken now; if not, the descriptor is closed. Raises: StorageError."""
    try:
        if os.name == "nt":
            import msvcrt  # exists on Windows alone

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # exists on Unix alone

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False  # a process holds it
        raise StorageError(
            f"this file system has no locks ({error.strerror}): set paths.checkpoints and paths.logs to another one"
        ) from error
    return True
