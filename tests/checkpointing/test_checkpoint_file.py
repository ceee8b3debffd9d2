"""A checkpoint file is read whole and unaltered, or it is refused; nothing in it is executed."""

import contextlib
import hashlib
import io
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import parts
import pytest
import torch

from chatgot.checkpointing import checkpoint_file
from chatgot.checkpointing.checkpoint_file import (
    MOST_SPEAKERS,
    OPTIONAL,
    SCHEMA,
    damage,
    is_whole,
    load_checkpoint,
    load_weights,
    read_outline,
    save_checkpoint,
)
from chatgot.errors import CheckpointRejected
from chatgot.machine.memory import peak_memory_mib

ROOT = Path(__file__).resolve().parents[2]
TOKENS = ["<|endoftext|>", *parts.ALPHABET]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """The content of a checkpoint, as a run saves it."""
    state = parts.run()
    for p in state.model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    state.optimizer.step()
    state.state.progress.global_step = state.state.progress.position = 1
    state.state.progress.train_loss = 2.5
    return parts.copied(state.checkpoint())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, content) -> bytes:
    """The bytes of a checkpoint file."""
    path = tmp_path_factory.mktemp("whole") / "any.pt"
    save_checkpoint(path, content)
    return path.read_bytes()


def refused(path: Path, *words: str, load=load_checkpoint) -> str:
    """Assert that a file is refused with these words; return the message."""
    with pytest.raises(CheckpointRejected) as raised:
        load(path)
    message = str(raised.value)
    assert str(path) in message
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2
    return message


def rezipped(whole: bytes, change=lambda entries: entries, **keywords) -> bytes:
    """Return a zip with changed entries, a list of (name, bytes), and the right SHA-256."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **keywords) as archive:
        for name, data in change(entries):
            archive.writestr(name, data)
    return parts.with_digest(buffer.getvalue())


# Written and read


def test_loaded_content_equals_the_saved_one_in_every_field(tmp_path, content):
    path = tmp_path / f"{parts.RUN_ID}_step_1.pt"
    save_checkpoint(path, content)
    loaded = load_checkpoint(path)
    always = {"speakers", "data_tokens", "tokens_per_byte", "working_dir"}
    assert loaded.keys() == content.keys() == SCHEMA.keys() - OPTIONAL | always
    again = tmp_path / "again.pt"
    save_checkpoint(again, loaded)
    assert parts.same(load_checkpoint(again), loaded)
    for key in content:
        if key == "config":  # tuples may become lists; the values stay
            assert loaded[key] == content[key]
        else:
            assert parts.same(loaded[key], content[key]), key


def test_a_file_has_its_hash_as_comment_and_zipfile_and_torch_read_it(whole, tmp_path):
    assert whole[-64:].decode() == hashlib.sha256(whole[:-64]).hexdigest()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.comment == whole[-64:]
        assert archive.testzip() is None
    (tmp_path / "any.pt").write_bytes(whole)
    loaded = torch.load(tmp_path / "any.pt", map_location="cpu", weights_only=True)
    assert loaded["global_step"] == 1
    assert "model_state_dict" in loaded


def test_a_file_has_the_same_values_under_any_name(whole, tmp_path):
    path = tmp_path / "my favourite.bin"
    path.write_bytes(whole)
    assert load_checkpoint(path)["run_id"] == parts.RUN_ID


def test_a_save_keeps_a_whole_file_and_replaces_a_damaged_one(tmp_path, content, whole):
    path = tmp_path / "any.pt"
    path.write_bytes(whole)
    inode = path.stat().st_ino
    save_checkpoint(path, {**content, "loss": 9.0})
    assert path.stat().st_ino == inode
    assert load_checkpoint(path)["loss"] == 2.5
    path.write_bytes(whole[:-1])
    save_checkpoint(path, {**content, "loss": 9.0})
    assert load_checkpoint(path)["loss"] == 9.0


def test_saving_changes_neither_the_content_nor_the_generators(tmp_path, content):
    before = parts.copied(content)
    generator = torch.get_rng_state()
    save_checkpoint(tmp_path / "any.pt", content)
    assert parts.same(content, before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_failed_write_is_an_os_error_and_changes_no_file(tmp_path, whole):
    path = tmp_path / "checkpoints" / "any.pt"
    path.parent.mkdir()
    path.write_bytes(whole[:-1])  # damaged, so that a save would replace it
    script = """
