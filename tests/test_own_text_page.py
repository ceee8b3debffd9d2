"""Each command on the page about one's own text is one that the program takes."""

import re
import shlex

import harness
import pytest

import scripts.prepare_data
import scripts.train_with_samples

PAGE = (harness.ROOT / "docs" / "your-own-text.md").read_text(encoding="utf-8")
PARSERS = {
    "prepare": scripts.prepare_data.parse_arguments,
    "train": scripts.train_with_samples.parse_arguments,
}
COMMANDS = sorted({line for line in PAGE.splitlines() if line.startswith("chatgot ")})


def commands_of(verb: str) -> list[list[str]]:
    """Return the arguments of the page's commands of a verb."""
    words = [shlex.split(line)[1:] for line in COMMANDS]
    return [arguments for name, *arguments in words if name == verb]


@pytest.mark.parametrize("verb", PARSERS)
def test_page_has_commands_that_the_program_takes(verb):
    commands = commands_of(verb)
    assert len(commands) >= 3
    for arguments in commands:
        PARSERS[verb](arguments)


def test_each_way_to_a_conversation_takes_five_commands():
    ways = re.findall(r"^```\n(pip install .*?)```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(ways) == 2
    for way in ways:
        commands = way.splitlines()
        assert len(commands) == 5
        assert commands[-1].startswith("chatgot chat ")
