"""A checkpoint written beside the next steps: the same file, the same weights, the same safety."""

import contextlib
import logging
import os
import re
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import harness
import parts
import pytest
import torch

from chatgot.checkpointing import saver as saver_module
from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.checkpointing.host_copy import HostCopy, lay_out
from chatgot.errors import Diverged, OutOfMemory, StorageError
from chatgot.machine import memory
from chatgot.run.assembly import Run
from chatgot.training import saving
from chatgot.training.due import Due, is_new_best
from chatgot.training.recovery import rewind
from chatgot.training.saving import Saver, wants_background
from chatgot.training.step import compute_gradients, set_learning_rate, update_weights

LONG_S = 20.0  # a test that waits longer has failed


def never() -> bool:
    """Nobody asks the run to stop."""
    return False


def run_in(folder: Path, background: bool = True, **training: object) -> Run:
    """Return a run that saves into `folder`/checkpoints, which exists."""
    keys = {"max_steps": 1000, "save_checkpoint_steps": None, "background_saves": background}
    run = parts.run(training=keys | training, paths={"checkpoints": str(folder / "checkpoints")})
    run.checkpoint_dir.mkdir(exist_ok=True)
    return run


def train(run: Run, steps: int = 1) -> None:
    for _ in range(steps):
        set_learning_rate(run)
        assert update_weights(run, compute_gradients(run))


def evaluated(run: Run, val_loss: float) -> None:
    """Mark the current step as evaluated."""
    run.state.marks.val_loss = val_loss
    run.state.marks.last_eval_step = run.state.progress.global_step


def saved_steps(run: Run) -> list[int]:
    return sorted(harness.checkpoints(run.checkpoint_dir.parent))


