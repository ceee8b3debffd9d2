"""Who may ask, and how much at once? It stands before all routes.

A page of another site can make a browser send requests here, and with a name that it lets point to
127.0.0.1 it could read the answers, too. So the Host header has to name this server, and an Origin
has to be its own.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from secrets import compare_digest
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgot.serving.answering import GONE
from chatgot.serving.api_errors import ApiError, internal_error, too_busy
from chatgot.serving.counters import Counters
from chatgot.serving.hosts import in_address, is_wildcard
from chatgot.serving.limits import Limits

logger = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MOST_DRAINED = 16_000_000  # bytes of a body that is refused
DRAIN_S = 5.0
BODY_S = 30.0  # that a client may take to send a body
PATIENCE = 2  # times the time of an answer: for loading, sending and reading, too
WAITED_FOR = ("POST",)  # what takes one of the places of `Limits.concurrent`


@dataclass(frozen=True)
class Access:
    """What a request has to have.

    host: that the server listens on; port: None: any (tests without a socket).
    api_key: empty: none is asked for.
    public: paths that need no key.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    api_key: str = ""
    public: frozenset[str] = frozenset({"/health"})

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Raise the ApiError of a request that may not pass."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(host):
            raise ApiError(
                403,
                f"the Host header says {host[:100]!r}, which is not this server's address",
                code="foreign_host",
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() != f"http://{host}":
            raise ApiError(
                403, "a page of another site may not ask this server", code="foreign_origin"
            )
        if self.api_key and path not in self.public:
            self._check_key(headers.get(b"authorization", b""))

    def _is_ours(self, host: str) -> bool:
        """Return whether a Host header names this server.

        A server on all addresses has an API key; it cannot know each name that leads to it.
        """
        try:
            parts = urlsplit(f"//{host}")
            port = parts.port or 80
        except ValueError:
            return False
        if not parts.hostname or parts.username is not None or parts.path:
            return False
        if is_wildcard(self.host):
            return True
        names = {*LOOPBACK_NAMES, in_address(self.host.lower())}
        if in_address(parts.hostname) not in names:
            return False
        return self.port is None or port == self.port

    def _check_key(self, authorization: bytes) -> None:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise ApiError(
                401,
                "this server wants an API key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not compare_digest(key.strip(), self.api_key.encode()):
            raise ApiError(
                401,
                "this API key is wrong",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


class Gate:
    """Lets requests through to the app, counts them, and answers those that may not pass."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, counters: Counters) -> None:
        self.app = app
        self.access = access
        self.limits = limits
        self.counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route speaks anything else
            return
        answer = _Answer(send, self.counters)
        body = _Body(receive, self.limits.body_bytes)
        takes_place = scope["method"] in WAITED_FOR
        is_running = False
        try:
            headers = dict(scope["headers"])
            self.access.check(scope["path"], headers)
            await body.check_length(headers.get(b"content-length", b""))
            if takes_place:
                self._check_places()
                # before it takes a place: a body that never ends must not keep others away
                async with asyncio.timeout(min(BODY_S, self.limits.seconds)):
                    await body.read()
                if body.is_gone:
                    self.counters.requests[GONE] += 1
                    return
                self._check_places()
                self.counters.running += 1
                is_running = True
            async with asyncio.timeout(PATIENCE * self.limits.seconds):
                await self.app(scope, body.receive, answer.send)
        except TimeoutError:
            # the client sends or reads too slowly; its place is for somebody else
            await answer.error(ApiError(408, "this took too long"), scope, receive)
        except ApiError as error:
            await answer.error(error, scope, receive)
        except Exception:  # a defect of ours ends one answer, not the server
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await answer.error(internal_error(), scope, receive)
        finally:
            if is_running:
                self.counters.running -= 1

    def _check_places(self) -> None:
        if self.counters.running >= self.limits.concurrent:
            raise too_busy(f"{self.limits.concurrent} requests are being answered; try again")


class _Body:
    """Counts the bytes of a body while they come.

    is_gone: the client went away before its body ended.
    """

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._bytes = 0
        self._read: list[Message] = []
        self.is_gone = False

    async def check_length(self, header: bytes) -> None:
        if header.isdigit() and (len(header) > 18 or int(header) > self._most):
            raise await self._too_large(has_more=True)

    async def read(self) -> None:
        """Take the whole body, which `receive` returns later."""
        messages = []
        has_more = True
        while has_more and not self.is_gone:
            messages.append(await self.receive())
            has_more = messages[-1].get("more_body", False)
            self.is_gone = messages[-1]["type"] == "http.disconnect"
        self._read = messages

    async def receive(self) -> Message:
        if self._read:
            return self._read.pop(0)
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            if self._bytes > self._most:
                raise await self._too_large(has_more=message.get("more_body", False))
        return message

    async def _too_large(self, *, has_more: bool) -> ApiError:
        """Take the rest, or the client would see a broken connection; return the error."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while has_more and self._bytes <= MOST_DRAINED:
                    message = await self._receive()
                    self._bytes += len(message.get("body", b""))
                    has_more = message.get("more_body", False)
        return ApiError(
            413,
            f"the body has more than {self._most} bytes",
            code="request_too_large",
            headers={"Connection": "close"},
        )


class _Answer:
    """Adds the headers that every answer has, and counts it."""

    def __init__(self, send: Send, counters: Counters) -> None:
        self._send = send
        self._counters = counters
        self._has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            self._counters.requests[message["status"]] += 1
            given = {name for name, _ in message["headers"]}
            more = [header for header in HEADERS if header[0] not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)

    async def error(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Answer with an error, unless the answer has begun; then the connection just breaks."""
        if not self._has_begun:
            await error.response()(scope, receive, self.send)
