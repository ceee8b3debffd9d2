"""Text becomes ids and ids become the same text; what is unknown is replaced visibly."""

import pytest

from chatgot.data.vocabulary import Vocabulary

TEXT = "KING:\nGood morrow, my lord! Grüße, 世界 🎭.\n\nFOOL:\nNo.\n"


def test_encode_and_decode_are_each_others_inverse():
    vocabulary = Vocabulary("".join(sorted(set(TEXT))))
    assert vocabulary.decode(vocabulary.encode(TEXT)) == TEXT
    assert vocabulary.encode(vocabulary.decode(list(range(len(vocabulary))))) == list(
        range(len(vocabulary))
    )
    with pytest.raises(KeyError):
        vocabulary.encode("§")


@pytest.mark.parametrize("characters", ["?ab", "ab", " ab", "\n"])
def test_unknown_characters_are_replaced_one_for_one_and_named(characters):
    vocabulary = Vocabulary(characters)
    prompt = characters + "🎭é🎭" + characters
    text, unknown = vocabulary.replace_unknown(prompt)
    vocabulary.encode(text)
    assert unknown == "é🎭"
    assert len(text) == len(prompt)
    assert text.startswith(characters)
    assert text.endswith(characters)
    assert vocabulary.replace_unknown(characters) == (characters, "")
