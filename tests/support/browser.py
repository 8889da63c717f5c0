"""What a reader of a page meets, as axe-core sees it."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


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
