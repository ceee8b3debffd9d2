"""Which files inputs name, in which order, and what is said of those that are not read."""

import os
import random
from pathlib import Path

import pytest

from chatgot.data.preparation import prepare as preparing
from chatgot.data.preparation.inputs import find_files
from chatgot.data.preparation.natural_order import natural_key
from chatgot.data.preparation.prepare import Preparation, Prepared, prepare
from chatgot.errors import ConfigError

BINARY = bytes(range(256)) * 9


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with `in` for inputs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def fill(folder: Path, **contents: str | bytes) -> None:
    """Write files; `__` in a name stands for the dot."""
    for name, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def prepared(*inputs: str, **options) -> tuple[str, Prepared]:
    """Return the text and what was said of it."""
    told = prepare(Preparation(inputs, **options), Path("out.txt"))
    return Path("out.txt").read_bytes().decode(), told


def reasons(told: Prepared) -> dict[str, str]:
    return {left.name: left.reason for left in told.left_out}


@pytest.mark.parametrize(
    "names",
    [
        ["S01E02.srt", "S01E10.srt", "s02e01.srt"],
        ["2/1.txt", "10/1.txt", "10/2.txt"],
        ["a1.txt", "a01.txt", "A2.txt", f"a{'9' * 5000}.txt"],
        ["chat.zip: 9.txt", "chat.zip: 10.txt"],
        ["1.txt", "a.txt", "ä.txt"],
    ],
)
def test_natural_order_counts_as_people_do(names):
    shuffled = names[:]
    random.Random(1).shuffle(shuffled)
    assert [natural_key(name)[0] for name in sorted(shuffled, key=natural_key)] == [
        natural_key(name)[0] for name in names
    ]


def test_folder_is_read_with_all_that_is_in_it_in_natural_order(folder):
    fill(folder, e10__txt="ten", e2__txt="two")
    fill(folder / "s2", e1__txt="next")
    text, told = prepared("in")
    assert text == "two\n<|endoftext|>\nten\n<|endoftext|>\nnext"
    assert [file.name for file in told.read] == ["in/e2.txt", "in/e10.txt", "in/s2/e1.txt"]


def test_pattern_names_its_files_and_a_file_named_twice_is_read_once(folder):
    fill(folder, a__txt="a", b__md="b", c__txt="c")
    assert prepared("in/*.txt", "in/c.txt")[0] == "a\n<|endoftext|>\nc"
    assert prepared("in/**/*.md")[0] == "b"
    assert prepared("in/c.txt", "in/a.txt")[0] == "a\n<|endoftext|>\nc"


def test_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    (folder / "a[1].txt").write_text("one")
    (folder / "a1.txt").write_text("other")
    assert prepared("in/a[1].txt")[0] == "one"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("in/lines.txt", "no such file or folder in .*did you mean in/line.txt"),
        ("in/*.srt", "no file matches"),
        ("", "an empty input"),
        ("in/\0", "no such file"),
    ],
)
def test_input_that_names_nothing_is_refused(folder, given, message):
    fill(folder, line__txt="x")
    with pytest.raises(ConfigError, match=message):
        find_files([given])


def test_what_cannot_be_read_is_named_with_its_reason_and_the_rest_is_read(folder, monkeypatch):
    fill(folder, good__txt="good", empty__txt="", binary__txt=BINARY)
    fill(folder, picture__txt=b"\x89PNG\r\n\x1a\n", locked__txt="x")
    fill(folder, torn__txt=b"caf\xc3\xa9 \xff \xc3\xa9\xc3\xa9\n" * 9)
    os.mkfifo(folder / "fifo")
    (folder / "broken").symlink_to("nowhere")
    (folder / "none").mkdir()
    refuse_to_open(monkeypatch, "locked.txt")
    text, told = prepared("in")
    assert text == "good"
    assert {Path(name).name: reason for name, reason in reasons(told).items()} == {
        "binary.txt": "binary: no text in any encoding",
        "broken": "a symlink to nowhere, which leads to no file",
        "empty.txt": "empty",
        "fifo": "a FIFO, no file",
        "locked.txt": "cannot be read: Permission denied",
        "none": "an empty folder",
        "picture.txt": "a picture",
        "torn.txt": reasons(told)["in/torn.txt"],
    }
    assert reasons(told)["in/torn.txt"].startswith("not utf-8 at byte offset 6")
    assert "or give --encoding" in reasons(told)["in/torn.txt"]


def refuse_to_open(monkeypatch, name: str) -> None:
    """Have the system refuse a file; it lets root open any."""
    really_open = Path.open

    def refuse(path: Path, *arguments, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)


