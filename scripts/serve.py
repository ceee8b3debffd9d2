"""Serve your models on this machine: a page to talk to them, and OpenAI's API for other programs.

    python scripts/serve.py chatgot_quick --open
    python scripts/serve.py --run chatgot_quick      beside its training

It prints its address on stderr when it answers. Ctrl+C or SIGTERM ends it, after what is being
answered.
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
import signal
from contextlib import suppress
from types import FrameType

from chatgot.command_line import command_name
from chatgot.errors import ConfigError, UserError
from chatgot.given_path import given_text
from chatgot.spinning import spin_briefly
from chatgot.stdout import open_closed_streams

CHECKPOINTS = Path("checkpoints")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Serve the models of checkpoints/: a page in the browser, and OpenAI's API.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s --open                      the newest run, and the page in your browser
  %(prog)s chatgot_quick               its newest run answers where a request names no model
  %(prog)s --run chatgot_quick         a run in progress: always its newest checkpoint
  %(prog)s --host 0.0.0.0 --api_key KEY    also for other machines""",
    )
    parser.add_argument(
        "model",
        type=given_text,
        nargs="?",
        metavar="RUN|FILE",
        help="a configuration's name, a run's id or folder, or a checkpoint (default: newest run)",
    )
    parser.add_argument(
        "--run",
        type=given_text,
        metavar="NAME",
        help="serve the latest checkpoint of a run beside its training, with low priority",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="0: a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--api_key", metavar="KEY", help="ask for this key; needed for anything but loopback"
    )
    parser.add_argument("--open", action="store_true", help="open the page in your browser")
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "mps", "cpu"),
        default="auto",
        help="what computes (default: %(default)s; with --run: cpu)",
    )
    parser.add_argument(
        "--max_concurrent",
        type=int,
        default=64,
        metavar="N",
        help="requests that are answered at once; more are told to come again (%(default)s)",
    )
    args = parser.parse_args(argv)
    problem = misused(args)
    if problem:
        parser.exit(2, f"{parser.prog}: {problem}\n")
    return args


def misused(args: argparse.Namespace) -> str:
    """Return what is wrong with the options, and what to do; empty: nothing."""
    from chatgot.serving.hosts import is_loopback

    if args.model is not None and args.run is not None:
        return f"{args.model} and --run {args.run}: give one of them"
    if not 0 <= args.port <= 65535:
        return f"--port: found {args.port}, expected 0 to 65535"
    if args.max_concurrent < 1:
        return f"--max_concurrent: found {args.max_concurrent}, expected at least 1"
    if args.api_key is not None and not (args.api_key.isascii() and args.api_key.strip()):
        return "--api_key: expected ASCII characters, not only spaces"
    if not is_loopback(args.host) and args.api_key is None:
        return f"--host {args.host} lets other machines ask: give an --api_key KEY, too"
    return ""


def end_quietly(number: int, frame: FrameType | None) -> None:
    """End before anything is served: there is nothing to finish."""
    raise SystemExit(0)


def say(line: str) -> None:
    """Show a line on stderr, if anybody reads it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    signal.signal(signal.SIGTERM, end_quietly)
    signal.signal(signal.SIGINT, end_quietly)
    open_closed_streams()
    args = parse_arguments(argv)
    try:
        # here, after the command line: it takes longer than a usage error may
        from chatgot.serving.hosts import bind

        with bind(args.host, args.port) as taken:
            spin_briefly(os.environ)
            import chatgot.logs.bars  # noqa: F401 before torch: it guards the import of tqdm
            from chatgot.serving.listening import Settings, serve_until_told

            settings = Settings(
                host=args.host,
                api_key=args.api_key or "",
                checkpoint_dir=CHECKPOINTS,
                name=args.run if args.run is not None else args.model,
                beside_training=args.run is not None,
                device=args.device,
                max_concurrent=args.max_concurrent,
                opens_browser=args.open,
            )
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
            serve_until_told(settings, taken, say)
    except ConfigError as error:
        print(f"{command_name(__file__)}: {error}", file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    # not sys.exit: torch takes seconds to go, more while it compiles; there is nothing left to do
    os._exit(exit_code)
