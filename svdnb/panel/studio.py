"""The studio: a panel that steers Stable Video Diffusion with sliders, and shows what they do."""

from __future__ import annotations

import base64
import json
import random
import threading
import weakref
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
from IPython.display import HTML
from PIL import Image

from svdnb.checkpoints import HUB, checkpoint_of
from svdnb.generation import Generation, Progress
from svdnb.images import ImageError, example_images, load_image
from svdnb.panel.gallery import Card, Start, button, line
from svdnb.recipe import PLAYED_FPS, USUAL_FPS, USUAL_NOISE, Recipe
from svdnb.videos import VideoError, compare

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

EXAMPLE, UPLOAD, FRAME = "Example", "Upload", "Frame of a video"
LARGEST_SEED = 2**32 - 1

SLIDERS = (
    "motion_bucket_id", "fps", "noise_aug_strength", "seed", "num_inference_steps", "num_frames",
    "decode_chunk_size",
)  # fmt: skip
"""Controls that hold one number each, in the order of the keyboard."""

_PANELS: weakref.WeakKeyDictionary[Any, Studio] = weakref.WeakKeyDictionary()


def studio(pipe: StableVideoDiffusionPipeline) -> Studio:
    """A control panel for a pipeline: choose a picture, move sliders, generate, stop, compare.

    Generation runs in the background, so other cells work meanwhile; but do not call the same
    pipeline from one of them. A second call with the same pipeline gives the same panel. The panel
    keeps the pipeline and its videos until `close()`.
    """
    panel = _PANELS.get(pipe)
    if panel is None:
        panel = _PANELS[pipe] = Studio(pipe)
    return panel


