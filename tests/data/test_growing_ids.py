"""A text that was being encoded when the process was killed is encoded from there on."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from chatgot.data import growing_ids, token_cache
from chatgot.data.bpe import train_subwords
from chatgot.data.growing_ids import growing_ids as growing
from chatgot.data.token_cache import load_tokens

LINES = "".join(f"line {n} of the KING, né{'e' * (n % 7)}\n" for n in range(4000))
TEXT = LINES + "<|endoftext|>\n" + LINES[::-1]


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up after it."""


def batches(n: int) -> list[np.ndarray]:
    return [np.arange(k, k + 100, dtype=np.uint16) for k in range(n)]


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Note every 300 bytes, and read texts in small chunks."""
    monkeypatch.setattr(growing_ids, "NOTE_BYTES", 300)
    monkeypatch.setattr(token_cache, "SUBWORD_CHUNK", 20_000)
    chunks = token_cache.text_chunks
    monkeypatch.setattr(
        token_cache,
        "text_chunks",
        lambda path, encoding, chunk_bytes=0, advance=None, count_marks=int: chunks(
            path, encoding, 20_000, advance, count_marks
        ),
    )


def killed_after(path: Path, n: int, identity: str = "a") -> None:
    """Write n batches, and die."""
    file = growing(path, identity)
    file.__enter__().write(batches(n))
    file.gen.gi_frame.f_locals["lock"].release()  # as the system does


def test_writing_goes_on_after_the_last_note(tmp_path):
    path = tmp_path / "ids"
    killed_after(path, 5)
    with growing(path, "a") as ids:
        assert ids.batches == 4  # a note every two
        ids.write(batches(7)[4:])
        assert (ids.batches, ids.bytes) == (7, 1400)
    assert path.read_bytes() == b"".join(batch.tobytes() for batch in batches(7))
    assert list(tmp_path.iterdir()) == [path]


def test_other_ids_are_not_taken_over(tmp_path):
    path = tmp_path / "ids"
    killed_after(path, 5)
    with growing(path, "b") as ids:
        assert ids.batches == 0


@pytest.mark.parametrize("spoil", ["part", "note", "short"])
def test_what_does_not_fit_its_note_is_written_again(tmp_path, spoil):
    path = tmp_path / "ids"
    killed_after(path, 5)
    part = tmp_path / ".ids.part"
    if spoil == "note":
        (tmp_path / ".ids.note").write_text("[]")
    else:
        content = part.read_bytes()
        part.write_bytes(content[:100] if spoil == "short" else b"x" + content[1:])
    with growing(path, "a") as ids:
        assert ids.batches == 0
        ids.write(batches(2))
    assert path.stat().st_size == 400


def test_two_processes_do_not_write_into_one_file(tmp_path):
    path = tmp_path / "ids"
    with FileLock(tmp_path / ".ids.lock"), growing(path, "a") as ids:
        ids.write(batches(5))
        assert not (tmp_path / ".ids.part").exists()
    assert path.stat().st_size == 1000


def write_and_die(path: Path) -> None:
    with growing(path, "a") as ids:
        ids.write(batches(1))
        raise Killed


def test_an_error_before_the_first_note_leaves_nothing(tmp_path):
    path = tmp_path / "ids"
    with pytest.raises(Killed):
        write_and_die(path)
    assert not list(tmp_path.glob("*ids.part"))


def encode_or_die(path: Path, cache: Path, vocabulary, monkeypatch, after: int) -> int:
    """Encode a text; die after some batches. Return how many were encoded."""
    made = 0
    write = growing_ids.GrowingIds.write

    def counted(self, arrays):
        nonlocal made

        def dying():
            nonlocal made
            for array in arrays:
                if made == after:
                    raise Killed
                made += 1
                yield array

        write(self, dying())

    with monkeypatch.context() as patch:
        patch.setattr(growing_ids.GrowingIds, "write", counted)
        with suppress(Killed):
            load_tokens(path, cache, vocabulary)
    return made


@pytest.mark.parametrize("kind", ["characters", "subwords"])
def test_a_killed_encoding_goes_on_and_ends_in_the_same_ids(tmp_path, monkeypatch, kind):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    vocabulary = train_subwords([LINES], 300) if kind == "subwords" else None
    whole = load_tokens(path, tmp_path / "whole", vocabulary)
    total = encode_or_die(path, tmp_path / "all", vocabulary, monkeypatch, 10**6)
    cache = tmp_path / "cache"
    first = encode_or_die(path, cache, vocabulary, monkeypatch, 8)
    assert first == 8
    (note,) = cache.glob(".*.note")
    there = json.loads(note.read_text())[1]
    assert there >= 6
    rest = encode_or_die(path, cache, vocabulary, monkeypatch, 10**6)
    assert rest == total - there
    tokens = load_tokens(path, cache, vocabulary)
    assert np.array_equal(tokens.ids, whole.ids)
    assert tokens.text_sha256 == whole.text_sha256
    assert not list(cache.glob(".*.part"))


def test_a_text_that_changed_since_the_kill_is_encoded_anew(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    cache = tmp_path / "cache"
    encode_or_die(path, cache, None, monkeypatch, 8)
    path.write_text(TEXT.replace("KING", "FOOL"), encoding="utf-8")
    tokens = load_tokens(path, cache)
    assert tokens.vocabulary.decode(tokens.ids[:16].tolist()) == "line 0 of the FO"
