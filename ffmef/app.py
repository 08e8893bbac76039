"""A page on this machine: drop a bracket, compare, adjust, see how much each frame counts, save at full size and depth.

The server is NiceGUI, which ships all its scripts and fonts: nothing is fetched from or sent to the network.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
from nicegui import run, ui
from PIL import Image

from ffmef import align, pipeline
from ffmef.errors import InputError
from ffmef.imaging import bracket
from ffmef.imaging.io import Picture, decode_picture, encode_picture, to_depth
from ffmef.imaging.paths import natural

HOST = "127.0.0.1"  # loopback only: no other machine can open the page
PREVIEW_SIDE = 1000  # pixels
PROBE = 2 / 255  # how much a frame is brightened to see its weight
SAVED = {"PNG": "png", "TIFF": "tif", "JPEG": "jpg"}
# Name, least, most and step of the adjustments, all neutral at 0.
SLIDERS = (("brightness", -2, 2, 0.1), ("contrast", -1, 2, 0.1), ("saturation", -1, 2, 0.1), ("prefer", -4, 4, 0.25))
NEUTRAL = {name: 0.0 for name, *_ in SLIDERS}
COMPARE = """
<div style="position:relative;line-height:0;user-select:none">
  <img src="{fused}" style="width:100%" alt="fused picture">
  <img src="{frame}" style="position:absolute;inset:0;width:100%;clip-path:inset(0 {hidden}% 0 0)" alt="frame">
  <div style="position:absolute;top:0;bottom:0;left:{shown}%;border-left:2px solid white"></div>
