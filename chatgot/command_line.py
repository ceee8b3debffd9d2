"""How the user started this command, and the words that start it again."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMMAND = "chatgot"


def command_words() -> list[str]:
    """Return the words that start this command again, without its arguments.

    They are `chatgot VERB`, `python -m chatgot VERB` or `python scripts/NAME.py`, as it was
    started.
    """
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    if len(words) > 2 and Path(words[1]).stem == COMMAND:
        return [_shortest(words[1]), *words[2:]]
    if words[1:3] == ["-m", COMMAND]:
        return [sys.executable, *words[1:]]
    return [sys.executable, sys.argv[0]]


def command_line() -> str:
    """Return this command with its arguments, as it is typed."""
    return as_typed([*command_words(), *sys.argv[1:]])


def _shortest(program: str) -> str:
    """Return the installed command's name where the shell finds it by name, else its path."""
    on_path = shutil.which(COMMAND)
    if on_path is not None and Path(on_path).resolve() == Path(program).resolve():
        return COMMAND
    return program


def command_name(script: str) -> str:
    """Return what `--help` calls a script: `chatgot VERB`, or `python scripts/NAME.py`.

    script: its `__file__`.
    """
    words = command_words()
    if Path(words[0]).stem == COMMAND:
        return " ".join([COMMAND, *words[1:]])
    if words[1:3] == ["-m", COMMAND]:
        return " ".join(["python", *words[1:]])
    return f"python scripts/{Path(script).name}"


def as_typed(words: Sequence[str]) -> str:
    """Return a command as it is typed into a shell of this system."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
