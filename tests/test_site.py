"""The site as a reader meets it: every page, on a screen and on a phone, in light and in dark.

Its first notebook is executed; the others stand there without outputs, to save time.
Screenshots go to `build/screenshots/`, for people to look at.
"""

from __future__ import annotations

import functools
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import Browser, Page

import build_site
from support.browser import accessibility_problems
from support.notebook_style import ROOT
from support.offline import CableOut

SCREENSHOTS = ROOT / "build" / "screenshots"
FIRST = "notebooks/01_basic_generation.html"
SIZES = {"screen": (1300, 900), "phone": (375, 700)}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(first_notebook: tuple[Path, CableOut], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    path, _ = first_notebook
    build_site.build(folder, [path])
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(chromium: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens a page of the site; what it cannot load from the site itself fails the test."""
    contexts = []
    lost: list[str] = []

    def open_page(name: str, size: str = "screen", **options: Any) -> Page:
        width, height = SIZES[size]
        options = {"viewport": {"width": width, "height": height}, **options}
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("response", lambda r: r.status < 400 or lost.append(r.url))
        page.goto(f"{address}/{name}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in lost if url.startswith(address)] == []


def pages(site: Path) -> list[str]:
    found = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    return sorted(found - {"search.html"})


def test_every_document_and_notebook_is_a_page(site: Path) -> None:
    assert {path.removesuffix(".html") for path in pages(site)} >= {
        "index", "CHANGELOG", "docs/instructors", "svdnb/pocket/MODEL_CARD",
        *(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")),
        *(f"notebooks/solutions/{p.stem}" for p in (ROOT / "notebooks/solutions").glob("*.ipynb")),
    }  # fmt: skip


@pytest.mark.parametrize(("scheme", "size"), [("light", "screen"), ("dark", "phone")])
def test_everybody_can_read_it(
    site: Path, address: str, visit: Callable[..., Page], scheme: str, size: str
) -> None:
    page = visit(FIRST, size, color_scheme=scheme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"site {scheme} {size}.png")
    for name in pages(site):
        page.goto(f"{address}/{name}")
        assert accessibility_problems(page) == [], name
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], f"{name} is wider than the {size}"


def test_videos_play_by_themselves_only_where_motion_is_welcome(
    visit: Callable[..., Page],
) -> None:
    page = visit(FIRST)
    page.locator("video").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")
    labels = page.evaluate("[...document.querySelectorAll('video')].map(v => v.ariaLabel)")
    assert len(labels) >= 3
    assert all(label.startswith("Video, ") for label in labels)

    page = visit(FIRST, reduced_motion="reduce")
    page.locator("video").first.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    assert page.evaluate("[...document.querySelectorAll('video')].every(video => video.paused)")
    moving, still = (
        visit("index.html", reduced_motion=motion).evaluate("document.images[0].currentSrc")
        for motion in ("no-preference", "reduce")
    )
    assert moving != still, "the README's boat stands still"


def test_figures_say_where_they_belong_and_the_studio_is_a_picture() -> None:
    widget = new_output("display_data", {build_site.WIDGET: {}, "text/plain": "0%| | 0/8"})
    figure = new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})
    notebook = build_site.readable(
        new_notebook(
            cells=[
                new_markdown_cell("## What `fps` does\n\n```python\n# no heading\n```"),
                new_code_cell("draw()", outputs=[widget, figure]),
                new_code_cell("panel = svdnb.studio(pipe)\npanel", outputs=[widget]),
            ]
        )
    )
    _, drawn, studio = notebook.cells
    assert drawn.outputs == [figure]
    assert "section “What fps does”" in drawn.metadata.mystnb.image.alt
    assert re.search(r'alt="The studio in JupyterLab: ', studio.outputs[0].data["text/html"])


def test_a_link_that_leads_nowhere_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out = build_site.lay_out

    def with_a_lost_link(source: Path, executed: Any) -> None:
        lay_out(source, executed)
        with (source / "index.md").open("a", encoding="utf-8") as index:
            index.write("\n[lost](CHANGELOG.md#nowhere)\n")

    monkeypatch.setattr(build_site, "lay_out", with_a_lost_link)
    with pytest.raises(subprocess.CalledProcessError):
        build_site.build(tmp_path / "html", [])


def test_what_is_no_page_is_linked_in_the_repository() -> None:
    readme = ROOT / "README.md"
    pages = {readme, ROOT / "CHANGELOG.md"}
    text = "[a](LICENSE) [b](CHANGELOG.md) [c](docs/) [d](https://example.org) [e](README.md#top)"
    assert build_site._linked(text, readme, pages) == (
        f"[a]({build_site.REPOSITORY}/blob/main/LICENSE) [b](CHANGELOG.md) "
        f"[c]({build_site.REPOSITORY}/tree/main/docs) [d](https://example.org) "
        "[e](index.md#top)"
    )
