"""Leave the cores to other programs where they want them: the priority of this process."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

AUTOGROUP = Path("/proc/self/autogroup")
AUTOGROUPS_ARE_ON = Path("/proc/sys/kernel/sched_autogroup_enabled")
LOWEST = 10  # nice values from here on are Windows' lowest priority


def lower_priority(niceness: int) -> str:
    """Raise this process's nice value; return what that does not reach, empty: nothing.

    To be called before torch starts its threads: on Linux, each thread has a nice value, which it
    takes over from the thread that starts it.
    Many Linux desktops share the cores between sessions first (a terminal is one): there a nice
    value counts within its session, and a session's leader alone may set the one of its session,
    since others live in it, too.

    niceness: 1 to 19. Raises: OSError.
    Source: sched(7), "The autogroup feature".
    """
    if sys.platform == "win32":
        lowest = niceness >= LOWEST
        process = psutil.Process()
        process.nice(psutil.IDLE_PRIORITY_CLASS if lowest else psutil.BELOW_NORMAL_PRIORITY_CLASS)
        return ""
    os.nice(niceness)
    if not _autogroups_are_on():
        return ""
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            AUTOGROUP.write_text(f"{niceness}\n", encoding="ascii")
            return ""
    return (
        "this system shares the cores between sessions first, so a nice value counts only beside "
        "programs of this terminal: for the others, put `setsid -w` before the command"
    )


def _autogroups_are_on() -> bool:
    try:
        return AUTOGROUPS_ARE_ON.read_text(encoding="ascii").strip() == "1" and AUTOGROUP.exists()
    except OSError:
        return False
