"""Messenger, Instagram, Google Chat and Zoom come out line for line; no two readers quarrel."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messenger_chats import CHAT, DOCUMENTS, Reading, source_of, truth

from chatgot.data.preparation.known_readers import READERS
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.google_chat import GOOGLE_CHAT
from chatgot.data.preparation.readers.meta_messages import META
from chatgot.data.preparation.readers.zoom_chat import ZOOM_CHAT


def torn(text: str) -> str:
    """Return a text as Meta writes it: each byte of its UTF-8 as a character."""
    return text.encode().decode("latin-1")


def meta_message(said, **fields) -> dict:
    return {
        "sender_name": torn(said.name),
        "timestamp_ms": int(said.when.timestamp() * 1000),
        "content": torn(said.text),
        **fields,
    }


def test_a_chat_of_messenger_is_mended_and_put_in_order(write):
    odd = [
        ("media", meta_message(CHAT[0], content=None, photos=[{}])),
        ("deleted messages", meta_message(CHAT[0], is_unsent=True)),
        ("calls", meta_message(CHAT[0], call_duration=5)),
        ("reactions", meta_message(CHAT[0], content=torn("Reacted ❤ to your message "))),
        ("odd messages", None),
    ]
    chat = {
        "participants": [{"name": "x"}],
        "messages": [*map(meta_message, reversed(CHAT)), *(message for _, message in odd)],
        "title": "x",
    }
    read = Reading(META, write(json.dumps(chat, indent=2).encode()))
    assert read.speeches == truth()
    assert read.titles == list(DOCUMENTS)
    assert read.findings.left_out == dict.fromkeys((kind for kind, _ in odd), 1)
    assert read.certainty > 0.9


def test_messages_of_one_moment_keep_their_order(write):
    newest_first = [meta_message(CHAT[0], content=text) for text in ("c", "b", "a")]
    chat = {"participants": [], "messages": newest_first}
    read = Reading(META, write(json.dumps(chat).encode()))
    assert [text for _, text in read.lines] == ["a", "b", "c"]


def google_message(said) -> dict:
    hour = (said.when.hour - 1) % 12 + 1
    return {
        "creator": {"name": said.name, "email": "a@b.c", "user_type": "Human"},
        "created_date": f"{said.when:%A, %B %d, %Y at} {hour}:{said.when:%M:%S %p} UTC",
        "text": said.text,
        "topic_id": "t",
    }


def test_a_conversation_of_google_chat_comes_out_line_for_line(write):
    bot = {"creator": {"name": "b", "user_type": "Bot"}, "text": "x"}
    chat = {"messages": [*map(google_message, CHAT), bot]}
    read = Reading(GOOGLE_CHAT, write(json.dumps(chat, indent=2).encode()))
    assert read.speeches == truth()
    assert read.findings.left_out == {"messages of bots": 1}
    assert read.certainty > 0.9


@pytest.mark.parametrize("form", ["{} From {} to Everyone:\n\t{}\n", "{}\t From  {} : {}\n"])
def test_the_chat_of_a_meeting_comes_out_line_for_line(write, form):
    text = "".join(form.format(f"{s.when:%H:%M:%S}", s.name, s.text) for s in CHAT)
    reacted = '10:00:00 From Eve to Everyone:\n\tReacted to "hi" with x\n'
    read = Reading(ZOOM_CHAT, write((text + reacted).encode()))
    assert read.lines == [(said.name, said.text) for said in CHAT]
    assert read.findings.left_out == {"reactions": 1}
    assert read.certainty > 0.9


MESSENGERS = {
    reader.kind: reader
    for reader in READERS
    if reader.read.__module__.rpartition(".")[2]
    in (
        *("discord", "google_chat", "irc", "mail", "meta_messages", "signal_json", "signal_text"),
        *("slack", "telegram", "telegram_html", "whatsapp", "zoom_chat"),
    )
}


WHOLE = {
    "transcript": "ANNA:\nHello there\n\nBEN:\nHi: you\n\n" * 20,
    "prose": "It was a dark and stormy night; the rain fell in torrents.\n\n" * 20,
    "script": "#!/bin/sh\nset -e\nfor f in *.txt; do echo $f: done; done\n" * 9,
    "log": "2023-12-31 22:15:03,123 - root - INFO: started: now\n" * 20,
    "web log": '127.0.0.1 - - [31/Dec/2023:22:15:03 +0000] "GET / HTTP/1.1" 200 5\n' * 20,
    "json": json.dumps({"a": [1, 2, {"messages": []}], "name": "x", "type": "y"}),
    "chat rows": '{"messages": [{"role": "user", "content": "hi"}]}\n' * 9,
    "table": "speaker,text\nAnna,Hello\nBen,Hi\n" * 9,
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nAnna: Hello\n\n" * 9,
    "vtt": "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Anna>Hello\n\n" * 9,
    "page": "<html><body><p>Hello</p></body></html>",
    "fountain": "INT. HOUSE - DAY\n\nANNA\nHello: you\n\n" * 9,
    "package": json.dumps([{"id": "a", "name": "b", "ts": "x", "type": "message"}]),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_no_reader_of_messengers_takes_other_texts(write, kind):
    source = source_of(write(WHOLE[kind].encode()))
    sure = {name: reader.certainty(source) for name, reader in MESSENGERS.items()}
    assert max(sure.values()) < 0.5, sure


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=120), st.sampled_from(sorted(MESSENGERS)))
def test_no_bytes_make_a_reader_fail_otherwise(tmp_path_factory, data, kind):
    path = tmp_path_factory.getbasetemp() / "odd_bytes"
    path.write_bytes(data or b" ")
    source = source_of(path)
    reader = MESSENGERS[kind]
    assert 0 <= reader.certainty(source) <= 1
    with suppress(UnreadableError):
        for _ in reader.read(source, ReadingOptions(), Findings()):
            pass
