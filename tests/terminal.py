"""A program whose stderr is a terminal, as when somebody looks on."""

import contextlib
import os
import pty
import subprocess
import termios
from pathlib import Path


def run_on_terminal(
    command: list[str], folder: Path, environment: dict[str, str]
) -> tuple[bytes, bytes]:
    """Run a command that succeeds; return what the terminal received, and what stdout did."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))  # rows, columns
    child = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=slave, env=environment
    )
    os.close(slave)
    received = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(master, 4096):
            received += piece
    os.close(master)
    stdout, _ = child.communicate(timeout=120)
    assert child.returncode == 0, received
    return received, stdout
