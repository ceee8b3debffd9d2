"""The command `chatgot`: its verbs and mistakes, and the words that start a run again."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from child_environment import child_environment
from windows_rules import os_named

from chatgot import __main__, __version__, command_line
from chatgot.command_line import as_typed, command_name, command_of, command_words
from chatgot.config_file import load_config
from chatgot.data import own_text
from chatgot.data.own_text import setting

VERBS = tuple(__main__.VERBS)
PYTHON = "/opt/venv/bin/python"
CHECKOUT_SCRIPT = "/home/me/chatgot/scripts/report.py"
SHIPPED_SCRIPT = "/opt/venv/lib/chatgot/scripts/report.py"
WINDOWS_EXE = r"C:\Users\A Name\venv\Scripts\chatgot.exe"
needs_unix_commands = pytest.mark.skipif(os.name == "nt", reason="Windows looks for chatgot.exe")


def chatgot(*arguments: str, cwd: Path = harness.ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m chatgot` of this checkout; text output."""
    return subprocess.run(
        [sys.executable, "-m", "chatgot", *arguments],
        cwd=cwd,
        env=child_environment(harness.ROOT),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --------------------------------------------------------------------------------------------------
# Verbs, help and mistakes


def test_the_command_alone_prints_the_help_as_pip_does():
    alone = chatgot()
    assert alone.returncode == 0
    assert alone.stderr == ""
    assert alone.stdout == chatgot("--help").stdout
    for verb, (_, does) in __main__.VERBS.items():
        assert verb in alone.stdout
        assert does in alone.stdout


def test_version_is_printed():
    asked = chatgot("--version")
    assert (asked.returncode, asked.stdout) == (0, f"chatgot {__version__}\n")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("trian", "train"),
        ("fix_log", "fix-log"),
        ("reports", "report"),
        ("fix_log_encoding", "fix-log"),
        ("train_with_sample", "train"),
    ],
)
def test_unknown_verb_is_exit_2_and_names_the_one_that_was_meant(word, meant):
    refused = chatgot(word)
    assert refused.returncode == 2
    assert refused.stdout == ""
    *usage, mistake = refused.stderr.splitlines()
    assert usage == ["usage: chatgot VERB ..."]
    assert f"{word!r}, did you mean {meant}?" in mistake


def test_verb_like_none_is_refused_with_the_list_of_verbs():
    refused = chatgot("bogus")
    assert refused.returncode == 2
    assert "did you mean" not in refused.stderr
    assert ", ".join(VERBS) in refused.stderr


def test_option_before_the_verb_is_refused_with_the_list_of_verbs():
    refused = chatgot("--config", "my.yaml")
    assert refused.returncode == 2
    assert f"expected a verb before --config (the verbs are {', '.join(VERBS)})" in refused.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_commands_that_begin_as_it_was_typed(verb):
    asked = chatgot(verb, "--help")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.startswith(f"usage: python -m chatgot {verb} ")
    assert f"  python -m chatgot {verb} " in asked.stdout.partition("examples:")[2]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_ascii_so_that_every_console_can_show_it(verb):
    assert chatgot(*verb.split(), "--help").stdout.isascii()


@pytest.mark.parametrize("verb", VERBS)
def test_mistake_in_the_arguments_of_a_verb_is_exit_2(verb):
    refused = chatgot(verb, "--bogus")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"usage: python -m chatgot {verb} ")


def test_verb_hands_on_its_arguments_and_exit_code(tmp_path):
    (tmp_path / "a.log").write_bytes(b"caf\xe9\n")
    checked = chatgot("fix-log", "--check", "a.log", cwd=tmp_path)
    assert checked.returncode == 1
    assert "read as cp1252" in checked.stdout


