"""Ranks save a folder together: all in the same step, or none."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import torch
from thread_ranks import Meeting, ThreadRanks, by_ranks

from chatgot.checkpointing.checkpoints import is_whole, load_checkpoint
from chatgot.errors import StorageError
from chatgot.run.assembly import Run
from chatgot.training import folder_saving, saving
from chatgot.training.folder_saving import saves_folders
from chatgot.training.saving import Saver, wants_background

LONG_S = 20.0  # a test that waits longer has failed
SIZE = 2  # ranks


def never() -> bool:
    """Nobody asks the run to stop."""
    return False


def run_in(folder: Path, **training: object) -> Run:
    keys = {"max_steps": 1000, "save_checkpoint_steps": None}
    run = parts.run(
        training=keys | training,
        paths={"checkpoints": str(folder)},
        distributed={"one_file_gb": 0},
    )
    count_step(run)
    return run


def count_step(run: Run) -> None:
    """Count a step whose update was skipped."""
    progress = run.state.progress
    for name in ("global_step", "position", "skipped_steps"):
        setattr(progress, name, getattr(progress, name) + 1)


def saver_of(run: Run, ranks: ThreadRanks) -> Saver:
    run.ranks = ranks
    saver = Saver(run, never)
    count_step(run)
    return saver


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    """A run for each rank; assembled one after the other, since they share torch's generators."""
    return [run_in(tmp_path) for _ in range(SIZE)]


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


class SlowDisk:
    """Holds up the threads that write shards, or refuses them, by the name of the file.

    refused: the beginning of the names of files that cannot be made.
    """

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.refused = "none"
        self._open_file = os.open

    def open_file(self, path: Any, flags: int, *mode: int, **where: Any) -> int:
        name = Path(path).name
        if flags & os.O_CREAT and name.startswith("__"):
            assert self.open.wait(LONG_S)
            if name.startswith(self.refused):
                raise OSError(28, os.strerror(28))
        return self._open_file(path, flags, *mode, **where)


@pytest.fixture
def disk(monkeypatch) -> Iterator[SlowDisk]:
    slow = SlowDisk()
    monkeypatch.setattr(os, "open", slow.open_file)
    yield slow
    slow.open.set()


def on_all(runs: list[Run], do: Callable[[Saver], Any]) -> list[Any]:
    """Return what `do` returns on each rank, with a saver that has one more step to save."""
    return by_ranks(SIZE, lambda ranks: do(saver_of(runs[ranks.rank], ranks)))


# Which run does


@pytest.mark.parametrize(
    ("size", "gb", "wanted"), [(1, 0, False), (2, 0, True), (2, 20.0, False), (2, 1e-6, True)]
)
def test_a_large_state_of_a_group_becomes_a_folder(size, gb, wanted):
    run = parts.run(distributed={"one_file_gb": gb})
    if size > 1:
        run.ranks = ThreadRanks(0, size, Meeting(size))
    assert saves_folders(run) is wanted


@pytest.mark.parametrize(("key", "wanted"), [("auto", True), (True, True), (False, False)])
def test_folders_are_saved_in_the_background_unless_forbidden(key, wanted):
    run = parts.run(training={"background_saves": key})
    run.device = torch.device("cpu")
    run.ranks = ThreadRanks(0, 2, Meeting(2))
    assert wants_background(run, folders=True) is wanted
    assert wants_background(run) is False


# A save


def test_ranks_that_wait_save_one_folder_together(tmp_path, runs):
    expected = runs[0].checkpoint()
    assert on_all(runs, lambda saver: saver.save(last_chance=True)) == [True, True]
    (path,) = tmp_path.glob("*.sharded")
    assert is_whole(path)
    assert temporaries(tmp_path) == []
    stored = load_checkpoint(path)
    assert harness.same(stored["model_state_dict"], expected["model_state_dict"])
    assert [run.state.marks.last_save_step for run in runs] == [2, 2]


