"""The faults, installed into a forked child from outside: the product knows nothing of them.

Each hook takes a Target: the script's namespace and the shared bytes of the phase. Each fault is
written to fired.txt before it happens, so that a test can assert that it did happen.

A save has two ways: while training waits, or by a thread beside the next steps. "In a save" is then
in that thread, and in what the training thread does when the thread has ended.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import itertools
import json
import math
import mmap
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fault_server import FIRED, of_rank

from chatgot.checkpointing import checkpoint_file, host_copy, run_files, saver, shards
from chatgot.numerics import accumulation
from chatgot.run import resuming, run_state
from chatgot.training import evaluation, saving, step

# the file-system calls of a save: with and without an audit event
AUDITED = {"open", "os.rename", "os.remove", "os.scandir", "os.listdir", "os.mkdir", "os.chmod"}
NOT_AUDITED = ("fsync", "fchmod", "close", "fstat", "lstat")
PHASES = ["start", "step", "save", "evaluate", "sample", "log"]
FUNCTIONS = {
    "save": "Saver.save",
    "evaluate": "evaluate_and_log",
    "sample": "show_samples",
    "log": "write_row",
    "step": "compute_gradients",
}


@dataclass
class Target:
    """The script in this child."""

    namespace: dict[str, Any]
    heartbeat: mmap.mmap
    background: bool  # checkpoints are written beside the next steps


def fire(what: str, open_file: Any = os.open) -> None:
    """Record that a fault happens now, unbuffered, so that the record survives a kill."""
    path = of_rank(FIRED, own_rank())
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{what}\n".encode())
    os.close(descriptor)


def own_rank() -> str:
    """Return the number of this rank of a group; "0": it may be alone."""
    return os.environ.get("RANK", "0")


def numbers() -> Iterator[int]:
    """Return 1, 2, 3 and so on, to count calls."""
    return itertools.count(1)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around(target: Target, phase: str, before: Any = None, after: Any = None) -> None:
    """Call `before(n)` before and `after(n)` after the script's n-th call (from 1) of a phase.

    `after(n)` is called even when the phase raises.
    """
    name = FUNCTIONS[phase]
    real = function_of(target, name)
    count = numbers()

    @functools.wraps(real)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        n = next(count)
        if before:
            before(n)
        try:
            return real(*args, **keywords)
        finally:
            if after:
                after(n)

    replace(target, name, wrapped)


def function_of(target: Target, name: str) -> Any:
    """Return a function of the script, or a method of a class that it uses."""
    holder, _, method = name.rpartition(".")
    return getattr(target.namespace[holder], method) if holder else target.namespace[name]


def replace(target: Target, name: str, function: Any) -> None:
    """Replace a function of the script, or a method of a class that it uses."""
    holder, _, method = name.rpartition(".")
    if holder:
        setattr(target.namespace[holder], method, function)
    else:
        target.namespace[name] = function


def around_write(before: Any = None, after: Any = None) -> None:
    """Call `before(n)` before and `after(n)` after a checkpoint is written, by whoever writes it.

    It is the n-th one of the process, from 1.
    """
    real = saver.save_checkpoint
    count = numbers()

    @functools.wraps(real)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        n = next(count)
        if before:
            before(n)
        try:
            return real(*args, **keywords)
        finally:
            if after:
                after(n)

    saver.save_checkpoint = wrapped


def around_calls(module: Any, name: str, before: Any = None, after: Any = None) -> None:
    """Call `before(n)` before and `after(n)` after the n-th call of a module's function."""
    real = getattr(module, name)
    count = numbers()

    @functools.wraps(real)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        n = next(count)
        if before:
            before(n)
        result = real(*args, **keywords)
        if after:
            after(n)
        return result

    setattr(module, name, wrapped)


def around_retention(before: Any = None, after: Any = None) -> None:
    """As `around_calls`, of the removal of old files, the last act of the n-th save."""
    around_calls(saving, "cleanup_old_checkpoints", before, after)


