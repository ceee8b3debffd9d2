"""A checkpoint that was altered, cut, swapped or made by an enemy is refused, and the run goes on from an older one."""

import io
import os
import random
import shutil

import parts
import pytest
import torch
from fault_trials import STEPS, files, go_on, start

from chatgot.checkpointing import checkpoint_file
from chatgot.checkpointing.checkpoint_file import is_whole, load_checkpoint
from chatgot.errors import CheckpointRejected


@pytest.fixture(scope="module")
def whole(reference) -> bytes:
    return files(reference.folder)[STEPS].read_bytes()


def accepted(path, altered: bytes) -> bool:
    path.write_bytes(altered)
    try:
        load_checkpoint(path)
    except CheckpointRejected as refused:
        assert str(path) in str(refused)
        assert not is_whole(path)
        return False
    return True


def flipped(whole: bytes, bit: int) -> bytes:
    altered = bytearray(whole)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def test_every_single_flipped_bit_is_refused(whole, tmp_path, trials, table):
    rng, n = random.Random(3), trials(60, 400, 4000)
    taken = [bit for bit in (rng.randrange(8 * len(whole)) for _ in range(n)) if
             accepted(tmp_path / "any.pt", flipped(whole, bit))]  # fmt: skip
    table.add("a flipped bit, anywhere in the file", n, len(taken), n)
    assert taken == []


def test_without_the_hash_flipped_bits_would_be_read_as_weights(
    whole, tmp_path, monkeypatch, table
):
    monkeypatch.setattr(checkpoint_file, "damage", lambda file: None)
    rng, path, wrong = random.Random(3), tmp_path / "any.pt", 0
    path.write_bytes(whole)
    right = load_checkpoint(path)["model_state_dict"]
    for _ in range(40):
        path.write_bytes(flipped(whole, rng.randrange(8 * len(whole))))
        try:
            weights = load_checkpoint(path)["model_state_dict"]
        except CheckpointRejected:
            continue
        wrong += not parts.same(weights, right)
    table.add("mutant: no hash", 40, wrong, 40)
    assert wrong > 5


def test_a_truncation_at_every_kilobyte_is_refused(whole, tmp_path, trials, table):
    sizes = [*range(0, len(whole), 1024 * trials(16, 1, 1)), len(whole) - 1]
    taken = [size for size in sizes if accepted(tmp_path / "any.pt", whole[:size])]
    table.add("truncated at every kilobyte", len(sizes), len(taken), len(sizes))
    assert taken == []


def test_a_zeroed_page_is_refused(whole, tmp_path, trials, table):
    starts = [
        start
        for start in range(0, len(whole), 4096 * trials(8, 1, 1))
        if whole[start : start + 4096].strip(b"\0")
    ]
    page = bytes(4096)
    taken = [
        i
        for i in starts
        if accepted(tmp_path / "any.pt", (whole[:i] + page + whole[i + 4096 :])[: len(whole)])
    ]
    table.add("a zeroed page of 4 KB", len(starts), len(taken), len(starts))
    assert taken == []


DAMAGE = {
    "a flipped bit": lambda newest, older: newest.write_bytes(
        flipped(newest.read_bytes(), 4_000_001)
    ),
    "truncated": lambda newest, older: os.truncate(newest, 5000),
    "empty": lambda newest, older: os.truncate(newest, 0),
    "an older file under its name": lambda newest, older: shutil.copyfile(older, newest),
    "a link to an older file": lambda newest, older: (
        newest.unlink(),
        newest.symlink_to(older.resolve()),
    ),
    "a folder": lambda newest, older: (newest.unlink(), newest.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_latest_falls_back_to_the_older_file_says_so_and_ends_in_the_same_bits(
    server, reference, trial_folder, table, kind
):
    folder = trial_folder("damaged")
    assert start(server, folder, [("chain", {"saves": 4})]).fired
    newest, older = files(folder)[8], files(folder)[6]
    DAMAGE[kind](newest, older)
    if newest.is_file() and not newest.is_symlink():
        strict = start(server, folder, [], "--resume_from", str(newest))
        assert strict.exit_code == 3, strict.said
        assert newest.name in strict.said
        assert f"the newest older file that would do: {older}" in strict.said
    outcome = go_on(server, folder)
    assert outcome.exit_code == 0, outcome.said
    assert f"resumed from checkpoints/{older.name} at step 6" in outcome.said
    if kind == "a folder":
        assert "not saved: Is a directory" in outcome.said
        newest.rmdir()
    elif kind != "a link to an older file":  # which is no file of this run, by its name alone
        assert newest.name in outcome.said
        assert "resuming costs 2 steps: from step 6 instead of 8" in outcome.said
    lost = reference.lost(folder)
    table.add("newest file damaged: latest falls back", 1, lost is not None)
    assert lost is None


class Bomb:
    """Makes a sentinel file when plain pickle reads it."""

    def __init__(self, sentinel: str) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("option", ["--resume_from", "--init_from"])
@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize("form", ["zip with the right hash", "legacy"])
def test_a_malicious_file_is_exit_3_and_never_executes(
    server, reference, trial_folder, tmp_path, table, form, force, option
):
    folder, sentinel, buffer = trial_folder("attacked"), tmp_path / "sentinel", io.BytesIO()
    content = torch.load(files(reference.folder)[STEPS], weights_only=True)
    content["state"]["run_id"] = Bomb(str(sentinel))
    torch.save(content, buffer, _use_new_zipfile_serialization=form != "legacy")
    path = folder / "gift.pt"
    path.write_bytes(
        buffer.getvalue() if form == "legacy" else parts.with_digest(buffer.getvalue())
    )
    outcome = start(
        server,
        folder,
        [],
        option,
        str(path),
        environment={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": force},
    )
    table.add("malicious pickle", 1, sentinel.exists())
    assert outcome.exit_code == 3, outcome.said
    assert "gift.pt" in outcome.said
    assert "Traceback" not in outcome.said
    assert not sentinel.exists()
    torch.load(path, weights_only=False)  # the bomb is live
    assert sentinel.exists()


def test_retention_that_counts_damaged_files_would_lose_the_last_good_one(
    server, reference, trial_folder, table
):
    kept = []
    for mutant in ([], [("mutant_counts_damaged", {})]):
        folder = trial_folder(f"retention{len(mutant)}")
        keep = ("--set", "training.max_checkpoints_to_keep=2")
        assert start(server, folder, [("chain", {"saves": 2})], *keep).fired
        for step in (
            8,
            10,
        ):  # as it stands after another process, or a disk, has spoilt newer files
            newer = files(folder)[4].with_name(
                files(folder)[4].name.replace("_4.pt", f"_{step}.pt")
            )
            newer.write_bytes(flipped(files(folder)[4].read_bytes(), 999_999))
        folder_before = {path.name for path in files(folder).values() if is_whole(path)}
        hooks = [*mutant, ("no_setting_aside", {}), ("chain", {"saves": 1})]
        assert start(server, folder, hooks, "--resume_from", str(files(folder)[4]), *keep).fired
        kept.append([step for step, path in files(folder).items() if is_whole(path)])
        assert folder_before
    good, mutated = kept
    table.add("retention beside damaged newer files", 1, len(good) != 2)
    table.add("mutant: retention counts damaged files", 1, len(mutated) < 2)
    assert sorted(good) == [4, 6]
    assert len(mutated) < 2
