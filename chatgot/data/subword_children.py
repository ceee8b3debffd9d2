"""A large text becomes subwords on all cores: child processes encode batches of its pieces.

Threads would wait for each other, as Python runs one at a time. A child is a fresh Python that
imports nothing but what it encodes with (0.2 s): it is started in the same way on all systems, and
the program around is not imported a second time. Its priority (`nice`) is that of this process.

A batch that a child does not answer is encoded here. So a child that was killed costs time alone,
and an error of a batch is raised here.
"""

import logging
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

import chatgot
from chatgot.data.subwords import Piece, Subwords
from chatgot.logs.waiting import address_space_is_limited
from chatgot.machine.control_groups import cpu_quota
from chatgot.machine.usable_cores import usable_cores

logger = logging.getLogger(__name__)

LARGE = 1 << 25  # bytes of a text: a smaller one is encoded before children would pay
MOST_CHILDREN = 8  # each takes about 100 MB
BATCHES_AHEAD = 2  # for each child, so that none waits for this process

Ids = NDArray[np.unsignedinteger]
Encode = Callable[[Iterable[list[Piece]]], Iterator[Ids]]  # takes batches, yields the ids of each


@contextmanager
def encoding_of_batches(
    vocabulary: Subwords, dtype: np.dtype[Any], text_bytes: int
) -> Iterator[Encode]:
    """Yield what encodes batches of a text's pieces, in order.

    Side effect: for a large text, child processes, which end with the block or this process.

    dtype: of the ids. text_bytes: how long the text is.
    """

    def encode_here(pieces: list[Piece]) -> Ids:
        return np.array(vocabulary.encode_pieces(pieces), dtype)

    count = _number_of_children(text_bytes)
    if count == 0:
        yield lambda batches: map(encode_here, batches)
        return
    about = (vocabulary.json, vocabulary.end_of_text, dtype.str)
    with ExitStack() as stack:
        pool = stack.enter_context(_pool(count))
        children: list[_Child] = []
        stack.callback(_kill, children)  # before the threads are waited for
        try:
            for _ in range(count):
                children.append(_Child(about))
        except OSError as error:
            logger.warning("a process to help with the encoding cannot be started: %s", error)
        if children:
            yield _Team(children, pool, dtype, encode_here).encode
        else:
            yield lambda batches: map(encode_here, batches)


def _number_of_children(text_bytes: int) -> int:
    """Return how many processes help: none with one core, or where threads are too large."""
    if text_bytes < LARGE or address_space_is_limited():
        return 0
    if not sys.executable or getattr(sys, "frozen", False):  # Python is within another program
        return 0
    quota = cpu_quota()
    cores = usable_cores() if quota is None else min(usable_cores(), int(quota))
    return min(cores, MOST_CHILDREN) if cores > 1 else 0


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, "encoding")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _kill(children: list["_Child"]) -> None:
    for child in children:
        child.kill()


class _Child:
    """A process that encodes, one batch at a time. Raises: OSError where it cannot be started.

    about: what it has to know of the vocabulary.
    """

    def __init__(self, about: tuple[str, str, str]) -> None:
        folder = str(Path(chatgot.__file__).parent.parent)
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._to_say: list[object] = [about]
        self._process = subprocess.Popen(
            # -P: no module is taken from the folder the user is in
            [sys.executable, "-P", "-m", "chatgot.data.subword_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # of Windows
        )

    def encode(self, pieces: list[Piece]) -> bytes | None:
        """Return the bytes of the ids of a batch; None: the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to_say.append(pieces)
        try:
            while self._to_say:
                pickle.dump(self._to_say.pop(0), self._process.stdin)
            self._process.stdin.flush()
            ids = pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None
        return ids if isinstance(ids, bytes) else None

    def kill(self) -> None:
        """End the process: what it has answered is here."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class _Team:
    """Children that take the next batch whenever they are free.

    encode_here: encodes a batch that a child did not answer.
    """

    def __init__(
        self,
        children: list[_Child],
        pool: ThreadPoolExecutor,
        dtype: np.dtype[Any],
        encode_here: Callable[[list[Piece]], Ids],
    ) -> None:
        self._pool = pool
        self._dtype = dtype
        self._encode_here = encode_here
        self._batches_ahead = BATCHES_AHEAD * len(children)
        self._has_warned = False
        self._free: SimpleQueue[_Child] = SimpleQueue()
        for child in children:
            self._free.put(child)

    def encode(self, batches: Iterable[list[Piece]]) -> Iterator[Ids]:
        """Yield the ids of each batch, in order; only a few batches are in memory."""
        ahead: deque[tuple[list[Piece], Future[bytes | None]]] = deque()
        for pieces in batches:
            ahead.append((pieces, self._pool.submit(self._ask, pieces)))
            if len(ahead) > self._batches_ahead:
                yield self._ids(*ahead.popleft())
        while ahead:
            yield self._ids(*ahead.popleft())

    def _ask(self, pieces: list[Piece]) -> bytes | None:
        child = self._free.get()
        try:
            return child.encode(pieces)
        finally:
            self._free.put(child)

    def _ids(self, pieces: list[Piece], answer: "Future[bytes | None]") -> Ids:
        ids = answer.result()
        if ids is not None:
            return np.frombuffer(ids, self._dtype)
        if not self._has_warned:
            logger.warning("a process that helped with the encoding has ended: going on without it")
            self._has_warned = True
        return self._encode_here(pieces)
