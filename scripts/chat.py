"""Talk to a trained model in this terminal, or let it continue prompts.

    python scripts/chat.py
    python scripts/chat.py chatgot_quick --user HORATIO --character HAMLET
    python scripts/chat.py --prompt "To be, or not to be" -n 10

Without --prompt it is a conversation: you speak as one character of the training text, the model
answers as another. With it, the continuation goes to stdout, and nothing else does.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
import io
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from chatgot.chat.limits import (
    DEFAULT_DRY,
    DEFAULT_NEW_TOKENS,
    LIMITS,
    read_number,
    read_whole_number,
)
from chatgot.command_line import command_name
from chatgot.errors import ConfigError, UserError
from chatgot.given_path import given_text
from chatgot.spinning import spin_briefly
from chatgot.stdout import open_closed_streams, write_to_stdout
from chatgot.stopping import StopRequest

if TYPE_CHECKING:
    from chatgot.chat.session import Session
    from chatgot.sampling.controls import Controls
    from chatgot.sampling.loading import LoadedModel

STOP = StopRequest()
LARGEST_FRESH_SEED = 1_000_000  # short enough to be typed again
STDIN = "-"


# --------------------------------------------------------------------------------------------------
# The command line: checked before torch is imported, which takes seconds


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line; numbers that were not given are None."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        read_numbers(args)
        refuse_misuse(args)
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return args


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the numbers are read later, because a mistake is said in one line."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Talk to a trained model in this terminal, or let it continue prompts.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s                                     talk to the newest model here
  %(prog)s chatgot_quick --user HORATIO --character HAMLET
  %(prog)s chatgot_quick --character auto      the model chooses who answers
  %(prog)s --prompt "To be, or not"            continue a text
  %(prog)s --prompt "To be, or not" -n 100 --json > texts.jsonl
  echo "HAMLET:" | %(prog)s --prompt -         a prompt with its line feed
  %(prog)s --prompts prompts.txt               one prompt a line
  echo "Who is there?" | %(prog)s              one turn a line, answers on stdout

In the conversation, /help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves.""",
    )
    parser.add_argument(
        "model",
        type=given_text,
        nargs="?",
        metavar="RUN|FILE",
        help="a configuration's name, a run's id or folder, or a checkpoint (default: newest run)",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("best", "latest"),
        default="best",
        help="of a run: the one of the lowest held-out loss, or the last (default: best)",
    )
    talk = parser.add_argument_group("conversation")
    talk.add_argument("--user", metavar="NAME", help="who you are")
    talk.add_argument(
        "--character",
        metavar="NAME|auto",
        help="who answers; auto: the model chooses (default: two who talk most to each other)",
    )
    raw = parser.add_argument_group("continuations, on stdout")
    prompts = raw.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="continue this text; -: read it on stdin")
    prompts.add_argument(
        "--prompts",
        type=given_text,
        metavar="FILE",
        help='one prompt a line; in a .jsonl file, JSON strings or {"prompt": ...}; -: stdin',
    )
    raw.add_argument("-n", metavar="N", help="completions of each prompt (default: 1)")
    raw.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line: prompt, text, logprob (sum, nats), tokens (their number), "
        "seed, finish_reason",
    )
    add_controls(parser.add_argument_group("how the text is drawn"))
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="auto: cuda if there is one, else mps, else cpu",
    )
    return parser


def add_controls(group: Any) -> None:
    """Add the options that say how the text is drawn."""
    group.add_argument(
        "--temperature",
        metavar="X",
        help="below 1: likelier, above 1: more varied, 0: the likeliest (default: the model's)",
    )
    group.add_argument("--top_k", metavar="K", help="draw from the K likeliest tokens")
    group.add_argument("--top_p", metavar="P", help="... from those that reach this probability")
    group.add_argument("--min_p", metavar="P", help="... from those above P x the likeliest one's")
    group.add_argument(
        "--dry_multiplier",
        metavar="X",
        help=f"against repetition; 0: off (default: {DEFAULT_DRY}, with a prompt 0)",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        help="repeats a text: of n completions, the first has this seed, the next the next one "
        "(default: with a prompt 0; in a conversation a new one, which is shown)",
    )
    group.add_argument(
        "--max_new_tokens",
        metavar="N",
        help=f"most tokens of a text (default: {DEFAULT_NEW_TOKENS}, with a prompt the model's)",
    )