import resource, sys, torch
from pathlib import Path
from chatgot.checkpointing.checkpoint_file import save_checkpoint
path, size, wrong = Path(sys.argv[1]), int(sys.argv[2]), []
before = path.read_bytes()
content = torch.load(sys.argv[3], weights_only=True)
for limit in [0, 1, 100, *range(4096, size - 4096, 8192), size - 65, size - 64, size - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        save_checkpoint(path, content)
        wrong.append((limit, "no error"))
    except OSError as error:
        if error.errno != 27:
            wrong.append((limit, repr(error)))
    except BaseException as error:
        wrong.append((limit, repr(error)))
    if [p.name for p in path.parent.iterdir()] != ["any.pt"] or path.read_bytes() != before:
        wrong.append((limit, "the folder changed"))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, -1))
save_checkpoint(path, content)
print(wrong)
"""
    (tmp_path / "content.pt").write_bytes(whole)
    command = [
        sys.executable,
        "-c",
        script,
        str(path),
        str(len(whole)),
        str(tmp_path / "content.pt"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", done.stdout
    assert is_whole(path)


# The outline


def test_the_outline_is_the_content_without_its_tensors(whole, content, tmp_path):
    path = tmp_path / "any.pt"
    path.write_bytes(whole)
    outline = read_outline(path)
    assert content.keys() - outline.keys() == {"model_state_dict", "optimizer_state_dict", "rng"}
    loaded = load_checkpoint(path)
    assert all(parts.same(outline[key], loaded[key]) for key in outline)


def test_an_outline_that_is_read_twice_verifies_its_file_once(whole, tmp_path, monkeypatch):
    path = tmp_path / "any.pt"
    path.write_bytes(whole)
    verified = []
    monkeypatch.setattr(checkpoint_file, "damage", lambda file, advance: verified.append(file))
    assert read_outline(path) == read_outline(path)
    assert is_whole(path)
    assert len(verified) == 1


def test_a_damaged_or_foreign_file_has_no_outline(whole, content, tmp_path):
    path = tmp_path / "any.pt"
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    path.write_bytes(altered)
    refused(path, "damaged", load=read_outline)
    torch.save(content, path)
    refused(path, "not written by ChatGoT", load=read_outline)
    refused(tmp_path / "missing.pt", load=read_outline)
    (tmp_path / f"{parts.RUN_ID}_step_2.pt").write_bytes(whole)
    refused(tmp_path / f"{parts.RUN_ID}_step_2.pt", "renamed", load=read_outline)


# Damage


def test_a_file_with_any_bit_flipped_is_refused(whole, tmp_path):
    path = tmp_path / "any.pt"
    rng = random.Random(0)
    bits = [rng.randrange(8 * len(whole)) for _ in range(300)]
    bits += range(8 * (len(whole) - 86), 8 * len(whole), 5)  # the zip's last record and its comment
    for bit in bits:
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        refused(path)
        assert not is_whole(path)


def test_a_file_truncated_at_any_place_is_refused(whole, content, tmp_path):
    path = tmp_path / "any.pt"
    for size in [
        *range(0, len(whole), 1024),
        1,
        3,
        4,
        21,
        22,
        85,
        86,
        87,
        *range(len(whole) - 90, len(whole)),
    ]:
        path.write_bytes(whole[:size])
        refused(path)
        if size < len(whole) - 64:
            refused(path, load=load_weights)
        else:  # only the comment is cut, which foreign files lack: the weights may be read
            with contextlib.suppress(CheckpointRejected):
                assert parts.same(load_weights(path)[0], dict(content["model_state_dict"]))


def test_a_file_with_a_zeroed_page_is_refused(whole, tmp_path):
    path = tmp_path / "any.pt"
    for start in range(0, len(whole), 4096):
        page = whole[start : start + 4096]
        assert page.strip(b"\0")  # the page is not zero anyway
        path.write_bytes(whole[:start] + bytes(len(page)) + whole[start + 4096 :])
        refused(path, "damaged" if start else "zip")


@pytest.mark.parametrize("extra", [b"\0", b"x" * 64, b"PK\x05\x06" + bytes(18)])
def test_a_file_with_bytes_after_its_end_is_refused(whole, tmp_path, extra):
    (tmp_path / "any.pt").write_bytes(whole + extra)
    refused(tmp_path / "any.pt")


def test_a_comment_longer_than_its_right_hash_is_refused(whole, tmp_path):
    end = len(whole) - 64
    body = whole[: end - 2] + struct.pack("<H", 74) + b"0123456789"
    (tmp_path / "any.pt").write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    with zipfile.ZipFile(tmp_path / "any.pt") as archive:
        assert len(archive.comment) == 74  # a proper zip
    refused(tmp_path / "any.pt")


def test_a_file_without_a_hash_is_read_for_new_runs_only(content, tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save(content, path)
    refused(path, "not written by ChatGoT")
    weights, vocabulary = load_weights(path)
    assert parts.same(weights, dict(content["model_state_dict"]))
    assert vocabulary == TOKENS


@pytest.mark.parametrize(
    "name", ["{run}_step_2.pt", "{run}_step_0.pt", "other_20250102-030405_step_1.pt"]
)
def test_a_file_with_the_name_of_another_is_refused(whole, tmp_path, name):
    path = tmp_path / name.format(run=parts.RUN_ID)
    path.write_bytes(whole)
    refused(path, "renamed", f"{parts.RUN_ID}_step_1.pt")


# What is not a regular file


@pytest.mark.parametrize("load", [load_checkpoint, load_weights])
@pytest.mark.parametrize(
    "kind", ["link", "dangling", "loop", "fifo", "folder", "missing", "device", "memory"]
)
def test_anything_but_a_regular_file_is_refused_at_once(whole, tmp_path, kind, load):
    path = tmp_path / "any.pt"
    target = tmp_path / "target.pt"
    target.write_bytes(whole)
    make = {
        "link": lambda: path.symlink_to(target),
        "dangling": lambda: path.symlink_to(tmp_path / "nothing"),
        "loop": lambda: path.symlink_to(path),
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }
    make.get(kind, lambda: None)()
    path = {"device": Path("/dev/zero"), "memory": Path("/proc/self/mem")}.get(kind, path)
    with parts.at_once():
        message = refused(path, load=load)
    if kind == "link":
        assert str(target) in message  # the user may want to name the target


def test_a_missing_file_is_refused_with_the_newest_file_of_its_folder(whole, tmp_path):
    for step in (2, 10, 9):
        (tmp_path / f"{parts.RUN_ID}_step_{step}.pt").write_bytes(b"")
    refused(tmp_path / f"{parts.RUN_ID}_step_11.pt", f"{parts.RUN_ID}_step_10.pt")


# Pickles that execute code


class Bomb:
    """Makes a sentinel file when plain pickle unpickles it."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def armed(kind: str, content: dict[str, Any], sentinel: Path) -> bytes:
    """Return a file with a bomb inside the nested state."""
    bomb = Bomb(sentinel)
    loaded = {**content, "run": {**content["state"], "run_id": bomb}}
    buffer = io.BytesIO()
    if kind in ("zip", "zip with the right hash"):
        torch.save(loaded, buffer)
        return parts.with_digest(buffer.getvalue()) if kind.endswith("hash") else buffer.getvalue()
    if kind == "legacy":
        torch.save(loaded, buffer, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        pickle.dump(bomb, buffer)
    else:
        data = pickle.dumps(bomb)
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in ("storages", "tensors", "pickle"):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    plain = buffer.getvalue()
    return plain + hashlib.sha256(plain).hexdigest().encode()


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("kind", ["zip", "zip with the right hash", "legacy", "pickle", "tar"])
def test_a_pickle_that_would_run_code_is_refused_and_never_runs_it(
    content, tmp_path, kind, forced, monkeypatch
):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / "any.pt"
    path.write_bytes(armed(kind, content, sentinel))
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for load in (load_checkpoint, load_weights):
        refused(path, load=load)
        assert not is_whole(path) or kind == "zip with the right hash"
    assert not sentinel.exists()
    if kind == "zip with the right hash":  # the bomb works: a reader that trusts it runs it
        torch.load(path, weights_only=False)
        assert sentinel.exists()


GLOBALS = [
    b"os\nsystem",
    b"builtins\neval",
    b"torch.jit._serialization\nload",
    b"chatgot.errors\nConfigError",
    b"pathlib\nPosixPath",
    b"torch._utils\n_rebuild_tensor_v2",
    b"no_such_module\nname",
]
PICKLES = {
    "empty": b"",
    "a stop alone": b".",
    "a stop on an empty mark": b"(.",
    "nothing popped": b"0.",
    "no stop": b"\x80\x02}",
    "unknown opcode": b"\x80\x02\xff.",
    "missing memo": b"\x80\x02h\x07.",
    "a number": b"\x80\x02K\x01.",
    "a list": b"\x80\x02].",
    "a cut string": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "bad utf-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "a cut int": b"\x80\x02J\x01.",
    "a tuple of nothing": b"\x80\x02\x87.",
    "a persistent id of a number": b"\x80\x02K\x01Q.",
    "a persistent id of a tuple": b"\x80\x02)Q.",
    "setitems on a number": b"\x80\x02K\x01(K\x01K\x02u.",
    "append to a number": b"\x80\x02K\x01K\x02a.",
    "reduce of a number": b"\x80\x02K\x01)R.",
    "build of a number": b"\x80\x02K\x01}b.",
    "deep lists": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "unhashable key": b"\x80\x02}]K\x01s.",
    "huge long": b"\x80\x02\x8a\x01.",
    "text int": b"Ix\n.",
    **{f"global {name!r}": b"c" + name + b"\n." for name in GLOBALS},
    **{
        f"call of {name!r}": b"c" + name + b"\n(X\x04\x00\x00\x00trueX\x01\x00\x00\x00xtR."
        for name in GLOBALS
    },
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_crafted_pickle_with_the_right_hash_is_refused_without_a_crash(whole, tmp_path, kind):
    path = tmp_path / "any.pt"
    path.write_bytes(
        rezipped(
            whole,
            lambda entries: [
                (n, PICKLES[kind] if n.endswith("data.pkl") else d) for n, d in entries
            ],
        )
    )
    with path.open("rb") as file:
        assert damage(file, lambda amount: None) is None  # the hash is right: it is unpickled
    assert not is_whole(path)
    refused(path)
    refused(path, load=load_weights)


HUGE = (10**9).to_bytes(4, "little")
ALLOCATORS = {
    "bytearray": b"cbuiltins\nbytearray\nJ" + HUGE + b"\x85R.",
    "a storage": b"ctorch\nFloatStorage\nJ" + HUGE + b"\x85R.",
    "a storage from the memo": b"ctorch\nFloatStorage\nq\x00h\x00J" + HUGE + b"\x85R.",
    "a tensor's class": b"ctorch\nFloatTensor\nJ" + HUGE + b"\x85R.",
    "a new object": b"cbuiltins\nbytearray\nJ" + HUGE + b"\x85\x81.",
    "copies of a dict": b"ccollections\nOrderedDict\n]\x85R.",
    "a long shape, to be copied": b"ctorch\nSize\n(" + b"K\x01" * 65 + b"t\x85R.",
    "a dict of many attributes, to be copied": (
        b"ccollections\nOrderedDict\n)R}("
        + b"".join(b"K" + bytes([number]) + b"N" for number in range(65))
        + b"ub."
    ),
    "attributes of a tensor's class": b"ctorch\nFloatTensor\n}b.",
}


@pytest.mark.parametrize("kind", ALLOCATORS)
@pytest.mark.parametrize("load", [load_checkpoint, load_weights])
def test_a_pickle_that_asks_for_gigabytes_is_refused_unread(
    whole, tmp_path, monkeypatch, kind, load
):
    def change(entries):
        pickled = b"\x80\x02" + ALLOCATORS[kind]
        return [(n, pickled if n.endswith("data.pkl") else d) for n, d in entries]

    path = tmp_path / "any.pt"
    path.write_bytes(rezipped(whole, change))
    monkeypatch.setattr(torch, "load", None)  # any call would raise TypeError
    message = refused(path, "it asks for", load=load)
    assert "PyTorch" not in message


def test_a_mutated_pickle_with_the_right_hash_is_valid_or_refused(whole, tmp_path):
    path = tmp_path / "any.pt"
    rng = random.Random(1)
    outcomes = []

    def change(entries):
        changed = []
        for name, data in entries:
            if name.endswith("data.pkl"):
                data = bytearray(data)
                data[rng.randrange(len(data))] = rng.randrange(256)
            changed.append((name, bytes(data)))
        return changed

    for _ in range(100):
        path.write_bytes(rezipped(whole, change))
        try:
            load_checkpoint(path)
            outcomes.append("loaded")
        except CheckpointRejected:
            outcomes.append("refused")
    assert {"loaded", "refused"} == set(outcomes)


# Odd zip files, each with the right hash


def renamed(old: str, new: str):
    return lambda entries: [(new if name.endswith(old) else name, data) for name, data in entries]


def rooted(root: str):
    return lambda entries: [(root + name[name.index("/") :], data) for name, data in entries]


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: [*entries, ("archive/extra", b"x")],
        lambda entries: [*entries, ("archive/data/../../evil", b"x")],
        lambda entries: [*entries, ("../data/9999", b"x")],
        lambda entries: [*entries, ("/etc/passwd", b"x")],
        lambda entries: [*entries, ("archive/data/٣", b"x")],
        lambda entries: [*entries, ("other/data.pkl", b"x")],
        lambda entries: [*entries, ("archive/data/", b"")],
        lambda entries: [(name.replace("/", "\\", 1), data) for name, data in entries],
        renamed("data.pkl", "archive/constants.pkl"),
        rooted(".."),
        rooted(""),
    ],
    ids=[
        "extra",
        "climbing",
        "other root",
        "absolute",
        "digits",
        "two roots",
        "folder",
        "backslash",
        "no pickle",
        "..",
        "no root",
    ],
)
def test_a_zip_with_entries_that_no_checkpoint_has_is_refused(whole, tmp_path, change):
    path = tmp_path / "any.pt"
    path.write_bytes(rezipped(whole, change))
    refused(path)
    refused(path, load=load_weights)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("which", ["data.pkl", "data/0", "version"])