def in_writes(saves: list[int]) -> Any:
    """Return a function that says whether its thread is writing one of these saves."""
    here = threading.local()

    def before(n: int) -> None:
        here.is_in = n in saves

    def after(n: int) -> None:
        here.is_in = False

    around_write(before, after)
    return lambda: getattr(here, "is_in", False)


class LimitedFile:
    """A file that records `what` and calls `act` instead of taking more than `byte` bytes."""

    def __init__(self, file: Any, byte: int, what: str, act: Any) -> None:
        self._file = file
        self._byte = byte
        self._what = what
        self._act = act
        self._is_full = False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        room = self._byte - self._file.tell()
        if len(view) > room:
            self._file.write(view[:room])
            self._file.flush()
            if not self._is_full:
                fire(self._what)
            self._is_full = True
            self._act()
        return self._file.write(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def limit_files(byte: int, saves: list[int], what: str, act: Any) -> None:
    """Call `act` when a file of these saves grows beyond `byte` bytes.

    The kernel's limit would be one for all files, also for those that the steps write meanwhile.
    """
    is_limited = in_writes(saves)
    real = checkpoint_file.atomic_file

    @contextlib.contextmanager
    def limited(path: Path, *rest: Any) -> Any:
        with real(path, *rest) as file:
            yield LimitedFile(file, byte, what, act) if is_limited() else file

    checkpoint_file.atomic_file = limited


def heartbeat(target: Target) -> None:
    """Keep the current phase of the script in the shared byte; in the next one, if it writes."""

    def writing(n: int) -> None:
        target.heartbeat[1] = 1

    def written(n: int) -> None:
        target.heartbeat[1] = 0

    around_write(writing, written)
    for phase in FUNCTIONS:
        stack: list[int] = []

        def enter(n: int, phase: str = phase, stack: list[int] = stack) -> None:
            stack.append(target.heartbeat[0])
            target.heartbeat[0] = PHASES.index(phase)

        def leave(n: int, stack: list[int] = stack) -> None:
            target.heartbeat[0] = stack.pop()

        around(target, phase, enter, leave)


def steps(target: Target) -> None:
    """Record each update in steps.jsonl and each save in promised.txt.

    An update's record: its step, a hash of the batch's places in the text, loss, gradient norm.
    A save's record is its step, written when it counts as saved: from then on it must not be lost.
    Of a group of ranks, rank 0 records them.
    """
    if own_rank() != "0":
        return
    real_update = target.namespace["update_weights"]

    def update_weights(run: Any, loss: Any) -> Any:
        progress = run.state.progress
        position = progress.position
        result = real_update(run, loss)
        starts = run.train_windows.starts(position, run.config.training.sequences_per_step)
        places = hashlib.sha256(repr(list(map(int, starts))).encode()).hexdigest()[:16]
        loss_hex = float(progress.train_loss).hex()
        record = [progress.global_step, places, loss_hex, float(progress.grad_norm).hex()]
        with open("steps.jsonl", "a") as file:  # noqa: PTH123
            file.write(json.dumps(record) + "\n")
        return result

    real_count = saver.CheckpointWriter.count

    def count(writer: Any, save: Any, *args: Any, **keywords: Any) -> bool:
        saved = real_count(writer, save, *args, **keywords)
        if saved:
            with open("promised.txt", "a") as file:  # noqa: PTH123
                file.write(f"{save.step}\n")
        return saved

    replace(target, "update_weights", update_weights)
    saver.CheckpointWriter.count = count


# Death


def die_at_byte(target: Target, save: int, byte: int) -> None:
    """Let the kernel kill the process when a save writes more than `byte` bytes to a file.

    In the background, the thread kills it.
    """
    if target.background:
        limit_files(byte, [save], f"dies at byte {byte}", kill_itself)
        return

    def before(n: int) -> None:
        if n == save:
            fire(f"dies at byte {byte}")
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (byte, resource.RLIM_INFINITY))

    around(target, "save", before)


