"""Mend logs of any program: mixed encodings, mojibake, escape sequences, progress bars, NULs -> clean UTF-8.

    python scripts/fix_log_encoding.py logs/train.log

Writes {name}_fixed{ext} beside each log, whole or not at all; what cannot be decoded stays as a visible escape.
"""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # runs from any folder, with this checkout's chatgot

import argparse
import glob
import json
import os
import re
import shutil
import tempfile
import traceback
from dataclasses import asdict
from functools import partial

from chatgot.errors import ConfigError, StorageError, UserError
from chatgot.log_fixer.files import FixReport, fix_log_file
from chatgot.logs.logging_setup import escape_controls
from chatgot.stdout import silence_stdout, write_to_stdout
from chatgot.stopping import StopRequest

STOP = StopRequest()
NEWLINES = {"keep": None, "lf": "\n"}

LOG_NAME = re.compile(
    r".*\.(log|txt|out|err)(\.\d+)?"
)  # what is taken from a folder; .log.1: a rotated one
WOULD_CHANGE, CRASH, CRASH_OF_CHECK = 1, 1, 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description="Mend logs of any program: mixed encodings, mojibake, escape sequences, progress bars, NULs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python scripts/fix_log_encoding.py logs/train.log                 writes logs/train_fixed.log
  python scripts/fix_log_encoding.py --in-place "logs/*.log"        keeps each as {name}.bak
  python scripts/fix_log_encoding.py --check --recursive logs       exit code 1 where something would change
  program 2>&1 | python scripts/fix_log_encoding.py - > clean.log
  python scripts/fix_log_encoding.py old.log --output new.log --newline lf --report json

exit codes: 0 done, 1 --check found something to change (or a crash), 2 command line or input (or a crash of --check),
5 output cannot be written; of several logs all are tried, and the highest code counts""",
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
        "--recursive", action="store_true", help="take the *.log, *.txt, *.out, *.err of folders"
    )
    parser.add_argument(
        "--keep-ansi", action="store_true", help="keep complete escape sequences (colours)"
    )
    parser.add_argument(
        "--newline", choices=("keep", "lf"), default="keep", help="line ends (default: keep each)"
    )
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


def expand(text: str, recursive: bool) -> tuple[list[Path], list[UserError]]:
    """Return the files that one input names (the matches of a pattern, the logs of a folder), and what went wrong."""
    paths = [Path(text)]
    if not os.path.lexists(text) and glob.has_magic(text):
        paths = [Path(name) for name in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 the pattern may be absolute
        if not paths:
            return [], [ConfigError(f"{text}: no file matches this pattern")]
    found, unreadable = [], []
    # os.path, here and below: Path.is_dir and its like raise for a name that is too long or may not be looked at
    for path in paths:
        if recursive and os.path.isdir(path):  # noqa: PTH112
            walk = os.walk(path, onerror=unreadable.append)
            names = [
                Path(folder, name)
                for folder, _, files in walk
                for name in files
                if LOG_NAME.fullmatch(name)
            ]
            found += sorted(name for name in names if os.path.isfile(name))  # noqa: PTH113
        else:
            found.append(path)
    return found, [
        ConfigError(f"{e.filename}: cannot be read: {e.strerror or e}") for e in unreadable
    ]


def identity(path: Path) -> str:
    """Return what two names of one file have in common; for what no file can be called, the name."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def is_mended_copy(path: Path, args: argparse.Namespace) -> bool:
    """Tell whether a file is what an earlier run wrote beside a log: it needs no `_fixed_fixed` of its own."""
    if args.check or args.in_place or args.output or not path.stem.endswith("_fixed"):
        return False
    return os.path.exists(path.with_name(path.stem.removesuffix("_fixed") + path.suffix))  # noqa: PTH110


def fix_files(args: argparse.Namespace) -> int:
    """Mend every log, whatever happens to the others; return the highest exit code."""
    exit_code, paths = 0, {}
    for text in args.inputs:
        found, errors = expand(text, args.recursive)
        paths |= {identity(path): path for path in found}
        exit_code = max([exit_code, *map(say_error, errors)])
    if args.output and len(paths) > 1:
        raise ConfigError(f"--output {args.output}: takes one log, {len(paths)} were named")
    for path in paths.values():
        try:
            if is_mended_copy(path, args):
                say(
                    f"{path}: is the mended copy of a log beside it; left alone (--in-place or --output mends it, too)"
                )
                continue
            exit_code = max(exit_code, fix_file(path, args))
        except UserError as error:
            exit_code = max(exit_code, say_error(error))
    return exit_code


def fix_file(path: Path, args: argparse.Namespace) -> int:
    """Mend or check one log and report; return the exit code."""
    report = fix_log_file(
        path,
        args.output,
        not args.keep_ansi,
        in_place=args.in_place,
        check=args.check,
        newline=NEWLINES[args.newline],
        force=args.force,
    )
    print_report(report, args)
    return WOULD_CHANGE if args.check and report.changed else 0


def fix_stdin(args: argparse.Namespace) -> int:
    """Mend a pipe: stdin, kept in a temporary file because it is looked at twice, to stdout or --output."""
    with tempfile.TemporaryDirectory(prefix="chatgot_fix_log_") as folder:
        spool = Path(folder) / "stdin"
        try:
            with spool.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise StorageError(
                f"stdin cannot be kept in {folder}: {error.strerror or error}"
            ) from error
        options = {"newline": NEWLINES[args.newline], "force": args.force}
        mended = Path(folder) / "mended"
        try:
            report = fix_log_file(
                spool, args.output or mended, not args.keep_ansi, check=args.check, **options
            )
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(spool), "-")) from error
        report.path, report.output = "-", str(args.output) if args.output else None
        if not args.check and not args.output:
            with mended.open("rb") as file:
                write_to_stdout(iter(partial(file.read, 1 << 20), b""))
    print_report(report, args)
    return WOULD_CHANGE if args.check and report.changed else 0


def print_report(report: FixReport, args: argparse.Namespace) -> None:
    """Print what was done with one log: to stdout, unless the mended text itself goes there."""
    if args.report == "json":
        say(json.dumps(asdict(report)), to_stderr=args.inputs == ["-"])
        return
    became = report.output or ("would change" if args.check and report.changed else "unchanged")
    if report.path == "-":
        became = report.output or "stdout"
    backup = f" (before: {report.backup})" if report.backup else ""
    say(f"{report.path} -> {became}{backup}: {report.summary()}", to_stderr=args.inputs == ["-"])


def say(line: str, to_stderr: bool = False) -> None:
    """Print one line, also where it names a file in characters that the console lacks. Raises: StorageError."""
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = stream.encoding or "utf-8"
    try:
        print(
            escape_controls(line).encode(encoding, "backslashreplace").decode(encoding),
            file=stream,
            flush=True,
        )
    except BrokenPipeError:
        if not to_stderr:
            silence_stdout()
    except OSError as error:
        if not to_stderr:
            silence_stdout()
            raise StorageError(f"stdout cannot be written: {error.strerror or error}") from error


def say_error(error: UserError) -> int:
    say(f"error: {error}", to_stderr=True)
    return error.exit_code


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code. A user's mistake is one line, a defect of ours a traceback."""
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