</div>
"""

Result = TypeVar("Result")


def adjustable() -> bool:
    """Return whether the fusion takes adjustments."""
    return "adjust" in inspect.signature(pipeline.fuse).parameters


@dataclass(frozen=True)
class Scene:
    """Frames made comparable, and small versions of them."""

    names: list[str]
    full: list[Picture]
    small: list[Picture]
    remarks: list[str]

    @classmethod
    def of(cls, files: dict[str, bytes], aligned: bool) -> Scene:
        """Decode files, at least two, by name.

        Raises:
            InputError: a file cannot be used, or the frames do not fit together.
        """
        names = sorted(files, key=natural)

        def read(name, white_balance=None):
            return decode_picture(files[name], name, white_balance=white_balance)

        full, remarks = bracket.read_bracket(names, read=read)
        if aligned:
            full, lines = align.align_pictures(full, names)
            remarks += lines
        return cls(names, full, [_shrunk(picture) for picture in full], remarks)

    def fuse(self, pictures: list[Picture], adjustments: dict[str, float]) -> Picture:
        """Return the fused picture of full or small frames."""
        options: dict[str, Any] = {}
        if adjustable():
            from ffmef.adjust import Adjustments

            options["adjust"] = Adjustments(**adjustments)
        return pipeline.fuse_pictures(pictures, names=self.names, **options)

    def shares(self, adjustments: dict[str, float]) -> list[np.ndarray]:
        """Return how much every pixel of the result follows each small frame, (H, W) in [0, 1]; the sum is 1.

        Brightens each frame a little and measures the change: the derivative, whatever the model.
        """
        frames = [replace(p, pixels=to_depth(p.pixels, np.float32) * (1 - PROBE), alpha=None) for p in self.small]
        before = _grey(self.fuse(frames, adjustments).pixels)
        follows = []
        for index, frame in enumerate(frames):
            probed = [*frames]
            probed[index] = replace(frame, pixels=frame.pixels + np.float32(PROBE))
            follows.append(np.maximum(_grey(self.fuse(probed, adjustments).pixels) - before, 0))
        total = np.maximum(sum(follows), 1e-6)
        return [share / total for share in follows]


def renamed(files: dict[str, bytes], dropped: Sequence[tuple[str, bytes]]) -> tuple[dict[str, bytes], list[str]]:
    """Return the dropped files by names of their own, and a line for each that has another name now or is left out.

    >>> renamed({"a.jpg": b"1"}, [("b.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"1")])
    ({'b.jpg': b'1', 'b (2).jpg': b'2'}, ['Another b.jpg is kept as b (2).jpg', 'Left out a.jpg: it is here already'])
    """
    own: dict[str, bytes] = {}
    lines = []
    for name, data in dropped:
        stem, dot, extension = name.rpartition(".")
        known = {**files, **own}
        numbered = (f"{stem or extension} ({n}){dot and dot + extension}" for n in itertools.count(2))
        other = next(other for other in itertools.chain([name], numbered) if known.get(other, data) == data)
        if other in known:
            lines.append(f"Left out {name}: it is here already")
        else:
            own[other] = data
            if other != name:
                lines.append(f"Another {name} is kept as {other}")
    return own, lines


def added(files: dict[str, bytes], dropped: dict[str, bytes], aligned: bool) -> tuple[dict[str, bytes], list[str]]:
    """Return the files with those dropped ones that fit to them, and a line for each that is left out."""
    fitting, lines = {}, []
    for name in sorted(dropped, key=natural):
        try:
            decode_picture(dropped[name], name)
        except InputError as error:
            lines.append(f"Left out {error}")
        else:
            fitting[name] = dropped[name]
    if not fitting or _problem({**files, **fitting}, aligned) is None:
        return {**files, **fitting}, lines
    for name, data in fitting.items():  # one at a time, to find those that do not fit
        problem = _problem({**files, name: data}, aligned)
        if problem is None:
            files = {**files, name: data}
        else:
            lines.append(f"Left out {name}: {problem}")
    return files, lines


def _problem(files: dict[str, bytes], aligned: bool) -> str | None:
    """Return why files cannot be fused together, or None; a single one always fits."""
    try:
        if len(files) > 1:
            Scene.of(files, aligned)
    except InputError as error:
        return str(error)
    return None


def _shrunk(picture: Picture) -> Picture:
    import cv2

    height, width = picture.pixels.shape[:2]
    scale = min(1.0, PREVIEW_SIDE / max(height, width))
    if scale == 1:
        return picture
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    alpha = None if picture.alpha is None else cv2.resize(picture.alpha, size, interpolation=cv2.INTER_NEAREST)
    return replace(picture, pixels=cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA), alpha=alpha)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else pixels.mean(2)


def _url(picture: Picture) -> str:
    data, _ = encode_picture(picture, "JPEG", "preview", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def heat_map(share: np.ndarray) -> str:
    """Return a picture of a share, from blue (0) by grey (one half) to red (1), as a data URL."""
    share = np.clip(share, 0, 1)[..., None]
    blue, grey, red = (np.array(colour, np.float64) for colour in ((30, 60, 160), (220, 220, 220), (190, 30, 40)))
    low, high = np.minimum(2 * share, 1), np.maximum(2 * share - 1, 0)
    colours = blue + (grey - blue) * low + (red - grey) * high
    target = io.BytesIO()
    Image.fromarray(np.rint(colours).astype(np.uint8)).save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


async def _elsewhere(work: Callable[..., Result], *arguments: Any) -> Result:
    """Return the result of work done in the background while the page stays responsive."""
    # By its annotation, None if the program ends meanwhile: then nobody sees the page any more.
    return cast(Result, await run.io_bound(work, *arguments))


class Page:
    """The page of one visitor."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.left_out: list[str] = []
        self.aligned = False
        self.scene: Scene | None = None
        self.values = dict(NEUTRAL)
        self.fused = self.frame = ""
        self.version = 0
        self.changing = asyncio.Lock()  # of the frames: one change at a time
        with ui.row().classes("w-full items-start"):
            with ui.column().style("width:300px;max-width:100%;flex-shrink:0"):
                ui.label("ffmef").classes("text-h5")
                ui.label("Drop the frames of one scene. They stay on this machine.")
                self.upload = ui.upload(multiple=True, auto_upload=True, on_multi_upload=self.take, label="Frames")
                self.upload.classes("w-full")
                self.chips = ui.row().classes("w-full gap-1")
                self.hand_held = ui.switch("Hand-held: align", on_change=self.realign)
                if adjustable():
                    for name, least, most, step in SLIDERS:
                        self._slider(name, least, most, step)
                with ui.row():
                    self.format = ui.select(list(SAVED), value="PNG").mark("format")
                    ui.button("Save", on_click=self.save).props('data-test="save"')
                ui.button("Start again", on_click=self.clear).props("flat")
                self.said = ui.label("").classes("text-caption").style("white-space:pre-line").props('data-test="said"')
            with ui.column().style("flex:1 1 420px;min-width:0"):  # below the controls on a narrow page
                self.view = ui.html("", sanitize=False).classes("w-full")
                self.split = ui.slider(min=0, max=100, value=50, on_change=self.compare).props('data-test="split"')
                self.choice = ui.toggle({}, on_change=self.choose).props("no-caps").style("flex-wrap:wrap")
                ui.label("How much each frame counts: blue not at all, red alone").classes("text-caption")
                self.maps = ui.row().classes("w-full")

    def _slider(self, name: str, least: float, most: float, step: float) -> None:
        label = ui.label(f"{name}: 0")
        slider = ui.slider(min=least, max=most, step=step, value=0).props(f'data-test="{name}"')

        async def changed() -> None:
            self.values[name] = float(slider.value)
            label.text = f"{name}: {slider.value:g}"
            await self.refresh()

        slider.on("update:model-value", changed, throttle=0.3, leading_events=False)

    async def take(self, event) -> None:
        """Add dropped files. Those that cannot be used are named and left out: the next drop works again."""
        dropped = [(file.name, await file.read()) for file in event.files]
        self.upload.reset()  # the frames are listed below it
        async with self.changing:
            before = self.files
            own, lines = renamed(before, dropped)
            files, left_out = await _elsewhere(added, before, own, self.aligned)
            if self.files is before:  # nobody has started again meanwhile
                self.files, self.left_out = files, lines + left_out
                await self.reload()

    async def leave_out(self, name: str) -> None:
        async with self.changing:
            self.files = {other: data for other, data in self.files.items() if other != name}
            self.left_out = []
            await self.reload()

    async def realign(self, event) -> None:
        if event.value == self.aligned:
            return
        async with self.changing:
            self.aligned, self.left_out = event.value, []
            problem = await _elsewhere(_problem, self.files, self.aligned)
            if problem is not None:  # what is shown stays
                self.aligned, self.left_out = not event.value, [problem]
                self.hand_held.value = self.aligned
            await self.reload()

    def clear(self) -> None:
        self.files, self.left_out = {}, []
        self.upload.reset()
        self._show_nothing()
        self.said.text = ""

    def _show_nothing(self) -> None:
        self.version += 1
        self.scene, self.fused, self.view.content = None, "", ""
        self.choice.set_options({})
        self.maps.clear()
        self._list()

    def _list(self) -> None:
        self.chips.clear()
        with self.chips:
            for name in sorted(self.files, key=natural):
                chip = ui.chip(name, removable=True, on_value_change=lambda _, name=name: self.leave_out(name))
                chip.props('outline dense data-test="frame"')

    async def reload(self) -> None:
        """Show the files as they are now."""
        if len(self.files) < 2:
            self._show_nothing()
            self.said.text = "\n".join([*self.left_out, "Two frames or more, please."])
            return
        self._list()
        self.version += 1
        version = self.version
        try:
            scene = await _elsewhere(Scene.of, dict(self.files), self.aligned)
        except InputError as error:
            self.said.text = str(error)
            return
        if version == self.version:  # nobody has started again meanwhile
            self.scene = scene
            self.choice.set_options(dict(enumerate(scene.names)), value=0)
            self.frame = _url(scene.small[0])
            await self.refresh()

    async def refresh(self) -> None:
        """Fuse the small frames again and show the result."""
        scene = self.scene
        if scene is None:
            return
        self.version += 1
        version = self.version
        try:
            fused = await _elsewhere(scene.fuse, scene.small, dict(self.values))
            shares = await _elsewhere(scene.shares, dict(self.values))
        except InputError as error:
            self.said.text = str(error)
            return
        if version != self.version:
            return
        self.fused = _url(fused)
        self.compare()
        self.maps.clear()
        with self.maps:
            for name, share in zip(scene.names, shares, strict=True):
                with ui.column().style(f"width:{100 // len(shares) - 2}%"):
                    ui.html(f'<img src="{heat_map(share)}" style="width:100%" alt="share">', sanitize=False)
                    ui.label(f"{name}: {100 * share.mean():.0f} %").classes("text-caption")
        height, width = scene.full[0].pixels.shape[:2]
        bits = 8 * fused.pixels.itemsize
        summary = f"{len(shares)} frames, {width} x {height}, {bits} bit"
        self.said.text = "\n".join([*self.left_out, summary, *scene.remarks])

    def choose(self, event) -> None:
        if event.value is not None and self.scene is not None:
            self.frame = _url(self.scene.small[event.value])
            self.compare()

    def compare(self) -> None:
        if self.fused:
            shown = self.split.value
            self.view.content = COMPARE.format(fused=self.fused, frame=self.frame, shown=shown, hidden=100 - shown)

    async def save(self) -> None:
        """Fuse at full size and depth, and hand the file to the browser."""
        scene = self.scene
        if scene is None:
            self.said.text = "Two frames or more, please."
            return
        name = self.format.value
        try:
            fused = await _elsewhere(scene.fuse, scene.full, dict(self.values))
            data, _ = await _elsewhere(encode_picture, fused, name, "result")
        except InputError as error:
            self.said.text = str(error)
            return
        ui.download.content(data, f"fused.{SAVED[name]}")


def serve(port: int, show: bool) -> None:
    """Serve the page on the loopback interface until it is interrupted."""

    @ui.page("/")
    def index() -> None:
        ui.page_title("ffmef")
        Page()

    ui.run(host=HOST, port=port, show=show, reload=False, title="ffmef", show_welcome_message=False)