def watch_calls(target: Target, save: int, act: Any) -> None:
    """Call `act(n, name)` before each file-system call (n from 1) of the `save`-th save."""
    here = threading.local()  # other threads write whenever they like
    count = numbers()

    def called(name: str) -> None:
        if getattr(here, "is_watched", False):
            here.is_watched = False  # do not watch the calls of `act` itself
            act(next(count), name)
            here.is_watched = True

    def audit(event: str, args: tuple) -> None:
        if event in AUDITED:
            called(event)

    sys.addaudithook(audit)
    for name in NOT_AUDITED:
        real = getattr(os, name)

        def wrapped(*args: Any, real: Any = real, name: str = name, **keywords: Any) -> Any:
            called(name)
            return real(*args, **keywords)

        setattr(os, name, wrapped)

    def before(n: int) -> None:
        here.is_watched = n == save

    def written(n: int) -> None:
        here.is_watched = False

    def after(n: int) -> None:
        if n == save:
            called("end")
        here.is_watched = False

    if target.background:
        around_write(before, written)
        around_retention(before, after)
    else:
        around(target, "save", before, after)


def count_calls(target: Target, save: int) -> None:
    """Write the name of each file-system call of a save to fired.txt."""
    watch_calls(target, save, lambda n, name: fire(name))


def die_at_call(target: Target, save: int, call: int) -> None:
    """Kill the process before the `call`-th file-system call of a save.

    One "call" beyond the last is the end of the save.
    """

    def act(n: int, name: str) -> None:
        if n == call:
            fire(f"dies before {name}")
            kill_itself()

    watch_calls(target, save, act)


def die_in_phase(target: Target, phase: str, nth: int, how: str) -> None:
    """End the process, not by SIGKILL, when a phase begins for the `nth` time."""

    def before(n: int) -> None:
        if n == nth:
            fire(how)
            if how == "segmentation fault":
                ctypes.string_at(0)
            else:  # from a thread, while the main thread goes on
                threading.Thread(target=lambda: os._exit(77)).start()
                time.sleep(60)

    if phase == "save":
        around_write(before)
    else:
        around(target, phase, before)


def inside(target: Target, phase: str, nth: int, act: Any) -> None:
    """Call `act()` in the middle of the `nth` sample, or of an evaluation's `nth` pass."""
    place = {"sample": target.namespace, "evaluate": vars(evaluation)}[phase]
    name = {"sample": "continue_texts", "evaluate": "evaluate"}[phase]
    real = place[name]
    count = numbers()

    def acting(items: Any, here: bool) -> Any:
        for i, item in enumerate(items):
            if here and i == 1:
                act()
            yield item

    def continue_texts(*args: Any, **keywords: Any) -> Any:
        yield from acting(real(*args, **keywords), next(count) == nth)

    def evaluate(model: Any, batches: Any, *rest: Any) -> Any:
        return real(model, acting(batches, next(count) == nth), *rest)

    place[name] = continue_texts if phase == "sample" else evaluate


def signals(target: Target, phase: str, nth: int, names: list[str], gap_s: float = 0.0) -> None:
    """Send signals to this process in the middle of the `nth` step, save, sample or evaluation.

    Or before the first step.
    """

    def send(n: int) -> None:
        if n == nth:
            for i, name in enumerate(names):
                fire(name)
                os.kill(os.getpid(), getattr(signal, name))
                time.sleep(gap_s)
                if threading.current_thread() is not threading.main_thread():
                    wait_for_main_thread(is_first=i == 0)

    def wait_for_main_thread(is_first: bool) -> None:
        """Wait until it has seen the first signal; after the second, until the process ends."""
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s:
            if is_first and target.namespace["STOP"].requested():
                return
            time.sleep(0.001)

    if phase == "before the first step":
        before_assembly(target, lambda: send(nth))
    elif phase == "save":  # the file is written but not synced
        watch_calls(target, nth, lambda n, name: send(nth) if name == "fsync" and n < 10 else None)
    elif phase == "step":
        around(target, phase, send)
    else:
        inside(target, phase, nth, lambda: send(nth))


