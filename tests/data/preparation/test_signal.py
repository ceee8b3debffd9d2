"""Messages of Signal come out line for line, from the programs that export them."""

import json

import pytest
from messenger_chats import CHAT, DOCUMENTS, Reading, source_of, truth

from chatgot.data.preparation.readers.signal_json import SIGNAL_JSON
from chatgot.data.preparation.readers.signal_text import SIGNAL_TEXT


def lines_of(objects) -> bytes:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects).encode()


def ms(said) -> int:
    return int(said.when.timestamp() * 1000)


def envelope(said, **fields) -> dict:
    data = {"timestamp": ms(said), "message": said.text, "groupInfo": {"groupId": "g="}, **fields}
    return {
        "envelope": {
            "source": "+1",
            "sourceName": said.name,
            "sourceDevice": 1,
            "timestamp": ms(said),
            "dataMessage": data,
        },
        "account": "+2",
    }


def test_what_signal_cli_received_comes_out_line_for_line(write):
    receipt = {"envelope": {"sourceDevice": 1, "receiptMessage": {}}, "account": "+2"}
    odd = [receipt, envelope(CHAT[0], reaction={"emoji": "x"}), envelope(CHAT[0], message=None), 5]
    data = lines_of([*map(envelope, CHAT), *odd]) + b'{"envelope": {"torn'
    read = Reading(SIGNAL_JSON, write(data))
    assert read.speeches == truth()
    assert read.titles == list(DOCUMENTS)
    assert read.findings.left_out == {
        "receipts and notices": 2,
        "reactions": 1,
        "messages without text": 1,
        "broken lines": 1,
    }
    assert read.certainty > 0.9


def test_own_messages_and_other_chats_of_signal_cli_are_told_apart(write):
    sent = {
        "envelope": {
            "source": "+2",
            "sourceDevice": 1,
            "syncMessage": {"sentMessage": {"destination": "+9", "timestamp": 1, "message": "hi"}},
        }
    }
    read = Reading(SIGNAL_JSON, write(lines_of([envelope(CHAT[0]), sent])))
    assert read.lines == [("Anna", CHAT[0].text), ("Me", "hi")]
    assert len(read.titles) == 2


def test_data_of_signal_export_comes_out_line_for_line(write):
    rows = [
        {
            "date": f"{said.when:%Y-%m-%d %H:%M:%S}",
            "sender": said.name,
            "body": said.text,
            "quote": "",
            "sticker": "",
            "reactions": [],
            "attachments": [],
        }
        for said in CHAT
    ]
    read = Reading(SIGNAL_JSON, write(lines_of(rows)))
    assert read.speeches == truth()
    assert read.certainty > 0.9


def test_messages_of_sigtop_in_json_come_out_line_for_line(write):
    rows = [
        {
            "id": "x",
            "conversationId": "c",
            "type": "incoming",
            "source": said.name,
            "body": said.text,
            "sent_at": ms(said),
        }
        for said in CHAT
    ]
    rows.append({"conversationId": "c", "type": "group-v2-change"})
    read = Reading(SIGNAL_JSON, write(json.dumps(rows, indent=1).encode()))
    assert read.speeches == truth()
    assert read.findings.left_out == {"system messages": 1}
    assert read.certainty > 0.9


def test_an_export_of_signal_itself_comes_out_line_for_line(write):
    names = list(dict.fromkeys(said.name for said in CHAT))
    people = [
        {"recipient": {"id": str(i), "contact": {"profileGivenName": name}}}
        for i, name in enumerate(names)
    ]
    items = [
        {
            "chatItem": {
                "chatId": "1",
                "authorId": str(names.index(said.name)),
                "dateSent": str(ms(said)),
                "standardMessage": {"text": {"body": said.text}},
            }
        }
        for said in CHAT
    ]
    compact = "".join(
        json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n"
        for item in [{"version": "1", "backupTimeMs": "1"}, {"account": {}}, *people, *items]
    )
    read = Reading(SIGNAL_JSON, write(compact.encode()))
    assert read.speeches == truth()
    assert read.certainty > 0.9


def short(said) -> str:
    return f"{said.when:%Y-%m-%d %H:%M} {said.name}: {said.text}\n"


def markdown(said) -> str:
    return f"[{said.when:%Y-%m-%d, %H:%M}] {said.name}: {said.text}  \n"


def backup(said) -> str:
    return f"[{said.when:%b %d, %Y %H:%M:%S}] <{said.name}> {said.text}\n"


def record(said) -> str:
    sent = f"{said.when:%a, %d %b %Y %H:%M:%S} +0100"
    return f"From: {said.name} (+1)\nType: incoming\nSent: {sent}\n\n{said.text}\n\n"


TEXTS = {
    "signal-export": (markdown, "", True),
    "sigtop short": (short, "", True),
    "sigtop": (record, "Conversation: Friends (group)\n\n", False),
    "signalbackup-tools": (backup, "", False),
}


@pytest.mark.parametrize("program", TEXTS)
def test_text_of_each_program_comes_out_line_for_line(write, program):
    line, start, to_minutes = TEXTS[program]
    read = Reading(SIGNAL_TEXT, write((start + "".join(map(line, CHAT))).encode()))
    assert read.speeches == truth(to_minutes)
    assert read.titles == list(DOCUMENTS)
    assert read.certainty > 0.5
    assert not +read.findings.left_out


def test_quotes_reactions_and_media_of_text_are_left_out(write):
    head = f"[{CHAT[0].when:%Y-%m-%d, %H:%M}] Anna: "
    text = f"{head}\n> old\n\nnew\n(- Ben: 👍 -)\n{head}![a](./media/a.jpg)  \n{head}ok\n"
    read = Reading(SIGNAL_TEXT, write(text.encode()))
    assert read.lines == [("Anna", "new"), ("Anna", "ok")]
    assert read.findings.left_out == {"quoted lines": 1, "reactions": 1, "media": 1}


OTHERS = {
    "prose": "It was a dark night.\n" * 20,
    "log": "[2023-12-31 22:15:03] production.ERROR: it failed\n" * 20,
    "json log": '{"date": "2023", "level": "info", "message": "x"}\n' * 9,
    "chat rows": '{"messages": [{"role": "user", "content": "hi"}]}\n' * 9,
    "array": '[{"type": "incoming"}]',
    "empty": " ",
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("reader", [SIGNAL_JSON, SIGNAL_TEXT], ids=["json", "text"])
def test_other_texts_are_not_taken_for_signal(write, reader, kind):
    assert reader.certainty(source_of(write(OTHERS[kind].encode()))) < 0.5
