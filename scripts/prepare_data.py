"""Make one text to train on of whatever you have: transcripts, subtitles, chats, books, zips.

    python scripts/prepare_data.py episodes/ --output data/show.txt
    python scripts/prepare_data.py crawl/ --shards s3://bucket/crawl

Everything stays on this machine. Who speaks stands on a line of its own, `NAME:`, above the text;
`<|endoftext|>` stands between documents. What is left out is named with its reason.

With --shards the texts, which may be larger than this machine, become tokens in many files instead.
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
from dataclasses import replace
from typing import TYPE_CHECKING

from chatgot.command_line import command_name, command_of
from chatgot.encoding_names import codec_name
from chatgot.errors import UserError
from chatgot.given_path import given_path, given_text
from chatgot.stdout import open_closed_streams, write_to_stdout
from chatgot.stopping import StopRequest

if TYPE_CHECKING:
    from chatgot.data.preparation.prepare import Preparation, Prepared

STOP = StopRequest()
LEAST_VOCABULARY = 257  # as data.vocab_size
MOST_VOCABULARY = 2**18
LARGEST_SHARD = 1024  # MiB

DESCRIPTION = "Make one text to train on of files, folders and zips, and look at it before."
EXAMPLES = """examples:
  %(prog)s episodes/ --output data/show.txt
  %(prog)s "season 1/*.srt" "season 2/*.srt" --output data/show.txt --report look.html
  %(prog)s chat.zip --output data/chat.txt --order date --pause_hours 3
  %(prog)s lines.csv --output data/lines.txt --speaker_column who --text_column line
  %(prog)s . --dry_run
  %(prog)s "crawl/*.jsonl.gz" --shards s3://bucket/crawl --vocab_size 32768

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
    add_cleaning(parser)
    add_shards(parser)
    args = parser.parse_args(argv)
    problem = misused_shards(args, parser)
    if problem:
        parser.error(problem)
    if args.output is None and args.shards is None and not args.dry_run:
        parser.error("--output FILE is needed, or --shards FOLDER, or --dry_run to look only")
    return args


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add what says how a text larger than this machine becomes token shards."""
    group = parser.add_argument_group(
        "texts larger than this machine",
        """INPUT is then plain UTF-8, in which <|endoftext|> on a line of its own ends a
document, or JSON Lines with the text of a document as "text", maybe with .gz.
Files, folders and patterns may lie in an object storage, as s3://bucket/*.jsonl.
A text that comes twice is left out.""",
    )
    group.add_argument(
        "--shards",
        type=given_text,
        metavar="FOLDER|URL",
        help="write token shards for data.shards there, instead of one text",
    )
    group.add_argument(
        "--tokenizer",
        type=given_text,
        metavar="char|bpe|FILE",
        help="of the shards: characters, subwords learned from a sample, or those of a "
        "tokenizer.json (default: bpe)",
    )
    group.add_argument(
        "--vocab_size", type=count, metavar="N", help="most tokens of bpe (default: 32768)"
    )
    group.add_argument(
        "--held_out",
        type=share,
        metavar="X",
        help="share of the documents to hold out, chosen by their content (default: 0.01)",
    )
    group.add_argument(
        "--shard_mib", type=mebibytes, metavar="N", help="size of a shard, in MiB (default: 64)"
    )


SHARD_OPTIONS = ("tokenizer", "vocab_size", "held_out", "shard_mib")


def misused_shards(args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return which options do not go together; empty: all do."""
    if args.shards is None:
        given = [name for name in SHARD_OPTIONS if getattr(args, name) is not None]
        return f"--{given[0]} goes with --shards FOLDER" if given else ""
    kept = {"inputs", "shards", *SHARD_OPTIONS}
    others = [
        name
        for name, value in vars(args).items()
        if name not in kept and value != parser.get_default(name)
    ]
    if others:
        return (
            f"--{others[0]} does not go with --shards: make a text with --output first, and "
            "then shards of that"
        )
    if args.vocab_size is not None and not LEAST_VOCABULARY <= args.vocab_size <= MOST_VOCABULARY:
        return (
            f"--vocab_size: found {args.vocab_size}, expected {LEAST_VOCABULARY} to "
            f"{MOST_VOCABULARY:,}"
        )
    if args.vocab_size is not None and args.tokenizer not in (None, "bpe"):
        return f"--vocab_size goes with --tokenizer bpe, not with {args.tokenizer}"
    return ""


