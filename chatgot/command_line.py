"""How the user started this command, and the words that start it again."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from chatgot.errors import ConfigError, UserError
from chatgot.torchrun import is_rank, torchrun_words

COMMAND = "chatgot"
SCRIPTS = {
    "train": "train_with_samples",
    "prepare": "prepare_data",
    "distil": "distil",
    "chat": "chat",
    "export": "export",
}  # of verbs that name each other
TRAINING_VERBS = ("train", "distil")
# What cmd and PowerShell take as it is; all else stands in quotes
PLAIN_ON_WINDOWS = re.compile(r"[\w.:\\/=+-]+")


def add_set(parser: argparse.ArgumentParser) -> None:
    """Let a command take `--set KEY=VALUE`; `args.set` is the list of them."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set any YAML key; may be repeated",
    )


def command_words() -> list[str]:
    """Return the words that start this command again, without its arguments.

    They are `chatgot VERB`, `python -m chatgot VERB` or `python scripts/NAME.py`, as it was
    started; with torchrun, `torchrun` in the place of `python`.
    """
    words = _words_before(sys.argv[1:])
    python = torchrun_words(os.environ) if is_rank(os.environ) else [sys.executable]
    if words[-3:-1] == ["-m", COMMAND]:
        return [*python, *words[-3:]]
    if len(words) > 2 and _is_command(words[-2]):
        return [_shortest(words[-2]), words[-1]]
    return [*python, sys.argv[0]]


def command_of(verb: str, arguments: Sequence[str]) -> str:
    """Return the command of another verb, as it is typed, started in the way of this one.

    Only a verb that trains is started with torchrun where this one was.
    """
    words = command_words()
    if _is_command(words[0]):
        return as_typed([*words[:-1], verb, *arguments])
    is_module = words[-3:-1] == ["-m", COMMAND]
    python = words[:1] if is_module else ["python"]
    if is_rank(os.environ):
        python = torchrun_words(os.environ) if verb in TRAINING_VERBS else ["python"]
    if is_module:
        return as_typed([*python, "-m", COMMAND, verb, *arguments])
    script = Path(words[-1]).with_name(f"{SCRIPTS[verb]}.py")
    return as_typed([*python, str(script), *arguments])


def command_line() -> str:
    """Return this command with its arguments, as it is typed."""
    return as_typed([*command_words(), *sys.argv[1:]])


def go_on_as(verb: str, script: Path, arguments: Sequence[str]) -> None:
    """Let this process be another command from now on, as if it had been started with it.

    So what that one logs, above all the command that resumes it, is its own command.

    script: of that verb.
    """
    words = _words_before(sys.argv[1:])
    is_installed = words[-3:-1] == ["-m", COMMAND] or (len(words) > 2 and _is_command(words[-2]))
    words = [*words[:-1], verb] if is_installed else [sys.executable, str(script)]
    sys.argv = [str(script), *arguments]
    sys.orig_argv = [*words, *arguments]


def _words_before(arguments: list[str]) -> list[str]:
    """Return the words of this process before its arguments; none: it was not started with them."""
    count = len(sys.orig_argv) - len(arguments)
    return sys.orig_argv[:count] if sys.orig_argv[count:] == arguments else []


def _is_command(word: str) -> bool:
    """Tell whether a word is the path of the installed command: `chatgot`, or `chatgot.exe`."""
    name = word.replace("\\", "/").rpartition("/")[2]
    return name.lower().removesuffix(".exe") == COMMAND


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
    if _is_command(words[0]):
        return " ".join([COMMAND, *words[1:]])
    if words[1:3] == ["-m", COMMAND]:
        return " ".join(["python", *words[1:]])
    return f"python scripts/{Path(script).name}"


def as_typed(words: Sequence[str]) -> str:
    """Return a command as it is typed into a shell of this system.

    On Windows a program whose path has spaces stands in quotes, as cmd takes it; PowerShell needs
    `& ` before it.
    """
    if os.name != "nt":
        return shlex.join(words)
    return " ".join(map(_quoted_on_windows, words))


def _quoted_on_windows(word: str) -> str:
    """Return a word in double quotes where a shell of Windows would cut or change it."""
    if PLAIN_ON_WINDOWS.fullmatch(word):
        return word
    quoted = subprocess.list2cmdline([word])
    if not quoted.startswith('"'):  # it has no space, but another character of the shells
        # a backslash before the closing quote would escape it
        backslashes = quoted[len(quoted.rstrip("\\")) :]
        quoted = f'"{quoted}{backslashes}"'
    return quoted


def exit_code_of(action: Callable[[], None], name: str) -> int:
    """Do what a command is for; return its exit code. A user's mistake is said on stderr.

    name: of the command, which stands before what is wrong with its words or its input.
    """
    try:
        action()
    except ConfigError as error:
        _say(f"{name}: {error}")
        return error.exit_code
    except UserError as error:
        _say(str(error))
        return error.exit_code
    return 0


def _say(text: str) -> None:
    """Show a line on stderr, if anybody reads it."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
