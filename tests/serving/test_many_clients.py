"""Many clients at once: nobody waits for a slow one, slots come free, answers are not mixed up."""

import asyncio
import json
import re
import socket
import time

import httpx
import psutil
import pytest
import served

from chatgot.serving.answering import GONE


def request_bytes(server: served.Server, **body: object) -> bytes:
    """Return a whole HTTP request for a completion."""
    content = json.dumps({"prompt": "ANN:\n", "logit_bias": served.NEVER_ENDS, **body}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def begin(server: served.Server, **body: object) -> socket.socket:
    """Send a request for a completion, and do not read its answer."""
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(request_bytes(server, **body))
    return raw


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_go_away_free_their_slots(server, stream):
    clients = [begin(server, stream=stream, n=2, max_tokens=10_000) for _ in range(6)]
    served.wait_for(lambda: server.batcher.active + server.batcher.waiting >= 12)
    for client in clients:
        client.close()
    served.wait_for(lambda: server.is_idle)
    assert server.text()


def test_client_that_did_not_read_and_goes_away_frees_its_slot(server):
    """There is news all the time while its answer cannot be sent."""
    with begin(server, stream=True, logprobs=20, max_tokens=10_000):
        served.wait_for(lambda: server.batcher.active == 1)
        (orders,) = server.batcher._orders.values()
        served.wait_for(lambda: orders[0].progress[0].n_tokens > 300)
    served.wait_for(lambda: server.is_idle, 5)


def test_slow_reader_blocks_nobody_and_gets_all_in_few_pieces(server):
    """It reads nothing until its text is written; others are answered meanwhile."""
    body = {"seed": 1, "logprobs": 20, "max_tokens": 400}
    whole = server.text(n_tokens=400)
    with begin(server, stream=True, **body) as raw:
        served.wait_for(lambda: server.batcher.active == 1)
        assert server.text(n_tokens=5)
        served.wait_for(lambda: server.batcher.active == 0)
        assert server.text(n_tokens=5)
        # its answer waits for it; the other request has its answer, and ends
        served.wait_for(lambda: server.counters.running == 1)
        content = b""
        while b"[DONE]" not in content:
            content += raw.recv(65536)
    events = re.findall(
        rb"^data: (\{.*\})", re.sub(rb"\r\n[0-9a-f]+\r\n", b"", content), re.MULTILINE
    )
    texts = [json.loads(event)["choices"][0]["text"] for event in events]
    assert "".join(texts) == whole
    assert len(events) < 300


def test_more_requests_than_places_are_told_to_come_again(tmp_path):
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path, concurrent=2) as server:
        clients = [begin(server, max_tokens=10_000) for _ in range(2)]
        served.wait_for(lambda: server.counters.running == 2)
        answer = server.post("/v1/completions", prompt="A")
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert server.get("/v1/models").status_code == 200
        for client in clients:
            client.close()
        served.wait_for(lambda: server.counters.running == 0)
        assert server.post("/v1/completions", prompt="A").status_code == 200


def test_answer_that_takes_too_long_ends_with_what_there_is(tmp_path):
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path, seconds=0.6) as server:
        server.text(n_tokens=1)  # the model is loaded
        (choice,) = server.complete(n_tokens=16_000)["choices"]
        assert choice["finish_reason"] == "length"
        assert 0 < len(choice["text"]) < 16_000
        streamed = server.post("/v1/completions", prompt="ANN:\n", max_tokens=16_000, stream=True)
        assert streamed.text.endswith("data: [DONE]\n\n")
        served.wait_for(lambda: server.is_idle)


def test_client_that_never_reads_loses_its_place(tmp_path):
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path, seconds=1) as server:
        server.text(n_tokens=1)
        with begin(server, stream=True, logprobs=20, max_tokens=10_000):
            served.wait_for(lambda: server.batcher.active == 1)
            served.wait_for(lambda: server.is_idle)


