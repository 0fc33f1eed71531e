"""Read animated GIF, WebP, PNG and AVIF frame by frame, and write animations with the same timing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safmn.errors import DataError
from safmn.imaging.boxes import av1_depth
from safmn.inference.films.animation_frames import composed
from safmn.inference.pictures import (
    MAX_PIXELS,
    WRITABLE,
    Extras,
    Picture,
    as_saved,
    decoding,
    finished,
    fitted,
    head_of,
    is_single,
    metadata,
    open_image,
    save_options,
    writing,
)
from safmn.system.files import atomic_path
from safmn.value_types import Array

logger = logging.getLogger(__name__)

_COMPOSED = ("GIF", "PNG")  # formats whose frames are composed here instead of by Pillow
_FINISHED = ("PNG", "AVIF")  # formats to which metadata is added after Pillow has written the file
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_DEFAULT_MS = 100  # duration of frames without a stated one


@dataclass(frozen=True)
class Animation:
    """An animated file: its timing and metadata.

    Attributes:
        path: the file.
        durations: duration of each frame in milliseconds.
        loop: how many times it plays; 0 means endlessly, None that the file does not say.
        exif: EXIF data, with the orientation of the frames.
        icc: ICC profile.
        size: (width, height) in pixels.
        has_default: whether the first frame is only a still image for programs without animations (PNG).
        once: whether it is a GIF without a loop count, which plays once; other formats then play endlessly.
        transparent: whether any frame has transparency.
        extras: other metadata.
    """

    path: Path
    durations: tuple[int, ...]
    loop: int | None
    exif: bytes | None
    icc: bytes | None
    size: tuple[int, int]
    has_default: bool = False
    once: bool = False
    transparent: bool = False
    extras: Extras = field(default=Extras())

    def frames(self) -> Iterator[Array]:
        """Yield the composed frames: uint8 (H, W, 3), or (H, W, 4) for all if any frame has transparency.

        The orientation that ``exif`` states is not applied.

        Raises:
            DataError: a frame cannot be decoded; the message names the file and the frame.
        """
        frames = _frames(self.path)
        for number in range(len(self.durations)):
            with decoding(self.path, f"frame {number + 1}"):
                frame = next(frames)
            # All frames of a file must have the same number of channels.
            yield frame if self.transparent else np.ascontiguousarray(frame[..., :3])


def _frames(path: Path) -> Iterator[Array]:
    """Yield the composed frames of a file as RGBA."""
    with Image.open(path) as image:
        if image.format in _COMPOSED:
            yield from composed(path, image.format, image.size)
            return
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            yield np.array(image.convert("RGBA"))


def read_animation(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Animation | None:
    """Return the animation in a file, or None if it is a still image. Every frame is decoded once as a check.

    Raises:
        DataError: as :func:`safmn.inference.pictures.open_image`, or a frame is damaged. The message names the file.
    """
    if is_single(head_of(path)):
        return None
    with open_image(path, max_pixels) as image, decoding(path):
        if image.format not in ANIMATED or getattr(image, "n_frames", 1) <= 1:
            return None
        if image.format in _FINISHED:
            _check_depth(image, path)
        image.load()
        exif, icc, extras = metadata(image)
        durations, transparent, frames = [], False, _frames(Path(path))
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            with decoding(path, f"frame {number + 1}"):
                image.seek(number)
                image.load()  # for GIF and WebP, Pillow knows a frame's duration only after decoding it
                transparent = transparent or bool((next(frames)[..., 3] < 255).any())
            durations.append(round(image.info.get("duration") or _DEFAULT_MS))
        has_default = bool(image.info.get("default_image"))
        loop = image.info.get("loop")
        once = image.format == "GIF" and loop is None
        return Animation(
            Path(path), tuple(durations), loop, exif, icc, image.size, has_default, once, transparent, extras
        )


def write_animation(
    path: str | os.PathLike[str], frames: Iterable[Array], animation: Animation, *, quality: int = 95
) -> None:
    """Write frames atomically, with the timing and metadata of the animation that they come from.

    Args:
        path: the file; its suffix gives the format.
        frames: uint8 (H, W, 3 or 4), as many as ``animation`` has, consumed one at a time. For PNG all are kept in
            memory.
        animation: the original animation.
        quality: as in :func:`safmn.inference.pictures.write_picture`.

    Raises:
        DataError: the format cannot hold an animation, or the frames cannot be written in it.
    """
    path = Path(path)
    kind = WRITABLE.get(path.suffix.lower(), "")
    if kind not in ANIMATED:
        raise DataError(f"{path}: {kind or path.suffix} cannot hold an animation; choose .gif, .webp, .png or .avif")
    pictures = (_described(frame, animation) for frame in frames)
    durations = list(animation.durations)
    own_options: dict[str, Any] = {}
    if animation.has_default:
        durations.pop(0)
        if kind == "PNG":
            own_options["default_image"] = True
        else:
            next(pictures)
    start = fitted(next(pictures), kind, path)  # warns, once for all frames, of what the format cannot hold
    first = as_saved(start.pixels, kind)
    images = (as_saved(fitted(picture, kind, path, say=_nothing).pixels, kind) for picture in pictures)
    if kind in ("WEBP", "AVIF"):
        others: Iterable[Image.Image] = [_Rest(images, first, len(durations) - 1)]
    else:
        others = images if kind == "GIF" else list(images)  # Pillow iterates over PNG frames twice
    if animation.loop is not None:
        own_options["loop"] = animation.loop
    elif animation.once and kind != "GIF":
        own_options["loop"] = 1
    if kind == "GIF" and start.pixels.shape[2] == 4:
        own_options["disposal"] = 2  # each frame is already composed, so the previous one must be cleared
    options = {**save_options(kind, start, quality), **own_options}
    with atomic_path(path) as temporary, writing(path, kind):
        first.save(temporary, kind, save_all=True, append_images=others, duration=durations, **options)
        if kind in _FINISHED:
            temporary.write_bytes(finished(temporary.read_bytes(), kind, start))


def _described(frame: Array, animation: Animation) -> Picture:
    """Return an upscaled frame with the metadata of the animation."""
    extras = animation.extras
    if extras.resolution is not None:
        x, y = (now / before for now, before in zip(frame.shape[1::-1], animation.size, strict=True))
        extras = replace(extras, resolution=extras.resolution.times(x, y))
    return Picture(frame, animation.exif, animation.icc, extras).described()


def _nothing(*_: object) -> None:
    """Ignore a message."""


def _check_depth(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Warn if frames have more than 8 bits, since they are read with 8."""
    raw_mode = next((str(tile[3]) for tile in image.tile), "")  # type: ignore[attr-defined]
    deep = ";16" in raw_mode if image.format == "PNG" else av1_depth(Path(path).read_bytes()) > 8
    if deep:
        logger.warning("%s: its frames have more than 8 bits, but animations are read with 8.", path)


class _Rest(Image.Image):
    """All frames but the first as one image through which Pillow steps, so that only one is in memory."""

    def __init__(self, frames: Iterator[Image.Image], first: Image.Image, count: int) -> None:
        super().__init__()
        self._frames, self.n_frames, self._at = frames, count, -1
        self._mode, self._size = first.mode, first.size

    def seek(self, frame: int) -> None:
        """Make the next frame the current one."""
        if frame >= self.n_frames:
            raise EOFError
        while self._at < frame:
            self.im = next(self._frames).im
            self._at += 1

    def tell(self) -> int:
        """The number of the current frame."""
        return max(self._at, 0)
