"""A stand-in for the server, for the tests of the page: its routes, without a model."""

import json
import math
import mimetypes
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from harness import ROOT

PAGE = ROOT / "chatgot" / "serving" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
RUN = "quick_20260102-030405"
SPEECHES = (
    "What light is that? The night is come again,\nAnd all the stars go out.",
    "I pray you, stay a while; the day is long.",
    "My lord, I know not what you mean by this.",
)
CONTINUATION = "come, sweet night,\nand bring my heart to rest. "
SPEAKERS = (
    ("GLOUCESTER", 904, "KING HENRY"),
    ("HAMLET", 358, "HORATIO"),
    ("IAGO", 272, "OTHELLO"),
    ("OTHELLO", 274, "IAGO"),
    ("ROMEO", 163, "BENVOLIO"),
    ("JULIET", 118, "NURSE"),
    ("NURSE", 90, "JULIET"),
)


class StandIn(ThreadingHTTPServer):
    """Answers on loopback; the tests say what, and look at what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.may_go_on = threading.Event()  # an answer waits for it after its first words
        self.left = threading.Event()  # somebody went away before the answer's end
        self.reset()

    def reset(self) -> None:
        """Be as at the start."""
        self.asked: list[tuple[str, dict]] = []  # path and body of each POST
        self.keys: list[str | None] = []  # the Authorization header of each POST
        self.speeches: deque[str] = deque()  # what is said next, before the usual speeches
        self.speakers = list(SPEAKERS)
        self.refusals: deque[tuple[int, str]] = deque()  # status and message of the next answers
        self.may_go_on.set()
        self.left.clear()
        self.pause_s = 0.002  # between two pieces
        self.step = 400  # of the newest checkpoint
        self.live = True
        self.prompt = "KING HENRY:\n"
        self.count = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def models(self) -> list[dict]:
        speakers = [
            {"name": name, "lines": lines, "share": lines / 30000, "partner": partner}
            for name, lines, partner in self.speakers
        ]
        steps = {"best": min(self.step, 400), "latest": self.step}
        return [
            {
                "id": f"{RUN}:{checkpoint}",
                "object": "model",
                "chatgot": {
                    "run_id": RUN,
                    "step": step,
                    "val_loss": 1.5234,
                    "checkpoint": checkpoint,
                    "context": 256,
                    "vocabulary_size": 76,
                    "speakers": speakers,
                    "user": "ROMEO",
                    "character": "JULIET",
                    "loaded": checkpoint == "best",
                },
            }
            for checkpoint, step in steps.items()
        ]

    def run(self) -> dict:
        steps = range(0, self.step + 1, 20)
        rows = [
            {
                "step": step,
                "train_loss": 1.4 + 2.9 * math.exp(-step / 90) if step else None,
                "val_loss": None if step % 100 else 1.5 + 2.9 * math.exp(-step / 90),
                "val_bits_per_byte": None if step % 100 else 2.1 + 4.1 * math.exp(-step / 90),
                "lr": 0.004,
                "tokens_per_s": 19133.2,
            }
            for step in steps
        ]
        samples = [
            {
                "step": step,
                "index": index,
                "prompt": prompt,
                "text": f"Words at {step}, of {index}.",
            }
            for step in range(0, self.step + 1, 100)
            for index, prompt in ((1, self.prompt), (2, "JULIET:\nO "))
        ]
        return {
            "run_id": RUN,
            "live": self.live,
            "rows": rows,
            "samples": samples,
            "best_step": self.step // 100 * 100,
        }

    def next_speech(self) -> str:
        if self.speeches:
            return self.speeches.popleft()
        self.count += 1
        return SPEECHES[self.count % len(SPEECHES)]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self.json({"object": "list", "data": self.server.models()})
        if self.path == "/watch/runs":
            models = [model["id"] for model in self.server.models()]
            run = self.server.run()
            about = {"run_id": RUN, "live": run["live"], "step": self.server.step, "models": models}
            return self.json([about])
        if self.path == f"/watch/runs/{RUN}":
            return self.json(self.server.run())
        return self.file("index.html" if self.path == "/" else self.path[1:])

    def file(self, name: str) -> None:
        path = PAGE / name
        if path.parent != PAGE or not path.is_file():
            return self.json({"error": {"message": "not found"}}, 404)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return self.send(path.read_bytes(), kind)

    def json(self, value: object, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), "application/json", status)

    def send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        self.server.keys.append(self.headers["Authorization"])
        if self.server.refusals:
            status, message = self.server.refusals.popleft()
            return self.json({"error": {"message": message, "type": "x"}}, status)
        chunks = self.chat(body) if "chat" in self.path else self.completion(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for chunk in chunks:
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                time.sleep(self.server.pause_s)
                if not self.server.may_go_on.wait(0):
                    self.hold()
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.left.set()
        return None

    def hold(self) -> None:
        """Send comments until the test lets the answer go on, or the browser goes away."""
        while not self.server.may_go_on.wait(0.02):
            self.wfile.write(b": still here\n\n")

    def chat(self, body: dict) -> Iterator[dict]:
        name = body["character"]
        if name == "auto":
            room = body.get("room") or [speaker[0] for speaker in self.server.speakers]
            spoken = [message["name"] for message in body["messages"]]
            name = min(
                room,
                key=lambda guest: (
                    len(spoken) - 1 - spoken[::-1].index(guest) if guest in spoken else -1
                ),
            )
        text = self.server.next_speech()
        step = self.server.step if body["model"].endswith(":latest") else 400
        named = self.piece(delta={"role": "assistant", "name": name, "content": ""})
        yield named | {"system_fingerprint": f"{RUN}_step_{step}"}
        for i in range(0, len(text), 6):
            yield self.piece(delta={"content": text[i : i + 6]})
        yield self.piece(delta={}, finish_reason="stop")

    def completion(self, body: dict) -> Iterator[dict]:
        text = self.server.speeches.popleft() if self.server.speeches else CONTINUATION
        for i, letter in enumerate(text[: body["max_tokens"]]):
            probability = (0.93, 0.62, 0.31, 0.12, 0.02)[i % 5]
            others = [other for other in "etaoin" if other != letter][:4]
            logprobs = {
                "tokens": [letter],
                "token_logprobs": [math.log(probability)],
                "top_logprobs": [
                    {letter: math.log(probability)}
                    | {other: math.log(0.03 / (n + 1)) for n, other in enumerate(others)}
                ],
                "text_offset": [len(body["prompt"]) + i],
            }
            yield self.piece(text=letter, logprobs=logprobs)
        yield self.piece(text="", finish_reason="length")

    @staticmethod
    def piece(**choice: object) -> dict:
        return {"choices": [{"index": 0, "finish_reason": None} | choice]}
