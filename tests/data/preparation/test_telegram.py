"""Exports of Telegram come out line for line, from JSON and from pages."""

import json
from contextlib import suppress
from html import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messenger_chats import CHAT, DOCUMENTS, Reading, source_of, truth

from chatgot.data.preparation.pieces import Speech
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.telegram import TELEGRAM_JSON
from chatgot.data.preparation.readers.telegram_html import TELEGRAM_HTML


def parts_of(text: str):
    """Return a text as Telegram writes it: in parts where a link is in it."""
    before, scheme, link = text.partition("https://")
    return [before, {"type": "link", "text": scheme + link}, ""] if scheme else text


def message(said, **fields) -> dict:
    return {
        "id": 1,
        "type": "message",
        "date": f"{said.when:%Y-%m-%dT%H:%M:%S}",
        "date_unixtime": str(int(said.when.timestamp())),
        "from": said.name,
        "from_id": "user1",
        "text": parts_of(said.text),
        **fields,
    }


def chat_of(messages, name="Friends") -> dict:
    return {"name": name, "type": "private_group", "id": 5, "messages": messages}


ODD = [
    ("system messages", {"type": "service", "action": "join_group_by_link", "text": ""}),
    ("stickers", message(CHAT[0], media_type="sticker", sticker_emoji="😀", text="")),
    ("media", message(CHAT[0], photo="photos/1.jpg", text="")),
    ("media", message(CHAT[0], media_type="voice_message", text=[])),
    ("polls", message(CHAT[0], poll={"question": "?"}, text="")),
    ("forwarded messages", message(CHAT[0], forwarded_from="News")),
    ("odd messages", None),
    ("odd messages", 7),
    ("messages without text", message(CHAT[0], text=None)),
    ("messages without text", message(CHAT[0], text={"a": 1})),
]


def write_json(write, value, indent=1):
    return write(json.dumps(value, ensure_ascii=False, indent=indent).encode())


@pytest.mark.parametrize("indent", [None, 1])
def test_a_chat_in_json_comes_out_line_for_line(write, indent):
    messages = [*map(message, CHAT), *(odd for _, odd in ODD)]
    read = Reading(TELEGRAM_JSON, write_json(write, chat_of(messages), indent))
    assert read.speeches == truth()
    assert read.titles == list(DOCUMENTS)
    kinds = [kind for kind, _ in ODD]
    assert read.findings.left_out == {kind: kinds.count(kind) for kind in kinds}
    assert read.certainty > 0.9


def test_each_chat_of_a_full_export_begins_a_document(write):
    chats = [chat_of([message(CHAT[0])], "One"), chat_of([message(CHAT[1])], "Two")]
    export = {
        "about": "Here is the data you requested.",
        "personal_information": {"first_name": 'A "quoted" \\ one', "deep": [[{"messages": []}]]},
        "chats": {"about": "", "list": [*chats, 5, {"messages": None}]},
        "left_chats": {"list": [chat_of([message(CHAT[2])], "Three")]},
        "more": [1, 2.5, "text", None, True],
    }
    read = Reading(TELEGRAM_JSON, write_json(write, export))
    assert read.speeches == truth()[:3]
    assert read.titles == [f"{name}, 2023-12-30" for name in ("One", "Two", "Three")]


def test_deleted_accounts_missing_fields_and_wild_dates_are_borne(write):
    said = CHAT[0]
    messages = [
        message(said, **{"from": None, "from_id": "user77"}),
        {"type": "message", "text": "no more fields"},
        message(said, date="0000-13-99", text="wild"),
        message(said, date=5, text="\ud800 torn", **{"from": "A: B\n"}),
    ]
    path = write(json.dumps(chat_of(messages)).encode())
    assert Reading(TELEGRAM_JSON, path).lines == [
        ("Deleted Account user77", said.text),
        ("Deleted Account", "no more fields"),
        ("Anna", "wild"),
        ("A B", "\ufffd torn"),
    ]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:-300], "cut off"),
        (lambda data: data[:900], "cut off"),
        (lambda data: data.replace(b'"messages":', b'"messages"'), "expected :"),
        (lambda data: data.replace(b'"id": 1,', b'"id": 1', 1), "odd JSON at character"),
        (lambda data: data.replace(b'"id": 1', b'"id": ' + b"[" * 99999, 1), "odd JSON"),
        (lambda data: data.replace(b'"id": 1', b'"id": ' + b"1" * 9999, 1), "odd JSON"),
    ],
)
def test_damaged_json_is_refused_with_the_place(write, spoil, reason):
    data = json.dumps(chat_of([*map(message, CHAT)])).encode()
    source = source_of(write(spoil(data)))
    with pytest.raises(UnreadableError, match=reason):
        list(TELEGRAM_JSON.read(source, ReadingOptions(), Findings()))


def test_what_was_read_before_the_damage_has_been_given(write):
    data = json.dumps(chat_of([*map(message, CHAT)])).encode()
    pieces = TELEGRAM_JSON.read(source_of(write(data[:-30])), ReadingOptions(), Findings())
    given = []
    with pytest.raises(UnreadableError, match="cut off"):
        given.extend(pieces)
    assert sum(isinstance(piece, Speech) for piece in given) == len(CHAT) - 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_odd_encodings_change_nothing(write, encoding):
    text = json.dumps(chat_of([*map(message, CHAT)]), ensure_ascii=False, indent=1)
    read = Reading(TELEGRAM_JSON, write(text.replace("\n", "\r\n").encode(encoding)))
    assert read.speeches == truth()


