"""Check this checkout on a machine with one card: its tests, the whole suite, the benchmark.

    python benchmarks/on_a_card.py --output FOLDER [--wheels FOLDER] [--checkout FOLDER]

One command for a machine that has torch, and maybe neither our other packages nor a network. It
takes eight minutes at most: each part has a limit, and what a part leaves goes to the next one.
`--device cpu` rehearses it. FOLDER gets a log of each part, summary.json and gpu.json.

It imports nothing but Python's own modules, so that it can say what is missing.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED_BY_TESTS = ("pytest", "hypothesis")
TAIL = 40  # lines of a log that are shown
GRACE_S = 20.0  # pytest writes its summary after SIGINT
LEAST_S = 20.0  # a part with less time is left out
MOST_WORKERS = 8
# the tests that compute on the device come first: the suite may be cut off
SUITE = (
    "tests/training",
    "tests/run",
    "tests/whole_runs",
    "tests/numerics",
    "tests/faults",
    "tests/checkpointing",
    "tests",
)
# the share of the time that is left when it begins
SHARES = {"gpu_tests": 0.3, "suite": 0.3, "benchmark": 1.0}
MISSING = 2  # exit code
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s#]+)", re.MULTILINE)


@dataclass
class Part:
    """How one part went."""

    name: str
    limit_s: float
    seconds: float = 0.0
    exit_code: int | None = None  # None: not begun
    cut_off: bool = False  # at its limit
    last_line: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether nothing failed; the suite may be cut off."""
        if self.cut_off and self.name == "suite":
            return re.search(r"\b(failed|errors?)\b", self.last_line) is None
        return self.exit_code == 0


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts (default: 8)")
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="install these wheels below --output first"
    )
    parser.add_argument("--checkout", type=Path, metavar="FOLDER", help="a clone of nanoGPT")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what the benchmark trains on")
    return parser.parse_args()


def main() -> int:
    """Run the parts; return 0 if nothing failed."""
    args = parse_arguments()
    deadline = time.monotonic() + 60 * args.minutes
    output: Path = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(output / "cache"), "PYTHONUNBUFFERED": "1"}
    if args.device == "cpu":
        environment["CHATGOT_GPU_TESTS_ON"] = "cpu"
    if args.wheels is not None:
        environment["PYTHONPATH"] = install(args.wheels, output / "site")
    problem = what_is_missing(environment) or missing_device(args.device, environment)
    if problem:
        print(problem, file=sys.stderr)
        return MISSING
    print(describe_machine(), flush=True)
    parts = []
    for name in SHARES:
        if name not in args.only:
            continue
        limit_s = SHARES[name] * (deadline - time.monotonic())
        if name == args.only[-1]:
            limit_s = deadline - time.monotonic()
        command = command_of(name, args, output, limit_s)
        if name == "suite":
            command += workers(environment)
        parts.append(run_part(Part(name, limit_s), command, output, environment))
        write_summary(parts, args.device, output)
    return 0 if all(part.is_fine for part in parts) else 1


# --------------------------------------------------------------------------------------------------
# What the machine has


def pinned() -> dict[str, str]:
    """Return the packages that the scripts and these tests need, but torch: {name: requirement}."""
    needed = requirements("requirements.txt")
    for_tests = requirements("requirements-dev.txt")
    needed |= {name: for_tests[name] for name in NEEDED_BY_TESTS}
    del needed["torch"]
    return needed


