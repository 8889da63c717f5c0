"""Control Stable Video Diffusion with sliders, and see at once what they do."""

from __future__ import annotations

import atexit
import json
import random
import threading
import time
import weakref
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
from IPython.display import HTML
from PIL import Image

from svdnb.checkpoints import checkpoint_of
from svdnb.errors import Error
from svdnb.generation import (
    USUAL_FPS,
    USUAL_NOISE,
    Progress,
    Stopped,
    VideoSettings,
    explain,
    generate,
    recipe,
)
from svdnb.images import example_images, load_image
from svdnb.panel.card import Card, Start, Video
from svdnb.panel.preview import Preview, previewing
from svdnb.panel.widgets import button, close_within, group, line, picture_row, slider
from svdnb.player import compare
from svdnb.videos import encode, pixels

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

SLIDERS: dict[str, tuple[Any, ...]] = {
    "motion_bucket_id": ("Motion bucket id", "how much should move", 0, 255),
    "fps": ("fps", "how close in time the frames should be", 1, 40),
    "noise_aug_strength": ("Noise strength", "more noise gives more freedom", 0, 0.5, 0.005, 3),
    "num_inference_steps": ("Steps", "denoising steps", 2, 50),
    "num_frames": ("Frames", "length of the video", 2, None),
    "guidance": ("Guidance", "push towards the picture, from first to last frame", 1, 8, 0.25, 2),
    "decode_chunk_size": ("Decode chunk", "fewer frames at once need less memory", 1, None),
}
"""Text, purpose, minimum, maximum (None: the checkpoint's frames), step and digits of each slider.

The names are those of `VideoSettings`, except for guidance, which is a range.
"""

_PANELS: weakref.WeakKeyDictionary[Any, Studio] = weakref.WeakKeyDictionary()


def studio(pipe: StableVideoDiffusionPipeline) -> Studio:
    """Make a control panel for a pipeline: choose a picture, move sliders, generate, compare.

    Videos are generated in the background, so you can run other cells meanwhile; a cell that calls
    the same pipeline is asked to wait. A second call with the same pipeline returns the same panel.
    The panel keeps the pipeline and its videos in memory until you call `close()`.
    """
    panel = _PANELS.get(pipe)
    if panel is None:
        panel = _PANELS[pipe] = Studio(pipe)
    return panel


