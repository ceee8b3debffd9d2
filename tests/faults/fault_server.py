"""Run the script a thousand times: a process that has imported everything forks for each trial.

The program reads one request a line, forks, waits and answers; `FaultServer` is its client. So a
trial costs only its steps, not the seconds of the imports. The process itself computes nothing,
or autograd would not work in its forks.
"""

import contextlib
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child_environment import child_environment

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
SCRIPT = ROOT / "scripts" / "train_with_samples.py"
# files in the trial's folder: the faults that happened, and the output of the script
FIRED = "fired.txt"
SAID = "said.txt"


def of_rank(name: str, rank: str) -> str:
    """Return the name of such a file of one rank of a group; rank 0's is that of a run alone."""
    return name if rank == "0" else name.replace(".", f"_rank{rank}.")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    exit_code: int  # minus the signal's number if a signal killed it
    phase: str  # of the script when it was killed from outside or ended
    wall_s: float
    said: str
    fired: list[str]  # one line for each fault that happened


class FaultServer:
    """Forks the script on demand, with faults installed."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve())]
        # NVML: asking whether there is a card must not start CUDA, or no fork could use it
        environment = child_environment(
            ROOT, TESTS, OMP_NUM_THREADS="1", PYTORCH_NVML_BASED_CUDA_CHECK="1"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def run(
        self,
        folder: Path,
        *arguments: str,
        hooks: list | None = None,
        kill_after_s: float | None = None,
        environment: dict[str, str] | None = None,
    ) -> Outcome:
        """Run the script in `folder`; a hook is (name in fault_hooks, keyword arguments).

        environment: variables that the child has besides; RANK makes it a rank of a group.
        """
        rank = (environment or {}).get("RANK", "0")
        fired_path = folder / of_rank(FIRED, rank)
        said_path = folder / of_rank(SAID, rank)
        for path in (fired_path, said_path):
            path.unlink(missing_ok=True)
        request = {
            "folder": str(folder),
            "arguments": arguments,
            "hooks": hooks or [],
            "kill_after_s": kill_after_s,
            "environment": environment or {},
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the fault server has ended: its stderr says why")
        answer = json.loads(line)
        fired = text_of(fired_path).splitlines()
        return Outcome(**answer, said=text_of(said_path), fired=fired)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def text_of(path: Path) -> str:
    """Return a file's text, or "" where a child was killed before it wrote the file."""
    return path.read_text(errors="replace") if path.exists() else ""


def serve() -> None:
    """Answer requests until the input ends."""
    import fault_hooks
    import torch

    # imported here, so that no child has to import it
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    from chatgot.distributed import group  # noqa: F401
    from chatgot.run import sharding  # noqa: F401

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    code = compile(SCRIPT.read_text(encoding="utf-8"), str(SCRIPT), "exec")
    exec(code, {"__name__": "imported", "__file__": str(SCRIPT)})  # for the imports of the script
    heartbeat = mmap.mmap(-1, 2)  # shared with the child: its phase, and whether it writes a file
    for line in sys.stdin:
        request = json.loads(line)
        heartbeat[:] = bytes(2)
        begun = time.perf_counter()
        child = fork()
        if child == 0:
            os._exit(run_child(request, code, SCRIPT, heartbeat))
        phase, status = wait(child, request["kill_after_s"], begun, heartbeat)
        writing = heartbeat[1] == 1
        answer = {
            "exit_code": os.waitstatus_to_exitcode(status),
            "phase": "save" if writing else fault_hooks.PHASES[phase],
        }
        print(json.dumps(answer | {"wall_s": time.perf_counter() - begun}), flush=True)


def fork() -> int:
    """Fork, and return what os.fork does; each child starts CUDA by itself.

    Raises: RuntimeError if CUDA has started here: no child could use it.
    """
    import torch

    if torch.cuda.is_initialized():
        raise RuntimeError("CUDA has started in the fault server: what computed there?")
    return os.fork()


def wait(
    child: int, kill_after_s: float | None, begun: float, heartbeat: mmap.mmap
) -> tuple[int, int]:
    """Wait for the child's end; or stop it after a time, read its phase, and kill it."""
    if kill_after_s is None:
        _, status = os.waitpid(child, 0)
        return heartbeat[0], status
    while time.perf_counter() - begun < kill_after_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return heartbeat[0], status
        time.sleep(0.0002)
    os.kill(child, signal.SIGSTOP)
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):  # it has just ended
        return heartbeat[0], status
    phase = heartbeat[0]
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return phase, status


def run_child(request: dict[str, Any], code: Any, script: Path, heartbeat: mmap.mmap) -> int:
    """Run the script in its folder, with arguments, streams into files, and faults installed."""
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    said_name = of_rank(SAID, os.environ.get("RANK", "0"))
    said = os.open(said_name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 closed by the process's end
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 closed by the process's end
    try:
        return run_with_faults(code, script, request["arguments"], request["hooks"], heartbeat)
    except SystemExit as stopped:
        return stopped.code
    except Exception:  # noqa: BLE001 any error fails the trial and is shown
        traceback.print_exc()
        return 99  # an error of the harness, not an exit code of the script
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()


def run_with_faults(
    code: Any, script: Path, arguments: list[str], hooks: list[Any], heartbeat: mmap.mmap
) -> int:
    """Run the script in this process and folder, with faults installed; return its exit code."""
    import fault_hooks

    sys.argv = [str(script), *arguments]
    namespace = {"__name__": "train_with_samples", "__file__": str(script)}
    exec(code, namespace)
    namespace["STOP"].install()
    background = "background_saves: true" in text_of(Path("tiny.yaml"))
    target = fault_hooks.Target(namespace, heartbeat, background)
    for name, keywords in [("heartbeat", {}), *hooks]:
        getattr(fault_hooks, name)(target, **keywords)
    exit_code: int = namespace["main"](arguments)
    return exit_code


if __name__ == "__main__":
    serve()
