"""`~` and variables in a path that a user gives mean what a shell makes of them."""

import os
import pwd

import pytest
import yaml
from pydantic import ValidationError

from chatgot.config import Config
from chatgot.config_file import effective_yaml, load_config
from chatgot.errors import ConfigError
from chatgot.given_path import expanded, refuse_other_bytes

PATH_KEYS = ("data.path", "paths.checkpoints", "paths.logs", "paths.cache")


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty folder, a home, and a few variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("NOTHING", "nothing"):
        monkeypatch.delenv(name, raising=False)
    variables = {"HOME": "/home/ann", "USERPROFILE": "/users/ann", "SCRATCH": "scratch/ann"}
    for name, value in {**variables, "EMPTY": "", "MONEY": "a$HOME"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~", "/home/ann"),
        ("~/ck", "/home/ann/ck"),
        ("~/", "/home/ann/"),
        ("~/$SCRATCH", "/home/ann/scratch/ann"),
        ("$HOME/lg", "/home/ann/lg"),
        ("${HOME}/lg", "/home/ann/lg"),
        ("%USERPROFILE%/lg", "/users/ann/lg"),
        ("/data/$SCRATCH/${SCRATCH}", "/data/scratch/ann/scratch/ann"),
        ("$MONEY/x", "a$HOME/x"),  # a value is not expanded again
        ("plain/text.txt", "plain/text.txt"),
        ("a~/b", "a~/b"),
        ("a/~/b", "a/~/b"),
        ("100%", "100%"),
        ("5$", "5$"),
        ("costs $5", "costs $5"),
        ("./~/ck", "./~/ck"),
        ("./~x", "./~x"),
        ("./$HOME/lg", "./$HOME/lg"),
        ("./$NOTHING", "./$NOTHING"),
        ("", ""),
    ],
)
def test_a_given_path_is_expanded_as_a_shell_does(given, meant):
    assert expanded(given) == meant


def test_the_home_of_another_user_is_found():
    user = pwd.getpwuid(os.getuid())
    assert expanded(f"~{user.pw_name}/t.txt") == f"{user.pw_dir}/t.txt"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("~no-such-user/x", "no user 'no-such-user'"),
        ("~x", "write ./~x"),
        ("$NOTHING/lg", r"\$NOTHING has no value here"),
        ("${NOTHING}/lg", r"or ./\$\{NOTHING\}/lg"),
        ("%NOTHING%/lg", "%NOTHING% has no value"),
        ("$EMPTY/lg", r"\$EMPTY has no value"),
        ("${HOME:-/tmp}/lg", r"\$\{HOME:-/tmp\} has no value"),
        ("$(pwd)/lg", r"\$\(pwd\) has no value"),
        ("$HOME/$NOTHING", r"\$NOTHING has no value"),
        ("/data/$NOTHING", "write the path itself$"),
    ],
)
def test_what_stands_for_nothing_is_refused_with_what_to_write(given, reason):
    with pytest.raises(ValueError, match=reason):
        expanded(given)


@pytest.mark.parametrize("name", ["~x", "$NOTHING", "%nothing%", "$(pwd)", "${NOTHING}"])
def test_a_folder_of_that_very_name_stays_usable(tmp_path, name):
    (tmp_path / name).mkdir()
    assert expanded(name) == name
    assert expanded(f"{name}/ck") == f"{name}/ck"
    assert expanded(f"{tmp_path}/{name}/ck") == f"{tmp_path}/{name}/ck"


@pytest.mark.parametrize("name", ["~", "$HOME", "%USERPROFILE%"])
def test_a_folder_made_by_mistake_does_not_hide_home(tmp_path, name):
    (tmp_path / name).mkdir()
    assert expanded(f"{name}/ck").endswith("/ann/ck")


@pytest.mark.parametrize("name", ["~", "$HOME", "~$doc.txt"])
def test_a_file_of_that_very_name_is_meant(tmp_path, name):
    (tmp_path / name).write_text("text", encoding="utf-8")
    assert expanded(name) == name
    assert expanded(f"{tmp_path}/{name}") == f"{tmp_path}/{name}"


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_user_without_a_home_is_told_so(monkeypatch, home):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(ValueError, match="no home folder"):
        expanded("~/ck")


# The keys of a configuration


def config_with(tmp_path, key: str, value: str, by_set: bool) -> Config:
    section, _, leaf = key.partition(".")
    content = {"training": {"max_steps": 1}}
    if not by_set:
        content[section] = {leaf: value}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_config(path, [f"{key}={value}"] if by_set else [])[0]


@pytest.mark.parametrize("by_set", [False, True], ids=["yaml", "set"])
@pytest.mark.parametrize("key", PATH_KEYS)
def test_every_path_key_is_expanded(tmp_path, key, by_set):
    section, _, leaf = key.partition(".")
    for given, meant in (("~/x", "/home/ann/x"), ("$HOME/x", "/home/ann/x"), ("./$x", "./$x")):
        config = config_with(tmp_path, key, given, by_set)
        assert getattr(getattr(config, section), leaf) == meant
        again = tmp_path / "again.yaml"
        again.write_text(effective_yaml(config), encoding="utf-8")
        assert load_config(again)[0] == config
    with pytest.raises(ConfigError, match=rf"{key} .*\$NOTHING has no value here"):
        config_with(tmp_path, key, "$NOTHING/x", by_set)
    with pytest.raises(ConfigError, match=rf"{key} .*no user 'y'"):
        config_with(tmp_path, key, "~y/x", by_set)


def test_a_path_in_a_checkpoint_is_left_as_it_is():
    stored = {"training": {"max_steps": 1}, "paths": {"logs": "/gone/$NOTHING", "cache": "~y"}}
    config = Config.model_validate(stored)
    assert (config.paths.logs, config.paths.cache) == ("/gone/$NOTHING", "~y")


def test_a_value_with_control_characters_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "a\nb")
    with pytest.raises(ConfigError, match="without control characters"):
        config_with(tmp_path, "paths.logs", "$SCRATCH/x", by_set=True)


def test_other_bytes_than_utf_8_are_named_with_a_way_out(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(
        ConfigError, match=r"data\.path .*caf.udce9. in this path is not UTF-8; rename it"
    ):
        config_with(tmp_path, "data.path", f"texts/{name}/t.txt", by_set=True)
    refuse_other_bytes("café/Straße/本")
    with pytest.raises(ValidationError):  # the check of a stored one is pydantic's own
        Config.model_validate({"training": {"max_steps": 1}, "data": {"path": name}})
