"""One save of a group of ranks as a folder: each rank writes its rows, rank 0 completes it.

Nothing is gathered. In the background each rank copies its rows, and a thread writes them while
training goes on. The threads exchange nothing, since their messages would mix with those of the
steps. After each step all ranks know whether one of them still writes (`Moment.writing`).
"""

import copy
import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chatgot.atomic_file import mode_of_new_files
from chatgot.checkpointing.checkpoints import is_whole
from chatgot.checkpointing.host_copy import Arrived, HostCopy
from chatgot.checkpointing.names import FOLDER
from chatgot.checkpointing.run_files import new_path
from chatgot.checkpointing.saver import CheckpointWriter, Save, join, unseen
from chatgot.checkpointing.tensors import all_tensors
from chatgot.logs.waiting import waiting
from chatgot.machine.memory import is_out_of_memory, too_full
from chatgot.run.assembly import Run

if TYPE_CHECKING:
    from chatgot.checkpointing.shards import Part, Shard

GB = 1e9
POLL_S = 0.05  # how often the ranks ask each other whether all have written


@dataclass
class _Job:
    """What one rank does of a save, and how it ended.

    temporary: the folder to write into; None: nothing is written.
    shard: what it has written, if it has.
    """

    save: Save
    temporary: Path | None
    content: dict[str, Any]
    parts: Sequence["Part"]
    arrived: Arrived | None = None
    shard: "Shard | None" = None
    error: BaseException | None = None
    seconds: float = 0.0
    thread: threading.Thread | None = None

    def is_writing(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


@dataclass(frozen=True)
class _Opened:
    """Where rank 0 has made a folder. temporary: None where a whole one is there already."""

    temporary: Path | None = None
    error: OSError | None = None


def saves_folders(run: Run) -> bool:
    """Return whether a run's checkpoints are folders: those of a group of ranks, above a size."""
    if run.ranks.is_alone:
        return False
    tensors = (tensor for _, tensor in all_tensors(dict(run.collect_state())))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total > run.config.distributed.one_file_gb * GB


class FolderSaves:
    """Writes the checkpoints of a run as folders. Every rank calls the same methods in one order.

    writer: counts failures and logs, on rank 0. remove_old: is called on rank 0 after each save.
    """

    def __init__(
        self, run: Run, writer: CheckpointWriter, remove_old: Callable[[], object]
    ) -> None:
        self._run = run
        self._writer = writer
        self._remove_old = remove_old
        self._copy = HostCopy()
        self._job: _Job | None = None
        self.no_room = ""  # why the last save was not in the background, though it was to be
        run.is_saving = self.is_writing

    def is_writing(self) -> bool:
        """Return whether this rank's thread is still writing."""
        return self._job is not None and self._job.is_writing()

    def drop(self) -> None:
        """Keep no memory for copies."""
        self._copy.drop()

    def begin(self, best: bool, *, in_background: bool) -> bool:
        """Begin to save; return whether training may go on beside it. `end` has to follow.

        It may not where a rank has no room for a copy, or nothing can be written.
        best: the event says that these weights are the best.
        """
        run = self._run
        start_s = time.monotonic()
        step = run.state.progress.global_step
        path = new_path(run.checkpoint_dir, run.state.run_id, step, FOLDER)
        save = self._writer.new_save(path, step, best, start_s)
        content, parts = run.parts()
        opened = run.ranks.on_main(partial(_open, path, save.replace))
        job = _Job(save, opened.temporary, content, parts, error=opened.error)
        self._job = job
        self._writer.in_flight = save
        self.no_room = ""
        if opened.temporary is None:
            return False
        if in_background:
            in_background = self._take_copies(job)
        run.ranks_are_saving = True
        self._start(job)
        save.thread = job.thread if in_background else None
        save.go_on_s = time.monotonic()
        save.waited_s = save.go_on_s - start_s
        return in_background

    def end(self, *, last_chance: bool = False, goes_on: bool = True) -> bool:
        """Wait until all ranks have written; complete the folder; return whether it is there now.

        A failure of one rank is the failure of the save, and as for a file a warning at first.
        last_chance, goes_on: as of `CheckpointWriter.count`.
        Raises: StorageError on all ranks at the third failure in a row, with `last_chance` at the
        first; any error that is a mistake of ours.
        """
        run = self._run
        job = self._job
        assert job is not None, "no save has begun"
        before_s = time.monotonic()
        with waiting(f"saving {job.save.path.name}"):
            while run.ranks.largest(int(job.is_writing())):
                time.sleep(POLL_S)
        if job.thread is not None:
            join(job.thread)
        if job.save.thread is not None:
            job.save.waited_s += time.monotonic() - before_s
        self._job = None
        self._writer.in_flight = None
        if job.error is not None and is_out_of_memory(job.error):
            self._copy.drop()
        said = run.ranks.all((_portable(job.error, run.ranks.rank), job.shard, job.seconds))
        self._raise_mistakes(job, [error for error, _, _ in said])
        shards = [shard for _, shard, _ in said]
        first_error = next((error for error, _, _ in said if error is not None), None)
        job.seconds = max(seconds for _, _, seconds in said)
        complete = partial(self._complete, job, first_error, shards, last_chance, goes_on)
        return run.ranks.on_main(complete, patient=True)

    def abandon(self) -> None:
        """Leave a save that this rank cannot end together with the others; it was not finished."""
        job = self._job
        self._job = None
        self._writer.in_flight = None
        if job is not None and job.temporary is not None and self._run.ranks.is_main:
            _remove(job.temporary)

    def _take_copies(self, job: _Job) -> bool:
        """Let a job write copies of this rank's rows; return whether all ranks have room for it."""
        rows = [part.tensor for part in job.parts]
        problem = None
        more = self._copy.more_bytes_for(rows)
        if more:
            headroom = self._run.config.training.dynamic_batch_size.memory_headroom
            problem = too_full(torch.device("cpu"), headroom, more) or None
        if problem is None:
            try:
                copies, job.arrived = self._copy.take_rows(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = "out of memory"
        self.no_room = self._run.ranks.first_problem(problem)
        if self.no_room:
            self._copy.drop()
            job.arrived = None
            return False
        from chatgot.checkpointing.shards import Part  # one process alone needs none of it

        pairs = zip(job.parts, copies, strict=True)
        job.parts = [Part(part.name, rows, part.first, part.R) for part, rows in pairs]
        # the next step counts on in the numbers of the optimizer's state
        numbers = ("model_state_dict", "optimizer_state_dict")
        job.content = {**job.content, **{key: copy.deepcopy(job.content[key]) for key in numbers}}
        return True

    def _start(self, job: _Job) -> None:
        """Write this rank's rows in a thread, or at once where the system starts none."""
        mode = mode_of_new_files()  # here: asked by the thread, it would change for a moment
        write = partial(_write, job, self._run.ranks.rank, mode)
        # daemon: a rank that ends because another one is gone does not wait for its file
        thread = threading.Thread(target=write, name="saving", daemon=True)
        try:
            thread.start()
            job.thread = thread
        except (RuntimeError, MemoryError):
            write()

    def _raise_mistakes(self, job: _Job, errors: Sequence[Exception | None]) -> None:
        """Raise what is a mistake of ours on any rank, on all of them."""
        mistakes = [error for error in errors if isinstance(error, _Mistake)]
        if not mistakes:
            return
        if job.error is not None:
            raise job.error
        raise mistakes[0]

    def _complete(
        self,
        job: _Job,
        error: BaseException | None,
        shards: "list[Shard | None]",
        last_chance: bool,
        goes_on: bool,
    ) -> bool:
        """Complete a folder that all ranks have written, or remove it; count how that ended."""
        from chatgot.checkpointing.checkpoint_folder import complete_folder

        save = job.save
        save.error = error
        begun_s = time.monotonic()
        if error is None and job.temporary is not None:
            try:
                written = [shard for shard in shards if shard is not None]
                size = complete_folder(job.temporary, save.path, job.content, written)
                save.is_written = True
                save.megabytes = size / 1e6
            except (OSError, RuntimeError, MemoryError) as raised:
                save.error = raised
        save.cost_s = job.seconds + time.monotonic() - begun_s
        if save.error is not None and job.temporary is not None:
            _remove(job.temporary)
        saved = self._writer.count(save, self._run.config.training, last_chance, goes_on=goes_on)
        if saved:
            self._remove_old()
        return saved


class _Mistake(Exception):
    """A mistake of ours on a rank, in words that can be sent."""


def _open(path: Path, replace: bool) -> _Opened:
    """Make the folder that the ranks write into, unless a whole one is there already."""
    from chatgot.checkpointing.checkpoint_folder import begin_folder

    if not replace and is_whole(path):
        return _Opened()
    try:
        return _Opened(begin_folder(path))
    except OSError as error:
        return _Opened(error=OSError(error.errno, error.strerror, str(path)))


def _write(job: _Job, rank: int, mode: int) -> None:
    """Write a rank's rows, on rank 0 the plain values too; note in the job how that ended."""
    from chatgot.checkpointing.checkpoint_folder import write_plain
    from chatgot.checkpointing.shards import write_shard

    assert job.temporary is not None
    try:
        if job.arrived is not None:
            job.arrived()
        job.shard = write_shard(job.temporary, rank, job.parts, mode)
        if rank == 0:
            write_plain(job.temporary, job.content, mode, unseen)
    except BaseException as error:  # noqa: BLE001 whoever waits for the save raises it
        job.error = error
    job.seconds = time.monotonic() - job.save.start_s


def _portable(error: BaseException | None, rank: int) -> Exception | None:
    """Return an error that can be sent; it says on which rank it was, if that is not rank 0."""
    if error is None:
        return None
    where = f" (rank {rank})" if rank else ""
    if isinstance(error, OSError):
        if rank and error.errno == errno.ENOENT:
            where = f" (rank {rank}: all machines must share this folder)"
        return OSError(error.errno, f"{error.strerror or error}{where}")
    if is_out_of_memory(error):
        return MemoryError(f"out of memory{where}")
    return _Mistake(f"rank {rank}: {error!r}")


def _remove(temporary: Path) -> None:
    """Remove an unfinished folder; best effort: the next start looks for it again."""
    from chatgot.checkpointing.checkpoint_folder import remove_folder

    with suppress(OSError):
        remove_folder(temporary)
