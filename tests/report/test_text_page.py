"""The page of a text shows what was found, treats all of it as text, and fetches nothing."""

import html
import re
from pathlib import Path

import pytest

from chatgot.data.preparation.cleaning.options import Repeat
from chatgot.data.preparation.look import Look
from chatgot.data.preparation.pieces import DocumentStart, Piece, Speech
from chatgot.data.preparation.reader import Findings
from chatgot.errors import ConfigError, StorageError
from chatgot.report.text_page import human_size, write_text_page

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}\x1b[31m\u202e"
TAG = re.compile(r"<[a-zA-Z!/][^>]*>")
CSS = re.compile(r"<style>.*?</style>", re.DOTALL)
FETCHES = re.compile(r"(?i)(src|href|srcset|action|\bon\w+)\s*=|url\(|@import|<(script|link|img)")


def look_at(*pieces: Piece) -> Look:
    look = Look()
    for _ in look.watch(iter(pieces)):
        pass
    return look


def page_of(look: Look, folder: Path, choices: list[str]) -> str:
    write_text_page(look, folder / "look.html", choices)
    return (folder / "look.html").read_text(encoding="utf-8")


def words(page: str) -> str:
    return " ".join(html.unescape(TAG.sub(" ", CSS.sub("", page))).split())


def full_look() -> Look:
    look = look_at(
        DocumentStart("e1"),
        *[Speech("Ann", "Hello there, Zoë.")] * 12,
        DocumentStart("e2"),
        *[Speech("Ben", "No.\nNever.")] * 4,
    )
    look.name = "data/show.txt"
    findings = Findings()
    findings.left_out["media messages"] = 12
    findings.remark("the encoding was guessed")
    look.add_file("e1.srt", "SRT subtitles", "utf-8", 34_567, findings)
    look.add_file("e2.srt", "SRT subtitles", None, 90, Findings(), fault="a torn line")
    look.leave_out("poster.jpg", "a picture")
    look.findings.repeated["recaps"] = 3
    look.findings.changed["phone numbers"] = 5
    look.findings.repeats.append(Repeat("e7", "e5", is_exact=False))
    look.findings.remark("nobody is called Bennn")
    return look


def test_page_says_first_that_everything_stayed_on_this_machine(tmp_path):
    text = words(page_of(full_look(), tmp_path, []))
    assert text.index("Everything stayed on this machine.") < text.index("data/show.txt", 40)


def test_page_shows_all_that_the_look_found(tmp_path):
    text = words(page_of(full_look(), tmp_path, ["recipe chatgot_small", "12 minutes"]))
    for part in (
        "e1.srt SRT subtitles utf-8 34.6 kB the encoding was guessed 12 media messages left out",
        "e2.srt SRT subtitles 90 bytes not read to its end: a torn line",
        "Ann 12 75.0% 12",
        "Ben 4 25.0% 8",
        "Rare ones fewer than 10 times",
        "B LATIN CAPITAL LETTER B 4",
        "recaps 3",
        "All of it was kept",
        "e7 nearly the same e5",
        "poster.jpg a picture",
        "phone numbers 5",
        "nobody is called Bennn",
        "Ann: Hello there, Zoë.",
        "recipe chatgot_small 12 minutes",
    ):
        assert part in text


def test_page_treats_whatever_a_file_says_as_text(tmp_path):
    look = look_at(DocumentStart(EVIL), *[Speech(EVIL[:20], EVIL)] * 3)
    look.name = EVIL
    findings = Findings()
    findings.remark(EVIL)
    findings.left_out[EVIL] = 1
    look.add_file(EVIL, EVIL, EVIL, 1, findings, EVIL)
    look.leave_out(EVIL, EVIL)
    look.findings.repeated[EVIL] = 1
    look.findings.repeats.append(Repeat(EVIL, EVIL, is_exact=True))
    page = page_of(look, tmp_path, [EVIL])
    parts = [*TAG.findall(page), *CSS.findall(page)]
    assert [part for part in parts if FETCHES.search(part)] == []
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "49" not in words(page)
    assert "default-src 'none'" in page


def test_page_of_a_text_without_anything_is_complete(tmp_path):
    text = words(page_of(Look(), tmp_path, []))
    for part in ("no file was read", "nobody", "nothing is there twice", "there is no text"):
        assert part in text


def test_page_replaces_no_other_file(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is not a report"):
        write_text_page(Look(), path, [])
    assert path.read_text() == "mine"
    write_text_page(Look(), tmp_path / "look.html", [])
    write_text_page(full_look(), tmp_path / "look.html", [])
    with pytest.raises(StorageError, match="cannot be written"):
        write_text_page(Look(), tmp_path / "no" / "look.html", [])


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (10**13, "10000.0 GB")],
)
def test_size_of_a_file_is_shown_in_its_unit(size, shown):
    assert human_size(size) == shown
