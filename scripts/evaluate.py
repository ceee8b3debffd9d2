"""Measure how well a model predicts texts, whose lines it predicts best, and what it copies.

    python scripts/evaluate.py chatgot_quick another_play.txt

Losses are in nats per token and in bits per byte; these can be compared between models of
characters and of subwords. What the model copies from its training text is measured where that
text is still here.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
import json
import logging
from typing import TYPE_CHECKING

from chatgot.command_line import command_name, exit_code_of
from chatgot.encoding_names import codec_name
from chatgot.given_path import given_path, given_text
from chatgot.stdout import open_closed_streams, write_to_stdout
from chatgot.stopping import StopRequest

if TYPE_CHECKING:
    from chatgot.sampling.copies_of_model import Copies
    from chatgot.sampling.loading import LoadedModel
    from chatgot.sampling.text_scores import Score, TextScore

STOP = StopRequest()
SHOWN_SPEAKERS = 12
MOST_SAMPLES = 1000


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Measure how well a model predicts texts, and what it copies.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s chatgot_quick another_play.txt
  %(prog)s my_text a.txt b.txt --json
  %(prog)s checkpoints/my_text_20250102-030405_step_800.pt a.txt --samples 0""",
    )
    parser.add_argument(
        "model",
        type=given_text,
        metavar="RUN|FILE",
        help="a configuration's name, a run's id or folder (its best checkpoint), or a checkpoint",
    )
    parser.add_argument(
        "texts",
        type=given_path,
        nargs="+",
        metavar="TEXT",
        help="text files that the model has not been trained on",
    )
    parser.add_argument(
        "--encoding", type=encoding_named, help="of the texts, such as cp1250 (default: guessed)"
    )
    parser.add_argument(
        "--samples",
        type=sample_count,
        default=16,
        metavar="N",
        help="texts that the model writes, to see what it copies (default: 16; 0: none)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def encoding_named(text: str) -> str:
    """Return the name of an encoding as Python has it."""
    try:
        return codec_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def sample_count(text: str) -> int:
    """Return a number of samples."""
    try:
        count = int(text)
    except ValueError:
        count = -1
    if not 0 <= count <= MOST_SAMPLES:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 to {MOST_SAMPLES}")
    return count


def evaluate(args: argparse.Namespace) -> None:
    """Score the texts, and print what was found. Raises: UserError."""
    from chatgot.data.text_file import check_text_file

    for path in args.texts:
        check_text_file(path, advice="give")
    import chatgot.logs.bars  # noqa: F401 before torch: it guards the import of tqdm

    # here, after the command line: torch takes longer than a usage error may
    from chatgot.exchange.importing import read_start
    from chatgot.machine.device import pick_device
    from chatgot.sampling.copies_of_model import copies_of_model
    from chatgot.sampling.loading import load_model
    from chatgot.sampling.picking import find_checkpoint_file
    from chatgot.sampling.text_scores import score_file

    path = find_checkpoint_file(args.model, "best")
    loaded = load_model(path, pick_device("auto"), read_start)
    scores = [score_file(text, loaded, args.encoding) for text in args.texts]
    copies = copies_of_model(loaded, [score.text for score in scores], args.samples)
    if args.json:
        text = json.dumps(as_json(loaded, scores, copies), ensure_ascii=False) + "\n"
    else:
        text = "".join(f"{line}\n" for line in as_lines(loaded, scores, copies))
    encoding = sys.stdout.encoding or "utf-8"
    write_to_stdout([text.encode(encoding, "backslashreplace")])


def as_json(
    loaded: "LoadedModel", scores: list["TextScore"], copies: "Copies | None"
) -> dict[str, object]:
    """Return all that was measured, for programs."""
    from chatgot.sampling.text_scores import together

    return {
        "run": loaded.run_id,
        "step": loaded.step,
        "checkpoint": str(loaded.path),
        "files": [
            {
                "file": score.name,
                **numbers_of(score.whole),
                "unknown": score.unknown,
                "speakers": {name: numbers_of(own) for name, own in score.speakers.items()},
            }
            for score in scores
        ],
        "all": numbers_of(together([score.whole for score in scores])),
        "originality": None if copies is None else copies.as_json(),
    }


def numbers_of(score: "Score") -> dict[str, float]:
    """Return what was measured on some tokens."""
    return {
        "loss": score.loss,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "bytes": score.utf8_bytes,
    }


def as_lines(
    loaded: "LoadedModel", scores: list["TextScore"], copies: "Copies | None"
) -> list[str]:
    """Return all that was measured, as people read it."""
    from chatgot.logs.logging_setup import escape_controls
    from chatgot.sampling.text_scores import together

    lines = [f"{loaded.run_id}, step {loaded.step:,}", row_of("text", "loss", "bits/byte")]
    for score in scores:
        lines.append(row(escape_controls(score.name), score.whole))
        if score.unknown:
            shown = repr(score.unknown_characters[:20])
            lines.append(f"  {score.unknown:,} characters that it does not know: {shown}")
        named = list(score.speakers.items())
        lines += [row(f"  {name}", own) for name, own in named[:SHOWN_SPEAKERS]]
        if len(named) > SHOWN_SPEAKERS:
            lines.append(f"  and {len(named) - SHOWN_SPEAKERS} more speakers: see --json")
    if len(scores) > 1:
        lines.append(row("all", together([score.whole for score in scores])))
    lines.append("loss: nats per token. bits/byte: the same for models of any vocabulary.")
    if copies is None:
        lines.append("originality: not measured, as the text it was trained on is not here")
    else:
        lines += copies.lines()
    return lines


def row(name: str, score: "Score") -> str:
    """Return one line of the table."""
    return row_of(
        name, f"{score.loss:.4f}", f"{score.bits_per_byte:.4f}", f"{score.tokens:,} tokens"
    )


def row_of(name: str, *cells: str) -> str:
    """Return a name and some cells in columns."""
    return (f"{name:<40}" + "".join(f"{cell:>15}" for cell in cells)).rstrip()


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    STOP.install()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return exit_code_of(lambda: evaluate(args), command_name(__file__))


if __name__ == "__main__":
    sys.exit(main())