def test_files_of_the_user_are_not_taken_for_pythons_own_modules(tmp_path):
    for name in ("argparse", "random", "json", "torch", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')\n")
    asked = chatgot("report", "--help", cwd=tmp_path)
    assert (asked.returncode, asked.stderr) == (0, "")


@pytest.mark.parametrize("verb", ["", *VERBS])
@pytest.mark.parametrize("argument", ["--help", "--bogus"])
def test_help_and_mistakes_import_nothing_that_takes_long(verb, argument):
    heavy = {"torch", "numpy", "pydantic", "yaml", "matplotlib", "jinja2", "tensorboard", "ftfy"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "chatgot", *verb.split(), argument],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "argparse" in packages
    if (verb, argument) == ("train", "--bogus"):
        heavy -= {"pydantic", "yaml"}  # the option is compared with all keys
    assert not packages & heavy


# --------------------------------------------------------------------------------------------------
# The words that start it again


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Return a function that makes this process look as if it had been started by these words."""

    def start(orig_argv: list[str], script: str, arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "orig_argv", [*orig_argv, *arguments])
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.setattr(sys, "executable", PYTHON)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return start


def install(folder: Path) -> Path:
    """Make a file that is the installed command; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "chatgot"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("orig_argv", "script", "words", "name"),
    [
        pytest.param(
            ["python", "/opt/venv/bin/chatgot", "report"],
            SHIPPED_SCRIPT,
            ["/opt/venv/bin/chatgot", "report"],
            "chatgot report",
            id="console script that is not on PATH",
        ),
        pytest.param(
            ["python", "/opt/my venv/bin/chatgot", "report"],
            SHIPPED_SCRIPT,
            ["/opt/my venv/bin/chatgot", "report"],
            "chatgot report",
            id="console script below a folder with a space",
        ),
        pytest.param(
            ["python", "-I", "/opt/venv/bin/chatgot", "report"],
            SHIPPED_SCRIPT,
            ["/opt/venv/bin/chatgot", "report"],
            "chatgot report",
            id="console script whose first line gives Python an option",
        ),
        pytest.param(
            ["python.exe", WINDOWS_EXE, "report"],
            SHIPPED_SCRIPT,
            [WINDOWS_EXE, "report"],
            "chatgot report",
            id="console script of Windows",
        ),
        pytest.param(
            ["python.exe", WINDOWS_EXE.upper(), "report"],
            SHIPPED_SCRIPT,
            [WINDOWS_EXE.upper(), "report"],
            "chatgot report",
            id="console script of Windows in capitals",
        ),
        pytest.param(
            ["python", "-m", "chatgot", "report"],
            SHIPPED_SCRIPT,
            [PYTHON, "-m", "chatgot", "report"],
            "python -m chatgot report",
            id="module",
        ),
        pytest.param(
            ["python", "-X", "utf8", "-m", "chatgot", "report"],
            SHIPPED_SCRIPT,
            [PYTHON, "-m", "chatgot", "report"],
            "python -m chatgot report",
            id="module, with an option of Python",
        ),
        pytest.param(
            ["python", CHECKOUT_SCRIPT],
            CHECKOUT_SCRIPT,
            [PYTHON, CHECKOUT_SCRIPT],
            "python scripts/report.py",
            id="script",
        ),
        pytest.param(
            ["python", "-u", CHECKOUT_SCRIPT],
            CHECKOUT_SCRIPT,
            [PYTHON, CHECKOUT_SCRIPT],
            "python scripts/report.py",
            id="script, with an option of Python",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["chatgot", "--output", "a b"]])
def test_words_start_the_command_as_it_was_started(
    started, orig_argv, script, words, name, arguments
):
    started(orig_argv, script, arguments)
    assert command_words() == words
    assert command_name(script) == name


def test_program_that_set_its_own_arguments_is_started_again_as_a_script(started):
    """As pytest's workers do: what the process was started with says nothing of them."""
    started(["python", "-c", "import chatgot"], CHECKOUT_SCRIPT, [])
    sys.argv = [CHECKOUT_SCRIPT, "-m", "chatgot", "train", "and", "more"]
    assert command_words() == [PYTHON, CHECKOUT_SCRIPT]


@needs_unix_commands
def test_command_on_path_is_called_by_its_name(started, tmp_path):
    program = install(tmp_path / "bin")
    started(["python", str(program), "report"], SHIPPED_SCRIPT, ["tiny"])
    assert command_words() == ["chatgot", "report"]
    assert command_line.command_line() == "chatgot report tiny"


@needs_unix_commands
def test_command_on_path_by_a_link_is_called_by_its_name(started, tmp_path):
    """pipx and uv put a link to the command into a folder that is on PATH."""
    program = install(tmp_path / "tool" / "bin")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "chatgot").symlink_to(program)
    started(["python", str(program), "report"], SHIPPED_SCRIPT, [])
    assert command_words() == ["chatgot", "report"]


