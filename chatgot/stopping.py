"""How signals end the process or ask a training run to stop.

SIGINT, SIGTERM, SIGHUP and SIGBREAK always do. So do the signals by which schedulers, limits and
timers say that the time is over, unless somebody handles or ignores them already (`trap '' USR1`).
SIGQUIT (Ctrl and backslash) does not: it still ends a process that no longer reacts to the others.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

# Windows has no SIGHUP; it alone has SIGBREAK (Ctrl+Break, or what a parent process can send)
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
# SIGUSR1 and SIGUSR2: Slurm's --signal, Grid Engine's -notify. SIGXCPU: `ulimit -t`. SIGALRM,
# SIGVTALRM and SIGPROF: timers, which live on in the program that a wrapper starts
# (`perl -e 'alarm 3600; exec @ARGV'`). SIGPWR: a battery that runs out, a container that ends.
NOTICES = ("SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGPWR")
# These come again and again from one source: the kernel sends SIGXCPU each second above the limit
REPEATED = ("SIGXCPU", "SIGVTALRM", "SIGPROF")
TOLD_TWICE_S = 5.0  # within this time, a second signal to a rank of a group is the same one
# CPU time to end the step, save and draw the report
LEAST_RESERVE_S = 5
LONGEST_RESERVE_S = 120

Stopped = Callable[[], bool]  # whether a signal has asked the run to stop


class StopRequest:
    """Knows whether a signal asked the run to stop, and the exit code to end with.

    Until `training` is set there is nothing to save, and a signal raises SystemExit. After that,
    the first signal is only noted; the training loop calls `requested` between steps. A second
    signal ends the process at once.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.signal_name = ""
        self.training = False
        self.came_here = False  # in a group, the signal may have come to another rank
        # of a group of ranks: a signal counts when all know of it
        self.waits_for_agreement = False
        self._is_agreed = False
        self._came_s = 0.0  # when the first signal came, by the monotonic clock

    def install(self) -> None:
        """Install the handlers; a SIGHUP that was ignored at the start (nohup) stays ignored.

        Python lets the main thread alone install handlers. In another one (a notebook's or a web
        page's worker) nothing is installed, and signals do what the program around it says.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for name in (*NAMES, *NOTICES):
            number = getattr(signal, name, None)
            if number is None:  # this system lacks it
                continue
            before = signal.getsignal(number)
            if name == "SIGHUP" and before == signal.SIG_IGN:
                continue
            if name in NOTICES and before != signal.SIG_DFL:
                continue
            signal.signal(number, self._on_signal)

    def requested(self) -> bool:
        """Return whether a signal has come; in a group, whether all ranks know of one."""
        if self.waits_for_agreement:
            return self._is_agreed
        return self.exit_code is not None

    def agreed(self, exit_code: int, rank: int) -> None:
        """Take the signal that a rank of the group has got: all end with its exit code.

        A signal that comes later is ignored: a launcher sends it to each rank that is still there.
        """
        self._is_agreed = True
        if self.exit_code == exit_code:  # this rank has got it, too
            return
        self.exit_code = exit_code
        self.signal_name = f"{signal.Signals(exit_code - 128).name} to rank {rank}"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        exit_code = _exit_code(number)
        if self._is_agreed:  # the group is saving already
            return
        if self.exit_code is not None:
            if name == self.signal_name and name in REPEATED:
                return
            # a scheduler tells each rank, and torchrun tells it again
            if self.waits_for_agreement and time.monotonic() - self._came_s < TOLD_TWICE_S:
                return
            os._exit(exit_code)
        self._came_s = time.monotonic()
        self.came_here = True
        self.exit_code = exit_code
        self.signal_name = name
        if not self.training:
            raise SystemExit(exit_code)


def _exit_code(number: int) -> int:
    """Return 128 + the signal's number, but SIGTERM's for SIGHUP and SIGBREAK."""
    as_sigterm = (getattr(signal, "SIGHUP", None), getattr(signal, "SIGBREAK", None))
    return 143 if number in as_sigterm else 128 + number


def reserve_time_to_save() -> None:
    """Have SIGXCPU sent before the kernel kills the process for its CPU time.

    `ulimit -t` sets the soft and the hard limit to one value; the kernel then kills without a
    signal that could be handled. A tenth of the limit is kept to save, but never more than two
    thirds of what is left.
    Source: setrlimit(2), RLIMIT_CPU.
    """
    if sys.platform == "win32" or signal.getsignal(signal.SIGXCPU) == signal.SIG_IGN:
        return
    import resource  # exists on Unix alone

    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if resource.RLIM_INFINITY in (soft, hard) or soft < hard:
        return
    left = hard - time.process_time()
    reserve = min(max(LEAST_RESERVE_S, hard / 10), LONGEST_RESERVE_S, left * 2 / 3)
    resource.setrlimit(resource.RLIMIT_CPU, (max(1, math.floor(hard - reserve)), hard))


def never() -> bool:
    """Say that no signal has come: for what is too short to be stopped."""
    return False
