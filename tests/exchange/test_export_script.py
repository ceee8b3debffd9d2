"""scripts/export.py on a tiny model, as a user starts it."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import exported
import harness
import pytest
from child_environment import child_environment

from chatgot.exchange import plain_safetensors
from chatgot.exchange.exporting import Exported
from chatgot.exchange.known_formats import DTYPES, FORMATS, format_named
from chatgot.exchange.plain_safetensors import SAFETENSORS
from chatgot.exchange.proof import Proof

EXPORT = harness.ROOT / "scripts" / "export.py"
PLAIN = ("--format", "safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a model."""
    folder = tmp_path_factory.mktemp("export")
    exported.checkpoint(folder)
    return folder


@pytest.fixture
def export(folder, monkeypatch, capsys):
    """Return a function that runs the script's main and returns exit code, stdout and stderr."""

    def run(*arguments: str, cwd: Path = folder) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        script = harness.load_script(EXPORT)
        monkeypatch.setattr(script.STOP, "install", lambda: None)
        try:
            code = script.main([*arguments])
        except SystemExit as end:
            code = end.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_stdout_says_what_was_written_the_proof_and_what_to_try(export, folder, tmp_path):
    target = tmp_path / "out"
    code, out, err = export("tiny", "--to", str(target), *PLAIN, "--dtype", "bf16")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{exported.RUN_ID}, step 0, as safetensors in bf16:"
    for path in target.iterdir():
        assert any(line.split()[:1] == [path.name] for line in lines)
    assert f"written: {target}, " in out
    assert out.count("proof: ") == 3
    assert lines[-2:] == ["  from safetensors.torch import load_file", lines[-1]]
    assert (target / "README.md").read_text().startswith("---\n")


def test_first_line_says_the_loss_in_nats_and_in_bits(tmp_path):
    loaded = exported.loaded(tmp_path)
    proof = Proof(3, 85, "held-out text", 1e-6, 12.25, None)
    written = Exported(tmp_path, {"model.safetensors": 9}, [], proof)
    loaded = replace(loaded, val_loss=1.25, tokens_per_byte=0.5)
    script = harness.load_script(EXPORT)
    line, *_ = script.described(loaded, SAFETENSORS, "fp32", written)
    said = "step 0, held-out loss 1.250 (0.902 bits per byte), as safetensors in fp32:"
    assert line == f"{exported.RUN_ID}, {said}"


def test_folder_may_be_named_by_way_of_one_that_is_not_there(export, tmp_path):
    code, out, err = export("tiny", "--to", f"{tmp_path}/gone/../out", *PLAIN)
    assert (code, err) == (0, "")
    assert f"written: {tmp_path / 'out'}, " in out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", FORMATS)
def test_card_names_no_path_whatever_the_folder_is_called(export, tmp_path, name):
    target = tmp_path / "the 'king's\\ \"best\" ü"
    code, _, err = export("tiny", "--to", str(target), "--format", name)
    assert (code, err) == (0, "")
    card = (target / "README.md").read_text(encoding="utf-8")
    assert tmp_path.name not in card
    assert ".tmp" not in card
    assert "best" not in card.partition("ollama")[0]


@pytest.mark.parametrize("model", [[], ["tiny"], [exported.RUN_ID], ["FILE"]])
def test_model_is_the_newest_run_or_the_one_that_is_named(export, folder, tmp_path, model):
    named = [
        str(next(folder.glob("checkpoints/*.pt"))) if word == "FILE" else word for word in model
    ]
    code, out, _ = export(*named, "--to", str(tmp_path / "out"), *PLAIN)
    assert code == 0
    assert out.startswith(exported.RUN_ID)
    assert "in fp32" in out


def test_no_model_is_exit_3_in_one_line(export, tmp_path):
    code, out, err = export("--to", "out", *PLAIN, cwd=tmp_path)
    assert (code, out) == (3, "")
    assert "no trained model" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--to", "new"),
        ("--format", "hf"),
        ("--to", "new", "--format", "onnx"),
        ("--to", "new", *PLAIN, "--dtype", "fp64"),
        ("one", "two", "--to", "new", *PLAIN),
    ],
)
def test_wrong_options_are_exit_2(export, folder, arguments):
    code, out, err = export(*arguments)
    assert (code, out) == (2, "")
    assert "usage:" in err
    assert not (folder / "new").exists()


def test_dtype_that_a_format_lacks_is_exit_2_and_names_its_dtypes(export, folder):
    code, _, err = export("--to", "new", *PLAIN, "--dtype", "q8_0")
    assert code == 2
    assert "fp32, fp16, bf16" in err
    assert not (folder / "new").exists()


def test_format_may_choose_the_dtype_that_nobody_named(export, tmp_path, monkeypatch):
    class Small(plain_safetensors.PlainSafetensors):
        def default_dtype(self, model):
            return "bf16" if model.parameter_count() > 1000 else "fp32"

    monkeypatch.setattr(plain_safetensors, "SAFETENSORS", Small())
    assert "in bf16:" in export("--to", str(tmp_path / "one"), *PLAIN)[1]
    assert "in fp16:" in export("--to", str(tmp_path / "two"), *PLAIN, "--dtype", "fp16")[1]


def test_folder_that_is_not_empty_is_exit_2_and_stays_as_it_is(export, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, out, err = export("--to", str(tmp_path), *PLAIN)
    assert (code, out) == (2, "")
    assert "is not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_failed_proof_is_exit_3_and_leaves_nothing(export, tmp_path, monkeypatch):
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"layer_norm_eps": 1e-05', '"layer_norm_eps": 1'))

    monkeypatch.setattr(plain_safetensors, "SAFETENSORS", exported.Spoilt(spoil))
    code, out, err = export("--to", str(tmp_path / "out"), *PLAIN)
    assert (code, out) == (3, "")
    assert err.startswith("the proof failed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_disk_that_refuses_is_exit_5_and_leaves_nothing(export, tmp_path, monkeypatch, number):
    def refuse(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(plain_safetensors, "SAFETENSORS", exported.Spoilt(refuse))
    code, _, err = export("--to", str(tmp_path / "new" / "out"), *PLAIN)
    assert code == 5
    assert os.strerror(number) in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file_is_exit_5(export, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = export("--to", str(tmp_path / "file" / "out"), *PLAIN)
    assert code == 5
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_each_name_is_that_of_a_format_whose_dtypes_can_be_asked_for(name):
    exported_as = format_named(name)
    assert exported_as.name == name
    assert 0 < len(exported_as.dtypes) == len({*exported_as.dtypes} & {*DTYPES})


# --------------------------------------------------------------------------------------------------
# In a process of its own


def start(folder: Path, how: str, *arguments: str) -> subprocess.Popen:
    """Start an export of the model in `folder`; `how` is what the program does on the way."""
    program = str(harness.ROOT / "tests" / "programs" / "export_and_fail.py")
    command = [sys.executable, program, how, *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=child_environment(harness.ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_disk_full_in_the_middle_of_a_file_is_exit_5(folder, tmp_path):
    """The limit of a file's size stands for the full disk: the write ends in the same way."""
    process = start(folder, "limit", "--to", str(tmp_path / "out"), *PLAIN)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert os.strerror(errno.EFBIG) in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at once")
@pytest.mark.parametrize("number", [signal.SIGTERM, *harness.slow(signal.SIGINT)])
def test_signal_in_the_middle_leaves_nothing(folder, tmp_path, number):
    process = start(folder, "wait", "--to", str(tmp_path / "out"), *PLAIN)
    assert process.stdout.readline() == "written\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert err == ""
    assert list(tmp_path.iterdir()) == []
