"""The site as a reader sees it: every page, on a screen and on a phone, in light and in dark.

Notebook 01 is executed, without a network connection; the others have no outputs here, to save
time. Screenshots for people to look at go to `build/screenshots/`.
"""

from __future__ import annotations

import functools
import os
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Browser, Page

from support.browser import accessibility_problems
from support.notebook_style import ROOT
from support.offline import CableOut

SCREENSHOTS = ROOT / "build" / "screenshots"
FIRST = "notebooks/01_basic_generation.html"
TYPICAL = {"index.html", FIRST, "svdnb/pocket/MODEL_CARD.html"}
SCREEN = {"width": 1300, "height": 900}
PHONE = {"width": 375, "height": 700}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make site` does. A link that leads nowhere fails the build."""
    folder = tmp_path_factory.mktemp("site")
    cable_out = CableOut(folder / "tried")
    skips = {"SITE_SKIPS": "notebooks/0[2-9]* solutions/*"}
    places = ("-c", ROOT / "docs" / "site", "-d", folder / "doctrees", ROOT, folder / "html")
    options = ("-q", "-W", "--keep-going", "-n", "-E")
    anew = ("-D", f"nb_execution_cache_path={folder / 'executed'}")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, *anew, *places],
        env=os.environ | cable_out.environment | skips, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cable_out.tried == []
    return folder / "html"


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
    """Open pages of the site. A file that a page cannot load from the site fails the test."""
    contexts = []
    lost: list[str] = []

    def open_page(name: str, **options: Any) -> Page:
        contexts.append(chromium.new_context(**{"viewport": SCREEN, **options}))
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
    return sorted(found - {"search.html", "README.html"})  # index.html is the README


def test_the_first_notebook_works_without_a_connection(site: Path) -> None:
    page = (site / FIRST).read_text(encoding="utf-8")
    assert page.count("<video") >= 3
    assert "output stderr" not in page


def test_every_document_and_notebook_is_a_page(site: Path) -> None:
    assert {path.removesuffix(".html") for path in pages(site)} >= {
        "index", "CHANGELOG", "docs/instructors", "svdnb/pocket/MODEL_CARD",
        *(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")),
        *(f"notebooks/solutions/{p.stem}" for p in (ROOT / "notebooks/solutions").glob("*.ipynb")),
    }  # fmt: skip


def test_every_page_is_accessible_and_fits_the_screen(
    site: Path, address: str, visit: Callable[..., Page]
) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = visit(FIRST)
    for name in pages(site):
        page.goto(f"{address}/{name}")
        for scheme, size in (("light", SCREEN), ("dark", PHONE)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size(size)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= size["width"], f"{name} is wider than the screen"
            if name in TYPICAL:
                page.screenshot(path=SCREENSHOTS / f"site {Path(name).stem} {scheme}.png")
            # Solutions look like the lessons, and the check takes seconds.
            if name in TYPICAL or (scheme == "light" and "solutions/" not in name):
                assert accessibility_problems(page) == [], f"{name}, {scheme}"


def test_videos_play_by_themselves_unless_the_reader_prefers_less_motion(
    visit: Callable[..., Page],
) -> None:
    page = visit(FIRST)
    page.locator("video").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")
    labels = page.evaluate("[...document.querySelectorAll('video')].map(v => v.ariaLabel)")
    assert all(label.startswith("Video, ") for label in labels)

    page = visit(FIRST, reduced_motion="reduce")
    page.locator("video").first.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    assert page.evaluate("[...document.querySelectorAll('video')].every(video => video.paused)")
    moving, still = (
        visit("index.html", reduced_motion=motion).evaluate("document.images[0].currentSrc")
        for motion in ("no-preference", "reduce")
    )
    assert moving != still, "the README's picture moves all the same"


def test_figures_name_their_section_and_the_studio_is_a_picture() -> None:
    with mock.patch.dict(os.environ):  # conf.py sets some variables
        conf = runpy.run_path(str(ROOT / "docs" / "site" / "conf.py"))
    prose = new_markdown_cell("## What `fps` does\n\n```python\n# no heading\n```")
    cells = [prose, new_code_cell("draw()"), new_code_cell("panel = svdnb.studio(pipe)\npanel")]
    _, drawn, studio, picture = conf["readable"](new_notebook(cells=cells)).cells
    assert "section “What fps does”" in drawn.metadata.mystnb.image.alt
    assert "remove-output" in studio.metadata.tags
    assert re.match(
        r'<img src="\.\./docs/media/studio.*alt="The studio in JupyterLab: ', picture.source
    )
