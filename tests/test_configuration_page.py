"""docs/configuration.md and config.py agree on every key."""

import re

import harness

from chatgot.config import flat, keys_of
from chatgot.config_file import load_config
from chatgot.configuration_page import PAGE, RESUME_WORDS, configuration_page


def rows_of(page: str) -> dict[str, list[str]]:
    """Return the cells of each key's row, by the key's dotted name."""
    rows: dict[str, list[str]] = {}
    section = ""
    for line in page.splitlines():
        heading = re.fullmatch(r"## (?:`(.*)`|At the top)", line)
        if heading:
            section = f"{heading[1]}." if heading[1] else ""
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            rows[section + cells[0].strip("`")] = cells[1:]
    return rows


def test_page_in_docs_is_the_one_that_is_generated_from_config():
    assert PAGE == harness.ROOT / "docs" / "configuration.md"
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), (
        "docs/configuration.md is out of date: python -m chatgot.configuration_page rewrites it"
    )


def test_page_has_one_full_row_for_every_key():
    rows = rows_of(configuration_page())
    assert sorted(rows) == sorted(name for name, _ in keys_of())
    for name, cells in rows.items():
        assert len(cells) == 4, name
        assert all(cells), name
        assert cells[3] in RESUME_WORDS.values()


def test_page_gives_defaults_that_are_read_back_as_the_defaults(tmp_path):
    """A YAML file with the page's defaults gives the same configuration as one without any key."""
    path = tmp_path / "defaults.yaml"
    path.write_text("training: {max_steps: 10}\n", encoding="utf-8")
    rows = rows_of(configuration_page())
    overrides = [f"{name}={cells[0].strip('`')}" for name, cells in rows.items()]
    by_page, _ = load_config(path, [*overrides, "training.max_steps=10"])
    by_default, _ = load_config(path)
    assert flat(by_page.model_dump()) == flat(by_default.model_dump())


def test_page_shows_a_range_and_a_resume_rule():
    rows = rows_of(configuration_page())
    assert rows["training.threads"][1] == "a whole number (at least 1, at most 4096) or null"
    assert rows["training.multi_token_weights"][1].startswith("a list (at most 16 items), each a ")
    assert rows["training.threads"][3] == "see meaning"
    assert rows["training.safety.max_rewinds"][3] == "taken"
    assert rows["model.dropout"][3] == "only by `--set`"
    assert rows["seed"][3] == "refused"
