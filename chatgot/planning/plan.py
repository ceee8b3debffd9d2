"""The plan of a run: which strategy, how much at once, how many ranks, and what that costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatgot.config import Config
from chatgot.errors import ConfigError
from chatgot.planning.counting import Sizes, Way
from chatgot.planning.machines import GB, KINDS, Machines, Price
from chatgot.planning.measuring import own_muon_precision, own_peak, own_speed, own_way
from chatgot.planning.ranks import MIB, Ranks, Row, Speed
from chatgot.run.room import most_memory

CPU = torch.device("cpu")
ASSUMED_MFU = 0.4
CPU_MFU = 0.4  # where steps are too long to be timed
MOST_TIMED_S = 60.0  # for one batch; a longer one is computed from CPU_MFU
LEAST_EFFICIENCY = 0.7  # of what is paid for, as much goes into computing
SECONDS_PER_HOUR = 3600
EVERYS = {False: (0,), True: (1,), "every_2": (2,), "auto": (0, 1)}


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for.

    vocabulary: words that say where V comes from.
    """

    config: Config
    machines: Machines
    V: int
    vocabulary: str
    tokens: int | None = None
    price: Price | None = None
    mfu: float = ASSUMED_MFU


@dataclass(frozen=True)
class Plan:
    """What was found.

    rows: one for each number of ranks. chosen: the advised one. other: with the other choice of
    gradient checkpointing, the bytes of activations. peak: FLOP/s of one rank.
    """

    asked: Asked
    sizes: Sizes
    way: Way
    speed: Speed
    peak: float
    peak_of: str
    timed: bool
    steps: int
    rows: Sequence[Row]
    chosen: Row
    activations_plain: int
    activations_recomputed: int

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        config = self.asked.config
        return config.training.tokens_per_step(config.model)

    def hours(self, row: Row) -> float:
        return self.steps * row.step_s / SECONDS_PER_HOUR

    def cost(self, row: Row) -> float | None:
        """Return the dollars of a whole run; None: no price is known."""
        price = self.asked.price
        if price is None:
            return None
        return self.hours(row) * price.of(self.asked.machines, row.ranks)


def make_plan(asked: Asked) -> Plan:
    """Find out what a run needs on each number of ranks.

    Raises: ConfigError, where nothing fits, or where nothing says how long the run is.
    """
    config = asked.config
    steps = steps_of(asked)
    everys = EVERYS[config.training.gradient_checkpointing]
    way = way_of(asked, everys[0])
    speed, peak, peak_of, timed = speed_of(asked, way)
    asked_strategy = config.distributed.strategy
    strategies = ("ddp", "fsdp") if asked_strategy == "auto" else (asked_strategy,)
    muon = own_muon_precision(config, asked.V) if asked.machines.is_cpu else "bf16"
    ranks = Ranks(
        config, asked.V, asked.machines, way, muon, speed, lambda n: room_of(asked, n), strategies
    )
    rows = [ranks.row(number, everys) for number in asked.machines.numbers_of_ranks()]
    fitting = [row for row in rows if not row.problem]
    if not fitting:
        raise ConfigError(_nothing_fits(asked, ranks, rows[-1]))
    chosen = best_of(fitting)
    both = [ranks.parts(chosen.ranks, chosen.strategy, chosen.sequences, every) for every in (0, 1)]
    return Plan(
        asked=asked,
        sizes=ranks.sizes,
        way=way,
        speed=speed,
        peak=peak,
        peak_of=peak_of,
        timed=timed,
        steps=steps,
        rows=rows,
        chosen=chosen,
        activations_plain=both[0]["activations"],
        activations_recomputed=both[1]["activations"],
    )


def steps_of(asked: Asked) -> int:
    """Return the optimizer steps of the run. Raises: ConfigError, if nothing says them."""
    settings = asked.config.training
    if asked.tokens is not None:
        return math.ceil(asked.tokens / settings.tokens_per_step(asked.config.model))
    if settings.max_steps is None:
        raise ConfigError(
            "training.max_steps is null, so the run's length is not known: give --tokens N, "
            "or --set training.max_steps=N"
        )
    return settings.max_steps


def way_of(asked: Asked, every: int) -> Way:
    """Return how the machines compute a pass."""
    if asked.machines.is_cpu:
        return own_way(asked.config, every)
    settings = asked.config.training
    precision = "bf16" if settings.mixed_precision else "fp32"
    return Way(precision, "sdpa", every, settings.accumulate_grad_batches > 1)


def speed_of(asked: Asked, way: Way) -> tuple[Speed, float, str, bool]:
    """Return the speed of a rank, its peak in FLOP/s, of which dtype, and whether it was timed."""
    if not asked.machines.is_cpu:
        kind = KINDS[asked.machines.kind]
        peak = kind.fp32_flops if way.precision == "fp32" else kind.bf16_flops
        return Speed(flops=asked.mfu * peak), peak, way.precision, False
    peak, dtype = own_peak()
    if not _can_be_timed(asked, way, peak):
        return Speed(flops=CPU_MFU * peak), peak, dtype, False
    return own_speed(asked.config, asked.V), peak, dtype, True


