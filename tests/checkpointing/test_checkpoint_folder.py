"""A checkpoint folder has the content of the file, and is trusted only as a whole."""

import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import torch
import torch.distributed.checkpoint as dcp
from made_folders import RANKS, copy_of, forge, make_folder, write_one
from parts import RUN_ID, same

from chatgot.checkpointing import checkpoint_folder
from chatgot.checkpointing.checkpoint_folder import METADATA, PLAIN, begin_folder
from chatgot.checkpointing.checkpoints import (
    is_whole,
    load_checkpoint,
    load_weights,
    read_outline,
)
from chatgot.checkpointing.names import MANIFEST, PARTS
from chatgot.errors import CheckpointRejected
from chatgot.run.assembly import Run
from chatgot.run.fits import read_checkpoint
from chatgot.training.step import compute_gradients, update_weights

FLIPS = 20  # random bits of each file
SHARD = "__1_0.distcp"


def trained_run(steps: int = 2, **sections: Any) -> Run:
    run = parts.run(**sections)
    for _ in range(steps):
        update_weights(run, compute_gradients(run))
    return run


@pytest.fixture(scope="module")
def run() -> Run:
    return trained_run()


@pytest.fixture(scope="module")
def made(tmp_path_factory, run) -> Path:
    """A whole folder, which no test changes."""
    return make_folder(tmp_path_factory.mktemp("made"), run)


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of it."""
    return copy_of(made, tmp_path)


def refused(folder: Path, *words: str) -> str:
    """Check that nothing reads a folder; return the reason, which has these words."""
    with pytest.raises(CheckpointRejected) as rejected:
        load_checkpoint(folder)
    assert not is_whole(folder)
    for read in (read_outline, load_weights):
        with pytest.raises(CheckpointRejected):
            read(folder)
    reason = str(rejected.value)
    assert all(word in reason for word in words), reason
    assert len(reason.splitlines()) <= 2
    return reason


# The same content


@pytest.mark.parametrize("ranks", [RANKS, 30, *harness.slow(1, 2)])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"architecture": "modern", "n_kv_head": 1}},
        {"training": {"optimizer": "muon", "muon_beta2": 0.95}},
        {"training": {"lora": {"rank": 2}}},
    ],
)
def test_a_folder_of_any_number_of_ranks_has_the_content_of_a_file(tmp_path, sections, ranks):
    """Of 30 ranks some have no row of some tensors, and some of none."""
    run = trained_run(**sections)
    file = parts.checkpoint_file(tmp_path, run)
    folder = make_folder(tmp_path, run, ranks)
    assert is_whole(folder)
    of_folder = read_checkpoint(folder)
    of_file = read_checkpoint(file)
    assert of_folder["optimizer_state_dict"]["state"], "there is something to compare"
    assert same(of_folder, of_file)
    assert read_outline(folder) == read_outline(file)
    for one, other in zip(load_weights(folder), load_weights(file), strict=True):
        assert same(one, other)


def test_a_state_before_the_first_step_has_a_folder_too(tmp_path):
    run = parts.run()
    folder = make_folder(tmp_path, run)
    assert same(load_checkpoint(folder), load_checkpoint(parts.checkpoint_file(tmp_path, run)))


def test_each_rank_writes_an_equal_share(made):
    sizes = [(made / f"__{rank}_0.distcp").stat().st_size for rank in range(RANKS)]
    assert max(sizes) < 1.2 * min(sizes)


def test_torch_reads_a_folder_by_itself(made, run):
    weights = run.model.state_dict()
    into = {f"model/{name}": torch.zeros_like(tensor) for name, tensor in weights.items()}
    dcp.load(into, checkpoint_id=made, no_dist=True)
    for name, tensor in weights.items():
        assert torch.equal(into[f"model/{name}"], tensor), name


def test_a_folder_that_is_whole_is_verified_once(folder, monkeypatch):
    assert is_whole(folder)
    monkeypatch.setattr(checkpoint_folder, "hash_of", lambda file: pytest.fail("read again"))
    monkeypatch.setattr(checkpoint_folder, "_stored_tensors", lambda *of_it: [])
    assert is_whole(folder)
    os.utime(folder / SHARD, (1, 1))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        is_whole(folder)


def test_a_folder_replaces_one_of_its_name(tmp_path, run):
    folder = make_folder(tmp_path, run)
    (folder / SHARD).write_bytes(b"damaged")
    assert make_folder(tmp_path, run) == folder
    assert is_whole(folder)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


# Damage


@pytest.mark.slow
def test_any_bit_flipped_in_any_file_is_refused(folder):
    rng = random.Random(7)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(FLIPS):
            bit = rng.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointRejected):
                load_checkpoint(folder)
            assert not is_whole(folder), (path.name, bit)
        path.write_bytes(whole)
    assert is_whole(folder)


@pytest.mark.parametrize("name", [SHARD, METADATA, PARTS, PLAIN])
def test_a_part_that_is_missing_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, name, "missing")


@pytest.mark.parametrize("name", [SHARD, METADATA, PARTS, PLAIN])
def test_a_part_that_is_cut_short_is_named(folder, name):
    path = folder / name
    os.truncate(path, path.stat().st_size - 1)
    refused(folder, name, "damaged", f"expected {path.stat().st_size + 1}")


def test_a_part_under_another_name_is_refused(folder):
    (folder / SHARD).rename(folder / "__3_0.distcp")
    refused(folder, SHARD, "missing")


def test_a_part_too_many_is_named(folder):
    shutil.copy(folder / SHARD, folder / "__3_0.distcp")
    refused(folder, "__3_0.distcp", "no part of this checkpoint")


def test_two_parts_that_changed_places_are_refused(folder):
    one = folder / "__0_0.distcp"
    other = folder / SHARD
    one.rename(folder / "between")
    other.rename(one)
    (folder / "between").rename(other)
    refused(folder, "damaged")


def test_a_part_of_another_step_is_refused(folder, tmp_path):
    other = make_folder(tmp_path, trained_run(steps=3))
    shutil.copy(other / SHARD, folder / SHARD)
    refused(folder, SHARD, "SHA-256")


@pytest.mark.parametrize("name", [SHARD, MANIFEST])
def test_a_part_that_is_a_link_is_refused(folder, tmp_path, name):
    there = tmp_path / "elsewhere"
    (folder / name).rename(there)
    (folder / name).symlink_to(there)
    refused(folder, name)


def test_a_link_to_a_folder_is_refused(made, tmp_path):
    link = tmp_path / made.name
    link.symlink_to(made)
    refused(link, "is a link")


def test_a_folder_under_another_name_is_refused(folder):
    renamed = folder.rename(folder.with_name(f"{RUN_ID}_step_9.sharded"))
    refused(renamed, "renamed", folder.name)


def test_a_manifest_of_another_step_is_refused(folder):
    forge(folder, step=9)
    refused(folder, "of other steps")


# Nothing is executed


class Bomb:
    """Makes a sentinel file when plain pickle unpickles it."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def test_a_crafted_metadata_file_executes_nothing(folder, tmp_path):
    """Its hash is right, too: we read the same from a file that is no pickle."""
    sentinel = tmp_path / "sentinel"
    (folder / METADATA).write_bytes(pickle.dumps(Bomb(sentinel)))
    forge(folder)
    assert is_whole(folder)
    load_checkpoint(folder)
    load_weights(folder)
    read_outline(folder)
    assert not sentinel.exists()
    pickle.loads((folder / METADATA).read_bytes())
    assert sentinel.exists(), "the bomb works: whoever unpickles it runs it"


