"""Upscale the files that were dropped into the page, and make the two pictures of its slider."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from safmn.errors import UserError
from safmn.imaging import imresize, write_image
from safmn.inference import pictures
from safmn.inference.file_jobs import plan
from safmn.inference.file_run import Run
from safmn.inference.pictures import Picture, read_picture
from safmn.inference.pictures.fitting import fitted
from safmn.inference.suited import Suited
from safmn.inference.upscaler import Upscaler
from safmn.value_types import Array

_QUALITY = 95
_LONGEST_SHOWN = 4096  # pixels along the longer side of a picture in the slider
_KEPT_UPSCALERS = 4
AUTOMATIC = "automatic"
"""The choice that leaves the weights of each image to SAFMN, as ``safmn upscale`` does without ``--weights``."""

Progress = Callable[[float, str], None]


class Choice(NamedTuple):
    """What a visitor chose.

    Attributes:
        weights: name of weights that come with the package, a file that the owner of the page named, or
            :data:`AUTOMATIC`.
        ensemble: average over the eight flips and rotations.
        whole: compute the image in one piece, without tiles.
    """

    weights: str
    ensemble: bool = False
    whole: bool = False


class Outcome(NamedTuple):
    """The result for one file.

    Attributes:
        name: name of the file.
        text: sizes and time with the warnings, or why it failed.
        result: the file to download; None if it failed.
        pair: pictures of bicubic and of the result, for the slider; None if it failed.
    """

    name: str
    text: str
    result: Path | None = None
    pair: tuple[Path, Path] | None = None


class Workshop:
    """Upscales files one after the other; results lie in a folder of their own for each request.

    Args:
        folder: folder for the results.
        device: see :class:`safmn.Upscaler`.
        max_pixels: the largest image that is accepted, in input pixels.
    """

    def __init__(self, folder: Path, *, device: str = "auto", max_pixels: int) -> None:
        self.folder = folder
        self.device = device
        self.max_pixels = max_pixels
        self._upscalers: dict[Choice, Upscaler] = {}
        self._lock = threading.Lock()  # one request at a time uses the processor

    def upscaler(self, choice: Choice) -> Upscaler:
        """Return the upscaler of a choice; the last few are kept."""
        if choice not in self._upscalers:
            while len(self._upscalers) >= _KEPT_UPSCALERS:
                self._upscalers.pop(next(iter(self._upscalers)))
            self._upscalers[choice] = Upscaler(
                choice.weights,
                tile=0 if choice.whole else "auto",
                device=self.device,
                self_ensemble=choice.ensemble,
            )
        return self._upscalers[choice]

    def run(self, files: Sequence[str | Path], choice: Choice, progress: Progress) -> list[Outcome]:
        """Upscale files; a file that fails does not stop the others.

        Args:
            files: the uploaded files.
            choice: weights and switches.
            progress: receives the part that is done, 0 to 1, and a text.

        Raises:
            UserError: the weights cannot be used.
        """
        outcomes = []
        with self._lock:
            chosen: dict[Path, str] = {}
            suited = None
            if choice.weights == AUTOMATIC:
                suited = Suited(lambda name: self.upscaler(choice._replace(weights=name)), chosen.__setitem__)
            upscaler = self.upscaler(choice) if suited is None else suited.clean
            for number, file in enumerate(map(Path, files)):

                def on_part(part: float, number: int = number, name: str = file.name) -> None:
                    progress((number + part) / len(files), name)

                on_part(0.0)
                outcome = self._one(upscaler, suited, file, on_part)
                weights = f" Weights: {chosen[file]}." if file in chosen and outcome.result else ""
                outcomes.append(outcome._replace(text=outcome.text + weights))
        return outcomes

    def _one(self, upscaler: Upscaler, suited: Suited | None, file: Path, on_part: Callable[[float], None]) -> Outcome:
        target = self.folder / secrets.token_hex(8)
        target.mkdir(parents=True)
        started = time.perf_counter()
        try:
            [job] = plan([str(file)], str(target)).jobs
            if job.is_film:
                return Outcome(file.name, "a film; `safmn upscale` enlarges films")
            run = Run(upscaler, _QUALITY, self.max_pixels, compare=False, overwrite=True, watch=on_part, suited=suited)
            with _warnings(file) as warned:
                run.all([job])
            if run.failures:
                return Outcome(file.name, _without_folder(run.failures[0], file))
            small = read_picture(file, max_pixels=self.max_pixels)
            large = read_picture(job.target)
            pair = self._pair(small, large, target)
        except (UserError, OSError, MemoryError) as error:
            return Outcome(file.name, _without_folder(str(error) or type(error).__name__, file))
        (width, height), (out_width, out_height) = small.size, large.size
        size = f"{width}x{height} to {out_width}x{out_height} in {time.perf_counter() - started:.1f} s"
        return Outcome(file.name, " ".join([f"{size}.", *warned]), job.target, pair)

    @staticmethod
    def _pair(small: Picture, large: Picture, folder: Path) -> tuple[Path, Path]:
        """Write the pictures of the slider: bicubic and ours, as a browser shows them."""
        before, after = (_shown(picture, folder) for picture in (small, large))
        height, width = after.shape[:2]
        enlarged = imresize(before, height / before.shape[0])[:height, :width]
        factor = min(1.0, _LONGEST_SHOWN / max(height, width))
        paths = folder / "slider_bicubic.png", folder / "slider_safmn.png"
        for path, image in zip(paths, (enlarged, after), strict=True):
            shown = (
                image if factor == 1 else cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            )
            write_image(path, np.ascontiguousarray(shown))
        return paths


def _shown(picture: Picture, folder: Path) -> Array:
    """Return a picture upright, in sRGB, 8 bits, on white where it is transparent: uint8 (H, W, 3)."""
    plain = fitted(picture.upright(), "BMP", folder, say=lambda *_: None)  # BMP holds neither profile nor alpha
    return np.ascontiguousarray(pictures.to_rgb8(plain.pixels))


def _without_folder(text: str, file: Path) -> str:
    """Remove the folder of the upload from a message: a visitor knows the name only."""
    return text.replace(f"{file.parent}/", "").replace(f"{file.parent}\\", "")


@contextlib.contextmanager
def _warnings(file: Path) -> Iterator[list[str]]:
    """Context that collects what SAFMN warns of meanwhile, such as metadata that a format cannot hold."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(_without_folder(record.getMessage(), file))

    found: list[str] = []
    handler = Collector(logging.WARNING)
    log = logging.getLogger("safmn")
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)