def share(text: str) -> float:
    """Return a share of a whole, above 0 and below 1. Raises: ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a share above 0 and below 1")
    return number


def mebibytes(text: str) -> int:
    """Return a number from 1 to 1024. Raises: ArgumentTypeError."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= LARGEST_SHARD:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a number from 1 to {LARGEST_SHARD}: a shard is in memory "
            "until it is whole"
        )
    return number


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add what says where the text goes, and what is refused."""
    parser.add_argument(
        "--output", type=given_path, metavar="FILE", help="the text; an existing one is replaced"
    )
    parser.add_argument(
        "--report", type=given_path, metavar="PAGE", help="write the look at the text as one page"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="read all and say what it is, but write no text"
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


def add_cleaning(parser: argparse.ArgumentParser) -> None:
    """Add what says what is mended, besides Unicode's normal form."""
    parser.add_argument(
        "--normalize_quotes",
        action="store_true",
        help="write quotes, dashes, ellipses and odd spaces in ASCII",
    )
    parser.add_argument(
        "--merge",
        action="append",
        default=[],
        metavar="NAME=a,b",
        help="one name for a speaker who has several; may be repeated",
    )
    parser.add_argument(
        "--anonymize",
        action="store_true",
        help="replace speakers' names, phone numbers, mail addresses and links",
    )
    parser.add_argument(
        "--drop_duplicates",
        action="store_true",
        help="leave out recaps, repeated documents and long passages",
    )
    parser.add_argument(
        "--min_count",
        type=count,
        metavar="N",
        help="characters that come less often are written in a plain form, or as a white square",
    )


def count(text: str) -> int:
    """Return a number from 2 on. Raises: ArgumentTypeError."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 2:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 2 on")
    return number


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
    from chatgot.data.preparation.cleaning.options import CleaningOptions, merge_of
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
    cleaning = CleaningOptions(
        normalize_quotes=args.normalize_quotes,
        drop_duplicates=args.drop_duplicates,
        merge=merge_of(args.merge),
        anonymize=args.anonymize,
    )
    return Preparation(
        tuple(args.inputs),
        order=args.order,
        encoding=args.encoding,
        reading=reading,
        cleaning=cleaning,
        min_count=args.min_count,
        ours=tuple(path for path in (args.output, args.report) if path is not None),
        is_strict=args.strict,
    )


def make_shards(args: argparse.Namespace) -> int:
    """Write token shards, and say what they are; return the exit code."""
    # here, after the command line: they take longer than a usage error may
    from chatgot.data.shards.writing import MIB, ShardSettings, write_shards
    from chatgot.logs.logging_setup import setup_console

    setup_console()
    settings = ShardSettings()
    if args.tokenizer is not None:
        settings = replace(settings, tokenizer=args.tokenizer)
    if args.vocab_size is not None:
        settings = replace(settings, vocab_size=args.vocab_size)
    if args.held_out is not None:
        settings = replace(settings, held_out=args.held_out)
    if args.shard_mib is not None:
        settings = replace(settings, shard_bytes=args.shard_mib * MIB)
    index = write_shards(args.inputs, args.shards, settings)
    say(
        f"{name}: {part.tokens:,} tokens of {part.documents:,} documents in {len(part.shards):,} "
        f"shard{'' if len(part.shards) == 1 else 's'}"
        for name, part in (("training", index.train), ("held out", index.held_out))
    )
    say([f"left out: {index.duplicates:,} documents whose text had come before"])
    options = ["--config", "chatgot_quick", "--set", f"data.shards={args.shards}"]
    say([f"written: {args.shards}", f"next: {command_of('train', options)}"])
    return 0


def prepare_data(args: argparse.Namespace) -> int:
    """Prepare the text, and say what it is; return the exit code."""
    if args.shards is not None:
        return make_shards(args)
    # here, after the command line: they take longer than a usage error may
    from chatgot.data.preparation.prepare import prepare
    from chatgot.data.preparation.summary import PROMISE, human_size, summary
    from chatgot.logs.logging_setup import setup_console
    from chatgot.report.text_page import write_text_page

    setup_console()
    say([PROMISE])
    preparation = preparation_of(args)
    if args.report is not None:
        check_page(args)
    prepared = prepare(preparation, None if args.dry_run else args.output)
    choices = choices_for(prepared, args.output or Path("text.txt"))
    say([*summary(prepared), *choices])
    if args.report is not None:
        prepared.look.name = args.inputs[0] if args.output is None else args.output.name
        write_text_page(prepared.look, args.report, choices)
        say([f"look at it: {args.report}"])
    if args.dry_run:
        say(["no text was written (--dry_run)"])
        return 0
    next_command = command_of("train", [str(args.output), "--minutes", "10"])
    size = human_size(prepared.size)
    say([f"written: {args.output} ({size})", f"next: {next_command}"])
    return 0


def check_page(args: argparse.Namespace) -> None:
    """Refuse a page that would replace the text, or a file of another kind. Raises: ConfigError."""
    from chatgot.errors import ConfigError
    from chatgot.report.page import refuse_foreign

    if args.output is not None and args.report.resolve() == args.output.resolve():
        raise ConfigError(f"{args.report}: given as --output and as --report; name two files")
    refuse_foreign(args.report)


def choices_for(prepared: "Prepared", text: Path) -> list[str]:
    """Return what training would choose for a text, in a few lines."""
    from chatgot.training.foreseen import foreseen  # it imports torch, which takes seconds

    return foreseen(text, prepared.characters, prepared.distinct)


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
