"""Nothing that tells who somebody is stays in an anonymised text, and nothing else goes."""

from collections.abc import Iterable

import pytest

from chatgot.data.preparation.cleaning import pseudonyms
from chatgot.data.preparation.cleaning.cleaned import cleaned, names_in
from chatgot.data.preparation.cleaning.options import (
    CleaningFindings,
    CleaningOptions,
    merge_of,
)
from chatgot.data.preparation.pieces import Passage, Piece, PlainText, Speech
from chatgot.data.prompts import is_speaker_name

ANONYMIZE = CleaningOptions(anonymize=True)


def anonymized(
    pieces: Iterable[Piece], options: CleaningOptions = ANONYMIZE
) -> tuple[list[Piece], CleaningFindings]:
    pieces = list(pieces)
    findings = CleaningFindings()
    names = names_in(iter(pieces), options)
    return list(cleaned(iter(pieces), options, findings, names)), findings


def said(text: str, *speakers: str) -> str:
    """Return what becomes of a text that Ann says, in a conversation with others."""
    others = [Speech(speaker, "hm") for speaker in speakers]
    (speech, *_), _ = anonymized([Speech("Ann", text), *others])
    return speech.text


def test_same_name_gets_the_same_pseudonym_everywhere():
    pieces = [
        Passage("Bob enters."),
        Speech("Ann", "Bob's late, BOB! bob? Bobby, Bob."),
        Speech("Bob", "Sorry, Ann."),
        PlainText("Bob:\nAnn and Bob\n"),
    ]
    result, findings = anonymized(pieces)
    assert result == [
        Passage("Person_2 enters."),
        Speech("Person_1", "Person_2's late, Person_2! Person_2? Bobby, Person_2."),
        Speech("Person_2", "Sorry, Person_1."),
        PlainText("Person_2:\nPerson_1 and Person_2\n"),
    ]
    assert findings.changed == {"names of speakers": 2, "names in the text": 9}
    assert is_speaker_name("Person_1")


@pytest.mark.parametrize(
    ("text", "speakers", "expected"),
    [
        ("Alice, Smith, Alice Smith", ["Alice Smith"], "Person_2, Person_2, Person_2"),
        ("Tom Lee and Kim Lee: Lee!", ["Tom Lee", "Kim Lee"], "Person_2 and Person_3: Name_4!"),
        ("tell zoë's dog", ["Zoë"], "tell Person_2's dog"),
        ("你好小明你好", ["小明"], "你好Person_2你好"),
        ("vitamin D and D", ["D"], "vitamin D and D"),
        ("Person_1 said so", ["Person_1"], "Person_3 said so"),
        (r"a.b (c) \d", ["a.b (c)"], r"Person_2 \d"),
    ],
)
def test_mentions_are_replaced_as_whole_words(text, speakers, expected):
    assert said(text, *speakers) == expected


def test_name_that_is_a_word_stays_in_small_letters_and_is_said():
    text = "Will will " + "they will " * 30
    result, findings = anonymized([Speech("Will", text)])
    assert result[0].text.startswith("Person_1 will they will")
    assert findings.remarks == [
        "--anonymize: left in small letters, where they are ordinary words: will"
    ]


def test_merged_names_are_one_person_where_they_are_mentioned():
    options = CleaningOptions(anonymize=True, merge=merge_of(["Ann=annie_99"]))
    pieces = [Speech("annie_99", "hi"), Speech("Ben", "ann is annie_99")]
    result, _ = anonymized(pieces, options)
    assert result == [Speech("Person_1", "hi"), Speech("Person_2", "Person_1 is Person_1")]


def test_plain_text_has_names_but_no_headings_wherever_it_was_cut():
    text = "Recipe:\ntake Recipe 1\n\n" + "Zed:\nhello Zed\n\n" * 3
    result, _ = anonymized(map(PlainText, text))
    assert "".join(piece.text for piece in result) == text.replace("Zed", "Person_1")


@pytest.mark.parametrize(
    "phone",
    [
        "+49 170 1234567",
        "+1 (555) 010-9999",
        "(555) 010-9999",
        "555-010-9999",
        "0170/1234567",
        "0049 170 1234567",
        "4915112345678",
    ],
)
def test_phone_numbers_are_replaced(phone):
    assert said(f"call {phone}, or {phone}.") == "call [phone 1], or [phone 1]."


@pytest.mark.parametrize(
    "text",
    ["2024-05-01", "01.02.2024", "12:30:45", "1,000,000", "1914-1918", "3.14159265", "42", "7 8 9"],
)
def test_dates_and_amounts_are_no_phone_numbers(text):
    assert said(f"in {text} so") == f"in {text} so"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://a.example/x?y=1&z#q.", "see [link 1]."),
        ("(www.example.org/ann)", "([link 1])"),
        ("youtu.be/abc and youtu.be/abc", "[link 1] and [link 1]"),
        ("ann.b+c@mail.example.org!", "[mail 1]!"),
        ("X@Y.org, x@y.org, z@y.org", "[mail 1], [mail 1], [mail 2]"),
        ("and/or, 1/2, a@b, e.g. this", "and/or, 1/2, a@b, e.g. this"),
    ],
)
def test_links_and_mail_addresses_are_replaced(text, expected):
    assert said(text) == expected


def test_speaker_who_is_a_phone_number_is_that_person_where_mentioned():
    assert said("@491701234567 and +49 170 1234567", "+49 170 1234567") == "@Person_2 and Person_2"


def test_thousands_of_names_are_found_by_one_pattern():
    names = [f"Name{number}x" for number in range(3000)]
    text = " ".join(names)
    result, _ = anonymized([Speech(names[0], text), *(Speech(name, "hm") for name in names)])
    assert result[0].text == " ".join(f"Person_{number}" for number in range(1, 3001))


def test_names_beyond_the_limit_share_a_pseudonym_and_it_is_said(monkeypatch):
    monkeypatch.setattr(pseudonyms, "MOST_SPEAKERS", 3)
    result, findings = anonymized(Speech(f"N{number}", "hm") for number in range(5))
    assert [piece.name for piece in result][3:] == ["Person_0", "Person_0"]
    assert findings.remarks == ["--anonymize: speakers after the first 3 are all Person_0"]


@pytest.mark.parametrize("character", ["a", "1", "@", ".", "/", "a.", "+1 ", "www."])
def test_hostile_repetition_takes_no_quadratic_time(character):
    """If each of half a million characters started a search to the end, it would not end."""
    said(character * (500_000 // len(character)))