def test_strict_refuses_all_where_one_file_is_left_out(folder):
    fill(folder, good__txt="good", binary__txt=BINARY)
    Path("out.txt").write_text("before")
    with pytest.raises(ConfigError, match=r"--strict: 1 file left out.*\nin/binary\.txt: binary"):
        prepared("in", is_strict=True)
    assert Path("out.txt").read_text() == "before"
    (folder / "binary.txt").unlink()
    fill(folder, __hidden="x")
    assert prepared("in", is_strict=True)[0] == "good"


def test_inputs_without_any_text_write_nothing(folder):
    fill(folder, blank__txt=" \n\n", binary__txt=BINARY)
    with pytest.raises(ConfigError, match=r"no text in any file.*\n(.*\n)*in/blank\.txt: no text"):
        prepared("in")
    assert not Path("out.txt").exists()


def test_symlinks_that_lead_back_are_named_and_end(folder):
    fill(folder / "sub", a__txt="a")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "itself").symlink_to("itself")
    text, told = prepared("in")
    assert text == "a"
    assert "which is read already" in reasons(told)["in/sub/up"]
    assert reasons(told)["in/itself"] == "a symlink to itself, which leads to no file"


def test_hidden_files_and_own_outputs_are_skipped_and_said(folder):
    fill(folder, a__txt="a", __hidden__txt="b", Thumbs__db="c")
    fill(folder / ".git", config="d")
    Path("out.txt").write_text("of the last time")
    text, told = prepared("in", ".", ours=(Path("out.txt"),))
    assert text == "a"
    assert {(Path(skipped.name).name, skipped.reason) for skipped in told.skipped} == {
        (".hidden.txt", "hidden"),
        ("Thumbs.db", "hidden"),
        (".git", "hidden"),
        ("out.txt", "written by this program"),
        ("in", "taken already"),
    }
    assert prepared("in/.hidden.txt")[0] == "b"  # who names it wants it


def test_output_that_is_an_input_is_refused(folder):
    fill(folder, a__txt="a")
    with pytest.raises(ConfigError, match="an input and an output"):
        find_files(["in/../in/a.txt"], [folder / "a.txt"])


def test_order_by_date_takes_the_first_time_of_a_file_or_its_change(folder):
    lines = ["Ann: hello", "Bob: hi", "Ann: well", "Bob: yes"]
    for name, year in (("a.txt", 2022), ("b.txt", 2020)):
        stamped = (f"{year}-01-01 12:00:00 {line}\n" for line in lines)
        (folder / name).write_text("".join(stamped))
    fill(folder, c__txt="no time in it")
    os.utime(folder / "c.txt", (1609459200, 1609459200))  # 2021
    _, told = prepared("in", order="date")
    assert [Path(file.name).name for file in told.read] == ["b.txt", "c.txt", "a.txt"]
    _, told = prepared("in")
    assert [Path(file.name).name for file in told.read] == ["a.txt", "b.txt", "c.txt"]


def test_encoding_is_guessed_for_each_file_or_given_for_all(folder):
    fill(folder, a__txt="Grüße an alle, schöne Äpfel".encode("cp1252"))
    fill(folder, b__txt="\ufeffZwölf\r\nBoxer\rkämpfen".encode("utf-16"))
    text, told = prepared("in")
    assert text == "Grüße an alle, schöne Äpfel\n<|endoftext|>\nZwölf\nBoxer\nkämpfen"
    assert [file.encoding for file in told.read] == ["cp1252", "utf-16-le"]
    text, told = prepared("in/a.txt", encoding="cp437")
    assert text.startswith("Gr\u207f")
    with pytest.raises(ConfigError, match="not utf-8 at byte offset 2"):
        prepared("in/a.txt", encoding="utf-8")


def test_fault_far_into_a_file_keeps_what_comes_before_and_is_said(folder, monkeypatch):
    monkeypatch.setattr(preparing, "surest_reader", lambda source: BREAKS)
    fill(folder, a__txt="x")
    text, told = prepared("in")
    assert text == "ANN:\nhello\n\n"
    (fault,) = told.refusals()
    assert fault.reason == "row 2 is broken; what comes before that is in the text"
    with pytest.raises(ConfigError, match="row 2 is broken"):
        prepared("in", is_strict=True)


def breaks(source, options, findings):
    yield preparing.Speech("ANN", "hello")
    raise preparing.UnreadableError("row 2 is broken")


BREAKS = preparing.Reader("broken table", lambda source: 1.0, breaks)
