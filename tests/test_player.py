"""Players as someone meets them who hears the page, or reads its HTML."""

from __future__ import annotations

import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from diffusers.utils import export_to_video
from numpy.typing import NDArray
from PIL import Image

from svdnb import Error, compare, save, show
from svdnb.videos import encode


def greys(frames: int = 14) -> NDArray[np.float64]:
    return np.ones((frames, 64, 112, 3)) * np.linspace(0, 1, frames)[:, None, None, None]


def attributes(html: str, name: str) -> list[str]:
    return [unescape(value) for value in re.findall(rf'{name}="([^"]*)"', html)]


def test_a_video_says_in_words_what_it_is() -> None:
    player = show(greys(), fps=7, label="a <disc> & more")
    text = "Video, 14 frames at 7 fps, 2.0 s: a <disc> & more"
    assert repr(player) == text
    html = player._repr_html_()
    assert attributes(html, "aria-label") == [text]
    assert "<figcaption>Video, 14 frames at 7 fps, 2.0 s: a &lt;disc&gt; &amp; more<" in html
    assert repr(show(greys(1), fps=12.5)) == "Video, 1 frame at 12.5 fps, 0.1 s"


def test_compare_names_every_video_in_words() -> None:
    start = Image.new("RGB", (112, 64))
    player = compare({"start": start, "slow": greys(2), "fast": greys(3)}, fps=7)
    summary = (
        "3 side by side. Still picture: start. Video, 2 frames at 7 fps, 0.3 s: slow. "
        "Video, 3 frames at 7 fps, 0.4 s: fast"
    )
    assert repr(player) == summary
    assert f'role="group" aria-label="{summary}"' in player.html


def test_the_page_needs_nothing_from_outside() -> None:
    start = Image.new("RGB", (112, 64))
    html = show(greys(2)).html + compare({"a": greys(2), "b": start}).html
    kinds = [source.partition(";")[0] for source in attributes(html, "(?:src|poster)")]
    clip = ["data:image/jpeg", "data:video/mp4"]
    assert kinds == [*clip, *clip, "data:image/jpeg"]
    assert "http" not in html


def test_an_encoded_clip_is_shown_and_compared_without_encoding_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = encode(greys(), fps=7)
    written = clip.write(tmp_path / "x.mp4")
    expected = show(save(greys(), tmp_path / "y.mp4"), label="grey")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a second encoding, or a look into the file")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert written.read_bytes() == clip.mp4
    assert attributes(show(clip).html, "src") == attributes(expected.html, "src")
    assert repr(show(clip, label="grey")) == repr(expected)
    assert "Video, 14 frames at 7 fps, 2.0 s: a" in repr(compare({"a": clip, "b": clip}))


def test_a_file_from_diffusers_plays_at_its_own_rate(tmp_path: Path) -> None:
    path = export_to_video(list(greys(10)), str(tmp_path / "theirs.mp4"), fps=5)
    assert repr(show(path, fps=7)) == "Video, 10 frames at 5 fps, 2.0 s"
    assert "Video, 10 frames at 5 fps, 2.0 s: a" in repr(compare({"a": Path(path)}))


def test_files_that_browsers_cannot_play_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Error, match="There is no file"):
        show(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(Error, match="not a readable video"):
        show(tmp_path / "text.mp4")
    frames = list((greys(3) * 255).astype(np.uint8))
    imageio.mimwrite(tmp_path / "old.mp4", frames, codec="mpeg4", fps=7)
    with pytest.raises(Error, match=r"mpeg4.*svdnb\.save"):
        show(tmp_path / "old.mp4")


def test_compare_tells_which_video_is_wrong() -> None:
    with pytest.raises(Error, match=r"^'broken': .*NaN"):
        compare({"fine": greys(1), "broken": np.full((1, 8, 8, 3), np.nan)})
    with pytest.raises(Error, match="nothing to compare"):
        compare({})
