"""How TensorBoard's event files are named: a new one sorts after the older ones of its run.

TensorBoard reads the files of a run in the order of their names. A name has the clock's second, the
machine, the process and a counter. The clock may be set back between two sessions of a run, and of
two files of one second, number 10 sorts before number 9. Then the older file would be read last,
and the curves of two branches would be mixed.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

SECOND = re.compile(r"events\.out\.tfevents\.(\d{10})\..*", re.ASCII | re.DOTALL)


def second_of_next_file(run_dir: Path) -> float:
    """Return the time for the name of a new event file: now, or a second after the newest name."""
    names = (path.name for path in run_dir.iterdir()) if run_dir.is_dir() else ()
    seconds = [int(match[1]) for match in map(SECOND.fullmatch, names) if match]
    return max([time.time(), *(second + 1 for second in seconds)])


@contextmanager
def sorted_last(run_dir: Path) -> Iterator[None]:
    """Let an event file that this thread begins in the block sort after those in `run_dir`.

    TensorBoard offers no name to choose: inside the block, its writer is told another time.
    """
    from tensorboard.summary.writer import event_file_writer  # not at the top: it is slow

    now = second_of_next_file(run_dir)
    thread = threading.get_ident()

    def clock() -> float:
        return now if threading.get_ident() == thread else time.time()

    module = vars(event_file_writer)
    before = module["time"]
    module["time"] = SimpleNamespace(time=clock)
    try:
        yield
    finally:
        module["time"] = before
