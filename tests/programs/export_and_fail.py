"""Export a model as plain safetensors, and meet something on the way.

Usage: python export_and_fail.py limit|wait ARGUMENT...; `limit`: no file may have more than 2000
bytes; `wait`: when the files are written, say so and wait for a signal.
"""

import resource
import runpy
import sys
import time
from pathlib import Path

from chatgot.exchange import plain_safetensors

ROOT = Path(__file__).resolve().parents[2]


class Waiting(plain_safetensors.PlainSafetensors):
    """Waits when all is written."""

    def write(self, loaded, dtype, folder):
        remarks = super().write(loaded, dtype, folder)
        print("written", flush=True)
        time.sleep(30)
        return remarks


def main() -> None:
    how = sys.argv.pop(1)
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, -1))
    else:
        plain_safetensors.SAFETENSORS = Waiting()
    script = str(ROOT / "scripts" / "export.py")
    sys.argv[0] = script
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
