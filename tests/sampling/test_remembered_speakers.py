"""Who speaks in a text is counted once, and again whenever what was kept cannot be used."""

from pathlib import Path

import parts
import pytest

from chatgot.data.token_cache import load_tokens
from chatgot.run import assembly
from chatgot.run.assembly import assemble
from chatgot.sampling.remembered_speakers import remembered_speakers
from chatgot.sampling.speakers import Speaker

SPEAKERS = [Speaker("ÄNNE", 2, 2 / 3, "BOB"), Speaker("BOB", 1, 1 / 3, "ÄNNE")]


def never() -> list[Speaker]:
    raise AssertionError("counted again")


def remember(cache: Path) -> Path:
    """Return the file that remembers SPEAKERS of the first 90 tokens."""
    assert remembered_speakers(cache, 90, lambda: SPEAKERS) == SPEAKERS
    (path,) = cache.parent.iterdir()
    return path


def test_speakers_of_the_same_part_are_not_counted_again(tmp_path):
    remember(tmp_path / "0ab")
    assert remembered_speakers(tmp_path / "0ab", 90, never) == SPEAKERS
    assert remembered_speakers(tmp_path / "0ab", 91, list) == []
    assert remembered_speakers(tmp_path / "0ac", 90, list) == []


@pytest.mark.parametrize("damage", [b"BOC", b"", None])
def test_a_damaged_file_is_counted_and_written_again(damage, tmp_path):
    path = remember(tmp_path / "0ab")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"BOB", damage) if damage is not None else whole[:5])
    assert remembered_speakers(tmp_path / "0ab", 90, lambda: SPEAKERS) == SPEAKERS
    assert path.read_bytes() == whole


def test_without_a_cache_that_can_be_written_they_are_counted_each_time(tmp_path):
    (tmp_path / "file").touch()
    for cache in (None, tmp_path / "file" / "0ab"):
        assert remembered_speakers(cache, 90, lambda: SPEAKERS) == SPEAKERS


def test_a_second_run_on_a_text_counts_no_speakers(tmp_path, monkeypatch):
    text = tmp_path / "t.txt"
    text.write_text("ANN:\nA few words.\n\nBOB:\nAnd some more.\n\n" * 40)
    config = parts.config()
    first = assemble(config, load_tokens(text, tmp_path / "cache"), parts.CPU, None)
    assert {speaker.name for speaker in first.speakers} == {"ANN", "BOB"}
    monkeypatch.setattr(assembly, "count_speakers", lambda *_: never())
    second = assemble(config, load_tokens(text, tmp_path / "cache"), parts.CPU, None)
    assert second.speakers == first.speakers
