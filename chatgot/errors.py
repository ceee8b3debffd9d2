"""The errors that a user can solve, and the exit code of each.

A message says what was read, what was found, what was expected and what to do, in one or two lines.
The script prints it without a traceback. Any other exception is a bug in ChatGoT: it is shown with
its traceback, and the exit code is 1.
"""


class UserError(Exception):
    """A problem that the user can solve; the process ends with `exit_code`.

    is_said: another rank of the group shows its message.
    """

    exit_code = 1
    is_said = False


class ConfigError(UserError):
    """A bad command line, configuration or text."""

    exit_code = 2


class CheckpointRejected(UserError):
    """A checkpoint that is missing, damaged or does not fit this run; nothing was loaded."""

    exit_code = 3


class OtherFormat(CheckpointRejected):
    """A checkpoint in a file format that this version of ChatGoT cannot resume."""


class ImportRejected(CheckpointRejected):
    """A model from elsewhere that is damaged, contradicts itself, or is of a kind not read here."""


class ExportImpossible(UserError):
    """A model that a format has no words for."""

    exit_code = 2


class ProofFailed(UserError):
    """An export that is not the same model; it was removed."""

    exit_code = 3


class Diverged(UserError):
    """Losses or gradients keep going bad, and there is nothing left to try."""

    exit_code = 4


class StorageError(UserError):
    """A folder or file that cannot be written, or a shard that cannot be read."""

    exit_code = 5


class OutOfMemory(UserError):
    """One step does not fit into this machine's memory.

    unchanged: whether the weights and the optimizer are still as they were before that step.
    of_one_rank: whether the other ranks of a group do not know of it.
    """

    exit_code = 6

    def __init__(self, message: str, unchanged: bool, of_one_rank: bool = False) -> None:
        super().__init__(message)
        self.unchanged = unchanged
        self.of_one_rank = of_one_rank


class RankLost(UserError):
    """A rank of a group does not answer, or has ended; the others end, too."""

    exit_code = 7
