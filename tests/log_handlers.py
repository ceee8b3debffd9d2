"""The log's handlers that a run of the script sets up in its process."""

import logging

from chatgot.logs.logging_setup import LOGGERS, Steady


def take_log_down() -> None:
    """Remove the handlers, and let the loggers be as before the run."""
    for target in LOGGERS:
        for handler in [handler for handler in target.handlers if isinstance(handler, Steady)]:
            target.removeHandler(handler)
            handler.close()
        target.setLevel(logging.NOTSET)
        target.propagate = True
