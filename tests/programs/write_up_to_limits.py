"""Write a file under growing size limits, as on a disk that fills up; print each failure.

Usage: python write_up_to_limits.py PATH, in a folder with no other file.
"""

import errno
import resource
import sys
from pathlib import Path

from chatgot.atomic_file import atomic_file

SIZE = 300_000
CHUNK = 3_000
LIMITS = (0, 1, 4095, 4096, 8191, 100_000, SIZE - 1)


def write(path: Path) -> None:
    with atomic_file(path) as file:
        for _ in range(SIZE // CHUNK):
            file.write(b"x" * CHUNK)


def what_went_wrong(path: Path, limit: int) -> str:
    """Return what is wrong with a write under a limit, or ""."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        write(path)
    except OSError as error:
        names = [other.name for other in path.parent.iterdir()]
        if error.errno == errno.EFBIG and names == [path.name]:
            return ""
        return f"{limit}: {error!r}, {names}"
    return f"{limit}: no error"


def main() -> None:
    path = Path(sys.argv[1])
    wrong = [what_went_wrong(path, limit) for limit in LIMITS]
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, -1))
    write(path)
    print([message for message in wrong if message])


if __name__ == "__main__":
    main()
