"""Start a training run; after its first step print which modules are loaded, as JSON, and end.

Usage: python modules_after_first_step.py SCRIPT ARGUMENT...
Prints {"torch": those that torch alone loads, "run": all others}.
"""

import json
import os
import runpy
import sys

import torch  # noqa: F401 imported for the modules that it brings

OF_TORCH = set(sys.modules)


def end(*_: object) -> None:
    """Print the modules and leave, before the step is logged."""
    print(json.dumps({"torch": sorted(OF_TORCH), "run": sorted(set(sys.modules) - OF_TORCH)}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    del sys.argv[0]
    script = runpy.run_path(sys.argv[0])
    script["main"].__globals__["recover"] = end
    script["refuse_mistakes"](sys.argv[1:])
    sys.exit(script["main"](sys.argv[1:]))
