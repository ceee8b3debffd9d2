"""Days of an exported Slack workspace come out line for line, with names for ids."""

import json

import pytest
from messenger_chats import CHAT, DOCUMENTS, Reading, source_of, truth

from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.slack import SLACK, SLACK_LIST

IDS = {"Anna": "U0000000A", "Björn 🎈": "U0000000B", "مريم": "U0000000C"}
USERS = [
    {"id": "U0000000A", "name": "anna1", "profile": {"display_name": "Anna", "real_name": "A. B."}},
    {"id": "U0000000B", "name": "b", "profile": {"display_name": "", "real_name": "Björn 🎈"}},
    {"id": "U0000000C", "name": "مريم", "profile": None},
    {"id": None},
    "odd",
]


def message(said, **fields) -> dict:
    text = said.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = text.replace("https://example.org/a?b=1", "<https://example.org/a?b=1>")
    return {
        "type": "message",
        "user": IDS[said.name],
        "text": text,
        "ts": f"{said.when.timestamp():.0f}.000200",
        **fields,
    }


@pytest.fixture
def day(tmp_path):
    """Return a function that writes a day of a channel, in a workspace with its people."""
    (tmp_path / "general").mkdir()
    (tmp_path / "users.json").write_text(json.dumps(USERS), encoding="utf-8")

    def day(messages, name="2023-12-30.json"):
        path = tmp_path / "general" / name
        path.write_text(json.dumps(messages, indent=4), encoding="utf-8")
        return path

    return day


ODD = [
    ("system messages", {"subtype": "channel_join"}),
    ("system messages", {"subtype": "channel_topic"}),
    ("messages of bots", {"subtype": "bot_message", "username": "hook"}),
    ("messages of bots", {"bot_id": "B1"}),
    ("deleted messages", {"subtype": "tombstone"}),
    ("media", {"text": "", "files": [{"id": "F1"}]}),
    ("messages without text", {"text": None}),
]


def test_a_day_comes_out_line_for_line(day):
    messages = [*map(message, CHAT), *(message(CHAT[-1], **fields) for _, fields in ODD), 5]
    read = Reading(SLACK, day(messages))
    assert read.lines == [(said.name, said.text) for said in CHAT]
    assert [int(time) for *_, time in read.speeches] == [time for *_, time in truth()]
    assert read.titles == list(DOCUMENTS)
    kinds = [kind for kind, _ in ODD]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert read.findings.left_out == {**counts, "odd messages": 1}
    assert read.certainty > 0.9


def test_ids_and_links_within_text_become_what_is_shown(day):
    text = (
        "<@U0000000A> and <@U0000000X|xi> see <#C1|general>, <http://a.b|the page>, "
        "<mailto:a@b.c>, <!here> <!subteam^S1|@team> &lt;3"
    )
    read = Reading(SLACK, day([message(CHAT[0], text=text)]))
    assert read.lines == [
        ("Anna", "@Anna and @xi see #general, the page, a@b.c, @here @team <3"),
    ]


def test_replies_follow_the_message_that_they_answer(day):
    first, second, third, fourth = (message(said) for said in CHAT[:4])
    third["thread_ts"] = first["thread_ts"] = first["ts"]
    fourth["thread_ts"] = "1.000000"
    read = Reading(SLACK, day([first, second, third, fourth]))
    assert [text for _, text in read.lines] == [CHAT[i].text for i in (0, 2, 1, 3)]


def test_without_users_json_messages_name_their_writers(write):
    profile = {"display_name": "", "real_name": "Anna", "name": "a"}
    messages = [message(CHAT[0], user_profile=profile), message(CHAT[0]), message(CHAT[1])]
    read = Reading(SLACK, write(json.dumps(messages).encode()))
    assert [name for name, _ in read.lines] == ["Anna", "Anna", "U0000000B"]
    assert any("1 people" in remark for remark in read.findings.remarks)


def test_lists_of_people_are_known_and_not_read_as_text(tmp_path):
    path = tmp_path / "users.json"
    path.write_text(json.dumps(USERS), encoding="utf-8")
    read = Reading(SLACK_LIST, path)
    assert read.certainty > 0.9
    assert read.pieces == []


def test_a_truncated_day_is_refused_with_the_place(day):
    path = day([message(said) for said in CHAT])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UnreadableError, match="cut off after"):
        list(SLACK.read(source_of(path), ReadingOptions(), Findings()))


@pytest.mark.parametrize("text", ["[1, 2]", '[{"type": "message"}]', "[12:34] <a> b\n", " "])
@pytest.mark.parametrize("reader", [SLACK, SLACK_LIST], ids=["day", "list"])
def test_other_texts_are_not_taken_for_slack(write, reader, text):
    assert reader.certainty(source_of(write(text.encode()))) < 0.5