def slow_samples(target: Target, nth: int, seconds: float) -> None:
    """Let each token of the `nth` samples take `seconds` longer."""
    real = target.namespace["continue_texts"]
    count = numbers()

    def continue_texts(*args: Any, **keywords: Any) -> Any:
        is_slow = next(count) == nth
        if is_slow:
            fire("slow samples")
        for texts in real(*args, **keywords):
            if is_slow:
                time.sleep(seconds)
            yield texts

    target.namespace["continue_texts"] = continue_texts


def before_assembly(target: Target, act: Any) -> None:
    """Call `act()` before the run is built."""
    real = target.namespace["assemble_together"]

    def assemble_together(*args: Any) -> Any:
        act()
        return real(*args)

    target.namespace["assemble_together"] = assemble_together


def chain(target: Target, saves: int) -> None:
    """Kill the process after `saves` saves."""

    def after(n: int) -> None:
        if n == saves:
            fire("dies after a save")
            kill_itself()

    around_retention(after=after)


# One rank of a group: each hook is installed on that rank alone


def strike(target: Target, phase: str, nth: int, name: str) -> None:
    """Send a signal to this rank when a phase begins for the `nth` time, in its first start."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return

    def send(n: int) -> None:
        if n == nth:
            fire(name)
            os.kill(os.getpid(), getattr(signal, name))

    if phase == "start":
        before_assembly(target, lambda: send(nth))
        return
    around(target, phase, send)


def die_in_first_start(target: Target, save: int, byte: int) -> None:
    """As `die_at_byte`, in the group's first start alone."""
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        die_at_byte(target, save, byte)


def around_shard(before: Any = None, after: Any = None) -> None:
    """As `around_calls`, of the writing of this rank's part of a folder."""
    around_calls(shards, "write_shard", before, after)


def no_room_for_shard(target: Target, saves: list[int]) -> None:
    """Let the disk refuse this rank's part of a folder in these saves."""

    def before(n: int) -> None:
        if n in saves:
            fire("no room for a shard")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    around_shard(before)


def die_in_folder(target: Target, save: int, whole: bool) -> None:
    """Kill this rank in a save as a folder, in its first start: before its part or after it."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return

    def die(n: int) -> None:
        if n == save:
            fire("dies in a folder")
            kill_itself()

    around_shard(None if whole else die, die if whole else None)


def around_gradients(change: Any) -> None:
    """Let `change(n, real, *args)` compute this rank's share of the gradients, n from 1."""
    real = step.add_gradients
    count = numbers()

    def add_gradients(*args: Any) -> Any:
        return change(next(count), real, *args)

    step.add_gradients = add_gradients


def nan_loss(target: Target, attempts: list[int]) -> None:
    """Make the losses of this rank's micro-batches NaN in some attempts at steps."""

    def change(n: int, real: Any, *args: Any) -> Any:
        if n not in attempts:
            return real(*args)
        fire("NaN")
        model, windows, starts, size, key, scale, *others = args

        def scale_to_nan(loss: Any) -> Any:
            return scale(loss * math.nan)

        return real(model, windows, starts, size, key, scale_to_nan, *others) * math.nan

    around_gradients(change)


def no_memory(target: Target, attempt: int) -> None:
    """Let this rank run out of memory in one attempt at a step, after its share is computed."""

    def change(n: int, real: Any, *args: Any) -> Any:
        total = real(*args)
        if n == attempt:
            fire("out of memory")
            raise torch.OutOfMemoryError("a made-up one")
        return total

    around_gradients(change)


def no_memory_in_update(target: Target, nth: int) -> None:
    """Let this rank run out of memory in the `nth` update, before a weight changes."""
    real = target.namespace["update_weights"]
    count = numbers()

    def update_weights(run: Any, loss: Any) -> Any:
        if next(count) == nth:
            fire("out of memory in the update")

            def fail(*args: Any) -> None:
                raise torch.OutOfMemoryError("a made-up one")

            run.scaler.step = fail
        return real(run, loss)

    replace(target, "update_weights", update_weights)


