"""The device of `pytest --device`: the runs that tests start compute on it.

An environment variable carries it, so that programs started by tests have the same one.
"""

import os

import torch

VARIABLE = "CHATGOT_TESTS_DEVICE"
DEFAULT = "cpu"
KINDS = ("cpu", "cuda", "mps")
# a device that this machine does not have: no machine has both
ABSENT = "mps" if torch.cuda.is_available() else "cuda"


def device_name() -> str:
    """Return cpu, cuda or mps: the device that the tests were told to use."""
    return os.environ.get(VARIABLE, DEFAULT)


def use_device(name: str) -> None:
    """Let the tests that are collected from now on use a device."""
    os.environ.pop(VARIABLE, None)
    if name != DEFAULT:
        os.environ[VARIABLE] = name


def missing_device(name: str) -> str:
    """Return why torch cannot compute on a device, or ""."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if there[name]:
        return ""
    found = ", ".join(kind for kind, is_there in there.items() if is_there)
    return f"--device {name}: torch {torch.__version__} finds no such device, only {found}"
