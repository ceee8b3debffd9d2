"""What is done to many lines at once gives what it gives to each: keys, speakers, characters."""

import random
import re
import unicodedata
from collections import Counter

import pytest

from chatgot.data.preparation.cleaning import keys, normal_form
from chatgot.data.preparation.cleaning.keys import LONG_PASSAGE, SHORT, key_of, keys_of
from chatgot.data.preparation.look import count_characters
from chatgot.data.preparation.plain_speakers import speeches_in
from chatgot.data.preparation.readers.speaker_lines import SIMPLE_TURN, TURN
from chatgot.data.prompts import SPEAKER

ROUNDS = 300
BLOCK = 300  # characters, so that paragraphs reach over blocks


def mixture(parts: list[str], most: int, seed: int) -> list[str]:
    """Return texts of random parts."""
    drawn = random.Random(seed)
    return ["".join(drawn.choices(parts, k=drawn.randrange(most))) for _ in range(ROUNDS)]


def test_keys_of_a_text_are_those_of_its_lines_and_paragraphs(monkeypatch):
    monkeypatch.setattr(keys, "BLOCK", BLOCK)
    long = "a b" * 40
    parts = ["\n", "\n\n", "\n\n\n", long, "\u00c9x ", " " * 13, "\U0001f600", "q" * 199, "r" * 700]
    for text in mixture(parts, 14, seed=1)[:80]:
        found = keys_of(text)
        paragraphs = list(re.finditer(r"(?s)(.*?)\n{2,}", text))
        long_ones = [m for m in paragraphs if len(m[1]) >= LONG_PASSAGE]
        assert [key for *_, key in found.paragraphs] == [key_of(m[1]) for m in long_ones]
        assert [end for _, end, _ in found.paragraphs] == [m.end(1) for m in long_ones]
        lines = [line for line in text.split("\n") if len(line) >= SHORT]
        if all(len(line) < BLOCK for line in lines):
            assert found.lines.tolist() == [key_of(line) for line in lines]


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ("THE R\u00c9SUM\u00c9\nIS HERE", True),
        ("  the r\u00e9sum\u00e9 is here\n", True),
        ("the r\u00e9sum\u00e9 is her", False),
        ("the r\u00e9sum\u00e9 is here\0", False),
        ("the resume is here", False),
    ],
)
def test_key_leaves_capitals_and_line_ends_out_of_account(other, is_same):
    assert (key_of("The r\u00e9sum\u00e9 is here") == key_of(other)) == is_same


def test_speakers_of_a_plain_text_are_those_of_the_pattern():
    parts = ["\n", "\n", ":", ":\n", "a", "B b", " ", "\u2003", "\u00e9", "\r", "x" * 39, "x" * 41]
    for text in mixture(parts, 14, seed=2):
        expected = []
        for match in SPEAKER.finditer(text):
            speech = text[match.end() :].partition("\n\n")[0].rstrip("\n")
            expected.append((match[1], 1 + speech.count("\n")))
        assert list(speeches_in(text)) == expected


def test_usual_turn_is_what_the_whole_pattern_finds():
    names = ["Ann", "von B", "Mr. O'", "x" * 30, "\u00e9", " ", "\t", "**", "1"]
    after = [":", ": ", ":\t ", "(low): ", " 0:12: ", "words", ":x"]
    found = 0
    for name, rest in zip(mixture(names, 4, seed=3), mixture(after, 3, seed=4), strict=True):
        simple = SIMPLE_TURN.match(name + rest)
        if simple is not None:
            found += 1
            whole = TURN.match(name + rest)
            assert whole is not None
            assert (whole["name"].strip(), whole.end()) == (simple["name"].strip(), simple.end())
    assert found > ROUNDS / 20


def test_long_text_is_in_normal_form_wherever_its_marks_are(monkeypatch):
    monkeypatch.setattr(normal_form, "BLOCK", BLOCK)
    parts = [
        "e",
        "\u0301",
        "\u00e9",
        "\u2026",
        "\u1112",
        "\u1161",
        "\u11ab",
        "\u212b",
        "\U0001f600",
    ]
    for text in mixture([*parts, "word " * 90], 12, seed=4):
        assert normal_form.nfc(text) == unicodedata.normalize("NFC", text)
    first_marks = map(chr, range(normal_form.FIRST_MARK))
    assert all(unicodedata.is_normalized("NFC", f"e{character}") for character in first_marks)


def test_characters_are_counted_beyond_the_first_plane():
    text = "a\u00e9\u4e00\U0001f600" * 40_000 + "\U0001f600"
    assert count_characters(text) == Counter(text)
