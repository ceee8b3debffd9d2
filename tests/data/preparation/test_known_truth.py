"""One play, rendered as programs write it in each kind of file, comes out line for line.

All goes through the whole preparation: found, told apart, read, made safe and written.
"""

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import harness
import pytest
import rendered_chats as chats
import rendered_play as plays
from known_play import SCENES, WITH_CAPITALS, Said, prepared, speeches

from chatgot.data.corpus import fetch_default_text
from chatgot.data.preparation.prepare import Preparation, Prepared, prepare
from chatgot.errors import ConfigError

ALL = speeches()
IN_CAPITALS = speeches(*WITH_CAPITALS)
ENGLISH = speeches("English")
HEADING = "INT. A HOUSE BY THE SEA - NIGHT\n\n"


@dataclass(frozen=True)
class Kind:
    """A kind of file: its usual name, how the play is rendered, and what must come of it.

    kind: what the look at a text calls it.
    """

    name: str
    kind: str
    render: Callable[[list[Said]], str | bytes]
    truth: Callable[[list[Said]], str] = prepared

    def content(self, said: list[Said]) -> bytes:
        rendered = self.render(said)
        return rendered if isinstance(rendered, bytes) else rendered.encode()


def one_document(said: list[Said]) -> str:
    return prepared(said, documents=False)


def in_capitals(said: list[Said]) -> str:
    return prepared(said, capitals=True, documents=False)


def of_fountain(said: list[Said]) -> str:
    """Return the truth with names in capitals, but for those that are forced with @."""
    forced = [replace(s, name=s.name if "'" in s.name else s.name.upper()) for s in said]
    return one_document(forced)


def of_screenplay(said: list[Said]) -> str:
    return HEADING + prepared(said, capitals=True, joined=True, documents=False)


def joined(said: list[Said]) -> str:
    return prepared(said, joined=True, documents=False)


def line_by_line(said: list[Said]) -> str:
    """Return the truth of a chat in which a message is one line, and a name has no blanks."""
    return prepared(
        [replace(s, name=chats.nick(s.name), lines=(line,)) for s in said for line in s.lines]
    )


SRT = Kind("e01.srt", "SRT subtitles", plays.srt, in_capitals)
CSV = Kind("lines.csv", "table of lines (CSV)", plays.table)
TELEGRAM = Kind("result.json", "Telegram JSON", chats.telegram_json)
ANDROID = Kind("chat.txt", "WhatsApp chat", lambda said: chats.android(said, "de-DE"))
IPHONE = Kind("_chat.txt", "WhatsApp chat", lambda said: chats.iphone(said, "en-US"))
KINDS = {
    "SRT": SRT,
    "WebVTT": Kind("e01.vtt", "WebVTT subtitles", plays.vtt, one_document),
    "ASS": Kind("e01.ass", "ASS subtitles", plays.ass, one_document),
    "CSV": CSV,
    "CSV, all quoted": Kind("l.csv", CSV.kind, lambda said: plays.table(said, every=True)),
    "CSV, semicolons": Kind("l.csv", CSV.kind, lambda said: plays.table(said, ";")),
    "TSV": Kind("lines.tsv", CSV.kind, lambda said: plays.table(said, "\t")),
    "JSON Lines": Kind("lines.jsonl", "JSON Lines", plays.json_lines, one_document),
    "JSON": Kind("lines.json", "JSON", plays.json_array),
    "messages": Kind("tuning.jsonl", "JSON Lines", plays.messages),
    "HTML": Kind("page.html", "web page", plays.web_page, one_document),
    "EPUB": Kind("book.epub", "EPUB book", plays.epub),
    "DOCX": Kind("play.docx", "Word document (DOCX)", plays.docx, one_document),
    "transcript": Kind("t.txt", "transcript with speakers", plays.transcript, joined),
    "timed transcript": Kind("t.md", "transcript with speakers", plays.timed_transcript, joined),
    "Fountain": Kind("p.fountain", "Fountain screenplay", plays.fountain, of_fountain),
    "screenplay": Kind("p.txt", "screenplay", plays.screenplay, of_screenplay),
    "stage play": Kind("p.txt", "play for the stage", plays.stage_play, in_capitals),
    "prepared text": Kind("p.txt", "plain text", prepared),
    "Telegram": TELEGRAM,
    "Telegram HTML": Kind("messages.html", "Telegram HTML", chats.telegram_html),
    "Discord": Kind("stage.json", "Discord JSON", chats.discord_json),
    "Slack": Kind("export.zip", "Slack channel", chats.slack_zip),
    "Signal": Kind("main.jsonl", "Signal JSON", chats.signal_backup),
    "Signal Markdown": Kind("chat.md", "Signal text", chats.signal_markdown),
    "irssi": Kind("stage.log", "IRC log", chats.irssi, line_by_line),
    "WeeChat": Kind("stage.weechatlog", "IRC log", chats.weechat, line_by_line),
    "HexChat": Kind("stage.log", "IRC log", chats.hexchat, line_by_line),
    "mbox": Kind("stage.mbox", "mail", chats.mbox),
    **{
        f"WhatsApp, Android, {locale}": Kind(
            "chat.txt", "WhatsApp chat", lambda said, locale=locale: chats.android(said, locale)
        )
        for locale in chats.ANDROID
    },
    **{
        f"WhatsApp, iPhone, {locale}": Kind(
            "_chat.txt", "WhatsApp chat", lambda said, locale=locale: chats.iphone(said, locale)
        )
        for locale in chats.IPHONE
    },
    **{
        f"Discord text, {locale}": Kind(
            "stage.txt",
            "Discord text",
            lambda said, locale=locale: chats.discord_text(said, locale),
        )
        for locale in chats.DISCORD
    },
}
NEED_CAPITALS = ("SRT", "Fountain", "screenplay", "stage play")


