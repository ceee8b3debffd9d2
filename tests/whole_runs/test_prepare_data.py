"""A folder becomes a text, as a user does it; and `train` takes the folder itself."""

import os
import shutil
import zipfile
from pathlib import Path

import harness
import pytest
import starts

from chatgot.data.own_text import name_of
from chatgot.data.preparation.for_training import is_to_be_prepared, prepared_path, text_of
from chatgot.errors import ConfigError

SHORT = ("--minutes", "0.05", "--set", "sampling.max_new_tokens=4", "--set", "sampling.prompts=[]")
SHORT += ("--set", "training.report=false", "--set", "training.max_steps=2", *starts.QUICK)


@pytest.fixture
def show(tmp_path, monkeypatch) -> Path:
    """A folder of transcripts, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my show"
    folder.mkdir()
    lines = [line for line in harness.make_text(9000).split("\n") if line and line[-1] != ":"]
    for episode in (1, 2, 10):
        speeches = (f"{'AB'[n % 2]}nn: {line}\n" for n, line in enumerate(lines[episode::3]))
        (folder / f"e{episode}.txt").write_text("".join(speeches))
    (folder / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def prepare(*arguments: str) -> int:
    script = harness.load_script(harness.ROOT / "scripts" / "prepare_data.py")
    return int(script.main(list(arguments)))


def test_command_writes_a_text_a_page_and_what_to_do_next(show, capsys):
    assert prepare(show.name, "--output", "data/show.txt", "--report", "look.html") == 0
    said, errors = capsys.readouterr()
    assert errors == ""
    lines = said.splitlines()
    assert lines[0].startswith("Everything stays on this machine")
    assert "read: 3 files: 3 transcript with speakers (utf-8)" in lines
    assert "  my show/picture.txt: a picture" in lines
    assert any(line.startswith("speakers: 2, with their lines: Ann (") for line in lines)
    assert any(line.startswith("train would take chatgot_mini") for line in lines)
    assert lines[-1].endswith("train_with_samples.py data/show.txt --minutes 10")
    text = Path("data/show.txt").read_text()
    assert text.startswith("Ann:\n")
    assert text.count("\n<|endoftext|>\n") == 2
    assert "chatgot_mini" in Path("look.html").read_text()


def test_mistake_of_a_user_is_one_line_and_exit_2(show, capsys):
    assert prepare("nowhere", "--output", "o.txt") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert prepare(show.name, "--output", "o.txt", "--strict") == 2
    assert "picture.txt: a picture" in capsys.readouterr().err
    assert prepare(show.name, "--output", "o.txt", "--report", "o.txt") == 2
    assert prepare(show.name, "--output", "o.txt", "--merge", "x") == 2
    with pytest.raises(SystemExit, match="2"):
        prepare(show.name)
    assert not Path("o.txt").exists()


def test_each_option_of_mending_changes_the_text(show, capsys):
    def text(*options: str) -> str:
        assert prepare(show.name, "--output", "o.txt", *options) == 0
        return Path("o.txt").read_text()

    (show / "e11.txt").write_text("“Quoted” text of one line\n\né\n")
    (show / "e12.txt").write_text((show / "e2.txt").read_text())
    plain = text()
    assert "“Quoted”" in plain
    assert "é" in plain
    assert '"Quoted"' in text("--normalize_quotes")
    assert "\nBnn:\n" not in text("--merge", "Ann=Bnn")
    assert "Ann" not in text("--anonymize")
    assert len(text("--drop_duplicates")) < len(plain)
    mapped = text("--min_count", "3")
    assert "é" not in mapped
    assert "\ne\n" in mapped
    assert "<|endoftext|>" in mapped  # its own characters are not mapped
    assert text("--order", "date") != "" == capsys.readouterr().err


def test_folder_is_trained_on_and_its_run_goes_on(show):
    """Prepared once; a source that has changed is noticed, and the run keeps its text."""
    assert starts.train(show.parent, show.name, *SHORT) == 0
    text = Path("data/my_show.txt")
    before = text.read_bytes()
    (first,) = Path("logs/tensorboard").glob("my_show_*")
    log = harness.log_of(show.parent)
    assert "prepared my show from 3 files: 3 transcript with speakers (utf-8)" in log
    with (show / "e2.txt").open("a") as file:
        file.write("Ann: one more\n")
    longer = ("--resume_from", "latest", "--set", "training.max_steps=3")
    assert starts.train(show.parent, show.name, *longer) == 0
    assert list(Path("logs/tensorboard").glob("my_show_*")) == [first]
    assert text.read_bytes() == before
    assert (harness.load(starts.checkpoint_of(show.parent, "my_show", 3)))["global_step"] == 3


def test_text_is_prepared_again_only_where_its_source_has_changed(show, tmp_path, caplog):
    caplog.set_level("INFO", "chatgot")

    def prepared(resumes: bool = False, dry_run: bool = False) -> str:
        caplog.clear()
        with text_of(Path(show.name), tmp_path / "cache", resumes, dry_run) as text:
            assert text.stem == "my_show"
            content = text.read_text()
        assert text.exists() != dry_run
        return content

    assert prepared(dry_run=True)
    assert not Path("data").exists()
    first = prepared()
    assert prepared() == first
    assert "nothing has changed" in caplog.text
    with (show / "e2.txt").open("a") as file:
        file.write("Ann: one more\n")
    assert prepared(resumes=True) == first
    assert "1 file changed (e2.txt); the run goes on" in caplog.text
    assert prepared() == first.replace("\n\n<|end", "\n\nAnn:\none more\n\n<|end", 2).replace(
        "Ann:\none more\n\n", "", 1
    )
    (show / "e1.txt").unlink()
    prepared()
    assert "1 file gone (e1.txt); preparing" in caplog.text


def test_text_that_was_changed_by_hand_is_not_written_over(show, tmp_path):
    path = prepared_path(show)
    with text_of(show, tmp_path / "cache", False, False):
        pass
    path.write_text("mine")
    with (
        pytest.raises(ConfigError, match="exists, and is not as it was prepared from"),
        text_of(show, tmp_path / "cache", False, False),
    ):
        pass
    assert path.read_text() == "mine"


@pytest.mark.parametrize("lost", ["the record", "its text"])
def test_run_goes_on_with_its_text_though_nobody_knows_where_it_is_from(show, tmp_path, lost):
    """Its checkpoint refuses another text."""
    path = prepared_path(show)
    with text_of(show, tmp_path / "cache", False, False):
        pass
    if lost == "the record":
        shutil.rmtree(tmp_path / "cache")
    else:
        path.write_text("mine")
    before = path.read_bytes()
    with text_of(show, tmp_path / "cache", True, False) as text:
        assert text == path
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "is_prepared"),
    [
        ("a.txt", b"Ann: a\nBob: b\nAnn: c\nBob: d\n", False),  # as it always was
        ("a", b"text", False),
        ("a.py", b"x = 1\n", False),
        ("a.rpt", b"Ann: a\nBob: b\nAnn: c\nBob: d\n", True),
        ("a.bin", bytes(range(256)), False),
        ("folder", None, True),
        ("missing", b"", False),
    ],
)
def test_only_what_is_no_plain_text_is_prepared(tmp_path, name, content, is_prepared):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif content:
        path.write_bytes(content)
    assert is_to_be_prepared(path) is is_prepared


def test_zip_is_prepared_whatever_it_is_called(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.txt", "w") as archive:
        archive.writestr("b.txt", "text")
    assert is_to_be_prepared(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["S01.E02", "my show", ".", "chat.zip"])
def test_prepared_text_has_the_name_of_its_source(tmp_path, monkeypatch, name):
    folder = tmp_path / "a.b c"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if name != "chat.zip":
        Path(name).mkdir(exist_ok=True)
    expected = {"S01.E02": "S01.E02", "my show": "my_show", ".": "a.b_c", "chat.zip": "chat"}
    path = prepared_path(Path(name))
    assert path == Path("data", f"{expected[name]}.txt")
    assert name_of(path) == expected[name]  # so the run has that name, too


def test_empty_folder_is_refused_before_torch_is_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    assert starts.train(tmp_path, ".", *SHORT) == 2
    said = capsys.readouterr().err
    assert "no file to read; give a folder or zip with texts" in said
    assert "fifo: a FIFO, no file" in said
