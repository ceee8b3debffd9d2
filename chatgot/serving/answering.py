"""An answer while it is written: whole or in pieces; it ends when the client goes away."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from chatgot.serving.answers import ChoiceReader, Piece
from chatgot.serving.api_errors import ApiError, internal_error
from chatgot.serving.batching import Order
from chatgot.serving.counters import Counters
from chatgot.serving.json_answers import as_bytes
from chatgot.serving.limits import Limits
from chatgot.serving.models import LoadedModels, Served
from chatgot.serving.openai_api import Work
from chatgot.serving.watching import Watch

logger = logging.getLogger(__name__)
T = TypeVar("T")

GONE = 499  # what is counted for a client that went away; nobody reads it


class Server:
    """What the routes share."""

    def __init__(self, models: LoadedModels, watch: Watch, limits: Limits) -> None:
        self.models = models
        self.batcher = models.batcher
        self.watch = watch
        self.limits = limits
        self.counters = Counters()

    @asynccontextmanager
    async def ordered(self, served: Served, work: Work) -> AsyncIterator[Order]:
        """Let the engine write; whoever leaves the block frees the slots."""
        order = self.batcher.submit(served.engine, work.requests)
        self.counters.prompt_tokens += work.prompt_tokens
        try:
            yield order
        finally:
            self.batcher.cancel(order)
            if order.first_token_s is not None:
                self.counters.first_token(order.first_token_s)
            written = [progress.n_tokens for progress in order.progress if progress is not None]
            self.counters.generated_tokens += sum(written)

    async def news(self, order: Order, deadline: float) -> bool:
        """Wait until an order has news; return whether its time is over.

        Raises: ApiError where the engine failed.
        """
        is_late = False
        try:
            # not wait_for: before Python 3.12 it loses a cancellation that comes with the news
            async with asyncio.timeout(deadline - time.monotonic()):
                await order.changed.wait()
        except TimeoutError:
            is_late = True
        if order.failed:
            raise internal_error()
        return is_late

    @property
    def deadline(self) -> float:
        """Return until when an answer that begins now may take."""
        return time.monotonic() + self.limits.seconds

    async def pieces(
        self, order: Order, readers: list[ChoiceReader], deadline: float
    ) -> AsyncGenerator[tuple[int, Piece]]:
        """Yield what is new of each choice, until all have ended or the time is over."""
        is_late = False
        while True:
            order.changed.clear()
            is_finished = order.finished
            cut = "length" if is_late else None
            for index, reader in enumerate(readers):
                piece = reader.take(order.progress[index], cut=cut)
                if not piece.is_empty:
                    yield index, piece
            if is_finished or is_late:
                return
            is_late = await self.news(order, deadline)

    async def whole(
        self, order: Order, readers: list[ChoiceReader], deadline: float
    ) -> list[Piece]:
        """Return the choices when all have ended, or what there is of them when time is over."""
        is_late = False
        while not (order.finished or is_late):
            order.changed.clear()
            if not order.finished:
                is_late = await self.news(order, deadline)
        if order.failed:
            raise internal_error()
        if is_late and not any(p is not None and p.n_tokens for p in order.progress):
            raise ApiError(
                504,
                f"the model wrote nothing within {self.limits.seconds:.0f} s",
                code="timeout",
                headers={"x-should-retry": "false"},
            )
        cut = "length" if is_late else None
        return [reader.take(order.progress[i], cut=cut) for i, reader in enumerate(readers)]


class EventStream(Response):
    """An answer in pieces, as server-sent events; it ends when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[object], headers: dict[str, str]) -> None:
        super().__init__(headers=headers, media_type=self.media_type)
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for event in self._lines():
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lines(self) -> AsyncIterator[bytes]:
        async with aclosing(self.events) as events:
            try:
                async for event in events:
                    yield b"data: " + as_bytes(event) + b"\n\n"
            except ApiError as error:
                yield b"data: " + as_bytes(error.content()) + b"\n\n"
                return
            except Exception:  # the client must learn that this is not the end of the text
                logger.exception("a stream failed")
                yield b"data: " + as_bytes(internal_error().content()) + b"\n\n"
                return
        yield b"data: [DONE]\n\n"


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` returns; None: the client went away, and the work was cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    return await until_gone(request.receive, work) or Response(status_code=GONE)
