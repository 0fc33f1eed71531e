"""A training step recorded as one CUDA graph: the host launches it as a whole instead of kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Batches = Sequence[Mapping[str, Any]]

_WARM_UP = 3  # steps taken one by one before recording: libraries choose and set up their kernels in them


class GraphedStep(Generic[Result]):
    """``step`` as a function of the images in its micro-batches.

    The first steps run as they are. Then one is recorded, with inputs and outputs in memory of its own, and from then
    on replayed: what it computes on the host happens no more, so learning rates and the like must be tensors that are
    set between the steps. A result is overwritten by the next step.

    Args:
        step: takes the micro-batches; must not wait for the device.
    """

    def __init__(self, step: Callable[[Batches], Result]) -> None:
        self._step = step
        self._taken = 0
        self._inputs: list[dict[str, Any]] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None

    def reset(self) -> None:
        """Forget the recorded step, whose tensors are no longer those in use."""
        self._taken, self._graph, self._result, self._inputs = 0, None, None, []

    def __call__(self, batches: Batches) -> Result:
        """Take a step.

        Raises:
            ValueError: the images have another size than those of the recorded step.
        """
        self._taken += 1
        if self._taken <= _WARM_UP:
            return self._beside(batches)
        if self._graph is None:
            self._record(batches)
        self._copy(batches)
        assert self._graph is not None
        assert self._result is not None
        self._graph.replay()
        return self._result

    def _beside(self, batches: Batches) -> Result:
        """On a stream other than the default one, as recording will be."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self._step(batches)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _record(self, batches: Batches) -> None:
        self._inputs = [
            {key: value.clone() if isinstance(value, Tensor) else value for key, value in batch.items()}
            for batch in batches
        ]
        self._graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: one that loads data may ask for page-locked memory.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = self._step(self._inputs)

    def _copy(self, batches: Batches) -> None:
        for kept, batch in zip(self._inputs, batches, strict=True):
            for key, value in kept.items():
                if isinstance(value, Tensor):
                    if value.shape != batch[key].shape:
                        raise ValueError(f"{key}: the step was recorded for {value.shape}, not {batch[key].shape}")
                    value.copy_(batch[key], non_blocking=True)
