"""A conversation is written as text or JSON, and read again."""

import json

import pytest

from chatgot.chat.conversation import Turn
from chatgot.chat.transcript import Settings, Transcript, read_transcript, write_transcript
from chatgot.errors import ConfigError

SETTINGS = Settings("HORATIO", "HAMLET", ["HAMLET", "GHOST"], 7, 0.5)


def transcript() -> Transcript:
    turns = [Turn("HORATIO", "Who's there?\nSpeak!", typed=True), Turn("HAMLET", "I.", typed=False)]
    return Transcript("SCENE I.", turns, SETTINGS)


def summary(read: Transcript) -> tuple:
    return read.opening, [(turn.name, turn.text, turn.typed) for turn in read.turns]


def test_text_is_what_the_model_reads(tmp_path):
    content = write_transcript(tmp_path / "a.txt", transcript())
    assert content == b"SCENE I.\n\nHORATIO:\nWho's there?\nSpeak!\n\nHAMLET:\nI.\n"


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.JSON"])
def test_what_was_written_is_read_again(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(write_transcript(path, transcript()))
    read = read_transcript(path, "HORATIO")
    assert summary(read) == summary(transcript())
    assert read.settings == (None if name == "a.txt" else SETTINGS)


def test_text_of_windows_is_read_too(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfHAMLET:\r\nI.\r\n\r\nGHOST:\r\nMark me.\r\n")
    assert summary(read_transcript(path, ""))[1] == [
        ("HAMLET", "I.", False),
        ("GHOST", "Mark me.", False),
    ]


def test_line_with_a_colon_inside_a_speech_begins_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("HAMLET:\nNow hear:\nit.\n")
    assert summary(read_transcript(path, ""))[1] == [("HAMLET", "Now hear:\nit.", False)]


def changed(**fields: object) -> str:
    whole = {
        "user": "A",
        "character": "B",
        "room": None,
        "seed": 1,
        "temperature": 1,
        "opening": "",
    }
    return json.dumps({**whole, "turns": [], **fields})


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "{}",
        "[" * 100_000,
        changed(turns=[{"name": 1, "text": "x", "typed": True}]),
        changed(turns=[{"name": "A\x1b", "text": "x", "typed": True}]),
        changed(turns=[{"name": "A", "text": "x", "typed": "yes"}]),
        changed(user="A\nB"),
        changed(room=[1]),
        changed(seed=-1),
        changed(temperature="hot"),
        changed(opening=None),
    ],
)
def test_json_that_save_has_not_written_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="not a conversation that /save has written"):
        read_transcript(path, "A")


def test_file_that_is_missing_or_not_in_utf_8_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_transcript(tmp_path / "none.txt", "")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_transcript(tmp_path / "a.txt", "")
