"""A checkpoint that was altered, cut, swapped or forged is refused; an older one is used."""

import errno
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import fault_trials
import harness
import parts
import pytest
import torch
from fault_server import FIRED, SAID, FaultServer, Outcome
from fault_trials import STEPS, TEACHERS, files, go_on, resumed_from, start

from chatgot.checkpointing import checkpoint_file
from chatgot.checkpointing.checkpoint_file import is_whole, load_checkpoint
from chatgot.errors import CheckpointRejected

pytestmark = pytest.mark.slow  # `make faults` has them, with LEVEL=ci too


@pytest.fixture(scope="module")
def whole(reference) -> bytes:
    return files(reference.folder)[STEPS].read_bytes()


def accepted(path: Path, altered: bytes) -> bool:
    """Return whether a file with these bytes is loaded; a refusal must name the file."""
    path.write_bytes(altered)
    try:
        load_checkpoint(path)
    except CheckpointRejected as error:
        refusal = str(error)
    else:
        return True
    assert str(path) in refusal
    assert not is_whole(path)
    return False


def flipped(whole: bytes, bit: int) -> bytes:
    altered = bytearray(whole)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def test_every_single_flipped_bit_is_refused(whole, tmp_path, trials, table):
    rng = random.Random(3)
    n = trials(60, 400, 4000)
    bits = [rng.randrange(8 * len(whole)) for _ in range(n)]
    taken = [bit for bit in bits if accepted(tmp_path / "any.pt", flipped(whole, bit))]
    table.add("a flipped bit, anywhere in the file", n, len(taken), n)
    assert taken == []


def test_flipped_bits_would_be_read_as_weights_without_the_hash(
    whole, tmp_path, monkeypatch, table
):
    monkeypatch.setattr(checkpoint_file, "damage", lambda file, advance: None)
    rng = random.Random(3)
    path = tmp_path / "any.pt"
    wrong = 0
    path.write_bytes(whole)
    right = load_checkpoint(path)["model_state_dict"]
    for _ in range(40):
        path.write_bytes(flipped(whole, rng.randrange(8 * len(whole))))
        try:
            weights = load_checkpoint(path)["model_state_dict"]
        except CheckpointRejected:
            continue
        if not parts.same(weights, right):
            wrong += 1
    table.add("mutant: no hash", 40, wrong, 40)
    assert wrong > 5


def test_a_file_truncated_at_any_kilobyte_is_refused(whole, tmp_path, trials, table):
    sizes = [*range(0, len(whole), 1024 * trials(16, 1, 1)), len(whole) - 1]
    taken = [size for size in sizes if accepted(tmp_path / "any.pt", whole[:size])]
    table.add("truncated at every kilobyte", len(sizes), len(taken), len(sizes))
    assert taken == []


def test_a_file_with_a_zeroed_page_is_refused(whole, tmp_path, trials, table):
    page = bytes(4096)
    every = 4096 * trials(8, 1, 1)
    starts = [i for i in range(0, len(whole), every) if whole[i : i + 4096].strip(b"\0")]
    taken = []
    for i in starts:
        altered = whole[:i] + page + whole[i + 4096 :]
        if accepted(tmp_path / "any.pt", altered[: len(whole)]):
            taken.append(i)
    table.add("a zeroed page of 4 KB", len(starts), len(taken), len(starts))
    assert taken == []


def flip_a_bit(newest: Path, older: Path) -> None:
    newest.write_bytes(flipped(newest.read_bytes(), 4_000_001))


def truncate(newest: Path, older: Path) -> None:
    os.truncate(newest, 5000)


def empty(newest: Path, older: Path) -> None:
    os.truncate(newest, 0)


def put_the_older_one_there(newest: Path, older: Path) -> None:
    shutil.copyfile(older, newest)


def link_to_the_older_one(newest: Path, older: Path) -> None:
    newest.unlink()
    newest.symlink_to(older.resolve())


