"""Back ends of PyTorch itself: eager, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

import contextlib
import sysconfig
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from safmn.inference.backends.base import Backend, register_backend
from safmn.inference.optimize import replica, with_precision
from safmn.kernels.cpu.compilation import compiler
from safmn.runtime.threads import BUILDING, Lock, Pool, SharedLock

_GRAPHS = 4  # input sizes for which a CUDA graph is kept; each one holds memory for all activations


@register_backend
class Eager(Backend):
    """Runs the network operation by operation.

    Each call uses a replica, because a network may store intermediate results in its attributes.
    """

    name = "eager"
    follows_threads = True

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
"""Held exclusively while torch compiles: it sets global flags that would change compiled code run at the same time."""


@register_backend
class Compiled(Backend):
    """``torch.compile``. The second size compiles once more, with dynamic sizes.

    The weights are frozen, on the CPU into oneDNN's layout (a quarter faster); on a GPU, autotuning is enabled. The
    first call with a size runs alone, because it may compile; other calls may run at the same time.
    """

    name = "compile"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        options: dict[str, Any] = {"freezing": True} | ({"max_autotune": True} if device.type == "cuda" else {})
        self._compiled = torch.compile(with_precision(network, precision).to(device), options=options)
        self._known: set[tuple[Any, ...]] = set()  # inputs and settings that need no compilation any more

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
        """See :class:`Backend`. Compiling for the CPU needs a C++ compiler and Python's headers, for a GPU Triton."""
        if device.type == "cpu" and compiler() is None:
            return "torch.compile needs a C++ compiler (g++ or clang++); install one"
        if device.type == "cpu" and not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "torch.compile needs Python's headers (Python.h); Debian, Ubuntu: apt install python3-dev"
        from torch.utils._triton import has_triton  # torch does not import this module by itself

        if device.type == "cuda" and not has_triton():
            return "torch.compile needs Triton on a GPU: pip install triton"
        return None


class Recording:
    """A network's kernels, recorded for one input size with fixed input and output memory. Runs one call at a time.

    Args:
        replay: computes ``result`` from ``source``.
        source, result: the fixed input and output.
        finished: a GPU event. A call on another stream waits for it before it overwrites ``source``.
    """

    def __init__(self, replay: Callable[[], None], source: Tensor, result: Tensor, finished: Any) -> None:
        self._replay = replay
        self._source = source
        self._result = result
        self._finished = finished
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network's result for ``x`` in new memory."""
        with self._lock:
            self._finished.wait()
            self._source.copy_(x)
            self._replay()
            y = self._result.clone()
            self._finished.record()
        return y

    def end(self) -> None:
        """Wait until the GPU has finished with the recording's memory."""
        with self._lock:
            self._finished.synchronize()


@register_backend
class CudaGraphs(Backend):
    """Records the network's kernels once for each input size and launches them together.

    This helps networks whose speed is limited by kernel launches. Calls with the same size use the same memory and run
    one after another, as they would on a GPU anyway.
    """

    name = "cuda-graphs"
    tried_by_auto: ClassVar[Mapping[str, int]] = {"cuda": 1}

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        network = with_precision(network, precision).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = Compiled.missing(device) is None
        self._prepare(torch.compile(network, options={"freezing": True}) if fused else network)

    def _prepare(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        self._lock = Lock()  # for the recordings
        self._recordings: OrderedDict[torch.Size, Recording] = OrderedDict()

    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        with torch.inference_mode(False), torch.no_grad(), self._on_device():
            return self._recording(x)(x)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Select this device: each thread has its own current device, which is the first GPU at the start."""
        return torch.cuda.device(self.device)

    def _recording(self, x: Tensor) -> Recording:
        """Return the recording for the shape of ``x``; make it if there is none."""
        with self._lock:
            if x.shape in self._recordings:
                self._recordings.move_to_end(x.shape)
                return self._recordings[x.shape]
        with BUILDING:  # one at a time per process: a recording fails if another one synchronises the device
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
            for _ in range(3):  # compile, choose algorithms and fill caches outside of the recording
                self.network(source)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            result = self.network(source)
        finished = torch.cuda.Event()
        finished.record(torch.cuda.current_stream(self.device))
        return Recording(graph.replay, source, result, finished)

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """See :class:`Backend`. Needs a CUDA device."""
        return None if device.type == "cuda" else f"CUDA graphs need a CUDA device, not {device.type}"