class SlowDisk:
    """Holds up the thread that writes, before the first byte.

    begun: it has come there. open: it may go on. error: what the disk says then.
    closes: behind each save, so that the next one is held up, too.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()
        self.error: Exception | None = None
        self.closes = False
        self._open_file = os.open

    def open_file(self, path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and threading.current_thread().name == "saving":
            self.begun.set()
            assert self.open.wait(LONG_S)
            if self.closes:
                self.open.clear()
            if self.error is not None:
                raise self.error
        return self._open_file(path, flags, *mode)

    def fails(self) -> None:
        self.error = OSError(28, os.strerror(28))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow = SlowDisk()
    monkeypatch.setattr(os, "open", slow.open_file)
    yield slow
    slow.open.set()
    for thread in writers():
        thread.join(LONG_S)


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "saving"]


def let_go_later(disk: SlowDisk, seconds: float = 0.1) -> None:
    """Let the disk go on after a while, so that the caller has to wait for it."""
    threading.Timer(seconds, disk.open.set).start()


def save_events(caplog: pytest.LogCaptureFixture) -> list[dict]:
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    return [event for event in events if event["kind"] == "save"]


# Which run does


@pytest.mark.parametrize(
    ("key", "device", "wanted"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("auto", "mps", True),
        (True, "cpu", True),
        (False, "cuda", False),
    ],
)
def test_auto_saves_in_the_background_only_beside_a_gpu(key, device, wanted):
    run = parts.run(training={"background_saves": key})
    run.device = torch.device(device)
    assert wants_background(run) is wanted


def test_a_cpu_starts_no_thread_unless_asked(tmp_path, monkeypatch):
    run = run_in(tmp_path, background="auto")
    monkeypatch.setattr(threading.Thread, "start", None)
    train(run)
    assert Saver(run, never).save()


# The copy


def test_a_copy_shares_no_memory_with_the_state():
    run = parts.run()
    content = run.checkpoint()
    copy, arrived = HostCopy().take(content)
    arrived()
    before = parts.copied(content)
    train(run)
    run.config.sampling.prompts.append("more")
    assert parts.same(copy["model_state_dict"], before["model_state_dict"])
    assert parts.same(copy["optimizer_state_dict"], before["optimizer_state_dict"])
    assert copy["config"] == before["config"]
    assert not parts.same(run.checkpoint()["model_state_dict"], before["model_state_dict"])


def test_each_copy_has_the_memory_of_the_one_before():
    run = parts.run()
    host_copy = HostCopy()

    def addresses() -> list[int]:
        copy, _ = host_copy.take(run.checkpoint())
        return [tensor.data_ptr() for tensor in copy["model_state_dict"].values()]

    before = addresses()
    train(run)
    assert addresses() == before


def test_a_copys_file_has_the_bytes_of_the_states_own(tmp_path):
    """Tied weights are stored once, and a view with the whole it belongs to."""
    content = parts.run(model={"tie_embeddings": True}).checkpoint()
    whole = torch.arange(12.0)
    content["rng"]["parts"] = [whole[2:5], whole.view(3, 4), torch.zeros(0), whole.view(3, 4).T]
    files = []
    for state in (content, HostCopy().take(content)[0]):
        files.append(tmp_path / f"{len(files)}.pt")
        torch.save(state, files[-1])
    # the names of the files are in their zips
    first, second = (harness.load(path) for path in files)
    assert parts.same(first["model_state_dict"], second["model_state_dict"])
    assert files[0].stat().st_size == files[1].stat().st_size
    bytes_of = [re.sub(rb"[01]/(?=[.\w])", b"", path.read_bytes()) for path in files]
    assert bytes_of[0] == bytes_of[1]


# A save that succeeds


def test_steps_go_on_beside_a_save_and_its_file_is_the_same(tmp_path, disk):
    """As one that was written before the next step, byte for byte."""
    plain = run_in(tmp_path)
    beside = run_in(tmp_path)
    savers = Saver(plain, never), Saver(beside, never)
    for run in (plain, beside):
        train(run, 2)
        evaluated(run, 2.5)
    assert savers[0].save(last_chance=True)  # never in the background
    (path,) = plain.checkpoint_dir.iterdir()
    expected = path.read_bytes()
    path.unlink()
    assert not savers[1].save()
    assert disk.begun.wait(LONG_S)
    train(beside, 3)
    savers[1].finish()
    assert not path.exists()
    disk.open.set()
    savers[1].wait()
    assert path.read_bytes() == expected
    train(plain, 3)
    assert parts.same(plain.checkpoint()["model_state_dict"], beside.model.state_dict())
    assert plain.state == beside.state


def test_a_save_counts_only_once_its_file_has_its_name(tmp_path, disk, caplog):
    caplog.set_level(logging.INFO)
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    assert disk.begun.wait(LONG_S)
    saver.finish()
    assert (saved_steps(run), save_events(caplog)) == ([], [])
    disk.open.set()
    train(run, 2)
    saver.wait()
    (event,) = save_events(caplog)
    assert saved_steps(run) == [event["step"]] == [1]
    assert 0 <= event["waited_seconds"] <= event["seconds"]
    assert ", of which training waited 0." in caplog.text


def test_the_training_thread_alone_logs_and_removes_old_files(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    removing = []
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".pt":
            removing.append(threading.current_thread().name)
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    run = run_in(tmp_path, max_checkpoints_to_keep=1)
    saver = Saver(run, never)
    for _ in range(3):
        train(run)
        saver.save()
    saver.wait()
    assert saved_steps(run) == [3]
    assert removing == ["MainThread", "MainThread"]
    assert {record.threadName for record in caplog.records} == {"MainThread"}


def test_a_save_leaves_threads_umask_and_generators_alone(tmp_path, disk):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    before = torch.get_num_threads(), torch.get_rng_state()
    umask = os.umask(0o027)
    try:
        saver.save()
        assert disk.begun.wait(LONG_S)
        os.umask(0o077)  # whatever happens meanwhile, the mode is that of the save's beginning
        disk.open.set()
        saver.wait()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    (path,) = run.checkpoint_dir.iterdir()
    assert path.stat().st_mode & 0o777 == 0o640
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_second_save_waits_for_the_first_and_says_so_once(tmp_path, disk, caplog):
    caplog.set_level(logging.INFO)
    run = run_in(tmp_path)
    saver = Saver(run, never)
    disk.closes = True
    for _ in range(3):
        disk.begun.clear()
        train(run)
        saver.save()
        assert disk.begun.wait(LONG_S)
        assert len(writers()) == 1
        let_go_later(disk)
    saver.wait()
    assert saved_steps(run) == [1, 2, 3]
    assert caplog.text.count("is due while that of step 1 is still being written") == 1
    assert caplog.text.count("said once") == 1
    assert all(event["waited_seconds"] > 0.01 for event in save_events(caplog))


def test_the_last_save_of_a_run_is_waited_for(tmp_path, disk):
    run = run_in(tmp_path, max_steps=2)
    saver = Saver(run, never)
    train(run)
    saver.save()
    train(run)
    let_go_later(disk)
    assert saver.save()
    assert saved_steps(run) == [1, 2]


def test_a_save_without_room_for_a_copy_makes_training_wait(tmp_path, caplog, monkeypatch):
    real = torch.empty

    def no_room(*args: object, **keywords: object) -> torch.Tensor:
        if "pin_memory" in keywords:  # a buffer of the copy
            raise torch.OutOfMemoryError("out of memory")
        return real(*args, **keywords)

    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", no_room)
        assert saver.save()
        train(run)
        assert saver.save()
    assert caplog.text.count("no room to save in the background") == 1
    train(run)
    assert not saver.save()
    saver.wait()
    assert saved_steps(run) == [1, 2, 3]


def test_no_copy_takes_the_memory_that_must_stay_free(tmp_path, caplog, monkeypatch):
    """What a copy already has is not asked for again."""
    run = run_in(tmp_path)
    total = 1 << 30
    needed = sum(tensor.nbytes for tensor in run.checkpoint()["model_state_dict"].values())
    least = run.config.training.dynamic_batch_size.memory_headroom * total
    saver = Saver(run, never)
    for free, begins in ((least + needed, False), (2 * least, True), (0, True)):
        monkeypatch.setattr(memory, "memory_limits", lambda device, free=free: [(free, total)])
        train(run)
        assert saver.save() is not begins
    saver.wait()
    assert saved_steps(run) == [1, 2, 3]
    assert caplog.text.count("no room to save in the background (it would leave") == 1


def test_page_locked_memory_is_taken_in_few_whole_blocks():
    """The largest part of an 85M model has 154,389,504 bytes; torch rounds each block up."""
    shapes = [50257 * 768, 1024 * 768, *[3 * 768 * 768, 768 * 768, 768 * 3072, 3072 * 768] * 12]
    sizes = [0, 1, 63, 65, *(4 * shape for shape in shapes * 3)]
    layout = lay_out(sizes)
    assert layout.block_bytes == 1 << 28
    assert layout.blocks * layout.block_bytes < 1.1 * sum(sizes)
    ends = [0] * layout.blocks
    for (block, first, count), size in zip(layout.places, sizes, strict=True):
        assert count == size
        assert first % 64 == 0
        assert first >= ends[block]
        ends[block] = first + count
    assert max(ends) <= layout.block_bytes


def test_a_save_without_room_for_a_thread_makes_training_wait(tmp_path, monkeypatch):
    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    run = run_in(tmp_path)
    train(run)
    monkeypatch.setattr(threading.Thread, "start", no_room)
    assert Saver(run, never).save()


def test_only_what_training_waited_counts_as_the_cost_of_a_save(tmp_path, disk, caplog):
    run = run_in(tmp_path, save_checkpoint_steps=1)
    saver = Saver(run, never)
    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver_module.time, "monotonic", lambda: clock[0])
        for _ in range(2):
            train(run)
            disk.open.clear()
            disk.begun.clear()
            clock[0] += 100.0
            saver.save()
            assert disk.begun.wait(LONG_S)
            clock[0] += 50.0  # of writing
            disk.open.set()
            for thread in writers():
                thread.join(LONG_S)
            saver.finish()
    assert "of the time" not in caplog.text


def test_a_proof_before_a_save_does_not_count_as_the_save(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = [0.0]
    real = saving.prove_gradient_checkpointing_again

    def slow_proof(*args: object) -> None:
        clock[0] += 30.0
        real(*args)

    monkeypatch.setattr(saving, "prove_gradient_checkpointing_again", slow_proof)
    run = run_in(tmp_path, gradient_checkpointing=True, save_checkpoint_steps=1)
    saver = Saver(run, never)
    monkeypatch.setattr(saver_module.time, "monotonic", lambda: clock[0])
    train(run)
    saver.save()
    saver.wait()
    (event,) = save_events(caplog)
    assert (event["seconds"], event["waited_seconds"]) == (0, 0)
    assert "saving takes" not in caplog.text


def blocks_of_the_copy(saver: Saver) -> list[weakref.ref]:
    blocks = [weakref.ref(block) for block in saver._host_copy._blocks]
    assert blocks
    return blocks


@pytest.mark.parametrize("last", ["save", "out of memory"])
def test_the_last_save_has_the_memory_of_the_copy(tmp_path, monkeypatch, last):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    saver.wait()
    blocks = blocks_of_the_copy(saver)
    held = []
    real = saver_module.save_checkpoint

    def save_checkpoint(*args: object, **keywords: object) -> bool:
        held.extend(block() is not None for block in blocks)
        return real(*args, **keywords)

    monkeypatch.setattr(saver_module, "save_checkpoint", save_checkpoint)
    train(run)
    if last == "save":
        saver.save(last_chance=True)
    else:
        saver.save_what_is_whole(OutOfMemory("no room", unchanged=True))
    assert held == [False] * len(blocks)


def test_a_thread_that_runs_out_of_memory_gives_the_copy_back(tmp_path, disk):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    blocks = blocks_of_the_copy(saver)
    disk.error = MemoryError("a made-up one")
    disk.open.set()
    saver.wait()
    assert [block() for block in blocks] == [None] * len(blocks)


# What is the best while a save is in flight


@pytest.mark.parametrize("fails", [True, False])
def test_a_best_save_in_flight_is_no_fact_before_it_has_ended(tmp_path, disk, fails):
    """The second best weights are the best ones if the file of the best was not written."""
    run = run_in(tmp_path)
    due = Due(run)
    saver = Saver(run, never)
    train(run)
    evaluated(run, 2.5)
    saver.save()
    train(run)
    evaluated(run, 2.6)
    if fails:
        disk.fails()
    let_go_later(disk)
    assert due.checkpoint() is fails
    assert writers() == []
    assert run.times.take(0.0)["saving"] > 0.01
    if fails:
        saver.save(last_chance=True)
    marks = run.state.marks
    assert (marks.best_step, marks.best_val_loss) == ((2, 2.6) if fails else (1, 2.5))


@pytest.mark.parametrize(("val_loss", "best"), [(2.4, True), (2.7, False)])
def test_weights_that_are_the_best_in_any_case_wait_for_nothing(tmp_path, disk, val_loss, best):
    """Or in no case, because earlier ones are better."""
    run = run_in(tmp_path)
    run.state.marks.best_val_loss = 2.65
    saver = Saver(run, never)
    train(run)
    evaluated(run, 2.5)
    saver.save()
    train(run)
    evaluated(run, val_loss)
    assert is_new_best(run) is best
    assert len(writers()) == 1
    disk.open.set()
    saver.wait()


# A save that fails


def test_a_failed_save_in_the_background_undoes_its_marks(tmp_path, disk, caplog):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    before = run.state.marks.model_copy()
    evaluated(run, 2.5)
    saver.save()
    assert disk.begun.wait(LONG_S)
    assert (run.state.marks.last_save_step, run.state.marks.best_step) == (1, 1)
    train(run)
    evaluated(run, 2.6)
    disk.fails()
    disk.open.set()
    saver.wait()
    marks = run.state.marks
    assert marks.last_save_step == before.last_save_step
    assert (marks.best_step, marks.best_val_loss) == (before.best_step, before.best_val_loss)
    assert (marks.last_eval_step, marks.val_loss) == (2, 2.6)
    assert "training continues" in caplog.text
    assert list(run.checkpoint_dir.iterdir()) == []


def test_the_third_failed_save_in_a_row_ends_the_run(tmp_path, disk):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    disk.fails()
    disk.open.set()
    for _ in range(3):
        train(run)
        saver.save()
    with pytest.raises(StorageError, match="3 saves in a row failed"):
        saver.wait()
    assert run.state.marks.last_save_step == 0


def test_a_save_that_succeeds_ends_a_row_of_failed_ones(tmp_path, disk):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    disk.open.set()
    for fails in (True, True, False, True, True):
        disk.error = OSError(28, "No space left on device") if fails else None
        train(run)
        saver.save()
        saver.wait()
    assert saved_steps(run) == [3]


def test_a_mistake_of_ours_in_the_thread_ends_the_run(tmp_path, monkeypatch):
    def broken(*args: object, **keywords: object) -> None:
        raise AttributeError("a made-up defect")

    monkeypatch.setattr(saver_module, "save_checkpoint", broken)
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    with pytest.raises(AttributeError, match="a made-up defect"):
        saver.wait()
    assert run.state.marks.last_save_step == 0


# What waits for it


def test_a_rewind_goes_back_to_the_file_that_was_being_written(tmp_path, disk):
    run = run_in(tmp_path, save_checkpoint_steps=2)
    saver = Saver(run, never)
    train(run, 2)
    saver.save()
    train(run, 3)
    let_go_later(disk)
    rewind(run)
    assert run.times.take(0.0)["saving"] > 0.01
    assert run.state.progress.global_step == 2
    assert saved_steps(run) == [2]
    assert writers() == []


def test_a_rewind_ignores_the_file_that_could_not_be_written(tmp_path, disk):
    run = run_in(tmp_path, save_checkpoint_steps=2)
    saver = Saver(run, never)
    train(run, 2)
    evaluated(run, 2.5)
    saver.save()
    train(run)
    disk.fails()
    disk.open.set()
    rewind(run)
    assert run.state.progress.global_step == 0
    assert run.state.marks.best_step == -1


def test_leaving_waits_and_then_saves_the_last_step(tmp_path, disk):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    train(run)
    let_go_later(disk)
    saver.save_before_leaving()
    assert saved_steps(run) == [1, 2]


@pytest.mark.parametrize("fails", [False, True])
def test_leaving_saves_the_step_in_flight_again_only_if_that_failed(tmp_path, disk, caplog, fails):
    caplog.set_level(logging.INFO)
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    if fails:
        disk.fails()
    let_go_later(disk)
    saver.save_before_leaving()
    assert saved_steps(run) == [1]
    assert [event["step"] for event in save_events(caplog)] == [1]
    assert ("this file is missing" in caplog.text) is fails
    assert "training continues" not in caplog.text


@pytest.mark.parametrize("unchanged", [True, False])
def test_out_of_memory_waits_for_the_file_in_flight(tmp_path, disk, unchanged):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    train(run)
    let_go_later(disk)
    with saver:
        saver.save_what_is_whole(OutOfMemory("no room", unchanged=unchanged))
    assert saved_steps(run) == ([1, 2] if unchanged else [1])


def test_an_error_waits_for_the_file_in_flight_and_stays_the_error(tmp_path, disk, caplog):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    saver._writer.failures = 2  # one more would end the run
    train(run)
    saver.save()
    disk.fails()
    let_go_later(disk)
    with pytest.raises(Diverged), saver:
        raise Diverged("a made-up one")
    assert writers() == []
    assert "3 saves in a row failed" in caplog.text


def test_a_mistake_of_ours_in_the_thread_does_not_hide_an_error(tmp_path, caplog, monkeypatch):
    """The exit code is that of the error that ended the run."""

    def broken(*args: object, **keywords: object) -> None:
        raise RuntimeError("a made-up defect")

    monkeypatch.setattr(saver_module, "save_checkpoint", broken)
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    with pytest.raises(Diverged), saver:
        raise Diverged("a made-up one")
    assert "one more error, after Diverged" in caplog.text
    train(run)
    saver.save()
    saver.save_what_is_whole(OutOfMemory("no room", unchanged=True))
    assert "one more error, after OutOfMemory" in caplog.text


@pytest.mark.parametrize("how", ["the block ends", "the last step", "a signal", "a rewind"])
def test_a_failed_save_promises_no_other_one_when_none_may_come(tmp_path, disk, caplog, how):
    run = run_in(tmp_path, max_steps=2)
    saver = Saver(run, lambda: how == "a signal")
    train(run)
    with saver:
        saver.save()
        disk.fails()
        disk.open.set()
        if how == "the last step":
            train(run)
            saver.save()
        elif how == "a signal":
            saver.wait()
        elif how == "a rewind":
            rewind(run)
    assert "step_1.pt: not saved: No space left on device; this file is missing" in caplog.text
    assert "training continues" not in caplog.text


# The whole story


def test_a_run_with_background_saves_ends_in_the_same_weights(tmp_path):
    weights = []
    for background in (False, True):
        folder = tmp_path / str(background)
        training = {"background_saves": background, "save_checkpoint_steps": 1}
        folder.mkdir()
        harness.write_config(folder, training=training)
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(tmp_path / "False" / "data", folder / "data", dirs_exist_ok=True)
        assert harness.train_here(folder, "--config", "tiny.yaml") == 0
        files = harness.checkpoints(folder)
        weights.append({step: harness.load(path) for step, path in files.items()})
        saves = harness.events(folder, "save")
        assert any("waited_seconds" in event for event in saves) is background
        assert "waited_seconds" not in saves[-1]  # the last one must not fail
    for step in weights[0] | weights[1]:
        for part in ("model_state_dict", "optimizer_state_dict", "rng"):
            assert parts.same(weights[0][step][part], weights[1][step][part])


def test_the_file_of_a_save_in_the_background_loads(tmp_path):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    saver.save()
    saver.wait()
    path = harness.checkpoints(tmp_path)[1]
    assert not save_checkpoint(path, run.checkpoint())  # whole: it is not written again
