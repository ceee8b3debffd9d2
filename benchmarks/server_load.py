"""What the server does under the load of many clients at once."""

import argparse
import asyncio
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.script_runs import ROOT, Figures

SERVE = ROOT / "scripts" / "serve.py"
START_S = 120.0  # that the server may take until it answers
END_S = 10.0
ANSWER_S = 60.0
MAX_TOKENS = 64
MIB = 1 << 20
PROMPTS = ("ROMEO:\n", "First Citizen:\nWe are", "\n", "KING HENRY VI:\nMy lord, the news")


@dataclass
class Asked:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    first_token_s: list[float] = field(default_factory=list)
    tokens: int = 0
    texts: dict[int, str] = field(default_factory=dict)  # by client
    changed: int = 0  # answers that differ from the same client's first one


def body_of(client: int) -> dict[str, object]:
    """Return the request that a client sends again and again."""
    return {
        "prompt": PROMPTS[client % len(PROMPTS)],
        "seed": client,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(http: httpx.AsyncClient, client: int, asked: Asked) -> int:
    """Send one request and read its answer; return its status."""
    began = time.monotonic()
    text = ""
    is_first = True
    async with http.stream("POST", "/v1/completions", json=body_of(client)) as answer:
        asked.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            await answer.aread()
            return answer.status_code
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[len("data: ") :])
            if is_first:
                asked.first_token_s.append(time.monotonic() - began)
                is_first = False
            text += "".join(choice["text"] for choice in event["choices"])
            if event.get("usage"):
                asked.tokens += event["usage"]["completion_tokens"]
    if asked.texts.setdefault(client, text) != text:
        asked.changed += 1
    return answer.status_code


async def ask_until(http: httpx.AsyncClient, client: int, asked: Asked, end: float) -> None:
    """Ask again and again; who is told to come again comes a tenth of a second later."""
    while time.monotonic() < end:
        if await ask(http, client, asked) == 429:
            await asyncio.sleep(0.1)


async def load(address: str, clients: int, seconds: float) -> Asked:
    """Let all clients ask at once for some seconds; return what they saw."""
    asked = Asked()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=ANSWER_S, limits=limits) as http:
        end = time.monotonic() + seconds
        await asyncio.gather(*(ask_until(http, n, asked, end) for n in range(clients)))
    return asked


async def alone(address: str, clients: Sequence[int]) -> dict[int, str]:
    """Return what each client is answered while nobody else asks."""
    asked = Asked()
    async with httpx.AsyncClient(base_url=address, timeout=ANSWER_S) as http:
        for client in clients:
            await ask(http, client, asked)
    return asked.texts


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def serving(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure scripts/serve.py under load; it serves a model of --folder."""
    command = [sys.executable, str(SERVE), "--port", "0"]
    process = subprocess.Popen(command, cwd=args.folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = None
        end = time.monotonic() + START_S
        said = []
        while found is None and time.monotonic() < end:
            said.append(process.stderr.readline())
            found = re.search(r"http://\S+", said[-1])
            if not said[-1]:
                raise SystemExit("the server did not begin: " + "".join(said).strip())
        assert found is not None
        return measured(found[0], psutil.Process(process.pid), args.clients, args.seconds)
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measured(address: str, server: psutil.Process, clients: int, seconds: float) -> Figures:
    """Return the figures of a server that answers at `address`."""
    expected = asyncio.run(alone(address, range(clients)))
    # as much load before as after: memory for so many connections and texts is taken once
    asyncio.run(load(address, clients, seconds / 3))
    before = server.memory_info().rss
    began = time.monotonic()
    asked = asyncio.run(load(address, clients, seconds))
    wall_s = time.monotonic() - began
    after = server.memory_info().rss
    different = [n for n, text in asked.texts.items() if text != expected[n]]
    return {
        "clients": clients,
        "seconds": round(wall_s, 1),
        "requests": {str(status): count for status, count in sorted(asked.statuses.items())},
        "tokens_per_s": round(asked.tokens / wall_s),
        "first_token_p50_s": round(quantile(asked.first_token_s, 0.5), 3),
        "first_token_p95_s": round(quantile(asked.first_token_s, 0.95), 3),
        "memory_before_mib": round(before / MIB),
        "memory_after_mib": round(after / MIB),
        "answers_unlike_alone": len(different) + asked.changed,
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
