"""What a path means that a user gives: home for `~`, a variable's value for `$NAME`.

A shell does this for most words that are typed, but not inside `--set key=~/x`, nor in a YAML;
there, a folder named `~` or `$HOME` would be made. A path that begins with `./` is taken as it is.
"""

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path

# $NAME, ${NAME}, %NAME%, and what only a shell can read: ${NAME:-x}, $(command)
VARIABLE = re.compile(
    r"\$(?P<plain>[A-Za-z_][A-Za-z0-9_]*)|\$\{(?P<braced>[^{}]*)\}|\$\([^()]*\)"
    r"|%(?P<windows>[A-Za-z_][A-Za-z0-9_()]*)%"
)
SEPARATORS = r"/\\" if os.name == "nt" else "/"
AS_IT_IS = tuple(f".{separator}" for separator in SEPARATORS)


def expanded(text: str) -> str:
    """Return a path with home in place of `~` or `~user`, and variables replaced by their values.

    A file of exactly that name is meant as it is.
    Raises: ValueError that says what is unknown, and what to write.
    """
    if not ("~" in text or "$" in text or "%" in text):
        return text
    if "\0" in text or text.startswith(AS_IT_IS) or os.path.isfile(text):  # noqa: PTH113 odd names
        return text
    return _with_variables(_with_home(text))


def refuse_other_bytes(path: str) -> None:
    """Refuse a path that cannot be written into a YAML or a checkpoint, which are UTF-8.

    Raises: ValueError that names the part that is not UTF-8, and says what to do.
    """
    for part in re.split(f"[{SEPARATORS}]", path):
        try:
            part.encode()
        except UnicodeEncodeError:
            name = part.encode("utf-8", "backslashreplace").decode()
            raise ValueError(
                f"the name '{name}' in this path is not UTF-8; rename it, "
                "or start in that folder and give the path from there"
            ) from None


def given_text(text: str) -> str:
    """Return `expanded(text)`, for a parser's `type`. Raises: ArgumentTypeError."""
    try:
        return expanded(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def given_path(text: str) -> Path:
    """Return the path that a user gives, for a parser's `type`. Raises: ArgumentTypeError."""
    return Path(given_text(text))


def _with_home(text: str) -> str:
    if not text.startswith("~"):
        return text
    first = re.split(f"[{SEPARATORS}]", text, maxsplit=1)[0]
    home = os.path.expanduser(first)  # noqa: PTH111 Path's own raises without a reason
    is_known = home != first and os.path.isabs(home)  # noqa: PTH117 it is a str
    if first == "~" and os.environ.get("HOME") == "":  # it would be the root folder
        is_known = False
    if is_known:
        return home.rstrip(SEPARATORS) + text[len(first) :] or home
    if os.path.exists(first):  # noqa: PTH110 odd names
        return text
    if first == "~":
        raise ValueError(f"{text!r}: this user has no home folder; write the path without ~")
    raise ValueError(
        f"{text!r}: there is no user {first[1:]!r} whose home it could be; "
        f"for a folder or file of that name, write ./{text}"
    )


def _with_variables(text: str) -> str:
    end_of_names = 0  # of the last folder or file whose name has an unknown variable
    pieces = []
    start = 0
    unknown = ""
    for match in VARIABLE.finditer(text):
        name = match["plain"] or match["braced"] or match["windows"] or ""
        value = os.environ.get(name)
        if not value:  # an empty one would make `/x` of `$NAME/x`
            unknown = unknown or match[0]
            end_of_names = _end_of_name(text, match.end())
            continue
        pieces += [text[start : match.start()], value]
        start = match.end()
    result = "".join(pieces) + text[start:]
    if not unknown:
        return result
    if not pieces and os.path.exists(text[:end_of_names]):  # noqa: PTH110 odd names
        return text
    beginning = "" if os.path.isabs(text) else f", or ./{text} for a folder or file of that name"  # noqa: PTH117
    raise ValueError(f"{text!r}: {unknown} has no value here; write the path itself{beginning}")


def _end_of_name(text: str, position: int) -> int:
    """Return where the name ends that a position in a path is in."""
    separator = re.compile(f"[{SEPARATORS}]").search(text, position)
    return len(text) if separator is None else separator.start()
