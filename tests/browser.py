"""Headless Chromium for the tests of pages.

Without Chromium the tests are skipped, but they fail on CI, which has it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
WAIT_MS = 20_000  # for a busy machine
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
MARKUP = "<img src=x onerror=window.hacked=1>"

expect.set_options(timeout=WAIT_MS)


@contextmanager
def chromium_page() -> Iterator[Page]:
    """Yield a page of a new browser."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: .ci/run installs it")
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        # root has no sandbox
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        yield page
        browser.close()