def test_bodies_that_never_end_keep_nobody_away(tmp_path):
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path, concurrent=2) as server:
        half = request_bytes(server, max_tokens=5)[:-1]
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        for client in clients:
            client.sendall(half)
        time.sleep(0.2)
        assert server.text(n_tokens=3)
        for client in clients:
            client.close()
        served.wait_for(lambda: server.counters.requests[GONE] == 4)
        assert server.counters.requests[500] == 0


def test_headers_that_never_end_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("chatgot.serving.listening.HEADERS_S", 0.5)
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path) as server:
        for begun in (b"", b"GET /health HTTP/1.1\r\nHos", request_bytes(server)[:20]):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
                client.sendall(begun)
                assert client.recv(100) == b""
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(request_bytes(server, max_tokens=5)[:-1])
            time.sleep(1)  # the body may take longer
            client.sendall(b"}")
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_body_that_never_ends_is_given_up(tmp_path):
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path, seconds=0.3) as server:
        half = request_bytes(server, max_tokens=5)[:-1]
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(half)
            assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_request_that_the_engine_cannot_take_fails_alone(tmp_path, monkeypatch):
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path) as server:
        expected = server.text()
        (loaded,) = server.models._loaded.values()

        def broken(request: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(loaded.engine, "add", broken)
            assert server.post("/v1/completions", prompt="A").status_code == 500
        assert server.text() == expected
        served.wait_for(lambda: server.is_idle)


def test_failing_step_answers_with_an_error_and_the_server_lives_on(tmp_path, monkeypatch):
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path) as server:
        expected = server.text()
        (loaded,) = server.models._loaded.values()

        def broken() -> None:
            raise RuntimeError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(loaded.engine, "step", broken)
            answer = server.post("/v1/completions", prompt="A")
            assert answer.status_code == 500
            assert answer.json()["error"]["type"] == "server_error"
            streamed = server.post("/v1/completions", prompt="A", stream=True)
            assert '"error"' in streamed.text
            assert "[DONE]" not in streamed.text
        assert server.text() == expected
        served.wait_for(lambda: server.is_idle)


async def ask_all_the_time(server: served.Server, seed: int, seconds: float) -> list[tuple]:
    """Ask again and again; return (status, prompt, text) of each answer."""
    answers = []
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(timeout=30, verify=False) as client:
        while time.monotonic() < end:
            prompt = "ANN:\n" + served.ALPHABET[10 + seed % 20]
            body = {
                "prompt": prompt,
                "seed": seed,
                "max_tokens": 4 + seed % 8,
                "logit_bias": served.NEVER_ENDS,
            }
            answer = await client.post(f"{server.url}/v1/completions", json=body)
            text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else ""
            answers.append((answer.status_code, prompt, text))
            if answer.status_code == 429:
                await asyncio.sleep(0.05)
    return answers


@pytest.mark.slow
def test_64_clients_get_their_own_answers_for_a_minute(tmp_path):
    check_load(tmp_path, n_clients=64, seconds=60)


def test_answers_of_many_clients_are_not_mixed_up(tmp_path):
    check_load(tmp_path, n_clients=24, seconds=1.5)


def check_load(folder, n_clients: int, seconds: float) -> None:
    """Let clients ask all the time; there are fewer places than clients."""
    served.save_model(folder / "checkpoints")
    with served.Server(folder, concurrent=n_clients * 3 // 4) as server:
        server.text()
        process = psutil.Process()
        served.together(*(ask_all_the_time(server, seed, seconds / 4) for seed in range(n_clients)))
        before = process.memory_info().rss
        answers = served.together(
            *(ask_all_the_time(server, seed, seconds) for seed in range(n_clients))
        )
        assert process.memory_info().rss - before < 50 << 20
        statuses = {status for own in answers for status, _, _ in own}
        assert 200 in statuses
        assert statuses <= {200, 429}
        for seed, own in enumerate(answers):
            texts = {(prompt, text) for status, prompt, text in own if status == 200}
            for prompt, text in texts:
                assert text == server.text(prompt, 4 + seed % 8, seed=seed)
        served.wait_for(lambda: server.is_idle)
