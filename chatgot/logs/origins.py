"""What a run began from, by its folder: a YAML, or the text that a YAML was written for."""

import json
from collections.abc import Iterable
from pathlib import Path


def several_origins(origins: Iterable[str]) -> list[str]:
    """Return the files that began runs of one name, if there are several that still exist.

    Then the name alone does not say which run is meant; else the list is empty, and the newest
    run is.

    origins: as `origin` returns them, one for each run of that name.
    """
    there = sorted({path for path in origins if path and not is_gone(Path(path))})
    return there if len(there) > 1 else []


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