def test_a_zip_with_two_entries_of_one_name_is_refused(whole, tmp_path, which):
    path = tmp_path / "any.pt"
    path.write_bytes(
        rezipped(
            whole,
            lambda entries: [*entries, *((n, d) for n, d in entries if n.endswith("/" + which))],
        )
    )
    assert not is_whole(path)
    refused(path, "same name")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_zip_is_refused(whole, tmp_path, method):
    path = tmp_path / "any.pt"
    path.write_bytes(rezipped(whole, compression=method))
    refused(path)
    refused(path, load=load_weights)


def test_a_zip_bomb_is_refused(whole, tmp_path):
    def bomb(entries):
        return [*entries, ("archive/data/7777", bytes(50_000_000))]

    path = tmp_path / "any.pt"
    path.write_bytes(rezipped(whole, bomb, compression=zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 1_000_000
    refused(path)


def test_a_compressed_foreign_zip_is_refused_before_it_is_unpacked(whole, tmp_path, monkeypatch):
    path = tmp_path / "foreign.pt"
    path.write_bytes(rezipped(whole, compression=zipfile.ZIP_DEFLATED)[:-66] + b"\0\0")
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # any call would raise TypeError
    refused(path, "an entry that no checkpoint has", load=load_weights)


def test_a_zip_behind_other_bytes_is_refused(whole, tmp_path):
    path = tmp_path / "any.pt"
    for prefix in (b"#!/bin/sh\n", b"PK\x03\x04" + b"x" * 60):
        path.write_bytes(parts.with_digest(prefix + whole[:-66] + b"\0\0"))
        refused(path)


# Tensors that lie about themselves


def tampered(content: dict[str, Any], tensor: torch.Tensor, key: str = "exp_avg") -> dict[str, Any]:
    """Return a copy of a checkpoint's content with `tensor` in the optimizer's state."""
    copy = parts.copied(content)
    copy["optimizer_state_dict"]["state"][0][key] = tensor
    return copy


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (
            lambda t: torch.zeros(1).expand(10**6, 10**6),
            "not plain CPU tensors: optimizer_state_dict.state.0.exp_avg",
        ),
        (
            lambda t: torch.zeros(1).expand(t.shape),
            "not plain CPU tensors",
        ),  # fused AdamW would write past the end of its storage
        (lambda t: t.T, "not plain CPU tensors"),
        (lambda t: t.to_sparse(), "not plain CPU tensors"),
        (
            lambda t: torch.full_like(t, torch.nan),
            "NaN or infinity in optimizer_state_dict.state.0.exp_avg",
        ),
        (lambda t: t.index_fill(0, torch.tensor([1]), torch.inf), "NaN or infinity"),
    ],
    ids=["10^12 elements", "expanded", "transposed", "sparse", "NaN", "inf"],
)
def test_a_tensor_that_no_run_saves_is_refused_before_it_is_copied(content, tmp_path, tensor, word):
    path = tmp_path / "any.pt"
    parts.forge(
        path, tampered(content, tensor(content["optimizer_state_dict"]["state"][0]["exp_avg"]))
    )
    refused(path, word)


