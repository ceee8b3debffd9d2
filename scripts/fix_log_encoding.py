"""Mend logs of any program: mixed encodings, mojibake, escape sequences, progress bars, NULs.

    python scripts/fix_log_encoding.py logs/train.log

Writes {name}_fixed{ext} next to each log, in clean UTF-8, whole or not at all; what cannot be
decoded stays as a visible escape.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
import glob
import json
import os
import re
import shutil
import tempfile
import traceback
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from chatgot.command_line import command_name
from chatgot.encoding_names import codec_name
from chatgot.errors import ConfigError, StorageError, UserError
from chatgot.stdout import (
    open_closed_streams,
    reader_has_gone,
    silence_stdout,
    write_to_stdout,
)
from chatgot.stopping import StopRequest

if TYPE_CHECKING:
    from chatgot.log_fixer.files import FixReport

STOP = StopRequest()
NEWLINES = {"keep": None, "lf": "\n"}

# Which files are taken from a folder: by their ends, or the names that systems give their logs
_NAMES = (
    r"(.*\.)?(log|txt|out|err|stdout|stderr)|.*[-_]log|.*\.[oe]\d+"
    r"|messages|syslog|dmesg|secure|maillog|cron|spooler|debug|stdout|stderr"
)
# What rotation adds: x.log.1, x.log-20260101, x.log.2026-11-28_10, x.log.old
_ROTATED = r"([-_.](\d[-_.:T\d]*|old|prev|previous|last))*"
LOG_NAME = re.compile(rf"({_NAMES}){_ROTATED}", re.IGNORECASE)
COMPRESSED_LOG_NAME = re.compile(
    rf"({_NAMES}){_ROTATED}\.(gz|bz2|xz|lzma|zst|lz4|zip|7z|z|br)", re.IGNORECASE
)
WOULD_CHANGE = 1
CRASH = 1
CRASH_OF_CHECK = 2

COPY_BYTES = 1 << 20
LINE = b"INFO step 1\r\n"

DESCRIPTION = (
    "Mend logs of any program: mixed encodings, mojibake, escape sequences, progress bars, NULs."
)
EXAMPLES = """examples:
  %(prog)s logs/train.log                 writes logs/train_fixed.log
  %(prog)s --in-place "logs/*.log"        keeps each as {name}.bak
  %(prog)s --check --recursive logs       exit code 1 if there are changes
  program 2>&1 | %(prog)s - > clean.log
  %(prog)s old.log --output new.log --newline lf --report json

exit codes: 0 done, 1 --check found something to change (or a crash), 2 command line or input (or a
crash of --check), 5 output cannot be written; of several logs all are tried, and the highest code
counts"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="LOG",
        help="file, pattern, folder (with --recursive) or - (stdin)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, metavar="FILE", help="write here (one input)")
    where.add_argument(
        "--in-place", action="store_true", help="replace the log, after keeping it as {name}.bak"
    )
    where.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit code 1 where something would change",
    )
    parser.add_argument(
        "--recursive",
        action="store_true",
        help="take the logs of folders: *.log, *.txt, *.out, *.err, syslog and others, rotated too",
    )
    parser.add_argument(
        "--keep-ansi", action="store_true", help="keep complete escape sequences (colours)"
    )
    parser.add_argument(
        "--newline", choices=("keep", "lf"), default="keep", help="line ends (default: keep each)"
    )
    parser.add_argument(
        "--encoding",
        type=codec,
        metavar="NAME",
        help="encoding of the lines that are not UTF-8, such as cp1250 (default: it is guessed)",
    )
    parser.add_argument("--keep-mojibake", action="store_true", help="leave mojibake as it is")
    parser.add_argument(
        "--force", action="store_true", help="mend also what looks like a binary file"
    )
    parser.add_argument(
        "--report", choices=("text", "json"), default="text", help="json: one object a log"
    )
    args = parser.parse_args(argv)
    if "-" in args.inputs and (args.in_place or len(args.inputs) > 1):
        parser.error("- (stdin) stands alone, and cannot be mended in place")
    return args


def codec(name: str) -> str:
    """Return the name of Python's codec for an encoding. Raises: ArgumentTypeError."""
    try:
        encoding = codec_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    is_wide = encoding.startswith(("utf-16", "utf-32"))
    if not is_wide and LINE.decode(encoding, "replace") != LINE.decode("ascii"):
        raise argparse.ArgumentTypeError(
            f"{name} has other bytes for ASCII, so no lines are found in it; convert the log first"
        )
    return encoding


