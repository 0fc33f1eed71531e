"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import importlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import psutil
import torch
from torch import Tensor, nn

from safmn.inference.backends.base import Backend, example_input, installed_versions, package_missing, register_backend
from safmn.inference.backends.graph_check import takes_several
from safmn.inference.onnx_graph import onnx_bytes
from safmn.inference.optimize import for_graph
from safmn.runtime.threads import BUILDING, Lock, Pool, keep_in_forks

_SIZES = 2  # input sizes for which a static graph is kept
_STREAMS = 4  # maximum of calls that a graph computes at the same time; each stream needs its own memory


def openvino_core() -> Any:
    """Return the single ``openvino.Core`` of this process.

    The CPU plugin of a Core gives the calling thread an alternate signal stack and frees it at the end. It restores the
    previous stack only if Cores end in the reverse order of their creation (release 2026.4). With several Cores, the
    next signal, such as SIGCHLD of a loader worker, might be handled on freed memory.
    """
    with BUILDING:
        return _core(os.getpid())


@functools.cache
def _core(process: int) -> Any:
    core = importlib.import_module("openvino").Core()
    keep_in_forks(core)
    return core


@register_backend
class OpenVINO(Backend):
    """OpenVINO's CPU plugin.

    A graph of fixed size is a tenth faster than a dynamic one and compiles in half a second. Therefore a size that
    comes twice in a row (tiles, video frames) gets its own graph. All others run on the dynamic graph.

    An infer request holds the input and output of one call, so each call uses a separate one.
    """

    name = "openvino"
    tried_by_auto: ClassVar[Mapping[str, int]] = {"cpu": 2}

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        self._openvino = importlib.import_module("openvino")
        graph = for_graph(network).cpu()
        # Through ONNX: OpenVINO's own conversion from PyTorch takes three times as long and sends telemetry.
        self._model = openvino_core().read_model(onnx_bytes(graph, example_input(graph)))
        self._model.reshape([-1, self.channels, -1, -1])
        self._dynamic = self._compile(self._model)
        self._lock = Lock()  # for the three attributes below
        self._static: OrderedDict[tuple[int, ...], Pool[Any]] = OrderedDict()
        self._last: tuple[int, ...] | None = None
        self._compiling: set[tuple[int, ...]] = set()
        self._takes_several = True
        self._takes_several = takes_several(self, network)

    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        if len(x) > 1 and not self._takes_several:
            return torch.cat([self(image) for image in x.split(1)])
        with self._requests(tuple(x.shape)).one() as request:
            request.infer({0: self._openvino.Tensor(x.detach().contiguous().numpy(), shared_memory=True)})
            return torch.from_numpy(request.get_output_tensor(0).data.copy())

    def _requests(self, shape: tuple[int, ...]) -> Pool[Any]:
        """Return the requests of the graph for this size. While a thread compiles it, others use the dynamic graph."""
        with self._lock:
            again, self._last = shape == self._last, shape
            if shape in self._static or not again or shape in self._compiling:
                return self._static.get(shape, self._dynamic)
            self._compiling.add(shape)
        try:
            with BUILDING:
                model = self._model.clone()
                model.reshape(list(shape))
                requests = self._compile(model)
            with self._lock:
                self._static[shape] = requests
                if len(self._static) > _SIZES:
                    self._static.popitem(last=False)
            return requests
        finally:
            with self._lock:
                self._compiling.discard(shape)

    def _compile(self, model: Any) -> Pool[Any]:
        threads = torch.get_num_threads()
        streams = max(min(_cores() // threads, _STREAMS), 1)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,  # the sum over all streams
        }
        compiled = openvino_core().compile_model(model, "CPU", settings)
        return Pool(compiled.create_infer_request)

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """See :class:`Backend`. Needs a CPU and the packages openvino and onnx."""
        if device.type != "cpu":
            return f"OpenVINO is used on CPUs, not on {device.type}"
        return package_missing("openvino", "openvino") or package_missing("onnx", "openvino")

    @classmethod
    def versions(cls) -> tuple[str, ...]:
        """The packages."""
        return installed_versions("onnx", "openvino")

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """See :class:`Backend`. No bfloat16: OpenVINO's hint also rounds sums and norms, which costs 0.03 dB at x2.

        A graph with bfloat16 convolutions only is just a tenth faster.
        """
        return "OpenVINO rounds more than the convolutions to bfloat16" if precision == "bf16" else None


def _cores() -> int:
    """Return the number of cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)
