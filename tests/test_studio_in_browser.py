"""The studio as a learner meets it: cells of notebook 04 in a real JupyterLab and a real browser.

Screenshots go to `build/screenshots/`, for people to look at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from playwright.sync_api import Page, expect

from support import lab
from support.browser import accessibility_problems, launch_chromium
from support.notebook_style import ROOT

NOTEBOOK = ROOT / "notebooks" / "04_micro_conditioning.ipynb"
SCREENSHOTS = ROOT / "build" / "screenshots"
NEEDED = ("svdnb.get_ready()", "from_pretrained(", "svdnb.load_image(")
THEMES = ("JupyterLab Light", "JupyterLab Dark")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Notebook 04 without its experiments: what the panel needs, one player, and the panel."""
    home = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [
        *(cell for cell in notebook.cells if any(line in cell.source for line in NEEDED)),
        new_code_cell("svdnb.show(animate(1), label='before the panel')"),
        *(cell for cell in notebook.cells if "svdnb.studio(pipe)" in cell.source),
    ]
    assert len(notebook.cells) == len(NEEDED) + 2
    path = home / "studio.ipynb"
    nbformat.write(notebook, path)
    with launch_chromium() as browser, lab.running_lab(path, home) as address:
        page = browser.new_page(viewport={"width": 1300, "height": 1200})
        page.set_default_timeout(60_000)
        lab.run_all(page, address)
        yield page


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled(timeout=60_000)
    expect(page.get_by_text("Done in")).to_be_visible()


def test_the_cells_run_without_an_error(page: Page) -> None:
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts() == []
    assert page.locator(".svdnb-studio").count() == 1
    page.wait_for_function(
        "[...document.querySelectorAll('video')].every(video => video.videoWidth > 0)"
    )


def test_a_slider_moved_by_keyboard_steers_the_next_video(page: Page) -> None:
    slider = page.get_by_role("slider", name="Motion bucket id")
    slider.focus()
    before = float(slider.get_attribute("aria-valuenow") or "nan")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuenow", f"{before - 3:.1f}")
    generate(page)
    card = page.locator(".svdnb-card").first
    expect(card.locator("figcaption")).to_contain_text(f"bucket {before - 3:g}")
    expect(card.locator("video")).to_be_visible()
    size = card.locator("video").evaluate("video => [video.videoWidth, video.videoHeight]")
    assert size[0] >= 288
    assert size[1] >= 288
    # It plays by itself where it is seen.
    card.locator("video").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.svdnb-card video').currentTime > 0.2")


def test_two_videos_are_compared_in_sync(page: Page) -> None:
    slider = page.get_by_role("slider", name="Motion bucket id")
    slider.focus()
    page.keyboard.press("Home")
    generate(page)
    page.get_by_role("button", name="Play in sync").click()
    grid = page.locator(".svdnb-studio .svdnb-grid")
    expect(grid.locator("video")).to_have_count(2)
    grid.scroll_into_view_if_needed()
    page.wait_for_function(
        """() => {
            const [one, two] = document.querySelectorAll(".svdnb-studio .svdnb-grid video");
            const apart = Math.abs(one.currentTime - two.currentTime);
            return one.videoWidth && one.currentTime > 0.2 && apart < 0.15;
        }"""
    )


def test_stop_works_and_the_kernel_answers_meanwhile(page: Page) -> None:
    cards = page.locator(".svdnb-card").count()
    lab.run_in_kernel(page, "panel.num_inference_steps.value = 50")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text(re.compile(r"Step \d+ of 50"))).to_be_visible()
    expect(page.get_by_role("img", name="Rough preview")).to_be_visible()
    assert lab.run_in_kernel(page, "print(panel.stop_button.disabled)").strip() == "False"
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped after step")).to_be_visible()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    assert page.locator(".svdnb-card").count() == cards
    lab.run_in_kernel(page, "panel.num_inference_steps.value = 8")


def test_the_keyboard_goes_from_the_picture_to_the_button(page: Page) -> None:
    page.get_by_role("button", name="Example", exact=True).focus()
    names, seen = [], page.evaluate_handle("() => document.activeElement")
    for _ in range(40):
        page.keyboard.press("Tab")
        seen = page.evaluate_handle("() => document.activeElement")
        name = seen.evaluate("e => (e.getAttribute('aria-label') ?? e.textContent).trim()")
        style = seen.evaluate("e => getComputedStyle(e).outlineStyle")
        names.append(name)
        assert style != "none", f"{seen} after {names} does not show that it has the focus"
        if name == "Generate":
            break
    order = ["Motion bucket id", "fps", "Noise strength", "Steps", "Frames", "Guidance minimum"]
    found = [name for name in names if name in [*order, "Generate"]]
    assert found == [*order, "Generate"]


@pytest.mark.parametrize("theme", THEMES)
def test_everybody_can_use_it(page: Page, theme: str) -> None:
    lab.change_theme(page, theme)
    page.locator(".svdnb-studio").scroll_into_view_if_needed()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.locator(".svdnb-studio").screenshot(path=SCREENSHOTS / f"studio {theme}.png")
    assert accessibility_problems(page, ".svdnb-studio") == []
    planted = page.add_style_tag(
        content=".svdnb-studio h3 { color: #888 !important; background: #777; }"
    )
    (problem, *_) = accessibility_problems(page, ".svdnb-studio")
    assert problem.startswith("color-contrast"), "it would have been seen"
    planted.evaluate("style => style.remove()")