class Studio(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """The panel that `svdnb.studio` makes. `cards` are its videos, the newest first.

    Its controls carry the names of the pipeline's arguments: `panel.motion_bucket_id.value`.
    *Save mp4* writes into `folder`.
    """

    _pipe: StableVideoDiffusionPipeline | None = None

    def __init__(self, pipe: StableVideoDiffusionPipeline, folder: Path = Path("studio")) -> None:
        self.cards: list[Card] = []
        self.folder, self._pipe = folder, pipe
        self._checkpoint = checkpoint_of(pipe)
        self._size = (self._checkpoint.width, self._checkpoint.height)
        self._start: Start | None = None
        self._generation: Generation | None = None
        self._running, self._made = False, 0
        # Clicks arrive in the kernel's main thread, the end of a generation in its own.
        self._lock = threading.RLock()
        style = (files("svdnb") / "assets" / "studio.css").read_text(encoding="utf-8")
        left = _column(self._build_picture(), self._build_settings())
        right = _column(self._build_video())
        columns = widgets.HBox([left, right])
        columns.add_class("svdnb-columns")
        self.gallery = widgets.VBox()
        self.gallery.add_class("svdnb-gallery")
        self._on_picture()
        self._on_numbers()
        super().__init__(
            [
                widgets.HTML(f"<style>{style}</style>"),
                columns,
                self._build_comparison(),
                self.gallery,
                _script(
                    ("svdnb-fps", self.fps, USUAL_FPS),
                    ("svdnb-noise", self.noise_aug_strength, USUAL_NOISE),
                ),
            ]
        )
        self.add_class("svdnb-studio")

    def generate(self) -> None:
        """Start a video with the settings on show; nothing happens while one is in the making."""
        with self._lock:
            if self._pipe is None or self._running or self._start is None:
                return
            start = self._start

            def watch(progress: Progress) -> None:
                self._on_progress(progress, generation, start)

            generation = Generation(self._pipe, start.picture, self.recipe(), watch)
            self._generation, self._running = generation, True
            self._refresh_buttons()
            generation.start()

    def stop(self) -> None:
        """Stop what is being made: at the end of the step, or before the next decoded chunk."""
        if self._generation:
            self._generation.stop()

    def wait(self, seconds: float | None = None) -> None:
        """Wait, for scripts and tests, until nothing is in the making."""
        if self._generation:
            self._generation.join(seconds)

    def recipe(self) -> Recipe:
        """The settings on show."""
        width, height = self._size
        low, high = self.guidance.value
        return Recipe(
            width=width,
            height=height,
            num_frames=self.num_frames.value,
            num_inference_steps=self.num_inference_steps.value,
            min_guidance_scale=low,
            max_guidance_scale=high,
            fps=self.fps.value,
            motion_bucket_id=self.motion_bucket_id.value,
            noise_aug_strength=round(self.noise_aug_strength.value, 4),
            decode_chunk_size=self.decode_chunk_size.value,
            seed=self.seed.value,
        )

    def use(self, card: Card) -> None:
        """Set all controls as they were for this video."""
        with self._lock:
            recipe = card.recipe
            for name in SLIDERS:
                getattr(self, name).value = getattr(recipe, name)
            self.guidance.value = (recipe.min_guidance_scale, recipe.max_guidance_scale)
            if card.start.is_example:
                self.kind.value, self.example.value = EXAMPLE, card.start.source
            else:
                self.kind.value = None
                self._take(card.start)

    def close(self) -> None:
        """Stop what is running, and let go of the pipeline and of all videos."""
        if self._pipe is None:  # closed before; widgets close themselves once more when they go
            return
        self.stop()
        _PANELS.pop(self._pipe, None)
        self._pipe, self.cards = None, []
        for widget in _all_within(self):
            if widget is not self:
                widget.close()
        super().close()

    # --- building ---------------------------------------------------------------------------------

    def _build_picture(self) -> widgets.Widget:
        self.kind = widgets.ToggleButtons(options=[EXAMPLE, UPLOAD, FRAME])
        self.kind.tooltips = [
            "a picture that comes along",
            "a picture of your own",
            "go on from a frame of a video below",
        ]
        self.example = widgets.Dropdown(
            options=list(example_images()), value="boat", description="Example"
        )
        self.upload = widgets.FileUpload(accept="image/*", description="Choose a picture")
        self.video = widgets.Dropdown(description="Video")
        self.frame = widgets.IntSlider(1, 1, 1, description="Frame")
        self.picture_message, self.picture_view = widgets.HTML(), widgets.HTML()
        for widget in (self.kind, self.example, self.upload, self.frame):
            widget.observe(self._on_picture, "value")
        self.video.observe(self._on_video, "value")
        choices = (self.kind, self.example, self.upload, self.video, self.frame)
        return _group("Picture", *choices, self.picture_message, self.picture_view)

    def _build_settings(self) -> widgets.Widget:
        steps, frames = self._checkpoint.num_inference_steps, self._checkpoint.num_frames
        self.motion_bucket_id = widgets.IntSlider(
            127, 0, 255, description="Motion bucket id", tooltip="how much is to move"
        )
        self.fps = widgets.IntSlider(
            7, 1, 40, description="fps", tooltip="how close in time the frames are to lie"
        )
        self.noise_aug_strength = widgets.FloatSlider(
            0.02, min=0, max=0.5, step=0.005, readout_format=".3f", description="Noise strength",
            tooltip="noise added to the picture: more of it gives more freedom",
        )  # fmt: skip
        self.seed = widgets.BoundedIntText(
            42, min=0, max=LARGEST_SEED, description="Seed", tooltip="where random numbers begin"
        )
        self.dice = button("Roll", self._on_dice, "a new seed", icon="random")
        self.num_inference_steps = widgets.IntSlider(
            steps, 2, 50, description="Steps", tooltip="steps of denoising"
        )
        self.num_frames = widgets.IntSlider(
            frames, 2, frames, description="Frames", tooltip="length of the video"
        )
        self.guidance = widgets.FloatRangeSlider(
            value=(1.0, self._checkpoint.max_guidance_scale), min=1.0, max=8.0, step=0.25,
            readout_format=".2f", description="Guidance",
            tooltip="push towards the picture: in the first frame, and in the last",
        )  # fmt: skip
        self.decode_chunk_size = widgets.IntSlider(
            min(8, frames), 1, frames, description="Decode chunk",
            tooltip="frames decoded at once: fewer take less memory",
        )  # fmt: skip
        self.fps.add_class("svdnb-fps")
        self.noise_aug_strength.add_class("svdnb-noise")
        self.remarks = widgets.HTML()
        for name in (*SLIDERS, "guidance"):
            getattr(self, name).observe(self._on_numbers, "value")
        return _group(
            "Settings",
            self.motion_bucket_id,
            self.fps,
            self.noise_aug_strength,
            widgets.HBox([self.seed, self.dice]),
            self.num_inference_steps,
            self.num_frames,
            self.guidance,
            self.decode_chunk_size,
            widgets.HTML(line("The green part of a track is the usual range.")),
            self.remarks,
        )

    def _build_video(self) -> widgets.Widget:
        self.generate_button = button("Generate", lambda _: self.generate(), icon="play")
        self.stop_button = button("Stop", self._on_stop, icon="stop")
        self.bar = widgets.FloatProgress(min=0, max=1)
        self.status = widgets.HTML(line("Ready.", "status"))
        self.preview = widgets.HTML()
        self.latest = widgets.VBox()
        buttons = widgets.HBox([self.generate_button, self.stop_button])
        return _group("Video", buttons, self.bar, self.status, self.preview, self.latest)

    def _build_comparison(self) -> widgets.Widget:
        self.compared = [widgets.Dropdown(description=text) for text in ("Compare", "with")]
        self.compare_button = button("Play in sync", self._on_compare)
        self.comparison_message, self.comparison = widgets.HTML(), widgets.Output()
        chosen = widgets.HBox([*self.compared, self.compare_button])
        self.comparison_group = _group("Compare", chosen, self.comparison_message, self.comparison)
        _show_if(False, self.comparison_group)
        return self.comparison_group

    # --- reacting ---------------------------------------------------------------------------------

    def _on_picture(self, change: Any = None) -> None:
        kind = self.kind.value
        _show_if(kind == EXAMPLE, self.example)
        _show_if(kind == UPLOAD, self.upload)
        _show_if(kind == FRAME and bool(self.cards), self.video, self.frame)
        try:
            if kind == EXAMPLE:
                name = self.example.value
                self._take(Start(load_image(name, self._size), name, is_example=True))
            elif kind == UPLOAD:
                picture = load_image(self.upload.value, self._size)
                self._take(Start(picture, "upload", is_example=False))
            elif kind == FRAME:
                self._take_frame()
        except ImageError as error:
            self._take(None, str(error))

    def _take_frame(self) -> None:
        card = next((card for card in self.cards if card.number == self.video.value), None)
        if card is None:
            self._take(None, "There is no video yet. Generate one first, then go on from it.")
        else:
            number = self.frame.value
            source = f"frame {number} of video {card.number}"
            self._take(Start(card.frames[number - 1], source, is_example=False))

    def _take(self, start: Start | None, problem: str = "") -> None:
        self._start = start
        self.picture_message.value = line(problem, "alert") if problem else ""
        self.picture_view.value = (
            _images([start.picture], f"The picture: {start.source}") if start else ""
        )
        self._refresh_buttons()

    def _on_video(self, change: Any = None) -> None:
        card = next((card for card in self.cards if card.number == self.video.value), None)
        if card is not None:
            self.frame.max = len(card.frames)
            self.frame.value = self.frame.max
        self._on_picture()

    def _on_numbers(self, change: Any = None) -> None:
        self.decode_chunk_size.max = self.num_frames.value
        self.remarks.value = "".join(line(remark) for remark in self._remarks())

    def _remarks(self) -> list[str]:
        recipe, remarks = self.recipe(), []
        slow, fast = USUAL_FPS
        if not slow <= recipe.fps <= fast:
            remarks.append(f"fps {recipe.fps} is outside of the usual range, {slow} to {fast}.")
        low, high = USUAL_NOISE
        # The pipeline's default of 0.02 lies a hair below, and needs no remark.
        if not 0.9 * low <= recipe.noise_aug_strength <= high:
            remarks.append(
                f"Noise strength {recipe.noise_aug_strength:g} is rare or unknown in training: "
                f"nine of ten clips had {low} to {high}."
            )
        if recipe.num_frames < self._checkpoint.num_frames:
            remarks.append(
                f"The checkpoint was trained to make {self._checkpoint.num_frames} frames."
            )
        if recipe.max_guidance_scale > 1:
            remarks.append("With guidance above 1, the UNet runs twice in each step.")
        return remarks

    def _on_dice(self, _: Any) -> None:
        # Not random.randrange: a learner's own random.seed() is none of our business.
        self.seed.value = random.SystemRandom().randint(0, 9999)

    def _on_stop(self, _: Any) -> None:
        self.stop()
        self.status.value = line("Stopping at the end of this step ...", "status")

    def _on_progress(self, progress: Progress, generation: Generation, start: Start) -> None:
        self.bar.value = progress.step / progress.steps
        self.status.value = line(_in_words(progress, generation.error), _role(progress))
        if progress.stage in ("done", "stopped", "failed"):
            self._finish(generation, start)
        elif progress.preview:
            text = f"Rough preview after step {progress.step}: frames from first to last"
            self.preview.value = _images(progress.preview, text)

    def _finish(self, generation: Generation, start: Start) -> None:
        with self._lock:
            self._running = False
            self.preview.value = ""
            self._refresh_buttons()
            if not generation.frames or self._pipe is None:
                return
            try:
                card = self._card(generation, start)
            except VideoError as error:
                self.status.value = line(f"Made, but it cannot be shown: {error}", "alert")
                return
            self.cards.insert(0, card)
            self._refresh_cards()
        card.measure()

    def _card(self, generation: Generation, start: Start) -> Card:
        self._made += 1
        return Card(
            number=self._made,
            frames=generation.frames,
            start=start,
            recipe=generation.recipe,
            checkpoint=self._checkpoint_name(),
            folder=self.folder,
            reuse=self.use,
            remove=self._on_remove,
        )

    def _checkpoint_name(self) -> str | None:
        """What `svdnb.checkpoint` takes to find this checkpoint on any machine that has it."""
        known = self._checkpoint.name == "pocket" or self._checkpoint.name in HUB
        return self._checkpoint.name if known else self._checkpoint.path or None

    def _on_remove(self, card: Card) -> None:
        with self._lock:
            self.cards.remove(card)
            self.comparison.outputs = ()
            self._refresh_cards()
            for widget in _all_within(card):
                widget.close()

    def _on_compare(self, _: Any) -> None:
        one, two = (
            next(card for card in self.cards if card.number == dropdown.value)
            for dropdown in self.compared
        )
        self.comparison.outputs = ()
        if one is two:
            self.comparison_message.value = line("Choose two different videos.", "alert")
            return
        self.comparison_message.value = ""
        self.comparison.append_display_data(
            compare({f"{c.label}, {c.settings}": c.frames for c in (one, two)}, PLAYED_FPS)
        )

    # --- showing ----------------------------------------------------------------------------------

    def _refresh_buttons(self) -> None:
        self.generate_button.disabled = self._running or self._start is None
        self.stop_button.disabled = not self._running

    def _refresh_cards(self) -> None:
        """The newest video large, the others below, and all of them on offer everywhere."""
        self.latest.children, self.gallery.children = self.cards[:1], self.cards[1:]
        options = [(card.label, card.number) for card in self.cards]
        for dropdown, place in ((self.video, 0), (self.compared[0], 0), (self.compared[1], 1)):
            dropdown.options = options
            if len(options) > place:
                dropdown.value = options[place][1]
        _show_if(len(options) > 1, self.comparison_group)


def _script(*bands: tuple[str, widgets.Widget, tuple[float, float]]) -> widgets.Output:
    """Names for sliders, and a band of each (class, slider, (low, high)) on its track."""
    script = (files("svdnb") / "assets" / "studio.js").read_text(encoding="utf-8")
    shares = {
        name: [100 * (end - slider.min) / (slider.max - slider.min) for end in band]
        for name, slider, band in bands
    }
    output = widgets.Output()
    output.append_display_data(HTML(f"<script>({script})({json.dumps(shares)})</script>"))
    return output


def _group(title: str, *inside: widgets.Widget) -> widgets.VBox:
    return widgets.VBox([widgets.HTML(f"<h3>{title}</h3>"), *inside])


def _column(*inside: widgets.Widget) -> widgets.VBox:
    column = widgets.VBox(list(inside))
    column.add_class("svdnb-column")
    return column


def _show_if(wanted: bool, *inside: widgets.Widget) -> None:
    for widget in inside:
        widget.layout.display = None if wanted else "none"


def _all_within(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    for child in getattr(widget, "children", ()):
        yield from _all_within(child)
    yield widget


def _images(pictures: Iterable[Image.Image], text: str) -> str:
    """Pictures in a row, with one text alternative for all."""
    tags = []
    for picture in pictures:
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        data = base64.b64encode(buffer.getvalue()).decode()
        tags.append(f'<img alt="" src="data:image/jpeg;base64,{data}">')
    return f'<div class="svdnb-images" role="img" aria-label="{escape(text)}">{"".join(tags)}</div>'


def _role(progress: Progress) -> str:
    """Steps are too many to be read out; the end is not."""
    return {"failed": "alert", "done": "status", "stopped": "status"}.get(progress.stage, "")


def _in_words(progress: Progress, error: str) -> str:
    seconds = f"{progress.seconds:.1f} s"
    if progress.stage == "starting":
        return "Reading the picture ..."
    if progress.stage == "denoising":
        left = f", about {progress.left:.1f} s left" if progress.left else ""
        return f"Step {progress.step} of {progress.steps}, {seconds}{left}."
    if progress.stage == "decoding":
        return f"Decoding the frames, {seconds}."
    if progress.stage == "stopped":
        return f"Stopped after step {progress.step} of {progress.steps}; nothing was kept."
    return error or f"Done in {seconds}."