@needs_unix_commands
def test_another_command_of_that_name_on_path_is_not_taken_for_it(started, tmp_path):
    install(tmp_path / "bin")
    program = install(tmp_path / "other bin")
    started(["python", str(program), "report"], SHIPPED_SCRIPT, [])
    assert command_words() == [str(program), "report"]
    assert command_line.command_line() == f"'{program}' report"


RANK = dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | {
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


MODULE = (["python", "-m", "chatgot", "train"], "/opt/lib/train_with_samples.py")
SCRIPT = (["python", "scripts/train_with_samples.py"], "scripts/train_with_samples.py")


@pytest.mark.parametrize(
    ("way", "verb", "alone", "as_a_rank"),
    [
        (
            MODULE,
            "distil",
            f"{PYTHON} -m chatgot distil",
            "torchrun --nproc_per_node=2 -m chatgot distil",
        ),
        (MODULE, "chat", f"{PYTHON} -m chatgot chat", "python -m chatgot chat"),
        (
            SCRIPT,
            "train",
            "python scripts/train_with_samples.py",
            "torchrun --nproc_per_node=2 scripts/train_with_samples.py",
        ),
        (SCRIPT, "export", "python scripts/export.py", "python scripts/export.py"),
    ],
)
def test_only_a_verb_that_trains_is_started_with_torchrun(
    started, monkeypatch, way, verb, alone, as_a_rank
):
    started(*way, ["--config", "my.yaml"])
    assert command_of(verb, ["A"]) == f"{alone} A"
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    assert command_of(verb, ["A"]) == f"{as_a_rank} A"


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        (r"C:\texts\my.txt", r"C:\texts\my.txt"),
        ("training.max_steps=4", "training.max_steps=4"),
        (r"C:\A Name\my.txt", r'"C:\A Name\my.txt"'),
        ("C:\\A Name\\", r'"C:\A Name\\"'),
        ("a&b.txt", '"a&b.txt"'),
        ("a&b\\", '"a&b\\\\"'),
        ("sampling.prompts=[a,b]", '"sampling.prompts=[a,b]"'),
        ('say "hi"', r'"say \"hi\""'),
        ("", '""'),
    ],
)
def test_words_on_windows_are_quoted_where_a_shell_would_cut_them(monkeypatch, word, typed):
    monkeypatch.setattr(command_line, "os", os_named("nt"))
    assert as_typed([word]) == typed


@pytest.mark.parametrize("system", ["posix", "nt"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", r"C:\Users\A Name\it's my text.txt"),
        ("training.distillation.teachers", [r"checkpoints\a 1.pt", "b, c.pt"]),
    ],
)
def test_a_setting_that_is_shown_is_read_back_as_it_was(monkeypatch, system, key, value):
    monkeypatch.setattr(own_text, "os", os_named(system))
    monkeypatch.setattr(command_line, "os", os_named(system))
    shown = setting(key, value)
    config, _ = load_config(harness.ROOT / "configs/models/chatgot_quick.yaml", [shown])
    section, *names = key.split(".")
    read = getattr(config, section)
    for name in names:
        read = getattr(read, name)
    assert read == value
    if system == "nt":  # PowerShell ends a word at a double quote inside it
        assert as_typed([shown])[1:-1].count('"') == 0
    else:
        assert shlex.split(as_typed([shown])) == [shown]