def put_a_folder_there(newest: Path, older: Path) -> None:
    newest.unlink()
    newest.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        truncate,
        empty,
        put_the_older_one_there,
        link_to_the_older_one,
        put_a_folder_there,
    ],
)
def test_latest_falls_back_to_an_older_file_and_ends_in_the_same_bits(
    server, reference, trial_folder, table, damage
):
    """The log says so."""
    folder = trial_folder("damaged")
    assert start(server, folder, [("chain", {"saves": 4})]).fired
    newest = files(folder)[8]
    older = files(folder)[6]
    damage(newest, older)
    if newest.is_file() and not newest.is_symlink():
        strict = start(server, folder, [], "--resume_from", str(newest))
        assert strict.exit_code == 3, strict.said
        assert newest.name in strict.said
        assert f"the newest older file that would do: {older}" in strict.said
    outcome = go_on(server, folder)
    assert outcome.exit_code == 0, outcome.said
    assert resumed_from(folder) == 6
    if damage is put_a_folder_there:
        assert os.strerror(errno.EISDIR) in harness.warnings(folder)
        newest.rmdir()
    elif damage is not link_to_the_older_one:  # a symlink does not count as a file of this run
        assert newest.name in harness.warnings(folder)
    lost = reference.lost(folder)
    table.add("newest file damaged: latest falls back", 1, lost is not None)
    assert lost is None


def remove(newest: Path, older: Path) -> None:
    newest.unlink()


@pytest.fixture(scope="module")
def unfit(servers, taught, tmp_path_factory) -> dict[str, Path]:
    """Models that cannot teach the student, by their difference: last files of their runs."""
    parent = tmp_path_factory.mktemp("unfit")
    context = fault_trials.teacher(servers[0], parent, "context", model={"max_seq_length": 16})
    subwords = {"tokenizer": "bpe", "vocab_size": 280}
    tokens = fault_trials.teacher(servers[0], parent, "tokens", data=subwords)
    return {"context": context, "tokens": tokens}


def written_in(folder: Path) -> dict[Path, bytes]:
    """Return the files of runs and the teachers in a folder, not the notes of the trial."""
    paths = [path for path in folder.rglob("*") if path.name not in (FIRED, SAID)]
    paths = [path for path in paths if path.is_file() and path.parent.name != "cache"]
    return {path: path.read_bytes() for path in paths}


def assert_refused(server: FaultServer, folder: Path, words: str, *arguments: str) -> Outcome:
    """Start a run that is refused: exit code 3, one or two lines with `words`, nothing written."""
    before = written_in(folder)
    outcome = start(server, folder, [], *arguments)
    lines = [line for line in outcome.said.splitlines() if " - INFO - " not in line]
    assert outcome.exit_code == 3, outcome.said
    assert 1 <= len(lines) <= 2, outcome.said
    assert words in lines[0]
    assert written_in(folder) == before
    return outcome


def test_a_student_waits_for_a_teacher_whose_file_is_bad(server, taught, tmp_path, table):
    """Each time nothing is changed; with the right file it goes on in the same bits."""
    folder = taught.student(tmp_path, "student")
    teacher = folder / TEACHERS[0]
    another = folder / TEACHERS[1]
    whole = teacher.read_bytes()

    def refused_after(damage: Callable[[Path, Path], None], *arguments: str) -> None:
        damage(teacher, another)
        assert_refused(server, folder, TEACHERS[0], *arguments)
        if teacher.is_dir():
            teacher.rmdir()
        teacher.unlink(missing_ok=True)
        teacher.write_bytes(whole)

    unreadable = [
        flip_a_bit,
        truncate,
        empty,
        remove,
        link_to_the_older_one,
        put_a_folder_there,
    ]
    for damage in unreadable:
        refused_after(damage)
    assert start(server, folder, [("chain", {"saves": 4})]).fired
    fewer = f"training.distillation.teachers=[{', '.join(TEACHERS[1:])}]"
    assert_refused(
        server, folder, "3 teachers, but 2 are named", "--resume_from", "latest", "--set", fewer
    )
    # a new student may learn from any models, so another one is noticed on resume alone
    for damage in (*unreadable, put_the_older_one_there):
        refused_after(damage, "--resume_from", "latest")
    assert go_on(server, folder).exit_code == 0
    assert resumed_from(folder) == 8
    lost = taught.reference.lost(folder)
    n = 2 * len(unreadable) + 1
    table.add("a teacher's file is damaged, gone or another", n, lost is not None, n)
    assert lost is None


