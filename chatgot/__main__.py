"""The command `chatgot VERB`: it runs the script of that verb, the same file as in a checkout."""

import sys

# `python -m chatgot` looks for modules in the current folder first, which is the user's: a file
# random.py there would be taken for Python's own
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import argparse
import runpy
from difflib import get_close_matches

from chatgot import __version__
from chatgot.command_line import COMMAND
from chatgot.shipped import scripts_folder

# Each verb, its script, and what it does
VERBS = {
    "prepare": ("prepare_data", "make one text of files, folders and chats, and look at it"),
    "plan": ("plan", "tell memory, time and cost of a run before machines are rented"),
    "train": ("train_with_samples", "train a model on your text, and watch its samples"),
    "distil": ("distil", "train one student that learns from several models, its teachers"),
    "chat": ("chat", "talk in this terminal to a model that you trained"),
    "serve": ("serve", "talk to it in a browser, and through OpenAI's API"),
    "export": ("export", "write a model for transformers, llama.cpp, Ollama, or one HTML page"),
    "evaluate": ("evaluate", "measure how well a model predicts texts, and what it copies"),
    "report": ("report", "write the page of a run: curves, samples, events"),
    "compare": ("compare", "compare runs side by side: losses, settings, noise of seeds"),
    "fix-log": ("fix_log_encoding", "mend a log: encodings, escape sequences, progress bars"),
}


def main() -> None:
    """Run the script of the verb that the command line names, with the other arguments.

    Without arguments it prints the help.
    """
    verb = verb_of(sys.argv[1:])
    if verb is None:
        return
    script = scripts_folder() / f"{VERBS[verb][0]}.py"
    del sys.argv[1]  # the script finds its own arguments, as if it had been started as a file
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")


def verb_of(arguments: list[str]) -> str | None:
    """Return the verb that the arguments begin with; None: there are none, the help is printed.

    A mistake, `--help` and `--version` end the process.
    """
    parser = make_parser()
    if not arguments:
        parser.print_help()
        return None
    known = f"the verbs are {', '.join(VERBS)}"
    options, unknown = parser.parse_known_args(arguments[:1])
    if unknown:
        parser.error(f"expected a verb before {unknown[0]} ({known})")
    if options.verb not in VERBS:
        parser.error(f"unknown verb {options.verb!r}{hint(options.verb)} ({known})")
    return str(options.verb)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all that comes before a verb's own arguments."""
    verbs = "\n".join(f"  {verb:<9}{does}" for verb, (_, does) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        usage=f"{COMMAND} VERB ...",
        description=f"Train a small language model on your text, on this machine.\n\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{COMMAND} VERB --help shows the options of a verb",
        allow_abbrev=False,
    )
    parser.add_argument("verb", nargs="?", metavar="VERB", help="one of those above")
    parser.add_argument("--version", action="version", version=f"{COMMAND} {__version__}")
    return parser


def hint(word: str) -> str:
    """Return a hint at the verb that is most like a word, or whose script is; maybe empty."""
    verb_by_name = {verb: verb for verb in VERBS}
    verb_by_name |= {script: verb for verb, (script, _) in VERBS.items()}
    nearest = get_close_matches(word, verb_by_name, n=1)
    return f", did you mean {verb_by_name[nearest[0]]}?" if nearest else ""


if __name__ == "__main__":
    main()