# Pages


def page(messages: str) -> str:
    return (
        '<!DOCTYPE html>\n<html>\n <head>\n  <meta charset="utf-8"/>\n </head>\n <body>\n'
        '  <div class="page_wrap">\n   <div class="page_body chat_page">\n'
        f'    <div class="history">\n{messages}\n    </div>\n   </div>\n  </div>\n </body>\n</html>'
    )


def html_message(said, joined=False, inside="") -> str:
    text = escape(said.text, quote=False).replace("\n", "<br>")
    text = text.replace("https://example.org/a?b=1", '<a href="x">https://example.org/a?b=1</a>')
    name = "" if joined else f'<div class="from_name">\n{escape(said.name)} \n       </div>'
    return f"""
     <div class="message default clearfix{" joined" if joined else ""}" id="message1">
      <div class="body">
       <div class="pull_right date details" title="{said.when:%d.%m.%Y %H:%M:%S} UTC+01:00">
9:05
       </div>
       {name}
       {inside}
       <div class="text">
{text}
       </div>
      </div>
     </div>"""


SERVICE = '<div class="message service" id="message-1"><div class="body details">30 May</div></div>'
PHOTO = (
    '<div class="message default clearfix"><div class="body"><div class="from_name">Eve</div>'
    '<div class="media_wrap clearfix"><div class="media"><div class="body">Photo</div></div></div>'
    "</div></div>"
)
FORWARD = (
    '<div class="message default clearfix"><div class="body"><div class="from_name">Eve</div>'
    '<div class="forwarded body"><div class="from_name">News</div><div class="text">old</div></div>'
    "</div></div>"
)


def test_a_page_comes_out_line_for_line(write):
    reply = '<div class="reply_to details">In reply to <a href="#m">this message</a></div>'
    messages = SERVICE + "".join(html_message(said, inside=reply) for said in CHAT)
    messages = messages.replace("Good night", "Good<!-- bad --> night")
    read = Reading(TELEGRAM_HTML, write(page(messages + PHOTO + FORWARD).encode()))
    assert read.speeches == truth()
    assert read.titles == list(DOCUMENTS)
    left_out = {"system messages": 1, "media": 1, "forwarded messages": 1}
    assert read.findings.left_out == left_out
    assert read.certainty > 0.9


def test_joined_messages_are_by_whoever_spoke_before_on_any_page(tmp_path):
    (tmp_path / "messages.html").write_text(page(html_message(CHAT[1])), encoding="utf-8")
    second = tmp_path / "messages2.html"
    joined = html_message(CHAT[0], joined=True)
    second.write_text(page(joined + html_message(CHAT[2]) + joined), encoding="utf-8")
    names = [name for name, _ in Reading(TELEGRAM_HTML, second).lines]
    assert names == ["Björn 🎈", "Anna", "Anna"]


OTHERS = {
    "prose": "It was a dark night.\n" * 20,
    "html": "<html><body><div class='message'>Hello</div></body></html>",
    "chat rows": '{"messages": [{"role": "user", "content": "hi"}]}',
    "json": '{"type": "personal", "data": [1, 2]}',
    "source": "def f():\n    return {'messages': []}\n",
    "whatsapp": "31.12.23, 22:15 - Anna: hi\n" * 9,
    "empty": " ",
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("reader", [TELEGRAM_JSON, TELEGRAM_HTML], ids=["json", "html"])
def test_other_texts_are_not_taken_for_telegram(write, reader, kind):
    assert reader.certainty(source_of(write(OTHERS[kind].encode()))) < 0.5


VALUE = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "text", "from", "date", "type", "chats", "list", "name"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(VALUE, st.integers(0, 400), st.booleans())
def test_no_json_makes_the_reader_fail_otherwise(tmp_path_factory, value, length, is_message):
    path = tmp_path_factory.getbasetemp() / "odd_telegram.json"
    wrapped = {"messages": [{"type": "message", "text": value, "from": value}]}
    data = json.dumps(wrapped if is_message else value).encode()
    path.write_bytes(data[:length] or b" ")
    source = source_of(path)
    assert 0 <= TELEGRAM_JSON.certainty(source) <= 1
    with suppress(UnreadableError):
        for _ in TELEGRAM_JSON.read(source, ReadingOptions(), Findings()):
            pass


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=80), st.integers(0, 900))
def test_no_page_makes_the_reader_fail_otherwise(tmp_path_factory, text, length):
    path = tmp_path_factory.getbasetemp() / "odd_telegram.html"
    whole = page(html_message(CHAT[0]) + text + html_message(CHAT[1]))
    path.write_bytes(whole[:length].encode("utf-8", "surrogatepass") or b" ")
    with suppress(UnreadableError):
        for _ in TELEGRAM_HTML.read(source_of(path), ReadingOptions(), Findings()):
            pass
