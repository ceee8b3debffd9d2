"""The README is short, and its figures are those of the pages that it links to."""

import re

import harness
import pytest
from markdown_it import MarkdownIt

MOST_WORDS = 900
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LINK = re.compile(r"\]\(([^)#]+)#([^)]+)\)")
README = (harness.ROOT / "README.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading of the README, without its first two lines."""
    section = re.split(r"(?m)^## ", README)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def section_of(page: str, anchor: str) -> str:
    """Return a page's text from the heading of an anchor to the next heading of its level."""
    text = (harness.ROOT / page).read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").parse(text)
    lines = text.splitlines()
    start = None
    level = ""
    for number, token in enumerate(tokens):
        if token.type != "heading_open" or token.map is None:
            continue
        if start is not None and token.tag <= level:
            return "\n".join(lines[start : token.map[0]])
        slug = re.sub(r"[^\w\- ]", "", tokens[number + 1].content.lower()).replace(" ", "-")
        if start is None and slug == anchor:
            start = token.map[0]
            level = token.tag
    assert start is not None, f"{page}#{anchor}"
    return "\n".join(lines[start:])


def missing_numbers(figures: str, text: str) -> set[str]:
    """Return the numbers of a phrase that a text does not have as whole numbers."""
    return set(NUMBER.findall(figures)) - set(NUMBER.findall(text))


def test_readme_has_at_most_900_words():
    assert len(README.split()) <= MOST_WORDS


def test_promises_have_the_figures_of_the_pages_they_link_to():
    rows = rows_of("What we promise")
    assert len(rows) >= 4
    for promise, figures, where in rows:
        sections = [section_of(page, anchor) for page, anchor in LINK.findall(where)]
        assert sections, promise
        assert NUMBER.search(figures), promise
        assert missing_numbers(figures, "\n".join(sections)) == set(), promise


@pytest.mark.parametrize(
    ("column", "row"),
    [
        (2, "ratio, pair by pair: median (all)"),
        (3, "training script over Lightning, round by round: median (all)"),
        (4, "training script over the Hugging Face Trainer, round by round: median (all)"),
    ],
)
def test_comparison_has_the_measured_ratio(column, row):
    section = section_of("docs/benchmarks.md", "tokens-per-second")
    (line,) = [line for line in section.splitlines() if line.startswith(f"| {row} |")]
    measured = NUMBER.findall(line)[0]
    (speed,) = [cells for cells in rows_of("For whom") if "speed" in cells[0]]
    assert speed[column] == measured


def test_excerpt_of_the_log_ends_in_the_measured_loss():
    loss = re.search(r"val_loss_full ([\d.]+)", README)
    assert loss is not None
    section = section_of("docs/benchmarks.md", "the-recipes")
    assert missing_numbers(loss[1], section) == set()


def test_another_figure_is_noticed():
    assert missing_numbers("2.04 times, 8.4", "a ratio of 2.03, and 8.4") == {"2.04"}
    assert missing_numbers("12", "120 and 1.2") == {"12"}
