"""Write the report of runs: one HTML page each, with curves, samples, events, time and settings.

    python scripts/report.py chatgot_quick

Reads the run's folder in logs/tensorboard/, while the run goes on or after it, and writes
report.html into it.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse

from chatgot.command_line import as_typed, command_name, command_words
from chatgot.errors import UserError
from chatgot.given_path import given_path, given_text
from chatgot.report.finding import RUNS, find_run
from chatgot.stdout import open_closed_streams, write_to_stdout


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Write the report of runs, one HTML page each, and print its path.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s chatgot_quick                     the newest run of that configuration
  %(prog)s chatgot_quick_20250102-030405     this very run
  %(prog)s logs/tensorboard/chatgot_quick_20250102-030405    the same, by its folder
  %(prog)s chatgot_quick --output quick.html                 written elsewhere""",
    )
    parser.add_argument(
        "runs",
        type=given_text,
        nargs="+",
        metavar="RUN",
        help=f"a run's folder, or in {RUNS} a run's id, or the name of a YAML or of your text",
    )
    parser.add_argument(
        "--output", type=given_path, metavar="FILE", help="write the page there; for one RUN only"
    )
    args = parser.parse_args(argv)
    if args.output and len(args.runs) > 1:
        parser.error("--output takes one RUN")
    return args


def write_reports(runs: list[str], output: Path | None) -> int:
    """Write every report that can be written; return the exit code of the first that cannot."""
    # here, after the command line: they take longer than a usage error may
    from chatgot.logs.logging_setup import escape_controls
    from chatgot.report.page import write_report

    exit_code = 0
    for run in runs:
        try:
            path = escape_controls(str(write_report(find_run(run, command_for), output)))
            encoding = sys.stdout.encoding or "utf-8"
            write_to_stdout([f"{path}\n".encode(encoding, "backslashreplace")])
        except UserError as error:
            print(escape_controls(str(error)), file=sys.stderr)
            exit_code = exit_code or error.exit_code
    return exit_code


def command_for(run_id: str) -> str:
    """Return the command that writes the report of one run."""
    return as_typed([*command_words(), run_id])


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    return write_reports(args.runs, args.output)


if __name__ == "__main__":
    sys.exit(main())
