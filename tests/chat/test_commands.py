"""Each command once, and the lines between them, played through a pipe."""

import json
from itertools import pairwise

import pytest
from scripted_engine import ScriptedEngine

from chatgot.chat.commands import COMMANDS
from chatgot.sampling.controls import Controls
from chatgot.sampling.suffix_index import SuffixIndex

LEARNED = "a line of thirty letters or more of the play"
DRAWN = Controls(seed=100, temperature=0.8)


def test_typed_line_is_answered_by_the_character(stage):
    here = stage(controls=DRAWN)
    said, _ = here.play("Who's there?", "Say more.")
    assert said == "HAMLET:\nanswer 101.0\n\nHAMLET:\nanswer 103.0\n\n"
    assert here.engine.prompts()[-1] == (
        "HORATIO:\nWho's there?\n\nHAMLET:\nanswer 101.0\n\nHORATIO:\nSay more.\n\nHAMLET:\n"
    )


def test_answer_ends_before_the_line_of_any_known_speaker(stage):
    here = stage(user="Zoe")
    here.play("Hello.")
    (request,) = here.engine.requests
    assert request.controls.stop_before_speaker == {
        "HAMLET:",
        "HORATIO:",
        "LADY MACBETH:",
        "Zoe:",
    }


def test_as_changes_who_the_person_is_in_whatever_case(stage):
    here = stage()
    _, notes = here.play("/as lady macbeth", "Out!", "/as")
    assert here.turns[0] == ("LADY MACBETH", "Out!")
    assert notes.count("You are LADY MACBETH, HAMLET answers.") == 2


def test_with_changes_who_answers(stage):
    here = stage()
    here.play("/with lady macbeth", "Out?")
    assert here.turns[1][0] == "LADY MACBETH"


def test_unknown_name_is_taken_with_a_line_that_says_so(stage):
    here = stage()
    _, notes = here.play("/with Hamlte", "Hello.")
    assert "Hamlte is not in the training text, so the model guesses; near it: HAMLET" in notes
    assert here.turns[1][0] == "Hamlte"


@pytest.mark.parametrize("name", ["A:B", "a" * 41])
def test_name_that_is_no_speakers_is_refused(stage, name):
    here = stage()
    _, notes = here.play(f"/as {name}")
    assert "is no speaker's name" in notes
    assert here.session.user == "HORATIO"


def test_with_auto_lets_the_model_choose_but_not_the_person(stage):
    likely = ScriptedEngine(likely=["HORATIO", "LADY MACBETH", "HAMLET"])
    here = stage(engine=likely, controls=Controls(temperature=0))
    _, notes = here.play("/with auto", "Who speaks?")
    assert here.turns[1][0] == "LADY MACBETH"
    assert "the model chooses who answers" in notes


def test_room_of_three_runs_for_50_turns_by_probability(stage):
    """Each speaks, none twice in a row, and the likelier one more often."""
    here = stage(engine=ScriptedEngine(likely=["HAMLET", "LADY MACBETH", "Zoe"]), controls=DRAWN)
    said, _ = here.play("/room hamlet lady macbeth Zoe", "/watch 50")
    names = [name for name, _ in here.turns]
    assert len(names) == 50
    assert all(one != other for one, other in pairwise(names))
    counts = [names.count(name) for name in ("HAMLET", "LADY MACBETH", "Zoe")]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] > 0
    assert said.count(":\nanswer") == 50


def test_empty_line_lets_the_next_one_in_the_room_speak(stage):
    here = stage(controls=DRAWN)
    here.play("/room HAMLET, LADY MACBETH", "", "I join in.", "")
    assert [name for name, _ in here.turns][1] == "HORATIO"
    assert len(here.turns) == 4


def test_room_without_names_is_everyone_but_the_person(stage):
    here = stage(
        engine=ScriptedEngine(likely=["HORATIO", "HAMLET"]), controls=Controls(temperature=0)
    )
    _, notes = here.play("/room", "", "")
    assert [name for name, _ in here.turns] == ["HAMLET", "LADY MACBETH"]
    assert "In the room: everyone the model knows." in notes


def test_with_leaves_the_room(stage):
    here = stage()
    here.play("/room", "/with HAMLET", "Alone?")
    assert here.session.room is None
    assert here.turns[1][0] == "HAMLET"


def test_watch_without_a_room_lets_the_two_talk(stage):
    here = stage()
    here.play("/watch 4")
    assert {name for name, _ in here.turns} == {"HAMLET", "HORATIO"}
    assert len(here.turns) == 4


def test_retry_gives_another_answer_in_the_same_place(stage):
    here = stage(controls=DRAWN)
    said, notes = here.play("/retry", "Why?", "/retry")
    assert here.turns == [("HORATIO", "Why?"), ("HAMLET", "answer 101.1")]
    assert said.count("answer 101") == 2
    assert "nothing has been said yet" in notes


