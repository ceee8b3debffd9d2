"""Leave at the end of a program without taking it apart first.

Python and torch free each object and unload each module, one by one: about a second after the last
line of the log, for memory that the system takes back at once anyway.
"""

import atexit
import os
import sys


def leave_at_once_in_the_end(exit_code: int) -> int:
    """Let the process end as soon as its exit hooks have run; return the exit code.

    For `sys.exit(leave_at_once_in_the_end(main()))`. What goes on after that still runs as always:
    `finally` blocks around it, a profiler's for example; threads that are waited for; each exit
    hook; the flush of stdout and stderr. If that flush fails, or if a hook was registered after
    this call, Python ends the process as without it.
    """

    def leave() -> None:
        if atexit._ncallbacks() > hooks:  # noqa: SLF001 - the later ones would run twice
            return
        atexit.unregister(leave)
        atexit._run_exitfuncs()  # noqa: SLF001 - all others; it has no public name
        if _flushed():
            os._exit(exit_code)

    atexit.register(leave)
    hooks = atexit._ncallbacks()  # noqa: SLF001 - it has no public name
    return exit_code


def _flushed() -> bool:
    """Flush stdout and stderr; return whether both took it."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except (OSError, ValueError):
        return False
    return True