def _can_be_timed(asked: Asked, way: Way, peak: float) -> bool:
    """Return whether a batch fits into this machine, and takes no more than a minute."""
    config = asked.config
    one = Machines(1, 1, asked.machines.kind)
    ranks = Ranks(config, asked.V, one, way, "fp32", Speed(), lambda _: None, ("ddp",))
    B = config.training.batch_size
    tokens = B * config.model.max_seq_length
    seconds = tokens * ranks.sizes.flops_per_token / (CPU_MFU * peak)
    needed = sum(ranks.parts(1, "ddp", B, way.every).values())
    room = room_of(asked, 1)
    return seconds <= MOST_TIMED_S and (room is None or needed <= room)


def room_of(asked: Asked, ranks: int) -> float | None:
    """Return the bytes that a rank may fill; None: the system does not tell."""
    left = 1 - asked.config.training.dynamic_batch_size.memory_headroom
    if not asked.machines.is_cpu:
        return left * KINDS[asked.machines.kind].memory
    most = most_memory(CPU)
    if most is None:
        return None
    return left * most / min(ranks, asked.machines.per_node)


def best_of(rows: Sequence[Row]) -> Row:
    """Return the largest number of ranks of which most of the time still goes into computing.

    Where none is like that, the one that takes the least time.
    """
    fewest = rows[0]
    paid = fewest.ranks * fewest.step_s
    useful = [row for row in rows if paid >= LEAST_EFFICIENCY * row.ranks * row.step_s]
    return min(useful or rows, key=lambda row: row.step_s)


def _nothing_fits(asked: Asked, ranks: Ranks, row: Row) -> str:
    advice = "take more or larger machines, or a smaller model"
    asked_recomputation = asked.config.training.gradient_checkpointing
    if asked_recomputation is False and not ranks.row(row.ranks, (1,)).problem:
        advice = "--set training.gradient_checkpointing=true makes it fit"
    return (
        f"{asked.machines.name}: with {ranks.sizes.parameters:,} parameters a rank "
        f"{row.problem}: {advice}"
    )


def lines(plan: Plan) -> list[str]:
    """Return the plan as people read it."""
    return [
        *_model_lines(plan),
        *_memory_lines(plan),
        *_step_lines(plan),
        *_table(plan),
        *_advice(plan),
    ]


