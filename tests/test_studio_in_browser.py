"""The studio as a learner meets it: notebook 04 in a real JupyterLab, in a real browser.

Screenshots go to `build/screenshots/`, for people to look at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import lab
import pytest
from browser import launch_chromium
from notebook_style import ROOT
from playwright.sync_api import Page, expect

NOTEBOOK = ROOT / "notebooks" / "04_micro_conditioning.ipynb"
SCREENSHOTS = ROOT / "build" / "screenshots"
THEMES = ("JupyterLab Light", "JupyterLab Dark")

LOW_CONTRAST = """() => {
    // WCAG 2.2, 1.4.3: the contrast of every piece of text that is seen and not disabled.
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b]
        .map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const colour = rgba(getComputedStyle(e).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll(".svdnb-studio *")) {
        const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        const silent = element.matches("style, script, option, :disabled");
        if (!own || silent || !element.checkVisibility()) continue;
        const [a, b] = [rgba(getComputedStyle(element).color), behind(element)].map(light);
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) found.push(`${element.textContent.trim()}: ${contrast.toFixed(1)}`);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Notebook 04, run from top to bottom."""
    home = tmp_path_factory.mktemp("lab")
    with launch_chromium() as browser, lab.running_lab(NOTEBOOK, home) as address:
        page = browser.new_page(viewport={"width": 1300, "height": 1200})
        page.set_default_timeout(60_000)
        lab.run_all(page, address)
        yield page


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled(timeout=60_000)
    expect(page.get_by_text("Done in")).to_be_visible()


def test_the_whole_notebook_runs_without_an_error(page: Page) -> None:
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
def test_both_themes_read_well(page: Page, theme: str) -> None:
    lab.change_theme(page, theme)
    page.locator(".svdnb-studio").scroll_into_view_if_needed()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.locator(".svdnb-studio").screenshot(path=SCREENSHOTS / f"studio {theme}.png")
    assert page.evaluate(LOW_CONTRAST) == []


def test_every_control_has_a_name(page: Page) -> None:
    tree = page.locator(".svdnb-studio").aria_snapshot()
    for role in ("slider", "button", "combobox", "textbox", "spinbutton"):
        nameless = [
            line for line in tree.splitlines() if line.strip().rstrip(":").endswith(f"- {role}")
        ]
        assert nameless == []
