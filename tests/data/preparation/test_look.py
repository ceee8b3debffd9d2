"""The look says what is in the text, and only that."""

import random
import tracemalloc
from collections import Counter

import pytest

from chatgot.data.preparation import look as look_module
from chatgot.data.preparation.look import HELD, Look, count_characters, visible
from chatgot.data.preparation.pieces import (
    DocumentDropped,
    DocumentStart,
    Passage,
    Piece,
    PlainText,
    Speech,
)
from chatgot.data.preparation.reader import Findings


def looked_at(*pieces: Piece) -> Look:
    look = Look(rare_below=2)
    assert list(look.watch(iter(pieces))) == list(pieces)
    return look


def test_speakers_are_counted_with_speeches_and_lines():
    plain = "CAT:\nmeow\nmeow\n\nRecipe:\neggs\n\n" + "CAT:\nhiss\n\n" * 2
    look = looked_at(
        Speech("Ann", "a\nb"), Speech("Ben", "c"), Speech("Ann", "d"), PlainText(plain)
    )
    rows = [(speaker.name, speaker.speeches, speaker.lines) for speaker in look.speakers()]
    assert rows == [("CAT", 3, 4), ("Ann", 2, 3), ("Ben", 1, 1)]


def test_characters_are_counted_as_they_are_written():
    text = "Zoë 😀 日本\n" * 3 + "é"
    pieces = [Speech("Ann", "hé\n\u202e"), DocumentStart(), Passage("x"), PlainText(text)]
    look = looked_at(*pieces)
    written = "Ann:\nhé\n\u202e\n\n" + "x\n\n" + text
    assert look.character_counts() == Counter(written)
    assert look.characters == len(written)
    rare = {row.character: row.name for row in look.alphabet() if row.is_rare}
    assert rare["\u202e"] == "RIGHT-TO-LEFT OVERRIDE"
    assert "😀" not in rare
    assert visible("\u202e") == r"\u202e"


def test_counts_of_characters_agree_with_a_plain_count():
    rng = random.Random(3)
    for end in (0x7F, 0x300, 0x110000):
        text = "".join(chr(rng.randrange(end)) for _ in range(2000))
        assert count_characters(text) == Counter(text)
    assert count_characters("") == Counter()


def test_documents_are_counted_with_their_lengths():
    look = looked_at(
        DocumentStart("a"),
        DocumentStart("b"),
        PlainText("12345"),
        PlainText("678"),
        DocumentStart("c"),
        PlainText("1"),
        DocumentStart("d"),
        PlainText("1234"),
    )
    lengths = (look.documents, look.shortest, look.median_length(), look.longest)
    assert lengths == (3, 1, 4, 8)


@pytest.mark.parametrize("length", [5, 3 * HELD])
def test_dropped_document_leaves_no_trace_in_the_counts(length):
    dropped = [DocumentStart(), Speech("Bob", "q"), PlainText("z" * length), DocumentDropped()]
    look = looked_at(Speech("Ann", "a"), *dropped, DocumentStart(), Speech("Ann", "b"))
    assert look.character_counts() == Counter("Ann:\na\n\nAnn:\nb\n\n")
    assert [speaker.name for speaker in look.speakers()] == ["Ann"]
    assert (look.documents, look.dropped_documents) == (2, 1)


def test_preview_is_the_beginning_and_the_same_random_place():
    lines = [f"line {number}\n" for number in range(200_000)]
    pieces = [PlainText("".join(lines[start : start + 100])) for start in range(0, 200_000, 100)]
    one = looked_at(*pieces)
    other = looked_at(*pieces)
    assert one.first_lines.startswith("line 0\nline 1\n")
    assert one.random_lines == other.random_lines
    first, *rest = one.random_lines.split("\n")
    assert f"{first}\n" in lines
    assert first != "line 0"
    assert len(rest) == look_module.SHOWN_LINES - 1


def test_files_are_listed_with_what_was_found_in_them(monkeypatch):
    monkeypatch.setattr(look_module, "MOST_FILES", 2)
    look = Look()
    findings = Findings()
    findings.left_out["media messages"] = 3
    findings.remark("guessed")
    for number in range(3):
        look.add_file(f"{number}.txt", "plain text", "utf-8", 7, findings)
        look.leave_out(f"{number}.jpg", "a picture")
    assert (look.n_files, len(look.files), look.n_left_out, len(look.left_out)) == (3, 2, 3, 2)
    assert look.files[1].left_out == {"media messages": 3}
    assert look.files[1].remarks == ("guessed",)


def test_memory_does_not_grow_with_the_text():
    """Sixteen million characters go by in 4,000 documents."""
    look = Look()
    pieces = (
        piece
        for number in range(4_000)
        for piece in (DocumentStart(f"row {number}"), Speech(f"N{number % 50}", "word " * 800))
    )
    tracemalloc.start()
    for _ in look.watch(pieces):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert look.characters > 16_000_000
    assert peak < 4_000_000