def no_memory_in_evaluation(target: Target, nth: int) -> None:
    """Let this rank run out of memory before the first batch of its `nth` pass."""
    real = evaluation.evaluate
    count = numbers()

    def failing(batches: Any) -> Any:
        for _ in batches:
            fire("out of memory in an evaluation")
            raise torch.OutOfMemoryError("a made-up one")
        yield

    def evaluate(model: Any, batches: Any, *rest: Any) -> Any:
        return real(model, failing(batches) if next(count) == nth else batches, *rest)

    evaluation.evaluate = evaluate


def know_the_end(target: Target) -> None:
    """Write what this rank ends with: its counters, and a hash of its weights."""
    real = target.namespace["train"]

    def train(run: Any, *rest: Any) -> None:
        try:
            real(run, *rest)
        finally:
            weights = "parts"  # what ranks have differs: their checkpoint is compared
            if not run.ranks.is_sharded:
                digest = hashlib.sha256()
                for tensor in run.model.state_dict().values():
                    digest.update(tensor.numpy().tobytes())
                weights = digest.hexdigest()
            end = {"weights": weights, "state": run.state.model_dump(mode="json")}
            Path(of_rank("end.json", own_rank())).write_text(json.dumps(end))

    target.namespace["train"] = train


def mutant_own_signals(target: Target) -> None:
    """Let each rank obey its own signals at once, without telling the others."""
    target.namespace["STOP"].requested = lambda: target.namespace["STOP"].exit_code is not None


# Storage


def file_limit(target: Target, byte: int, saves: list[int]) -> None:
    """Let no file grow beyond `byte` bytes during these saves.

    The kernel cuts the write short and refuses the next one; in the background, the file does.
    """
    if target.background:

        def act() -> None:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

        limit_files(byte, saves, f"refused at {byte} bytes", act)
        return
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = saver.save_checkpoint
    count = numbers()

    def save_checkpoint(*args: Any, **keywords: Any) -> bool:
        if next(count) not in saves:
            return real(*args, **keywords)
        resource.setrlimit(resource.RLIMIT_FSIZE, (byte, no_limit[1]))
        try:
            return real(*args, **keywords)
        except OSError:
            resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
            fire(f"refused at {byte} bytes")
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)

    saver.save_checkpoint = save_checkpoint


def failing_call(target: Target, call: str, number: str, saves: list[int]) -> None:
    """Make a call of the os module fail with an errno during these saves."""
    is_failing = in_writes(saves)
    real = getattr(os, call)

    def wrapped(*args: Any, **keywords: Any) -> Any:
        if is_failing():
            fire(f"{call} fails with {number}")
            code = getattr(errno, number)
            raise OSError(code, os.strerror(code))
        return real(*args, **keywords)

    setattr(os, call, wrapped)


def move_folder(target: Target, save: int, back_at: int | None) -> None:
    """Move the folder of checkpoints away before a save, and back before a later one."""

    def before(n: int) -> None:
        if n == save:
            Path("checkpoints").rename("moved")
            fire("moved")
        if n == back_at:
            Path("moved").rename("checkpoints")

    around_write(before)


def raising(target: Target, phase: str, nth: int, kind: str) -> None:
    """Raise in the middle of a sample, or of the writing of a checkpoint."""
    error = {"ValueError": ValueError, "MemoryError": MemoryError}[kind]

    def act() -> None:
        fire(f"{kind} in a {phase}")
        # As careless code might; but beside a step it would change that step's noise
        if threading.current_thread() is threading.main_thread():
            torch.rand(7)
        raise error("a made-up defect")

    if phase == "sample":
        inside(target, phase, nth, act)
        return
    assert phase == "save"
    real = torch.save
    count = numbers()

    def save(content: Any, file: Any) -> None:
        real(content, file)
        if next(count) == nth:
            act()

    torch.save = save


