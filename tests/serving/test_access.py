"""Who may ask: host, origin, key, size."""

import json
import socket

import httpx
import pytest
import served

from chatgot.serving.access import POLICY, Access
from chatgot.serving.api_errors import ApiError
from chatgot.serving.hosts import is_loopback
from chatgot.serving.page_files import KINDS, PAGE, page_files


def code_of(answer: httpx.Response) -> str:
    return answer.json()["error"]["code"]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_names_of_loopback_with_our_port_pass(server, name):
    assert server.get("/v1/models", Host=f"{name}:{server.port}").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost:1", "localhost", "a@localhost", "localhost.evil", "[::", ""]
)
def test_foreign_host_is_refused_on_every_path(server, host):
    for path in ("/v1/models", "/health", "/", "/nothing"):
        answer = server.get(path, Host=host)
        assert answer.status_code == 403
        assert code_of(answer) == "foreign_host"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "file://"])
def test_foreign_origin_is_refused_and_gets_no_cors_header(server, origin):
    answer = server.get("/v1/models", Origin=origin)
    assert answer.status_code == 403
    assert code_of(answer) == "foreign_origin"
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = server.client.options("/v1/completions", headers={"Origin": origin})
    assert preflight.status_code == 403


def test_own_origin_passes(server):
    assert server.get("/v1/models", Origin=server.url).status_code == 200


def test_host_of_the_command_line_passes():
    access = Access("192.168.0.7", 8000, "key", frozenset({"/health"}))
    access.check("/health", {b"host": b"192.168.0.7:8000"})
    access.check("/health", {b"host": b"127.0.0.1:8000"})
    with pytest.raises(ApiError):
        access.check("/health", {b"host": b"192.168.0.8:8000"})
    for host in (b"any.name:8000", b"10.0.0.1:8000"):
        Access("0.0.0.0", 8000, "key").check("/health", {b"host": host})
    Access("::1", 8000, "").check("/health", {b"host": b"[::1]:8000"})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_other_hosts(host, expected):
    assert is_loopback(host) == expected


def test_key_is_asked_for_where_there_is_one(tmp_path):
    served.save_model(tmp_path / "checkpoints")
    with served.Server(tmp_path, api_key="secret") as server:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            for path in ("/v1/models", "/metrics", "/watch/runs", "/nothing"):
                answer = server.get(path, **given)
                assert answer.status_code == 401
                assert code_of(answer) == "invalid_api_key"
        assert server.get("/health").status_code == 200
        assert server.get("/").status_code != 401
        assert server.get("/v1/models", Authorization="Bearer secret").status_code == 200
        assert server.post("/v1/completions", prompt="A").status_code == 401


def test_any_key_or_none_is_accepted_on_loopback(server):
    for given in ({}, {"Authorization": "Bearer whatever"}):
        assert server.get("/v1/models", **given).status_code == 200


def test_body_over_a_megabyte_is_refused(server):
    body = json.dumps({"prompt": "A" * 1_000_000}).encode()
    answer = server.client.post("/v1/completions", content=body)
    assert answer.status_code == 413
    assert code_of(answer) == "request_too_large"

    def pieces():
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    answer = server.client.post("/v1/completions", content=pieces())
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b'{"seed": NaN}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"prompt": "\\ud800", "temperature": "\\ud800"}',
    ],
)
def test_body_that_is_no_request_is_answered_in_openais_form(server, body):
    answer = server.client.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_mistake_of_ours_is_answered_in_openais_form(server, monkeypatch, caplog):
    def broken():
        raise RuntimeError("broken")

    monkeypatch.setattr(server.models.catalogue, "models", broken)
    answer = server.get("/v1/models")
    assert answer.status_code == 500
    assert code_of(answer) == "internal_error"
    served.wait_for(lambda: "broken" in caplog.text)
    monkeypatch.undo()
    assert server.get("/v1/models").status_code == 200


def test_unknown_path_and_method_are_answered_in_openais_form(server):
    for answer in (server.get("/v2/models"), server.get("/page/../app.py"), server.get("/docs")):
        assert answer.status_code == 404
        assert "no such route" in answer.json()["error"]["message"]
    answer = server.get("/v1/completions")
    assert answer.status_code == 405
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_every_answer_forbids_what_the_page_does_not_need(server):
    for path in ("/", "/health", "/nothing"):
        headers = server.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_only_the_pages_own_files_are_served(server, tmp_path):
    for name in ("index.html", "style.css", "app.js", "notes.txt", ".hidden"):
        (tmp_path / name).write_text(name)
    files = page_files(tmp_path)
    assert set(files) == {
        "/",
        "/index.html",
        "/page/index.html",
        "/style.css",
        "/page/style.css",
        "/app.js",
        "/page/app.js",
    }
    for path, file in page_files().items():
        answer = server.get(path)
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"] == KINDS[file.suffix]
    assert page_files(PAGE / "nothing") == {}


def test_raw_request_without_a_host_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 403")
