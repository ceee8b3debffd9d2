"""A server on loopback with tiny models, and what asks it."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import parts

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Characters
from chatgot.run.assembly import assemble
from chatgot.sampling.speakers import Speaker
from chatgot.serving.access import Access
from chatgot.serving.app import make_app
from chatgot.serving.batching import Batcher
from chatgot.serving.hosts import bind
from chatgot.serving.limits import Limits
from chatgot.serving.listening import QuietServer
from chatgot.serving.models import Catalogue, LoadedModels
from chatgot.serving.watching import Watch

RUN_ID = "tiny_20250102-030405"
ALPHABET = "\n !?ABCDEFGHIJKLMN:abcdefghijklmnop"
SPEAKERS = (
    Speaker("ANN", 30, 0.5, "BEN"),
    Speaker("BEN", 20, 0.3, "ANN"),
    Speaker("GIN", 12, 0.2, ""),
)
NEVER_ENDS = {"0": -100}


def save_model(folder: Path, step: int = 0, run_id: str = RUN_ID, seed: int = 5) -> Path:
    """Save a model that writes varied nonsense; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = parts.config(seed=seed, model={"max_seq_length": 64, "init_range": 0.5})
    ids = np.random.default_rng(0).integers(1, len(ALPHABET) + 1, 2000).astype("<u2")
    tokens = Tokens(ids, Characters(ALPHABET), sha256(ids.tobytes()).hexdigest(), "utf-8")
    run = assemble(config, tokens, parts.CPU, None)
    run.state.run_id = run_id
    run.state.progress.global_step = run.state.progress.position = step
    run.state.marks.val_loss = 3.25
    run.speakers = list(SPEAKERS)
    path = folder / f"{run_id}_step_{step}.pt"
    save_checkpoint(path, run.checkpoint())
    return path


class Server:
    """The real server in a thread of its own, on a free port of loopback."""

    def __init__(
        self,
        folder: Path,
        *,
        default: str = f"{RUN_ID}:latest",
        api_key: str = "",
        slots: int = 16,
        file: Path | None = None,
        **limits: Any,
    ) -> None:
        self.checkpoints = folder / "checkpoints"
        self.catalogue = Catalogue(self.checkpoints, default, file)
        self.batcher = Batcher()
        self.models = LoadedModels(self.catalogue, self.batcher, parts.CPU, slots=slots)
        self.socket = bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        # small, so that a client that does not read is noticed soon
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=30, verify=False)
        watch = Watch(folder / "runs", self.checkpoints)
        access = Access("127.0.0.1", self.port, api_key)
        self.app = make_app(self.models, watch, access=access, limits=Limits(**limits))
        self.counters = self.app.counters
        self._server = QuietServer(self.app)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self.socket]))

    def __enter__(self) -> "Server":
        self._thread.start()
        wait_for(lambda: self._server.started)
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(10)
        self.batcher.close()
        assert not self._thread.is_alive()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def complete(self, prompt: object = "ANN:\n", n_tokens: int = 20, **body: Any) -> dict:
        """Return what /v1/completions answers; the text does not end by itself."""
        asked = {"max_tokens": n_tokens, "seed": 1, "logit_bias": NEVER_ENDS, **body}
        answer = self.post("/v1/completions", prompt=prompt, **asked)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def text(self, prompt: object = "ANN:\n", n_tokens: int = 20, **body: Any) -> str:
        return self.complete(prompt, n_tokens, **body)["choices"][0]["text"]

    @property
    def is_idle(self) -> bool:
        """Return whether no completion has or waits for a slot, and no request is answered."""
        return not (self.batcher.active or self.batcher.waiting or self.counters.running)


def wait_for(is_so: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something is so; fail if it never is."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.005)


def together(*coroutines: Coroutine) -> list[Any]:
    """Run coroutines at once; return what each of them returned."""

    async def run() -> list[Any]:
        return await asyncio.gather(*coroutines)

    return asyncio.run(run())
