"""The guard: replaces a network's output by bicubic where it is not an enlargement of the input.

Some weights turn large areas of one saturated colour into garbage. An upscaled image that is shrunk again must equal
the input, so the guard compares the two in blocks of 8x8 LR pixels. A block is garbage if

- its mean colour deviates from the input's (a wrong colour), or
- its contrast exceeds the input's (a mesh with the right mean),

by more than a bound that grows with the input's contrast around the block. The default bounds are about twice the
largest deviation in correct outputs of networks for plain upscaling. Networks that denoise or deblur deviate more;
their bounds are widened according to what they do to a few made-up photographs (:attr:`Guard.tolerance`).
docs/upscaling.md has the distribution behind the numbers; ``scripts/benchmarks/guard.py`` prints it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from safmn.errors import WeightsError, first_line
from safmn.inference.samples import made_up_photographs
from safmn.inference.tiling import LARGEST
from safmn.runtime.threads import Lock, Once

logger = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]

BLOCK = 8
"""LR pixels along each side of a block."""
_CELL = 4  # LR pixels; the contrast around a block is taken over the block and one cell to each side
# Bounds for values in [0, 1]: the bound where the input is flat, and the increase for each unit of its contrast.
_COLOUR, _COLOUR_SLOPE = 4 / 255, 12 / 255
_TEXTURE, _TEXTURE_SLOPE = 5 / 255, 0.5
_GROWTH = 0.3  # share of the bound above which blocks connected to garbage are garbage too
_MARGIN = 8.0  # how much more a network may deviate on images than on the made-up photographs
_LARGEST_TOLERANCE = 16.0  # above this, the network changes colours on purpose: garbage cannot be told from its effect
_SIDE = 64  # pixels along each side of the made-up photographs
_BAND_VALUES = 2**18  # values processed at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Finding:
    """What the guard found in one call.

    Attributes:
        pixels: number of affected output pixels in each image of the batch.
        total: number of output pixels of one image.
        weights: name of the weights.
        replaced: True: the affected pixels were replaced by bicubic. False: the guard is off, and they are not finite.
    """

    pixels: tuple[int, ...]
    total: int
    weights: str
    replaced: bool

    def __str__(self) -> str:
        """Return a readable sentence without the image's name."""
        touched = [pixels for pixels in self.pixels if pixels]
        images = "" if len(self.pixels) == 1 else f" in {len(touched)} of {len(self.pixels)} images"
        pixels = f"{sum(touched)} of {self.total * len(touched)} pixels{images}"
        if self.replaced:
            return (
                f"{pixels} replaced by bicubic, because the output of {self.weights} is not an enlargement of the "
                "image there"
            )
        return f"{pixels} are not finite (NaN or Inf) in the output of {self.weights}"


