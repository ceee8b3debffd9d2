"""llama.cpp on the loopback interface, through the package xllamacpp."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import pytest

PROGRAM = harness.ROOT / "tests" / "programs" / "serve_with_llama_cpp.py"


class LlamaServer:
    """Asks a server of llama.cpp."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **body: object) -> Any:
        """Return the answer to a POST."""
        request = urllib.request.Request(
            self._address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, as they come into the model."""
        ids: list[int] = self.ask("/tokenize", content=text, add_special=True)["tokens"]
        return ids

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """Return the prompt that the chat template in the file makes of messages."""
        text: str = self.ask("/apply-template", messages=messages)["prompt"]
        return text

    def complete(self, prompt: list[int] | str, n_predict: int, **body: object) -> Any:
        """Return a completion; the likeliest tokens, unless the body says otherwise."""
        settings = {"temperature": 0, "cache_prompt": False, "samplers": ["temperature"]}
        return self.ask("/completion", prompt=prompt, n_predict=n_predict, **{**settings, **body})


@contextmanager
def serving(path: Path, context: int = 128) -> Iterator[LlamaServer]:
    """Serve a GGUF file in a process of its own, which ends with the block or with this process."""
    pytest.importorskip("xllamacpp")
    with subprocess.Popen(
        [sys.executable, PROGRAM, path, str(context)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "llama.cpp does not load the file"
        yield LlamaServer(address)
