"""Lines break between words, whatever the pieces are."""

import pytest

from chatgot.chat.wrapping import Wrapper

TEXT = "To be, or not to be,\n  that is the question:\n\nunconscionable words"


def wrapped(text: str, width: int, piece: int) -> str:
    wrapper = Wrapper(width)
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    return "".join(map(wrapper.feed, pieces)) + wrapper.end()


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_lines_break_between_words(piece):
    assert wrapped(TEXT, 12, piece) == (
        "To be, or\nnot to be,\n  that is\nthe\nquestion:\n\nunconscionable\nwords"
    )
    assert wrapped(TEXT, 80, piece) == TEXT


def test_wide_characters_take_two_columns():
    assert wrapped("\u4f60\u597d \u4f60\u597d", 8, 1) == "\u4f60\u597d\n\u4f60\u597d"


def test_a_complete_word_is_shown_at_once():
    wrapper = Wrapper(20)
    assert wrapper.feed("To b") == "To"
    assert wrapper.feed("e ") == " be"
