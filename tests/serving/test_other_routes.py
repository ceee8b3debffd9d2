"""Tokens, health, metrics, and the runs to watch."""

import json

import made_runs
import parts
import pytest
import served

from chatgot.checkpointing.run_lock import is_being_trained, lock_old_run
from chatgot.report.run_record import Row
from chatgot.sampling.originality import originality_of
from chatgot.sampling.suffix_index import SuffixIndex
from chatgot.serving.models import Served
from chatgot.serving.watching import MOST_ROWS, thinned, thinned_rows


def test_tokens_and_text_are_turned_into_each_other(server):
    answer = server.post("/tokenize", text="ANN: a!").json()
    assert answer["pieces"] == list("ANN: a!")
    assert answer["count"] == 7
    back = server.post("/detokenize", tokens=answer["tokens"])
    assert back.json()["text"] == "ANN: a!"
    assert server.post("/tokenize", prompt="ANN: a!").json() == answer


def test_copied_says_that_the_training_text_is_not_here(server):
    answer = server.post("/copied", texts=["ANN: a!"])
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "text_not_here"


def test_copied_finds_what_stands_in_the_training_text(server, monkeypatch):
    line = "a line of thirty letters or more of the play"
    index = SuffixIndex.of_text(f"ANN:\n{line}".encode())
    monkeypatch.setattr(Served, "originality_of", lambda _, texts: originality_of(texts, index))
    answer = server.post("/copied", texts=["x" * 40, f"é{line}é"]).json()
    assert answer["copies"] == [[], [[1, 1 + len(line)]]]
    assert answer["longest_copy"] == len(line)
    assert answer["least"] == 30


@pytest.mark.parametrize("texts", [None, "a", [1], ["a" * 100_001], ["a"] * 1001])
def test_texts_that_cannot_be_compared_are_refused(server, texts):
    assert server.post("/copied", texts=texts).status_code == 400


def test_wrong_tokens_are_refused(server):
    for tokens in ([-1], [10**6], ["a"], None):
        answer = server.post("/detokenize", tokens=tokens)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("tokens")
    assert server.post("/tokenize").status_code == 400


def test_characters_outside_the_vocabulary_are_said(server):
    answer = server.post("/tokenize", text="aé☃").json()
    assert answer["pieces"] == ["a", "?", "?"]
    assert answer["replaced"] == "é☃"
    asked = {"max_tokens": 3, "seed": 1}
    answer = server.post("/v1/completions", prompt="aé☃", **asked)
    assert answer.headers["x-chatgot-replaced"] == "%C3%A9%E2%98%83"
    assert answer.json()["chatgot"]["replaced"] == "é☃"
    lone = json.dumps({"prompt": "a\ud800", "stream": True, **asked})
    streamed = server.client.post("/v1/completions", content=lone)
    assert streamed.headers["x-chatgot-replaced"] == "%5Cud800"
    messages = [{"role": "user", "content": "☃", "name": "<img src=x>"}]
    chat = server.post("/v1/chat/completions", messages=messages, **asked)
    assert chat.json()["chatgot"]["replaced"] == "<=>rsx☃"
    plain = server.post("/v1/completions", prompt="a", **asked)
    assert "x-chatgot-replaced" not in plain.headers
    assert "chatgot" not in plain.json()


def test_health_needs_nothing(server):
    assert server.get("/health").json() == {"status": "ok"}


def metrics(server: served.Server) -> dict[str, float]:
    lines = [line for line in server.get("/metrics").text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_count_answers_and_tokens(server):
    server.text()
    before = metrics(server)
    server.text("ANN:\n", n_tokens=7)
    server.post("/v1/completions", prompt=3)
    after = metrics(server)
    gained = {name: after[name] - before.get(name, 0) for name in after}
    assert gained["chatgot_generated_tokens_total"] == 7
    assert gained["chatgot_prompt_tokens_total"] == 5
    assert gained['chatgot_requests_total{status="400"}'] == 1
    assert gained["chatgot_first_token_seconds_count"] == 1
    assert gained['chatgot_first_token_seconds_bucket{le="+Inf"}'] == 1
    assert after["chatgot_completions_active"] == 0


@pytest.fixture
def watched(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    served.save_model(checkpoints)
    rows = [
        {"step": step, "train_loss": 4.0 - step / 10, "val_loss": loss, "lr": 0.1}
        for step, loss in ((0, 4.5), (1, None), (2, 3.5), (3, 3.75))
    ]
    rows[2]["val_bits_per_byte"] = 5.05
    samples = [{"step": 2, "index": 0, "prompt": "ANN:\n", "text": "<b>a</b>", "seed": 1}]
    made_runs.write(
        tmp_path / "runs", rows=made_runs.json_lines(rows), samples=samples, name=served.RUN_ID
    )
    with served.Server(tmp_path) as server:
        yield server


def test_runs_are_watched_with_rows_and_samples(watched):
    assert watched.get("/watch/runs").json() == [
        {
            "run_id": served.RUN_ID,
            "live": False,
            "step": 3,
            "models": [f"{served.RUN_ID}:latest"],
        }
    ]
    run = watched.get(f"/watch/runs/{served.RUN_ID}").json()
    assert run["rows"][1] == {
        "step": 1,
        "train_loss": 3.9,
        "val_loss": None,
        "val_bits_per_byte": None,
        "lr": 0.1,
        "tokens_per_s": None,
    }
    assert run["rows"][2]["val_bits_per_byte"] == 5.05
    assert run["samples"] == [{"step": 2, "index": 0, "prompt": "ANN:\n", "text": "<b>a</b>"}]
    assert run["best_step"] == 2
    assert run["live"] is False


def test_a_run_whose_lock_is_held_is_live(watched):
    lock = lock_old_run(watched.checkpoints, served.RUN_ID)
    try:
        assert watched.get(f"/watch/runs/{served.RUN_ID}").json()["live"] is True
        assert is_being_trained(watched.checkpoints, served.RUN_ID)
    finally:
        lock.release()
    assert not is_being_trained(watched.checkpoints, served.RUN_ID)
    lock_old_run(watched.checkpoints, served.RUN_ID).release()  # to look at it leaves no lock


def test_new_rows_are_seen(watched):
    watched.get(f"/watch/runs/{served.RUN_ID}")
    path = watched.checkpoints.parent / "runs" / served.RUN_ID / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"step": 4, "val_loss": 1.0}) + "\n")
    assert watched.get(f"/watch/runs/{served.RUN_ID}").json()["best_step"] == 4


@pytest.mark.parametrize("name", ["nobody_20250102-030405", "..", "%2e%2e%2fcheckpoints", "a%00b"])
def test_what_is_no_run_is_not_found(watched, name):
    assert watched.get(f"/watch/runs/{name}").status_code in (400, 404)


def test_many_rows_are_thinned_out_and_keep_evaluations():
    rows = [
        Row(step, {"val_loss": 1.0 if step % 100 == 0 else None}) for step in range(10 * MOST_ROWS)
    ]
    kept = thinned_rows(rows)
    assert len(kept) == MOST_ROWS
    assert {row.step for row in kept} >= set(range(0, 10 * MOST_ROWS, 100))
    assert kept[-1] is rows[-1]
    assert thinned([1, 2, 3], 5) == [1, 2, 3]
    assert thinned(range(10), 4) == [0, 3, 6, 9]


def test_the_lock_of_a_run_that_never_was_is_not_made(tmp_path):
    assert not is_being_trained(tmp_path, parts.RUN_ID)
    assert list(tmp_path.iterdir()) == []
