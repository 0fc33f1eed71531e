"""Run a frame through a chain of stages, a band of rows at a time, like hardware with line buffers.

Each stage keeps only the rows that its next outputs depend on. The memory is a few hundred rows of features, whatever
the height of the frame. Only the halo of a stage (8 rows for the pooled half of a block, 1 row for the other) is
computed twice where two bands meet.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from safmn.archs.stages import Chain, Skip, Stage

WORKING_SET = 2**26
"""Approximate bytes of features that a stage processes at a time."""
STREAMING_BASE = 3 * WORKING_SET
"""Approximate bytes that streaming needs for any size of frame."""
_COPIES = 8  # a stage needs about this many times the memory of its input


def _floor(value: int, step: int) -> int:
    """Return the largest multiple of ``step`` that is not above ``value``."""
    return value // step * step


def _wider(x: Tensor, width: int) -> Tensor:
    """Return an uninitialised tensor like ``x``, in the same memory format, but ``width`` wide."""
    layout = torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format
    return torch.empty((*x.shape[:3], width), dtype=x.dtype, device=x.device, memory_format=layout)


def _block(stage: Stage, rows: int, width: int) -> int:
    """Return how many columns a stage processes at a time, a multiple of its window.

    ``width`` is divided into the smallest number of equal parts that fit :data:`WORKING_SET`.
    """
    if stage.halo == 0 and stage.window == 1:  # the shortcut of a skip
        return width
    most = max(WORKING_SET // (_COPIES * 4 * stage.channels * rows), 2 * stage.window, 64)
    return -_floor(-width // math.ceil(width / most), stage.window)


class _Lines:
    """The rows that a stage still needs, and its progress through the frame.

    Args:
        stage: the stage to run.
        height: rows of the whole input.
        limit: the largest number of input rows to process at a time.
        width: columns of the input.
    """

    def __init__(self, stage: Stage, height: int, limit: int, width: int) -> None:
        self.stage = stage
        self.height = height
        self.width = width
        self.out_width = width * stage.up // stage.down
        self.out_height = height * stage.up // stage.down
        self.halo = -_floor(-stage.halo, stage.window)
        self.limit = max(_floor(limit, stage.window), stage.window)
        self.out_limit = self.limit * stage.up // stage.down
        self.block = _block(stage, self.limit + 2 * self.halo, width)
        self.chunks: deque[Tensor] = deque()  # (B, C, rows, w) each, from top to bottom
        self.top = 0  # the first chunk begins at this row of the frame
        self.received = 0  # input rows received so far
        self.done = 0  # input rows that have been processed

    def append(self, rows: Tensor) -> None:
        """Store the next rows of the input."""
        if rows.shape[2]:
            self.chunks.append(rows)
            self.received += rows.shape[2]

    def ready(self) -> int:
        """Return the input row up to which outputs can be computed now."""
        complete = _floor(self.received, self.stage.window) - self.halo
        stop = self.height if self.received == self.height else complete
        return min(max(stop, self.done), self.done + self.limit)

    def take(self, stop: int) -> Tensor:
        """Return the outputs of the input rows ``[done, stop)`` and drop the rows that no later output depends on."""
        up, down = self.stage.up, self.stage.down
        first, last = max(self.done - self.halo, 0), min(stop + self.halo, self.height)
        rows = slice((self.done - first) * up // down, (stop - first) * up // down)
        out: Tensor | None = None
        for left in range(0, self.width, self.block):
            right = min(left + self.block, self.width)
            # All blocks have the same width, because back ends prepare for each size. Blocks at the sides, which lack
            # one halo, extend further inwards instead.
            start = min(max(left - self.halo, 0), max(self.width - self.block - 2 * self.halo, 0))
            block = self._read(first, last, start, min(start + self.block + 2 * self.halo, self.width))
            done = self.stage.run(block)[:, :, rows, (left - start) * up // down : (right - start) * up // down]
            if out is None:
                out = done if right == self.width else _wider(done, self.out_width)
            if out is not done:
                out[:, :, :, left * up // down : right * up // down] = done
        assert out is not None
        self._forget(max(stop - self.halo, 0))
        self.done = stop
        return out

    def _read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Return a piece of the input, joined from the chunks."""
        parts, row = [], self.top
        for chunk in self.chunks:
            part = chunk[:, :, max(top - row, 0) : max(bottom - row, 0), left:right]
            if part.shape[2]:
                parts.append(part)
            row += chunk.shape[2]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _forget(self, below: int) -> None:
        while self.chunks and self.top + self.chunks[0].shape[2] <= below:
            self.top += self.chunks.popleft().shape[2]
        if self.top < below:
            self.chunks[0] = self.chunks[0][:, :, below - self.top :].clone()  # a view would keep all rows in memory
            self.top = below

    def push(self, rows: Tensor) -> Tensor:
        """Take the next rows of the input (none after the frame has ended) and return the output rows now complete."""
        self.append(rows)
        stop = self.ready()
        return self.take(stop) if stop > self.done else rows[:, :, :0]