def test_retry_that_brings_nothing_keeps_the_answer(stage):
    silent = ScriptedEngine(lambda request: "" if request.choice else "once")
    here = stage(engine=silent)
    _, notes = here.play("Why?", "/retry")
    assert here.turns[-1] == ("HAMLET", "once")
    assert "nothing is said" in notes


def test_pick_writes_five_answers_and_takes_the_chosen_one(stage):
    here = stage(controls=DRAWN)
    said, notes = here.play("Why?", "/pick", "3")
    assert [f"{number}  HAMLET:\nanswer 101.{number}" in said for number in range(1, 6)] == [
        True
    ] * 5
    assert here.turns == [("HORATIO", "Why?"), ("HAMLET", "answer 101.3")]
    assert "Which one? 1 to 5" in notes


def test_picked_answer_without_words_changes_nothing(stage):
    engine = ScriptedEngine(lambda request: "" if request.choice else "once")
    here = stage(engine=engine)
    here.play("Why?", "/pick 2", "2")
    assert here.turns[-1] == ("HAMLET", "once")


@pytest.mark.parametrize("typed", ["", "6", "0", "two"])
def test_pick_of_no_number_leaves_all_as_it_was(stage, typed):
    here = stage(controls=DRAWN)
    here.play("Why?", "/pick 5", typed)
    assert here.turns[-1] == ("HAMLET", "answer 101.0")


def test_pick_in_a_room_adds_the_chosen_line(stage):
    here = stage(controls=DRAWN)
    here.play("/room", "", "/pick 2", "1")
    assert len(here.turns) == 2


def test_versions_bring_an_earlier_answer_back(stage):
    here = stage(controls=DRAWN)
    here.play("Why?", "/retry", "/versions", "1", "/versions", "7")
    assert here.turns[-1] == ("HAMLET", "answer 101.0")


def test_undo_shows_what_it_took_back(stage):
    here = stage()
    _, notes = here.play("Why?", "/undo", "/undo")
    assert here.turns == []
    assert "taken back: HORATIO: Why?" in notes
    assert "nothing has been said yet" in notes


def test_edit_replaces_the_last_typed_line_and_its_answer(stage):
    here = stage(controls=DRAWN)
    _, notes = here.play("/edit", "Why?", "/edit", "Where?", "/edit", "")
    assert here.turns == [("HORATIO", "Where?"), ("HAMLET", "answer 101.1")]
    assert "you have said nothing yet" in notes
    assert "all stays as it was" in notes


def test_saved_conversation_is_loaded_with_all_its_settings(stage, tmp_path):
    path = tmp_path / "a.json"
    first = stage(controls=DRAWN)
    first.play("/system A hall.", "/temperature 0.3", "/room", "Why?", f"/save {path}")
    second = stage()
    said, notes = second.play(f"/load {path}")
    assert second.turns == first.turns
    assert second.session.conversation.opening == "A hall."
    assert second.session.room == []
    assert second.session.actor.controls == first.session.actor.controls
    assert "HORATIO:\nWhy?" in said
    assert "In the room" in notes


