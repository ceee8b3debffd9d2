"""How do the modules of a page become one script, and its files one file?

Nothing is rewritten but `import` and `export`: each module becomes a function that returns what it
exports. The modules are our own and keep to one form of each; anything else is an error here.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256

IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
LEFT_OVER = re.compile(r"^(?:import|export)\b", re.MULTILINE)
OTHER = re.compile(r"[^\x00-\x7f]")
SLOT = re.compile(r"\{\{(\w+)\}\}")


def bundle(modules: Mapping[str, str], entry: str) -> str:
    """Return one script that runs a module, after all those that it needs.

    In the script, `modules` has what each module exports, by the names of their files.
    """
    done: list[str] = []
    parts = ['"use strict";\nconst modules = {};\n']

    def add(name: str, waiting: tuple[str, ...]) -> None:
        assert name not in waiting, f"the modules import each other: {waiting}"
        if name in done:
            return
        source = modules[name]
        for match in IMPORT.finditer(source):
            add(match[2], (*waiting, name))
        done.append(name)
        parts.append(_wrapped(name, source))

    add(entry, ())
    return in_ascii("".join(parts))


def _wrapped(name: str, source: str) -> str:
    exported = ", ".join(match[1] for match in EXPORT.finditer(source))
    body = IMPORT.sub(_taken, EXPORT.sub("", source))
    assert not LEFT_OVER.search(body), f"{name} has an import or export of another form"
    return f'modules["{name}"] = (() => {{\n{body}return {{ {exported} }};\n}})();\n'


def _taken(match: re.Match[str]) -> str:
    names = " ".join(match[1].replace(" as ", ": ").split())
    return f'const {{ {names} }} = modules["{match[2]}"];\n'


def in_ascii(script: str) -> str:
    """Return a script whose strings have other characters than ASCII as escapes."""
    return OTHER.sub(lambda match: _escaped(match[0].encode("utf-16-be")), script)


def _escaped(units: bytes) -> str:
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def css_in_ascii(style: str) -> str:
    """Return a style sheet with other characters than ASCII as escapes."""
    return OTHER.sub(lambda match: f"\\{ord(match[0]):x} ", style)


def html_in_ascii(markup: str) -> str:
    """Return markup with other characters than ASCII as references."""
    return markup.encode("ascii", "xmlcharrefreplace").decode()


def allowed(content: str) -> str:
    """Return how a Content-Security-Policy allows exactly this script or style."""
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def fill(template: bytes, slots: Mapping[str, bytes]) -> bytes:
    """Return a template with each {{slot}} filled."""
    parts = SLOT.split(template.decode())
    filled = [slots[part] if i % 2 else part.encode() for i, part in enumerate(parts)]
    return b"".join(filled)