def test_tied_weights_larger_than_all_else_are_saved_and_loaded(tmp_path):
    state = parts.run(model={"d_model": 2048, "n_layers": 1, "n_head": 1, "d_hid": 1})
    path = parts.checkpoint_file(tmp_path, state)
    weights = load_checkpoint(path)["model_state_dict"]
    assert parts.same(weights["head.weight"], state.model.head.weight.detach())
    assert weights["head.weight"].data_ptr() == weights["token_embedding.weight"].data_ptr()


@pytest.mark.parametrize(
    ("what", "word"),
    [(b"K\x08t", "does not match expected size"), (b"K\x08\x85", "larger than the file")],
)
def test_a_tensor_declared_larger_than_the_file_takes_no_memory(content, tmp_path, what, word):
    path = tmp_path / "any.pt"
    parts.forge(path, tampered(content, torch.zeros(8)))

    def declare(entries):
        """Put 10^9 in place of 8: the storage's size (which ends a tuple) or the tensor's."""
        pickled = dict(entries)
        (name,) = (name for name in pickled if name.endswith("data.pkl"))
        data = pickled[name]
        assert data.count(what) == 1
        at = data.index(what)
        data = data[:at] + b"J" + (10**9).to_bytes(4, "little") + data[at + 2 :]
        return [(n, data if n == name else d) for n, d in entries]

    path.write_bytes(rezipped(path.read_bytes(), declare))
    before = peak_memory_mib()
    refused(path, word)
    assert peak_memory_mib() - before < 100


