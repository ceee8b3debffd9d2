"""A conversation is a path through a tree of turns."""

from chatgot.chat.conversation import Conversation, Turn, conversation_of
from chatgot.sampling.speeches import Speech


def begun() -> Conversation:
    """Return a conversation of two questions and two answers."""
    conversation = Conversation()
    for number in (1, 2):
        conversation.say("HORATIO", f"question {number}")
        conversation.answer("HAMLET", f"answer {number}")
    return conversation


def texts(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.turns]


def test_opening_comes_before_all_turns():
    conversation = begun()
    conversation.opening = "SCENE I. A hall."
    assert conversation.speeches[:2] == [
        Speech("", "SCENE I. A hall."),
        Speech("HORATIO", "question 1"),
    ]


def test_undo_takes_back_the_last_line_and_its_answer():
    conversation = begun()
    assert [turn.text for turn in conversation.undo()] == ["question 2", "answer 2"]
    assert texts(conversation) == ["question 1", "answer 1"]


def test_undo_takes_back_one_answer_where_another_answer_is_before_it():
    conversation = begun()
    conversation.answer("GHOST", "Mark me.")
    assert [turn.text for turn in conversation.undo()] == ["Mark me."]
    assert texts(conversation)[-1] == "answer 2"


def test_undo_of_a_line_without_answer_takes_back_the_line():
    conversation = begun()
    conversation.say("HORATIO", "question 3")
    assert [turn.text for turn in conversation.undo()] == ["question 3"]
    assert texts(conversation)[-1] == "answer 2"


def test_undo_of_nothing_takes_back_nothing():
    assert Conversation().undo() == []


def test_undo_to_typed_takes_back_all_that_follows_the_typed_line():
    conversation = begun()
    conversation.answer("GHOST", "Mark me.")
    assert conversation.undo_to_typed().text == "question 2"
    assert texts(conversation) == ["question 1", "answer 1"]


def test_retracted_answers_stay_as_versions():
    conversation = begun()
    assert conversation.retract_answer()
    conversation.answer("HAMLET", "another answer")
    assert [turn.text for turn in conversation.versions()] == ["answer 2", "another answer"]
    conversation.replace_last(conversation.versions()[0])
    assert texts(conversation)[-1] == "answer 2"


def test_typed_line_cannot_be_retracted_as_an_answer():
    conversation = Conversation()
    conversation.say("HORATIO", "question")
    assert not conversation.retract_answer()
    assert texts(conversation) == ["question"]
    assert conversation.versions() == []


def test_each_answer_in_a_place_has_a_number_of_its_own():
    """Also after the line was taken back and typed again: the same words get another answer."""
    conversation = begun()
    assert [conversation.next_choice(), conversation.next_choice()] == [0, 1]
    conversation.say("HORATIO", "question 3")
    assert conversation.next_choice() == 0
    conversation.undo()
    conversation.say("HORATIO", "question 3")
    assert conversation.next_choice() == 1


def test_answer_that_goes_on_stays_one_turn():
    conversation = begun()
    conversation.go_on(" and more", cut=True)
    assert texts(conversation)[2:] == ["question 2", "answer 2 and more"]
    assert conversation.last.cut


def test_names_are_in_the_order_of_their_first_words():
    assert begun().names == ["HORATIO", "HAMLET"]


def test_conversation_is_made_again_from_its_turns():
    made = conversation_of("A hall.", [Turn("A", "one", typed=True), Turn("B", "two", typed=False)])
    assert made.speeches == [Speech("", "A hall."), Speech("A", "one"), Speech("B", "two")]
    assert [turn.typed for turn in made.turns] == [True, False]
