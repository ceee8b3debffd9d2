"""The command `chatgot VERB`: it runs the script of that verb, the same file as in a checkout."""

import argparse
import runpy
import sys

from chatgot import __version__
from chatgot.command_line import COMMAND
from chatgot.shipped import scripts_folder

# Each verb, its script, and what it does
VERBS = {
    "train": ("train_with_samples", "train a model on your text, and watch its samples"),
    "report": ("report", "write the page of a run: curves, samples, events"),
    "fix-log": ("fix_log_encoding", "mend a log: encodings, escape sequences, progress bars"),
}


def main() -> None:
    """Run the script of the verb that the command line names, with the other arguments."""
    verbs = "\n".join(f"  {verb:<9}{does}" for verb, (_, does) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        usage=f"{COMMAND} VERB ...",
        description=f"Train a small language model on your text, on this machine.\n\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{COMMAND} VERB --help shows the options of a verb",
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of those above")
    parser.add_argument("--version", action="version", version=f"{COMMAND} {__version__}")
    verb = parser.parse_args(sys.argv[1:2]).verb
    script = scripts_folder() / f"{VERBS[verb][0]}.py"
    del sys.argv[1]  # the script finds its own arguments, as if it had been started as a file
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
