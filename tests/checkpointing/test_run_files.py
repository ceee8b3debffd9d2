"""Checkpoints are found, kept and set aside by content, not name; other files stay untouched."""

import os
import re
import tempfile
import time
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np
import parts
import pytest
import torch

from chatgot.checkpointing import saver as saver_module
from chatgot.checkpointing.checkpoint_file import is_whole, save_checkpoint
from chatgot.checkpointing.run_files import (
    checkpoint_path,
    cleanup_old_checkpoints,
    newest_whole,
    probe_folder,
    set_aside,
    superseded_by,
)
from chatgot.checkpointing.saver import CheckpointWriter
from chatgot.errors import CheckpointRejected, StorageError

OLDER = "20250101-000000"
RUN = "20250102-030405"
NEWER = "20260101-000000"


@lru_cache(maxsize=4096)
def content_of(run_id: str, step: int, loss: float = 2.0) -> bytes:
    """Return the bytes of a small whole file, as a save writes it."""
    content = parts.run().checkpoint()
    content |= {"run_id": run_id, "global_step": step, "loss": loss}
    content["state"]["run_id"] = run_id
    content["state"]["progress"] |= {
        "global_step": step,
        "skipped_steps": step,
        "position": step,
    }
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "any.pt", content)
        return (Path(folder) / "any.pt").read_bytes()


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The bytes of a whole file that belongs to another run."""
    return content_of("any_20250102-030405", 1)


def put(folder: Path, *steps: int, timestamp: str = RUN, config: str = "tiny") -> dict[int, Path]:
    """Put whole files of a run into `folder`; return their paths by step."""
    files = {step: folder / f"{config}_{timestamp}_step_{step}.pt" for step in steps}
    for step, path in files.items():
        path.write_bytes(content_of(f"{config}_{timestamp}", step))
    return files


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_whole(path)


def tree(folder: Path) -> dict[str, object]:
    """Return everything in a folder, each with its content or kind."""
    found = {}
    for path in folder.iterdir():
        kind = "link to " + str(path.readlink()) if path.is_symlink() else "other"
        found[path.name] = path.read_bytes() if path.is_file() and not path.is_symlink() else kind
    return found


def clean(folder: Path, keep: int = 5, best: Collection[int] = ()) -> list[int]:
    """Remove old checkpoints; return the removed steps."""
    removed = cleanup_old_checkpoints(folder, "tiny", RUN, max_to_keep=keep, keep=best)
    assert all(not path.exists() for path in removed)
    return sorted(int(path.stem.rpartition("_")[2]) for path in removed)


def steps_of(folder: Path) -> list[int]:
    return sorted(
        int(path.stem.rpartition("_")[2]) for path in folder.glob(f"tiny_{RUN}_step_*.pt")
    )


# Retention


def test_the_newest_n_files_by_step_stay_whatever_their_times(tmp_path, whole):
    files = put(tmp_path, 1, 2, 9, 10, 11, 100)
    for age, step in enumerate((1, 100, 2, 11, 9, 10)):
        os.utime(files[step], (1e9 - age, 1e9 - age))
    assert clean(tmp_path, keep=3) == [1, 2, 9]
    assert steps_of(tmp_path) == [10, 11, 100]
    assert clean(tmp_path, keep=3) == []


def test_five_files_are_kept_by_default(tmp_path, whole):
    put(tmp_path, *range(1, 9))
    removed = cleanup_old_checkpoints(tmp_path, "tiny", RUN)
    assert [type(path) for path in removed] == [type(tmp_path)] * 3
    assert steps_of(tmp_path) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_no_file_is_refused_and_removes_nothing(tmp_path, keep):
    put(tmp_path, 1, 2)
    with pytest.raises(ValueError, match="max_to_keep"):
        clean(tmp_path, keep=keep)
    assert steps_of(tmp_path) == [1, 2]


def test_the_two_newest_files_for_a_rewind_stay_beyond_the_newest_n(tmp_path):
    put(tmp_path, 3, 4, 8, 12, 13, 14, 15)
    removed = cleanup_old_checkpoints(tmp_path, "tiny", RUN, max_to_keep=2, rewind_interval=4)
    assert sorted(int(path.stem.rpartition("_")[2]) for path in removed) == [3, 4, 13]
    assert steps_of(tmp_path) == [8, 12, 14, 15]


def test_the_best_evaluations_file_stays_beyond_the_newest_n(tmp_path, whole):
    put(tmp_path, 1, 2, 3, 4, 5)
    assert clean(tmp_path, 2, best=[2]) == [1, 3]
    assert steps_of(tmp_path) == [2, 4, 5]
    assert clean(tmp_path, 2, best=[5]) == [2]


@pytest.mark.parametrize("damaged", [(10,), (10, 9), (8,), (10, 9, 8, 7), (10, 9, 8, 7, 6)])
def test_damaged_files_do_not_count_and_stay_untouched(tmp_path, damaged):
    files = put(tmp_path, 6, 7, 8, 9, 10)
    for step in damaged:
        damage(files[step])
    good = [step for step in (10, 9, 8, 7, 6) if step not in damaged]
    assert clean(tmp_path, keep=2) == sorted(good[2:])
    assert steps_of(tmp_path) == sorted([*good[:2], *damaged])
    assert not good or any(is_whole(path) for path in tmp_path.iterdir())  # one whole file stays


FOREIGN = [
    "tiny_20250102-030405_step_1.pt.bak",
    "tiny_20250102-030405_step_٣.pt",
    "tiny_20250102-030405_step_-1.pt",
    "tiny_20250102-030405_step_1e3.pt",
    "tiny_20250102-030405_step_01.pt",
    "tiny_20250102-030405_step_.pt",
    "tiny_20250102-030405_step_1.pt\n",
    " tiny_20250102-030405_step_1.pt",
    "tiny_20250102-030405_step_1.PT",
    "tiny_20250102-030405_step_3.pt.superseded",
    ".tiny_20250102-030405_step_3.pt.99.tmp",
    "tiny_20250102-030405.pt",
    "tiny2_20250102-030405_step_1.pt",
    "xtiny_20250102-030405_step_1.pt",
    "tiny_x_20250102-030405_step_1.pt",
    "tiny_20250102-030406_step_1.pt",
    "tiny_20240102-030405_step_1.pt",
    "notes.txt",
    "tiny_20250102-030405_step_1000000000000000000000000.pt",
]


def test_only_regular_whole_files_of_this_run_are_ever_removed(tmp_path, tmp_path_factory, whole):
    outside = tmp_path_factory.mktemp("outside") / "precious.pt"
    outside.write_bytes(
        content_of(f"tiny_{RUN}", 3)
    )  # a whole file of this run, but reached only through a link
    for name in FOREIGN:
        (tmp_path / name).write_bytes(whole)
    (tmp_path / f"tiny_{RUN}_step_2.pt").mkdir()
    (tmp_path / f"tiny_{RUN}_step_3.pt").symlink_to(outside)
    (tmp_path / f"tiny_{RUN}_step_4.pt").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / f"tiny_{RUN}_step_5.pt")
    before = tree(tmp_path)
    files = put(tmp_path, *range(10, 18))
    os.link(files[10], tmp_path / "hard link")
    before["hard link"] = files[10].read_bytes()
    removed = cleanup_old_checkpoints(tmp_path, "tiny", RUN, max_to_keep=2)
    assert sorted(removed) == sorted(files[step] for step in range(10, 16))
    assert tree(tmp_path) == before | {
        files[n].name: content_of(f"tiny_{RUN}", n) for n in (16, 17)
    }
    assert outside.read_bytes() == content_of(f"tiny_{RUN}", 3)


@pytest.mark.parametrize("config", ["a.b", "a+b", "(x", "tiny_20250102-030405", "[a-z]"])
def test_a_configurations_name_is_never_read_as_a_pattern(tmp_path, config):
    other = {"a.b": "axb", "a+b": "aab", "(x": "x", "tiny_20250102-030405": "tiny", "[a-z]": "b"}[
        config
    ]
    put(tmp_path, 1, 2, 3, config=config)
    put(tmp_path, 1, 2, 3, config=other)
    removed = cleanup_old_checkpoints(tmp_path, config, RUN, max_to_keep=1)
    assert sorted(path.name for path in removed) == [
        f"{config}_{RUN}_step_{step}.pt" for step in (1, 2)
    ]


def test_a_file_that_cannot_be_removed_does_not_stop_the_others(tmp_path, monkeypatch, caplog):
    files = put(tmp_path, 1, 2, 3, 4)
    real = os.unlink
    fired = []

    def unlink(path, *args, **keywords):
        if Path(path) == files[2]:
            fired.append(path)
            raise PermissionError(1, "Operation not permitted")
        real(path, *args, **keywords)

    monkeypatch.setattr(os, "unlink", unlink)
    assert clean(tmp_path, keep=1) == [1, 3]
    assert fired
    assert steps_of(tmp_path) == [2, 4]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert files[2].name in caplog.text


def test_clean_up_among_10000_foreign_files_takes_under_a_second(tmp_path, whole):
    for i in range(2500):
        for name in (
            f"other_{RUN}_step_{i}.pt",
            f"tiny_{OLDER}_step_{i}.pt",
            f"photo{i}.jpg",
            f"tiny_{RUN}_{i}.log",
        ):
            (tmp_path / name).touch()
    put(tmp_path, 1, 2, 3)
    start = time.perf_counter()
    assert clean(tmp_path, keep=1) == [1, 2]
    assert time.perf_counter() - start < 1
    assert len(os.listdir(tmp_path)) == 10_001  # noqa: PTH208


def test_a_file_verified_once_is_not_read_again_until_it_changes(tmp_path, whole):
    files = put(tmp_path, 1, 2)
    assert clean(tmp_path, keep=2) == []
    about = files[1].stat()
    os.utime(files[1], ns=(0, about.st_mtime_ns))
    assert clean(tmp_path, keep=2) == []
    if os.path.getatime(files[1]) != 0:  # noqa: PTH203
        pytest.skip("no access times here")
    files[1].write_bytes(whole[:-1])
    os.utime(files[1], ns=(0, about.st_mtime_ns))  # same time, other size
    assert not is_whole(files[1])
    assert clean(tmp_path, keep=1) == []  # the file is no longer a checkpoint


# The newest checkpoint


def found(folder: Path) -> Path:
    path, content = parts.latest(folder)
    assert path.name == f"{content['run_id']}_step_{content['global_step']}.pt"
    return path


def test_a_file_under_the_wrong_name_is_skipped_and_does_not_count(tmp_path, caplog):
    files = put(tmp_path, 1, 2, 3)
    older_under_a_newer_name, of_another_run = (
        tmp_path / f"tiny_{RUN}_step_{step}.pt" for step in (8, 9)
    )
    older_under_a_newer_name.write_bytes(content_of(f"tiny_{RUN}", 2))
    of_another_run.write_bytes(content_of(f"tiny_{OLDER}", 9))
    assert found(tmp_path) == files[3]
    assert caplog.text.count("renamed") == 2
    assert clean(tmp_path, keep=2) == [1]
    assert steps_of(tmp_path) == [2, 3, 8, 9]


def test_a_file_with_a_non_finite_weight_is_passed_over(tmp_path, caplog):
    files = put(tmp_path, 1)
    run = parts.run()
    run.state.run_id = f"tiny_{RUN}"
    run.state.progress.global_step = 2
    run.state.progress.position = 2
    run.model.head.weight.data[0, 0] = torch.nan
    assert is_whole(parts.checkpoint_file(tmp_path, run))
    assert found(tmp_path) == files[1]
    assert "NaN or infinity in model_state_dict" in caplog.text
    assert "costs 1 steps" in caplog.text


def test_latest_is_the_greatest_step_of_the_newest_run_numerically(tmp_path, whole):
    put(tmp_path, 5000, timestamp=OLDER)
    put(tmp_path, 9000, timestamp=NEWER, config="other")
    files = put(tmp_path, 9, 10, 100)
    os.utime(files[9])
    assert found(tmp_path) == files[100]
    assert newest_whole(tmp_path, f"tiny_{RUN}") == files[100]


def test_latest_names_the_damaged_files_it_skips_and_the_lost_steps(tmp_path, caplog):
    files = put(tmp_path, 10, 20, 30, 40)
    damage(files[40])
    files[30].write_bytes(b"")
    assert found(tmp_path) == files[20]
    assert newest_whole(tmp_path, f"tiny_{RUN}") == files[20]
    assert files[40].name in caplog.text
    assert files[30].name in caplog.text
    assert "20 steps" in caplog.text
    assert files[20].name not in caplog.text


def test_latest_skips_links_folders_and_pipes_named_like_checkpoints(tmp_path, whole):
    files = put(tmp_path, 3)
    (tmp_path / f"tiny_{RUN}_step_4.pt").symlink_to(files[3])
    (tmp_path / f"tiny_{RUN}_step_5.pt").mkdir()
    os.mkfifo(tmp_path / f"tiny_{RUN}_step_6.pt")
    assert found(tmp_path) == files[3]


def test_a_run_of_damaged_files_is_refused_with_an_older_runs_file(tmp_path, whole):
    older = put(tmp_path, 7, 8, timestamp=OLDER)
    damage(older[8])
    for path in put(tmp_path, 1, 2).values():
        damage(path)
    with pytest.raises(CheckpointRejected, match=re.escape(str(older[7]))) as raised:
        parts.latest(tmp_path)
    assert f"tiny_{RUN}" in str(raised.value)
    assert raised.value.exit_code == 3


def test_a_folder_without_checkpoints_is_refused_by_name(tmp_path, whole):
    with pytest.raises(CheckpointRejected, match=re.escape(str(tmp_path))):
        parts.latest(tmp_path)
    put(tmp_path, 1, config="other")
    with pytest.raises(CheckpointRejected, match="tiny"):
        parts.latest(tmp_path)
    with pytest.raises(CheckpointRejected, match="missing"):
        parts.latest(tmp_path / "missing")
    assert newest_whole(tmp_path, f"tiny_{RUN}") is None


# Resuming from an older checkpoint


def test_newer_files_of_this_run_are_renamed_and_all_others_stay(tmp_path, caplog):
    caplog.set_level("INFO")
    files = put(tmp_path, 1, 2, 9, 10)
    damage(files[10])
    contents = {step: path.read_bytes() for step, path in files.items()}
    put(tmp_path, 5000, timestamp=NEWER)
    put(tmp_path, 5000, config="other")
    (tmp_path / f"tiny_{RUN}_step_11.pt").symlink_to(files[1])
    (tmp_path / f"tiny_{RUN}_step_12.pt").mkdir()
    caplog.clear()
    set_aside(superseded_by(tmp_path, f"tiny_{RUN}", 2, files[2]))
    assert steps_of(tmp_path) == [1, 2, 11, 12]  # only regular files belong to this run
    for step in (9, 10):
        assert (tmp_path / f"{files[step].name}.superseded").read_bytes() == contents[step]
    assert len(tree(tmp_path)) == 8
    assert len(caplog.records) == 1
    assert files[10].name in caplog.text


def test_setting_aside_says_nothing_when_no_file_is_newer(tmp_path, caplog):
    caplog.set_level("INFO")
    files = put(tmp_path, 1, 2)
    set_aside(superseded_by(tmp_path, f"tiny_{RUN}", 2, files[2]))
    assert steps_of(tmp_path) == [1, 2]
    assert caplog.records == []


def test_a_file_set_aside_never_replaces_one_set_aside_earlier(tmp_path):
    files = put(tmp_path, 1, 2)
    first = files[2].read_bytes()
    set_aside(superseded_by(tmp_path, f"tiny_{RUN}", 1, files[1]))
    second = content_of(f"tiny_{RUN}", 2, loss=3.0)
    files[2].write_bytes(second)
    set_aside(superseded_by(tmp_path, f"tiny_{RUN}", 1, files[1]))
    assert first != second
    assert sorted(tree(tmp_path).values()) == sorted([files[1].read_bytes(), first, second])


@pytest.mark.parametrize("alike", [True, False, "damaged"])
def test_a_different_file_of_the_resumed_step_is_set_aside_a_copy_is_not(tmp_path, alike):
    files = put(tmp_path, 1, 2)
    elsewhere = tmp_path / "elsewhere.pt"
    elsewhere.write_bytes(content_of(f"tiny_{RUN}", 2, loss=2.0 if alike else 3.0))
    if alike == "damaged":
        damage(files[2])
    set_aside(superseded_by(tmp_path, f"tiny_{RUN}", 2, elsewhere))
    assert files[2].exists() is (alike is True)
    assert (tmp_path / f"{files[2].name}.superseded").exists() is (alike is not True)
    assert elsewhere.exists()


def test_a_file_that_cannot_be_set_aside_is_a_storage_error(tmp_path, monkeypatch):
    files = put(tmp_path, 1, 2)

    def refuse(*args, **keywords):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match="Read-only"):
        set_aside(superseded_by(tmp_path, f"tiny_{RUN}", 1, files[1]))


# Saves that succeed and fail


def to_save(step: int = 1) -> dict:
    content = parts.run().checkpoint()
    content["state"] |= {"global_step": step, "skipped_steps": step, "position": step}
    return content | {"global_step": step}


def test_failed_saves_are_counted_and_end_the_run_at_the_limit(tmp_path, caplog, monkeypatch):
    path = tmp_path / "a.pt"
    content = to_save()
    saver = CheckpointWriter(0)
    settings = parts.config().training
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        assert not saver.save(path, content, settings)
        assert not saver.save(path, content, settings)
        assert caplog.text.count("No space left") == 2
        with pytest.raises(StorageError, match=r"a\.pt.*No space left"):
            saver.save(path, content, settings)
    assert not list(tmp_path.iterdir())
    assert saver.save(path, content, settings)
    assert (saver.failures, path.exists()) == (0, True)


def test_a_failed_last_save_is_an_error_not_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StorageError, match="the save failed"):
        CheckpointWriter(0).save(
            tmp_path / "a.pt", to_save(), parts.config().training, last_chance=True
        )


def test_a_bug_in_our_code_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(AttributeError):
        CheckpointWriter(0).save(
            tmp_path / "a.pt", to_save() | {"no pickle": lambda: None}, parts.config().training
        )


def test_a_state_that_cannot_be_loaded_is_never_saved(tmp_path):
    with pytest.raises(RuntimeError, match="could not be loaded again"):
        CheckpointWriter(0).save(
            tmp_path / "a.pt", to_save() | {"loss": np.float64(1.0)}, parts.config().training
        )
    assert not list(tmp_path.iterdir())


def test_each_save_logs_its_size_its_time_and_the_time_since_the_last(
    tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO")
    clock = iter([0.0, 120.0, 120.25, 121.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    CheckpointWriter(0).save(tmp_path / "a.pt", to_save(), parts.config().training)
    size = (tmp_path / "a.pt").stat().st_size / 1e6
    assert f"({size:.1f} MB in 0.25 s, 120 s after the last save)" in caplog.text


@pytest.mark.parametrize("best", [True, False])
def test_a_save_is_an_event_with_path_size_time_and_best_flag(tmp_path, caplog, best):
    caplog.set_level("INFO")
    path = tmp_path / "a.pt"
    settings = parts.config().training
    writer = CheckpointWriter(0)
    writer.save(path, to_save(), settings, best=best)
    writer.save(path, to_save(), settings)  # the file is the same already: no event
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    (fields,) = [event for event in events if event["kind"] == "save"]
    seconds = fields.pop("seconds")
    assert 0 < seconds < 10
    megabytes = round(path.stat().st_size / 1e6, 3)
    named = {"kind": "save", "step": 1, "path": str(path), "megabytes": megabytes, "best": best}
    assert fields == named


@pytest.mark.parametrize(
    ("cost", "step", "settings", "advice"),
    [
        (0.9, 50, {"save_checkpoint_steps": 50}, None),
        (
            2.0,
            50,
            {"save_checkpoint_steps": 50},
            "takes 2.0 % of the time; training.save_checkpoint_steps=100, "
            "training.checkpoint_interval_minutes=4 would",
        ),
        (
            2.0,
            50,
            {"save_checkpoint_steps": 500, "checkpoint_interval_minutes": None},
            None,
        ),  # this save came early
        (3.0, 25, {"save_checkpoint_steps": None, "checkpoint_interval_minutes": 2}, "=5 would"),
        (
            1.23,
            50,
            {"save_checkpoint_steps": 50, "checkpoint_interval_minutes": None},
            "save_checkpoint_steps=62 would",
        ),
    ],
)
def test_a_save_above_1_percent_of_the_time_advises_once_on_the_interval(
    tmp_path, caplog, monkeypatch, cost, step, settings, advice
):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    saver = CheckpointWriter(0)
    config = parts.config(training=settings).training
    real = saver_module.save_checkpoint

    def slow(path, content, **keywords):
        clock[0] += cost
        return real(path, content, **keywords)

    monkeypatch.setattr(saver_module, "save_checkpoint", slow)
    for i in (1, 2):
        clock[0] += 100.0
        saver.save(tmp_path / f"{i}.pt", to_save(i * step), config)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == (advice is not None)
    assert advice is None or advice in said[0]


def test_a_clock_that_stood_still_since_the_last_save_gives_no_advice(
    tmp_path, caplog, monkeypatch
):
    """Windows' monotonic clock ticks every 15.6 ms; the save itself sees a tick."""
    clock = iter([0.0, 0.0, 0.0156, 0.0156])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    settings = parts.config(training={"save_checkpoint_steps": 1}).training
    assert CheckpointWriter(0).save(tmp_path / "a.pt", to_save(), settings)
    assert "of the time" not in caplog.text


