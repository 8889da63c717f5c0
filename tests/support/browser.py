"""Start Chromium for tests that look at what a reader sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """Yield a Chromium. Without one, the tests are skipped, or fail if CI is set."""
    with sync_playwright() as playwright:
        names = ("chromium", "google-chrome", "chrome")
        found = next(filter(None, map(shutil.which, names)), None)
        executable = found or playwright.chromium.executable_path
        if not Path(executable).exists():
            missing = "There is no browser to test with. Run: python -m playwright install chromium"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET)
        yield browser
        browser.close()


def accessibility_problems(page: Page, within: str | None = None) -> list[str]:
    """Return what axe-core reports (names, roles, contrast, keyboard...), one line a problem."""
    # JupyterLab's body has no height, and axe-core treats everything inside as hidden.
    page.evaluate("document.body.style.minHeight = '100vh'")
    found = Axe().run(page, context=within).response["violations"]
    return [
        f"{problem['id']}: {node['html'][:200]} {node['failureSummary']}"
        for problem in found
        for node in problem["nodes"]
    ]
