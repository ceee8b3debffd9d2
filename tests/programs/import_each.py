"""Import modules and all inside of them; end with exit code 1 at the first after which torch is in.

python import_each.py MODULE...      with the current folder first on the path
"""

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))


def names_in(name: str) -> list[str]:
    """Return the module's name, and those of the modules inside of it."""
    folders = getattr(importlib.import_module(name), "__path__", [])
    return [name, *(entry.name for entry in pkgutil.walk_packages(folders, f"{name}."))]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for module in names_in(argument):
            importlib.import_module(module)
            if "torch" in sys.modules:
                sys.exit(f"{module} imports torch")
