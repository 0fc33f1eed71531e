"""Batches on the device: on a GPU the copy of the next batch overlaps with the computation of this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from safmn.runtime.execution import Execution

Batch = dict[str, Any]


def _move(batch: Batch, execution: Execution) -> Batch:
    """To the device, in its memory format.

    On a GPU the GT alone stays as data sets make it: so does pixel shuffle give the output that it is compared with.
    """
    as_it_is = execution.device.type == "cuda"

    def moved(key: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != 4:  # (B, C, H, W)
            return value
        memory_format = torch.preserve_format if as_it_is and key != "lq" else execution.memory_format
        return value.to(execution.device, non_blocking=True, memory_format=memory_format)

    return {key: moved(key, value) for key, value in batch.items()}


def _on_gpu(batches: list[Batch]) -> bool:
    return any(isinstance(value, Tensor) and value.is_cuda for batch in batches for value in batch.values())


def feed(batches: Iterator[list[Batch]], execution: Execution) -> Iterator[list[Batch]]:
    """The same micro-batches with every image tensor on the device, in its memory format.

    On a GPU the copies run on a stream of their own, so they overlap with the step before, which is still computing. A
    batch that was made on the GPU stays on the stream that makes it: another would read it before it is there.
    """
    stream = torch.cuda.Stream(execution.device) if execution.device.type == "cuda" else None
    for micro_batches in batches:
        if stream is None or _on_gpu(micro_batches):
            yield [_move(batch, execution) for batch in micro_batches]
            continue
        with torch.cuda.stream(stream):
            moved = [_move(batch, execution) for batch in micro_batches]
        current = torch.cuda.current_stream(execution.device)
        current.wait_stream(stream)
        for batch in moved:
            for value in batch.values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(current)  # the allocator must not reuse it before the step is done
        yield moved
