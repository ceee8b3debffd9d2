"""A power cut never takes a checkpoint whose save has returned.

kill -9 cannot show this: the kernel's buffers survive a process, but not a power cut. So the tests
record the calls of a few saves and rebuild every folder that a cut could leave: bytes without an
fsync are gone or half there, and any changes of the folder since its last fsync may be missing.
"""

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import parts
import pytest
from fault_trials import BOTH_WAYS, way

from chatgot import atomic_file
from chatgot.checkpointing.host_copy import HostCopy
from chatgot.checkpointing.run_files import checkpoint_path, cleanup_old_checkpoints
from chatgot.checkpointing.saver import CheckpointWriter
from chatgot.errors import CheckpointRejected

pytestmark = pytest.mark.slow  # `make faults` has them, with LEVEL=ci too

RUN_ID = "tiny_20250102-030405"


def record(
    folder: Path, monkeypatch: pytest.MonkeyPatch, background: bool = False, saves: int = 4
) -> list[tuple]:
    """Save a few times with retention; return the calls to the kernel in order.

    The list also has the moments at which saves returned.
    """
    calls: list[tuple] = []
    files: dict[int, int] = {}  # inode -> a number that no later file gets
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "unlink")}

    def opened(path, flags, *args, **keywords):
        descriptor = real["open"](path, flags, *args, **keywords)
        if flags & os.O_CREAT:
            files[os.fstat(descriptor).st_ino] = len(calls)
            calls.append(("create", Path(path).name, len(calls)))
        return descriptor

    def fsync(descriptor):
        real["fsync"](descriptor)
        about = os.fstat(descriptor)
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            calls.append(("folder",))
        else:
            calls.append(("data", files[about.st_ino], os.pread(descriptor, about.st_size, 0)))

    def replace(source, target, **keywords):
        real["replace"](source, target, **keywords)
        calls.append(("rename", Path(source).name, Path(target).name))

    def unlink(path, **keywords):
        real["unlink"](path, **keywords)
        calls.append(("unlink", Path(path).name))

    recorders = {"open": opened, "fsync": fsync, "replace": replace, "unlink": unlink}
    run = parts.run()
    writer = CheckpointWriter(0)
    with monkeypatch.context() as patch:
        for name, recorder in recorders.items():
            patch.setattr(os, name, recorder)
        for step in range(1, saves + 1):
            content = run.checkpoint()
            content |= {"run_id": RUN_ID, "global_step": step}
            content["state"]["run_id"] = RUN_ID
            counters = ("global_step", "skipped_steps", "position")
            content["state"]["progress"] |= dict.fromkeys(counters, step)
            path = checkpoint_path(folder, RUN_ID, step)
            if background:
                copy, arrived = HostCopy().take(content)
                assert writer.begin(path, copy, arrived, time.monotonic(), best=False)
                assert writer.end(run.config.training)
            else:
                assert writer.save(path, content, run.config.training)
            calls.append(("returned", step))
            cleanup_old_checkpoints(folder, "tiny", "20250102-030405", max_to_keep=1)
    return calls


def applied(names: dict[str, int], changes: list[tuple]) -> dict[str, int]:
    """Return a folder's names after some changes; a change of a missing file does nothing."""
    names = dict(names)
    for kind, *rest in changes:
        if kind == "create":
            names[rest[0]] = rest[1]
        elif kind == "rename" and rest[0] in names:
            names[rest[1]] = names.pop(rest[0])
        elif kind == "unlink":
            names.pop(rest[0], None)
    return names


State = tuple[int, dict[str, bytes]]  # last step whose save returned, content of files by name


def states_after_a_cut(calls: list[tuple]) -> Iterator[State]:
    """Yield a state for every folder that a power cut could leave."""
    bytes_of = {call[1]: call[2] for call in calls if call[0] in ("data", "not synced")}
    for end in range(len(calls) + 1):
        synced: dict[int, bytes] = {}
        durable: dict[str, int] = {}  # the folder's names at its last fsync
        pending: list[tuple] = []  # the folder's changes since then
        promised = 0
        for call in calls[:end]:
            if call[0] == "data":
                synced[call[1]] = call[2]
            elif call[0] == "folder":
                durable = applied(durable, pending)
                pending = []
            elif call[0] == "returned":
                promised = call[1]
            elif call[0] != "not synced":
                pending.append(call)
        for changes in subsets(pending):
            names = applied(durable, changes)
            for share in (0.0, 0.5):  # of the bytes without an fsync
                yield promised, contents(names, synced, bytes_of, share)


def subsets(changes: list[tuple]) -> Iterator[list[tuple]]:
    """Yield all subsets of the changes, each in order."""
    for chosen in itertools.product([False, True], repeat=len(changes)):
        yield list(itertools.compress(changes, chosen))


def contents(
    names: dict[str, int], synced: dict[int, bytes], bytes_of: dict[int, bytes], share: float
) -> dict[str, bytes]:
    """Return the content of each file, with only a share of the bytes without an fsync."""
    result = {}
    for name, file in names.items():
        unsynced = bytes_of.get(file, b"")
        result[name] = synced.get(file, unsynced[: int(share * len(unsynced))])
    return result


def lost_in(states: Iterable[State], folder: Path) -> tuple[int, list[str]]:
    """Return the number of states, and a description of each that lost something.

    A state lost something if neither the promised checkpoint nor a later one is loaded.
    """
    lost = []
    tried = set()
    for promised, content in states:
        key = (promised, tuple(sorted(content.items())))
        if key in tried:
            continue
        tried.add(key)
        for path in folder.iterdir():
            path.unlink()
        for name, data in content.items():
            (folder / name).write_bytes(data)
        try:
            _, loaded = parts.latest(folder)
            step = loaded["global_step"]
        except CheckpointRejected:
            step = 0
        if step < promised:
            lost.append(f"step {promised} was promised, step {step} is there, of {sorted(content)}")
    return len(tried), lost


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "recorded").mkdir()
    (tmp_path / "rebuilt").mkdir()
    return tmp_path / "recorded", tmp_path / "rebuilt"


@BOTH_WAYS
def test_a_power_cut_never_takes_a_checkpoint_whose_save_returned(
    folders, monkeypatch, table, background
):
    calls = record(folders[0], monkeypatch, background)
    assert [call[0] for call in calls[:5]] == ["create", "data", "rename", "folder", "returned"]
    count, lost = lost_in(states_after_a_cut(calls), folders[1])
    table.add(f"power cut (rebuilt states){way(background)}", count, len(lost), count)
    assert count > 30
    assert lost == []


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_a_save_without_one_of_its_fsyncs_is_caught(folders, monkeypatch, table, forgotten):
    if forgotten == "folder":
        monkeypatch.setattr(atomic_file, "fsync_folder", lambda folder: None)
    calls = record(folders[0], monkeypatch)
    if forgotten == "file":
        calls = [("not synced", *call[1:]) if call[0] == "data" else call for call in calls]
    count, lost = lost_in(states_after_a_cut(calls), folders[1])
    table.add(f"mutant: no fsync of the {forgotten}", count, len(lost), count)
    assert lost
