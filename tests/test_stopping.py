"""A signal ends the process or, in training, asks the run to stop; a second one ends that, too."""

import signal
import subprocess
import sys
import threading
import time

import harness
import pytest
from child_environment import child_environment

from chatgot import stopping
from chatgot.stopping import NOTICES, StopRequest

PROGRAMS = harness.ROOT / "tests" / "programs"
SIGNALS = [
    ("SIGINT", 130),
    ("SIGTERM", 143),
    ("SIGHUP", 143),
    *((name, 128 + getattr(signal, name)) for name in NOTICES if hasattr(signal, name)),
]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Child:
    """A process that waits for signals, ready as soon as it is created."""

    def __init__(self, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        program = PROGRAMS / "wait_for_signal.py"
        command = [*prefix, sys.executable, str(program), *arguments]
        self.process = subprocess.Popen(
            command,
            env=child_environment(harness.ROOT),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # SIGHUP arrives even where the tests themselves ignore it
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        assert self.process.stdout.readline() == "ready\n"

    def send(self, name: str) -> None:
        self.process.send_signal(getattr(signal, name))

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the rest of stdout."""
        out, err = self.process.communicate(timeout=20)
        assert err == ""
        return self.process.returncode, out.strip()


@pytest.mark.parametrize(("name", "code"), SIGNALS)
def test_the_first_signal_in_training_only_asks_to_stop(name, code):
    child = Child("training")
    child.send(name)
    assert child.end() == (code, f"{code} {name}\ncleaned up")


@pytest.mark.parametrize(("name", "code"), SIGNALS)
def test_a_signal_before_training_ends_the_process_by_system_exit(name, code):
    child = Child("preparing")
    child.send(name)
    assert child.end() == (code, "cleaned up")


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("SIGINT", "SIGINT", 130),
        ("SIGTERM", "SIGINT", 130),
        ("SIGINT", "SIGTERM", 143),
        ("SIGUSR1", "SIGTERM", 143),
        ("SIGXCPU", "SIGINT", 130),
    ],
)
def test_the_second_signal_ends_the_process_at_once(first, second, code):
    child = Child("training", "hang")
    child.send(first)
    assert child.line().endswith(first)
    child.send(second)
    assert child.end() == (code, "")  # without any clean-up


def test_a_hangup_that_nohup_ignores_stays_ignored():
    child = Child("training", prefix=("nohup",))
    child.send("SIGHUP")
    child.send("SIGTERM")
    assert child.end() == (143, "143 SIGTERM\ncleaned up")


@pytest.mark.parametrize("name", NOTICES)
def test_a_notice_that_is_ignored_at_the_start_stays_ignored(name):
    """A batch script that handles it writes `trap '' USR1` before it starts the training."""
    word = name.removeprefix("SIG")
    child = Child("training", prefix=("sh", "-c", f"trap '' {word}; exec \"$@\"", "sh"))
    child.send(name)
    child.send("SIGTERM")
    assert child.end() == (143, "143 SIGTERM\ncleaned up")


def test_the_cpu_limit_that_is_exceeded_again_each_second_asks_only_once():
    child = Child("training", "linger")
    child.send("SIGXCPU")
    code = 128 + signal.SIGXCPU
    assert child.line() == f"{code} SIGXCPU"
    child.send("SIGXCPU")
    assert child.end() == (code, "cleaned up")


def test_a_process_at_its_cpu_limit_is_asked_before_it_is_killed():
    """`ulimit -t` sets both limits to 2 s: at the second one the kernel kills without asking."""
    child = Child("training", "busy", prefix=("sh", "-c", 'ulimit -t 2; exec "$@"', "sh"))
    code = 128 + signal.SIGXCPU
    assert child.end() == (code, f"{code} SIGXCPU\ncleaned up")


def test_a_quit_still_ends_the_process_at_once():
    child = Child("training", prefix=("sh", "-c", 'ulimit -c 0; exec "$@"', "sh"))
    child.send("SIGQUIT")
    assert child.end() == (-signal.SIGQUIT, "")


def test_no_stop_is_requested_without_a_signal():
    stop = StopRequest()
    assert not stop.requested()
    assert (stop.exit_code, stop.signal_name) == (None, "")


def test_importing_and_making_a_request_install_no_handler():
    before = [signal.getsignal(getattr(signal, name)) for name, _ in SIGNALS]
    StopRequest()
    assert [signal.getsignal(getattr(signal, name)) for name, _ in SIGNALS] == before


def test_the_handlers_are_installed_before_torch_is_imported(tmp_path):
    config = harness.write_config(tmp_path)
    program = str(PROGRAMS / "signal_at_torch.py")
    done = subprocess.run(
        [sys.executable, program, str(harness.SCRIPT), "--config", str(config)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_in_another_thread_installs_no_handlers():
    """Python refuses handlers there; a notebook or a web page may train in such a thread."""
    before = signal.getsignal(signal.SIGTERM)
    errors: list[BaseException] = []

    def install() -> None:
        try:
            StopRequest().install()
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert not errors
    assert signal.getsignal(signal.SIGTERM) == before


# A rank of a group


class Ended(Exception):
    """Stands for the end of the process at once."""


@pytest.fixture
def rank(monkeypatch) -> StopRequest:
    """The request of a rank that trains in a group."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(stopping.os, "_exit", end)
    request = StopRequest()
    request.waits_for_agreement = True
    request.training = True
    return request


def get(request: StopRequest, name: str) -> None:
    request._on_signal(getattr(signal, name), None)


def test_a_rank_stops_only_when_all_ranks_know(rank):
    get(rank, "SIGTERM")
    assert rank.exit_code == 143
    assert not rank.requested()
    rank.agreed(143, 0)
    assert rank.requested()
    assert rank.signal_name == "SIGTERM"


@pytest.mark.parametrize(("code", "name"), [(143, "SIGTERM"), (130, "SIGINT")])
def test_a_rank_takes_the_signal_of_another_one(rank, code, name):
    rank.agreed(code, 3)
    assert rank.requested()
    assert (rank.exit_code, rank.signal_name) == (code, f"{name} to rank 3")


def test_a_hangup_to_this_rank_and_another_keeps_its_name(rank):
    get(rank, "SIGHUP")
    rank.agreed(143, 3)
    assert (rank.exit_code, rank.signal_name) == (143, "SIGHUP")


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_second_signal_at_once_is_the_launchers(rank, second):
    get(rank, "SIGTERM")
    get(rank, second)
    assert rank.exit_code == 143


def test_a_second_signal_later_ends_a_rank_that_waits_for_others(rank, monkeypatch):
    get(rank, "SIGTERM")
    later_s = time.monotonic() + stopping.TOLD_TWICE_S + 1
    monkeypatch.setattr(stopping.time, "monotonic", lambda: later_s)
    with pytest.raises(Ended):
        get(rank, "SIGINT")


@pytest.mark.parametrize("own", [True, False])
def test_no_signal_ends_a_rank_whose_group_is_saving(rank, monkeypatch, own):
    """torchrun signals the ranks that are left, when the first one has saved and ended."""
    if own:
        get(rank, "SIGTERM")
    rank.agreed(143, 0)
    later_s = time.monotonic() + 60
    monkeypatch.setattr(stopping.time, "monotonic", lambda: later_s)
    get(rank, "SIGTERM")
    get(rank, "SIGINT")
    assert rank.exit_code == 143
