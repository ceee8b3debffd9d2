"""The environment of processes that tests start: this process's own, with a few changes."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def child_environment(*folders: Path, without: str = "", **changes: str) -> dict[str, str]:
    """Return this process's environment with changes.

    folders: where a child looks for modules first. What PYTHONPATH names already stays: the
    packages of a machine may be there.
    without: leave out the variables whose names begin like this.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not without or not name.startswith(without)
    }
    if folders:
        before = os.environ.get("PYTHONPATH")
        paths = [*map(str, folders), *([before] if before else [])]
        kept["PYTHONPATH"] = os.pathsep.join(paths)
    return kept | changes