def requirements(file: str) -> dict[str, str]:
    """Return the pinned packages of a file of requirements: {name: name==version}."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return {name: f"{name}=={version}" for name, version in PIN.findall(text)}


def what_is_missing(environment: dict[str, str]) -> str:
    """Return which packages are missing and how to get them, or ""."""
    wanted = pinned()
    code = (
        "import importlib.metadata as m, sys\n"
        "have = {d.metadata['Name'].lower().replace('_', '-') for d in m.distributions()}\n"
        "print(*[n for n in sys.argv[1:] if n.lower().replace('_', '-') not in have])"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code, *wanted],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    missing = asked.stdout.split()
    if not missing:
        return ""
    pins = " ".join(wanted[name] for name in missing)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"missing here: {', '.join(missing)}\n"
        f"with a network, torch stays as it is: {sys.executable} -m pip install {pins}\n"
        "without one, on a machine that has one: python -m pip download --only-binary=:all: "
        f"--python-version {version} --dest wheels {pins}\n"
        "then, here: --wheels wheels"
    )


def missing_device(device: str, environment: dict[str, str]) -> str:
    """Return why torch cannot compute on the device, or ""."""
    if device == "cpu":
        return ""
    code = "import torch; print(torch.__version__, torch.cuda.is_available())"
    asked = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if asked.stdout.strip().endswith("True"):
        return ""
    said = (asked.stdout + asked.stderr).strip()[-300:]
    return f"torch finds no CUDA device here ({said}): --device cpu rehearses the check"


def install(wheels: Path, site: Path) -> str:
    """Install wheels into a folder, without a network; return PYTHONPATH with that folder first."""
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run([*pip, "--upgrade", "--target", str(site), *files], check=False)
    if done.returncode != 0:
        sys.exit(f"{wheels}: pip could not install the wheels of this folder")
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(site), *([before] if before else [])])


def describe_machine() -> str:
    """Return card, driver, Python and torch in a few lines."""
    lines = [f"Python {sys.version.split()[0]}"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"]
        lines.append(subprocess.run(query, capture_output=True, text=True, check=False).stdout)
    lines.append(f"torch {importlib.metadata.version('torch')}")
    return "\n".join(line.strip() for line in lines)


# --------------------------------------------------------------------------------------------------
# The parts


def command_of(name: str, args: argparse.Namespace, output: Path, limit_s: float) -> list[str]:
    """Return the command of a part."""
    if name == "benchmark":
        command = [sys.executable, "scripts/benchmark.py", "gpu", "--device", args.device]
        # it ends by itself before it is ended
        command += ["--minutes", f"{max(limit_s - 10, 1) / 60:.2f}"]
        command += ["--output", str(output / "gpu.json")]
        for option in ("checkout", "text"):
            if getattr(args, option) is not None:
                command += [f"--{option}", str(getattr(args, option).resolve())]
        return command
    common = ["-q", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no", "--durations=8"]
    pytest = [sys.executable, "-m", "pytest", *common, "--continue-on-collection-errors"]
    if name == "gpu_tests":
        return [*pytest, "-m", "gpu", "tests/gpu"]
    marks = "not gpu and not slow and not network"
    return [*pytest, "--device", args.device, "-m", marks, *SUITE]


def workers(environment: Mapping[str, str]) -> list[str]:
    """Return the options of pytest for several processes, where pytest-xdist is installed."""
    folders = [*sys.path, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    if not list(importlib.metadata.distributions(name="pytest-xdist", path=folders)):
        return []
    return ["-n", str(min(os.cpu_count() or 1, MOST_WORKERS))]


def run_part(part: Part, command: Sequence[str], output: Path, environment: dict[str, str]) -> Part:
    """Run a part up to its limit, with its output in a log; show the end of that."""
    if part.limit_s < LEAST_S:
        part.last_line = f"not begun: {part.limit_s:.0f} s left"
        print(f"{part.name}: {part.last_line}", flush=True)
        return part
    print(f"{part.name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    path = output / f"{part.name}.log"
    with path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            process.wait(part.limit_s)
        except subprocess.TimeoutExpired:
            part.cut_off = True
        finally:
            end(process)
    part.exit_code = process.returncode
    part.seconds = round(time.monotonic() - start, 1)
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    part.last_line = lines[-1] if lines else ""
    print("\n".join(lines[-TAIL:]))
    words = "cut off" if part.cut_off else f"exit code {part.exit_code}"
    print(f"{part.name}: {words} after {part.seconds:.0f} s\n", flush=True)
    return part


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a program that runs, so that it can sum up; kill it and all that it started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_summary(parts: list[Part], device: str, output: Path) -> None:
    """Write how the parts went so far."""
    summary = {
        "device": device,
        "machine": describe_machine().splitlines(),
        "parts": [asdict(part) | {"is_fine": part.is_fine} for part in parts],
    }
    text = json.dumps(summary, indent=1) + "\n"
    (output / "summary.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
