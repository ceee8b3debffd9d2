"""Is an exported model the same one where it goes, and how fast is its page?

Each program takes its turn in a process of its own: transformers, llama.cpp, headless Chromium.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.peers import run_peer
from benchmarks.script_runs import ROOT, Figures, python_path
from chatgot.errors import ConfigError

PROGRAMS = (
    "exported_to_transformers.py",
    "exported_to_llama_cpp.py",
    "exported_to_browser.py",
)
NEEDED = ("transformers", "xllamacpp", "playwright", "httpx")  # of requirements-dev.txt
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def chromium() -> str | None:
    """Return the path of the system's Chromium; None: there is none."""
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


def exports(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure the newest run's model in --folder, or a random one of --config's shape.

    Raises: ConfigError where a program is missing; UserError where the model is.
    """
    _check_programs()
    if args.set and not args.config:
        raise ConfigError("--set: there is no --config whose keys it could set")
    # here: without the packages above these modules may be missing what they import
    from benchmarks.exported_model import write_job

    job = write_job(args, folder)
    # a random model's text is not looked for
    place = folder if args.config else args.folder
    figures: Figures = {}
    for program in PROGRAMS:
        command = [sys.executable, str(ROOT / "benchmarks" / program), str(job)]
        output, _ = run_peer(command, place, python_path(ROOT) | OFFLINE)
        figures |= json.loads(output.splitlines()[-1])
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return figures | {"load_average": load}


def _check_programs() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"exports: this Python has no {', '.join(missing)}; "
            "expected what requirements-dev.txt has: pip install -r requirements-dev.txt"
        )
    if chromium() is None:
        raise ConfigError(
            f"exports: found none of {', '.join(CHROMIUMS)}; install Chromium from your system"
        )
