"""The log is global: each test that sets it up takes it down."""

import logging

import pytest

from chatgot.logs.logging_setup import LOGGERS, Steady


@pytest.fixture
def clean_log():
    """Take the log down after the test, so that logging is as pytest left it."""
    before = [(target, target.level, target.propagate) for target in LOGGERS]
    logging.captureWarnings(False)  # pytest has restored its own hook after another test
    yield
    for target, level, propagate in before:
        for handler in [handler for handler in target.handlers if isinstance(handler, Steady)]:
            target.removeHandler(handler)
            handler.close()
        target.setLevel(level)
        target.propagate = propagate
    logging.captureWarnings(False)
