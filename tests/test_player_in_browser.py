"""The players in a real browser: what a reader sees, presses and hears."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from svdnb.player import PLAYER_WIDTH, compare, show
from svdnb.videos import Display

FRAMES = 14
FPS = 7

OpenPage = Callable[..., Page]


def greys(frames: int = FRAMES) -> np.ndarray[Any, Any]:
    """A clip whose brightness encodes the frame number."""
    levels = np.arange(frames) / FRAMES
    return np.ones((frames, 64, 112, 3)) * levels[:, None, None, None]


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    contexts: list[BrowserContext] = []
    script_errors: list[Any] = []

    def open_with(html: str, **options: Any) -> Page:
        context = chromium.new_context(viewport={"width": 900, "height": 700}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: script_errors.append(error))
        page.set_content(html)
        if options.get("java_script_enabled", True):
            page.wait_for_function(
                "[...document.querySelectorAll('video')].every(v => v.videoWidth)"
            )
        return page

    yield open_with
    for context in contexts:
        context.close()
    assert not script_errors


def state(page: Page, name: str) -> list[Any]:
    answer: list[Any] = page.evaluate(
        f"[...document.querySelectorAll('video')].map(video => video.{name})"
    )
    return answer


def wait_for_frames(page: Page, *expected: int) -> None:
    """Wait until the videos show these frames, counted from 1, judging by brightness."""
    page.wait_for_function(
        f"""JSON.stringify([...document.querySelectorAll("video")].map((video) => {{
            const canvas = new OffscreenCanvas(4, 4).getContext("2d");
            canvas.drawImage(video, 0, 0, 4, 4);
            return 1 + Math.round(canvas.getImageData(1, 1, 1, 1).data[0] / 255 * {FRAMES});
        }})) === '{json.dumps(expected, separators=(",", ":"))}'"""
    )


def pause_at_first_frame(page: Page, group: int = 0) -> None:
    page.get_by_role("group").nth(group).focus()
    page.keyboard.press("Home")


def test_show_plays_muted_with_controls_and_wide_enough(open_page: OpenPage) -> None:
    page = open_page(show(greys(), label="dawn").html)
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")
    assert state(page, "muted") == state(page, "controls") == state(page, "loop") == [True]
    assert state(page, "clientWidth")[0] >= PLAYER_WIDTH
    expect(page.get_by_label("Video, 14 frames at 7 fps, 2.0 s: dawn")).to_be_visible()
    page.set_viewport_size({"width": 320, "height": 600})  # a telephone
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("shown", [show, lambda frames: compare({"a": frames})])
def test_nothing_starts_by_itself_for_readers_who_want_less_motion(
    open_page: OpenPage, shown: Callable[[Any], Display]
) -> None:
    page = open_page(shown(greys()).html, reduced_motion="reduce")
    page.wait_for_timeout(400)
    assert state(page, "paused") == [True]
    assert state(page, "currentTime") == [0]


def test_without_scripts_each_video_keeps_its_own_controls(open_page: OpenPage) -> None:
    html = compare({"a": greys(), "b": greys(), "c": greys()}).html
    page = open_page(html, java_script_enabled=False)
    for video in page.locator("video").all():
        assert video.get_attribute("controls") is not None
        assert video.get_attribute("autoplay") is None
        box = video.bounding_box()
        assert box is not None
        assert box["width"] >= PLAYER_WIDTH
    assert page.get_by_role("button").count() == 0


def test_a_video_out_of_sight_pauses_until_it_is_seen(open_page: OpenPage) -> None:
    page = open_page("<div style='height:3000px'></div>" + show(greys()).html)
    page.wait_for_timeout(300)
    assert state(page, "paused") == [True]
    page.locator("video").scroll_into_view_if_needed()
    page.wait_for_function("!document.querySelector('video').paused")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("document.querySelector('video').paused")


def test_the_keyboard_and_the_slider_move_every_video(open_page: OpenPage) -> None:
    page = open_page(compare({"a": greys(), "b": greys()}, fps=FPS).html)
    pause_at_first_frame(page)
    wait_for_frames(page, 1, 1)
    for number in range(2, 5):
        page.keyboard.press("ArrowRight")
        wait_for_frames(page, number, number)
    page.keyboard.press("ArrowLeft")
    wait_for_frames(page, 3, 3)
    for _ in range(5):  # quickly: all of them count
        page.keyboard.press("ArrowRight")
    wait_for_frames(page, 8, 8)
    page.keyboard.press("End")
    wait_for_frames(page, FRAMES, FRAMES)
    expect(page.get_by_role("status")).to_have_text("Frame 14 of 14")
    slider = page.get_by_role("slider", name="Frame")
    slider.fill("9")
    wait_for_frames(page, 10, 10)
    expect(slider).to_have_attribute("aria-valuetext", "Frame 10 of 14, 1.29 s")


def test_compare_plays_and_pauses_together_whatever_the_labels(open_page: OpenPage) -> None:
    label = "<img src=x onerror='document.title=1'>\"&</script>"
    page = open_page(compare({"a": greys(), label: greys()}).html)
    assert page.locator("figcaption").nth(1).inner_text() == label
    assert page.locator("img").count() == 0
    assert page.title() == ""
    page.get_by_role("button", name="Pause").click()
    assert state(page, "paused") == [True, True]
    page.get_by_role("group").focus()
    page.keyboard.press("Space")
    page.wait_for_function("[...document.querySelectorAll('video')].every(v => !v.paused)")
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Space")
    assert state(page, "paused") == [True, True]
    page.wait_for_timeout(200)
    assert len(set(state(page, "currentTime"))) == 1


def test_a_video_that_fell_behind_catches_up(open_page: OpenPage) -> None:
    page = open_page(compare({"a": greys(), "b": greys()}).html)
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")
    gap_at_the_end = page.evaluate(
        """() => new Promise((resolve) => {
            const [clock, other] = document.querySelectorAll("video");
            other.currentTime = 0;
            other.playbackRate = 0.5;
            clock.addEventListener("pause", () => resolve(clock.currentTime - other.currentTime));
        })"""
    )
    assert abs(gap_at_the_end) < 1 / FPS


def test_a_shorter_video_holds_its_last_frame_and_all_begin_again(open_page: OpenPage) -> None:
    page = open_page(compare({"long": greys(), "short": greys(5)}).html)
    pause_at_first_frame(page)
    page.keyboard.press("End")
    wait_for_frames(page, FRAMES, 5)
    page.keyboard.press("Space")
    page.wait_for_function(
        "[...document.querySelectorAll('video')].every(v => v.currentTime < 0.6)"
    )
    page.wait_for_function("document.querySelector('video').currentTime > 1.7")
    page.wait_for_function(
        "[...document.querySelectorAll('video')].every(v => v.currentTime < 0.6)"
    )
    assert state(page, "paused") == [False, False]


def test_many_players_on_a_page_do_not_disturb_each_other(open_page: OpenPage) -> None:
    one, two = compare({"a": greys()}).html, compare({"b": greys()}).html
    # JupyterLab can show one output twice, so the first comes again.
    page = open_page(one + two + one, reduced_motion="reduce")
    assert page.get_by_role("slider").count() == 3
    pause_at_first_frame(page, group=1)
    page.keyboard.press("ArrowRight")
    wait_for_frames(page, 1, 2, 1)
    assert not page.evaluate("Object.keys(window).filter(name => /svdnb|player/i.test(name))")
