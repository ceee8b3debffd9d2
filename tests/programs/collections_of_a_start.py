"""Run a training script as a user does; at its end print how garbage was collected, as JSON.

Usage: python collections_of_a_start.py SCRIPT ARGUMENT...
Prints [whether collections are on, how many objects they leave out, whether the script's imports
were complete at the collections since torch was there: false, true or both].
"""

import atexit
import gc
import json
import runpy
import sys

LAST = "chatgot.training.step"  # the last module that the script imports
were_complete: set[bool] = set()


def note(phase: str, facts: dict[str, int]) -> None:
    """Note a collection."""
    if phase == "start" and "torch" in sys.modules:
        were_complete.add(LAST in sys.modules)


def tell() -> None:
    """Print what was noted."""
    print(json.dumps([gc.isenabled(), gc.get_freeze_count(), sorted(were_complete)]))


if __name__ == "__main__":
    gc.callbacks.append(note)
    atexit.register(tell)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
