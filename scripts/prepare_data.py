"""Make one text to train on of whatever you have: transcripts, subtitles, chats, books, zips.

    python scripts/prepare_data.py episodes/ --output data/show.txt

Everything stays on this machine. Who speaks stands on a line of its own, `NAME:`, above the text;
`<|endoftext|>` stands between documents. What is left out is named with its reason.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from chatgot.command_line import as_typed, command_name, command_words
from chatgot.encoding_names import codec_name
from chatgot.errors import UserError
from chatgot.given_path import given_path, given_text
from chatgot.stdout import open_closed_streams, write_to_stdout
from chatgot.stopping import StopRequest

if TYPE_CHECKING:
    from chatgot.data.preparation.prepare import Preparation, Prepared

STOP = StopRequest()

DESCRIPTION = "Make one text to train on of files, folders and zips, and look at it before."
EXAMPLES = """examples:
  %(prog)s episodes/ --output data/show.txt
  %(prog)s "season 1/*.srt" "season 2/*.srt" --output data/show.txt --report look.html
  %(prog)s chat.zip --output data/chat.txt --order date --pause_hours 3
  %(prog)s lines.csv --output data/lines.txt --speaker_column who --text_column line
  %(prog)s . --dry_run

exit codes: 0 done, 2 command line or input (with --strict: a file left out), 5 output cannot be
written"""


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
        type=given_text,
        nargs="+",
        metavar="INPUT",
        help='a file, a folder with all that is in it, a pattern ("*.srt"), or a zip',
    )
    add_outputs(parser)
    add_reading(parser)
    args = parser.parse_args(argv)
    if args.output is None and not args.dry_run:
        parser.error("--output FILE is needed, or --dry_run to look only")
    return args


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add what says where the text goes, and what is refused."""
    parser.add_argument(
        "--output", type=given_path, metavar="FILE", help="the text; an existing one is replaced"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="read all and say what it is, but write nothing"
    )
    parser.add_argument(
        "--strict", action="store_true", help="write nothing if any file is left out (exit code 2)"
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add what says how files are read."""
    parser.add_argument(
        "--order",
        choices=("natural", "date"),
        default="natural",
        help="of the files: by their names (S01E02 before S01E10), or by their first message",
    )
    parser.add_argument(
        "--encoding",
        type=encoding_name,
        metavar="NAME",
        help="of all texts, such as cp1252 (default: guessed for each file)",
    )
    parser.add_argument(
        "--speaker_column", metavar="NAME", help="of tables and JSON (default: guessed, and said)"
    )
    parser.add_argument(
        "--text_column", metavar="NAME", help="of tables and JSON (default: guessed, and said)"
    )
    for name, what in (("scenes", "scene headings"), ("directions", "stage directions")):
        parser.add_argument(
            f"--{name}", choices=("keep", "drop"), default="keep", help=f"{what} (default: keep)"
        )
    parser.add_argument(
        "--pause_hours",
        type=hours,
        default=6.0,
        metavar="H",
        help="a longer pause in a chat begins a new document (default: 6)",
    )
    parser.add_argument(
        "--date_order",
        choices=("dmy", "mdy", "ymd"),
        help="of the dates in a chat (default: guessed, and said)",
    )


def encoding_name(text: str) -> str:
    """Return what Python calls an encoding. Raises: ArgumentTypeError."""
    try:
        return codec_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def hours(text: str) -> float:
    """Return a number of hours above 0. Raises: ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of hours above 0")
    return number


def preparation_of(args: argparse.Namespace) -> "Preparation":
    """Return what the command line asks for."""
    from chatgot.data.preparation.prepare import Preparation
    from chatgot.data.preparation.reader import ReadingOptions

    reading = ReadingOptions(
        speaker_column=args.speaker_column,
        text_column=args.text_column,
        scenes=args.scenes,
        directions=args.directions,
        pause_hours=args.pause_hours,
        date_order=args.date_order,
    )
    return Preparation(
        tuple(args.inputs),
        order=args.order,
        encoding=args.encoding,
        reading=reading,
        ours=tuple(path for path in (args.output,) if path is not None),
        is_strict=args.strict,
    )


def prepare_data(args: argparse.Namespace) -> int:
    """Prepare the text, and say what it is; return the exit code."""
    # here, after the command line: they take longer than a usage error may
    from chatgot.data.preparation.prepare import prepare
    from chatgot.data.preparation.summary import PROMISE
    from chatgot.logs.logging_setup import setup_console

    setup_console()
    say([PROMISE])
    prepared = prepare(preparation_of(args), None if args.dry_run else args.output)
    say(lines_on(prepared, args))
    return 0


def lines_on(prepared: "Prepared", args: argparse.Namespace) -> Iterable[str]:
    """Yield what is said of a prepared text, and how to go on."""
    from chatgot.data.preparation.summary import human_size, summary

    yield from summary(prepared)
    if args.dry_run:
        yield "nothing was written (--dry_run)"
        return
    yield f"written: {args.output} ({human_size(prepared.size)})"
    yield f"next: {next_command(args.output)}"


def next_command(text: Path) -> str:
    """Return the command that trains on a text, as this one was started."""
    words = command_words()
    if words[-1] == "prepare":
        words[-1] = "train"
    else:
        words[-1] = str(Path(words[-1]).with_name("train_with_samples.py"))
        words[0] = "python"
    return as_typed([*words, str(text), "--minutes", "10"])


def say(lines: Iterable[str]) -> None:
    """Print lines, also those that name files in characters that the console lacks.

    Raises: StorageError.
    """
    from chatgot.logs.logging_setup import escape_controls

    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        write_to_stdout([f"{escape_controls(line)}\n".encode(encoding, "backslashreplace")])


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    try:
        return prepare_data(args)
    except UserError as error:
        from chatgot.logs.logging_setup import escape_controls

        for line in str(error).splitlines():
            print(escape_controls(line), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    STOP.install()  # SIGTERM ends the process by SystemExit: no temporary file stays behind
    sys.exit(main())
