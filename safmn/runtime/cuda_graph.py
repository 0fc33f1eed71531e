"""Record a training step as one CUDA graph: the host launches the whole step instead of single kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Batches = Sequence[Mapping[str, Any]]

_WARM_UP = 3  # steps before recording, in which libraries choose and set up their kernels


class GraphedStep(Generic[Result]):
    """A function that runs ``step`` as a CUDA graph.

    The first steps run normally. Then one step is recorded, with its own memory for inputs and outputs, and replayed
    from then on. A replay does not repeat computations on the host, so values such as learning rates must be tensors
    that are set between steps. The next step overwrites the result.

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
        """Drop the recorded step because its tensors are no longer in use."""
        self._taken, self._graph, self._result, self._inputs = 0, None, None, []

    def __call__(self, batches: Batches) -> Result:
        """Run a step.

        Raises:
            ValueError: the images differ in size from those of the recorded step.
        """
        self._taken += 1
        if self._taken <= _WARM_UP:
            return self._on_side_stream(batches)
        if self._graph is None:
            self._record(batches)
        self._copy(batches)
        assert self._graph is not None
        assert self._result is not None
        self._graph.replay()
        return self._result

    def _on_side_stream(self, batches: Batches) -> Result:
        """Run the step on a side stream, as recording does."""
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
        # Other threads keep running: a data-loading thread may allocate page-locked memory during the recording.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = self._step(self._inputs)

    def _copy(self, batches: Batches) -> None:
        for kept, batch in zip(self._inputs, batches, strict=True):
            for key, value in kept.items():
                if isinstance(value, Tensor):
                    if value.shape != batch[key].shape:
                        raise ValueError(f"{key}: the step was recorded for {value.shape}, not {batch[key].shape}")
                    value.copy_(batch[key], non_blocking=True)