def slow_thread(target: Target, seconds: float) -> None:
    """Let the thread that writes begin late, so that a step is done before its first byte."""

    def before(n: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(seconds)

    around_write(before)


def slow_disk(target: Target, seconds: float) -> None:
    """Make each fsync take `seconds` longer."""
    real = os.fsync

    def wrapped(descriptor: int) -> None:
        time.sleep(seconds)
        real(descriptor)

    os.fsync = wrapped
    fire("slow disk")


def turn_the_clock(target: Target, seconds: float, at_step: int) -> None:
    """Turn the wall clock back by `seconds` before a step; negative: forward.

    at_step: 0 means from the start.
    """
    real_time = time.time
    real_strftime = time.strftime
    shift = [0.0]
    time.time = lambda: real_time() - shift[0]
    time.strftime = lambda form, at=None: real_strftime(form, at or time.localtime(time.time()))

    def before(n: int) -> None:
        if n >= at_step and not shift[0]:
            shift[0] = seconds
            fire("clock turned")

    if at_step == 0:
        before(0)
    around(target, "step", before)


def mutant_wall_clock(target: Target) -> None:
    """Measure intervals with the wall clock."""
    time.monotonic = lambda: time.time()


def no_setting_aside(target: Target) -> None:
    """Leave newer files in place on resume, as if they had been written later."""
    resuming.set_aside = lambda *args: None


# Mutants: broken twins of the code that the trials guard


def mutant_naive_save(target: Target) -> None:
    """Write straight to the final name."""

    @contextlib.contextmanager
    def straight(path: Path, *rest: Any) -> Any:
        with path.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    checkpoint_file.atomic_file = straight


def mutant_hasty(target: Target) -> None:
    """Take a checkpoint for saved while its thread still writes it."""
    saver.CheckpointWriter.is_writing = lambda writer: False
    saver.join = lambda thread: None


def mutant_no_copy(target: Target) -> None:
    """Let the thread write the tensors that the next steps change."""
    host_copy.HostCopy.take = lambda copies, state: (state, lambda: None)


def mutant_no_rng(target: Target) -> None:
    """Neither seed the micro-batches nor restore the generators."""
    accumulation.seed_generators = lambda *args: None
    run_state.set_generator_states = lambda states: None


def mutant_no_position(target: Target) -> None:
    """Skip a group of sequences on resume."""
    real = resuming.restore_state

    def restore_state(stored: dict[str, Any], state: Any, *rest: Any) -> None:
        real(stored, state, *rest)
        state.progress.position += 1

    resuming.restore_state = restore_state


def mutant_no_optimizer(target: Target) -> None:
    """Do not restore the optimizer's state on resume."""
    real = resuming.restore_state

    def restore_state(
        stored: dict[str, Any], state: Any, model: Any, optimizer: Any, scaler: Any
    ) -> None:
        empty = stored["optimizer_state_dict"] | {"state": {}}
        real(stored | {"optimizer_state_dict": empty}, state, model, optimizer, scaler)

    resuming.restore_state = restore_state


def mutant_no_teaching(target: Target) -> None:
    """Learn from the text alone after a resume."""
    real = target.namespace["resume"]

    def resume(run: Any, *rest: Any) -> None:
        real(run, *rest)
        run.teaching = None

    target.namespace["resume"] = resume


def mutant_counts_damaged(target: Target) -> None:
    """Let retention count any file with the right name."""
    run_files.is_whole = lambda path: path.is_file()


def mutant_forgetful(target: Target) -> None:
    """Remove all older files before each save."""

    def before(n: int) -> None:
        for path in Path("checkpoints").glob("*.pt"):
            path.unlink()

    around(target, "save", before)


def mutant_deaf(target: Target) -> None:
    """End the run at a signal without saving."""
    real = target.namespace["train"]

    def train(*args: Any) -> None:
        target.namespace["STOP"].training = False
        real(*args)

    target.namespace["train"] = train