@pytest.mark.parametrize("forced", [False, True])
def test_a_crafted_shard_executes_nothing(folder, tmp_path, forced, monkeypatch):
    sentinel = tmp_path / "sentinel"
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    replace_rows(folder, saved(Bomb(sentinel)))
    refused_when_loaded(folder, "cannot be read as tensors")
    assert not sentinel.exists()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def replace_rows(folder: Path, data: bytes) -> None:
    """Put other bytes in the place of the first rows of rank 1, with the right hashes."""
    path = folder / PARTS
    content = json.loads(path.read_bytes())
    shard = (folder / SHARD).read_bytes()
    for tensor in content.values():
        for chunk in tensor["chunks"]:
            if chunk["file"] == SHARD and not chunk["offset"]:
                chunk |= {"offset": len(shard), "length": max(len(data), chunk["length"])}
                data = data.ljust(chunk["length"], b"\0")
    (folder / SHARD).write_bytes(shard + data)
    path.write_text(json.dumps(content))
    forge(folder)


def refused_when_loaded(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointRejected) as rejected:
        load_checkpoint(folder)
    assert all(word in str(rejected.value) for word in words), str(rejected.value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 7),
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(6, 16, dtype=torch.float64),
        {"rows": torch.zeros(6, 16)},
    ],
)
def test_rows_that_no_rank_writes_are_refused(folder, tensor):
    replace_rows(folder, saved(tensor))
    refused_when_loaded(folder, SHARD)


