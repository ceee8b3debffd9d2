"""scripts/chat.py on a tiny trained model, as a user starts it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import harness
import pytest

CHAT = harness.ROOT / "scripts" / "chat.py"
MODEL = ("--max_new_tokens", "20", "--device", harness.TINY["device"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a model that was trained for two steps."""
    folder = tmp_path_factory.mktemp("chat")
    steps = {"max_steps": 2, "warmup_steps": 1, "sample_interval_steps": None}
    config = harness.write_config(folder, training=steps)
    assert harness.train_here(folder, "--config", str(config)) == 0
    return folder


@pytest.fixture
def chat(folder, monkeypatch, capsys):
    """Return a function that runs the script's main and returns exit code, stdout and stderr."""

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        source = folder / "stdin"
        source.write_bytes(stdin)
        script = harness.load_script(CHAT)
        monkeypatch.setattr(script.STOP, "install", lambda: None)
        with source.open(encoding="utf-8") as file:
            monkeypatch.setattr(sys, "stdin", file)
            try:
                code = script.main([*arguments])
            except SystemExit as end:
                code = end.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


# --------------------------------------------------------------------------------------------------
# Continuations


def test_prompt_and_its_text_are_alone_on_stdout(chat):
    code, out, err = chat("--prompt", "KING:\n", *MODEL)
    assert code == 0
    assert out.startswith("KING:\n")
    assert len(out) <= len("KING:\n") + 21
    assert re.match(r"tiny_\S+, step 2, held-out loss \d\.\d{3} \(\d\.\d{3} bits per byte\)\n", err)
    assert chat("--prompt", "KING:\n", *MODEL)[1] == out
    assert chat("--prompt", "KING:\n", "--seed", "1", *MODEL)[1] != out


def test_each_of_many_texts_is_repeated_by_its_seed(chat):
    code, out, _ = chat("tiny", "--prompt", "KING:\n", "-n", "20", "--json", *MODEL)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, len(rows)) == (0, 20)
    assert all(row["logprob"] <= 0 and row["tokens"] <= 20 for row in rows)
    _, alone, _ = chat("tiny", "--prompt", "KING:\n", "--json", "--seed", "7", *MODEL)
    assert json.loads(alone)["text"] == rows[7]["text"]


def test_prompts_come_from_stdin_and_from_a_file(chat, folder):
    assert chat("--prompt", "-", *MODEL, stdin=b"FOOL:\n")[1].startswith("FOOL:\n")
    (folder / "prompts.txt").write_text("one\ntwo\n")
    _, out, _ = chat("--prompts", "prompts.txt", "--json", *MODEL)
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["one", "two"]


def test_prompt_outside_the_vocabulary_is_replaced_and_said(chat):
    code, out, err = chat("--prompt", "t\u20ac\x1b", *MODEL)
    assert code == 0
    assert out.startswith(("t..", "t  "))
    assert "'\\x1b\u20ac'" in err.replace("\\\\", "\\")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "hot"], "--temperature: found 'hot', expected 0 or a number from 0.001"),
        (["--temperature", "nan"], "--temperature: found 'nan'"),
        (["--top_p", "2"], "--top_p: found '2', expected a number from 1e-06 to 1"),
        (["--seed", "-1"], "--seed: found '-1', expected a whole number from 0"),
        (["--prompt", "x", "-n", "0"], "-n: found '0', expected a whole number from 1"),
        (["-n", "3"], "-n goes with --prompt"),
        (["--json"], "--json goes with --prompt"),
        (["--prompt", "x", "--user", "KING"], "--user and --character go with a conversation"),
        (["--user", "auto"], "--user: auto is nobody"),
        (["--character", "A:B"], "--character: 'A:B' is no speaker's name"),
        (["--prompts", "none.txt"], "--prompts: none.txt: cannot be read"),
    ],
)
def test_bad_value_is_exit_2_in_one_line(chat, arguments, words):
    code, out, err = chat(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["none"], ["none", "--prompt", "x"]])
def test_no_model_is_exit_3(chat, arguments):
    code, out, err = chat(*arguments)
    assert (code, out) == (3, "")
    assert "none: no run of that name" in err


# --------------------------------------------------------------------------------------------------
# The conversation through a pipe, and on a terminal


def test_lines_of_a_pipe_are_turns(chat):
    code, out, err = chat("--user", "king", "--character", "FOOL", *MODEL, stdin=b"Who?\n/who\n")
    assert code == 0
    assert out.startswith("FOOL:\n")
    assert "You are KING, FOOL answers." in err
    assert "QUEEN" in err


def test_bytes_that_are_no_text_are_replaced(chat):
    code, out, err = chat("--user", "KING", *MODEL, stdin=b"caf\xe9\n")
    assert code == 0
    assert ":\n" in out
    assert "'\ufffd': it has never seen it" in err


def test_the_pair_that_talks_most_is_the_default(chat):
    _, _, err = chat("--user", "FOOL", *MODEL)
    assert "You are FOOL, " in err
    assert "FOOL answers" not in err
    _, _, err = chat(*MODEL)
    assert " answers." in err


def test_closed_pipe_ends_quietly_with_exit_0(folder):
    command = f"'{sys.executable}' '{CHAT}' --prompt 'KING:' -n 300 --max_new_tokens 200"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 1; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert (done.returncode, done.stdout) == (0, "K")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_ctrl_c_ends_a_continuation_with_exit_130(folder):
    command = [sys.executable, str(CHAT), "--prompt", "KING:", "--max_new_tokens", "1000000"]
    child = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.read(20).startswith("KING:")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in err


class TerminalChild:
    """The script on a pseudo-terminal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 100))  # rows, columns
        self.process = subprocess.Popen(
            [sys.executable, str(CHAT), *arguments],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
            env=os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(folder / "state")},
        )
        os.close(slave)
        self.received = b""

    def wait_for(self, words: bytes) -> None:
        """Read until the words come that have not been waited for yet."""
        end = time.monotonic() + 60
        while words not in self.received:
            assert time.monotonic() < end, self.received[-2000:]
            if select.select([self._master], [], [], 1)[0]:
                piece = os.read(self._master, 4096)
                self.received += piece
                if b"\x1b[6n" in piece:  # where is the cursor?
                    os.write(self._master, b"\x1b[1;1R")
        self.received = self.received.partition(words)[2]

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        code = self.process.wait(60)
        os.close(self._master)
        return code


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_terminal_completes_stops_and_leaves(folder):
    """Tab, Ctrl-C in an answer and at the prompt, Ctrl-D; typed lines are kept."""
    child = TerminalChild(
        folder, "--user", "KING", "--character", "QUEEN", "--max_new_tokens", "1000000"
    )
    child.wait_for(b"You are KING, QUEEN answers.")
    child.wait_for(b"KING> ")
    child.type(b"/wi\tfoo\t\r")
    child.wait_for(b"FOOL answers.")
    child.type(b"Who is there?\r")
    child.wait_for(b"FOOL:")
    child.type(b"\x03")
    child.wait_for(b"(stopped)")
    child.type(b"\x03")  # once too often
    child.wait_for(b"KING> ")
    child.type(b"never said\x03")
    child.wait_for(b"KING> ")
    child.type(b"\x04")
    assert child.end() == 0
    kept = (folder / "state" / "chatgot" / "chat_history.jsonl").read_text()
    assert kept.splitlines() == ['"/with FOOL"', '"Who is there?"']
