"""Leave the cores to other programs where they want them: the priority of this process."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

AUTOGROUP = Path("/proc/self/autogroup")
AUTOGROUPS_ARE_ON = Path("/proc/sys/kernel/sched_autogroup_enabled")
OWN_GROUPS = Path("/proc/self/cgroup")
TASKS = Path("/proc/self/task")
LOWEST = 10  # nice values from here on are Windows' lowest priority


def lower_priority(niceness: int) -> str:
    """Raise this process's nice value; return what that does not reach, empty: nothing.

    On Linux each thread has a nice value of its own; all those that run now get it, and new ones
    take it over from the thread that starts them.
    Many Linux desktops share the cores between sessions first (a terminal is one): there a nice
    value counts within its session. We set the session's nice value only as its leader, because
    other programs share the session.

    niceness: 1 to 19. Raises: OSError.
    Source: sched(7), "The autogroup feature".
    """
    if sys.platform == "win32":
        lowest = niceness >= LOWEST
        process = psutil.Process()
        process.nice(psutil.IDLE_PRIORITY_CLASS if lowest else psutil.BELOW_NORMAL_PRIORITY_CLASS)
        return ""
    now = os.nice(niceness)
    with suppress(OSError):  # another system, or a thread that has just ended
        for task in TASKS.iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), now)
    if not _autogroups_count():
        return ""
    if os.getsid(0) == os.getpid():
        try:
            AUTOGROUP.write_text(f"{niceness}\n", encoding="ascii")
        except OSError as error:
            return f"{AUTOGROUP} cannot be written ({error.strerror}): it does not count here"
        return ""
    return (
        "this system shares the cores between terminals first: "
        "it counts only against programs of the same terminal"
    )


def _autogroups_count() -> bool:
    """Return whether the kernel shares the cores between sessions: not within a control group."""
    try:
        on = AUTOGROUPS_ARE_ON.read_text(encoding="ascii").strip() == "1" and AUTOGROUP.exists()
        groups = OWN_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        has_cpu = number == "0" or "cpu" in controllers.split(",")
        if has_cpu and path != "/":
            return False
    return on
