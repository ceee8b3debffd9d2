"""Compare how fast ChatGoT, llama.cpp and transformers write text with a model of one shape.

Each takes its turn in a process of its own, with random weights, greedy, on a short prompt. This
needs, in addition to ChatGoT:

    python -m venv peers
    peers/bin/python -m pip install torch==2.13.0 xllamacpp gguf transformers
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import in_turn, run_peer
from benchmarks.script_runs import ROOT, Figures, python_path
from chatgot.config_file import load_config

STREAMS = 16  # texts side by side
NEW_TOKENS = 256  # of each text
VOCABULARY = 76  # tokens: the default text's


def generation(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure tokens/s in one stream and over 16, and without a cache."""
    config, _ = load_config(args.config, args.set)
    job = {
        "model": config.model.model_dump(mode="json"),
        "head_size": config.model.head_size,
        "kv_heads": config.model.kv_heads,
        "vocab_size": VOCABULARY,
        "new_tokens": NEW_TOKENS,
        "threads": os.cpu_count(),
        "folder": str(folder),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    theirs = str(Path(args.python).absolute())  # not resolved: an environment's python is a link
    own_path = python_path(ROOT)

    def speed(program: str, *words: str) -> Callable[[], float]:
        ours = program == "engine_speed.py"
        command = [sys.executable if ours else theirs, str(ROOT / "benchmarks" / program)]

        def measure() -> float:
            environment = own_path if ours else dict(os.environ)
            output, _ = run_peer([*command, str(path), *words], folder, environment)
            return float(output.splitlines()[-1])

        return measure

    figures: Figures = {"new_tokens": NEW_TOKENS, "streams": STREAMS}
    for name, streams in (("one", "1"), ("many", str(STREAMS))):
        sides = {
            "llama_cpp": speed("llama_speed.py", streams),
            "chatgot": speed("engine_speed.py", "compiled", streams),
            "chatgot_eager": speed("engine_speed.py", "eager", streams),
            "transformers": speed("transformers_speed.py", streams),
        }
        measured = in_turn(args.rounds, sides)
        figures |= {f"{name}_{key}": value for key, value in measured.items()}
    without = {
        "chatgot": speed("engine_speed.py", "eager", "1", "500"),
        "without_cache": speed("engine_speed.py", "without_cache", "1", "500"),
    }
    measured = in_turn(1, without)
    return figures | {f"to_500_tokens_{key}": value for key, value in measured.items()}
