"""Check an exported file: run it in its own runtime and compare its results with the network's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from safmn.errors import first_line
from safmn.inference.export.formats import ExportError, Format, Job, Onnx, Run, Size

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 2e-2, "int8": 0.1}
"""Largest allowed difference from the network's float32 result, relative to the larger of that result and 1."""


# Colours of the images: a network that chooses its layers by the image chooses others, which a traced file would not.
_TINTS = ((1.0, 1.0, 1.0), (0.15, 0.15, 0.15), (1.0, 0.3, 0.1), (0.1, 0.3, 1.0))


_TRIED = 8  # images of noise, to see why a file is wrong


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        sizes: (height, width) of the images that the file was run on; empty if its runtime is not installed.
        error: largest difference from the network, relative to the larger of the value and 1; None if it was not run.
        notes: further lines for the user.
    """

    sizes: tuple[Size, ...]
    error: float | None
    notes: tuple[str, ...] = ()


def verify(form: Format, job: Job, path: Path) -> Checked:
    """Run a file on small, odd and large images, or on its single size, and compare the results with the network's.

    Raises:
        ExportError: a result differs from the network's by more than :data:`TOLERANCE`.
    """
    missing = form.runtime_missing()
    if missing:
        return Checked((), None, (f"NOT CHECKED: {missing}",))
    sizes = [job.size] if job.size else _sizes(job.subject.usual, job.smallest)
    several = not job.size and _takes_batches(job)
    error = _largest_error(job, form.open(path), sizes, batch=2 if several else 1)
    notes = _opencv(job, path) if isinstance(form, Onnx) and job.size else ()
    if not job.size and not several:
        notes = (*notes, "the network takes one image at a time: do not give the file several at once")
    if job.subject.smallest > job.subject.window and not job.size:
        notes = (*notes, f"the network takes images of at least {job.subject.smallest} pixels along each side")
    return Checked(tuple(sizes), error, notes)


def _sizes(window: int, smallest: int) -> list[Size]:
    """Return sizes to check with: small and large, odd, below the window, and a single row of pixels."""
    side = max(window, 8)
    sizes = [
        (side, 2 * side),
        (1, 1),
        (side - 1, side - 1),
        (3 * side + 1, 2 * side - 1),
        (1, side + 5),
        (5 * side - 3, 6 * side),
    ]
    return [size for size in sizes if min(size) >= smallest]


def _takes_batches(job: Job) -> bool:
    """Return whether the network takes several images at once."""
    side = max(job.subject.usual, job.smallest, 8)
    try:
        job.subject(torch.zeros(2, 3, side, side))
    except Exception:  # a user's network may raise anything
        return False
    return True


def _largest_error(job: Job, run: Run, sizes: Sequence[Size], *, batch: int) -> float:
    """Return the largest difference of the file's results. Raise ExportError if it is too large.

    Args:
        batch: images of a single row are given so many at once.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for (height, width), tint in zip(
        list(sizes) * (len(_TINTS) if job.size else 1), itertools.cycle(_TINTS), strict=False
    ):
        images = 1 if height > 1 else batch
        x = _image(images, height, width, generator) * torch.tensor(tint).view(3, 1, 1)
        error = difference(run(x), job.subject(x))
        if not error <= TOLERANCE[job.precision]:  # also true for NaN
            raise ExportError(
                f"the file for {job.subject.facts['network']} is wrong for "
                f"{'an image' if images == 1 else f'{images} images at once,'} of {width}x{height} pixels, by "
                f"{error:.2g}; it was removed. {_advice(job, run, (height, width), x)}"
            )
        worst = max(worst, error)
    return worst


def _advice(job: Job, run: Run, size: Size, wrong: Tensor) -> str:
    """Return what to do about a file that is wrong for a batch of images of a size.

    If it is right for each of them, the network's number of images is a constant of the file. If it is right for other
    images of this size, the network chooses its operations by the content of the image.
    """
    if len(wrong) > 1 and all(_is_right(job, run, x[None]) for x in wrong):
        return (
            "It is right for one image at a time: the network computes the number of images in Python (such as "
            "`int(windows.shape[0] / ...)`), and the file holds it as a constant. Let `forward` use `x.shape[0]`, or "
            "-1 in `view`; or export a fixed size, for example --size 256x256, which takes one image."
        )
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 3, *size, generator=generator) for _ in range(_TRIED)]  # as the one that is traced
    images += [_image(1, *size, generator) * torch.tensor(tint).view(3, 1, 1) for tint in _TINTS]
    if any(_is_right(job, run, x) for x in images):
        return (
            "It is right for other images of this size: the network chooses its operations by what the image shows "
            "(such as the best of several experts), and the file holds one choice. Let `forward` compute all of them "
            "and weigh them by the routing, 0 for those not chosen."
        )
    return "Try another format." if job.size else "Try a fixed size, for example --size 256x256, or another format."


def _is_right(job: Job, run: Run, x: Tensor) -> bool:
    return difference(run(x), job.subject(x)) <= TOLERANCE[job.precision]


def _image(batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return smooth images, (B, 3, h, w) in [0, 1]. On white noise, trained networks may overshoot without bounds."""
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return (smooth + 0.02 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def difference(y: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the larger of the expected value and 1; infinity if shapes differ."""
    if y.shape != expected.shape:
        return float("inf")
    return float(((y - expected).abs() / expected.abs().clamp(min=1)).max())


def _opencv(job: Job, path: Path) -> tuple[str, ...]:
    """Return a note if OpenCV's DNN, the other program for files of a single size, does not run this one correctly."""
    assert job.size is not None
    x = _image(1, *job.size, torch.Generator().manual_seed(0))
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it prints a line beside the exception
    try:
        error = difference(run_opencv(path)(x), job.subject(x))
    except cv2.error as problem:
        return (f"OpenCV's DNN cannot run it: {first_line(problem):.200}",)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if error <= TOLERANCE[job.precision]:
        return ()
    return (f"OpenCV's DNN {cv2.__version__} gives wrong values, by {error:.2g}: do not use the file there",)


def run_opencv(path: Path) -> Run:
    """Load a file of a single size into OpenCV's DNN."""
    net = cv2.dnn.readNetFromONNX(np.fromfile(path, np.uint8))

    def run(x: Tensor) -> Tensor:
        net.setInput(x.numpy())
        return torch.from_numpy(np.array(net.forward()))

    return run