def test_rows_with_nan_are_refused(run, tmp_path):
    name, tensor = next(iter(run.model.state_dict().items()))
    before = tensor[-1].clone()
    tensor[-1] = float("nan")
    folder = make_folder(tmp_path, run)
    tensor[-1] = before
    refused_when_loaded(folder, "NaN or infinity", name)


def first_chunk(content: dict[str, Any]) -> dict[str, Any]:
    tensor = next(iter(content.values()))
    return tensor["chunks"][0]


def change_chunk(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: first_chunk(content).update(values)


def change_tensor(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: next(iter(content.values())).update(values)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (change_chunk(offset=10**9), "beyond the end"),
        (change_chunk(offset=-1), "no run saves"),
        (change_chunk(file="../../secret"), "in other files"),
        (change_chunk(file="plain.pt"), "in other files"),
        (change_chunk(rows=0), "lacks rows"),
        (change_chunk(first=1), "lacks rows"),
        (change_chunk(rows=10**12), "lacks rows"),
        (change_chunk(rows=True), "no run saves"),
        (change_chunk(more=1), "no run saves"),
        (change_tensor(shape=[10**30]), "no run saves"),
        (change_tensor(shape=[10**14, 2]), "lacks rows"),
        (change_tensor(shape=[]), "no run saves"),
        (change_tensor(shape=[1] * 1000), "no run saves"),
        (change_tensor(dtype="complex64"), "no run saves"),
        (change_tensor(chunks=[]), "lacks rows"),
        (lambda content: content.update({"optimizer/99/exp_avg": 3}), "no run saves"),
        (lambda content: content.update({"../x": next(iter(content.values()))}), "no run saves"),
        (
            lambda content: content.update({"model/again": next(iter(content.values()))}),
            "overlap",
        ),
        (
            lambda content: content.update({"optimizer/99/exp_avg": content.popitem()[1]}),
            "belongs to no weight",
        ),
    ],
)
def test_a_crafted_list_of_tensors_is_refused(folder, change, word):
    path = folder / PARTS
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))
    forge(folder)
    with parts.at_once():
        refused_when_loaded(folder, word)


@pytest.mark.parametrize(
    "data", [b"", b"[", b"[]", b"null", b"[" * 100_000, b'{"a": NaN}', b"\xff"]
)
@pytest.mark.parametrize("name", [PARTS, MANIFEST])
def test_what_is_no_list_at_all_is_refused(folder, name, data):
    (folder / name).write_bytes(data)
    if name == PARTS:
        forge(folder)
    refused(folder, str(folder))


@pytest.mark.parametrize("name", ["..", "a/b", "/etc/passwd", "", "a\0b", "manifest.json"])
def test_a_manifest_with_a_name_that_is_no_plain_one_is_refused(folder, name):
    path = folder / MANIFEST
    content = json.loads(path.read_bytes())
    del content["sha256"]
    content["files"][0]["name"] = name
    path.write_bytes(checkpoint_folder_manifest(content))
    refused(folder, MANIFEST)


def checkpoint_folder_manifest(content: dict[str, Any]) -> bytes:
    """Return a manifest with the right hash, whatever is in it."""
    own_hash = sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": own_hash}, indent=1).encode() + b"\n"


# Failures


def test_a_folder_whose_part_is_gone_is_not_completed(tmp_path, run):
    """As where machines do not share the folder."""
    path = tmp_path / f"{RUN_ID}_step_2.sharded"
    temporary = begin_folder(path)
    content, shard = write_one(temporary, run, 0, 2)
    checkpoint_folder.write_plain(temporary, content, 0o600, checkpoint_folder.waiting)
    _, other = write_one(temporary, run, 1, 2)
    assert other.file is not None
    (temporary / other.file.name).unlink()
    with pytest.raises(FileNotFoundError, match="all machines must share this folder"):
        checkpoint_folder.complete_folder(temporary, path, content, [shard, other])
    assert not path.exists()


def test_a_rank_never_writes_over_a_file(tmp_path, run):
    temporary = begin_folder(tmp_path / f"{RUN_ID}_step_2.sharded")
    (temporary / "__0_0.distcp").write_bytes(b"another one's")
    with pytest.raises(FileExistsError):
        write_one(temporary, run, 0, 1)
    assert (temporary / "__0_0.distcp").read_bytes() == b"another one's"


def test_a_full_disk_is_an_os_error(tmp_path, run):
    import resource

    temporary = begin_folder(tmp_path / f"{RUN_ID}_step_2.sharded")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_one(temporary, run, 0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
