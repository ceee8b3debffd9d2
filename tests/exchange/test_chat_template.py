"""What other programs make of messages: exactly the prompt of sampling/speeches.py."""

import pytest
from go_template import render_as_ollama
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chatgot.exchange.chat_template import jinja_template, ollama_template, stop_strings
from chatgot.sampling.speeches import Speech, prompt_text

HARD_NAMES = [
    "ANN",
    "D'Artagnan",
    'The "Duke"',
    '"""',
    "a\\b",
    "c\\n",
    "\\",
    "'",
    "{{ user }}",
    "{% endif %}",
    "}}",
    "{#",
    "Señor Ñ",
    "漢字 🐉",
    "two  spaces",
]
HARD_TEXTS = [
    "Plain.",
    "",
    "   indented",
    "ends with spaces   \n\n \t",
    "a blank line\n\nin it",
    "\n\nbegins with blank lines",
    "carriage\r\nreturns\r",
    "\"quotes\" 'and' `more` \\n \\\\ \\'",
    "{{ messages }} {% for %} {# no #} }} %}",
    "é ñ “ ” — 漢字 🐉 <b>&amp;</b>",
    "a no-break space, U+0085 and U+2028 at its end\u00a0\u0085\u2028",
    "a zero-width one stays\u200b",
    "NAME:\nlooks like a speech",
    "<|endoftext|>",
]


def render(template: str, messages: list[dict], add_generation_prompt: bool = True) -> str:
    """Render as transformers does; test_to_transformers.py: with transformers itself."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    compiled = environment.from_string(template)
    return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt)


def test_three_speakers_make_our_prompt():
    messages = [
        {"role": "system", "content": "ACT I\n\nScene 2. A room."},
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "I."},
        {"role": "user", "name": "NURSE", "content": "Madam!\nMadam!"},
        {"role": "assistant", "name": "TYBALT", "content": "Peace."},
    ]
    speeches = [
        Speech("", "ACT I\n\nScene 2. A room."),
        Speech("ROMEO", "Who is there?"),
        Speech("JULIET", "I."),
        Speech("NURSE", "Madam!\nMadam!"),
        Speech("TYBALT", "Peace."),
    ]
    template = jinja_template("ROMEO", "JULIET")
    assert render(template, messages) == prompt_text(speeches, "JULIET")
    assert render(template, messages, False) == prompt_text(speeches, "")


@pytest.mark.parametrize("name", HARD_NAMES)
def test_names_are_written_as_they_are(name):
    messages = [{"role": "user", "content": "Ho."}, {"role": "assistant", "content": "Yes?"}]
    speeches = [Speech(name, "Ho."), Speech(f"{name} 2", "Yes?")]
    expected = prompt_text(speeches, f"{name} 2")
    assert render(jinja_template(name, f"{name} 2"), messages) == expected
    assert render_as_ollama(ollama_template(name, f"{name} 2"), messages) == expected


@pytest.mark.parametrize("text", HARD_TEXTS)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_contents_are_written_as_they_are_but_for_white_space_at_the_end(role, text):
    messages = [{"role": role, "content": text}, {"role": "user", "name": "BOB", "content": text}]
    name = {"system": "", "user": "ANN", "assistant": "EVE"}[role]
    expected = prompt_text([Speech(name, text), Speech("BOB", text)], "EVE")
    assert render(jinja_template("ANN", "EVE"), messages) == expected


def test_without_known_names_nobody_is_named():
    messages = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]
    expected = prompt_text([Speech("", "One."), Speech("", "Two.")], "")
    assert render(jinja_template("", ""), messages) == expected
    assert render_as_ollama(ollama_template("", ""), messages) == expected


def test_a_system_text_has_no_name_and_a_newer_role_is_a_system_text():
    messages = [
        {"role": "system", "name": "ANN", "content": "A room."},
        {"role": "developer", "content": "Night."},
    ]
    expected = prompt_text([Speech("", "A room."), Speech("", "Night.")], "EVE")
    assert render(jinja_template("ANN", "EVE"), messages) == expected


def test_in_ollama_a_third_speaker_is_a_system_text_with_a_name():
    messages = [
        {"role": "system", "content": "ACT I"},
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "I."},
        {"role": "system", "content": "NURSE:\nMadam!\nMadam!"},
        {"role": "user", "content": "Away."},
    ]
    speeches = [
        Speech("", "ACT I"),
        Speech("ROMEO", "Who is there?"),
        Speech("JULIET", "I."),
        Speech("NURSE", "Madam!\nMadam!"),
        Speech("ROMEO", "Away."),
    ]
    rendered = render_as_ollama(ollama_template("ROMEO", "JULIET"), messages)
    assert rendered == prompt_text(speeches, "JULIET")


@pytest.mark.parametrize("name", HARD_NAMES)
def test_no_name_ends_the_template_in_a_modelfile(name):
    assert '"""' not in ollama_template(name, name)


def test_an_answer_ends_where_a_known_speaker_begins():
    stops = stop_strings(["ANN", "EVE", "", "ANN"])
    assert stops == ["\n\nANN:\n", "\n\nEVE:\n", "\nANN:\n", "\nEVE:\n"]
