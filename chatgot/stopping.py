"""How SIGINT, SIGTERM, SIGHUP and SIGBREAK end the process or ask a training run to stop."""

import os
import signal
from collections.abc import Callable
from types import FrameType

# Windows has no SIGHUP; it alone has SIGBREAK (Ctrl+Break, or what a parent process can send)
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")

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

    def install(self) -> None:
        """Install the handlers; a SIGHUP that was ignored at the start (nohup) stays ignored."""
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is None:  # this system lacks it
                continue
            if name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue
            signal.signal(number, self._on_signal)

    def requested(self) -> bool:
        """Return whether a signal has come."""
        return self.exit_code is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        exit_code = 130 if number == signal.SIGINT else 143
        if self.requested():
            os._exit(exit_code)
        self.exit_code = exit_code
        self.signal_name = signal.Signals(number).name
        if not self.training:
            raise SystemExit(exit_code)


def never() -> bool:
    """Say that no signal has come: for what is too short to be stopped."""
    return False
