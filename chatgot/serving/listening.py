"""The life of the server: load a model, answer until a signal comes, finish, end."""

import asyncio
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import h11
import torch
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from chatgot.checkpointing.names import NAME
from chatgot.machine.device import pick_device
from chatgot.machine.priority import lower_priority
from chatgot.sampling.picking import RUNS, find_checkpoint_file
from chatgot.serving.access import Access
from chatgot.serving.app import make_app
from chatgot.serving.batching import Batcher
from chatgot.serving.hosts import address_of
from chatgot.serving.limits import Limits
from chatgot.serving.models import Catalogue, LoadedModels
from chatgot.serving.watching import Watch

PATIENCE_S = 4  # for what is being answered when a signal comes; the rest is for the end itself
SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")  # Windows alone has the last one
HEADERS_S = 30.0  # that a client may take until its headers have come
NICENESS = 10
Say = Callable[[str], object]


@dataclass(frozen=True)
class Settings:
    """What the command line says.

    name: a configuration's name, a run's id or folder, or a file; None: the newest run.
    beside_training: the latest checkpoint of the run answers, with low priority.
    """

    host: str
    api_key: str
    checkpoint_dir: Path
    name: str | None
    beside_training: bool
    device: str
    max_concurrent: int
    opens_browser: bool


def serve_until_told(settings: Settings, taken: socket.socket, say: Say) -> None:
    """Serve on a bound socket until SIGINT or SIGTERM.

    say: shows a line to the user.
    Raises: CheckpointRejected where there is no model, ConfigError for a device that is not there.
    """
    catalogue = catalogue_of(settings)
    device = pick_device(device_name(settings))
    if settings.beside_training:
        say(make_room_for_training())
    asyncio.run(_serve(settings, taken, catalogue, device, say))


def catalogue_of(settings: Settings) -> Catalogue:
    """Return the models to serve, with the one that is named as the default.

    Raises: CheckpointRejected.
    """
    which: Literal["best", "latest"] = "latest" if settings.beside_training else "best"
    path = find_checkpoint_file(settings.name, which, settings.checkpoint_dir)
    match = NAME.fullmatch(path.name)
    is_file = settings.name is not None and path == Path(settings.name)
    if is_file or match is None:
        return Catalogue(settings.checkpoint_dir, path.name, path)
    return Catalogue(path.parent, f"{match['config']}_{match['timestamp']}:{which}")


def device_name(settings: Settings) -> str:
    """Return which device computes: beside a training never its GPU, unless that is asked for."""
    if settings.beside_training and settings.device == "auto":
        return "cpu"
    return settings.device


def make_room_for_training() -> str:
    """Lower this process's priority and its threads; return in words what that means."""
    cores = os.cpu_count() or 1
    threads = max(1, cores // 2)
    torch.set_num_threads(threads)
    priority = "with low priority"
    try:
        problem = lower_priority(NICENESS)
        if problem:
            priority = f"with low priority ({problem})"
    except OSError as error:
        priority = f"without low priority ({error.strerror})"
    return (
        f"beside training: {priority}, {threads} of {cores} cores; it takes nothing while nobody "
        "asks, and training is slower while it answers"
    )


async def _serve(
    settings: Settings,
    taken: socket.socket,
    catalogue: Catalogue,
    device: torch.device,
    say: Say,
) -> None:
    batcher = Batcher()
    models = LoadedModels(catalogue, batcher, device, compiles=not settings.beside_training)
    await models.load_default()
    watch = Watch(RUNS, catalogue.checkpoint_dir)
    address = address_of(settings.host, taken)
    access = Access(settings.host, taken.getsockname()[1], settings.api_key)
    app = make_app(models, watch, access=access, limits=Limits(concurrent=settings.max_concurrent))
    server = QuietServer(app)
    serving = asyncio.ensure_future(server.serve(sockets=[taken]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.005)
    if not serving.done():
        say(f"serving {catalogue.default} at {address}")
        if settings.opens_browser:
            _open_browser(address)
    await serving
    batcher.close()


class Connection(H11Protocol):
    """Closes where headers do not end: uvicorn would wait for ever, and keep the file open."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        """Begin to wait for the end of headers, or go on; where they are there, wait no more."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_S, self.transport.close)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class QuietServer(uvicorn.Server):
    """Ends with a signal and without raising it again: to be told to end is no failure."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # what fails in a request, the gate logs
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=PATIENCE_S,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals while the server answers; in another thread there are none to take."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:  # a second one: nobody wants to wait
            os._exit(130 if number == signal.SIGINT else 143)
        self.should_exit = True


def _open_browser(address: str) -> None:
    """Open the page in the user's browser, which may take its time."""
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
