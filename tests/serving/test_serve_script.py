"""The script as a user starts it: its address, its refusals, its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import harness
import httpx
import pytest
import served

SCRIPT = harness.ROOT / "scripts" / "serve.py"


def start(folder, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--port", "0", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def refused(folder, *arguments: str) -> tuple[int, str]:
    """Run the script, which has to end by itself; return its exit code and its one line."""
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM kills there")
def test_script_says_its_address_and_finishes_answers_before_it_ends(tmp_path):
    """Beside a training, so that no compilation goes on in these tests."""
    served.save_model(tmp_path / "checkpoints", step=4)
    process = start(tmp_path, "--run", "tiny")
    try:
        beside = process.stderr.readline()
        assert beside.startswith("beside training: with low priority")
        assert os.getpriority(os.PRIO_PROCESS, process.pid) >= 10
        line = process.stderr.readline()
        address = line.split()[-1]
        assert line == f"serving {served.RUN_ID}:latest at {address}\n"
        body = {"prompt": "ANN:\n", "max_tokens": 500, "logit_bias": served.NEVER_ENDS}
        with httpx.stream(
            "POST", f"{address}v1/completions", json={**body, "stream": True}, timeout=30
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_no_model_ends_with_code_3(tmp_path):
    code, said = refused(tmp_path, "--port", "0")
    assert code == 3
    assert len(said.splitlines()) <= 2


def test_taken_port_ends_with_code_2(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused(tmp_path, "--port", str(port))
    assert code == 2
    assert len(said.splitlines()) == 1
    assert f"127.0.0.1:{port}" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("--host", "0.0.0.0"),
        ("--host", "192.168.0.1"),
        ("--host", "0.0.0.0", "--api_key", " "),
        ("tiny", "--run", "tiny"),
        ("--port", "70000"),
        ("--max_concurrent", "0"),
    ],
)
def test_wrong_options_end_with_code_2_and_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as raised:
        harness.load_script(SCRIPT).parse_arguments(list(arguments))
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said


def test_help_is_quick_and_without_torch(tmp_path):
    code = (
        f"import runpy, sys; sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        f"try:\n    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit:\n    print('torch' in sys.modules, 'fastapi' in sys.modules)"
    )
    began = time.process_time()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False False"
    assert time.process_time() - began < 5
