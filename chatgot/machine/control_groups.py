"""The control groups that limit this process: where they are, and the CPU time that they leave."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
# version 1 has one tree for each controller; version 2 has one for all of them
VERSION_1 = 1
VERSION_2 = 2


def control_groups(
    controller: str, root: Path = ROOT, own: Path = OWN
) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of this process's group and of those above it, for one controller.

    In a container, the process's own group is mounted at the top of the tree.
    Source: cgroups(7).
    """
    try:
        lines = own.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            yield from ((VERSION_2, folder) for folder in _up_to(root, path))
        elif controller in controllers.split(","):
            yield from ((VERSION_1, folder) for folder in _up_to(root / controller, path))


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float | None:
    """Return how many CPUs' time the control groups leave to this process; None: no limit.

    Docker's `--cpus`, Kubernetes' limits and systemd's CPUQuota set it. All cores stay visible:
    the kernel stops every thread of a group that has used up its time.
    Source: the kernel's cgroup-v2.rst (cpu.max) and sched-bwc.rst (cpu.cfs_quota_us).
    """
    quotas = []
    for version, folder in control_groups("cpu", root, own):
        # without a limit, a file says "max" or -1; without that controller, there is no file
        with suppress(OSError, ValueError):
            if version == VERSION_2:
                allowed, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                allowed = int((folder / "cpu.cfs_quota_us").read_text())
                period = int((folder / "cpu.cfs_period_us").read_text())
            if allowed > 0 and period > 0:
                quotas.append(allowed / period)
    return min(quotas, default=None)


def _up_to(top: Path, path: str) -> Iterator[Path]:
    """Yield the folder at `path` below `top`, and those above it, up to `top`."""
    folder = top / path.lstrip("/")
    if not folder.is_dir():
        folder = top
    for group in (folder, *folder.parents):
        if not group.is_relative_to(top):
            return
        yield group
