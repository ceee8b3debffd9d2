"""What the pages quote, the program says; versions agree; no page names a registry's host."""

import ast
import re
import subprocess
import sys

import harness
import pytest
import yaml

from chatgot import __version__

TEMPLATES = sorted((harness.ROOT / ".github").rglob("*.md"))
TROUBLESHOOTING = "docs/troubleshooting.md"
BLOCK = re.compile(r"```text\n(.*?)\n```", re.DOTALL)
PIECE = 8  # letters: a shorter piece of a message between two "..." proves little
# A message's words between its values; %s and the like stand where a value will be
FORMATS = re.compile(r"%(?:\.\d+|,)?[a-z%]|\{[^}]*\}")
HOSTS = ("pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "conda" + ".io")
ABSOLUTE = re.compile(r"(?<![\w.~/\[])/(?:home|root|tmp|Users|work|opt)/\w+/")
EXAMPLE = re.compile(r"\| [^|]+ \| `([^|]+)` \| ([^|]+) \| `([^|]+)` \|")


def page(name: str) -> str:
    return (harness.ROOT / name).read_text(encoding="utf-8")


def pages() -> list[str]:
    found = [*harness.ROOT.glob("*.md"), *harness.ROOT.glob("docs/*.md"), *TEMPLATES]
    return sorted(path.relative_to(harness.ROOT).as_posix() for path in found)


# --------------------------------------------------------------------------------------------------
# Troubleshooting quotes what the program says


def said_by_the_program() -> str:
    """Return all string literals of the product, those in pieces joined, one on each line."""
    texts = []
    for top in ("chatgot", "scripts"):
        for path in sorted((harness.ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [part for part in node.values if isinstance(part, ast.Constant)]
                    texts += [str(part.value) for part in parts]
    return "\n".join(FORMATS.sub("\0", text).replace("\0\0", "%") for text in texts)


def quoted_messages() -> list[str]:
    blocks = BLOCK.findall(page(TROUBLESHOOTING))
    return [line for block in blocks for line in block.splitlines()]


def words_between_values(message: str) -> list[str]:
    pieces = [piece.strip(" :;,()%") for piece in re.split(r"\.\.\.|[,:;] ", message)]
    return [piece for piece in pieces if len(piece) >= PIECE]


def test_troubleshooting_quotes_what_the_program_says():
    said = said_by_the_program()
    messages = quoted_messages()
    assert len(messages) > 20
    for message in messages:
        for piece in words_between_values(message):
            assert piece in said, (message, piece)


def test_words_that_nobody_says_are_not_found():
    said = said_by_the_program()
    assert "is not available on this machine" in said
    assert "is not to be had here" not in said


# --------------------------------------------------------------------------------------------------
# The examples of broken logs


def examples() -> list[tuple[str, str, str]]:
    return EXAMPLE.findall(page("docs/broken-logs.md"))


@pytest.mark.parametrize(("before", "after", "report"), examples())
def test_broken_log_is_mended_as_the_page_says(tmp_path, before, after, report):
    data = ast.literal_eval(f"b'{before}'")
    # an encoding is a guess: from one short line no fair one
    lines = 12 if report == "read as cp1252" else 1
    log = tmp_path / "some.log"
    line_end = b"" if "utf-16" in report else b"\n"  # the example ends in UTF-16
    log.write_bytes((data + line_end) * lines)
    command = [sys.executable, "scripts/fix_log_encoding.py", str(log)]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(report)
    mended = (tmp_path / "some_fixed.log").read_text(encoding="utf-8")
    shown = after.partition(", with ")[0].strip("`")
    assert "\n".join([shown.replace(", ", "\n")] * lines) == mended.removesuffix("\n")


def test_page_on_broken_logs_has_its_examples():
    assert len(examples()) >= 12


# --------------------------------------------------------------------------------------------------
# Versions, templates, hosts


def test_changelog_has_an_entry_for_this_version():
    assert re.search(rf"^## \[{re.escape(__version__)}\] - ", page("CHANGELOG.md"), re.MULTILINE)


def test_citation_names_this_version_and_what_a_citation_needs():
    citation = yaml.safe_load(page("CITATION.cff"))
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "MIT"
    assert citation["authors"] == [{"name": "The ChatGoT developers"}]
    assert {"message", "title"} <= citation.keys()


@pytest.mark.parametrize("path", [path for path in TEMPLATES if "ISSUE" in str(path)])
def test_issue_template_begins_with_what_the_host_reads(path):
    _, front, body = path.read_text(encoding="utf-8").split("---\n", 2)
    assert {"name", "about"} <= yaml.safe_load(front).keys()
    assert body.strip()


@pytest.mark.parametrize("name", pages())
def test_page_names_no_host_of_a_registry_and_no_path_of_a_machine(name):
    text = page(name)
    assert [host for host in HOSTS if host in text] == []
    assert ABSOLUTE.findall(text) == []


def test_path_of_a_machine_is_found():
    assert ABSOLUTE.search("see /home/somebody/chatgot")
    assert not ABSOLUTE.search("see https://example.net/home/page/ and docs/tmp/a")
