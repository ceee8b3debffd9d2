"""Which files does `data.path` name? One, several, or those of a folder."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

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

    name: of the file or folder; where two have the same name, with the folders that tell them
    apart. It does not depend on the current folder, so a run can go on from any.
    empty: files of a folder that have not one byte; they are left out.
    """

    name: str
    files: tuple[Path, ...]
    empty: tuple[Path, ...] = ()


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
    sources: list[TextSource] = []
    known: dict[object, Path] = {}  # each file by what it is, whatever its name
    for path, name in zip(paths, source_names(paths), strict=True):
        files: tuple[Path, ...] = (path,)
        empty: tuple[Path, ...] = ()
        if _is_folder(path):
            files, empty = _files_in(path)
        for file in files:
            check_text_file(file, advice, yaml_path)
            _refuse_known(file, known)
        sources.append(TextSource(name, files, empty))
    return sources


def source_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart; all of a path that is there twice."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]  # noqa: PTH100 resolves no link
    ends = Counter(each[-count:] for each in parts for count in range(1, len(each) + 1))
    names = []
    for each in parts:
        counts = (count for count in range(1, len(each)) if ends[each[-count:]] == 1)
        names.append(str(PurePath(*each[-next(counts, len(each)) :])))
    return names


def _refuse_known(file: Path, known: dict[object, Path]) -> None:
    """Refuse a file that is there already: what one entry holds out, the other would train on.

    known: the files so far; this one is added. Raises: ConfigError.
    """
    status = file.stat()
    # a few file systems number nothing
    identity = (status.st_dev, status.st_ino) if status.st_ino else file.resolve()
    first = known.setdefault(identity, file)
    if first is file:
        return
    both = f"{file} is" if str(first) == str(file) else f"{first} and {file} are one file,"
    raise ConfigError(f"data.path: {both} listed twice; leave one out")


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 Path's own raises for names that are too long


def _files_in(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the texts in a folder and those below it, without hidden ones; then the empty files.

    Raises: ConfigError.
    """
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
    texts = [folder / name for name in sorted(names, key=natural_key)]
    empty = [text for text in texts if _is_empty(text)]
    if len(empty) == len(texts):
        raise ConfigError(f"{folder}: holds empty files only; set data.path to texts")
    without_text = set(empty)
    return tuple(text for text in texts if text not in without_text), tuple(empty)


def _is_empty(file: Path) -> bool:
    """Return whether a file has no bytes; what is wrong with it otherwise is said later."""
    try:
        return file.is_file() and file.stat().st_size == 0
    except OSError:
        return False
