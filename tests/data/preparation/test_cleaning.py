"""What is mended in a text, and what is found twice, does not depend on how it comes in."""

import random
import time
import unicodedata
from collections.abc import Iterable, Iterator

import pytest

from chatgot.data.preparation.cleaning import repeats
from chatgot.data.preparation.cleaning.cleaned import cleaned
from chatgot.data.preparation.cleaning.options import (
    CleaningFindings,
    CleaningOptions,
    merge_of,
)
from chatgot.data.preparation.cleaning.rare_characters import (
    SUBSTITUTE,
    plain_forms,
    replaced_count,
    with_plain_forms,
)
from chatgot.data.preparation.cleaning.whole_lines import LONG_LINE
from chatgot.data.preparation.pieces import (
    DocumentDropped,
    DocumentStart,
    Passage,
    Piece,
    PlainText,
    Speech,
)
from chatgot.errors import ConfigError

WORDS = ["moon", "river", "never", "again", "letter", "table", "rain", "home", "light", "door"]
PLAIN = CleaningOptions()
DROP = CleaningOptions(drop_duplicates=True)


def mended(
    pieces: Iterable[Piece], options: CleaningOptions = PLAIN
) -> tuple[list[Piece], CleaningFindings]:
    findings = CleaningFindings()
    return list(cleaned(iter(pieces), options, findings)), findings


def plain(text: str, options: CleaningOptions = PLAIN, cuts: Iterable[int] = ()) -> str:
    """Return a plain text mended, that came in chunks."""
    places = sorted(cuts)
    chunks = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    pieces, _ = mended((PlainText(chunk) for chunk in chunks), options)
    return "".join(piece.text for piece in pieces)


def speeches(seed: int, count: int) -> list[Piece]:
    rng = random.Random(seed)
    return [
        Speech(rng.choice(("Ann", "Ben")), " ".join(rng.choices(WORDS, k=rng.randint(5, 12))))
        for _ in range(count)
    ]


def episodes(*documents: list[Piece]) -> Iterator[Piece]:
    for number, document in enumerate(documents, 1):
        yield DocumentStart(f"e{number:02}")
        yield from document


# --------------------------------------------------------------------------------------------------
# Characters


def test_ascii_text_comes_out_unchanged():
    text = "ANN:\nI say 'no' -- \"never\" ...\n\n\n  Two\tspaces.  \n\nno line end"
    assert plain(text, DROP, cuts=[3, 5, 6, 40]) == text


def test_text_is_in_nfc_wherever_it_was_cut():
    text = unicodedata.normalize("NFD", "Zoë à Ångström\n각 한국어: é\nañb") * 3
    expected = unicodedata.normalize("NFC", text)
    assert expected != text
    for cut in range(1, len(text)):
        assert plain(text, cuts=[cut]) == expected
    assert plain(text, cuts=range(1, len(text))) == expected


def test_speech_and_passage_are_in_nfc():
    pieces, _ = mended([Speech("Zoe\u0308", "e\u0301"), Passage("a\u0300", 3.0)])
    assert pieces == [Speech("Zoë", "é"), Passage("à", 3.0)]


def test_long_line_is_mended_alike_wherever_it_was_cut():
    text = "x" + "e\u0301" * LONG_LINE + "\n"
    expected = "x" + "é" * LONG_LINE + "\n"
    rng = random.Random(1)
    for _ in range(3):
        assert plain(text, cuts=rng.sample(range(1, len(text)), 5)) == expected


def test_letter_with_very_many_marks_takes_no_quadratic_time():
    """Python sorts them in quadratic time: at once it would take a minute."""
    text = "a" + "\u0301\u0323" * 100_000
    start = time.process_time()
    once = plain(text)
    assert time.process_time() - start < 15
    assert plain(text, cuts=[7, 1000, 70_001, 150_000]) == once


