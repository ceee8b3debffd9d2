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
import os
import re

from chatgot.command_line import as_typed, command_name, command_words
from chatgot.errors import CheckpointRejected, ConfigError, UserError
from chatgot.given_path import given_path, given_text
from chatgot.logs.origins import origin, run_of_name
from chatgot.stdout import open_closed_streams, write_to_stdout

RUNS = Path("logs", "tensorboard")


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


def find_run(run: str) -> Path:
    """Return the folder of a run named by its folder, its id, or its configuration.

    Of a configuration it is the newest run; see `run_of_name`.
    Raises: ConfigError; CheckpointRejected where several YAMLs or texts of that name began runs.
    """
    for folder in (Path(run), RUNS / run):
        if os.path.isdir(folder):  # noqa: PTH112 Path's own raises for names that are too long
            return folder
    name = re.compile(re.escape(run) + r"_\d{8}-\d{6}")
    folders = [
        folder for folder in RUNS.glob("*") if name.fullmatch(folder.name) and folder.is_dir()
    ]
    if not folders:
        place = RUNS.resolve()
        raise ConfigError(
            f"{run}: no such folder, and no run of that name in {place}; give a run's folder"
        )
    newest_first = sorted(folders, key=lambda folder: folder.name, reverse=True)
    meant, several = run_of_name([(folder, origin(folder)) for folder in newest_first])
    if meant is None:
        commands = [
            f"{began_from}: {as_typed([*command_words(), folder.name])}"
            for began_from, folder in several.items()
        ]
        raise CheckpointRejected(
            f"{run}: {len(several)} files of that name began runs in {RUNS}; "
            f"the newest run of {'; of '.join(commands)}"
        )
    return meant


def write_reports(runs: list[str], output: Path | None) -> int:
    """Write every report that can be written; return the exit code of the first that cannot."""
    # here, after the command line: they take longer than a usage error may
    from chatgot.logs.logging_setup import escape_controls
    from chatgot.report.page import write_report

    exit_code = 0
    for run in runs:
        try:
            path = escape_controls(str(write_report(find_run(run), output)))
            encoding = sys.stdout.encoding or "utf-8"
            write_to_stdout([f"{path}\n".encode(encoding, "backslashreplace")])
        except UserError as error:
            print(escape_controls(str(error)), file=sys.stderr)
            exit_code = exit_code or error.exit_code
    return exit_code


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    return write_reports(args.runs, args.output)


if __name__ == "__main__":
    sys.exit(main())