def test_training_goes_on_beside_a_folder(tmp_path, runs, disk):
    """What is saved is the state as it was when the save began."""
    before = parts.copied(runs[0].checkpoint())
    disk.open.clear()

    def save(saver: Saver) -> list[bool]:
        begun = [saver.save(), saver.run.is_saving()]
        with torch.no_grad():
            for p in saver.run.model.parameters():
                p.add_(1.0)
        for values in saver.run.optimizer.state.values():
            values["step"] += 1
        saver.finish()  # all knew last that some write
        begun.append(bool(list(tmp_path.glob("*.sharded"))))
        saver.run.ranks.all("all have looked")
        disk.open.set()
        saver.wait()
        return begun

    assert on_all(runs, save) == [[False, True, False]] * SIZE
    (path,) = tmp_path.glob("*.sharded")
    stored = load_checkpoint(path)
    for name in ("model_state_dict", "optimizer_state_dict"):
        assert harness.same(stored[name], before[name]), name


def test_a_folder_is_finished_once_no_rank_writes(tmp_path, runs):
    def save(saver: Saver) -> bool:
        saver.save()
        saver.run.ranks_are_saving = False  # as all agree after a step
        saver.finish()
        return saver._writer.in_flight is None

    assert on_all(runs, save) == [True, True]
    assert len(list(tmp_path.glob("*.sharded"))) == 1


def test_a_rank_without_room_for_a_copy_makes_all_wait(tmp_path, runs, monkeypatch, caplog):
    def full(device: torch.device, headroom: float, more: int) -> str:
        return "1 MiB is free" if threading.current_thread().name.endswith("_1") else ""

    monkeypatch.setattr(folder_saving, "too_full", full)
    assert on_all(runs, lambda saver: saver.save()) == [True, True]
    assert "no room to save in the background (1 MiB is free)" in caplog.text
    assert len(list(tmp_path.glob("*.sharded"))) == 1


# A failure


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_any_rank_fails_the_save_of_all(tmp_path, disk, caplog, rank, background):
    runs = [run_in(tmp_path, background_saves=background) for _ in range(SIZE)]
    disk.refused = f"__{rank}_"

    def save(saver: Saver) -> list[Any]:
        saved = saver.save()
        saver.wait()
        return [saved, saver.run.state.marks.last_save_step]

    before = runs[0].state.marks.last_save_step
    assert on_all(runs, save) == [[False, before]] * SIZE
    assert list(tmp_path.iterdir()) == []
    where = f" (rank {rank})" if rank else ""
    assert caplog.text.count(f"not saved: No space left on device{where}; training") == 1


def test_the_third_failure_in_a_row_ends_all_ranks(tmp_path, runs, disk):
    disk.refused = "__1_"

    def save(saver: Saver) -> str:
        for _ in range(2):
            assert not saver.save()
            saver.wait()
            count_step(saver.run)
        saver.save()
        with pytest.raises(StorageError) as raised:
            saver.wait()
        return str(raised.value)

    said = on_all(runs, save)
    assert "3 saves in a row failed" in said[0]
    assert said[0] == said[1]
    assert temporaries(tmp_path) == []


def test_a_lost_folder_fails_the_save_of_all(tmp_path):
    runs = [run_in(tmp_path / "gone") for _ in range(SIZE)]

    def save(saver: Saver) -> str:
        with pytest.raises(StorageError) as raised:
            saver.save(last_chance=True)
        return str(raised.value)

    for said in on_all(runs, save):
        assert "make" in said
        assert "No such file or directory" in said


def test_nan_on_one_rank_is_not_saved_by_any(tmp_path, runs, monkeypatch, caplog):
    """Each rank looks at its own rows alone."""
    monkeypatch.setattr(saving, "rewind", lambda run: None)
    for run in runs:
        with torch.no_grad():
            run.model.token_embedding.weight[-1] = float("nan")  # in the rows of the last rank
    assert on_all(runs, lambda saver: saver.save()) == [False, False]
    assert "found NaN or infinity in parts.model/token_embedding.weight" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_an_error_interrupts_is_left_unfinished(tmp_path, runs, disk):
    disk.open.clear()

    def save(saver: Saver) -> None:
        with saver:
            saver.save()
            raise ValueError("made up")

    with pytest.raises(ValueError, match="made up"):
        on_all(runs, save)
    disk.open.set()
    assert list(tmp_path.glob("*.sharded")) == []