def test_a_zip_of_a_million_entries_is_refused_fast_and_in_little_memory(tmp_path):
    count = 1_000_000
    entry = b"PK\x01\x02" + bytes(24) + (20).to_bytes(2, "little") + bytes(16)
    entry += b"archive/data/1234567"
    listing = entry * count
    record = struct.pack(
        "<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(listing), 4
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 4 + len(listing), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "any.pt"
    path.write_bytes(parts.with_digest(b"PK\x03\x04" + listing + record + locator + end))
    start = time.perf_counter()
    before = peak_memory_mib()
    refused(path, "more entries than any checkpoint has")
    refused(path, "more entries than any checkpoint has", load=load_weights)
    assert time.perf_counter() - start < 2
    assert peak_memory_mib() - before < 100


def test_a_zip_whose_entries_overlap_is_refused(whole, tmp_path):
    path = tmp_path / "any.pt"
    entries = rezipped(whole)[:-64]
    with zipfile.ZipFile(io.BytesIO(rezipped(whole))) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    at = entries.rindex(largest.filename.encode()) - 46  # its line in the list of entries
    sizes = struct.pack("<II", len(whole), len(whole))
    path.write_bytes(
        parts.with_digest(entries[: at + 20] + sizes + entries[at + 28 : -2] + b"\0\0")
    )
    refused(path, "overlap")


# The schema


def test_an_unknown_key_is_refused_by_name(content, tmp_path):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "momentum_of_the_future": 1})
    refused(path, "momentum_of_the_future")


