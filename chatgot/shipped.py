"""Where the scripts and the experiments lie: next to the package, or inside it once installed."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def scripts_folder() -> Path:
    """Return the folder of the scripts."""
    return _shipped("scripts")


def recipes_folder() -> Path:
    """Return the folder of the YAMLs that come with the program."""
    return _shipped("configs") / "models"


def _shipped(name: str) -> Path:
    """Return a folder: a wheel has it inside the package, a checkout next to it."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name
