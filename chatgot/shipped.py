"""Where the scripts and the experiments lie: next to the package, or inside it once installed."""

from pathlib import Path

from chatgot.given_path import given_path

PACKAGE = Path(__file__).resolve().parent


def scripts_folder() -> Path:
    """Return the folder of the scripts."""
    return _shipped("scripts")


def recipes_folder() -> Path:
    """Return the folder of the YAMLs that come with the program."""
    return _shipped("configs") / "models"


def shipped_names() -> list[str]:
    """Return the names of the YAMLs that come with the program, but for those in subfolders."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def yaml_named(given: str) -> Path:
    """Return the YAML that the user means: that file, else the shipped one of that name.

    A shipped one is named with or without .yaml, and without a folder.
    Raises: argparse.ArgumentTypeError.
    """
    path = given_path(given)
    if path.exists() or path.name != given:
        return path
    name = given.removesuffix(".yaml")
    shipped = {path.stem: path for path in recipes_folder().rglob("*.yaml")}
    return shipped.get(name, path)


def _shipped(name: str) -> Path:
    """Return a folder: a wheel has it inside the package, a checkout next to it."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name
