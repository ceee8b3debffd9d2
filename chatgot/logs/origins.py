"""What a run began from, by its folder: a YAML, or the text that a YAML was written for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

AnyRun = TypeVar("AnyRun")  # a run: its folder, its id, its checkpoints


def run_of_name(runs: Sequence[tuple[AnyRun, str]]) -> tuple[AnyRun | None, dict[str, AnyRun]]:
    """Return the run that a name alone means, as `latest` does for the file of that name.

    It is the newest run that began from a file which still exists; if there is none, the newest.
    None: several such files exist, so nobody knows which is meant. Then the second value is the
    newest run of each of them.

    runs: the newest first, each with its origin; an unknown one, "", goes with any file.
    """
    there: dict[str, AnyRun] = {}
    for run, began_from in runs:
        if began_from and not is_gone(Path(began_from)):
            there.setdefault(began_from, run)
    if len(there) > 1:
        return None, there
    for run, began_from in runs:
        if not there or began_from in ("", *there):
            return run, {}
    return None, {}


def is_same_file(path: str, other: str) -> bool:
    """Return whether two paths are one file.

    A file system that ignores case, a bind mount and a hard link give it several paths.
    """
    if path == other:
        return True
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):
        return False


def yaml_that_began(run_dir: Path) -> str:
    """Return the path of the YAML that began a run; empty: there is no readable run.json.

    A YAML that lies in the run's own folder has moved with it where that was moved.
    """
    try:
        about = json.loads((run_dir / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    path = about.get("config_path") if isinstance(about, dict) else None
    if not isinstance(path, str):
        return ""
    recorded = Path(path)
    here = run_dir.resolve() / recorded.name
    if recorded.parent.name == run_dir.name and is_gone(recorded) and not is_gone(here):
        return str(here)
    return path


def origin(run_dir: Path) -> str:
    """Return what a run began from: the path of its YAML; empty: nobody knows.

    Where the YAML was written by a run for a text, it is the path of that text.
    """
    return origin_of_yaml(yaml_that_began(run_dir))


def origin_of_yaml(path: str) -> str:
    """Return what runs of a YAML began from: the text that it was written for, else its path."""
    return text_of_yaml(Path(path)) or path


def text_of_yaml(path: Path) -> str:
    """Return the text of a YAML that a run wrote for it, into its folder; empty: another YAML."""
    try:
        if is_gone(path.parent / "run.json") or not path.is_file():
            return ""
        from chatgot.plain_yaml import PlainYaml  # here: `report --help` needs no YAML

        content = PlainYaml().read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    data = content.get("data") if isinstance(content, dict) else None
    text = data.get("path") if isinstance(data, dict) else None
    return text if isinstance(text, str) else ""


def is_gone(path: Path) -> bool:
    """Return whether a file no longer exists; False if that cannot be found out."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False