def read_numbers(args: argparse.Namespace) -> None:
    """Replace each number that was typed by its value. Raises: ConfigError."""
    for name, limits in LIMITS.items():
        typed = getattr(args, name, None)
        if typed is not None:
            shown = "-n" if name == "n" else f"--{name}"
            read = read_whole_number if limits.whole else read_number
            setattr(args, name, read(name, typed, shown))


def refuse_misuse(args: argparse.Namespace) -> None:
    """Refuse options that do not go together. Raises: ConfigError."""
    from chatgot.chat.names import AUTO, mistake_in_name

    if has_prompt(args):
        if args.user is not None or args.character is not None:
            raise ConfigError("--user and --character go with a conversation, not with a prompt")
        return
    if args.json or args.n is not None:
        option = "--json" if args.json else "-n"
        raise ConfigError(f"{option} goes with --prompt or --prompts")
    for option, name in (("--user", args.user), ("--character", args.character)):
        mistake = "" if name is None or name == AUTO else mistake_in_name(name)
        if mistake or (option == "--user" and name == AUTO):
            raise ConfigError(f"{option}: {mistake or 'auto is nobody: say who you are'}")


def has_prompt(args: argparse.Namespace) -> bool:
    """Return whether prompts are to be continued; else it is a conversation."""
    return args.prompt is not None or args.prompts is not None


# --------------------------------------------------------------------------------------------------
# The model


def load(args: argparse.Namespace) -> "LoadedModel":
    """Return the model that is meant. Raises: CheckpointRejected; ConfigError."""
    from chatgot.exchange.importing import read_start
    from chatgot.machine.device import pick_device
    from chatgot.sampling.loading import load_model
    from chatgot.sampling.picking import find_checkpoint_file

    device = pick_device(args.device)
    path = find_checkpoint_file(args.model, args.checkpoint)
    return load_model(path, device, read_start)


def describe(model: "LoadedModel") -> str:
    """Return in one line which model it is."""
    loss = "" if model.val_loss is None else f", held-out loss {model.val_loss:.3f}"
    bits = model.val_bits_per_byte
    in_bits = "" if bits is None else f" ({bits:.3f} bits per byte)"
    return f"{model.run_id}, step {model.step:,}{loss}{in_bits}"


def controls_of(args: argparse.Namespace, model: "LoadedModel") -> "Controls":
    """Return how texts are drawn: as the options say, else as the model's configuration does."""
    from chatgot.sampling.controls import DRY_LENGTH, Controls

    sampling = model.config.sampling
    raw = has_prompt(args)
    fresh_seed = 0 if raw else secrets.randbelow(LARGEST_FRESH_SEED)
    defaults = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "dry_multiplier": 0.0 if raw else DEFAULT_DRY,
        "seed": fresh_seed,
        "max_new_tokens": sampling.max_new_tokens if raw else DEFAULT_NEW_TOKENS,
    }
    names = (*defaults, "min_p")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    dry_length = DRY_LENGTH[model.vocabulary.kind]
    return Controls(**{**defaults, **given}, dry_allowed_length=dry_length)


# --------------------------------------------------------------------------------------------------
# Continuations, and the conversation


def note(text: str) -> None:
    """Show a line on stderr."""
    from chatgot.logs.logging_setup import escape_controls

    with suppress(OSError):  # stderr may be a pipe that nobody reads
        print(escape_controls(text, "\n"), file=sys.stderr, flush=True)


