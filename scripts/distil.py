"""Train one student that learns from several trained models, its teachers, and from their text.

    python scripts/distil.py my_20250102-030405 my_20250102-040506 --to my.yaml

The student is an ordinary training of the YAML. Beside the text it learns, in each place, what the
teachers together expect there (`training.distillation`). This script finds the teachers' files; all
else is train_with_samples.py, which also resumes the student.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
import os
import runpy
from collections.abc import Sequence

from chatgot.command_line import add_set, command_name, exit_code_of, go_on_as
from chatgot.given_path import given_text
from chatgot.shipped import yaml_named
from chatgot.spinning import spin_briefly
from chatgot.stdout import open_closed_streams
from chatgot.stopping import StopRequest

STOP = StopRequest()  # until the training has handlers of its own
TRAINING = Path(__file__).with_name("train_with_samples.py")
TEACHERS = "training.distillation.teachers"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Train one student that learns from several trained models and their text.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s my_20250102-030405 my_20250102-040506 --to my.yaml
  %(prog)s small wide checkpoints/deep_20250102-030405_step_800.pt --to my.yaml
  %(prog)s small wide --to my.yaml --set training.distillation.weight=0.5
  %(prog)s small wide --to my.yaml --resume_from latest""",
    )
    parser.add_argument(
        "teachers",
        type=given_text,
        nargs="+",
        metavar="RUN|FILE",
        help="a run's id or folder, a configuration's name (its newest run), each with its best "
        "checkpoint; or a checkpoint",
    )
    parser.add_argument(
        "--to",
        type=yaml_named,
        required=True,
        metavar="YAML",
        help="the student's experiment: a file, or the name of a YAML that comes with the program",
    )
    parser.add_argument(
        "--resume_from",
        type=given_text,
        metavar="FILE|latest",
        help="go on, bit for bit, from a checkpoint of the student",
    )
    add_set(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="print size, memory and time, then end"
    )
    args = parser.parse_args(argv)
    if any(override.partition("=")[0].strip() == TEACHERS for override in args.set):
        parser.exit(
            2, f"{parser.prog}: --set {TEACHERS}: the runs that you name are the teachers\n"
        )
    return args


def training_arguments(args: argparse.Namespace) -> list[str]:
    """Return the command line of the student's training. Raises: UserError."""
    from chatgot.config_file import load_config
    from chatgot.data.own_text import setting

    config, _ = load_config(args.to, args.set)  # before torch is imported, which takes seconds
    from chatgot.logs.logging_setup import setup_console

    setup_console()  # files that are passed over are named
    paths = teachers_files(args.teachers, Path(config.paths.checkpoints))
    arguments = ["--config", str(args.to)]
    if args.resume_from is not None:
        arguments += ["--resume_from", args.resume_from]
    if args.dry_run:
        arguments.append("--dry_run")
    for override in [*args.set, setting(TEACHERS, paths)]:
        arguments += ["--set", override]
    return arguments


def teachers_files(names: Sequence[str], checkpoint_dir: Path) -> list[str]:
    """Return the checkpoints that the named runs have as their best. Raises: UserError."""
    from chatgot.errors import ConfigError
    from chatgot.sampling.picking import find_checkpoint_file

    names_of: dict[Path, str] = {}
    paths = []
    for name in names:
        path = find_checkpoint_file(name, "best", checkpoint_dir)
        first = names_of.setdefault(path.resolve(), name)
        if first is not name:
            raise ConfigError(f"{first} and {name} are one checkpoint, {path}: name it once")
        paths.append(str(path))
    return paths


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    STOP.install()
    spin_briefly(os.environ)
    arguments: list[str] = []
    exit_code = exit_code_of(
        lambda: arguments.extend(training_arguments(args)), command_name(__file__)
    )
    if exit_code != 0:
        return exit_code
    go_on_as("train", TRAINING, arguments)
    runpy.run_path(str(TRAINING), run_name="__main__")  # it ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
