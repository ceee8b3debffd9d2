"""Colours follow no-color.org, force-color.org and bixense.com/clicolors."""

import io

import pytest

from chatgot.logs.colours import is_terminal, wants_colours

VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "on_terminal", "in_pipe"),
    [
        ({}, True, False),
        ({"TERM": "xterm"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": "0"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "3"}, True, True),
        ({"FORCE_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"CLICOLOR_FORCE": "1"}, True, True),
        ({"CLICOLOR_FORCE": "0"}, True, False),
        ({"CLICOLOR_FORCE": ""}, True, False),
        ({"CLICOLOR_FORCE": "1", "CLICOLOR": "0"}, True, True),
        ({"CLICOLOR": "0"}, False, False),
        ({"CLICOLOR": ""}, True, False),
        ({"CLICOLOR": "1"}, True, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "0"}, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": ""}, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ({"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, False, False),
        ({"NO_COLOR": "", "FORCE_COLOR": ""}, True, False),
        ({"NO_COLOR": "", "CLICOLOR_FORCE": "1"}, True, True),
    ],
)
def test_variables_decide_as_published(monkeypatch, variables, on_terminal, in_pipe):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wants_colours(Terminal()) is on_terminal
    assert wants_colours(io.StringIO()) is in_pipe


def test_a_stream_that_is_closed_or_missing_is_no_terminal():
    for stream in (None, io.StringIO(), object()):
        assert not is_terminal(stream)
    assert is_terminal(Terminal())
