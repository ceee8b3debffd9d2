"""Import modules and their submodules; exit with code 1 at the first one that imports torch.

Usage: python import_each.py MODULE..., with the current folder first on the path.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))


def names_in(name: str) -> list[str]:
    """Return the name of a module and the names of its submodules."""
    folders = getattr(importlib.import_module(name), "__path__", [])
    return [name, *(entry.name for entry in pkgutil.walk_packages(folders, f"{name}."))]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for module in names_in(argument):
            importlib.import_module(module)
            if "torch" in sys.modules:
                sys.exit(f"{module} imports torch")