def test_the_probe_makes_a_missing_folder_and_leaves_it_empty(tmp_path):
    probe_folder(tmp_path / "a" / "b")
    probe_folder(tmp_path / "a" / "b")
    assert tree(tmp_path / "a" / "b") == {}


def disk_full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", ["file", "file above", "dangling link", "too long", "full"])
def test_an_unwritable_folder_is_a_storage_error_that_names_it(tmp_path, kind, monkeypatch):
    folder = tmp_path / ("x" * 300 if kind == "too long" else "folder")
    if kind == "file":
        folder.write_bytes(b"")
    elif kind == "file above":
        folder.write_bytes(b"")
        folder = folder / "below"
    elif kind == "dangling link":
        folder.symlink_to(tmp_path / "nothing")
    elif kind == "full":
        monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StorageError, match=re.escape(str(folder)[:99])) as raised:
        probe_folder(folder)
    assert raised.value.exit_code == 5
    if kind == "dangling link":
        assert f"it is a link to {tmp_path / 'nothing'}, and that is not there" in str(raised.value)


def test_a_checkpoints_name_has_run_and_step_without_padding(tmp_path):
    assert checkpoint_path(tmp_path, parts.RUN_ID, 7) == tmp_path / "tiny_20250102-030405_step_7.pt"
