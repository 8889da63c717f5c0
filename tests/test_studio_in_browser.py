"""The studio as a learner meets it: cells of notebook 04 in a real JupyterLab and a real browser.

Screenshots go to `build/screenshots/`, for people to look at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from playwright.sync_api import Browser, Page, expect

from support import lab
from support.browser import accessibility_problems
from support.notebook_style import ROOT

NOTEBOOK = ROOT / "notebooks" / "04_micro_conditioning.ipynb"
SCREENSHOTS = ROOT / "build" / "screenshots"
NEEDED = ("%pip install", "from_pretrained(", "svdnb.load_image(", "svdnb.studio(pipe)")
TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def page(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Notebook 04 without its experiments: what the panel needs, the panel, and small videos."""
    home = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    chosen = [next(cell for cell in code if words in cell.source) for words in NEEDED]
    small = "panel.num_frames.value, panel.num_inference_steps.value = 5, 4"
    notebook.cells = [*chosen, new_code_cell(small)]
    path = home / "studio.ipynb"
    nbformat.write(notebook, path)
    with lab.running_lab(path, home) as address:
        page = chromium.new_page(viewport={"width": 1300, "height": 1200})
        page.set_default_timeout(TIMEOUT_MS)
        lab.run_all(page, address)
        yield page


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled(timeout=TIMEOUT_MS)
    expect(page.get_by_text("Done in")).to_be_visible()


def test_the_cells_run_without_an_error(page: Page) -> None:
    for kind in ("error", "stderr"):
        outputs = page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]')
        assert outputs.all_inner_texts() == []
    assert page.locator(".svdnb-studio").count() == 1


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
    card.locator("video").scroll_into_view_if_needed()
    page.wait_for_function(
        """() => {
            const video = document.querySelector(".svdnb-card video");
            return video.videoWidth >= 288 && video.currentTime > 0.2;
        }"""
    )


def test_the_usual_range_is_marked_on_the_track(page: Page) -> None:
    shares = page.locator(".svdnb-fps .noUi-base").evaluate(
        "track => ['--from', '--to'].map(name => parseFloat(track.style.getPropertyValue(name)))"
    )
    assert shares == pytest.approx([100 * (5 - 1) / 39, 100 * (30 - 1) / 39])


def test_two_videos_are_compared_in_sync(page: Page) -> None:
    generate(page)
    for number in (1, 2):
        page.get_by_label(f"Compare video {number}").check()
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
    expect(page.get_by_text("Stopped; nothing was kept")).to_be_visible()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    assert page.locator(".svdnb-card").count() == cards


def test_the_keyboard_goes_from_the_picture_to_the_button(page: Page) -> None:
    page.get_by_label("Example", exact=True).focus()
    names: list[str] = []
    while "Generate" not in names and len(names) < 40:
        page.keyboard.press("Tab")
        seen = page.evaluate_handle("() => document.activeElement")
        names.append(seen.evaluate("e => (e.getAttribute('aria-label') ?? e.textContent).trim()"))
        outline = seen.evaluate("e => getComputedStyle(e).outlineStyle")
        assert outline != "none", f"{names[-1]} does not show that it has the focus"
    order = ["Motion bucket id", "fps", "Noise strength", "Steps", "Frames", "Guidance minimum"]
    assert [name for name in names if name in [*order, "Generate"]] == [*order, "Generate"]


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_is_accessible_in_both_themes(page: Page, theme: str) -> None:
    lab.change_theme(page, theme)
    page.locator(".svdnb-studio").scroll_into_view_if_needed()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.locator(".svdnb-studio").screenshot(path=SCREENSHOTS / f"studio {theme}.png")
    assert accessibility_problems(page, ".svdnb-studio") == []
    planted = page.add_style_tag(
        content=".svdnb-studio h3 { color: #888 !important; background: #777; }"
    )
    (problem, *_) = accessibility_problems(page, ".svdnb-studio")
    assert problem.startswith("color-contrast"), "the check would have noticed"
    planted.evaluate("style => style.remove()")
