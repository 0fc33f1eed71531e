"""Move batches to the device. On a GPU the copy of the next batch overlaps with the current step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from safmn.runtime.execution import Execution

Batch = dict[str, Any]


def _move(batch: Batch, execution: Execution) -> Batch:
    """Return a batch with its images on the device, in the memory format of ``execution``.

    On a GPU, only ``lq`` is converted to that format. The GT keeps the format of the data set, because the network's
    output has the same one: pixel shuffle returns it.
    """
    keep_format = execution.device.type == "cuda"

    def moved(key: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != 4:  # (B, C, H, W)
            return value
        memory_format = torch.preserve_format if keep_format and key != "lq" else execution.memory_format
        return value.to(execution.device, non_blocking=True, memory_format=memory_format)

    return {key: moved(key, value) for key, value in batch.items()}


def _on_gpu(batches: list[Batch]) -> bool:
    return any(isinstance(value, Tensor) and value.is_cuda for batch in batches for value in batch.values())


def batches_on_device(batches: Iterator[list[Batch]], execution: Execution) -> Iterator[list[Batch]]:
    """Yield the same micro-batches with every image tensor on the device.

    On a GPU the copies run on a separate stream and overlap with the current step. A batch that was made on the GPU
    stays on the current stream, because a separate stream could read the batch before it is complete.
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
