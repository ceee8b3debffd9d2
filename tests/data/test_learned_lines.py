"""What `data.learn_from` learns: each character of a speech, and where it ends; nothing else."""

import logging
from collections.abc import Iterator
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgot.data import learned_lines
from chatgot.data import vocabulary as vocabularies
from chatgot.data.learned_lines import LearnedTokens, learned_tokens
from chatgot.data.vocabulary import END_OF_TEXT, Characters
from chatgot.errors import ConfigError

HELD_OUT = "\n\nANN:\nHeld out.\n\nEVE:\nNo.\n"  # ANN speaks, then others
DOCUMENT_END = "\0"


def characters_of(text: str) -> Characters:
    return Characters("".join(sorted(set(text.replace(END_OF_TEXT, "")))))


def split(text: str, names: list[str], held_out: str = HELD_OUT) -> tuple[str, str]:
    """Return what is learned from a training part, and evaluated in a held-out part.

    The end-of-text token is shown as a character.
    """
    vocabulary = characters_of(text + held_out)
    ids = np.array(vocabulary.encode(text + held_out), dtype="<u2")
    n_train = len(ids) - len(held_out)
    shown = "".join(vocabulary.chunks_of_text(ids, DOCUMENT_END))
    train, rest = learned_tokens(ids, n_train, vocabulary, names)
    return of(train, shown[:n_train]), of(rest, shown[n_train:])


def of(learned: LearnedTokens, shown: str) -> str:
    flags = learned.contain(np.arange(len(shown)))
    assert len(learned) == flags.sum()
    return "".join(character for character, flag in zip(shown, flags, strict=True) if flag)


def learned(text: str, *names: str) -> str:
    return split(text, list(names))[0]


# By hand


def test_a_speech_is_learned_with_its_blank_line_and_nothing_else_is():
    text = "Act 1\n\nANN:\nOne.\nTwo.\n\nBOB:\nThree.\n\nANN:\nFour.\n\nExit.\n\n"
    assert learned(text, "ANN") == "One.\nTwo.\n\nFour.\n\n"
    assert learned(text, "BOB") == "Three.\n\n"
    assert learned(text, "BOB", "ANN") == "One.\nTwo.\n\nThree.\n\nFour.\n\n"


def test_a_known_speakers_line_ends_a_speech_and_is_not_learned():
    text = "ANN:\nOne.\nBOB:\nTwo.\nANN:\nThree.\nBOB:\nFour.\nBOB:\nFive.\n\n"
    assert learned(text, "ANN") == "One.\nThree.\n"


def test_a_line_with_a_colon_goes_on_with_the_speech():
    text = "ANN:\nHe says: no.\nHear him:\nNo.\n\nContents:\nOne\n\nANN:\nEnd.\n\n"
    assert learned(text, "ANN") == "He says: no.\nHear him:\nNo.\n\nEnd.\n\n"


def test_a_name_of_learn_from_is_known_though_it_speaks_once():
    text = "BOB:\nOne.\nANN:\nTwo.\n\n"
    assert learned(text, "ANN") == "Two.\n\n"
    assert learned(text, "BOB") == "One.\nANN:\nTwo.\n\n"
    assert learned(text, "BOB", "ANN") == "One.\nTwo.\n\n"


def test_names_are_matched_exactly():
    text = "ANN:\nOne.\n\nANNA:\nTwo.\n\nAnn:\nThree.\n\nOLD ANN:\nFour.\n\n"
    assert learned(text, "ANN") == "One.\n\n"


@pytest.mark.parametrize("blank", ["", "\n"])
def test_the_end_of_text_is_learned_where_the_speech_ends_the_document(blank):
    text = f"ANN:\nOne.\n{blank}{END_OF_TEXT}\nBOB:\nTwo.\n{blank}{END_OF_TEXT}\nThree.\n"
    assert learned(text, "ANN") == f"One.\n{blank}{DOCUMENT_END}"


def test_the_end_of_text_after_something_else_is_not_learned():
    text = f"ANN:\nOne.\n\nExit.\n{END_OF_TEXT}\nANN:\nTwo.\n\n\n{END_OF_TEXT}\n"
    assert learned(text, "ANN") == "One.\n\nTwo.\n\n"


