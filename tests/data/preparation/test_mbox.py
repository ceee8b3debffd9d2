"""Mail comes out line for line, thread by thread, without quotes and signatures."""

import mailbox
from contextlib import suppress
from email.message import EmailMessage
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messenger_chats import CHAT, Reading, source_of

from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.mail import MAIL


def mail(number: int, subject="Talk", answers=None, text=None) -> EmailMessage:
    said = CHAT[number]
    message = EmailMessage()
    message["From"] = f'"{said.name}" <person{number}@example.org>'
    message["To"] = "list@example.org"
    message["Subject"] = subject
    message["Date"] = format_datetime(said.when)
    message["Message-ID"] = f"<{number}@example.org>"
    if answers is not None:
        message["In-Reply-To"] = f"<{answers}@example.org>"
    message.set_content(said.text if text is None else text)
    return message


def mbox(path, mails):
    box = mailbox.mbox(path)
    for message in mails:
        box.add(message)
    box.close()
    return path


def test_an_mbox_comes_out_thread_by_thread(tmp_path):
    mails = [
        mail(0, "Größe 🎈"),
        mail(1, "Other"),
        mail(3, "Re: Größe 🎈", answers=2),
        mail(2, "Re: Größe 🎈", answers=0),
        mail(4, "AW: Other"),
    ]
    read = Reading(MAIL, mbox(tmp_path / "all.mbox", mails))
    in_order = [CHAT[i] for i in (0, 2, 3, 1, 4)]
    assert read.speeches == [said.speech for said in in_order]
    assert read.titles == ["Größe 🎈", "Other"]
    assert read.certainty > 0.9
    assert not +read.findings.left_out


def test_quotes_attributions_and_signatures_are_left_out(tmp_path):
    quote = "On Monday, Anna wrote:\n> one\n> two\n>> three\n"
    text = f"I agree.\n\n{quote}\nAnd more.\n-- \nBen\nTel. 1\n"
    read = Reading(MAIL, mbox(tmp_path / "one.mbox", [mail(0, text=text)]))
    assert read.lines == [("Anna", "I agree.\nAnd more.")]
    assert read.findings.left_out == {"quoted lines": 4, "lines of signatures": 3}


def test_what_follows_an_original_message_line_is_quoted(tmp_path):
    text = "Yes.\n\n-----Original Message-----\nFrom: Anna\nOld text\n"
    read = Reading(MAIL, mbox(tmp_path / "one.mbox", [mail(0, text=text)]))
    assert read.lines == [("Anna", "Yes.")]


def test_plain_text_is_preferred_to_html_and_attachments_are_not_read(tmp_path):
    both = mail(0)
    both.add_alternative("<p>HTML</p>", subtype="html")
    both.add_attachment("attached text", filename="a.txt")
    page = mail(1)
    page.set_content(
        "<style>p {}</style><p>Hello <b>you</b><br>there</p><blockquote>old</blockquote>",
        subtype="html",
    )
    read = Reading(MAIL, mbox(tmp_path / "two.mbox", [both, page]))
    assert read.lines == [("Anna", CHAT[0].text), (CHAT[1].name, "Hello you\nthere")]


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "koi8-r", "no-such-charset"])
def test_a_single_mail_is_read_in_its_own_charset(tmp_path, charset):
    words = {"koi8-r": "Привет", "iso-8859-1": "Schön"}.get(charset, "Schön 🎈")
    encoding = "utf-8" if charset == "no-such-charset" else charset
    path = tmp_path / "one.eml"
    path.write_bytes(
        b"Return-Path: <a@b.c>\r\nFrom: =?utf-8?q?J=C3=BCrgen?= <j@b.c>\r\nSubject: Hi\r\n"
        b"Content-Type: text/plain; charset=" + charset.encode() + b"\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\n" + words.encode(encoding) + b"\r\n"
    )
    read = Reading(MAIL, path)
    assert read.lines == [("Jürgen", words)]
    assert read.titles == ["Hi"]
    assert read.certainty > 0.6


def test_mails_without_sender_date_or_text_are_borne(tmp_path):
    path = tmp_path / "odd.mbox"
    path.write_bytes(
        b"From - Mon Jan 01 10:00:00 2024\nSubject: =?utf-8?b?!!!?=\nDate: never\n\nhello\n\n"
        b"From - Mon Jan 01 10:00:00 2024\nFrom: (((\nContent-Type: multipart/mixed\n\n\n"
    )
    read = Reading(MAIL, path)
    assert read.lines == [("Unknown", "hello")]
    assert read.speeches[0][2] is None
    assert read.findings.left_out == {"mails without text": 1}


OTHERS = {
    "prose": "From the sea came a wind.\nIt was cold.\n" * 9,
    "transcript": "Anna: hello\nFrom: me\nTo: you\n" * 9,
    "yaml": "from: a\nto: b\nsubject: c\n",
    "own": "ANNA:\nHello\n\nBEN:\nHi\n\n",
    "empty": " ",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_texts_are_not_taken_for_mail(write, kind):
    assert MAIL.certainty(source_of(write(OTHERS[kind].encode()))) < 0.75


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                b"From a 10:00\n",
                b"\n",
                b"From: =?x?q?=\xff?= <\n",
                b"Date: 99 Foo 0 99:99\n",
                b"Content-Type: multipart/mixed; boundary=b\n",
                b"Content-Type: text/html; charset=\xff\n",
                b"Content-Transfer-Encoding: base64\n",
                b"--b\n",
                b"In-Reply-To: <<>\n",
                b"<p><blockquote>&#99999999;\n",
            ]
        )
        | st.binary(max_size=12),
        max_size=25,
    )
)
def test_no_mail_makes_the_reader_fail_otherwise(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "odd.mbox"
    path.write_bytes(b"From a 10:00\nTo: x\n" + b"".join(parts))
    source = source_of(path)
    assert 0 <= MAIL.certainty(source) <= 1
    with suppress(UnreadableError):
        for _ in MAIL.read(source, ReadingOptions(), Findings()):
            pass
