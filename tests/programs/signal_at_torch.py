"""Run a script, and send this process SIGTERM when it begins to import torch.

Usage: python signal_at_torch.py SCRIPT ARGUMENT...
"""

import os
import runpy
import signal
import sys


class Watch:
    """An import hook that finds no module, but sees the name of each import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.meta_path.insert(0, Watch())
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