def prompts_of(args: argparse.Namespace) -> list[str]:
    """Return the prompts that were given. Raises: ConfigError."""
    from chatgot.chat.continuing import decode, read_prompts

    if args.prompt is not None and args.prompt != STDIN:
        return [args.prompt]
    if STDIN in (args.prompt, args.prompts):
        content = sys.stdin.buffer.read()
        return [decode("stdin", content)] if args.prompt else read_prompts("stdin", content)
    try:
        content = Path(args.prompts).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"--prompts: {args.prompts}: cannot be read: {error.strerror or error}"
        ) from error
    return read_prompts(args.prompts, content)


def continue_prompts(args: argparse.Namespace, prompts: list[str]) -> None:
    """Write the continuations of prompts to stdout, until its reader has gone.

    Raises: UserError.
    """
    from chatgot.chat.continuing import ask_for, written_as_json, written_as_text
    from chatgot.sampling.engine import Engine

    model = load(args)
    note(describe(model))
    readable = []
    outside: set[str] = set()
    for prompt in prompts:
        text, unknown = model.vocabulary.replace_unknown(prompt)
        readable.append(text)
        outside.update(unknown)
    if outside:
        characters = "".join(sorted(outside))
        note(f"the model does not know these characters, others stand for them: {characters!r}")
    context = model.config.model.max_seq_length
    if any(len(model.vocabulary.encode(prompt)) > context for prompt in readable):
        note(f"a prompt is longer than the model's context of {context} tokens: it reads the end")
    engine = Engine(model.model, model.vocabulary)
    controls = controls_of(args, model)
    continuations = ask_for(engine, model.vocabulary, readable, args.n or 1, controls)
    if args.json:
        write_all(written_as_json(engine, continuations), "utf-8")
    else:
        encoding = sys.stdout.encoding or "utf-8"
        write_all(written_as_text(engine, continuations), encoding)


def write_all(pieces: Iterable[str], encoding: str) -> None:
    """Write pieces to stdout, each at once, until its reader has gone.

    On a terminal control characters are shown as escapes. Raises: StorageError.
    """
    from chatgot.logs.logging_setup import escape_controls

    is_terminal = sys.stdout.isatty()
    for piece in pieces:
        shown = escape_controls(piece, "\n") if is_terminal else piece
        if not write_to_stdout([shown.encode(encoding, "backslashreplace")]):
            return


def converse(args: argparse.Namespace) -> None:
    """Talk, on the terminal or through pipes. Raises: UserError."""
    from chatgot.chat.console import Pipe
    from chatgot.chat.session import Session
    from chatgot.chat.speaking import Actor
    from chatgot.sampling.engine import Engine
    from chatgot.sampling.training_text import training_index

    model = load(args)
    actor = Actor(
        Engine(model.model, model.vocabulary),
        model.vocabulary,
        model.speakers,
        model.config.model.max_seq_length,
        controls_of(args, model),
        cache(lambda: training_index(model)),
    )
    session = Session(actor, Pipe(sys.stdin), "", "")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # what is no text is outside the vocabulary
        begin_and_talk(args, session, model)
        return
    from chatgot.chat.terminal import Terminal

    with Terminal() as terminal:
        session.console = terminal
        terminal.complete_for(session)
        begin_and_talk(args, session, model)


def begin_and_talk(args: argparse.Namespace, session: "Session", model: "LoadedModel") -> None:
    """Settle who takes part, greet, and talk until the end."""
    from chatgot.chat.names import AUTO
    from chatgot.chat.speaking import pair_of
    from chatgot.chat.talk import greet, talk

    user = None if args.user is None else session.meant(args.user)
    character = args.character
    if character not in (None, AUTO):
        character = session.meant(character)
    session.user, session.character = pair_of(model.speakers, user, character)
    greet(session, describe(model))
    talk(session)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    STOP.install()
    spin_briefly(os.environ)
    try:
        if has_prompt(args):
            continue_prompts(args, prompts_of(args))
        else:
            converse(args)
    except UserError as error:
        note(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
