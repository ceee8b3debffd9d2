"""Which files does `data.path` name? One, several, or those of a folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatgot.config import DataConfig
from chatgot.data.preparation.natural_order import natural_key
from chatgot.data.text_file import check_text_file
from chatgot.errors import ConfigError

# Of a folder; other files are for `prepare_data.py`
TEXT_ENDINGS = (".txt", ".text", ".md", "")
MOST_FILES = 100_000


@dataclass(frozen=True)
class TextSource:
    """One entry of `data.path`: a file, or a folder with its files in natural order.

    name: of the file or folder; as it was listed where two have the same name.
    """

    name: str
    files: tuple[Path, ...]


def listed_paths(data: DataConfig) -> list[Path]:
    """Return what `data.path` lists; empty: the default text."""
    if data.path is None:
        return []
    return [Path(data.path)] if isinstance(data.path, str) else [Path(path) for path in data.path]


def is_arranged(data: DataConfig) -> bool:
    """Return whether the text is put together from files or documents, not one file as it is."""
    paths = listed_paths(data)
    return data.split != "tail" or len(paths) > 1 or any(map(_is_folder, paths))


def text_sources(
    paths: Sequence[Path], yaml_path: Path | None = None, advice: str = "set data.path to"
) -> list[TextSource]:
    """Return the sources that paths name.

    yaml_path: the YAML that names them. advice: how the user names others, for the messages.
    Raises: ConfigError for what is missing, listed twice or no text, and for a folder without one.
    """
    names = [path.resolve().name for path in paths]
    sources: list[TextSource] = []
    for path, name in zip(paths, names, strict=True):
        shown = str(path) if names.count(name) > 1 else name
        if any(source.name == shown for source in sources):
            raise ConfigError(f"data.path: {path} is listed twice; list it once")
        files = _files_in(path) if _is_folder(path) else (path,)
        for file in files:
            check_text_file(file, advice, yaml_path)
        sources.append(TextSource(shown, files))
    return sources


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 Path's own raises for names that are too long


def _files_in(folder: Path) -> tuple[Path, ...]:
    """Return the texts in a folder and those below it, without hidden ones. Raises: ConfigError."""
    names: list[str] = []

    def refuse(error: OSError) -> None:
        raise ConfigError(
            f"{error.filename}: cannot be listed: {error.strerror or error}; "
            "make it readable, or leave it out of data.path"
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = Path(parent).relative_to(folder)
        names += [str(shown / name) for name in files if not name.startswith(".")]
        if len(names) > MOST_FILES:
            raise ConfigError(
                f"{folder}: more than {MOST_FILES:,} files; join them with prepare_data.py first"
            )
    if not names:
        raise ConfigError(f"{folder}: a folder without a text; set data.path to texts")
    other = [name for name in names if Path(name).suffix.lower() not in TEXT_ENDINGS]
    if other:
        first = min(other, key=natural_key)
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise ConfigError(
            f"{folder}: {first}{more} may be no plain text; make one text of the folder first: "
            f"prepare_data.py {folder} --output data/{folder.resolve().name}.txt"
        )
    return tuple(folder / name for name in sorted(names, key=natural_key))