def play_of(kind: str, *scenes: str) -> list[Said]:
    """Return speeches that a kind can hold: names of some alphabets have no capitals."""
    if not scenes:
        return IN_CAPITALS if kind in NEED_CAPITALS else ALL
    return speeches(*scenes)


@pytest.fixture
def prepare_all(tmp_path) -> Callable[..., tuple[str, Prepared]]:
    """Write files below a folder; prepare all of it, or the input that is named."""

    def prepare_all(files: dict[str, bytes], given: str = "in") -> tuple[str, Prepared]:
        for name, content in files.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        output = tmp_path / "out.txt"
        told = prepare(Preparation((str(tmp_path / given),)), output)
        return output.read_text("utf-8"), told

    return prepare_all


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_out_line_for_line(prepare_all, kind):
    said = play_of(kind)
    text, told = prepare_all({KINDS[kind].name: KINDS[kind].content(said)})
    assert text == KINDS[kind].truth(said)
    assert {file.kind for file in told.read} == {KINDS[kind].kind}
    assert not any(file.fault for file in told.read)


WRONG_ENDINGS = {
    "SRT": ("e01.txt", "e01", "e01.csv"),
    "WebVTT": ("e01.srt", "e01", "e01.html"),
    "ASS": ("e01.srt", "e01", "e01.json"),
    "CSV": ("lines.txt", "lines", "lines.srt", "lines.json"),
    "TSV": ("lines.txt", "lines", "lines.csv", "lines.md"),
    "JSON Lines": ("lines.json", "lines", "lines.txt"),
    "JSON": ("lines.jsonl", "lines", "lines.csv"),
    "HTML": ("page.txt", "page", "page.epub"),
    "EPUB": ("book.zip", "book", "book.docx"),
    "DOCX": ("play.zip", "play", "play.epub"),
    "Fountain": ("p.txt", "p"),
    "screenplay": ("p.srt", "p"),
    "Telegram": ("chat.txt", "chat"),
    "Telegram HTML": ("chat.txt", "chat"),
    "Discord": ("chat.txt", "chat"),
    "Signal Markdown": ("chat.txt", "chat"),
    "WhatsApp, Android, en-US": ("chat.csv", "chat", "chat.md"),
    "mbox": ("mail.txt", "mail"),
    "irssi": ("chat.csv", "chat"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG_ENDINGS)
def test_kinds_are_told_by_content_where_the_ending_is_wrong(prepare_all, kind):
    said = play_of(kind, "English", "German")
    files = {f"{n}/{name}": KINDS[kind].content(said) for n, name in enumerate(WRONG_ENDINGS[kind])}
    text, told = prepare_all(files)
    assert text == "<|endoftext|>\n".join([KINDS[kind].truth(said)] * len(files))
    assert {file.kind for file in told.read} == {KINDS[kind].kind}


# Some of each family, in the order of their names
MIXED = {
    "1 book": "EPUB", "2 talk": "SRT", "3 list": "CSV", "4 chat": "WhatsApp, iPhone, fr-FR",
    "5 stage": "Discord", "6 notes": "transcript", "7 page": "HTML", "8 film": "screenplay",
    "9 word": "DOCX", "10 plain": "prepared text",
}  # fmt: skip


def mixed_files() -> tuple[dict[str, bytes], str]:
    """Return files of many kinds without endings, and what must come of all of them."""
    files = {}
    truths = []
    for name, kind in MIXED.items():
        said = play_of(kind, "English", "French")
        files[name] = KINDS[kind].content(said)
        truths.append(KINDS[kind].truth(said))
    return files, "<|endoftext|>\n".join(truths)


def test_a_folder_of_mixed_kinds_comes_out_line_for_line(prepare_all):
    files, truth = mixed_files()
    text, told = prepare_all(files)
    assert text == truth
    assert [file.kind for file in told.read] == [KINDS[kind].kind for kind in MIXED.values()]


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_a_zip_of_mixed_kinds_comes_out_line_for_line(prepare_all):
    files, truth = mixed_files()
    text, told = prepare_all({"all.zip": zipped(files)}, "in/all.zip")
    assert text == truth
    assert not told.left_out


def test_script_reads_all_it_can_and_names_the_rest(tmp_path, monkeypatch, capsys):
    files, truth = mixed_files()
    files |= {"2b.srt": bytes(range(256)) * 9, "3b.csv": b""}
    monkeypatch.chdir(tmp_path)
    for name, content in {**files, "all.zip": zipped(files)}.items():
        Path(name).write_bytes(content)
    main = harness.load_script(harness.ROOT / "scripts" / "prepare_data.py").main
    for given in (".", "all.zip"):
        assert main([given, "--output", "out/text.txt"]) == 0
        if given == "all.zip":
            assert Path("out/text.txt").read_text("utf-8") == truth
        told = capsys.readouterr().out
        assert re.search("2b.srt: binary", told)
        assert re.search("3b.csv: empty", told)
        assert main([given, "--output", "out/other.txt", "--strict"]) == 2
        assert not Path("out/other.txt").exists()
        assert "left out" in capsys.readouterr().err


def test_logs_of_one_day_each_are_read_in_order(prepare_all):
    """ZNC writes a file a day, whose lines have a clock and no date."""
    files = {}
    for scene in SCENES:
        said = [speech for speech in ALL if speech.scene == scene]
        files[f"{said[0].when:%Y-%m-%d}.log"] = chats.znc(said).encode()
    text, _ = prepare_all(files)
    assert text == line_by_line(ALL)


# --------------------------------------------------------------------------------------------------
# Damage that changes nothing

LINE_END = re.compile("\r?\n")
DAMAGES: dict[str, Callable[[str], bytes]] = {
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without mark": lambda text: text.encode("utf-16-le"),
    "Windows line ends": lambda text: LINE_END.sub("\r\n", text).encode(),
    "old line ends": lambda text: LINE_END.sub("\r", text).encode(),
    "blank lines at the start": lambda text: f"\n\n\n{text}".encode(),
    "no line end": lambda text: text.rstrip("\r\n").encode(),
    "the end sign of DOS": lambda text: text.encode() + b"\x1a",
    "NULs at the end": lambda text: text.encode() + bytes(64),
}
# An encoding and the scenes that it can hold
OLD_ENCODINGS = {
    "cp1252": ("German", "French", "Spanish"),
    "cp1251": ("Russian",),
    "koi8-r": ("Russian",),
    "cp1253": ("Greek",),
    "cp1254": ("Turkish",),
}
DAMAGED = {
    name: kind
    for name, kind in KINDS.items()
    if name
    in ("SRT", "WebVTT", "ASS", "CSV", "TSV", "JSON Lines", "JSON", "HTML", "transcript",
        "Fountain", "screenplay", "stage play", "Telegram", "Telegram HTML", "Discord",
        "Signal Markdown", "irssi", "WhatsApp, Android, de-DE", "WhatsApp, iPhone, en-US",
        "Discord text, en-US")
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_odd_encodings_and_line_ends_change_nothing(prepare_all, damage):
    """All kinds in one folder, a folder each: their names are the usual ones."""
    files = {}
    truths = []
    for n, (name, kind) in enumerate(DAMAGED.items()):
        said = play_of(name, "German", "Russian")
        text = kind.content(said).decode().removeprefix("\ufeff")
        files[f"{n}/{kind.name}"] = DAMAGES[damage](text)
        truths.append(kind.truth(said))
    text, told = prepare_all(files)
    assert [file.kind for file in told.read] == [kind.kind for kind in DAMAGED.values()]
    assert text == "<|endoftext|>\n".join(truths)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", OLD_ENCODINGS)
def test_old_encodings_of_each_file_are_found(prepare_all, encoding):
    files = {}
    truths = []
    for n, (name, kind) in enumerate(DAMAGED.items()):
        if name == "WhatsApp, iPhone, en-US":
            continue  # its marks are in no old encoding
        said = play_of(name, *OLD_ENCODINGS[encoding])
        files[f"{n}/{kind.name}"] = kind.content(said).decode().encode(encoding, "ignore")
        truths.append(kind.truth(said))
    text, told = prepare_all(files)
    assert text == "<|endoftext|>\n".join(truths)
    assert {file.encoding for file in told.read} == {encoding}


# --------------------------------------------------------------------------------------------------
# Damage of single kinds


def overlapping(text: str) -> str:
    """Return subtitles that stay on the screen until after the next one has come."""
    return re.sub(r"(\S+) --> \S+", lambda m: f"{m[1]} --> {m[1][:3]}59:59,000", text)


SUBTITLE_DAMAGES: dict[str, Callable[[str], str]] = {
    "overlapping": overlapping,
    "without duration": lambda text: re.sub(r"(\S+) --> \S+", r"\1 --> \1", text),
    "without numbers": lambda text: re.sub(r"(?m)^\d+\n(?=\d\d:)", "", text),
    "without blank lines": lambda text: text.replace("\n\n", "\n"),
    "twice": lambda text: re.sub(r"(?s)(\d+\n\S+ --> .*?\n\n)", r"\1\1", text),
    "with tags": lambda text: re.sub(
        r"(?m)^([^\d\n].*)$", r'{\\an8}<font color="red"><i>\1</i>', text
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", SUBTITLE_DAMAGES)
def test_damaged_subtitles_come_out_line_for_line(prepare_all, damage):
    text = SUBTITLE_DAMAGES[damage](plays.srt(IN_CAPITALS).replace("\r\n", "\n"))
    assert prepare_all({SRT.name: text.encode()})[0] == in_capitals(IN_CAPITALS)


def test_names_in_mixed_case_are_found_in_subtitles(prepare_all):
    text = plays.srt(IN_CAPITALS)
    for name in {speech.name for speech in IN_CAPITALS}:
        text = text.replace(f"\n{name.upper()}:", f"\n{name}:")
    assert prepare_all({SRT.name: text.encode()})[0] == one_document(IN_CAPITALS)


MIDDLE = "of salt and oranges.\nAnd there was more of it\n"
# Of a chat as text, with dates in the language of the phone
CHAT_DAMAGES: dict[str, Callable[[str], str]] = {
    "begins within a message": lambda text: MIDDLE + text,
    "marks of direction at each line": lambda text: re.sub(r"(?m)^(?=.)", "\u200e", text),
    "other blanks": lambda text: text.replace("\u202f", "\xa0"),
    "plain blanks": lambda text: text.replace("\u202f", " "),
    "blanks at line ends": lambda text: re.sub("\r?\n", "  \n", text),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", CHAT_DAMAGES)
@pytest.mark.parametrize("kind", [ANDROID, IPHONE], ids=["android", "iphone"])
def test_damaged_chats_come_out_line_for_line(prepare_all, kind, damage):
    text = CHAT_DAMAGES[damage](kind.content(ALL).decode())
    assert prepare_all({kind.name: text.encode()})[0] == prepared(ALL)


@pytest.mark.parametrize("kind", [ANDROID, IPHONE, TELEGRAM], ids=["android", "iphone", "telegram"])
def test_names_may_be_numbers(prepare_all, kind):
    names = {"Anna": "42", "Old Man 2": "+49 170 1234567", "Jo O'Neill": "007"}
    said = [replace(speech, name=names.get(speech.name, speech.name)) for speech in ALL]
    assert prepare_all({kind.name: kind.content(said)})[0] == prepared(said)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("kind", [ANDROID, IPHONE, TELEGRAM], ids=["android", "iphone", "telegram"])
def test_chats_of_few_messages_are_chats(prepare_all, kind, length):
    said = ALL[:length]
    assert prepare_all({"chat": kind.content(said)})[0] == prepared(said)


def test_joined_exports_of_two_phones_are_both_read(prepare_all):
    """The first is longer than what a reader looks at before it reads."""
    old = [replace(s, when=s.when.replace(year=year)) for year in range(2003, 2023) for s in ALL]
    text = chats.android(old, "de-DE") + chats.iphone(ALL, "de-DE")
    assert len(chats.android(old, "de-DE").encode()) > 1 << 16
    truth = "<|endoftext|>\n".join([prepared(ALL)] * 21)
    assert prepare_all({"chat.txt": text.encode()})[0] == truth


BROKEN_TABLES = {
    "quotes within quotes": 'Anna,"She said, "no" twice"\nBen,No.\n',
    "a quote that never closes": 'Anna,"She said, ""no"" twice\nBen,No.\n',
    "no quotes around separators": 'Anna,She said, "no" twice\nBen,No.\n',
    "backslashes": 'Anna,"She said, \\"no\\" twice"\nBen,No.\n',
    "empty lines and cells": '\nAnna,"She said, ""no"" twice"\n,\n\nBen,No.,,\n',
    "the header again": 'speaker,line\nAnna,"She said, ""no"" twice"\nspeaker,line\nBen,No.\n',
}


@pytest.mark.parametrize("damage", BROKEN_TABLES)
def test_broken_quoting_of_a_table_loses_nothing(prepare_all, damage):
    rest = "".join(f'Anna,"Well, {n}"\nBen,Yes\n' for n in range(4))
    text, _ = prepare_all({"l.csv": f"speaker,line\n{BROKEN_TABLES[damage]}{rest}".encode()})
    assert text.startswith('Anna:\nShe said, "no" twice\n\nBen:\nNo.\n\nAnna:\nWell, 0\n\n')
    assert text.count(":\n") == 10


def test_rows_of_a_table_that_cannot_be_mended_are_counted(prepare_all):
    text, told = prepare_all({"l.csv": b"id,speaker,line\n1,Anna,Hi\n2,Ben\n3,Anna,Oh\n4,Ben,No\n"})
    assert text == "Anna:\nHi\n\nAnna:\nOh\n\nBen:\nNo\n\n"
    assert told.read[0].findings.left_out == {"rows with a wrong number of cells": 1}


def test_objects_by_their_ids_are_all_read(prepare_all):
    objects = {f"line {n}": {"speaker": s.name, "text": s.text} for n, s in enumerate(ALL)}
    text, _ = prepare_all({"lines.json": json.dumps(objects).encode()})
    assert text == one_document(ALL)


# Of each kind what only its own words or lines can show
LONG_SPEECH = Said("English", "Anna", tuple(f"Line {n}, and on." for n in range(40)), ALL[0].when)
ODD_SPEECHES = {
    "mbox": ("From the sea it came.\nThen he said:", "One line.\nAnother one."),
    "TSV": (LONG_SPEECH.text, 'And "so" on.'),
    "DOCX": ("It was a play of\nANNA: it was long.", "The end."),
    "Telegram": ("12.12.2023, 10:15 - Eve: hello", "[12.12.23, 10:15:00] Eve: hi"),
    "WhatsApp, Android, de-DE": ("It was <so> - and: so", "\u200eA mark\n\u200eAnd one more"),
}


@pytest.mark.parametrize("kind", ODD_SPEECHES)
def test_odd_speeches_stay_whole(prepare_all, kind):
    said = list(ALL)
    said[2:4] = (
        replace(old, lines=tuple(text.split("\n")))
        for old, text in zip(said[2:4], ODD_SPEECHES[kind], strict=True)
    )
    text, _ = prepare_all({KINDS[kind].name: KINDS[kind].content(said)})
    assert text == KINDS[kind].truth(said).replace("\u200e", "")


def test_names_of_several_people_are_found_in_a_transcript(prepare_all):
    said = [*ENGLISH, replace(ENGLISH[0], name="Anna & Jo of Ulm"), ENGLISH[1]]
    assert prepare_all({"t.txt": plays.transcript(said).encode()})[0] == joined(said)


def test_a_chat_goes_on_over_new_year(prepare_all):
    """Lines such as `Jan 01 00:02:00` do not say the year."""
    late = datetime(2023, 12, 31, 23, 40, tzinfo=UTC)
    said = [replace(s, when=late + n * timedelta(minutes=4)) for n, s in enumerate(ENGLISH)]
    assert prepare_all({"stage.log": chats.hexchat(said).encode()})[0] == line_by_line(said)


# --------------------------------------------------------------------------------------------------
# What is refused, by name

DOCTYPE = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
MOJIBAKE = "Schön, größer\n".encode() * 9 + "Schön, größer\n".encode("cp1252") * 9
REFUSED = {
    "empty": ("a.srt", b"", "empty"),
    "only a byte order mark": ("a.txt", b"\xef\xbb\xbf", "no text in it"),
    "only blanks": ("a.csv", b" \n\t\n", "no text in it"),
    "only NULs": ("a.txt", bytes(5000), "binary"),
    "binary": ("a.srt", bytes(range(256)) * 20, "binary"),
    "a picture": ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(99), "a picture"),
    "packed": ("a.csv", b"\x1f\x8b\x08\0" + bytes(99), "gzip"),
    "two encodings": ("a.txt", MOJIBAKE, "byte offset"),
    "JSON that is cut off": ("a.json", plays.json_array(ENGLISH)[:500].encode(), "cut off"),
    "nested too deeply": ("a.json", b"[" * 50_000 + b"]" * 50_000, "recursion"),
    "a cut zip": ("a.zip", zipped({"a.srt": SRT.content(ENGLISH)})[:-40], "damaged zip"),
    "a cut book": ("a.epub", plays.epub(ENGLISH)[:-40], "damaged zip"),
    "a book without its list": ("a.epub", zipped({"mimetype": b"application/epub+zip"}), "no META"),
    "an RTF document": ("a.doc", b"{\\rtf1\\ansi hello}", "RTF"),
}  # fmt: skip


@pytest.mark.parametrize("damage", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(prepare_all, damage):
    name, content, reason = REFUSED[damage]
    text, told = prepare_all({name: content, "z/good.srt": SRT.content(ENGLISH)})
    assert text == in_capitals(ENGLISH)
    [left_out] = told.left_out
    assert Path(left_out.name).name == name
    assert reason in left_out.reason
    with pytest.raises(ConfigError, match="no text in any file"):
        prepare_all({name: content}, f"in/{name}")


def test_members_of_a_hostile_zip_are_refused_by_name(prepare_all, tmp_path):
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.srt", SRT.content(ENGLISH))
        archive.writestr("../out of it.txt", "out")
        archive.writestr("/absolute.txt", "out")
        archive.writestr("bomb.txt", b"a" * (1 << 24))
        archive.writestr("inner.zip", zipped({"a.srt": SRT.content(ENGLISH)}))
        archive.writestr("empty.txt", "")
        archive.writestr(link, "/etc/passwd")
    text, told = prepare_all({"all.zip": out.getvalue()})
    assert text == in_capitals(ENGLISH)
    reasons = {left_out.name.rpartition(": ")[2]: left_out.reason for left_out in told.left_out}
    expected = {
        "../out of it.txt": "leads out of the archive",
        "/absolute.txt": "an absolute path",
        "bomb.txt": "a zip bomb",
        "inner.zip": "a zip within a zip",
        "empty.txt": "empty",
        "link.txt": "a symlink",
    }
    assert reasons.keys() == expected.keys()
    assert all(words in reasons[name] for name, words in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.txt"]


@pytest.mark.parametrize("kind", ["DOCX", "EPUB", "HTML"])
def test_external_entities_are_not_resolved(prepare_all, kind):
    content = KINDS[kind].content(ENGLISH)
    if kind == "HTML":
        content = content.replace(b"<!DOCTYPE html>", DOCTYPE.encode()).replace(b"I read", b"&e;")
    else:
        content = with_entities(content)
    text, _ = prepare_all({KINDS[kind].name: content})
    assert "root:" not in text
    assert "Anna:\nThe letter came at noon." in text


def with_entities(document: bytes) -> bytes:
    """Return a zipped document whose texts name a file of the machine."""
    members = {}
    with zipfile.ZipFile(io.BytesIO(document)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if b"I read" in content:
                content = content.replace(b"<!DOCTYPE html>", b"")
                content = content.replace(b"?>", b"?>" + DOCTYPE.encode(), 1)
                content = content.replace(b"I read", b"&e;")
            members[name] = content
    return zipped(members)


# --------------------------------------------------------------------------------------------------
# Whole plays

SPEECHES_OF_AN_EPISODE = 2000
LONGEST_NAME = 5  # words; a longer one is taken for text where nothing marks it
LIKE_A_NAME = re.compile(r"(?m)^[A-Z]\w*(?: [A-Z]\w*){0,2}: |^[A-Z .]+$")
NO_NAMES = re.compile("PROLOGUE|SONG|A .*")  # headings and directions of plays, too
WITHOUT_MARKS = (
    "SRT", "WebVTT", "ASS", "HTML", "EPUB", "DOCX", "transcript", "timed transcript", "Fountain",
    "screenplay", "stage play",
)  # fmt: skip
SUBTITLES = ("SRT", "WebVTT", "ASS")  # rows of one sentence become one line
NOT_WHOLE = ("Slack",)  # a file a day


def episodes_of(text: str) -> list[list[Said]]:
    """Return the default text as episodes; but for one name with a colon, all of it."""
    parts = [part.partition(":\n") for part in text.rstrip("\n").split("\n\n")]
    when = ALL[0].when
    episodes = []
    for number, first in enumerate(range(0, len(parts), SPEECHES_OF_AN_EPISODE)):
        episode = []
        for name, _, said in parts[first : first + SPEECHES_OF_AN_EPISODE]:
            if ":" not in name:
                episode.append(Said(f"e{number:02}", name, tuple(said.split("\n")), when))
            when += timedelta(seconds=61)
        when += timedelta(days=1)
        episodes.append(episode)
    return episodes


def plain_drama(episode: list[Said]) -> list[Said]:
    """Return the speeches of an episode that are told apart without any marks.

    Left out: names that come once or twice or have many words, speeches with a line like `Name:`,
    and who goes on speaking.
    """
    counts = Counter(said.name.upper() for said in episode)
    kept: list[Said] = []
    for said in episode:
        name = said.name.upper()
        is_name = counts[name] > 2 and len(name.split()) <= LONGEST_NAME
        is_name = is_name and NO_NAMES.fullmatch(name) is None
        goes_on = bool(kept) and kept[-1].name.upper() == name
        if is_name and not goes_on and not LIKE_A_NAME.search(said.text) and "&" not in said.text:
            kept.append(said)
    return kept


@pytest.fixture(scope="module")
def default_text(tmp_path_factory) -> str:
    """Return the default text, of this checkout or from the network."""
    path = Path(__file__).parents[3] / "data" / "shakespeare.txt"
    if not path.is_file():
        path = tmp_path_factory.mktemp("default") / "shakespeare.txt"
        fetch_default_text(path)
    return path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_WHOLE])
def test_whole_plays_come_out_line_for_line(prepare_all, default_text, kind):
    episodes = episodes_of(default_text)
    if kind in WITHOUT_MARKS:
        episodes = list(map(plain_drama, episodes))
    assert sum(map(len, episodes)) > 28_000
    of = KINDS[kind]
    files = {f"e{n:02}/{of.name}": of.content(said) for n, said in enumerate(episodes)}
    text, told = prepare_all(files)
    assert {file.kind for file in told.read} == {of.kind}
    truth = "<|endoftext|>\n".join(map(of.truth, episodes))
    if kind in SUBTITLES:
        assert text.split() == truth.split()
    else:
        assert text.split("\n") == truth.split("\n")
