"""Plan a run before machines are rented: memory, time, cost, strategy and number of ranks.

    python scripts/plan.py --config chatgot_small_85M --machines 8xH100 --price_per_hour 2.5

Nothing is trained. Memory is counted with fake tensors, which have shapes and no content; the speed
of a CPU is measured on this machine, that of a GPU is computed from its data sheet.
"""

import sys
from pathlib import Path

# started as a file of a checkout, from any folder: with that checkout's chatgot
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "chatgot").is_dir():
    sys.path.insert(0, str(CHECKOUT))

import argparse
import json
from typing import TYPE_CHECKING

from chatgot.command_line import add_set, command_name, exit_code_of
from chatgot.planning.machines import Machines, Price, machines_named, price_named
from chatgot.shipped import yaml_named
from chatgot.stdout import open_closed_streams, write_to_stdout

if TYPE_CHECKING:
    from chatgot.planning.plan import Asked, Plan

MOST_TOKENS = 10**18
MOST_VOCABULARY = 2**24
MOST_FAKE_RANKS = 4096
FEWEST_FAKE_RANKS = 9  # without --fake_ranks: from so many on a step of them is faked


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name(__file__),
        description="Plan a run before machines are rented: memory, time, cost, number of ranks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  %(prog)s --config chatgot_small_85M --machines 8xH100 --price_per_hour 2.5
  %(prog)s --config my.yaml --machines 4x8xH100 --tokens 20e9 --vocab_size 32000
  %(prog)s --config chatgot_quick --machines 1xcpu
  %(prog)s --config my.yaml --machines 8xH100 --fake_ranks 512""",
    )
    parser.add_argument(
        "--config",
        type=yaml_named,
        required=True,
        metavar="YAML",
        help="the experiment: a file, or the name of a YAML that comes with the program",
    )
    parser.add_argument(
        "--machines",
        type=machines,
        required=True,
        metavar="8xH100",
        help="devices to plan for: 8xH100, 4x8xH100 (4 machines of 8), or 2xcpu: processes that "
        "share this machine's cores",
    )
    add_set(parser)
    parser.add_argument(
        "--tokens",
        type=count_up_to(MOST_TOKENS),
        metavar="N",
        help="tokens to train on, such as 20e9 (default: those of training.max_steps)",
    )
    parser.add_argument(
        "--vocab_size",
        type=count_up_to(MOST_VOCABULARY),
        metavar="V",
        help="tokens of the vocabulary, where the text is not here (default: of the text)",
    )
    parser.add_argument(
        "--price_per_hour",
        type=price,
        metavar="DOLLARS",
        help="2.5 for each GPU, 20/machine for each machine; without it no cost is printed",
    )
    parser.add_argument(
        "--mfu",
        type=share,
        default=0.4,
        metavar="SHARE",
        help="share of a GPU's peak that training is assumed to reach (default: 0.4)",
    )
    parser.add_argument(
        "--fake_ranks",
        type=count_up_to(MOST_FAKE_RANKS, 0),
        metavar="N",
        help="do one step as one of N ranks, with fake tensors, to see that shapes and sharding "
        f"fit (default: the number advised, if that is {FEWEST_FAKE_RANKS} or more; 0: none)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def machines(text: str) -> Machines:
    """Return the machines that the user names."""
    try:
        return machines_named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def price(text: str) -> Price:
    """Return the price that the user names."""
    try:
        return price_named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class count_up_to:  # noqa: N801 argparse calls it as it calls a function
    """Reads a whole number, which may have an exponent."""

    def __init__(self, most: int, least: int = 1) -> None:
        self.most = most
        self.least = least

    def __call__(self, text: str) -> int:
        try:
            count = float(text)
        except ValueError:
            count = -1.0
        if not self.least <= count <= self.most or count != int(count):
            raise argparse.ArgumentTypeError(
                f"found {text}, expected a whole number, {self.least} to {self.most:,}"
            )
        return int(count)


def share(text: str) -> float:
    """Return a share, above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0, at most 1")
    return value


def plan(args: argparse.Namespace) -> None:
    """Find the plan and print it. Raises: UserError."""
    from chatgot.config_file import load_config

    config, _ = load_config(args.config, args.set)
    # here, after the command line: torch takes longer than a usage error may
    from chatgot.planning.plan import Asked, lines, make_plan
    from chatgot.planning.vocabulary import vocabulary_size

    V, source = vocabulary_size(config, args.vocab_size)
    asked = Asked(config, args.machines, V, source, args.tokens, args.price_per_hour, args.mfu)
    found = make_plan(asked)
    if args.json:
        text = [json.dumps(as_json(found))]
    else:
        text = [f"plan: {args.config.stem} on {args.machines.name}", *lines(found)]
    number = fake_ranks_of(args, found)
    if number:
        text += [] if args.json else fake_lines(asked, found, number)
    encoding = sys.stdout.encoding or "utf-8"
    write_to_stdout([f"{line}\n".encode(encoding, "backslashreplace") for line in text])


def fake_ranks_of(args: argparse.Namespace, found: "Plan") -> int:
    """Return of how many ranks a step is faked; 0: of none."""
    if args.fake_ranks is not None:
        return int(args.fake_ranks)
    return found.chosen.ranks if found.chosen.ranks >= FEWEST_FAKE_RANKS else 0


def fake_lines(asked: "Asked", found: "Plan", ranks: int) -> list[str]:
    """Do one step of many ranks with fake tensors; return what it has shown."""
    from chatgot.planning.sharded_step import fake_step

    strategy = "ddp" if asked.config.distributed.strategy == "ddp" else "fsdp"
    step = fake_step(asked.config, asked.V, ranks, strategy, found.chosen.sequences)
    S = asked.config.training.sequences_per_step
    result = [
        "",
        f"fake step of {ranks} ranks, {strategy}: forward, backward and update went through in "
        f"{step.seconds:.1f} s; the first rank holds {step.own:,} of {step.whole:,} parameters",
    ]
    if S % ranks:
        result.append(
            f"  but the {S} sequences of a step cannot be shared equally by {ranks} ranks: set "
            f"training.batch_size x accumulate_grad_batches to a multiple of {ranks}"
        )
    return result


def as_json(found: "Plan") -> dict[str, object]:
    """Return all that was found, for programs."""
    return {
        "parameters": found.sizes.parameters,
        "flops_per_token": found.sizes.flops_per_token,
        "steps": found.steps,
        "tokens": found.tokens,
        "peak_flops": found.peak,
        "timed": found.timed,
        "chosen": found.chosen.ranks,
        "rows": [
            {
                "ranks": row.ranks,
                "strategy": row.strategy,
                "sequences": row.sequences,
                "recompute_every": row.every,
                "memory_bytes": row.memory,
                "parts": dict(row.parts),
                "sent_bytes": row.sent,
                "step_s": row.step_s,
                "hours": found.hours(row),
                "cost": found.cost(row),
                "problem": row.problem,
            }
            for row in found.rows
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_closed_streams()
    args = parse_arguments(argv)
    return exit_code_of(lambda: plan(args), command_name(__file__))


if __name__ == "__main__":
    sys.exit(main())