def test_a_speech_over_the_edge_of_the_parts_is_learned_and_evaluated():
    """Who speaks at the beginning of the held-out part stands in the training part."""
    assert split("ANN:\nOne.\nTw", ["ANN"], "o.\n\nBOB:\nThree.\n") == ("One.\nTw", "o.\n\n")


def test_a_speech_may_end_with_the_text():
    assert split("ANN:\nOne.\n\n", ["ANN"], "ANN:\nTwo") == ("One.\n\n", "Two")


def test_a_long_line_does_not_shift_what_is_learned():
    text = f"{'long ' * 99}\n\nANN:\n{'longer ' * 99}\nOne.\n\n{'and on ' * 99}:\nBOB:\nNo.\n"
    with patch.object(vocabularies, "CHUNK", 7):
        assert learned(text, "ANN") == f"{'longer ' * 99}\nOne.\n\n"


# Who never speaks


def refusal(text: str, *names: str, held_out: str = HELD_OUT) -> str:
    with pytest.raises(ConfigError) as caught:
        split(text, list(names), held_out)
    assert caught.value.exit_code == 2
    return str(caught.value)


SPEECHES = "FALSTAFF:\nOne.\n\n" + "KING HENRY V:\nTwo.\n\n" * 2


def test_a_name_that_never_speaks_is_refused_with_the_nearest():
    assert refusal(SPEECHES, "FALSTAFF", "FALSTAF") == (
        "data.learn_from: FALSTAF never speaks in the training part of the text; "
        "did you mean FALSTAFF?"
    )


@pytest.mark.parametrize(
    ("typed", "meant"), [("falstaff", "FALSTAFF"), ("FALSTAFF:", "FALSTAFF"), ("Henry", "HENRY V")]
)
def test_the_hint_knows_a_name_in_another_case_or_with_its_colon(typed, meant):
    assert refusal(SPEECHES.replace("KING ", ""), typed).endswith(f"did you mean {meant}?")


def test_a_name_like_none_gets_those_who_speak_most():
    assert "most often speak KING HENRY V, FALSTAFF" in refusal(SPEECHES, "Q")


def test_a_text_in_which_nobody_speaks_is_refused():
    assert "nobody does" in refusal("Words.\n" * 9, "ANN")


def test_a_name_only_in_the_held_out_part_is_refused():
    assert "ANN never speaks in the training part" in refusal(SPEECHES, "ANN")


def test_where_they_do_not_speak_held_out_everyones_lines_are_evaluated(caplog):
    with caplog.at_level(logging.WARNING):
        train, held_out = split(SPEECHES, ["FALSTAFF"])
    assert (train, held_out) == ("One.\n\n", "Held out.\n\nNo.\n")
    (record,) = caplog.records
    assert record.getMessage() == (
        "data.learn_from: no line of FALSTAFF is in the held-out part, so val_loss is that of "
        "everyone's lines there"
    )


def test_a_held_out_part_without_any_speech_is_refused():
    assert "nobody speaks in the held-out part" in refusal(SPEECHES, "FALSTAFF", held_out="\nEnd.")
    # the first token of a part is never a target
    assert "nobody speaks" in refusal("FALSTAFF:\nOne.\n", "FALSTAFF", held_out="\nEnd.")


# Against a plain reference, which has the whole text in hand

LINES = ["ANN:", "BOB:", "Scene:", "Yes.", "é: so", "", "", " 漢字", END_OF_TEXT, "x" * 70]
texts = st.lists(st.sampled_from(LINES), max_size=30).map("\n".join)


def names_speaker(line: str, next_line: str) -> bool:
    named = line.endswith(":") and 1 < len(line) <= 41 and line.count(":") == 1
    return named and not line[0].isspace() and next_line[:1].strip() != ""


