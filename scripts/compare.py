"""Compare two to ten runs: one table, what differs in their settings, and one HTML page.

    python scripts/compare.py chatgot_quick chatgot_small_14M

Reads the runs' folders in logs/tensorboard/, while the runs go on or after them, and writes
compare.html beside them.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
from typing import TYPE_CHECKING

from chatgot.command_line import as_typed, command_name, command_words, exit_code_of
from chatgot.errors import ConfigError
from chatgot.given_path import given_path, given_text
from chatgot.report.finding import RUNS, find_run
from chatgot.stdout import open_closed_streams, write_to_stdout

if TYPE_CHECKING:
    from chatgot.report.comparison_page import Cells
    from chatgot.report.side_by_side import ComparedRun

FEWEST = 2
MOST = 10
COLUMNS = (
    "run",
    "steps",
    "tokens",
    "minutes",
    "val_loss",
    "best (step)",
    "best full",
    "last full",
    "bits/byte",
    "tokens/s",
    "ended",
)
DASH = "-"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Compare two to ten runs: a table here, curves and samples on one HTML page.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s chatgot_quick chatgot_mini        the newest runs of two configurations
  %(prog)s my_text_20250102-030405 my_text_20250102-050607   two runs of one
  %(prog)s a b ../elsewhere/logs/tensorboard/c_20250102-030405 --output abc.html""",
    )
    parser.add_argument(
        "runs",
        type=given_text,
        nargs="+",
        metavar="RUN",
        help=f"a run's folder, or in {RUNS} a run's id, or the name of a YAML or of your text",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        metavar="FILE",
        help="write the page there (default: compare.html beside the first run's folder)",
    )
    args = parser.parse_args(argv)
    if not FEWEST <= len(args.runs) <= MOST:
        count = "one RUN" if len(args.runs) == 1 else f"{len(args.runs)} RUNs"
        parser.error(f"found {count}, expected {FEWEST} to {MOST}")
    return args


def find_runs(words: list[str]) -> list[Path]:
    """Return the folders of the runs. Raises: UserError, also where one run is named twice."""
    word_by_folder: dict[Path, str] = {}
    for word in words:

        def command_for(run_id: str, meant: str = word) -> str:
            others = [run_id if other == meant else other for other in words]
            return as_typed([*command_words(), *others])

        folder = find_run(word, command_for).resolve()
        if folder in word_by_folder:
            raise ConfigError(
                f"{word_by_folder[folder]} and {word} are the same run ({folder.name}), expected "
                "different ones: name an older run by its id or folder"
            )
        word_by_folder[folder] = word
    return list(word_by_folder)


def compare(words: list[str], output: Path | None) -> None:
    """Print the comparison, and write its page. Raises: UserError."""
    run_dirs = find_runs(words)
    # here, after the command line: they take longer than a usage error may
    from chatgot.logs.logging_setup import escape_controls
    from chatgot.report.comparison_page import default_path, write_comparison
    from chatgot.report.side_by_side import read_runs

    runs = read_runs(run_dirs)
    path = default_path(runs) if output is None else output
    write_comparison(runs, path)
    lines = [*as_lines(runs), "", f"page: {path}"]
    text = "".join(f"{escape_controls(line)}\n" for line in lines)
    encoding = sys.stdout.encoding or "utf-8"
    write_to_stdout([text.encode(encoding, "backslashreplace")])


def as_lines(runs: list["ComparedRun"]) -> list[str]:
    """Return the comparison as people read it: what limits it, the table, settings, noise."""
    from chatgot.report.comparison_page import cells
    from chatgot.report.seed_noise import noise_lines, seed_noise
    from chatgot.report.side_by_side import (
        differences,
        in_words,
        measure_for,
        notes,
        other_differences,
        ranked,
    )

    measure = measure_for(runs)
    best_first = ranked(runs, measure)
    table = [cells(run, measure, number) for number, run in enumerate(best_first)]
    found = [*differences(best_first), *other_differences(best_first)]
    differ = [f"{one.name}: {in_words(one.values, best_first)}" for one in found]
    said = notes(runs, measure)
    order = "In the order of" if any(note.is_grave for note in said) else "The best first, by"
    return [
        *(note.text for note in said),
        f"{order} {measure.name} in {measure.unit} ({measure.in_words}):",
        "",
        *in_columns([list(COLUMNS), *map(words_of, table)]),
        "",
        "what differs:",
        *(f"  {line}" for line in differ or ["nothing"]),
        "",
        "noise of seeds:",
        *(f"  {line}" for line in noise_lines(seed_noise(runs, measure), runs, measure)),
    ]


def words_of(cells: "Cells") -> list[str]:
    """Return a run's line of the table, a word for each of COLUMNS."""
    best = f"{cells.best_loss} ({cells.best_step})" if cells.best_loss else DASH
    ended = cells.status.words
    if cells.nonfinite_rows:
        rows = "row" if cells.nonfinite_rows == 1 else "rows"
        ended += f", {cells.nonfinite_rows} {rows} not finite"
    return [
        cells.label,
        cells.steps or DASH,
        cells.tokens or DASH,
        cells.minutes or DASH,
        cells.last_loss or DASH,
        best,
        cells.best_full_loss or DASH,
        cells.full_loss or DASH,
        cells.bits or DASH,
        cells.tokens_per_s or DASH,
        ended,
    ]


def in_columns(table: list[list[str]]) -> list[str]:
    """Return a table's lines: numbers at the right of their columns, words at the left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if number in (0, last) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    return exit_code_of(lambda: compare(args.runs, args.output), command_name(__file__))


if __name__ == "__main__":
    sys.exit(main())
