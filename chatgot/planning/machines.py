"""The machines that a plan is for: how fast, how large, and how fast they exchange numbers."""

import re
from dataclasses import dataclass

GB = 10**9
TERA = 10**12
SHAPE = re.compile(r"(?:(\d{1,6})x)?(\d{1,6})x([a-z0-9][a-z0-9_-]*)", re.IGNORECASE)
PRICE = re.compile(r"(\d+(?:\.\d+)?)(/machine)?")
MOST_RANKS = 2**17


@dataclass(frozen=True)
class Kind:
    """One kind of device.

    bf16_flops, fp32_flops: peak FLOP/s of dense matrix products.
    in_node, between_nodes: bytes/s that one device sends to the others.
    """

    name: str
    bf16_flops: float
    fp32_flops: float
    memory: float  # bytes
    in_node: float
    between_nodes: float


# Sources: NVIDIA's data sheets of each card (SXM versions of A100, H100, H200 and B200; products
# without sparsity; NVLink's and PCIe's figures halved, since they count both directions), and, for
# what is between nodes, those of DGX A100 (200 Gbit/s for each GPU) and of DGX H100, H200 and B200
# (400 Gbit/s); cards on PCIe: 100 Gbit/s for each, as is usual.
KINDS = {
    kind.name.lower(): kind
    for kind in (
        Kind("A100-40GB", 312 * TERA, 19.5 * TERA, 40 * GB, 300 * GB, 25 * GB),
        Kind("A100", 312 * TERA, 19.5 * TERA, 80 * GB, 300 * GB, 25 * GB),
        Kind("H100", 989 * TERA, 67 * TERA, 80 * GB, 450 * GB, 50 * GB),
        Kind("H200", 989 * TERA, 67 * TERA, 141 * GB, 450 * GB, 50 * GB),
        Kind("B200", 2250 * TERA, 75 * TERA, 180 * GB, 900 * GB, 50 * GB),
        Kind("L4", 121 * TERA, 30 * TERA, 24 * GB, 32 * GB, 12.5 * GB),
        Kind("L40S", 362 * TERA, 91.6 * TERA, 48 * GB, 32 * GB, 12.5 * GB),
        Kind("RTX4090", 165 * TERA, 82.6 * TERA, 24 * GB, 32 * GB, 12.5 * GB),
    )
}
CPU = "cpu"
# Of gloo: over loopback, where 0.9 to 1.3 were measured, and over Gigabit Ethernet
CPU_IN_NODE = 1 * GB
CPU_BETWEEN_NODES = 0.125 * GB


@dataclass(frozen=True)
class Machines:
    """What `--machines` names: so many nodes, each with so many devices of one kind."""

    nodes: int
    per_node: int
    kind: str  # a key of KINDS, or CPU

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node

    @property
    def is_cpu(self) -> bool:
        return self.kind == CPU

    @property
    def name(self) -> str:
        """The words that name them."""
        kind = CPU if self.is_cpu else KINDS[self.kind].name
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.per_node}x{kind}"

    def nodes_for(self, ranks: int) -> int:
        """Return how many nodes so many ranks take."""
        return -(-ranks // self.per_node)

    def numbers_of_ranks(self) -> list[int]:
        """Return 1, 2, 4 ... up to all."""
        numbers = [1]
        while 2 * numbers[-1] < self.ranks:
            numbers.append(2 * numbers[-1])
        return [*numbers, self.ranks] if self.ranks > 1 else numbers


def machines_named(text: str) -> Machines:
    """Return the machines that a text names: 8xH100, 4x8xH100, 2xcpu.

    Raises: ValueError in words for a user.
    """
    match = SHAPE.fullmatch(text)
    known = [*(kind.name for kind in KINDS.values()), CPU]
    if match is None or match[3].lower() not in {name.lower() for name in known}:
        raise ValueError(
            f"found {text}, expected 8xKIND, or 4x8xKIND for 4 machines of 8; "
            f"KIND is one of {', '.join(known)}"
        )
    machines = Machines(int(match[1] or 1), int(match[2]), match[3].lower())
    if not 1 <= machines.ranks <= MOST_RANKS:
        raise ValueError(f"found {machines.ranks:,} ranks, expected 1 to {MOST_RANKS:,}")
    return machines


@dataclass(frozen=True)
class Price:
    """Dollars per hour, of one GPU or of one machine."""

    dollars: float
    per_machine: bool

    def of(self, machines: Machines, ranks: int) -> float:
        """Return the dollars per hour of so many ranks; machines are paid as a whole."""
        count = machines.nodes_for(ranks) if self.per_machine else ranks
        return self.dollars * count


def price_named(text: str) -> Price:
    """Return the price that a text names: 2.5 for one GPU, 20/machine for one machine.

    Raises: ValueError in words for a user.
    """
    match = PRICE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"found {text}, expected dollars: 2.5 for each GPU, 20/machine for each machine"
        )
    return Price(float(match[1]), match[2] is not None)