class Guard:
    """Finds garbage in the outputs of one network.

    Args:
        network: maps (B, 3, h, w) in [0, 1] to (B, 3, h * scale, w * scale).
        scale: the network's scale.
        window: the sides of the network's input must be multiples of this.
        device: the network's device.
        name: the name of the weights, for messages.
    """

    def __init__(self, network: Network, *, scale: int, window: int = 1, device: torch.device, name: str) -> None:
        self.network = network
        self.scale = scale
        self.window = window
        self.device = device
        self.name = name
        self._lock = Lock()
        self._tolerance: float | None = None
        self._first_warning = Once()
        self._why_off = (
            "changes even ordinary photographs far more than enlargement does; if these weights are not meant to do "
            "so, they are damaged or their training failed"
        )

    @property
    def tolerance(self) -> float:
        """Factor of the default bounds: 1 for networks that only enlarge.

        Infinity turns the guard off, for networks that change photographs too much or cannot run on the made-up ones.
        The factor is measured when the first image exceeds the default bounds.
        """
        with self._lock:
            if self._tolerance is None:
                self._tolerance = self._measured_tolerance()
            return self._tolerance

    def _measured_tolerance(self) -> float:
        side = -(-_SIDE // self.window) * self.window
        photographs = made_up_photographs(side, side).to(self.device)
        try:
            with torch.no_grad():
                outputs = [self.network(photograph[None]) for photograph in photographs]  # some take no more at once
                output = torch.cat(outputs).float().clamp(0, 1)
        except RuntimeError as error:  # the network does not take this size, or memory is short
            self._why_off = f"cannot be run on made-up photographs ({first_line(error)})"
            return math.inf
        tolerance = max(1.0, _MARGIN * float(excess(photographs, output, self.scale).max()))
        return tolerance if tolerance <= _LARGEST_TOLERANCE else math.inf

    def warn_if_off(self) -> None:
        """Warn, once, if the guard is off and garbage would be left in the output."""
        if self._tolerance == math.inf and self._first_warning():
            logger.warning("The guard against garbage is off: %s %s.", self.name, self._why_off)

    def find(self, source: Tensor, target: Tensor, broken: Tensor | None = None) -> Tensor:
        """Return which blocks of the output are garbage.

        Args:
            source: the input, (B, C, h, w), uint8, uint16 or floating point in [0, 1]; C is 1 or 3.
            target: the output, (B, C, h * scale, w * scale), of the same type.
            broken: (B, ceil(h / 8), ceil(w / 8)) bool: blocks that are known to be garbage.

        Returns:
            (B, ceil(h / 8), ceil(w / 8)) bool, on the CPU.
        """
        degree = excess(source, target, self.scale)
        if broken is not None:
            degree = degree.masked_fill(broken, math.inf)
        if not bool((degree > 1).any()):
            return torch.zeros(degree.shape, dtype=torch.bool)
        seeds = (degree > self.tolerance) | (degree == math.inf)
        if not seeds.any():
            return seeds
        weak = seeds | (degree > _GROWTH * self.tolerance)
        return torch.stack([_grown(*pair) for pair in zip(seeds, weak, strict=True)])

    def count(self, source: Tensor, target: Tensor) -> int:
        """Return how many pixels of the output would be replaced; see :meth:`find` for the arguments."""
        areas = _areas(source, self.scale)
        return int(sum(areas[blocks].sum() for blocks in _widened(self.find(source, target))))


class Watch:
    """The guard during one call of an upscaler. A call has one or two planes: colours and alpha.

    Args:
        guard: the network's guard.
        image: (B, C, h, w), all planes of the input.
        replaces: True: replace garbage. False: only detect outputs that are not finite.

    Attributes:
        broken: (B, rows, columns) bool: blocks in which the current plane is not finite. The caller sets it before
            :meth:`check`, which clears it.
    """

    def __init__(self, guard: Guard, image: Tensor, *, replaces: bool) -> None:
        self._guard = guard
        self._replaces = replaces
        self._areas = _areas(image, guard.scale)
        self.broken = torch.zeros(block_shape(image), dtype=torch.bool)
        self._found = torch.zeros_like(self.broken)

    def check(self, source: Tensor, target: Tensor) -> None:
        """Check a plane of the result and replace garbage in place; see :meth:`Guard.find` for the arguments.

        Raises:
            WeightsError: every block of an image contains values that are not finite.
        """
        guard = self._guard
        for index, broken in enumerate(self.broken):
            if broken.all():
                self._refuse(len(source), index)
        if self._replaces:
            blocks = guard.find(source, target, self.broken)
            guard.warn_if_off()
            if blocks.any():
                self._found |= replace(source, target, blocks, guard.scale)
        else:
            self._found |= self.broken
        self.broken.zero_()

    def _refuse(self, count: int, index: int) -> None:
        image = "" if count == 1 else f"image {index} of the batch: "
        raise WeightsError(
            f"{image}the output of {self._guard.name} is not finite: NaN or Inf in every block of 8x8 pixels. These "
            "weights are damaged or do not work for this image; choose others (--weights)"
        )

    def tell(self, report: Callable[[Finding], None] | None) -> None:
        """Pass the finding, if any, to ``report``; without ``report``, log it as a warning."""
        if not self._found.any():
            return
        pixels = tuple(int(self._areas[blocks].sum()) for blocks in self._found)
        finding = Finding(pixels, int(self._areas.sum()), self._guard.name, self._replaces)
        if report is not None:
            report(finding)
        elif self._replaces:
            logger.warning("%s; guard=False keeps the network's output.", finding)
        else:
            logger.warning("%s.", finding)


def block_shape(source: Tensor) -> tuple[int, int, int]:
    """Return (B, rows, columns), the shape of the blocks of an image (B, C, h, w)."""
    return source.shape[0], -(-source.shape[2] // BLOCK), -(-source.shape[3] // BLOCK)


def excess(source: Tensor, target: Tensor, scale: int) -> Tensor:
    """Return how far each block deviates, as a multiple of the default bounds: more than 1 is suspicious.

    Args:
        source, target: as in :meth:`Guard.find`.

    Returns:
        (B, ceil(h / 8), ceil(w / 8)) float32, on the CPU; infinity where the output is not finite.
    """
    mean, variance = _moments(source, BLOCK)
    made_mean, made_variance = _moments(target, BLOCK * scale)
    contrast = _contrast(source)[:, None]
    colour = (made_mean - mean).abs() / (_COLOUR + _COLOUR_SLOPE * contrast)
    added = (made_variance - variance).clamp(min=0).sqrt()
    texture = (added - _TEXTURE_SLOPE * contrast) / _TEXTURE
    worst = torch.maximum(colour, texture).amax(dim=1)  # over the channels
    return worst.nan_to_num(nan=math.inf, posinf=math.inf, neginf=0).cpu()


def _bands(image: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the rows of an image (B, C, H, W) in bands of whole blocks, as float32 copies of the same value range."""
    batch, channels, height, width = image.shape
    step = max(_BAND_VALUES // (batch * channels * width * side), 1) * side
    for first in range(0, height, step):
        yield image[:, :, first : first + step].to(torch.float32, copy=True)


def _moments(image: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel in blocks of ``side`` pixels, for values in [0, 1].

    Blocks at the right and lower edge may be smaller.

    Returns:
        (B, C, rows, columns) float32 each.
    """
    height, width = image.shape[2:]
    of_rows = [(_row_sums(band, side), _row_sums(band.square_(), side)) for band in _bands(image, side)]
    sums = []
    for values in zip(*of_rows, strict=True):
        rows = functional.pad(torch.cat(values, dim=2), (0, -width % side))
        sums.append(rows.unflatten(3, (-1, side)).sum(dim=4))  # (B, C, rows, columns)
    counts = (_counts(height, side)[:, None] * _counts(width, side)).to(image.device)
    full = LARGEST.get(image.dtype, 1.0)  # scaling the sums saves a pass over all pixels
    mean, of_squares = sums[0] / (counts * full), sums[1] / (counts * full**2)
    return mean, of_squares - mean * mean


def _row_sums(band: Tensor, side: int) -> Tensor:
    """Return the sums of each ``side`` rows of (B, C, H, W), and of the remaining rows: (B, C, rows, W)."""
    whole = band.shape[2] // side * side
    sums = band[:, :, :whole].unflatten(2, (whole // side, side)).sum(dim=3)
    if whole < band.shape[2]:
        sums = torch.cat([sums, band[:, :, whole:].sum(dim=2, keepdim=True)], dim=2)
    return sums


def _counts(length: int, side: int) -> Tensor:
    """Return the number of pixels of each block along an axis."""
    starts = torch.arange(0, length, side)
    return (length - starts).clamp(max=side).to(torch.float32)


def _areas(source: Tensor, scale: int) -> Tensor:
    """Return the number of output pixels in each block of an image (B, C, h, w): (rows, columns) float64."""
    height, width = (_counts(side * scale, BLOCK * scale).double() for side in source.shape[2:])
    return height[:, None] * width


def _contrast(source: Tensor) -> Tensor:
    """Return the range of the channel that varies most, over each block and 4 pixels around it.

    Returns:
        (B, rows, columns) float32.
    """
    extremes = []
    for band in _bands(source, BLOCK):
        band = functional.pad(band, (0, -band.shape[3] % BLOCK, 0, -band.shape[2] % BLOCK), mode="replicate")
        rows = band.unflatten(2, (-1, _CELL))  # (B, C, rows of cells, 4, w)
        both = rows.amax(dim=3), -rows.amin(dim=3)
        extremes.append([values.unflatten(3, (-1, _CELL)).amax(dim=4) for values in both])
    highest, lowest = (torch.cat(values, dim=2) for values in zip(*extremes, strict=True))  # (B, C, rows, columns)
    span = BLOCK // _CELL
    around = sum(functional.max_pool2d(values, span + 2, span, padding=1) for values in (highest, lowest))
    assert isinstance(around, Tensor)
    return around.amax(dim=1) / LARGEST.get(source.dtype, 1.0)


def _grown(seeds: Tensor, weak: Tensor) -> Tensor:
    """Return all blocks of ``weak`` that are connected to one of ``seeds``: (rows, columns) bool."""
    _, labels = cv2.connectedComponents(weak.numpy().astype(np.uint8), connectivity=8)
    kept = np.unique(labels[seeds.numpy()])
    return torch.from_numpy(np.isin(labels, kept[kept > 0]))


# Bicubic in place of the garbage


def replace(source: Tensor, target: Tensor, blocks: Tensor, scale: int) -> Tensor:
    """Replace blocks of the output and their neighbours by bicubic, in place. It fades out over about one block.

    Args:
        source, target: as in :meth:`Guard.find`; ``target`` is changed.
        blocks: (B, rows, columns) bool.

    Returns:
        (B, rows, columns) bool: the blocks that are now almost entirely bicubic.
    """
    wide = _widened(blocks)
    for index in range(len(blocks)):
        shares = functional.pad(wide[index][None].float(), (1, 1, 1, 1), mode="replicate")[0]  # (rows + 2, columns + 2)
        for row in range(blocks.shape[1]):
            columns = shares[row : row + 3].amax(dim=0).nonzero()  # includes the padding
            if len(columns):
                first, last = max(int(columns.min()) - 2, 0), min(int(columns.max()) + 1, blocks.shape[2])
                _blend(source[index], target[index], shares[row : row + 3, first : last + 2], row, first, last, scale)
    return wide


def _widened(blocks: Tensor) -> Tensor:
    """Return the blocks and their neighbours, into which garbage bleeds: (B, rows, columns) bool."""
    return functional.max_pool2d(blocks[:, None].float(), 3, 1, 1)[:, 0] > 0


def _blend(source: Tensor, target: Tensor, shares: Tensor, row: int, first: int, last: int, scale: int) -> None:
    """Blend bicubic into the blocks ``[first, last)`` of a row of blocks.

    Args:
        source, target: (C, h, w) and (C, h * scale, w * scale).
        shares: (3, last - first + 2): the share of bicubic, 0 or 1, in each block and in those around.
    """
    side = BLOCK * scale
    place = target[:, row * side : (row + 1) * side, first * side : last * side]
    share = functional.interpolate(shares[None, None], scale_factor=side, mode="bilinear")[0]
    share = share[:, side : side + place.shape[1], side : side + place.shape[2]].to(source.device)
    largest = LARGEST.get(target.dtype, 1.0)
    smooth = _bicubic(source, row * BLOCK, (row + 1) * BLOCK, first * BLOCK, last * BLOCK, scale)
    made = place.to(torch.float32).nan_to_num(nan=0, posinf=largest, neginf=0)
    mixed = made + (smooth * largest - made) * share
    if target.dtype in LARGEST:
        mixed = mixed.round()
    place.copy_(torch.where(share > 0, mixed, made).to(target.dtype))


def _bicubic(source: Tensor, top: int, bottom: int, left: int, right: int, scale: int) -> Tensor:
    """Return a part of the image, given in LR pixels, enlarged by the cubic with a = -0.5: (C, h, w) float32 in [0, 1].

    Args:
        source: (C, h, w).
    """
    reach = 4  # pixels around the part; the cubic reads two to each side
    height, width = source.shape[1:]
    bottom, right = min(bottom, height), min(right, width)
    y, x = max(top - reach, 0), max(left - reach, 0)
    part = source[None, :, y : bottom + reach, x : right + reach].to(torch.float32)
    part = part / LARGEST.get(source.dtype, 1.0)
    size = [side * scale for side in part.shape[2:]]
    # Without antialias PyTorch's cubic has a = -0.75, which rings more.
    large = functional.interpolate(part, size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    rows, columns = slice((top - y) * scale, (bottom - y) * scale), slice((left - x) * scale, (right - x) * scale)
    return large[:, rows, columns]
