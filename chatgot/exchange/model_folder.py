"""Reads the files of a model folder that anyone may have made.

A file is read only if it is a regular one: no link, no pipe, no device. JSON is read only up to a
size, with each name once in an object. Whatever a file holds, nothing is raised but ImportRejected.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from chatgot.errors import ImportRejected

CONFIG = "config.json"

MOST_JSON_BYTES = 1 << 22  # of a config, an index or a header; known ones have a tenth of it
LONGEST_VALUE = 100  # characters of a value in a message
Json = dict[str, Any]


def open_file(path: Path) -> BinaryIO:
    """Open a regular file that is not empty. Raises: ImportRejected."""
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)  # of a pipe that nobody writes to
        | getattr(os, "O_BINARY", 0)
    )
    try:
        if path.is_symlink():
            raise ImportRejected(
                f"{path}: is a link, which is not followed; put the file itself there, "
                "for example with cp -rL"
            )
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImportRejected(f"{path}: cannot be opened: {reason}") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or not about.st_size:
        os.close(descriptor)
        raise ImportRejected(f"{path}: empty, or not a regular file")
    return os.fdopen(descriptor, "rb")


def is_there(path: Path) -> bool:
    """Return whether a folder has anything of this name, be it a link to nowhere."""
    return os.path.lexists(path)


def read_text(path: Path, most_bytes: int = MOST_JSON_BYTES) -> str:
    """Return the text of a small file in UTF-8. Raises: ImportRejected."""
    with open_file(path) as file:
        try:
            content = file.read(most_bytes + 1)
        except OSError as error:
            raise ImportRejected(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > most_bytes:
        raise ImportRejected(f"{path}: has more than {most_bytes} bytes, which is too long")
    return decoded(content, path)


def read_json(path: Path) -> Json:
    """Return the JSON object that a small file holds. Raises: ImportRejected."""
    return json_object(read_text(path), path)


def decoded(content: bytes, path: Path) -> str:
    """Return the text that bytes are in UTF-8. Raises: ImportRejected naming the file."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportRejected(f"{path}: is no text in UTF-8") from error


def json_object(text: str, path: Path) -> Json:
    """Return the JSON object that a text is. Raises: ImportRejected naming the file."""
    try:
        content = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [""])[0][:LONGEST_VALUE]
        raise ImportRejected(f"{path}: is no JSON that can be read: {reason!a}") from error
    if not isinstance(content, dict):
        raise ImportRejected(f"{path}: expected a JSON object, found {shown(content)}")
    return content


def shown(value: object) -> str:
    """Return a value as JSON, on one line and not too long."""
    try:
        text = json.dumps(value)
    except RecursionError:  # read with less on the stack than now
        return "nested too deeply"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _once_each(pairs: list[tuple[str, Any]]) -> Json:
    """Return an object. Raises: ValueError for a name that it has twice."""
    values: Json = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name} is there twice")
        values[name] = value
    return values
