"""The conversation on a terminal: keys come through a pipe, the screen is a text."""

import io
import os
import signal
import stat
import sys
from pathlib import Path

import pyte
import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output
from scripted_engine import ScriptedEngine

from chatgot.chat.completing import CommandCompleter
from chatgot.chat.history import TypedLines
from chatgot.chat.talk import greet, talk
from chatgot.chat.terminal import Terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the screen is a Unix terminal's")
CTRL_C = "\x03"
CTRL_D = "\x04"
UP = "\x1b[A"
ROWS = 60


@pytest.fixture
def typed(stage, tmp_path, monkeypatch):
    """Return a function that types keys into a conversation and returns what the screen shows."""
    monkeypatch.setattr("chatgot.chat.terminal.history_file", lambda: tmp_path / "state" / "lines")

    def play(keys: str, columns: int = 60, **fields: object) -> tuple[str, object]:
        received = io.StringIO()
        screen = Vt100_Output(received, lambda: Size(ROWS, columns), term="xterm", enable_cpr=False)
        here = stage(**fields)
        with create_pipe_input() as source:
            source.send_text(keys)
            terminal = Terminal(source, screen)
            terminal.complete_for(here.session)
            here.session.console = terminal
            greet(here.session, "tiny_20250102-030405, step 10")
            talk(here.session)
        shown = pyte.Screen(columns, ROWS)
        pyte.Stream(shown).feed(received.getvalue())
        return "\n".join(line.rstrip() for line in shown.display), here

    return play


def test_terminal_shows_the_model_the_cast_and_what_is_said(typed):
    screen, _ = typed(f"Who's there?\r{CTRL_D}")
    lines = [line for line in screen.split("\n") if line]
    assert lines[:3] == [
        "tiny_20250102-030405, step 10",
        "You are HORATIO, HAMLET answers.",
        "/help shows what you can do. seed 0",
    ]
    assert lines[3:6] == ["HORATIO> Who's there?", "HAMLET:", "answer 1.0"]


def test_ctrl_c_at_the_prompt_gives_the_line_up(typed):
    _, here = typed(f"never said{CTRL_C}said\r{CTRL_D}")
    assert here.turns[0] == ("HORATIO", "said")


def test_ctrl_c_stops_the_answer_and_keeps_what_is_there(typed):
    class Interrupted(ScriptedEngine):
        def step(self):
            if any(len(completion.tokens) == 4 for completion, _ in self.growing):
                os.kill(os.getpid(), signal.SIGINT)
            return super().step()

    engine = Interrupted(lambda request: "a long answer")
    screen, here = typed(f"Why?\r{CTRL_D}", engine=engine)
    assert here.turns[1] == ("HAMLET", "a lon")
    assert "(stopped)" in screen
    assert engine.growing[0][0].finish_reason == "cancelled"


def test_ctrl_c_stops_those_who_talk_by_themselves(typed):
    class Interrupted(ScriptedEngine):
        def step(self):
            if len(self.requests) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().step()

    _, here = typed(f"/room\r/watch 50\r{CTRL_D}", engine=Interrupted())
    assert len(here.turns) == 3


def test_arrow_brings_typed_lines_back_in_the_next_conversation(typed):
    typed(f"Who's there?\r{CTRL_D}")
    _, here = typed(f"{UP}\r{CTRL_D}")
    assert here.turns[0] == ("HORATIO", "Who's there?")


def test_edit_offers_the_last_line_in_the_prompt(typed):
    _, here = typed(f"Who?\r/edit\r\x7f is there?\r{CTRL_D}")
    assert here.turns[0] == ("HORATIO", "Who is there?")


def test_edit_that_is_given_up_changes_nothing(typed):
    _, here = typed(f"Who?\r/edit\r{CTRL_C}{CTRL_D}")
    assert here.turns == [("HORATIO", "Who?"), ("HAMLET", "answer 1.0")]


def test_pick_asks_for_the_number(typed):
    screen, here = typed(f"Who?\r/pick 2\r2\r{CTRL_D}")
    assert here.turns[1] == ("HAMLET", "answer 1.2")
    assert "Which one? 1 to 2, Enter: none 2" in screen


def test_tab_goes_on_at_once_where_there_is_one_way(typed):
    _, here = typed(f"/wi\tlady\t\r/as mac\t\r{CTRL_D}")
    assert (here.session.user, here.session.character) == ("LADY MACBETH", "LADY MACBETH")


def test_no_control_character_reaches_the_screen(typed):
    engine = ScriptedEngine(lambda request: "\x1b[2J\x1b]0;title\x07boo")
    screen, _ = typed(f"Why?\r{CTRL_D}", engine=engine, character="A\x1b[31mB")
    assert "\\x1b[2J\\x1b]0;title\\x07boo" in screen
    assert "A\\x1b[31mB:" in screen


def test_long_lines_break_between_words(typed):
    engine = ScriptedEngine(lambda request: "now is the winter of our discontent")
    screen, _ = typed(f"Why?\r{CTRL_D}", columns=20, engine=engine)
    assert "now is the winter of\nour discontent" in screen


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("/re", ["retry"]),
        ("/wi", ["with "]),
        ("/with ", ["auto", "HAMLET", "HORATIO", "LADY MACBETH"]),
        ("/as mac", ["LADY MACBETH"]),
        ("/room HAMLET, ho", ["HORATIO"]),
        ("/retry ha", []),
        ("ha", []),
    ],
)
def test_completion_offers_what_the_command_takes(stage, line, completions):
    completer = CommandCompleter(stage().session)
    offered = completer.get_completions(Document(line), CompleteEvent())
    assert [completion.text for completion in offered] == completions


def test_completion_offers_files(stage, tmp_path):
    (tmp_path / "scene one.txt").touch()
    completer = CommandCompleter(stage().session)
    offered = completer.get_completions(Document(f"/load {tmp_path}/sce"), CompleteEvent())
    assert [completion.text for completion in offered] == ["ne one.txt"]


def test_history_file_is_for_this_user_alone(tmp_path):
    path = tmp_path / "state" / "lines"
    TypedLines(path, print).store_string("two\nlines")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("ab") as file:
        file.write(b'"torn\n')
    TypedLines(path, print).store_string("last")
    assert list(TypedLines(path, print).load_history_strings()) == ["last", "two\nlines"]


def test_history_that_cannot_be_written_is_said_once(tmp_path):
    notes: list[str] = []
    (tmp_path / "file").touch()
    lines = TypedLines(Path(tmp_path, "file", "lines"), notes.append)
    lines.store_string("one")
    lines.store_string("two")
    assert len(notes) == 1
    assert "typed lines are not kept" in notes[0]
    assert list(TypedLines(None, notes.append).load_history_strings()) == []
