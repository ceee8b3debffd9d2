"""Print the address space, in KiB, of a process that has imported what a run imports (Linux)."""

from pathlib import Path

import torch.utils.tensorboard  # noqa: F401 what it takes is what is measured

import chatgot.run.assembly  # noqa: F401


def address_space_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))


if __name__ == "__main__":
    print(address_space_kib())
