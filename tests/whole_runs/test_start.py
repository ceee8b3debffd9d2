"""The first step waits for nothing that it does not use: what a start imports, and in which order.

torch itself imports much that is never used (asyncio, torch.distributed, torch.fx, in some versions
sympy); what it brings is left out here.
"""

import json
import subprocess
import sys
from pathlib import Path

import harness
from child_environment import child_environment

PROGRAM = harness.ROOT / "tests" / "programs" / "modules_after_first_step.py"
COLLECTIONS = harness.ROOT / "tests" / "programs" / "collections_of_a_start.py"
LATER = {  # first names of packages, and modules of torch
    "fsspec",
    "gguf",
    "jinja2",
    "matplotlib",
    "safetensors",
    "sympy",
    "tensorboard",
    "tokenizers",
    "torch._dynamo",
    "torch._inductor",
    "torch.utils.tensorboard",
    "transformers",
    "chatgot.data.shards",
    "torch.distributed.elastic",
    "torch.distributed.fsdp",
    "chatgot.distributed.group",
    "chatgot.distributed.strategies",
    "chatgot.exchange.from_transformers",
    "chatgot.report",
}


def started(program: Path, folder: Path, *options: str) -> object:
    """Return what a program prints last, as JSON, that starts the run of a folder's tiny.yaml."""
    done = subprocess.run(
        [sys.executable, str(program), str(harness.SCRIPT), "--config", "tiny.yaml", *options],
        cwd=folder,
        env=child_environment(harness.ROOT, XDG_CACHE_HOME=str(folder / "cache")),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_eager_run_imports_only_what_its_first_step_needs(tmp_path):
    """With both optimizers, in bf16, and a machine that is measured; no curve is due before that.

    A process of its own, since the modules of the tests are all loaded in this one: 2 to 3 s.
    """
    quiet = {"log_interval": 5, "eval_interval": None, "sample_interval_steps": None}
    training = {"optimizer": "muon", "mixed_precision": True, "precision_dtype": "bf16"}
    training |= {"attention": "auto", **quiet}
    harness.write_config(tmp_path, training=training)
    modules = set(started(PROGRAM, tmp_path)["run"])
    assert "chatgot.training.step" in modules
    assert sorted(LATER & modules) == []


def test_no_garbage_is_looked_for_in_what_is_imported(tmp_path):
    """Collections come after the imports alone, and leave out what was imported."""
    harness.write_config(tmp_path)
    is_enabled, left_out, were_complete = started(COLLECTIONS, tmp_path, "--dry_run")
    assert is_enabled
    assert left_out > 100_000
    assert were_complete == [True]