def plainly_learned(shown: str, n_train: int, names: set[str]) -> list[bool]:
    """Return for each character whether it is learned."""

    def speakers(text: str) -> list[str]:
        pairs = pairwise([*text.split("\n"), ""])
        return [line[:-1] for line, next_line in pairs if names_speaker(line, next_line)]

    speaks = speakers(shown[:n_train])
    known = {name for name in speaks if speaks.count(name) >= 3} | names
    flags = []
    speaker = None
    just_ended = None  # who spoke until the line before
    for line, next_line in pairwise([*shown.split("\n"), ""]):
        begins = names_speaker(line, next_line) and (speaker is None or line[:-1] in known)
        if line == DOCUMENT_END:
            flags += [speaker in names or just_ended in names, False]
        elif begins:
            flags += [False] * (len(line) + 1)
        else:
            flags += [speaker in names] * (len(line) + 1)
        just_ended = speaker if not line else None
        if begins:
            speaker = line[:-1]
        elif line in ("", DOCUMENT_END):
            speaker = None
    return flags[: len(shown)]


@given(texts, st.integers(1, 9), st.sampled_from([{"ANN"}, {"BOB"}, {"ANN", "Scene"}]))
def test_any_text_is_learned_as_the_plain_reference_says(text, chunk, names):
    text = "\n\n".join(f"{name}:\nOne." for name in sorted(names)) + f"\n{text}"
    vocabulary = characters_of(text + HELD_OUT)
    ids = np.array(vocabulary.encode(text + HELD_OUT), dtype="<u2")
    n_train = len(ids) - len(HELD_OUT)
    shown = "".join(vocabulary.chunks_of_text(ids, DOCUMENT_END))
    expected = plainly_learned(shown, n_train, names)
    held_out_of_names = any(expected[n_train + 1 :])
    with patch.object(vocabularies, "CHUNK", chunk), patch.object(learned_lines, "CHUNK", chunk):
        train, rest = learned_tokens(ids, n_train, vocabulary, sorted(names))
    assert train.contain(np.arange(n_train)).tolist() == expected[:n_train]
    if held_out_of_names:
        assert rest.contain(np.arange(len(HELD_OUT))).tolist() == expected[n_train:]


class Pieces(Characters):
    """A vocabulary in which token i is the i-th piece of a text's UTF-8, wherever it was cut."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__("")
        object.__setattr__(self, "pieces", pieces)

    def chunks_of_text(self, ids: np.ndarray, document_end: str) -> Iterator[str]:
        yield b"".join(self.pieces[i] for i in ids).decode(errors="ignore")

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        return np.array([sum(byte & 0xC0 != 0x80 for byte in self.pieces[i]) for i in ids])


@given(texts, st.sets(st.integers(1, 400)), st.integers(1, 9))
def test_a_token_of_several_characters_is_learned_where_its_first_one_is(text, cuts, chunk):
    """The first one may have begun in the token before."""
    shown = f"ANN:\nOne.\n{text}".replace(END_OF_TEXT, DOCUMENT_END) + HELD_OUT
    content = shown.encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    pieces = [content[begin:end] for begin, end in pairwise(edges)]
    whole = [content[:begin].decode(errors="ignore") for begin in edges[:-1]]
    n_train = len(pieces)
    ids = np.arange(n_train, dtype="<u2")
    expected = plainly_learned(shown, len(shown), {"ANN"})
    with (
        patch.object(learned_lines, "CHUNK", chunk),
        patch.object(LearnedTokens, "targets", lambda *_: 1),  # there is no held-out part
    ):
        train, _ = learned_tokens(ids, n_train, Pieces(pieces), ["ANN"])
    flags = train.contain(np.arange(n_train)).tolist()
    assert flags == [expected[len(before)] for before in whole]


# Counting


@given(st.sets(st.integers(0, 60)), st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_spans_count_and_cut_as_a_set_of_tokens_does(places, begin, end, T):
    edges = sorted(places)[: len(places) // 2 * 2]
    begins, ends = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    tokens = {i for begin, end in zip(begins, ends, strict=True) for i in range(begin, end)}
    spans = LearnedTokens(begins, ends)
    every = np.arange(70)
    assert len(spans) == len(tokens)
    assert spans.contain(every).tolist() == [i in tokens for i in range(70)]
    assert spans.in_windows(every, T).tolist() == [
        len(tokens & set(range(i + 1, i + 1 + T))) for i in range(70)
    ]
    begin, end = sorted([begin, end])
    part = spans.part(begin, end)
    assert part.contain(every).tolist() == [i + begin in tokens and i + begin < end for i in every]
