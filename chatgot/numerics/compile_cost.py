"""What compiling the blocks costs a run: minutes the first time, seconds while the code is kept.

torch keeps compiled code in a folder. A marker next to it says for each shape that its code is
there, and how long loading it took; whoever empties the folder removes the markers too.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import torch

from chatgot.atomic_file import atomic_file
from chatgot.machine.measured import COMPILED, cpu_name, recalled, remember

# Seconds to assume for compiling until this machine has compiled something: 19 s on two cores in
# quiet, up to 36 s beside other programs
USUAL_COMPILE_S = 20.0
# Share of them that loading takes: 4 of 19 s.
LOADING_SHARE = 0.2
# Compiling takes about as long for every shape, so the first one is the best guess for the others.
ANY_SHAPE = "compiling any shape"


def is_kept(name: str) -> bool:
    """Return whether the compiled code of this shape is in torch's folder."""
    return _read(name) is not None


def cost_s(name: str, measured: float | None) -> float:
    """Return the seconds that compiled blocks of this shape cost a run before its first step.

    measured: the seconds of compiling this shape; None: not known.
    """
    compile_s = measured
    if compile_s is None:
        (compile_s,) = recalled(ANY_SHAPE) or [USUAL_COMPILE_S]
    marker = _read(name)
    if marker is None:
        return compile_s
    loading_s = marker.get("loading_s")
    return loading_s if isinstance(loading_s, float) else LOADING_SHARE * compile_s


def note(name: str, seconds: float) -> None:
    """Remember that the blocks were compiled or loaded just now; best effort."""
    marker = _read(name)
    if marker is None:
        _write(name, {"name": name})
        if recalled(ANY_SHAPE) is None:
            remember(ANY_SHAPE, [seconds])
    elif "loading_s" not in marker:
        _write(name, {**marker, "loading_s": seconds})


def _marker(name: str) -> Path | None:
    folder = os.environ.get(COMPILED)
    if not folder:
        return None
    key = hashlib.sha256(f"{name} | {cpu_name()} | torch {torch.__version__}".encode())
    return Path(folder) / "chatgot" / f"{key.hexdigest()}.json"


def _read(name: str) -> dict[str, object] | None:
    path = _marker(name)
    if path is None:
        return None
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
    return None


def _write(name: str, content: dict[str, object]) -> None:
    path = _marker(name)
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(content, indent=1).encode())
