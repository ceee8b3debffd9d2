"""How do other programs make a prompt from messages? As sampling/speeches.py does.

A message is a speech of its `name`; without one, of the one who speaks in its role. A system text
goes in as it is. The prompt ends with the line of the one who answers.
"""

from collections.abc import Iterable


def jinja_template(user: str, character: str) -> str:
    """Return the template for transformers and llama.cpp, in Jinja.

    What it renders is `prompt_text` of the same speeches (llama.cpp takes only ASCII's white space
    off the end of a message). It is one line, because Jinja takes away line feeds after its tags.

    user, character: who speaks in the messages of the roles `user` and `assistant` without a name;
    empty: nobody is named.
    """
    parts = [
        "{% for message in messages %}",
        "{% set name = '' %}",
        "{% if message['role'] == 'user' %}",
        f"{{% set name = message['name'] or {_jinja_string(user)} %}}",
        "{% elif message['role'] == 'assistant' %}",
        f"{{% set name = message['name'] or {_jinja_string(character)} %}}",
        "{% endif %}",
        r"{{ name + ':\n' if name else '' }}",
        r"{{ message['content'].rstrip() + '\n\n' }}",
        "{% endfor %}",
    ]
    if character:
        answer = _jinja_string(f"{character}:\n")
        parts.append(f"{{% if add_generation_prompt %}}{{{{ {answer} }}}}{{% endif %}}")
    return "".join(parts)


def ollama_template(user: str, character: str) -> str:
    """Return the template for Ollama, in the language of Go's text/template.

    Ollama's messages have no names, and Ollama joins neighbours of one role by a blank line. So a
    third speaker is a system text that begins with `NAME:` and a line feed. White space at the end
    of a message stays: the language has no word that takes it away.

    user, character: as in `jinja_template`.
    """
    parts = ["{{ range .Messages }}"]
    for role, name in (("user", user), ("assistant", character)):
        if name:
            parts.append(f'{{{{ if eq .Role "{role}" }}}}{_go_text(name)}:\n{{{{ end }}}}')
    parts.append("{{ .Content }}\n\n{{ end }}")
    if character:
        parts.append(f"{_go_text(character)}:\n")
    return "".join(parts)


def stop_strings(names: Iterable[str]) -> list[str]:
    """Return the strings before which an answer ends: where one of these speaks next.

    With a blank line and without one: an answer may be empty, and then the blank line is half in
    the prompt. A program that looks for them in this order cuts off the whole blank line.
    """
    known = [name for name in dict.fromkeys(names) if name]
    return [f"{before}{name}:\n" for before in ("\n\n", "\n") for name in known]


def _jinja_string(text: str) -> str:
    """Return a text as a string of Jinja; all programs know these three escapes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _go_text(text: str) -> str:
    """Return a text as it must be written outside of Go's actions.

    A quotation mark is written as an action, too: three of them would end the template's text in a
    Modelfile.
    """
    escapes = {"{": r'{{ "\x7b" }}', '"': r'{{ "\x22" }}'}
    return "".join(escapes.get(character, character) for character in text)
