"""In which order files become one text: S01E02 before S01E10, whatever the case of letters."""

import re

NUMBER = re.compile(r"([0-9]+)")
SEPARATORS = re.compile(r"[/\\]")

Key = tuple[object, ...]


def natural_key(name: str) -> Key:
    """Return what sorts names as people do: by folders, then words, then numbers by their value."""
    folders = tuple(_key_of_part(part) for part in SEPARATORS.split(name))
    return (folders, name)


def _key_of_part(part: str) -> Key:
    """Return the key of one folder's or file's name: words and numbers take turns."""
    return tuple(
        # not an int: Python refuses to convert thousands of digits
        (len(word.lstrip("0")), word.lstrip("0")) if place % 2 else word.casefold()
        for place, word in enumerate(NUMBER.split(part))
    )