def _model_lines(plan: Plan) -> list[str]:
    sizes = plan.sizes
    S = plan.asked.config.training.sequences_per_step
    T = plan.asked.config.model.max_seq_length
    source = "--tokens" if plan.asked.tokens is not None else "training.max_steps"
    return [
        f"model: {sizes.parameters:,} parameters, {plan.asked.V:,} tokens in the vocabulary "
        f"({plan.asked.vocabulary})",
        f"work: {sizes.flops_per_token:,} FLOPs per token (forward and backward); "
        f"{plan.steps:,} steps of {S} sequences of {T:,} tokens: {plan.tokens:,} tokens ({source})",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    row = plan.chosen
    way = plan.way
    asked = plan.asked
    room = room_of(asked, row.ranks)
    headroom = asked.config.training.dynamic_batch_size.memory_headroom
    of = "of an unknown size" if room is None else f"of {_mib(room)} that may be used"
    how = (
        f"followed with fake tensors as {way.precision} with attention by {way.attention} on a CPU "
        "computes them"
    )
    result = [
        "",
        f"memory of one rank: {_mib(row.memory)} {of} ({headroom:.0%} stays free, memory_headroom)",
        *(f"  {name:<30} {_mib(count):>12}" for name, count in row.parts.items() if count),
        f"  assumed: weights, gradients and optimizer in fp32; {row.sequences} sequences at once, "
        f"{how}",
        f"  activations are {_mib(plan.activations_plain)} without gradient checkpointing, "
        f"{_mib(plan.activations_recomputed)} with it; {_recomputation(row)} is planned",
    ]
    if row.strategy == "fsdp" and not asked.machines.is_cpu:
        whole = plan.sizes.weights + plan.sizes.gradients + plan.sizes.optimizer
        if room is not None and whole > room:
            result.append(
                f"  beware: a run begins with whole weights and optimizer on each rank "
                f"({_mib(whole)}), and shards them then"
            )
    return result


def _recomputation(row: Row) -> str:
    return {0: "without", 1: "with"}.get(row.every, "every second block")


def _step_lines(plan: Plan) -> list[str]:
    row = plan.chosen
    asked = plan.asked
    peak = (
        f"{plan.peak / 1e12:,.2f} TFLOP/s"
        if plan.peak > 1e12
        else f"{plan.peak / 1e9:,.0f} GFLOP/s"
    )
    if plan.timed:
        flops = plan.sizes.flops_per_token * asked.config.model.max_seq_length
        mfu = flops / plan.speed.seconds_per_sequence / plan.peak
        speed = (
            f"measured here on a made-up text, update included: MFU {mfu:.0%} of {peak} "
            f"({plan.peak_of} products), {plan.speed.threads} threads, blocks not compiled"
        )
    else:
        mfu = asked.mfu if not asked.machines.is_cpu else CPU_MFU
        where = "measured here" if asked.machines.is_cpu else "data sheet"
        speed = (
            f"assumed: MFU {mfu:.0%} of {peak} ({plan.peak_of}, {where}), the update is not counted"
        )
    bandwidth = row.sent / row.sending_s / GB if row.sending_s else 0.0
    sending = "nothing is sent"
    if row.sent:
        what = (
            "gradients once"
            if row.strategy == "ddp"
            else f"weights twice in each of {row.micro_batches} micro-batches, gradients once"
        )
        if plan.sizes.muon:
            what += ", Muon's updates once" if row.strategy == "ddp" else ", Muon's rows twice"
        sending = (
            f"{_mib(row.sent)} sent by each rank ({what}), {row.sending_s:.3g} s at "
            f"{bandwidth:,.3g} GB/s ({_source_of_bandwidth(asked)}), while nothing is computed"
        )
    return [
        "",
        f"one step: {row.step_s:.3g} s, {plan.tokens_per_step / row.step_s:,.0f} tokens/s",
        f"  computing: {row.compute_s:.3g} s, {speed}",
        f"  communication: {sending}",
    ]


def _source_of_bandwidth(asked: Asked) -> str:
    return "assumed, not measured" if asked.machines.is_cpu else "data sheet"


def _table(plan: Plan) -> list[str]:
    priced = plan.asked.price is not None
    header = ["ranks", "strategy", "at once", "recompute", "memory", "sent", "step", "hours"]
    table = [[*header, *(["cost"] if priced else []), ""]]
    for row in plan.rows:
        if row.problem:
            dashes = ["-"] * (len(table[0]) - 2)
            table.append([str(row.ranks), *dashes, row.problem])
            continue
        cost = plan.cost(row)
        table.append(
            [
                str(row.ranks),
                row.strategy,
                str(row.sequences),
                {0: "no", 1: "yes"}.get(row.every, "every_2"),
                _mib(row.memory),
                _mib(row.sent),
                f"{row.step_s:.3g} s",
                f"{plan.hours(row):,.3g}",
                *([] if cost is None else [f"${cost:,.2f}"]),
                "<" if row is plan.chosen else "",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    last = len(widths) - 1
    return [
        "",
        *(
            "  ".join(
                cell if i == last else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ),
    ]


def _advice(plan: Plan) -> list[str]:
    row = plan.chosen
    asked = plan.asked
    cost = plan.cost(row)
    ranks = "1 rank" if row.ranks == 1 else f"{row.ranks} ranks, {row.strategy}"
    price = "" if cost is None else f", ${cost:,.2f} at the price given"
    share = f"{row.sequences} sequences at once"
    result = [
        "",
        f"advice: {ranks}, {share}: {plan.hours(row):,.3g} hours in all{price}, "
        "without evaluations and saves",
        f"  why: {_reason(plan)}",
    ]
    settings = [f"training.micro_batch_size={row.sequences}"]
    if row.ranks > 1:
        settings.append(f"distributed.strategy={row.strategy}")
    if asked.config.training.gradient_checkpointing == "auto":
        settings.append(f"training.gradient_checkpointing={'true' if row.every else 'false'}")
    result.append("  say: " + " ".join(f"--set {setting}" for setting in settings))
    return result


def _reason(plan: Plan) -> str:
    row = plan.chosen
    reasons = []
    if row.strategy == "ddp":
        reasons.append("the whole model fits on a rank, and ddp sends least")
    elif row.strategy == "fsdp":
        reasons.append("of what fits, fsdp takes the least time")
    larger = [other for other in plan.rows if other.ranks > row.ranks]
    if any(not other.problem for other in larger):
        reasons.append(
            f"with more ranks less than {LEAST_EFFICIENCY:.0%} of what is paid for would compute"
        )
    elif larger:
        reasons.append(f"with more ranks: {larger[0].problem}")
    else:
        reasons.append("there are no more ranks")
    return "; ".join(reasons)


def _mib(count: float) -> str:
    """Return a number of bytes in MiB, or in GiB where they are many."""
    mib = count / MIB
    return f"{mib:,.0f} MiB" if mib < 10_000 else f"{mib / 1024:,.1f} GiB"
