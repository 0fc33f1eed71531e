"""Run a network on a frame in pieces: exact if the network depends only on nearby pixels, blended if not.

Exact pieces start at multiples of the network's window and include its halo, so they equal the full frame up to
rounding (1e-5 at most; the order of sums differs). A frame is cut into as few strips of columns as memory allows,
mostly one. Each strip is streamed from top to bottom (:mod:`safmn.inference.streaming`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safmn.archs.stages import Chain
from safmn.inference.streaming import stream

Network = Callable[[Tensor], Tensor]
Progress = Callable[[float], None]
"""Callback that receives the part of the frame (0 to 1) finished since its last call."""

LARGEST = {torch.uint8: 255.0, torch.uint16: 65535.0}
"""The integer value of 1.0 in each integer type."""
_SMALLEST_TILE = 64
BANDS = range(16, 1025, 16)
"""Numbers of rows that streaming may read at a time with ``tile="auto"``."""
BAND = 128
"""Number of rows that streaming reads at a time if the user gave the width of the tiles."""
OVERLAP = 32
"""LR pixels over which blended tiles fade into each other."""


def _aligned(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step


def _reflected(first: int, last: int, length: int) -> tuple[int, int, Tensor | None]:
    """Find the samples at ``[first, last)`` on an axis of ``length`` samples, mirrored without repeating the edge.

    Returns:
        Start and stop of the samples to read, and the indices that order them; None if they are in order.
    """
    if last <= length:
        return first, last, None
    period = max(2 * (length - 1), 1)
    indices = torch.arange(first, last) % period
    indices = torch.minimum(indices, period - indices) if length > 1 else torch.zeros_like(indices)
    low, high = int(indices.min()), int(indices.max())
    return low, high + 1, indices - low


class TiledFrame:
    """An image and its result, adapted to a network.

    Reading pads the image by mirroring and scales it to [0, 1]; writing crops the result and converts it back.

    Args:
        source: (B, C, h, w) with one or three channels, uint8, uint16 or floating point in [0, 1]. Grey is repeated to
            three channels.
        target: (B, C, h * scale, w * scale) of the same type. Integers are clamped and rounded half to even. Grey is
            the mean of the network's three channels.
        scale: the network's scale.
        window: height and width are padded to multiples of this.
        device: the network's device.
        smallest: height and width are padded to this at least: a back end's graph does not pad.
        broken: (B, ceil(h / 8), ceil(w / 8)) bool on the CPU. Writing sets it to True for the blocks of 8x8 LR pixels
            in which the result is not finite. In integers, which cannot hold such values, NaN and -Inf become 0 and
            Inf becomes the largest value.
    """

    def __init__(
        self,
        source: Tensor,
        target: Tensor,
        scale: int,
        window: int,
        device: torch.device,
        broken: Tensor | None = None,
        smallest: int = 1,
    ) -> None:
        self.source, self.target, self.scale, self.device = source, target, scale, device
        self.broken = broken
        self.batch = source.shape[0]
        self.height = _aligned(max(source.shape[2], smallest), window)
        self.width = _aligned(max(source.shape[3], smallest), window)

    def read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Return a piece of the padded frame, (B, 3, bottom - top, right - left) float32 in [0, 1], on the device."""
        if bottom <= top:
            return torch.empty(self.batch, 3, 0, right - left, device=self.device)
        y0, y1, rows = _reflected(top, bottom, self.source.shape[2])
        x0, x1, columns = _reflected(left, right, self.source.shape[3])
        piece = self.source[:, :, y0:y1, x0:x1].to(self.device, torch.float32)
        if rows is not None:
            piece = piece.index_select(2, rows.to(self.device))
        if columns is not None:
            piece = piece.index_select(3, columns.to(self.device))
        if self.source.dtype in LARGEST:
            piece = piece / LARGEST[self.source.dtype]
        return piece.expand(-1, 3, -1, -1).contiguous()  # (B, 3, h, w)

    def write(self, top: int, left: int, piece: Tensor) -> None:
        """Write a piece (B, 3, h, w) of the padded result at ``(top, left)``, without the padding."""
        height = min(piece.shape[2], self.target.shape[2] - top)
        width = min(piece.shape[3], self.target.shape[3] - left)
        if height <= 0 or width <= 0:
            return
        piece = piece[:, :, :height, :width].float()
        if self.target.shape[1] == 1:
            piece = piece.mean(dim=1, keepdim=True)
        if not math.isfinite(float(piece.sum())):
            piece = self._note_broken(top, left, piece)
        if self.target.dtype in LARGEST:
            piece = (piece.clamp(0, 1) * LARGEST[self.target.dtype]).round()
        self.target[:, :, top : top + height, left : left + width] = piece.to(self.target.device, self.target.dtype)

    def _note_broken(self, top: int, left: int, piece: Tensor) -> Tensor:
        """Mark the blocks in which a piece is not finite, and return the piece with values that can be written."""
        if self.broken is not None:
            places = (~piece.isfinite()).any(dim=1).nonzero().cpu()  # (N, 3): image, row, column
            side = 8 * self.scale
            self.broken[places[:, 0], (top + places[:, 1]) // side, (left + places[:, 2]) // side] = True
        return piece.nan_to_num(nan=0, posinf=1, neginf=0) if self.target.dtype in LARGEST else piece


@dataclass(frozen=True)
class TileSize:
    """The size of the pieces that a frame is cut into, in LR pixels without halo.

    Attributes:
        width: width of a strip or of a blended tile.
        rows: height of a band or of a blended tile.
    """

    width: int
    rows: int

    def covers(self, frame: TiledFrame) -> bool:
        """Return whether the whole frame is one piece."""
        return self.width >= frame.width and self.rows >= frame.height

    def halved(self, window: int, *, blended: bool) -> TileSize | None:
        """Return the next smaller cut, or None if this one is the smallest."""
        width = _aligned(max(self.width // 2, _SMALLEST_TILE), window)
        if width >= self.width:
            return None
        return TileSize(width, _aligned(min(self.rows, width if blended else 64), window))


def choose_tile(budget: float, bytes_per_pixel: float, window: int) -> TileSize:
    """Return the largest square tile that fits into ``budget`` bytes, but not one below 64 pixels."""
    side = max(math.isqrt(int(budget / bytes_per_pixel)) // window * window, _aligned(_SMALLEST_TILE, window))
    return TileSize(side, side)


def choose_strip(
    frame: TiledFrame, budget: float, halo: int, window: int, bytes_per_column: Callable[[int], float]
) -> TileSize:
    """Return the strips and bands that fit into ``budget`` bytes with the least arithmetic done twice.

    Strips are not narrower than the halo, because they would consist of little else. If nothing fits, the result is the
    narrowest strip in the lowest bands.

    Args:
        frame: the frame to cut.
        budget: memory in bytes.
        halo, window: those of the network.
        bytes_per_column: returns the bytes that streaming needs per column, given the rows of a band.
    """
    halo = _aligned(halo, window)
    narrowest = max(_aligned(_SMALLEST_TILE, window), halo)
    narrowest = frame.width if narrowest + 2 * halo >= frame.width else narrowest
    best, least = TileSize(narrowest, _aligned(BANDS[0], window)), math.inf
    for rows in BANDS:
        rows = _aligned(rows, window)
        columns = int(budget / bytes_per_column(rows) / frame.batch) // window * window
        core = frame.width if columns >= frame.width else columns - 2 * halo
        if core < narrowest:
            continue
        count = math.ceil(frame.width / core)
        width = _aligned(math.ceil(frame.width / count), window)
        # A strip adds two halos. A band adds about 8 rows: 16 to the cheap half of a block, 2 to the costly half.
        twice = (1 + 2 * halo * (count - 1) / frame.width) * (1 + 8 / rows)
        if twice < least:
            best, least = TileSize(width, rows), twice
    return best


def run_whole(frame: TiledFrame, network: Network, progress: Progress) -> None:
    """Run the network on the whole padded frame in one call."""
    frame.write(0, 0, network(frame.read(0, frame.height, 0, frame.width)))
    progress(1.0)


def run_strip(
    frame: TiledFrame, chain: Chain, left: int, right: int, *, halo: int, window: int, rows: int, progress: Progress
) -> None:
    """Stream the columns ``[left, right)`` of a frame.

    Args:
        frame: the image and its result.
        chain: the network's stages.
        left, right: multiples of ``window``.
        halo, window: those of the network.
        rows: number of rows to read at a time, a multiple of ``window``.
        progress: see :data:`Progress`.
    """
    halo = _aligned(halo, window)
    first, last = max(left - halo, 0), min(right + halo, frame.width)
    scale = frame.scale
    core = slice((left - first) * scale, (right - first) * scale)

    def write(top: int, band: Tensor) -> None:
        frame.write(top, left * scale, band[:, :, :, core])
        progress(band.shape[2] / scale / frame.height * (right - left) / frame.width)

    stream(
        chain,
        lambda top, bottom: frame.read(top, bottom, first, last),
        write,
        height=frame.height,
        width=last - first,
        rows=rows,
    )


def _spans(length: int, size: int, overlap: int, window: int) -> list[tuple[int, int]]:
    """Return ranges of ``size`` that cover ``length`` evenly, overlap by about ``overlap``, and start on the window."""
    if size >= length:
        return [(0, length)]
    count = math.ceil((length - overlap) / max(size - overlap, window))
    starts = [index * (length - size) // (count - 1) // window * window for index in range(count)]
    return [(start, start + size) for start in starts]


def _weights(spans: list[tuple[int, int]], overlap: int, scale: int) -> list[Tensor]:
    """Return weights (size * scale,) for each range. They fade towards the neighbours and sum to one everywhere."""
    length, fade = spans[-1][1] * scale, max(overlap * scale, 1)
    weights, total = [], torch.zeros(length)
    for first, last in spans:
        ramp = (torch.arange((last - first) * scale) + 0.5) / fade
        rising = ramp if first > 0 else torch.ones_like(ramp)
        falling = ramp.flip(0) if last * scale < length else torch.ones_like(ramp)
        weights.append(torch.minimum(rising, falling).clamp(max=1))
        total[first * scale : last * scale] += weights[-1]
    return [weight / total[first * scale : last * scale] for weight, (first, last) in zip(weights, spans, strict=True)]


def run_blended(
    frame: TiledFrame, network: Network, cut: TileSize, *, window: int, progress: Progress, overlap: int = OVERLAP
) -> None:
    """Run the network on overlapping tiles that fade into each other, for networks that see the whole frame.

    The result has no seams, but differs from that of the whole frame.

    Args:
        frame: the image and its result.
        network: the network.
        cut: size of a tile including its overlap, multiples of ``window``.
        window: the network's window.
        progress: see :data:`Progress`.
        overlap: minimum of LR pixels that neighbours share; at most half a tile.
    """
    scale = frame.scale
    across = _spans(frame.width, min(cut.width, frame.width), min(overlap, cut.width // 2), window)
    down = _spans(frame.height, min(cut.rows, frame.height), min(overlap, cut.rows // 2), window)
    columns = _weights(across, min(overlap, cut.width // 2), scale)
    rows = _weights(down, min(overlap, cut.rows // 2), scale)
    pending = torch.zeros(frame.batch, 3, 0, frame.width * scale)  # sums in rows that are not complete yet
    for index, (top, bottom) in enumerate(down):
        missing = (bottom - top) * scale - pending.shape[2]
        pending = torch.nn.functional.pad(pending, (0, 0, 0, missing))
        for (left, right), column in zip(across, columns, strict=True):
            tile = network(frame.read(top, bottom, left, right)).float().cpu()
            pending[:, :, :, left * scale : right * scale] += tile * column * rows[index][:, None]
            progress(1 / len(down) / len(across))
        finished = (down[index + 1][0] if index + 1 < len(down) else bottom) - top
        frame.write(top * scale, 0, pending[:, :, : finished * scale])
        pending = pending[:, :, finished * scale :].clone()
