"""A server beside a training answers from each new checkpoint, and changes no bit of the run."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import harness
import httpx
import pytest
import torch

STEPS = 1500
SERVER = harness.ROOT / "scripts" / "serve.py"


def start_training(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir()
    often = {"max_steps": STEPS, "save_checkpoint_steps": 100, "eval_interval": 500}
    config = harness.write_config(folder, training={**often, "sample_interval_steps": 500})
    command = [sys.executable, str(harness.SCRIPT), "--config", config.name]
    output = (folder / "output.txt").open("wb")
    return subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)


def wait_for_checkpoint(folder: Path, training: subprocess.Popen[bytes]) -> None:
    while not harness.checkpoints(folder):
        assert training.poll() is None
        time.sleep(0.05)


def ask_until_it_ends(folder: Path, training: subprocess.Popen[bytes]) -> set[str]:
    """Ask a server beside a training without a pause; return which checkpoints answered."""
    command = [sys.executable, str(SERVER), "--run", "tiny", "--port", "0"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    answered = set()
    try:
        assert server.stderr.readline().startswith("beside training")
        address = server.stderr.readline().split()[-1]
        body = json.dumps({"prompt": "KING:\n", "max_tokens": 50, "n": 4, "seed": 1})
        while training.poll() is None:
            with suppress(httpx.ReadTimeout):
                answer = httpx.post(f"{address}v1/completions", content=body, timeout=30)
                assert answer.status_code == 200, answer.text
                answered.add(answer.json()["system_fingerprint"])
    finally:
        server.kill()
        server.communicate()
    return answered


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="not tried there")
def test_served_run_ends_in_the_same_bits_as_one_left_alone(tmp_path):
    alone = start_training(tmp_path / "alone")
    assert alone.wait(300) == 0
    served = start_training(tmp_path / "served")
    wait_for_checkpoint(tmp_path / "served", served)
    answered = ask_until_it_ends(tmp_path / "served", served)
    assert served.wait(300) == 0
    assert len(answered) > 1
    weights = [
        harness.load(harness.checkpoints(tmp_path / name)[STEPS])["model_state_dict"]
        for name in ("alone", "served")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
