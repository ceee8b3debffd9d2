"""One thread steps the engines; requests come to it, and their progress goes back to the loop.

The thread never waits for a reader. It leaves the newest state of each text in its order, and sets
the order's event once; whoever reads takes what is new since the last time.
"""

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from chatgot.sampling.engine import Completion, Engine, Request

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """A completion as it was after a step; its lists may have grown since.

    n_tokens: how many of its tokens belong to this state.
    """

    completion: Completion
    text: str = ""
    n_tokens: int = 0
    n_prompt_tokens: int = 0
    finish_reason: str | None = None


class Order:
    """The completions of one request to the API, on their way.

    progress: one for each completion; None: the thread has not begun it.
    failed: the engine broke.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self.engine = engine
        self.requests = list(requests)
        self.progress: list[Progress | None] = [None] * len(self.requests)
        self.failed = False
        self.began = time.monotonic()
        self.first_token_s: float | None = None
        self.changed = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.completions: list[Completion] = []  # the thread's own
        self.is_waking = False

    @property
    def finished(self) -> bool:
        """Return whether all of its completions have ended."""
        return self.failed or all(p is not None and p.finish_reason for p in self.progress)

    def note(self, index: int) -> None:
        """Take over how far a completion is; the thread calls this."""
        completion = self.completions[index]
        if completion.tokens and self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.began
        self.progress[index] = Progress(
            completion,
            completion.text,
            len(completion.tokens),
            len(completion.prompt_tokens),
            completion.finish_reason,
        )


class Batcher:
    """Owns the thread that alone touches the engines; it sleeps while there is nothing to do."""

    def __init__(self) -> None:
        self.active = 0  # completions that grow
        self.waiting = 0  # completions that wait for a slot
        self._calls: list[Callable[[], None]] = []
        self._is_ending = False
        self._wake = threading.Condition()
        self._orders: dict[Engine, list[Order]] = {}  # the thread's own
        self._where: dict[int, tuple[Order, int]] = {}  # by the id of a completion; its own, too
        self._thread = threading.Thread(target=self._run, name="batching", daemon=True)
        self._thread.start()

    def submit(self, engine: Engine, requests: Sequence[Request]) -> Order:
        """Put completions in line; the running event loop learns how they go on."""
        order = Order(engine, requests)
        self._call(lambda: self._add(order))
        return order

    def cancel(self, order: Order) -> None:
        """End what has not ended of an order; its slots are free before the next step."""
        if not order.finished:
            self._call(lambda: self._remove(order))

    async def run(self, job: Callable[[], T]) -> T:
        """Return what a function returns, or raise what it raises; nothing steps meanwhile."""
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 it is raised where the job came from
                future.set_exception(error)

        self._call(call)
        return await asyncio.wrap_future(future)

    def close(self, patience_s: float = 5.0) -> None:
        """End the thread after the step in hand."""
        with self._wake:
            self._is_ending = True
            self._wake.notify()
        self._thread.join(patience_s)

    def _call(self, call: Callable[[], None]) -> None:
        with self._wake:
            self._calls.append(call)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._calls or self._orders or self._is_ending):
                    self._wake.wait()
                if self._is_ending:
                    return
                calls = self._calls
                self._calls = []
            for call in calls:
                call()
            changed: list[Order] = []
            for engine in list(self._orders):
                changed += self._step(engine)
            self._count()
            _wake_readers(changed)
            calls = []  # what they hold, models among it, must not outlive them here
            del changed

    def _add(self, order: Order) -> None:
        try:
            for request in order.requests:
                order.completions.append(order.engine.add(request))
        except Exception:  # the thread must live on, for all others
            logger.exception("a request could not be put in line; it ends with an error")
            for completion in order.completions:
                order.engine.cancel(completion)
            order.failed = True
            _wake_readers([order])
            return
        self._orders.setdefault(order.engine, []).append(order)
        for index, completion in enumerate(order.completions):
            self._where[id(completion)] = (order, index)

    def _remove(self, order: Order) -> None:
        for completion in order.completions:
            order.engine.cancel(completion)
        self._forget(order)
        self._count()

    def _forget(self, order: Order) -> None:
        for completion in order.completions:
            self._where.pop(id(completion), None)
        orders = self._orders.get(order.engine, [])
        if order in orders:
            orders.remove(order)
        if not orders:
            self._orders.pop(order.engine, None)

    def _step(self, engine: Engine) -> list[Order]:
        """Step an engine; return the orders that have news."""
        try:
            completions = engine.step()
        except Exception:  # the thread must live on, for all others
            logger.exception("a step of the model failed; what it was writing ends with an error")
            return self._fail(engine)
        changed: dict[Order, None] = {}
        for completion in completions:
            if id(completion) in self._where:
                order, index = self._where[id(completion)]
                order.note(index)
                changed[order] = None
        for order in changed:
            if order.finished:
                self._forget(order)
        return list(changed)

    def _fail(self, engine: Engine) -> list[Order]:
        failed = list(self._orders.get(engine, []))
        for order in failed:
            order.failed = True
            self._forget(order)
            for completion in order.completions:
                with suppress(Exception):
                    engine.cancel(completion)
        return failed

    def _count(self) -> None:
        self.active = sum(engine.active for engine in self._orders)
        self.waiting = sum(engine.waiting for engine in self._orders)


def _wake_readers(orders: Sequence[Order]) -> None:
    """Tell each order's loop that there is news, once until it has heard."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Order]] = defaultdict(list)
    for order in orders:
        if not order.is_waking:
            order.is_waking = True
            by_loop[order.loop].append(order)
    for loop, sleepers in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(_set_changed, sleepers)


def _set_changed(orders: Sequence[Order]) -> None:
    for order in orders:
        order.is_waking = False
        order.changed.set()
