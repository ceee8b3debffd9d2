"""Write a model for other programs: transformers, llama.cpp, Ollama, or a page in any browser.

    python scripts/export.py chatgot_quick --to king --format hf

Every export is proven: the files are read back, and their logits compared with the model's. If they
differ, nothing is left. A folder is there whole or not at all.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
import logging
import os
from typing import TYPE_CHECKING

from chatgot.command_line import command_name, exit_code_of
from chatgot.errors import StorageError
from chatgot.exchange.known_formats import DTYPES, FORMATS, format_named
from chatgot.exchange.new_folder import check_folder
from chatgot.given_path import given_text
from chatgot.stdout import open_closed_streams, write_to_stdout
from chatgot.stopping import StopRequest

if TYPE_CHECKING:
    from chatgot.exchange.exporting import Exported
    from chatgot.exchange.formats import Dtype, Format
    from chatgot.sampling.loading import LoadedModel

STOP = StopRequest()
CARD_SAMPLES = 8  # that a model writes, for what its card says about copies
MOST_PARAMETERS = 30_000_000  # of a model that writes them: a larger one takes too long


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    formats = "\n".join(f"  {name:<12} {reader}" for name, reader in FORMATS.items())
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Write a model for other programs, and prove that it is the same model "
        f"there.\n\nformats:\n{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s --to king --format hf                the newest run, for transformers
  %(prog)s chatgot_quick --to king --format gguf --dtype q8_0
  %(prog)s chatgot_quick --to king --format html    a page to give away""",
    )
    parser.add_argument(
        "model",
        type=given_text,
        nargs="?",
        metavar="RUN|FILE",
        help="a configuration's name, a run's id or folder (its best checkpoint), or a checkpoint "
        "(default: newest run)",
    )
    parser.add_argument(
        "--to",
        required=True,
        type=folder_named,
        metavar="DIR",
        help="folder to make: new, or empty",
    )
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write: see above")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="number format of the weights (default: fp32; html: fp16, q8_0 for a large model)",
    )
    return parser.parse_args(argv)


def folder_named(text: str) -> Path:
    """Return a folder's path without `..` in the middle: what is there may not exist yet."""
    return Path(os.path.normpath(given_text(text)))


def export_model(args: argparse.Namespace) -> None:
    """Export the model that is meant; say what was written. Raises: UserError."""
    refuse_folder(args.to)
    import chatgot.logs.bars  # noqa: F401 before torch: it guards the import of tqdm

    # here, after the command line: torch takes longer than a usage error may
    from chatgot.exchange.exporting import check_dtype, default_dtype, export
    from chatgot.exchange.held_out import windows_for
    from chatgot.exchange.importing import read_start
    from chatgot.machine.device import pick_device
    from chatgot.sampling.copies_of_model import copies_of_model
    from chatgot.sampling.loading import load_model
    from chatgot.sampling.picking import find_checkpoint_file

    exported_as = format_named(args.format)
    check_dtype(exported_as, args.dtype)
    path = find_checkpoint_file(args.model, "best")
    loaded = load_model(path, pick_device("cpu"), read_start)
    dtype = args.dtype or default_dtype(exported_as, loaded.model)
    small = loaded.model.parameter_count() <= MOST_PARAMETERS
    copies = copies_of_model(loaded, [], CARD_SAMPLES if small else 0)
    exported = export(loaded, exported_as, dtype, args.to, windows_for(loaded), copies)
    lines = described(loaded, exported_as, dtype, exported)
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(f"{line}\n" for line in lines)
    write_to_stdout([text.encode(encoding, "backslashreplace")])


def refuse_folder(folder: Path) -> None:
    """Refuse a folder that is there already, before anything is loaded. Raises: UserError."""
    try:
        check_folder(folder)
    except OSError as error:
        raise StorageError(f"--to {folder}: {error.strerror or error}") from error


def described(
    loaded: "LoadedModel", exported_as: "Format", dtype: "Dtype", exported: "Exported"
) -> list[str]:
    """Return the lines that say what was written, whether it is the same model, and what to do."""
    loss = "" if loaded.val_loss is None else f", held-out loss {loaded.val_loss:.3f}"
    bits = loaded.val_bits_per_byte
    in_bits = "" if bits is None else f" ({bits:.3f} bits per byte)"
    width = max(map(len, exported.files))
    files = [f"  {name:<{width}}  {in_words(size):>9}" for name, size in exported.files.items()]
    total = in_words(sum(exported.files.values()))
    return [
        f"{loaded.run_id}, step {loaded.step:,}{loss}{in_bits}, as {exported_as.name} in {dtype}:",
        *files,
        f"written: {exported.folder}, {total}",
        *(f"note: {remark}" for remark in exported.remarks),
        *(f"proof: {line}" for line in exported.proof.lines()),
        "try:",
        *(f"  {line}" for line in exported_as.how_to_use(exported.folder)),
    ]


def in_words(size: int) -> str:
    """Return a number of bytes as people read it."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.1f} {unit}"
    return f"{size} B"


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    STOP.install()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return exit_code_of(lambda: export_model(args), command_name(__file__))


if __name__ == "__main__":
    sys.exit(main())