def test_save_asks_before_it_replaces_a_file_of_others(stage, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("precious")
    here = stage()
    _, notes = here.play(f"/save {path}", "Why?", f"/save {path}", "", "/save")
    assert path.read_text() == "precious"
    assert "not saved" in notes
    assert "a file is missing" in notes
    here.play(f"/save {path}", "y", "More.", f"/save {path}")
    assert path.read_text().count("HORATIO:") == 2


def test_file_that_cannot_be_written_or_read_is_said_in_one_line(stage, tmp_path):
    here = stage()
    _, notes = here.play("Why?", f"/save {tmp_path}/none/a.txt", f"/load {tmp_path}", "/load ~0x/a")
    assert "cannot be written" in notes
    assert "cannot be read" in notes
    assert "Traceback" not in notes


def test_conversation_without_speakers_goes_on_with_the_typed_text(stage):
    here = stage(speakers=(), user="", character="", controls=DRAWN)
    said, notes = here.play("Once upon", "", "/as ME", "/with YOU", "Hello.")
    assert here.engine.prompts()[:2] == ["Once upon", "Once uponanswer 101.0\n\n"]
    assert said.startswith("answer 101.0")
    assert "/with NAME: who answers?" in notes
    assert here.turns[-1][0] == "YOU"


def test_cut_answer_goes_on_with_an_empty_line(stage):
    engine = ScriptedEngine(lambda request: "a long answer" if request.choice == 0 else " it was")
    here = stage(engine=engine, controls=Controls(max_new_tokens=6))
    _, notes = here.play("Why?", "")
    assert here.turns == [("HORATIO", "Why?"), ("HAMLET", "a long it wa")]
    assert engine.prompts()[1].endswith("HAMLET:\na long")
    assert "cut after 6 tokens; Enter: it goes on" in notes


def test_context_that_is_full_is_said_once(stage):
    here = stage(context=30)
    _, notes = here.play("Why?", "And then?", "And then?")
    assert notes.count("the model looks back on 30 tokens") == 1


def test_characters_outside_the_vocabulary_are_named(stage):
    here = stage()
    _, notes = here.play("caf\u00e9 \u20ac")
    assert "the model reads '?' for '\u00e9\u20ac'" in notes
    assert here.engine.prompts()[0].startswith("HORATIO:\ncaf? ?\n\n")
    assert here.turns[0][1] == "caf\u00e9 \u20ac"


def test_control_characters_of_the_model_are_shown_as_escapes(stage):
    here = stage(engine=ScriptedEngine(lambda request: "\x1b[2Jboo"))
    said, _ = here.play("Why?")
    assert said == "HAMLET:\n\\x1b[2Jboo\n\n"


def test_temperature_and_seed_are_shown_and_changed(stage):
    here = stage(controls=DRAWN)
    _, notes = here.play("/temperature", "/temperature 0.5", "/seed 7", "Why?", "/temperature -1")
    assert "temperature 0.8" in notes
    assert here.engine.requests[0].controls.temperature == 0.5
    assert here.engine.requests[0].controls.seed == 8
    assert "found '-1', expected 0 or a number from 0.001 to 100" in notes


def test_new_forgets_what_was_said_and_keeps_the_opening(stage):
    here = stage()
    here.play("/system A hall.", "Why?", "/new", "Where?")
    assert here.engine.prompts()[1] == "A hall.\n\nHORATIO:\nWhere?\n\nHAMLET:\n"


def test_who_lists_speakers_with_their_lines(stage):
    here = stage()
    _, notes = here.play("/who", "/who lady", "/who xyz")
    assert "HAMLET 1,500, HORATIO 300, LADY MACBETH 200" in notes
    assert notes.splitlines()[1].endswith("training text: LADY MACBETH 200")
    assert "no such speaker" in notes


def test_help_shows_each_command(stage):
    _, notes = stage().play("/help")
    assert [f"/{name}" in notes for name in COMMANDS] == [True] * len(COMMANDS)


def test_unknown_command_names_the_nearest(stage):
    here = stage()
    _, notes = here.play("/retyr", "/bogus", "/RETRY")
    assert "/retyr is no command: did you mean /retry?" in notes
    assert "/bogus is no command: /help shows all commands" in notes
    assert here.engine.requests == []


def test_two_slashes_begin_a_line_that_is_said(stage):
    here = stage()
    here.play("//quit")
    assert here.turns[0] == ("HORATIO", "/quit")


def test_quit_leaves_and_later_lines_are_not_read(stage):
    here = stage()
    here.play("/quit", "Why?")
    assert here.turns == []


def test_same_seed_and_lines_give_the_same_requests(stage):
    lines = ("/room", "", "Why?", "/retry", "/pick 2", "1", "/watch 3")
    asked = []
    for _ in range(2):
        here = stage(controls=DRAWN)
        here.play(*lines)
        asked.append(here.engine.requests)
    assert asked[0] == asked[1]
    seeds = {(request.controls.seed, request.choice) for request in asked[0]}
    assert len(seeds) == len(asked[0])


def test_conversation_ends_quietly_when_nobody_reads(stage, monkeypatch):
    monkeypatch.setattr("chatgot.chat.console.write_to_stdout", lambda data: False)
    here = stage()
    here.play("Why?", "Where?")
    assert here.turns == [("HORATIO", "Why?")]


def test_saved_json_names_who_typed(stage, tmp_path):
    path = tmp_path / "a.json"
    stage().play("Why?", f"/save {path}")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [turn["typed"] for turn in content["turns"]] == [True, False]


def test_copied_marks_what_stands_in_the_training_text(stage):
    here = stage(engine=ScriptedEngine(lambda _: f"But {LEARNED} I say.\n\n"))
    here.session.actor.index = lambda: SuffixIndex.of_text(f"He said: {LEARNED}".encode())
    said, notes = here.play("Who's there?", "/copied")
    assert said.endswith(f"HAMLET:\nBut[[ {LEARNED}]] I say.\n\n")
    assert f"longest run {len(LEARNED) + 1}" in notes
    assert "/copied" not in said


@pytest.mark.parametrize(
    ("lines", "words"), [(["/copied"], "said nothing yet"), (["Hello", "/copied"], "is not here")]
)
def test_copied_says_where_there_is_nothing_to_compare(stage, lines, words):
    _, notes = stage().play(*lines)
    assert words in notes
