"""Print the address space, in KiB, of a process with all imports of a run (Linux)."""

from pathlib import Path

import torch.utils.tensorboard  # noqa: F401 imported only to measure its size

import chatgot.run.assembly  # noqa: F401


def address_space_kib() -> int:
    """Return the size of this process's address space in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))


if __name__ == "__main__":
    print(address_space_kib())