@pytest.mark.parametrize("key", sorted(SCHEMA.keys() - OPTIONAL))
def test_a_missing_key_is_refused_by_name(content, tmp_path, key):
    path = tmp_path / "any.pt"
    parts.forge(path, {name: value for name, value in content.items() if name != key})
    refused(path, key.replace("_", " ") if key == "format_version" else key)


@pytest.mark.parametrize("key", SCHEMA)
@pytest.mark.parametrize("value", ["three", [1], torch.zeros(2), b"x"])
def test_a_key_of_another_type_is_refused(content, tmp_path, key, value):
    if type(value) is str and SCHEMA[key] is str:
        value = 3
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, key: value})
    refused(path)


@pytest.mark.parametrize("version", [0, 1, 4, 999, -1, None, "2"])
def test_another_format_version_is_refused_and_named(content, tmp_path, version):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "format_version": version})
    message = refused(path, "version", str(version), "--init_from")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("version", [1, 4])
def test_weights_and_characters_of_other_versions_are_read_for_new_runs(content, tmp_path, version):
    path = tmp_path / "any.pt"
    older = {key: content[key] for key in ("model_state_dict", "optimizer_state_dict")}
    older |= {"format_version": version, "vocabulary": parts.ALPHABET, "run": content["state"]}
    parts.forge(path, older)
    weights, vocabulary = load_weights(path)
    assert parts.same(weights, dict(content["model_state_dict"]))
    assert vocabulary == parts.ALPHABET
    refused(path, f"version {version}", "--init_from")


