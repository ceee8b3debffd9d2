"""Who speaks in a text: counted as a reader would count, whatever the size of the chunks."""

import tracemalloc
from unittest.mock import patch

import numpy as np
import parts
import pytest

from chatgot.data import speaker_lines
from chatgot.data import vocabulary as vocabularies
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import END_OF_TEXT, Characters
from chatgot.run.assembly import Run, assemble
from chatgot.sampling import speakers
from chatgot.sampling.speakers import Speaker, count_speakers, default_pair


def speech(name: str, lines: int = 1) -> str:
    return f"{name}:\n" + "Some words.\n" * lines + "\n"


def counted(text: str) -> list[Speaker]:
    vocabulary = Characters("".join(sorted(set(text.replace(END_OF_TEXT, "")))))
    return count_speakers(np.array(vocabulary.encode(text), dtype="<u2"), vocabulary)


def names(text: str) -> list[str]:
    return [speaker.name for speaker in counted(text)]


TALK = (speech("ANN", 4) + speech("BOB", 2)) * 3 + (speech("BOB") + speech("Third Lord")) * 4


def test_speakers_have_their_lines_share_and_partner_most_lines_first():
    assert counted(TALK) == [
        Speaker("ANN", 12, 12 / 26, "BOB"),
        Speaker("BOB", 10, 10 / 26, "Third Lord"),
        Speaker("Third Lord", 4, 4 / 26, "BOB"),
    ]


def test_who_speaks_twice_only_is_no_known_speaker():
    """A heading may end with a colon; but its lines are spoken by somebody."""
    text = speech("ANN", 2) * 3 + speech("Contents", 3) * 2
    assert counted(text) == [Speaker("ANN", 6, 0.5, "")]


def test_a_line_that_ends_with_a_colon_does_not_end_a_speech():
    verse = "ANN:\nHear what he says:\nNo more.\nNot now.\n\n"
    assert [(s.name, s.lines) for s in counted(verse + speech("ANN") * 2)] == [("ANN", 5)]


def test_speeches_need_no_blank_lines_between_them():
    text = "ann:\nhello\nthere\nbob:\nhi\n" * 3
    assert [(s.name, s.lines, s.partner) for s in counted(text)] == [
        ("ann", 6, "bob"),
        ("bob", 3, "ann"),
    ]


def test_speakers_of_two_documents_exchange_nothing():
    text = (speech("ANN") + f"{END_OF_TEXT}\n" + speech("BOB") + f"{END_OF_TEXT}\n") * 3
    assert [s.partner for s in counted(text)] == ["", ""]


def test_a_name_that_cannot_be_shown_is_no_speaker():
    assert names(speech("AN\x1bN") * 3 + speech("BOB") * 3) == ["BOB"]


@pytest.mark.parametrize("text", ["words\n" * 9, "one: two: " * 9, "ANN;\nwords\n\n" * 9, ":\n"])
def test_a_text_without_speakers_has_none(text):
    assert counted(text) == []


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50])
def test_the_size_of_the_chunks_changes_nothing(chunk):
    long_line = "and so on, " * 20 + "as they say"
    text = f"{long_line}:\nwords\n\n" * 3 + f"{TALK}{END_OF_TEXT}\n{TALK}{long_line}\nANN:\n"
    whole = counted(text)
    assert [speaker.name for speaker in whole] == ["ANN", "BOB", "Third Lord"]
    with patch.object(vocabularies, "CHUNK", chunk):
        assert counted(text) == whole


def test_memory_does_not_grow_with_the_text():
    """Not with its length, nor with the number of its names, nor with that of a line."""
    text = "".join(speech(f"N{i}") for i in range(2000)) * 3 + "a long line " * 20_000
    vocabulary = Characters("".join(sorted(set(text))))
    ids = np.array(vocabulary.encode(text), dtype="<u2")
    with (
        patch.object(vocabularies, "CHUNK", 1 << 10),
        patch.object(speaker_lines, "MOST_COUNTED", 50),
        patch.object(speakers, "MOST_COUNTED", 50),
    ):
        tracemalloc.start()
        found = count_speakers(ids, vocabulary)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(found) == 50
    assert peak < ids.nbytes / 4


def test_only_the_speakers_with_most_lines_are_kept():
    text = speech("ANN", 3) * 3 + speech("BOB") * 3 + speech("EVE", 2) * 3
    with patch.object(speakers, "MOST_SPEAKERS", 2):
        assert names(text) == ["ANN", "EVE"]


def test_the_two_with_most_lines_that_talk_to_each_other_are_the_pair():
    known = [
        Speaker("ANN", 90, 0.4, "TOM"),
        Speaker("BOB", 80, 0.3, "EVE"),
        Speaker("EVE", 70, 0.2, "BOB"),
        Speaker("TOM", 5, 0.1, "ANN"),
    ]
    assert default_pair(known) == ("EVE", "BOB")


def test_the_one_with_more_lines_of_a_pair_answers():
    """Also where the partner of the one with more lines is another."""
    known = [
        Speaker("ANN", 90, 0.5, "TOM"),
        Speaker("BOB", 80, 0.3, "ANN"),
        Speaker("TOM", 5, 0.2, "ANN"),
    ]
    assert default_pair(known) == ("BOB", "ANN")


@pytest.mark.parametrize(
    ("lines", "pair"), [([], ("", "")), ([5], ("", "")), ([5, 4, 3], ("N1", "N0"))]
)
def test_a_pair_that_does_not_talk_is_the_first_two(lines, pair):
    known = [Speaker(f"N{i}", count, 0.1, "") for i, count in enumerate(lines)]
    assert default_pair(known) == pair


# In a run


def run_with_speakers(stored=None, sha256: str = "1" * 64) -> Run:
    """Return a run whose training part is the first half of its text."""
    talk = TALK * 3
    text = talk + (speech("EVE") * 999)[: len(talk)]
    vocabulary = Characters("".join(sorted(set(text))))
    ids = np.array(vocabulary.encode(text), dtype="<u2")
    tokens = Tokens(ids, vocabulary, sha256, "utf-8")
    run = assemble(parts.config(data={"test_split": 0.5}), tokens, parts.CPU, stored)
    run.state.run_id = parts.RUN_ID
    return run


def test_a_checkpoint_has_the_speakers_of_the_training_part():
    stored = run_with_speakers().checkpoint()["speakers"]
    assert stored[0] == {"name": "ANN", "lines": 36, "share": 36 / 78, "partner": "BOB"}
    assert [speaker["name"] for speaker in stored] == ["ANN", "BOB", "Third Lord"]


def test_a_resume_takes_stored_speakers_but_counts_those_of_another_text():
    stored = run_with_speakers().checkpoint()
    stored["speakers"] = [{**stored["speakers"][0], "partner": ""}]
    assert len(run_with_speakers(stored).speakers) == 1
    assert len(run_with_speakers(stored, "2" * 64).speakers) == 3


def test_a_resume_from_a_file_without_speakers_counts_them():
    stored = run_with_speakers().checkpoint()
    del stored["speakers"]
    assert [speaker.name for speaker in run_with_speakers(stored).speakers][:1] == ["ANN"]
