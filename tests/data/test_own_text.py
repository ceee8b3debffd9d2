"""A text without a YAML: the name of its run, and the recipes that the user's keys leave."""

from pathlib import Path

import harness
import pytest

from chatgot.config_file import NAME
from chatgot.data.own_text import RECIPES, Request, candidates, check_request, context_for, name_of
from chatgot.errors import ConfigError


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my_text.txt", "my_text"),
        ("My Text (2).txt", "My_Text_2"),
        ("my.text.v2.md", "my.text.v2"),
        ("Müller & Söhne.txt", "Muller_Sohne"),
        ("война и мир.txt", "text"),
        (".hidden", "hidden"),
        ("-rf.txt", "rf"),
        ("config.txt", "config_text"),
        ("CONFIG.txt", "CONFIG_text"),
        ("no_ending", "no_ending"),
    ],
)
def test_a_runs_name_is_that_of_its_text(file, name):
    assert name_of(Path("somewhere", file)) == name


@pytest.mark.parametrize("file", ["a" * 250, "ß" * 100, "...", "🐉.txt", "a\nb.txt", " .txt"])
def test_every_name_is_one_that_a_yaml_may_have(file):
    assert NAME.fullmatch(name_of(Path(file)))


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "my text.txt"
    path.write_text(harness.make_text(6000), encoding="utf-8")
    return path


def test_all_recipes_are_candidates_and_keep_what_the_user_sets(text):
    possible = candidates(Request(text, 3, ("seed=5",)))
    assert [candidate.name for candidate in possible] == list(RECIPES)
    assert {candidate.config.seed for candidate in possible} == {5}
    assert {candidate.config.data.path for candidate in possible} == {str(text)}
    assert {candidate.config.training.max_minutes for candidate in possible} == {3}


def test_a_recipe_that_a_users_key_does_not_fit_is_left_out(text):
    """A width of 128 does not go with the three heads of chatgot_quick, nor with twelve."""
    possible = candidates(Request(text, 3, ("model.d_model=128",)))
    names = [candidate.name for candidate in possible]
    assert names == ["chatgot_mini", "chatgot_small_4M", "chatgot_small_14M"]


def test_a_key_that_fits_no_recipe_is_refused(text):
    with pytest.raises(ConfigError, match="multiple of n_head"):
        candidates(Request(text, 3, ("model.n_head=7",)))


@pytest.mark.parametrize("name", ['a "b" #c.txt', "a\u2028b.txt", "a: [b].txt", "🐉 é.txt"])
def test_a_text_with_a_strange_name_is_found(tmp_path, name):
    path = tmp_path / name
    path.write_text(harness.make_text(6000), encoding="utf-8")
    check_request(Request(path))
    assert candidates(Request(path))[0].config.data.path == str(path)


def test_the_context_is_halved_until_the_text_holds_enough_windows(text):
    quick = candidates(Request(text))[1].config
    contexts = [context_for(Request(text), quick, n) for n in (100, 1_000, 2_000, 4_000, 10**6)]
    assert contexts == [None, 64, 128, 256, 256]


def test_a_context_that_the_user_sets_stays(text):
    request = Request(text, overrides=("model.max_seq_length=200",))
    quick = candidates(request)[1].config
    assert context_for(request, quick, 10_000) == 200
    assert context_for(request, quick, 1_000) is None


def test_a_short_text_in_a_wide_encoding_is_counted_in_characters(tmp_path):
    """889 characters are enough; UTF-16 has twice as many bytes."""
    path = tmp_path / "wide.txt"
    path.write_text(harness.make_text(888), encoding="utf-16")
    with pytest.raises(ConfigError, match="888 characters, at least 889"):
        check_request(Request(path))
    path.write_text(harness.make_text(889), encoding="utf-16")
    check_request(Request(path))
