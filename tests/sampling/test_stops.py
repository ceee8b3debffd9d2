"""What may be shown of a text: against plain definitions, however the text is cut into pieces."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatgot.data.prompts import SPEAKER
from chatgot.sampling.controls import Controls
from chatgot.sampling.stops import Shown

KNOWN = frozenset({"KING HENRY:", "KING:", "AB:"})


def controls(*stop: str, known: frozenset[str] | None = None) -> Controls:
    return Controls(stop=stop, stop_before_speaker=known)


def show(text: str, c: Controls, lengths: tuple[int, ...] = ()) -> tuple[list[str], Shown]:
    """Feed a text in pieces of these lengths, then its rest; return what was shown each time."""
    shown = Shown(c)
    steps = []
    for length in lengths:
        steps.append(shown.feed(text[:length]))
        text = text[length:]
    if text:
        steps.append(shown.feed(text))
    steps.append(shown.end())
    return steps, shown


def one_by_one(text: str, c: Controls) -> list[str]:
    return show(text, c, (1,) * len(text))[0]


# The plain definitions, for a whole text


def plain_cuts(text: str, c: Controls) -> list[tuple[int, int, str]]:
    """Return where each stop of a text begins, where it ends, and what it is."""
    cuts = [
        (i, i + len(stop), stop)
        for stop in c.stop
        for i in range(len(text))
        if text[i:].startswith(stop)
    ]
    lines = text.split("\n")
    for n, line in enumerate(lines[:-1]):  # the last one has no line feed
        after_blank_line = n > 0 and not lines[n - 1]
        looks_like_one = SPEAKER.match(f"{line}\nwords") is not None
        if c.stop_before_speaker is not None and (
            line in c.stop_before_speaker or (after_blank_line and looks_like_one)
        ):
            before = "".join(f"{earlier}\n" for earlier in lines[:n])
            cuts.append((len(before.rstrip("\n")), len(before) + len(line) + 1, line))
    return cuts


def plain_shown(text: str, c: Controls) -> tuple[str, str]:
    """Return what is shown of a whole text, and what stopped it."""
    cuts = plain_cuts(text, c)
    if not cuts:
        return text, ""
    start, _, name = min(cuts)
    return text[:start], name


def plain_is_certain(text: str, c: Controls) -> int:
    """Return how much of a text that may go on is shown whatever comes next.

    What can come next: the rest of each stop and of each known line, and a short speaker's line.
    """
    endings = [stop[i:] for stop in c.stop for i in range(len(stop))]
    if c.stop_before_speaker is not None:
        for name in [*c.stop_before_speaker, "A:"]:
            endings += [f"{name}\n"[i:] for i in range(len(name) + 1)]
            endings += [f"\n{name}\n", f"\n\n{name}\n"]
    return min(len(plain_shown(text + ending, c)[0]) for ending in ["", *endings])


ALPHABET = "AB:\n "
texts = st.text(ALPHABET, max_size=40)
pieces = st.lists(st.sampled_from(["A", "B:", "AB:", "\n", "\n\n", ":\n", "KING:", " ", "KING "]))
some_texts = st.one_of(texts, pieces.map("".join))
some_stops = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=3)
some_controls = st.builds(
    controls, known=st.sampled_from([None, frozenset(), KNOWN, frozenset({"A B:", ":"})])
).flatmap(lambda c: some_stops.map(lambda stops: controls(*stops, known=c.stop_before_speaker)))
some_lengths = st.lists(st.integers(0, 6), max_size=20).map(tuple)


@settings(max_examples=400, deadline=None)
@given(some_texts, some_controls, some_lengths)
@example("xAB\nA", controls("AB\nAB", "\n"), (1, 1, 1, 1))
@example("A\nKING:\nB", controls("KING", known=KNOWN), (1,) * 9)
def test_what_is_shown_does_not_depend_on_the_pieces(text, c, lengths):
    expected, stopped_by = plain_shown(text, c)
    steps, shown = show(text, c, lengths)
    assert "".join(steps) == expected
    assert shown.stopped_by == stopped_by
    assert shown.ended
    assert not any(stop in "".join(steps) for stop in c.stop)


@settings(max_examples=150, deadline=None)
@given(some_texts, some_controls)
def test_all_that_is_certain_is_shown_at_once(text, c):
    """No more is held back than what a stop may still cut off."""
    shown = Shown(c)
    so_far = ""
    for i, character in enumerate(text, 1):
        so_far += shown.feed(character)
        assert len(so_far) == plain_is_certain(text[:i], c)


# Stop strings


def test_a_stop_is_held_back_until_it_cannot_complete():
    assert one_by_one("a<b</c", controls("</s>")) == ["a", "", "<b", "", "", "</c", ""]


def test_the_text_ends_at_once_when_a_stop_is_complete():
    shown = Shown(controls("END", "stop"))
    assert shown.feed("one EN") == "one "
    assert not shown.ended
    assert shown.feed("D two stop") == ""
    assert (shown.ended, shown.stopped_by) == (True, "END")
    assert shown.feed("more") == shown.end() == ""


def test_a_longer_stop_from_the_same_place_is_not_waited_for():
    shown = Shown(controls("ab", "abc"))
    assert shown.feed("xab") == "x"
    assert (shown.ended, shown.stopped_by) == (True, "ab")


def test_an_earlier_stop_that_may_come_is_waited_for():
    shown = Shown(controls("abcd", "c"))
    assert shown.feed("xabc") == "x"
    assert not shown.ended
    assert shown.feed("e") == "ab"
    assert shown.stopped_by == "c"


def test_the_end_releases_what_no_stop_has_taken():
    assert show("one EN", controls("END"))[0] == ["one ", "EN"]
    steps, shown = show("xabc", controls("abcd", "c"))
    assert (steps, shown.stopped_by) == (["x", "ab"], "c")


def test_empty_stops_are_none():
    assert show("words", controls(""))[0] == ["words", ""]


# Speakers


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ay.\n\nFOOL:\nNay", "Ay."),
        ("Ay.\n\n\n\nFOOL:\nNay", "Ay."),
        ("Ay.\nFOOL:\nNay", "Ay.\nFOOL:\nNay"),  # neither known nor after a blank line
        ("Ay.\nKING HENRY:\nNay", "Ay."),
        ("Ay.\nKING HENRY: Nay", "Ay.\nKING HENRY: Nay"),
        ("Ay.\nO KING HENRY:\n", "Ay.\nO KING HENRY:\n"),
        ("Ay.\n\nKING HENRY:", "Ay.\n\nKING HENRY:"),  # without its line feed
        ("Ay.\n\n" + "x" * 41 + ":\n", "Ay.\n\n" + "x" * 41 + ":\n"),
        ("KING HENRY:\nAy", ""),
        ("FOOL:\nAy", "FOOL:\nAy"),
        ("\nFOOL:\nAy", ""),
        ("\n\nFOOL:\nAy", ""),
        ("Ay.\n\n", "Ay.\n\n"),
    ],
)
def test_a_text_ends_before_the_line_of_a_speaker(text, shown):
    for steps in (one_by_one(text, controls(known=KNOWN)), show(text, controls(known=KNOWN))[0]):
        assert "".join(steps) == shown


def test_blank_lines_are_held_back_while_a_speaker_may_follow():
    steps = one_by_one("Oh.\n\nOh, no: I\nam", controls(known=KNOWN))
    assert steps == [*"Oh.", "", "", *[""] * 7, "\n\nOh, no: ", "I", "", "\na", "m", ""]


def test_an_unknown_line_is_shown_as_soon_as_it_is_no_speaker():
    assert one_by_one("Oh\nKIT", controls(known=KNOWN)) == ["O", "h", "", "", "", "\nKIT", ""]


def test_a_speaker_stops_a_text_only_when_asked():
    text = "Ay.\n\nKING HENRY:\nNay"
    assert one_by_one(text, controls()) == [*text, ""]


def test_the_line_of_the_speaker_is_what_stopped_the_text():
    shown = show("Ay.\n\nFOOL:\nNay", controls("Nay", known=KNOWN))[1]
    assert shown.stopped_by == "FOOL:"


def test_a_thousand_names_cost_little_per_character():
    """Far above what it takes, far below what it took if each name were looked at each time."""
    names = frozenset(f"LORD {number}:" for number in range(1000))
    text = "\n".join(["LORD 9 has"] * 400)
    began = time.process_time()
    assert "".join(one_by_one(text, controls(known=names))) == text
    assert (time.process_time() - began) / len(text) < 5e-5