class _SkipLines:
    """Both paths of a :class:`Skip`. Rows of the shortcut wait for those of the inner chain."""

    def __init__(self, skip: Skip, height: int, limit: int, width: int) -> None:
        self.inner = _ChainLines(skip.inner, height, limit, width)
        self.shortcut = _Lines(skip.shortcut, height, limit, width)
        self.out_width: int = self.inner.out_width
        self.out_height: int = self.inner.out_height
        self.out_limit: int = self.inner.out_limit

    def push(self, rows: Tensor) -> Tensor:
        """See :meth:`_Lines.push`."""
        self.shortcut.append(rows)
        out = self.inner.push(rows)
        if not out.shape[2]:
            return out
        return out + self.shortcut.take(self.shortcut.done + out.shape[2] // self.shortcut.stage.up)


class _ChainLines:
    """All stages of a chain, run one after another."""

    def __init__(self, chain: Chain, height: int, limit: int, width: int) -> None:
        self.parts: list[_Lines | _SkipLines] = []
        for part in chain:
            lines: _Lines | _SkipLines
            if isinstance(part, Skip):
                lines = _SkipLines(part, height, limit, width)
            else:
                lines = _Lines(part, height, limit, width)
            height, limit, width = lines.out_height, lines.out_limit, lines.out_width
            self.parts.append(lines)
        self.out_height, self.out_limit, self.out_width = height, limit, width

    def push(self, rows: Tensor) -> Tensor:
        """See :meth:`_Lines.push`."""
        for part in self.parts:
            rows = part.push(rows)
        return rows


def stream(
    chain: Chain,
    read: Callable[[int, int], Tensor],
    write: Callable[[int, Tensor], None],
    *,
    height: int,
    width: int,
    rows: int,
) -> None:
    """Run a frame through a chain.

    Args:
        chain: the stages.
        read: ``read(top, bottom)`` returns rows of the frame, (B, C, bottom - top, w).
        write: ``write(top, rows)`` receives rows of the result, from top to bottom.
        height, width: size of the frame, multiples of every stage's window (on that stage's grid).
        rows: number of rows to read at a time. With more rows, less is computed twice and more memory is used.
    """
    lines = _ChainLines(chain, height, rows, width)
    done = read_to = 0
    while done < lines.out_height:
        band = read(read_to, min(read_to + rows, height))
        read_to += band.shape[2]
        out = lines.push(band)
        if out.shape[2]:
            write(done, out)
            done += out.shape[2]


def bytes_per_column(chain: Chain, rows: int) -> float:
    """Return the bytes that streaming needs for each column of the frame, in addition to :data:`STREAMING_BASE`.

    Args:
        chain: the stages.
        rows: see :func:`stream`.
    """
    return 4 * (_kept(chain, rows, 1.0)[0] + _moving(chain, rows))


def _kept(chain: Chain, rows: float, density: float) -> tuple[float, float]:
    """Return the number of values kept in all lines per column of the frame, and the rows by which the chain lags.

    Args:
        chain: the stages.
        rows: rows of a band on the chain's grid.
        density: columns of the chain's grid per column of the frame.
    """
    values = behind = 0.0
    for part in chain:
        if isinstance(part, Skip):
            inner, lag = _kept(part.inner, rows, density)
            values += inner + (lag + rows) * part.shortcut.channels * density
            behind += lag
        else:
            values += (2 * part.halo + part.window) * part.channels * density
            ratio = part.up / part.down
            behind = (behind + part.halo + part.window - 1) * ratio
            rows, density = rows * ratio, density * ratio
    return values, behind


def _moving(chain: Chain, rows: float) -> float:
    """Return the largest number of values per column of the frame that pass between stages: in, out and a copy."""
    stages = list(_flat(chain))
    widest, density = 0.0, 1.0
    for stage, channels in zip(stages, [*(stage.channels for stage in stages[1:]), 3], strict=True):
        ratio = stage.up / stage.down
        widest = max(widest, rows * density * (stage.channels + 2 * channels * ratio**2))
        rows, density = rows * ratio, density * ratio
    return widest


def _flat(chain: Chain) -> Iterator[Stage]:
    for part in chain:
        yield from _flat(part.inner) if isinstance(part, Skip) else (part,)
