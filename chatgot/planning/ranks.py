"""One number of ranks: what a rank holds, what it sends, how long a step takes.

Letters: N ranks, S sequences of one optimizer step, B sequences at once, T `max_seq_length`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from chatgot.config import Config
from chatgot.numerics.gradient_checkpointing import LOGIT_BYTES
from chatgot.planning.counting import (
    WEIGHT_BYTES,
    OnCpu,
    Passes,
    Sizes,
    Way,
    count_on_cpu,
    passes_of,
    sizes_of,
)
from chatgot.planning.machines import CPU_BETWEEN_NODES, CPU_IN_NODE, KINDS, Machines
from chatgot.run.passes import fair_size, smaller_size

MIB = 1 << 20
GIB = 1 << 30
# Resident memory of the training script without tensors: 244 MiB after its imports, the rest is
# oneDNN's code, TensorBoard and the report at the end. Measured with torch 2.13.0 on Linux.
PYTHON_AND_TORCH = 330 * MIB
# On a card: CUDA's context, NCCL's buffers, the workspaces of cuBLAS. Assumed, not measured.
CONTEXT = 1536 * MIB
BUCKET = 32 * MIB  # of gradients that are summed at once, as chatgot.distributed.group does
UPDATE_BYTES = {"fp32": 4, "bf16": 2}  # of Muon's updates, by the precision of its products
GRADIENTS_OF_A_PROOF = 3  # that it compares, or scales back
FORWARD_SHARE = 1 / 3  # of the operations of a step, done again where activations are recomputed

Parts = Mapping[str, int]  # bytes, by name


@dataclass(frozen=True)
class Speed:
    """How fast one rank computes.

    flops: FLOP/s in a step, or 0 where seconds of a sequence were measured.
    """

    flops: float = 0.0
    seconds_per_sequence: float = 0.0
    threads: int = 1
    cores: int = 1


@dataclass(frozen=True)
class Row:
    """What a number of ranks comes to.

    problem: why it cannot be; empty: it can.
    sent: bytes that one rank sends in a step.
    """

    ranks: int
    strategy: str
    sequences: int
    micro_batches: int
    every: int
    parts: Parts
    compute_s: float
    sent: float
    sending_s: float
    problem: str = ""

    @property
    def memory(self) -> int:
        return sum(self.parts.values())

    @property
    def step_s(self) -> float:
        return self.compute_s + self.sending_s


@dataclass
class Ranks:
    """Finds out what each number of ranks comes to, for one configuration.

    room: bytes that a rank may fill; None: unknown.
    strategies: those that may be taken, the preferred one first.
    """

    config: Config
    V: int
    machines: Machines
    way: Way
    muon_precision: str
    speed: Speed
    room: Callable[[int], float | None]
    strategies: tuple[str, ...]

    def __post_init__(self) -> None:
        self.sizes: Sizes = sizes_of(self.config, self.V)
        self._passes: dict[Way, Passes] = {}
        self._on_cpu: dict[tuple[Way, int], OnCpu] = {}

    def row(self, ranks: int, everys: tuple[int, ...]) -> Row:
        """Return the fastest way to train on so many ranks that fits, or why there is none.

        everys: the ways of gradient checkpointing to try.
        """
        S = self.config.training.sequences_per_step
        if ranks > S:
            problem = f"a step has {S} sequences, so at most {S} ranks have one"
            return replace(self._row(ranks, "ddp", 1, everys[0]), problem=problem)
        strategies = self.strategies if ranks > 1 else ("ddp",)
        fitting = []
        smallest = None
        for strategy in strategies:
            for every in everys:
                row = self._largest_that_fits(ranks, strategy, every)
                if not row.problem:
                    fitting.append(row)
                elif smallest is None or row.memory < smallest.memory:
                    smallest = row
        if fitting:
            return min(fitting, key=lambda row: row.step_s)
        assert smallest is not None
        return smallest

    def _largest_that_fits(self, ranks: int, strategy: str, every: int) -> Row:
        S = self.config.training.sequences_per_step
        share = -(-S // ranks)
        if strategy == "fsdp" and S % ranks:
            problem = f"fsdp needs equal shares: {S} sequences cannot be shared by {ranks} ranks"
            return replace(self._row(ranks, strategy, share, every), problem=problem)
        B = fair_size(min(share, self._asked_at_once(share)), S, ranks)
        room = self.room(ranks)
        start = self._start_of_fsdp(every) if strategy == "fsdp" else 0
        if room is not None and start > room:
            problem = f"needs {_gib(start)} of {_gib(room)} GiB at its start, with whole weights"
            return replace(self._row(ranks, strategy, 1, every), problem=problem)
        while True:
            row = self._row(ranks, strategy, B, every)
            if room is None or row.memory <= room:
                return row
            if B == 1:
                problem = f"needs {_gib(row.memory)} of {_gib(room)} GiB"
                return replace(row, problem=problem)
            B = smaller_size(B, S, ranks)

    def _start_of_fsdp(self, every: int) -> int:
        """Return the bytes of a rank while it makes its proofs, before weights are shared out.

        A card keeps one gradient of them, the host the others; a CPU keeps all.
        """
        sizes = self.sizes
        proves = bool(every) or self.config.training.mixed_precision
        if self.machines.is_cpu:
            gradients = GRADIENTS_OF_A_PROOF * sizes.gradients if proves else 0
            return PYTHON_AND_TORCH + sizes.weights + gradients
        whole = CONTEXT + sizes.weights
        if proves:
            whole += sizes.gradients + self.passes(replace(self.way, every=0)).at(1)
        return whole

    def _asked_at_once(self, share: int) -> int:
        settings = self.config.training
        if settings.micro_batch_size != "auto":
            return settings.micro_batch_size
        return settings.batch_size if self.machines.is_cpu else share

    def _row(self, ranks: int, strategy: str, B: int, every: int) -> Row:
        share = -(-self.config.training.sequences_per_step // ranks)
        micro_batches = -(-share // B)
        sent = self._sent(ranks, strategy, micro_batches)
        return Row(
            ranks=ranks,
            strategy=strategy if ranks > 1 else "one rank",
            sequences=B,
            micro_batches=micro_batches,
            every=every,
            parts=self.parts(ranks, strategy, B, every),
            compute_s=self._compute_s(ranks, share, every),
            sent=sent,
            sending_s=sent / self._bandwidth(ranks),
        )

    def parts(self, ranks: int, strategy: str, B: int, every: int) -> Parts:
        """Return what one rank holds at its peak, in bytes."""
        sizes = self.sizes
        share = -(-self.config.training.sequences_per_step // ranks)
        accumulates = share > B
        scatters = strategy == "fsdp" and ranks > 1 and not accumulates
        way = replace(self.way, every=every, accumulates=accumulates, scatters=scatters)
        shards = ranks if strategy == "fsdp" else 1
        parts = {
            "weights": sizes.weights // shards,
            "first weights, to rewind to": sizes.gradients // shards,
            "gradients": sizes.gradients // shards,
            "optimizer": sizes.optimizer // shards,
        }
        logits = B * self.logits_per_sequence
        if self.machines.is_cpu:
            counted = self._counted_on_cpu(way, B)
            parts["logits"] = min(logits, counted.step)
            parts["activations"] = counted.step - parts["logits"]
            parts["proofs before the first step"] = counted.start
            parts["holes of the heap"] = counted.holes
        else:
            passes = self.passes(way)
            whole = passes.at(B)
            parts["logits"] = min(logits, whole - passes.casts)
            parts["weights cast by autocast"] = passes.casts
            parts["activations"] = whole - passes.casts - parts["logits"]
        if ranks > 1 and strategy == "ddp":
            parts["buffers of communication"] = BUCKET
        elif ranks > 1:
            # this block's weights, the next one's, those outside, and their gradients
            parts["buffers of communication"] = 3 * sizes.block + 2 * sizes.root
            if share > B:  # summed after the last micro-batch, whole until then
                parts["gradients, not yet sharded"] = sizes.gradients
        parts["Python and torch" if self.machines.is_cpu else "CUDA, NCCL, cuBLAS"] = (
            PYTHON_AND_TORCH if self.machines.is_cpu else CONTEXT
        )
        return parts

    @property
    def logits_per_sequence(self) -> int:
        """Bytes of logits, their fp32 copy, their log-softmax and their gradient."""
        return self.config.model.max_seq_length * self.V * LOGIT_BYTES

    def passes(self, way: Way) -> Passes:
        """Return what the passes take on a card; counted once."""
        if way not in self._passes:
            self._passes[way] = passes_of(self.config, self.V, way)
        return self._passes[way]

    def _counted_on_cpu(self, way: Way, B: int) -> OnCpu:
        key = (way, B)
        if key not in self._on_cpu:
            self._on_cpu[key] = count_on_cpu(self.config, self.V, way, self.muon_precision, B)
        return self._on_cpu[key]

    def _compute_s(self, ranks: int, share: int, every: int) -> float:
        again = 1 + FORWARD_SHARE / every if every else 1.0
        if not self.speed.flops:
            # measured with the gradient checkpointing of the configuration
            if every == self.way.every:
                again = 1.0
            in_node = min(ranks, self.machines.per_node)
            crowded = max(1.0, in_node * self.speed.threads / self.speed.cores)
            return share * self.speed.seconds_per_sequence * again * crowded
        tokens = share * self.config.model.max_seq_length
        return tokens * self.sizes.flops_per_token * again / self.speed.flops

    def _sent(self, ranks: int, strategy: str, micro_batches: int) -> float:
        """Return the bytes that one rank sends in a step.

        ddp: one all-reduce of the gradients, and each rank's share of Muon's updates to all.
        fsdp: weights are gathered in forward and again in backward of each micro-batch, gradients
        are scattered once; rows of Muon's matrices go to their owners and back.
        Source: ring algorithms, Patarasu & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002.
        """
        others = (ranks - 1) / ranks
        muon = self.sizes.muon
        if strategy == "ddp":
            updates = UPDATE_BYTES[self.muon_precision] * muon
            return others * (2 * self.sizes.gradients + updates)
        rows = 2 * WEIGHT_BYTES * muon / ranks
        return others * (2 * micro_batches * self.sizes.weights + self.sizes.gradients + rows)

    def _bandwidth(self, ranks: int) -> float:
        crosses = self.machines.nodes_for(ranks) > 1
        if self.machines.is_cpu:
            return CPU_BETWEEN_NODES if crosses else CPU_IN_NODE
        kind = KINDS[self.machines.kind]
        return kind.between_nodes if crosses else kind.in_node


def _gib(count: float) -> str:
    return f"{count / GIB:,.1f}"
