"""One rank with its faults: torchrun starts this program instead of the script.

The variable FAULTS has the hooks of each rank, as JSON: {"1": [["strike", {...}]]}.
"""

import json
import mmap
import os
import resource
import sys

from fault_server import SCRIPT, run_with_faults


def main() -> int:
    """Run the script with the faults of this rank."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hooks = json.loads(os.environ["FAULTS"]).get(os.environ["RANK"], [])
    code = compile(SCRIPT.read_text(encoding="utf-8"), str(SCRIPT), "exec")
    heartbeat = mmap.mmap(-1, 2)
    return run_with_faults(code, SCRIPT, sys.argv[1:], [["steps", {}], *hooks], heartbeat)


if __name__ == "__main__":
    sys.exit(main())
