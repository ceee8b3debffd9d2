"""The prompts of a text: its speakers, else how its paragraphs begin."""

from chatgot.data.prompts import prompts_of


def speech(name: str, times: int) -> str:
    return f"{name}:\nSome words, and more of them.\n\n" * times


def test_the_two_speakers_with_most_speeches_are_the_prompts():
    text = speech("FOOL", 4) + speech("KING HENRY", 9) + speech("Second Lord", 5)
    assert prompts_of(text)[0] == ["KING HENRY:\n", "Second Lord:\n"]


def test_a_heading_that_ends_with_a_colon_is_no_speaker():
    text = "Contents:\none, two\n\nIt was a dark and stormy night.\n\nThe rain fell in torrents."
    assert prompts_of(text)[0] == ["Contents:", "It was a dark"]


def test_a_colon_before_an_empty_line_is_no_speaker():
    text = "ONE:\n\nwords of one\n\n" * 5 + "TWO:\n\nwords of two\n\n" * 5
    assert prompts_of(text)[0] == ["ONE:", "TWO:"]


def test_a_text_without_paragraphs_begins_prompts_at_its_lines():
    text = "first line of it is here\nsecond line of it is here\nthird line of it"
    assert prompts_of(text)[0] == ["first line of it", "second line of it"]


def test_a_text_without_spaces_has_short_prompts():
    prompts, _ = prompts_of("天地玄黄宇宙洪荒" * 50)
    assert prompts == ["天地玄黄宇宙洪荒" * 5]


def test_a_text_of_blanks_has_no_prompts():
    assert prompts_of(" \n\n \n") == ([], "none")


def test_a_text_of_control_characters_has_no_prompts():
    assert prompts_of("\x00\x01\x02")[0] == []
