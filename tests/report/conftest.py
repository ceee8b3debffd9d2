"""Fixtures for the tests of the report."""

import time

import pytest


@pytest.fixture
def utc(monkeypatch):
    """Let this machine's clock show UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()
