"""What a signal does to a process: before training it ends, in training it is asked to stop, and insisting ends it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatgot.stopping import StopRequest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys, time
from chatgot.stopping import StopRequest
stop = StopRequest()
stop.install()
stop.training = sys.argv[1] == "training"
try:
    print("ready", flush=True)
    deadline = time.monotonic() + 20
    while not stop.requested() and time.monotonic() < deadline:
        time.sleep(0.005)
    print(stop.exit_code, stop.signal_name, flush=True)
    while time.monotonic() < deadline and sys.argv[2:] == ["hang"]:
        time.sleep(0.005)
    sys.exit(stop.exit_code)
finally:
    print("cleaned up", flush=True)
"""
SIGNALS = [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Child:
    """A process that waits for signals, ready when made."""

    def __init__(self, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        command = [*prefix, sys.executable, "-c", SCRIPT, *arguments]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        heard = {
            "preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
        }  # also where the tests ignore it
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes, **heard)
        assert self.process.stdout.readline() == "ready\n"

    def send(self, name: str) -> None:
        self.process.send_signal(getattr(signal, name))

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what it still said. Nothing may stand on stderr."""
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


@pytest.mark.parametrize(("first", "second", "code"), [("SIGINT", "SIGINT", 130), ("SIGTERM", "SIGINT", 130),
                                                       ("SIGINT", "SIGTERM", 143)])  # fmt: skip
def test_the_second_signal_ends_the_process_at_once(first, second, code):
    child = Child("training", "hang")
    child.send(first)
    assert child.line().endswith(first)
    child.send(second)
    assert child.end() == (code, "")  # not even cleaned up


def test_a_hangup_that_nohup_ignores_stays_ignored_and_the_other_signals_work():
    child = Child("training", prefix=("nohup",))
    child.send("SIGHUP")
    child.send("SIGTERM")
    assert child.end() == (143, "143 SIGTERM\ncleaned up")


def test_without_a_signal_nothing_is_requested():
    stop = StopRequest()
    assert not stop.requested()
    assert (stop.exit_code, stop.signal_name) == (None, "")


def test_importing_and_making_a_request_installs_nothing():
    before = [signal.getsignal(getattr(signal, name)) for name, _ in SIGNALS]
    StopRequest()
    assert [signal.getsignal(getattr(signal, name)) for name, _ in SIGNALS] == before


def test_the_handlers_are_there_before_torch_is_imported():
    script = ROOT / "scripts" / "train_with_samples.py"
    code = f"""
import os, runpy, signal, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Watch())
sys.argv = [{str(script)!r}, "--config", "no_such.yaml"]
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
