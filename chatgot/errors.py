"""What a user can get wrong, and the exit code of each.

A message says what was read, what was found, what was expected and what to do, in one or two lines.
The script prints it without a traceback. Anything else is a defect of ours: traceback, exit code 1.
"""


class UserError(Exception):
    """Something that the user can mend; `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(UserError):
    """A bad command line, configuration or text."""

    exit_code = 2


class CheckpointRejected(UserError):
    """A checkpoint that is missing, damaged, foreign or does not fit; nothing was loaded."""

    exit_code = 3


class OtherFormat(CheckpointRejected):
    """A checkpoint of another format, which this ChatGoT does not resume."""


class Diverged(UserError):
    """Training keeps failing with losses or gradients gone bad, and nothing is left to try."""

    exit_code = 4


class StorageError(UserError):
    """A folder or file that cannot be written."""

    exit_code = 5


class OutOfMemory(UserError):
    """One step does not fit into this machine's memory.

    unchanged: the weights and the optimizer are as they were before that step.
    """

    exit_code = 6

    def __init__(self, message: str, unchanged: bool) -> None:
        super().__init__(message)
        self.unchanged = unchanged