@dataclass
class Named:
    """The files that the command line names."""

    paths: list[Path] = field(default_factory=list)
    of_folders: set[Path] = field(default_factory=set)  # those that a folder has
    compressed: list[Path] = field(default_factory=list)  # logs of folders that are not read
    errors: list[UserError] = field(default_factory=list)


def expand(text: str, recursive: bool) -> Named:
    """Return the files that one input names, and what went wrong.

    An input is a file, a pattern (its matches) or a folder (its logs, with --recursive).
    """
    inputs = [Path(text)]
    if not os.path.lexists(text) and glob.has_magic(text):
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 it may be absolute
        if not matches:
            return Named(errors=[ConfigError(f"{text}: no file matches this pattern")])
        inputs = [Path(name) for name in matches]
    named = Named()
    for path in inputs:
        # os.path: Path.is_dir raises for a name that is too long or may not be looked at
        if recursive and os.path.isdir(path):  # noqa: PTH112
            logs_below(path, named)
        else:
            named.paths.append(path)
    return named


def logs_below(folder: Path, named: Named) -> None:
    """Add the logs below a folder, sorted, and an error for each folder that cannot be read."""
    unreadable: list[OSError] = []
    logs = []
    for parent, _, names in os.walk(folder, onerror=unreadable.append):
        for name in names:
            path = Path(parent, name)
            if not os.path.isfile(path):  # noqa: PTH113 as in `expand`
                continue
            if LOG_NAME.fullmatch(name):
                logs.append(path)
            elif COMPRESSED_LOG_NAME.fullmatch(name):
                named.compressed.append(path)
    named.paths += sorted(logs)
    named.of_folders.update(logs)
    named.compressed.sort()
    named.errors += [
        ConfigError(f"{error.filename}: cannot be read: {error.strerror or error}")
        for error in unreadable
    ]


def identity(path: Path) -> str:
    """Return the same text for all names of one file; the name itself where it can name none."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def one_name_each(paths: list[Path]) -> list[Path]:
    """Return each file once: under its own name if that is given, else under the first link's."""
    named: dict[str, Path] = {}
    for path in paths:
        target = identity(path)
        if is_own_name(path, target) or target not in named:
            named[target] = path
    return list(named.values())


def is_own_name(path: Path, target: str) -> bool:
    """Tell whether a path names the file itself, through no link."""
    return os.path.abspath(path) == target  # noqa: PTH100 no link is followed


def is_mended_copy(path: Path, args: argparse.Namespace) -> bool:
    """Tell whether an earlier run wrote this file next to a log: it is not mended again."""
    if args.check or args.in_place or args.output or not path.stem.endswith("_fixed"):
        return False
    original = path.with_name(path.stem.removesuffix("_fixed") + path.suffix)
    return os.path.exists(original)  # noqa: PTH110 as in `expand`


def fix_files(args: argparse.Namespace) -> int:
    """Mend every log, whatever happens to the others; return the highest exit code."""
    exit_code = 0
    all_paths: list[Path] = []
    of_folders: set[Path] = set()
    for text in args.inputs:
        named = expand(text, args.recursive)
        all_paths += named.paths
        of_folders |= named.of_folders
        for path in named.compressed:
            say(f"{path}: is compressed; not read (unpack it, or pipe it into -)", to_stderr=True)
        exit_code = max([exit_code, *map(say_error, named.errors)])
    paths = one_name_each(all_paths)
    if args.output and len(paths) > 1:
        raise ConfigError(f"--output {args.output}: takes one log, {len(paths)} were named")
    for path in paths:
        try:
            if is_mended_copy(path, args):
                say(
                    f"{path}: is the mended copy of a log beside it; left alone "
                    "(--in-place or --output mends it, too)"
                )
                continue
            exit_code = max(exit_code, fix_file(path, args, path in of_folders))
        except UserError as error:
            exit_code = max(exit_code, say_error(error))
    return exit_code


