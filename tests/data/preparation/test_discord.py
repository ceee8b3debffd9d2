"""Channels from DiscordChatExporter come out line for line, from JSON and from text."""

import json

import pytest
from messenger_chats import CHAT, DOCUMENTS, Reading, Said, source_of, truth

from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.discord import DISCORD_JSON, DISCORD_TEXT


def message(said: Said, **fields) -> dict:
    return {
        "id": "9",
        "type": "Default",
        "timestamp": f"{said.when:%Y-%m-%dT%H:%M:%S}.123+02:00",
        "content": said.text,
        "author": {"id": "1", "name": "login", "nickname": said.name, "isBot": False},
        "attachments": [],
        "embeds": [],
        **fields,
    }


def channel(messages) -> dict:
    return {
        "guild": {"id": "1", "name": "Guild: one"},
        "channel": {"id": "2", "type": "GuildTextChat", "name": "general", "topic": None},
        "dateRange": {"after": None, "before": None},
        "messages": messages,
        "messageCount": len(messages),
    }


ODD = [
    ("system messages", message(CHAT[0], type="GuildMemberJoin")),
    ("system messages", message(CHAT[0], type="ChannelPinnedMessage")),
    ("messages of bots", message(CHAT[0], author={"name": "bot", "isBot": True})),
    ("media", message(CHAT[0], content="", attachments=[{"url": "x"}])),
    ("stickers", message(CHAT[0], content="", stickers=[{"name": "x"}])),
    ("messages without text", message(CHAT[0], content=None)),
    ("odd messages", "text"),
]


def test_a_channel_in_json_comes_out_line_for_line(write):
    messages = [*map(message, CHAT), *(odd for _, odd in ODD)]
    data = json.dumps(channel(messages), ensure_ascii=False, indent=2)
    read = Reading(DISCORD_JSON, write(data.encode()))
    assert read.lines == [(said.name, said.text) for said in CHAT]
    assert [int(time) for *_, time in read.speeches] == [int(time) for *_, time in truth()]
    assert read.titles == list(DOCUMENTS)
    kinds = [kind for kind, _ in ODD]
    assert read.findings.left_out == {kind: kinds.count(kind) for kind in kinds}
    assert read.certainty > 0.9


def test_deleted_users_and_replies_are_kept(write):
    messages = [
        message(CHAT[0], type="Reply", reference={"messageId": "9"}),
        message(CHAT[0], author=None, timestamp=None),
        message(CHAT[0], author={"name": "login", "nickname": None}),
    ]
    read = Reading(DISCORD_JSON, write(json.dumps(channel(messages)).encode()))
    assert [name for name, _ in read.lines] == ["Anna", "Deleted User", "login"]


def test_a_truncated_channel_is_refused_with_the_place(write):
    source = source_of(write(json.dumps(channel([message(CHAT[0])])).encode()[:-60]))
    with pytest.raises(UnreadableError, match="cut off after"):
        list(DISCORD_JSON.read(source, ReadingOptions(), Findings()))


# As text: the date as the machine's locale writes it
DATES = {
    "en-US": lambda t: f"{t.month}/{t.day}/{t.year} {(t.hour - 1) % 12 + 1}:{t:%M %p}",
    "en-GB": lambda t: f"{t:%d/%m/%Y %H:%M}",
    "de": lambda t: f"{t:%d.%m.%Y %H:%M}",
    "old": lambda t: f"{t:%d-}{t:%b}{t:-%y %I:%M %p}",
    "nl": lambda t: f"{t:%d-%m-%Y %H:%M}",
    "sv": lambda t: f"{t:%Y-%m-%d %H:%M}",
    "ja": lambda t: f"{t:%Y/%m/%d %H:%M}",
    "fi": lambda t: f"{t.day}.{t.month}.{t.year} {t.hour}.{t:%M}",
}
RULE = "=" * 62


def text_channel(date, extra: str = "") -> str:
    lines = "".join(f"[{date(said.when)}] {said.name}\n{said.text}\n\n" for said in CHAT)
    return (
        f"{RULE}\nGuild: One\nChannel: Talk / general\nTopic: none\n{RULE}\n\n"
        f"{lines}{extra}{RULE}\nExported {len(CHAT)} message(s)\n{RULE}\n"
    )


@pytest.mark.parametrize("locale", DATES)
def test_a_channel_as_text_comes_out_line_for_line(write, locale):
    read = Reading(DISCORD_TEXT, write(text_channel(DATES[locale]).encode()))
    assert read.speeches == truth(to_minutes=True)
    assert read.titles == list(DOCUMENTS)
    assert read.certainty > 0.9
    assert not read.findings.left_out


def test_attachments_and_reactions_of_text_are_left_out(write):
    date = DATES["sv"](CHAT[-1].when)
    extra = (
        f"[{date}] Eve#0042 (pinned)\nlook\n\n{{Attachments}}\nhttps://x/y.png\n\n"
        f"{{Reactions}}\n👍 (2)\n\n[{date}] Eve#0042\n{{Embed}}\nTitle\nText\n\n"
    )
    read = Reading(DISCORD_TEXT, write(text_channel(DATES["sv"], extra).encode()))
    assert read.lines[-1] == ("Eve", "look")
    assert len(read.lines) == len(CHAT) + 1
    assert read.findings.left_out == {"media": 2, "reactions": 1}


@pytest.mark.parametrize(
    "text",
    ["prose\n" * 9, '{"guild": "x", "messages": []}', f"{RULE}\nA heading\n{RULE}\n", " "],
)
@pytest.mark.parametrize("reader", [DISCORD_JSON, DISCORD_TEXT], ids=["json", "text"])
def test_other_texts_are_not_taken_for_discord(write, reader, text):
    assert reader.certainty(source_of(write(text.encode()))) < 0.5