def test_quotes_dashes_and_spaces_are_written_plainly_on_request():
    text = "“Well…” she said – ‘no’ — «oui»\u00a0!\u200b\n"
    options = CleaningOptions(normalize_quotes=True)
    pieces, findings = mended([PlainText(text), Speech("O’Neil", text.strip())], options)
    expected = '"Well..." she said - \'no\' -- "oui" !'
    assert pieces == [PlainText(expected + "\n"), Speech("O'Neil", expected)]
    assert findings.changed == {"quotes, dashes and spaces": 2 * 11 + 1}
    assert plain(text) == text


def test_speech_of_unseen_characters_alone_is_left_out():
    options = CleaningOptions(normalize_quotes=True)
    pieces, _ = mended([Speech("Ann", "\u200b"), Speech("Ann", "a\n\u200b\nb")], options)
    assert pieces == [Speech("Ann", "a\nb")]


# --------------------------------------------------------------------------------------------------
# Merging


def test_speakers_are_merged_in_speeches_and_plain_text():
    options = CleaningOptions(merge=merge_of(["ALICE=Alice,alice_99", "BOB=bob"]))
    pieces = [
        Speech("Alice", "alice_99 is me"),
        Speech("alice_99", "yes"),
        PlainText("alice_99:\nhi Alice:\n\nbo"),
        PlainText("b:\nalice_99: no\n"),
    ]
    result, findings = mended(pieces, options)
    assert [piece.name for piece in result[:2]] == ["ALICE", "ALICE"]
    assert result[0].text == "alice_99 is me"
    text = "".join(piece.text for piece in result[2:])
    assert text == "ALICE:\nhi Alice:\n\nBOB:\nalice_99: no\n"
    assert findings.remarks == []


def test_name_to_merge_that_nobody_has_is_said_with_the_nearest():
    options = CleaningOptions(merge=merge_of(["ALICE=alicia"]))
    _, findings = mended([Speech("Alice", "x"), Speech("Bob", "y")], options)
    assert findings.remarks == ["--merge: nobody is called alicia; the nearest name is Alice"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["ALICE"], "--merge ALICE: expected NAME=OTHER,OTHER"),
        (["=a"], "expected NAME"),
        (["A= ,"], "expected NAME"),
        (["A=x", "B=x"], "x is to become A and B"),
        (["A=B", "C=A"], "give all names at once"),
    ],
)
def test_merging_that_contradicts_itself_is_refused(arguments, part):
    with pytest.raises(ConfigError, match=part):
        merge_of(arguments)


# --------------------------------------------------------------------------------------------------
# What is there twice


def test_exact_and_near_duplicates_are_found_and_kept_by_default():
    one = speeches(1, 60)
    two = speeches(2, 60)
    pieces = list(episodes(one, two, one, [*two[:-1], Speech("Ann", "other words at the end")]))
    result, findings = mended(pieces)
    assert result == pieces
    assert findings.repeated == {"duplicate documents": 1, "near-duplicate documents": 1}
    assert [(repeat.title, repeat.earlier, repeat.is_exact) for repeat in findings.repeats] == [
        ("e03", "e01", True),
        ("e04", "e02", False),
    ]
    assert not findings.left_out


def test_duplicate_documents_are_dropped_on_request():
    one = speeches(1, 60)
    result, findings = mended(episodes(one, one, speeches(3, 60)), DROP)
    assert result.count(DocumentDropped()) == 1
    dropped = result.index(DocumentDropped())
    assert result[dropped + 1] == DocumentStart("e03")
    assert findings.left_out == {"duplicate documents": 1}


def test_plain_text_that_repeats_another_is_dropped_wherever_it_was_cut():
    text = "\n\n".join(" ".join(random.Random(n).choices(WORDS, k=20)) for n in range(30))
    halves = [PlainText(text[:777]), PlainText(text[777:])]
    result, _ = mended(episodes([PlainText(text)], halves), DROP)
    assert result[-1] == DocumentDropped()


@pytest.mark.parametrize("as_plain_text", [False, True])
def test_recap_is_dropped_on_request_and_the_rest_stays(as_plain_text):
    first = speeches(1, 40)
    second = speeches(2, 40)
    recap = [first[3], first[17], Passage("What?"), first[20], first[30], first[31]]
    documents = [first, [*recap, *second]]
    if as_plain_text:
        documents = [[PlainText(as_text(document))] for document in documents]
    kept, findings = mended(episodes(*documents))
    assert findings.repeated == {"recaps": 1}
    assert as_text(kept) == as_text([*first, *recap, *second])
    result, findings = mended(episodes(*documents), DROP)
    assert findings.left_out == {"recaps": 1}
    assert as_text(result) == as_text([*first, *second])


