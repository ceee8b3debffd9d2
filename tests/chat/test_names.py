"""A typed name means a known speaker where it can."""

import pytest

from chatgot.chat.names import known_name, mistake_in_name, nearest, split_names

KNOWN = ["HAMLET", "LADY MACBETH", "MACBETH", "LADY ANNE", "First Lord"]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("hamlet", "HAMLET"),
        ("  lady   macbeth ", "LADY MACBETH"),
        ("First Lord", "First Lord"),
        ("Zoe", "Zoe"),
    ],
)
def test_name_is_known_in_whatever_case_it_was_typed(typed, name):
    assert known_name(typed, KNOWN) == name


@pytest.mark.parametrize("name", ["", "A:B", "a" * 41, "A\nB", "A\x1b[2J", " A"])
def test_what_cannot_be_a_speakers_line_is_refused(name):
    assert "expected 1 to 40 characters" in mistake_in_name(name)
    assert mistake_in_name("a" * 40) == ""


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("hamlet lady macbeth", ["HAMLET", "LADY MACBETH"]),
        ("macbeth hamlet macbeth", ["MACBETH", "HAMLET"]),
        ("lady anne, Zoe Smith, ", ["LADY ANNE", "Zoe Smith"]),
        ("Zoe hamlet", ["Zoe", "HAMLET"]),
        ("", []),
    ],
)
def test_names_are_split_at_commas_or_between_known_names(typed, names):
    assert split_names(typed, KNOWN) == names


def test_nearest_names_have_a_word_that_begins_so_or_like_letters():
    assert nearest("hamlt", KNOWN) == ["HAMLET"]
    assert nearest("mac", KNOWN) == ["LADY MACBETH", "MACBETH"]
    assert nearest("lady", KNOWN) == ["LADY MACBETH", "LADY ANNE"]
    assert nearest("xyz", KNOWN) == []
