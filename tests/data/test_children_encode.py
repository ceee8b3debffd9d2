"""A large text becomes subwords in child processes: the ids are those of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from child_environment import child_environment

from chatgot.data import subword_children, subwords, token_cache
from chatgot.data.bpe import train_subwords
from chatgot.data.token_cache import load_tokens

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "programs" / "encode_in_children.py"
LINES = "".join(f"line {n} of the KING, né{'e' * (n % 7)} 🎭\n" for n in range(2000))
TEXT = f"{LINES}<|endoftext|>\n{LINES[::-1]}"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(token_cache, "SUBWORD_CHUNK", 5000)
    monkeypatch.setattr(subwords, "LONGEST_PIECE", 1000)


@pytest.fixture
def children(monkeypatch, small_batches):
    """Let two children encode even a small text; return those that were started."""
    started: list[subword_children._Child] = []

    class Noted(subword_children._Child):
        def __init__(self, about):
            super().__init__(about)
            started.append(self)

    monkeypatch.setattr(subword_children, "LARGE", 0)
    monkeypatch.setattr(subword_children, "usable_cores", lambda: 2)
    monkeypatch.setattr(subword_children, "cpu_quota", lambda: None)
    monkeypatch.setattr(subword_children, "_Child", Noted)
    return started


@pytest.fixture(scope="module")
def vocabulary():
    return train_subwords([LINES], 300)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # dead, but nobody has asked for its exit code yet


def are_gone(pids: list[int]) -> bool:
    """Return whether these processes end within a while."""
    end = time.monotonic() + 5
    while any(map(is_running, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_ids_of_children_are_those_of_one_process(text, tmp_path, vocabulary, children):
    tokens = load_tokens(text, tmp_path / "cache", vocabulary)
    assert len(children) == 2
    assert all(child._process.returncode is not None for child in children)
    assert tokens.ids.tolist() == vocabulary.encode(TEXT)


def test_batches_of_a_dead_child_are_encoded_here(
    text, tmp_path, vocabulary, children, monkeypatch, caplog
):
    """One child is killed after its first batch."""
    encode = subword_children._Child.encode

    def dying(self, pieces):
        ids = encode(self, pieces)
        if self is children[0]:
            self._process.kill()
        return ids

    monkeypatch.setattr(subword_children._Child, "encode", dying)
    tokens = load_tokens(text, tmp_path / "cache", vocabulary)
    assert tokens.ids.tolist() == vocabulary.encode(TEXT)
    assert caplog.text.count("has ended: going on without it") == 1


def test_python_that_cannot_be_started_is_done_without(
    text, tmp_path, vocabulary, children, monkeypatch, caplog
):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    tokens = load_tokens(text, tmp_path / "cache", vocabulary)
    assert tokens.ids.tolist() == vocabulary.encode(TEXT)
    assert "cannot be started" in caplog.text


@pytest.mark.parametrize(
    ("size", "cores", "quota", "limited", "expected"),
    [
        (1 << 30, 2, None, False, 2),
        (1 << 30, 64, None, False, 8),
        (1 << 30, 64, 3.5, False, 3),
        (1 << 30, 64, 1.5, False, 0),
        (1 << 30, 1, None, False, 0),
        (1 << 30, 2, None, True, 0),
        ((1 << 25) - 1, 2, None, False, 0),
    ],
)
def test_children_are_as_many_as_cores_for_large_texts(
    monkeypatch, size, cores, quota, limited, expected
):
    monkeypatch.setattr(subword_children, "usable_cores", lambda: cores)
    monkeypatch.setattr(subword_children, "cpu_quota", lambda: quota)
    monkeypatch.setattr(subword_children, "address_space_is_limited", lambda: limited)
    assert subword_children._number_of_children(size) == expected


def test_an_error_while_encoding_leaves_no_child(text, tmp_path, vocabulary, children, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(subword_children._Team, "_ids", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_tokens(text, tmp_path / "cache", vocabulary)
    assert len(children) == 2
    assert all(child._process.returncode is not None for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_kill_of_the_parent_leaves_no_child_and_the_next_start_goes_on(
    text, tmp_path, vocabulary, small_batches, monkeypatch
):
    """A module in the folder of the user that is named like Python's own is not imported."""
    (tmp_path / "pickle.py").write_text("raise SystemExit")
    (tmp_path / "tokenizer.json").write_text(vocabulary.json, encoding="utf-8")
    command = [sys.executable, "-P", str(PROGRAM), str(text), "tokenizer.json", "cache"]
    environment = child_environment(ROOT)
    # it encodes, waits to be killed after some batches, and says what its children are
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        os.kill(parent.pid, signal.SIGKILL)
    assert are_gone(pids)
    cache = tmp_path / "cache"
    (note,) = cache.glob(".*.note")
    there = json.loads(note.read_text())[1]
    whole = np.array(vocabulary.encode(TEXT))
    encoded = 0
    encode = vocabulary.encode_pieces

    def counted(pieces):
        nonlocal encoded
        encoded += 1
        return encode(pieces)

    monkeypatch.setattr(vocabulary, "encode_pieces", counted)
    assert np.array_equal(load_tokens(text, cache, vocabulary).ids, whole)
    # each batch is a chunk, and one is the rest
    assert encoded == -(-len(TEXT.encode()) // 5000) + 1 - there
    assert there > 5