@pytest.mark.parametrize("difference", ["context", "tokens"])
def test_a_teacher_of_another_kind_is_refused(server, taught, unfit, tmp_path, table, difference):
    """At the start; and on resume, where the message names the right one, too."""
    folder = taught.student(tmp_path, "student")
    other = unfit[difference]
    teachers = f"training.distillation.teachers=[{other}, {', '.join(TEACHERS[1:])}]"
    assert_refused(server, folder, str(other), "--set", teachers)
    assert start(server, folder, [("chain", {"saves": 4})]).fired
    outcome = assert_refused(
        server, folder, str(other), "--resume_from", "latest", "--set", teachers
    )
    assert f"is still there, name this file: {folder / TEACHERS[0]}" in outcome.said
    assert go_on(server, folder).exit_code == 0
    lost = taught.reference.lost(folder)
    table.add("a teacher with another vocabulary or context", 2, lost is not None, 2)
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
def test_a_malicious_file_is_exit_3_and_is_never_executed(
    server, reference, trial_folder, tmp_path, table, form, force, option
):
    folder = trial_folder("attacked")
    sentinel = tmp_path / "sentinel"
    buffer = io.BytesIO()
    content = torch.load(files(reference.folder)[STEPS], weights_only=True)
    content["state"]["run_id"] = Bomb(str(sentinel))
    torch.save(content, buffer, _use_new_zipfile_serialization=form != "legacy")
    path = folder / "gift.pt"
    written = buffer.getvalue()
    path.write_bytes(written if form == "legacy" else parts.with_digest(written))
    environment = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": force}
    outcome = start(server, folder, [], option, str(path), environment=environment)
    table.add("malicious pickle", 1, sentinel.exists())
    assert outcome.exit_code == 3, outcome.said
    assert "gift.pt" in outcome.said
    assert "Traceback" not in outcome.said
    assert not sentinel.exists()
    torch.load(path, weights_only=False)  # the bomb works
    assert sentinel.exists()


def test_a_retention_that_counts_damaged_files_loses_the_last_good_one(
    server, reference, trial_folder, table
):
    kept = []
    for mutant in ([], [("mutant_counts_damaged", {})]):
        folder = trial_folder(f"retention{len(mutant)}")
        keep = ("--set", "training.max_checkpoints_to_keep=2")
        assert start(server, folder, [("chain", {"saves": 2})], *keep).fired
        good_file = files(folder)[4]
        assert is_whole(good_file)
        for step in (8, 10):  # newer files, damaged by another process or by the disk
            newer = good_file.with_name(good_file.name.replace("_4.pt", f"_{step}.pt"))
            newer.write_bytes(flipped(good_file.read_bytes(), 999_999))
        hooks = [*mutant, ("no_setting_aside", {}), ("chain", {"saves": 1})]
        assert start(server, folder, hooks, "--resume_from", str(good_file), *keep).fired
        kept.append([step for step, path in files(folder).items() if is_whole(path)])
    good, mutated = kept
    table.add("retention beside damaged newer files", 1, len(good) != 2)
    table.add("mutant: retention counts damaged files", 1, len(mutated) < 2)
    assert sorted(good) == [4, 6]
    assert len(mutated) < 2
