"""PyTorch itself: operation by operation, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from safmn.inference.backends.base import Backend, register_backend
from safmn.inference.optimize import replica, with_precision
from safmn.kernels.cpu.build import compiler
from safmn.runtime.threads import BUILDING, Lock, Pool, SharedLock

_GRAPHS = 4  # input sizes for which a CUDA graph is kept; each holds the memory of all activations


@register_backend
class Eager(Backend):
    """The network as it is. Each call takes a replica, since a network may keep what it computes in its attributes."""

    name = "eager"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        self.network = with_precision(network, precision).to(device)
        if device.type == "cuda":
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._replicas = Pool(lambda: replica(self.network))

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        with self._replicas.one() as network:
            y: Tensor = network(x)
        return y


_compiling = SharedLock()
"""Written while torch compiles: it sets flags that code which is compiled already takes for its own."""


@register_backend
class Compiled(Backend):
    """``torch.compile``: sizes that differ are compiled once more, then dynamically.

    On the CPU with the weights frozen into oneDNN's layout (a quarter faster); on a GPU with autotuning. The first call
    with a size has to be alone, since it may compile; all others run at the same time.
    """

    name = "compile"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        options: dict[str, Any] = {"freezing": True} | ({"max_autotune": True} if device.type == "cuda" else {})
        self._compiled = torch.compile(with_precision(network, precision).to(device), options=options)
        self._known: set[tuple[Any, ...]] = set()  # what has been compiled for

    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        with torch.inference_mode(False), torch.no_grad():  # freezing needs tensors with a version
            x = x.clone() if x.is_inference() else x
            key = (x.shape, x.stride(), torch.get_num_threads(), torch.get_default_dtype())
            if key in self._known:
                with _compiling.reading():
                    return self._run(x)
            with BUILDING, _compiling.writing():
                y = self._run(x)
                self._known.add(key)
                return y

    def _run(self, x: Tensor) -> Tensor:
        y: Tensor = self._compiled(x)
        return y

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """Compiling for the CPU takes a C++ compiler, for a GPU Triton."""
        if device.type == "cpu" and compiler() is None:
            return "torch.compile needs a C++ compiler (g++ or clang++); install one"
        from torch.utils._triton import has_triton  # a module that torch does not import by itself

        if device.type == "cuda" and not has_triton():
            return "torch.compile needs Triton on a GPU: pip install triton"
        return None


class Recording:
    """A network's kernels recorded for one input size, with a fixed input and output: one call at a time.

    Args:
        replay: computes ``result`` from ``source``.
        source, result: the fixed input and output.
        finished: an event of the GPU. A call that comes on another stream waits for it before it overwrites ``source``.
    """

    def __init__(self, replay: Callable[[], None], source: Tensor, result: Tensor, finished: Any) -> None:
        self._replay = replay
        self._source = source
        self._result = result
        self._finished = finished
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """What the network makes of ``x``, in memory of its own."""
        with self._lock:
            self._finished.wait()
            self._source.copy_(x)
            self._replay()
            y = self._result.clone()
            self._finished.record()
        return y

    def end(self) -> None:
        """Wait until the GPU no longer uses its memory."""
        with self._lock:
            self._finished.synchronize()


@register_backend
class CudaGraphs(Backend):
    """The network's kernels recorded once for each input size and launched as one: for networks bound by launches.

    Calls with the same size use the same memory, one after the other; a GPU would run them so anyway.
    """

    name = "cuda-graphs"
    tried_by_auto: ClassVar[Mapping[str, int]] = {"cuda": 1}

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        network = with_precision(network, precision).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = Compiled.missing(device) is None
        self.network = torch.compile(network, options={"freezing": True}) if fused else network
        self._lock = Lock()  # of the recordings
        self._recordings: OrderedDict[torch.Size, Recording] = OrderedDict()

    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        with torch.inference_mode(False), torch.no_grad(), self._on_device():
            return self._recording(x)(x)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Every thread has a current device of its own, which begins as the first one."""
        return torch.cuda.device(self.device)

    def _recording(self, x: Tensor) -> Recording:
        """That for inputs of the shape of ``x``, made where it is not there."""
        with self._lock:
            if x.shape in self._recordings:
                self._recordings.move_to_end(x.shape)
                return self._recordings[x.shape]
        with BUILDING:  # one at a time in this process: a recording fails where another one synchronises the device
            with self._lock:
                found = self._recordings.get(x.shape)
            if found is not None:
                return found
            made = self._record(x)
            with self._lock:
                self._recordings[x.shape] = made
                old = self._recordings.popitem(last=False)[1] if len(self._recordings) > _GRAPHS else None
        if old is not None:
            old.end()
        return made

    def _record(self, x: Tensor) -> Recording:
        source = x.clone()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream), _compiling.writing():
            for _ in range(3):  # compiles, chooses algorithms and fills caches outside the recording
                self.network(source)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads go on with other work
            result = self.network(source)
        finished = torch.cuda.Event()
        finished.record(torch.cuda.current_stream(self.device))
        return Recording(graph.replay, source, result, finished)

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """CUDA devices only."""
        return None if device.type == "cuda" else f"CUDA graphs need a CUDA device, not {device.type}"
