"""A model from elsewhere, tuned with LoRA on a text, answers through the API."""

import shutil
from pathlib import Path

import harness
import pytest
import served
import starts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that has LoRA on a model of transformers."""
    folder = tmp_path_factory.mktemp("tuned")
    starts.save_pretrained(folder / "model", "Llama")
    lora = {"learning_rate": 1e-2, "lora": {"rank": 2}}
    assert starts.begin(folder, "model", training=lora) == 0
    return folder


def server_of(folder: Path) -> served.Server:
    run_id = harness.load(starts.checkpoint_of(folder))["run_id"]
    return served.Server(folder, default=f"{run_id}:latest")


def test_server_answers_what_chat_writes(folder, capsys):
    options = ("--max_new_tokens", "12", "--temperature", "0")
    assert starts.run_tool("chat", folder, "fine", "--prompt", "KING:\n", *options) == 0
    text = capsys.readouterr().out
    with server_of(folder) as server:
        body = {"max_tokens": 12, "temperature": 0, "prompt": "KING:\n"}
        answer = server.post("/v1/completions", **body).json()
    assert answer["choices"][0]["text"]
    assert text == f"KING:\n{answer['choices'][0]['text']}\n"


def test_server_says_what_is_missing_without_the_base(folder, tmp_path):
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    (folder / "model").rename(tmp_path / "elsewhere")
    try:
        with server_of(tmp_path) as server:
            answer = server.post("/v1/completions", prompt="KING:\n")
    finally:
        (tmp_path / "elsewhere").rename(folder / "model")
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert "holds only what LoRA has added" in message
    assert str(tmp_path / "checkpoints" / "model") in message
