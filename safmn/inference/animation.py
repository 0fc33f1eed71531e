"""Animated GIF, WebP, PNG and AVIF: their frames in, and an animation of the same timing out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safmn.errors import DataError
from safmn.files import atomic_path
from safmn.inference.pictures import (
    MAX_PIXELS,
    WRITABLE,
    Picture,
    as_saved,
    decoding,
    metadata,
    open_image,
    save_options,
    writing,
)

Array = np.ndarray[Any, np.dtype[Any]]

ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_TURNED = ("GIF", "AVIF")  # GIF holds no orientation; with one, Pillow's encoder of animated AVIF crashes
_DEFAULT_MS = 100  # where a file gives its frames no duration


@dataclass(frozen=True)
class Animation:
    """What an animated file says about itself.

    Attributes:
        path: the file.
        durations: of each frame, in milliseconds.
        loop: how often it is played; 0 for ever, None where the file does not say.
        exif: EXIF data, with the orientation of the frames.
        icc: colour profile.
        size: (width, height) in pixels.
        has_default: whether the first frame is shown only where animations are not (PNG).
        once: a GIF that does not say how often, which means once; in other formats it means for ever.
    """

    path: Path
    durations: tuple[int, ...]
    loop: int | None
    exif: bytes | None
    icc: bytes | None
    size: tuple[int, int]
    has_default: bool = False
    once: bool = False

    def frames(self) -> Iterator[Array]:
        """The composed frames, one by one: uint8 (H, W, 3), or (H, W, 4) where the animation has transparency; before
        the orientation that ``exif`` states.

        Raises:
            DataError: a frame cannot be decoded; names the file and the frame.
        """
        with Image.open(self.path) as image:
            mode = "RGB"
            for number in range(len(self.durations)):
                with decoding(self.path, f"frame {number + 1}"):
                    image.seek(number)
                    if image.has_transparency_data:
                        mode = "RGBA"  # from here on: the frames of one file must not differ
                    frame = np.array(image.convert(mode))
                yield frame


def read_animation(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Animation | None:
    """The animation in a file, or None where it holds a still image.

    Raises:
        DataError: as :func:`safmn.inference.pictures.open_image`, or a frame is damaged; names the file.
    """
    with open_image(path, max_pixels) as image, decoding(path):
        if image.format not in ANIMATED or getattr(image, "n_frames", 1) <= 1:
            return None
        image.load()
        exif, icc = metadata(image)
        durations = []
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            with decoding(path, f"frame {number + 1}"):
                image.seek(number)
                image.load()  # GIF and WebP know a frame's duration only then
            durations.append(round(image.info.get("duration") or _DEFAULT_MS))
        has_default = bool(image.info.get("default_image"))
        loop = image.info.get("loop")
        once = image.format == "GIF" and loop is None
        return Animation(Path(path), tuple(durations), loop, exif, icc, image.size, has_default, once)


def write_animation(
    path: str | os.PathLike[str], frames: Iterable[Array], animation: Animation, *, quality: int = 95
) -> None:
    """Write frames with the timing of the animation that they come from; the file is complete or absent.

    Args:
        frames: uint8 (H, W, 3 or 4), as many as ``animation`` has. They are taken one by one; GIF is also encoded one
            by one, the other formats when all are there.
        quality: as in :func:`safmn.inference.pictures.write_picture`.

    Raises:
        DataError: the format cannot hold an animation.
    """
    path = Path(path)
    kind = WRITABLE.get(path.suffix.lower(), "")
    if kind not in ANIMATED:
        raise DataError(f"{path}: {kind or path.suffix} cannot hold an animation; choose .gif, .webp, .png or .avif")
    pictures = (Picture(frame, animation.exif, animation.icc) for frame in frames)
    durations = list(animation.durations)
    own_options: dict[str, Any] = {}
    if animation.has_default:
        durations.pop(0)
        if kind == "PNG":
            own_options["default_image"] = True
        else:
            next(pictures)
    if kind in _TURNED:
        pictures = (picture.upright() for picture in pictures)
    start = next(pictures)
    first = as_saved(start.pixels, kind)
    images = (as_saved(picture.pixels, kind) for picture in pictures)
    if kind in ("WEBP", "AVIF"):
        others: Iterable[Image.Image] = [_Rest(images, first, len(durations) - 1)]
    else:
        others = images if kind == "GIF" else list(images)  # Pillow goes through those of a PNG twice
    if animation.loop is not None:
        own_options["loop"] = animation.loop
    elif animation.once and kind != "GIF":
        own_options["loop"] = 1
    if kind == "GIF" and start.pixels.shape[2] == 4:
        own_options["disposal"] = 2  # frames are composed already: clear the one before
    options = {**save_options(kind, start, quality), **own_options}
    with atomic_path(path) as temporary, writing(path, kind):
        first.save(temporary, kind, save_all=True, append_images=others, duration=durations, **options)


class _Rest(Image.Image):
    """All frames but the first as one image that Pillow steps through, so that one of them is held at a time."""

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
