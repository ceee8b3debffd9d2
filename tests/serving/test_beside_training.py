"""A model that is served while it is trained: the training ends with the same weights."""

import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import harness
import httpx
import pytest
from test_serve_script import start

STEPS = 60
SAVING = {"training": {"max_steps": STEPS, "save_checkpoint_steps": 5}}


def begin_training(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "text.txt").write_text(harness.make_text(), encoding="utf-8")
    config = harness.write_config(folder, **SAVING)
    command = [sys.executable, str(harness.SCRIPT), "--config", str(config)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def ask_until(told: threading.Event, address: str, answers: list[dict]) -> None:
    """Ask all the time; the server may have ended."""
    body = {"prompt": "a", "max_tokens": 20, "model": "tiny:latest"}
    with suppress(httpx.HTTPError):
        while not told.is_set():
            answer = httpx.post(f"{address}v1/completions", json=body, timeout=30)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())


@pytest.mark.slow
def test_training_beside_a_served_model_ends_in_the_same_bits(tmp_path):
    alone = tmp_path / "alone"
    beside = tmp_path / "beside"
    for folder in (alone, beside):
        folder.mkdir()
    assert begin_training(alone).wait(120) == 0
    training = begin_training(beside)
    while not harness.checkpoints(beside) and training.poll() is None:
        time.sleep(0.02)
    server = start(beside, "--run", "tiny")
    told = threading.Event()
    answers: list[dict] = []
    try:
        server.stderr.readline()
        address = server.stderr.readline().split()[-1]
        asking = threading.Thread(target=ask_until, args=(told, address, answers))
        asking.start()
        assert training.wait(120) == 0
        told.set()
        asking.join(30)
    finally:
        server.terminate()
        server.communicate(timeout=20)
    assert answers
    last = [harness.load(harness.checkpoints(folder)[STEPS]) for folder in (alone, beside)]
    assert harness.same(last[0]["model_state_dict"], last[1]["model_state_dict"])
