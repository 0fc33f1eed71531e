"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import importlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from safmn.inference.backends.base import Backend, example_input, package_missing
from safmn.inference.onnx_graph import onnx_bytes
from safmn.inference.optimize import for_graph

_SIZES = 2  # input sizes for which a static graph is kept


@functools.cache
def openvino_core() -> Any:
    """The one ``openvino.Core`` of this process.

    The CPU plugin of a Core gives the calling thread an alternate signal stack and frees it in the end, but puts back
    the one before only where Cores end in the reverse order of their beginning (release 2026.4). Otherwise the next
    signal, be it SIGCHLD of a loader worker, is handled on memory that belongs to somebody else by then, or to nobody.
    """
    return importlib.import_module("openvino").Core()


class OpenVINO(Backend):
    """OpenVINO's CPU plugin.

    A graph of fixed size is a tenth faster than a dynamic one, and compiled in half a second. So a size that comes a
    second time (tiles, video frames) gets one of its own; a size that comes once is run by the dynamic one.
    """

    name = "openvino"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        self._openvino = importlib.import_module("openvino")
        graph = for_graph(network).cpu()
        # Through ONNX: OpenVINO's own conversion from PyTorch takes three times as long, and reports its use home.
        self._model = openvino_core().read_model(onnx_bytes(graph, example_input(graph)))
        self._model.reshape([-1, self.channels, -1, -1])
        self._dynamic = self._compile(self._model)
        self._static: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._last: tuple[int, ...] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        request = self._request(tuple(x.shape))
        request.infer({0: self._openvino.Tensor(x.detach().contiguous().numpy(), shared_memory=True)})
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._static and shape == self._last:
            model = self._model.clone()
            model.reshape(list(shape))
            self._static[shape] = self._compile(model)
            if len(self._static) > _SIZES:
                self._static.popitem(last=False)
        self._last = shape
        return self._static.get(shape, self._dynamic)

    def _compile(self, model: Any) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return openvino_core().compile_model(model, "CPU", settings).create_infer_request()

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """Needs the package, and is used for CPUs."""
        if device.type != "cpu":
            return f"OpenVINO is used on CPUs, not on {device.type}"
        return package_missing("openvino", "openvino") or package_missing("onnx", "openvino")

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """Its hint for bfloat16 rounds sums and norms too, which costs 0.03 dB at x2; mixed graphs gain a tenth."""
        return "OpenVINO rounds more than the convolutions to bfloat16" if precision == "bf16" else None
