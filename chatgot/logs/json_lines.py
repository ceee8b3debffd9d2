"""Files with one JSON object per line, each with its `step`: append a line, or cut back to a step.

metrics.jsonl, events.jsonl and samples.jsonl are such files.
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from chatgot.atomic_file import atomic_file


class JsonLines:
    """Append objects to `path`, one per line.

    keep_up_to: in a resumed run, the last step whose lines stay. Later lines and an incomplete last
        line are removed before the first new line. None: nothing is removed.
    """

    def __init__(self, path: Path, keep_up_to: int | None = None) -> None:
        self.path = path
        self._keep_up_to = keep_up_to

    def cut_back(self, step: int) -> None:
        """Remove the lines after `step` before the next line is appended."""
        if self._keep_up_to is None or step < self._keep_up_to:
            self._keep_up_to = step

    def append(self, fields: Mapping[str, object]) -> None:
        """Append one line, completely or not at all; non-finite numbers become null.

        The file is opened again for each line, because it may have been moved.
        Raises: OSError if the line is lost; the older lines are still there.
        """
        line = json.dumps(as_json(fields), allow_nan=False).encode() + b"\n"
        if self._keep_up_to is not None:
            remove_later_lines(self.path, self._keep_up_to)
            self._keep_up_to = None
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            written = file.write(line)
            if written < len(line):  # the disk is full now
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def as_json(value: object) -> object:
    """Return a value that JSON can store: NaN and infinity become null, other objects text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def remove_later_lines(path: Path, last_step: int) -> None:
    """Remove the lines after `last_step` and an incomplete last line, atomically.

    A file without such lines is not written.
    """
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")
    kept = b"".join(line + b"\n" for line in lines if step_of(line) <= last_step)
    if kept != content:
        with atomic_file(path) as file:
            file.write(kept)


def step_of(line: bytes) -> float:
    """Return a line's step; infinity if it has none."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        step = json.loads(line)["step"]
        if isinstance(step, int | float):
            return step
    return math.inf