def fix_file(path: Path, args: argparse.Namespace, of_folder: bool) -> int:
    """Mend or check one log and report; return the exit code.

    of_folder: a folder has it. It is left alone where it is clean.
    """
    if of_folder and not (args.check or args.in_place or args.output):
        report = mend(path, None, args, check=True)
        if not report.changed:
            print_report(report, args)
            return 0
    report = mend(path, args.output, args)
    print_report(report, args)
    return WOULD_CHANGE if args.check and report.changed else 0


def fix_stdin(args: argparse.Namespace) -> int:
    """Mend a pipe: stdin to stdout or --output. It is kept in a file, since it is read twice."""
    with tempfile.TemporaryDirectory(prefix="chatgot_fix_log_") as folder:
        spool = Path(folder) / "stdin"
        try:
            with spool.open("wb") as file:
                keep_stdin(file)
        except OSError as error:
            message = f"stdin cannot be kept in {folder}: {error.strerror or error}"
            raise StorageError(message) from error
        mended = Path(folder) / "mended"
        try:
            report = mend(spool, args.output or mended, args)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(spool), "-")) from error
        report.path = "-"
        report.output = str(args.output) if args.output else None
        if not args.check and not args.output:
            with mended.open("rb") as file:
                write_to_stdout(iter(partial(file.read, COPY_BYTES), b""))
    print_report(report, args)
    return WOULD_CHANGE if args.check and report.changed else 0


def keep_stdin(file: BinaryIO) -> None:
    """Copy stdin into a file, until it ends. Raises: OSError."""
    # It imports colorlog and tqdm: a usage error does not wait for those
    from chatgot.logs.colours import is_terminal
    from chatgot.logs.waiting import waiting

    if is_terminal(sys.stdin):  # somebody types there: a bar would be in the way
        shutil.copyfileobj(sys.stdin.buffer, file)
        return
    with waiting("reading stdin"):
        shutil.copyfileobj(sys.stdin.buffer, file)


def mend(
    path: Path, output: Path | None, args: argparse.Namespace, check: bool = False
) -> "FixReport":
    """Mend or check one log as the command line says; check: only look at it."""
    # It reads tables of letters: a usage error does not wait for those
    from chatgot.log_fixer.files import fix_log_file

    return fix_log_file(
        path,
        output,
        not args.keep_ansi,
        in_place=args.in_place,
        check=args.check or check,
        newline=NEWLINES[args.newline],
        force=args.force,
        encoding=args.encoding,
        keep_mojibake=args.keep_mojibake,
    )


def print_report(report: "FixReport", args: argparse.Namespace) -> None:
    """Print what was done with one log: to stdout, unless the mended text itself goes there."""
    to_stderr = args.inputs == ["-"]
    if args.report == "json":
        say(json.dumps(asdict(report)), to_stderr)
        return
    if report.output:
        became = report.output
    elif report.path == "-":
        became = "stdout"
    elif args.check and report.changed:
        became = "would change"
    else:
        became = "unchanged"
    backup = f" (before: {report.backup})" if report.backup else ""
    say(f"{report.path} -> {became}{backup}: {report.summary()}", to_stderr)


def say(line: str, to_stderr: bool = False) -> None:
    """Print one line, also where it names a file in characters that the console lacks.

    Raises: StorageError.
    """
    # It imports colorlog and tqdm: a usage error does not wait for those
    from chatgot.logs.logging_setup import escape_controls

    stream = sys.stderr if to_stderr else sys.stdout
    encoding = stream.encoding or "utf-8"
    printable = escape_controls(line).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(printable, file=stream, flush=True)
    except OSError as error:
        if to_stderr:
            return
        silence_stdout()
        if not reader_has_gone(error):
            raise StorageError(f"stdout cannot be written: {error.strerror or error}") from error


def say_error(error: UserError) -> int:
    say(f"error: {error}", to_stderr=True)
    return error.exit_code


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code.

    A user's mistake is one line, a defect of ours a traceback.
    """
    open_closed_streams()
    args = parse_arguments(argv)
    try:
        return fix_stdin(args) if args.inputs == ["-"] else fix_files(args)
    except UserError as error:
        return say_error(error)
    except Exception:  # noqa: BLE001 whatever it is, it must not read as "would change"
        traceback.print_exc()
        say("a defect of ChatGoT, not of your input", to_stderr=True)
        return CRASH_OF_CHECK if args.check else CRASH


if __name__ == "__main__":
    STOP.install()  # SIGTERM ends the process by SystemExit: no temporary file stays behind
    sys.exit(main())