def as_text(pieces: Iterable[Piece]) -> str:
    parts = []
    for piece in pieces:
        if isinstance(piece, Speech):
            parts.append(f"{piece.name}:\n{piece.text}\n\n")
        elif isinstance(piece, Passage):
            parts.append(f"{piece.text}\n\n")
        elif isinstance(piece, PlainText):
            parts.append(piece.text)
    return "".join(parts)


@pytest.mark.parametrize("known", [[], [0], [0, 1], [5, 6, 7]])
def test_beginning_that_is_mostly_new_is_no_recap(known):
    first = speeches(1, 40)
    second = speeches(2, 40)
    for place in known:
        second[place] = first[place]
    _, findings = mended(episodes(first, second))
    assert not findings.repeated


def test_repeated_long_passage_is_dropped_on_request():
    long = " ".join(WORDS * 6)
    pieces = [Passage(long), *speeches(1, 20), Passage(long.upper()), Speech("Ann", "no")]
    result, findings = mended(episodes(pieces), DROP)
    assert Passage(long.upper()) not in result
    assert findings.left_out == {"repeated long passages": 1}
    text = f"{long}\n\nnew\n\n{long}\n\nlast\n"
    assert plain(text, DROP, cuts=[10, 400, 420]) == f"{long}\n\nnew\n\nlast\n"
    assert plain(text) == text


def test_what_is_remembered_is_bounded_and_the_limit_is_said(monkeypatch):
    monkeypatch.setattr(repeats, "MOST_LINES", 100)
    monkeypatch.setattr(repeats, "MOST_SIGNATURES", 3)
    documents = [speeches(seed, 40) for seed in range(6)]
    _, findings = mended(episodes(*documents, documents[5][1:]))
    assert not findings.repeated["near-duplicate documents"]
    assert findings.remarks == [
        "recaps were looked for among the first 100 lines only",
        "near-duplicate documents were looked for among the first 3 documents only",
    ]


# --------------------------------------------------------------------------------------------------
# Rare characters

COUNTS = {**dict.fromkeys("abcdefghijklmnopqrstuvwxyz'\"o", 50), "é": 2, "“": 3, "漢": 1, "Q": 1}


def test_rare_characters_get_a_plain_form_or_a_visible_substitute():
    forms = plain_forms({**COUNTS, "\n": 1, "ß": 1, "ﬁ": 1, "\u0301": 1, "и": 1}, 10)
    assert forms["é"] == "e"
    assert forms["“"] == '"'
    assert forms["漢"] == SUBSTITUTE
    assert forms["Q"] == "q"
    assert forms["ß"] == "ss"
    assert forms["ﬁ"] == "fi"
    assert forms["\u0301"] == ""
    assert "\n" not in forms
    assert replaced_count(COUNTS, plain_forms(COUNTS, 10)) == {
        "rare characters in their plain form": 6,
        f"rare characters written as {SUBSTITUTE}": 1,
    }


def test_plain_form_is_never_rare_itself():
    assert plain_forms({"é": 1, "e": 1, "ж": 90}, 10) == {"é": SUBSTITUTE, "e": SUBSTITUTE}


def test_lines_between_documents_keep_their_rare_characters():
    text = "a|b <|endoftext|>\n<|endoftext|>\n<|endoftext|> c\n<|endoftext|>"
    forms = dict.fromkeys("<|>", SUBSTITUTE)
    expected = "a□b □□endoftext□□\n<|endoftext|>\n□□endoftext□□ c\n<|endoftext|>"
    assert "".join(with_plain_forms([text], forms)) == expected
    for cut in range(len(text)):
        assert "".join(with_plain_forms([text[:cut], text[cut:]], forms)) == expected
    assert "".join(with_plain_forms(text, forms)) == expected