def test_tokens_of_format_2_are_read_for_new_runs(whole, tmp_path):
    path = tmp_path / "any.pt"
    path.write_bytes(whole)
    assert load_weights(path)[1] == TOKENS


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        ["a", "b"],
        ["a", "<|endoftext|>"],
        ["<|endoftext|>", "a", "a"],
        ["<|endoftext|>", "a", ""],
        ["<|endoftext|>", "a", "bc"],
        ["<|endoftext|>", "a", 3],
        ["<|endoftext|>", "<|endoftext|>"],
        [["<|endoftext|>"], "a"],
        [torch.zeros(2), "a"],
    ],
    ids=str,
)
def test_an_invalid_vocabulary_is_refused_and_not_handed_on(content, tmp_path, tokens):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "vocabulary": tokens})
    refused(path, "vocabulary")
    assert load_weights(path)[1] is None


@pytest.mark.parametrize("key", ["speakers", "data_tokens", "tokens_per_byte", "working_dir"])
def test_a_file_without_a_key_that_came_later_is_read(content, tmp_path, key):
    path = tmp_path / "any.pt"
    parts.forge(path, {name: value for name, value in content.items() if name != key})
    assert load_checkpoint(path).keys() == content.keys() - {key}


SPEAKER = {"name": "ANN", "lines": 5, "share": 0.5, "partner": ""}


@pytest.mark.parametrize(
    "speakers",
    [
        ["ANN"],
        [SPEAKER | {"age": 40}],
        [{"name": "ANN"}],
        [SPEAKER | {"name": 3}],
        [SPEAKER | {"name": torch.zeros(2)}],
        [SPEAKER | {"name": ""}],
        [SPEAKER | {"name": "ANN:\nBOB"}],
        [SPEAKER | {"name": "ANN\nBOB"}],
        [SPEAKER | {"name": "ANN\x1b[2J"}],
        [SPEAKER | {"name": "A" * 41}],
        [SPEAKER | {"lines": -1}],
        [SPEAKER | {"lines": 1 << 70}],
        [SPEAKER | {"lines": True}],
        [SPEAKER | {"share": 1.5}],
        [SPEAKER | {"share": float("nan")}],
        [SPEAKER | {"partner": "BOB"}],
        [SPEAKER, SPEAKER],
        [SPEAKER | {"name": f"A{i}"} for i in range(MOST_SPEAKERS + 1)],
    ],
    ids=range(18),
)
def test_speakers_that_no_run_saves_are_refused(content, tmp_path, speakers):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "speakers": speakers})
    refused(path, "speakers")


def test_speakers_that_a_run_saves_are_read(content, tmp_path):
    path = tmp_path / "any.pt"
    speakers = [SPEAKER | {"partner": "König B."}, SPEAKER | {"name": "König B."}]
    parts.forge(path, {**content, "speakers": speakers})
    assert load_checkpoint(path)["speakers"] == read_outline(path)["speakers"] == speakers