class Studio(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """The panel that `svdnb.studio` returns. `cards` are its videos, the newest first.

    Its controls are named like the pipeline's arguments: `panel.motion_bucket_id.value`. *Save mp4*
    writes into `folder`.
    """

    _pipe: StableVideoDiffusionPipeline | None = None

    def __init__(self, pipe: StableVideoDiffusionPipeline, folder: Path = Path("studio")) -> None:
        self.cards: list[Card] = []
        self.folder, self._pipe, self._checkpoint = folder, pipe, checkpoint_of(pipe)
        self._start: Start | None = None
        self._worker: threading.Thread | None = None
        self._running, self._stop, self._made = False, threading.Event(), 0
        # Clicks arrive in the kernel's main thread, finished videos in the worker's.
        self._lock = threading.Lock()
        super().__init__(self._build())
        self.add_class("svdnb-studio")
        self.example.value = "boat"
        self._on_numbers()

    def generate(self) -> None:
        """Start a video with the current settings, unless one is being generated."""
        if self._pipe is None or self._running or self._start is None:
            return
        self._running, self._stop = True, threading.Event()
        self._refresh_buttons()
        work = (self._pipe, self._start, self.settings())
        self._worker = threading.Thread(target=self._work, args=work, daemon=True)
        atexit.register(self._end)  # a process that ended in the middle of a step would abort
        self._worker.start()

    def stop(self) -> None:
        """Stop the current video after this step, or after this chunk of decoded frames."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait in a script until the current video is finished."""
        if self._worker:
            self._worker.join(seconds)

    def _end(self) -> None:
        self.stop()
        self.wait()

    def settings(self) -> VideoSettings:
        """Return the settings that the controls show."""
        numbers = {name: slider.value for name, slider in self._sliders.items()}
        low, high = numbers.pop("guidance")
        numbers |= {"min_guidance_scale": low, "max_guidance_scale": high, "seed": self.seed.value}
        numbers["noise_aug_strength"] = round(numbers["noise_aug_strength"], 4)
        return VideoSettings.of(self._checkpoint, **numbers)

    def close(self) -> None:
        """Stop the current video and release the pipeline and all videos."""
        if self._pipe is None:  # ipywidgets calls close() again when the panel is deleted
            return
        self.stop()
        _PANELS.pop(self._pipe, None)
        self._pipe, self.cards = None, []
        close_within(self)
        super().close()

    # Build the widgets

    def _build(self) -> list[widgets.Widget]:
        controls = widgets.VBox([self._build_picture(), self._build_settings()])
        columns = [each.add_class("svdnb-column") for each in (controls, self._build_video())]
        row = widgets.HBox(columns).add_class("svdnb-columns")
        self.comparison, self.gallery = widgets.Output(), widgets.VBox().add_class("svdnb-gallery")
        return [self._build_assets(), row, self.comparison, self.gallery]

    def _build_assets(self) -> widgets.Output:
        """Load the style, and the script that names the sliders and marks the usual ranges."""
        assets = files("svdnb") / "assets"
        style = (assets / "studio.css").read_text(encoding="utf-8")
        script = (assets / "studio.js").read_text(encoding="utf-8")
        ranges = {"svdnb-fps": USUAL_FPS, "svdnb-noise": USUAL_NOISE}
        output = widgets.Output()
        output.append_display_data(
            HTML(f"<style>{style}</style><script>({script})({json.dumps(ranges)})</script>")
        )
        return output

    def _build_picture(self) -> widgets.Widget:
        self.example = widgets.Dropdown(
            options=list(example_images()), value=None, description="Example"
        )
        self.upload = widgets.FileUpload(
            accept="image/*", description="Upload", tooltip="Upload: a picture of your own"
        )
        self.picture_message, self.picture_view = widgets.HTML(), widgets.HTML()
        self.example.observe(self._on_example, "value")
        self.upload.observe(lambda change: self._load(change.new, "upload"), "value")
        choices = widgets.HBox([self.example, self.upload])
        return group("Picture", choices, self.picture_message, self.picture_view)

    def _build_settings(self) -> widgets.Widget:
        usual = VideoSettings.of(self._checkpoint)
        self._sliders = {}
        for name, value in _values(usual).items():
            text, about, low, high, *more = SLIDERS[name]
            self._sliders[name] = slider(text, about, value, low, high or usual.num_frames, *more)
            setattr(self, name, self._sliders[name])
        self.seed = widgets.BoundedIntText(
            usual.seed, min=0, max=2**32 - 1, description="Seed", tooltip="chooses the random noise"
        )
        self.fps.add_class("svdnb-fps")
        self.noise_aug_strength.add_class("svdnb-noise")
        for widget in self._sliders.values():
            widget.observe(self._on_numbers, "value")
        self.dice = button("Roll", self._roll, "a new seed", icon="random")
        self.remarks = widgets.HTML()
        legend = widgets.HTML(line("The green part of a slider is the usual range."))
        seed = widgets.HBox([self.seed, self.dice])
        return group("Settings", *self._sliders.values(), seed, legend, self.remarks)

    def _build_video(self) -> widgets.Widget:
        self.generate_button = button("Generate", self.generate, icon="play")
        self.stop_button = button("Stop", self._on_stop, icon="stop")
        self.bar = widgets.FloatProgress(min=0, max=1)
        self.status = widgets.HTML(line("Ready.", "status"))
        self.preview, self.latest = widgets.HTML(), widgets.VBox()
        buttons = widgets.HBox([self.generate_button, self.stop_button])
        return group("Video", buttons, self.bar, self.status, self.preview, self.latest)

    # Generate in the worker thread

    def _work(
        self, pipe: StableVideoDiffusionPipeline, start: Start, settings: VideoSettings
    ) -> None:
        began, card = time.monotonic(), None
        try:
            with previewing(pipe, start.picture) as preview:
                frames = generate(
                    pipe,
                    start.picture,
                    settings,
                    on_progress=lambda progress: self._on_progress(progress, preview),
                    stop=self._stop,
                )
            pictures = [Image.fromarray(frame) for frame in pixels(frames)]
            kept = recipe(settings, self._checkpoint, start.picture, start.source)
            if not start.is_example:
                kept["picture"] = f"picture-{kept['pixels'][:8]}.png"
            clip = encode(pictures, settings=kept)
            card = self._add(Video(pictures, clip, start, settings, kept))
            self._say(f"Done in {time.monotonic() - began:.1f} s.", "status")
        except BaseException as error:  # SystemExit, too, would end this thread without a word
            role = "status" if isinstance(error, Stopped) else "alert"
            self._say(str(explain(error, settings)), role)
        finally:
            self._running, self.preview.value = False, ""
            self._refresh_buttons()
            atexit.unregister(self._end)
        if card is not None:
            card.measure()

    def _add(self, video: Video) -> Card | None:
        """Put a video's card on top, unless the panel was closed meanwhile."""
        with self._lock:
            if self._pipe is None:
                return None
            self._made += 1
            card = Card(self._made, video, self.folder)
            card.reuse_button.on_click(lambda _: self._use(card))
            card.continue_button.on_click(lambda _: self._continue_from(card))
            card.remove_button.on_click(lambda _: self._remove(card))
            card.compared.observe(self._show_comparison, "value")
            self.cards.insert(0, card)
            self._refresh_cards()
            return card

    def _on_progress(self, progress: Progress, preview: Preview) -> None:
        self.bar.value = progress.step / progress.steps
        self._say(_in_words(progress))
        if progress.stage == "denoising" and progress.latents is not None:
            shown = preview.after_step(progress.latents, progress.step)
            text = f"Rough preview after step {progress.step}: frames from first to last"
            self.preview.value = picture_row(shown, text) if shown else ""

    def _say(self, text: str, role: str = "") -> None:
        self.status.value = line(text, role)

    # React to the controls

    def _on_example(self, change: Any) -> None:
        if name := change.new:
            self._load(name, name, is_example=True)

    def _load(self, source: Any, words: str, is_example: bool = False) -> None:
        size = (self._checkpoint.width, self._checkpoint.height)
        try:
            self._take(Start(load_image(source, size), words, is_example))
        except Error as error:
            self._take(None, str(error))

    def _take(self, start: Start | None, problem: str = "") -> None:
        """Show the picture that the next video starts from, or what is wrong with it."""
        self._start = start
        if start is None or not start.is_example:
            self.example.value = None  # so that the same example can be chosen again
        self.picture_message.value = line(problem, "alert") if problem else ""
        self.picture_view.value = (
            picture_row([start.picture], f"The picture: {start.source}") if start else ""
        )
        self._refresh_buttons()

    def _on_numbers(self, change: Any = None) -> None:
        self.decode_chunk_size.max = self.num_frames.value
        remarks = _remarks(self.settings(), self._checkpoint.num_frames)
        self.remarks.value = "".join(map(line, remarks))

    def _roll(self) -> None:
        # SystemRandom, so that the learner's own random.seed() keeps its effect elsewhere.
        self.seed.value = random.SystemRandom().randint(0, 9999)

    def _on_stop(self) -> None:
        self.stop()
        self._say("Stopping at the end of this step ...", "status")

    # React to the buttons of the cards

    def _use(self, card: Card) -> None:
        """Set all controls as they were for this video."""
        settings, start = card.video.settings, card.video.start
        for name, value in _values(settings).items():
            self._sliders[name].value = value
        self.seed.value = settings.seed
        if start.is_example:
            self.example.value = start.source
        else:
            self._take(start)

    def _continue_from(self, card: Card) -> None:
        """Let the next video start at the last frame of this one."""
        self._take(Start(card.video.frames[-1], f"end of video {card.number}"))

    def _remove(self, card: Card) -> None:
        with self._lock:
            self.cards.remove(card)
            self._refresh_cards()
        card.compared.value = False
        close_within(card)
        card.close()

    def _show_comparison(self, _: Any) -> None:
        chosen = [card for card in self.cards if card.compared.value]
        videos = {f"{c.label}, {c.video.summary()}": c.video.clip for c in reversed(chosen)}
        self.comparison.outputs = ()
        if len(videos) > 1:
            self.comparison.append_display_data(compare(videos))

    # Update what is shown

    def _refresh_buttons(self) -> None:
        self.generate_button.disabled = self._running or self._start is None
        self.stop_button.disabled = not self._running

    def _refresh_cards(self) -> None:
        """Show the newest video large and the others below."""
        self.latest.children, self.gallery.children = self.cards[:1], self.cards[1:]


def _values(settings: VideoSettings) -> dict[str, Any]:
    """Return what the sliders show for these settings."""
    guidance = (settings.min_guidance_scale, settings.max_guidance_scale)
    return {name: getattr(settings, name, guidance) for name in SLIDERS}


def _remarks(settings: VideoSettings, trained_frames: int) -> Iterator[str]:
    """Say which settings the model has rarely or never seen in training."""
    (slow, fast), (low, high) = USUAL_FPS, USUAL_NOISE
    if not slow <= settings.fps <= fast:
        yield f"fps {settings.fps} is outside the usual range, {slow} to {fast}."
    # diffusers' default of 0.02 is slightly below the range and needs no remark.
    if not 0.9 * low <= settings.noise_aug_strength <= high:
        yield (
            f"Noise strength {settings.noise_aug_strength:g} was rare in training: 90% of the "
            f"clips had {low} to {high}."
        )
    if settings.num_frames < trained_frames:
        yield f"The checkpoint was trained to generate {trained_frames} frames."
    if settings.max_guidance_scale > 1:
        yield "With guidance above 1, the UNet runs twice in each step."


def _in_words(progress: Progress) -> str:
    if progress.stage == "encoding":
        return "Encoding the picture ..."
    if progress.stage == "decoding":
        return f"Decoding the frames, {progress.seconds:.1f} s."
    left = f", about {progress.left:.1f} s left" if progress.left else ""
    return f"Step {progress.step} of {progress.steps}, {progress.seconds:.1f} s{left}."