def test_the_outline_names_the_yaml_that_started_the_run(content, tmp_path):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "config_path": "/somewhere/tiny.yaml", "config_sha256": "ab12"})
    outline = read_outline(path)
    assert outline["config_path"] == "/somewhere/tiny.yaml"
    assert (outline["config_sha256"], outline["run_id"]) == ("ab12", parts.RUN_ID)


@pytest.mark.parametrize(
    "run_id", ["", "tiny", "tiny_", "tiny_../../../../tmp/x", "tiny_20250102-030405/../x", "../x"]
)
def test_an_invalid_run_id_is_refused_since_it_becomes_a_path(content, tmp_path, run_id):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "run_id": run_id})
    refused(path)


def test_a_negative_step_is_refused(content, tmp_path):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "global_step": -1})
    refused(path)


@pytest.mark.parametrize(
    "value",
    [[1, 2], 3, "weights", {}, {"a": 1}, {"model_state_dict": [1]}, {"model_state_dict": 3}],
)
def test_a_foreign_file_without_a_state_dict_is_refused(tmp_path, value):
    path = tmp_path / "foreign.pt"
    torch.save(value, path)
    refused(path, load=load_weights)


def test_a_plain_state_dict_is_read(tmp_path):
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.int64)}
    torch.save(weights, tmp_path / "foreign.pt")
    found, vocabulary = load_weights(tmp_path / "foreign.pt")
    assert parts.same(found, weights)
    assert vocabulary is None


def test_only_plain_named_tensors_of_a_foreign_file_are_weights(tmp_path):
    weights = {
        "a": torch.arange(3.0),
        7: torch.ones(1),
        "meta": torch.empty(2, device="meta"),
        "b": torch.eye(2).to_sparse(),
        "float8": torch.zeros(2).to(torch.float8_e4m3fn),
        "complex": torch.zeros(2, dtype=torch.complex64),
    }
    torch.save(weights, tmp_path / "foreign.pt")
    found, _ = load_weights(tmp_path / "foreign.pt")
    assert list(found) == ["a"]


def test_a_file_that_the_disk_cannot_read_is_refused(whole, tmp_path, monkeypatch):
    path = tmp_path / "any.pt"
    path.write_bytes(whole)
    fired = []

    class Broken(io.FileIO):
        def read(self, *args):
            fired.append(args)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: Broken(descriptor, mode))
    refused(path, "cannot be read: Input/output error")
    assert not is_whole(path)
    assert fired


def test_a_bit_flip_in_a_foreign_file_never_gives_other_weights(tmp_path):
    weights = {"a": torch.arange(64.0), "b": torch.ones(3)}
    path = tmp_path / "foreign.pt"
    accepted = []
    given_up = 0
    torch.save(weights, path)
    plain = path.read_bytes()
    rng = random.Random(2)
    with zipfile.ZipFile(path) as archive:
        headers = [entry.header_offset for entry in archive.infolist()]
        directory = archive.start_dir
    bits = [8 * (at + byte) + bit for at in headers for byte in range(30) for bit in range(0, 8, 3)]
    bits += range(8 * directory, 8 * len(plain), 11)
    bits += [rng.randrange(8 * len(plain)) for _ in range(200)]
    for bit in bits:
        altered = bytearray(plain)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        try:
            accepted.append(load_weights(path)[0])
        except CheckpointRejected:
            given_up += 1
    assert given_up > len(bits) // 4
    assert all(parts.same(found, weights) for found in accepted)


@pytest.mark.parametrize("tokens", [0, -1, True, 1 << 70])
def test_a_number_of_tokens_that_no_text_has_is_refused(content, tmp_path, tokens):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "data_tokens": tokens})
    refused(path, "data_tokens")


@pytest.mark.parametrize("number", [-1.0, math.nan, math.inf, 1])
def test_a_length_of_tokens_that_no_text_has_is_refused(content, tmp_path, number):
    path = tmp_path / "any.pt"
    parts.forge(path, {**content, "tokens_per_byte": number})
    refused(path, "tokens_per_byte")
