"""ONNX Runtime on the CPU and on GPUs, and TensorRT through it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from safmn.inference.backends.base import Backend, example_input, installed_versions, package_missing, register_backend
from safmn.inference.backends.graph_check import takes_several
from safmn.inference.onnx_graph import INPUT, OUTPUT, onnx_bytes
from safmn.inference.optimize import InHalf, for_graph
from safmn.system.files import cache_folder


@register_backend
class OnnxRuntime(Backend):
    """ONNX Runtime with its CPU kernels, or with CUDA on a GPU. New sizes need no rebuild."""

    name = "onnxruntime"
    tried_by_auto: ClassVar[Mapping[str, int]] = {"cpu": 3, "cuda": 2}
    provider = "CUDAExecutionProvider"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        graph = for_graph(network).cpu()
        content = onnx_bytes(self._in_precision(graph), example_input(graph))
        self._session = runtime.InferenceSession(content, options, providers=self._providers())
        with torch.no_grad():
            shape = graph.to("meta")(example_input(graph.to("meta"))).shape  # (1, C', h * up, w * up)
        self._out_channels, self._up = shape[1], shape[2] / example_input(graph).shape[2]
        self._takes_several = True
        if self.name != "tensorrt":  # it would build an engine for the check, for minutes
            self._takes_several = takes_several(self, network)

    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        if len(x) > 1 and not self._takes_several:
            return torch.cat([self(image) for image in x.split(1)])
        if self.device.type == "cuda":
            return self._on_gpu(x.contiguous())
        (y,) = self._session.run([OUTPUT], {INPUT: x.detach().numpy()})
        return torch.from_numpy(y)

    def _on_gpu(self, x: Tensor) -> Tensor:
        """Run on torch's memory without copies to the CPU."""
        height, width = (int(side * self._up) for side in x.shape[2:])
        y = torch.empty(x.shape[0], self._out_channels, height, width, device=self.device)
        binding = self._session.io_binding()
        where = ("cuda", self.device.index or 0, np.float32)
        binding.bind_input(INPUT, *where, tuple(x.shape), x.data_ptr())
        binding.bind_output(OUTPUT, *where, tuple(y.shape), y.data_ptr())
        torch.cuda.current_stream(self.device).synchronize()  # the runtime uses a separate stream
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return y

    def _in_precision(self, graph: nn.Module) -> nn.Module:
        return InHalf(graph, torch.float16) if self.precision == "fp16" else graph

    def _providers(self) -> list[Any]:
        if self.device.type == "cpu":
            return ["CPUExecutionProvider"]
        return [(self.provider, {"device_id": self.device.index or 0})]

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """See :class:`Backend`. Needs onnx to write the graph and onnxruntime to run it, on a GPU with its provider."""
        for package in ("onnx", "onnxruntime"):
            problem = package_missing(package, "onnx")
            if problem:
                return problem
        if device.type == "cpu":
            return None
        if device.type != "cuda":
            return f"ONNX Runtime is used on CPUs and CUDA devices, not on {device.type}"
        return _provider_missing(cls.provider)

    @classmethod
    def versions(cls) -> tuple[str, ...]:
        """The packages, of which one runs the graph."""
        return installed_versions(
            "onnx", "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"
        )

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """See :class:`Backend`. The kernels are float32 and float16."""
        return "ONNX Runtime has no bfloat16 convolutions" if precision == "bf16" else None


@register_backend
class TensorRT(OnnxRuntime):
    """TensorRT engines, which ONNX Runtime builds for each input size and keeps in the user's cache.

    The first build takes minutes.
    """

    name = "tensorrt"
    tried_by_auto: ClassVar[Mapping[str, int]] = {}
    provider = "TensorrtExecutionProvider"

    def _in_precision(self, graph: nn.Module) -> nn.Module:
        return graph  # TensorRT chooses the precision of each layer and keeps those that would overflow in float32

    def _providers(self) -> list[Any]:
        folder = cache_folder() / "tensorrt"
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "device_id": self.device.index or 0,
            "trt_fp16_enable": self.precision == "fp16",
            "trt_bf16_enable": self.precision == "bf16",
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": True,
        }
        return [(self.provider, options), ("CUDAExecutionProvider", {"device_id": self.device.index or 0})]

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """See :class:`Backend`. Needs a CUDA device."""
        if device.type != "cuda":
            return f"TensorRT needs a CUDA device, not {device.type}"
        return super().missing(device)

    @classmethod
    def unfit(cls, network: nn.Module, precision: str) -> str | None:
        """See :class:`Backend`. Supports any network in any precision."""
        return None


def _provider_missing(provider: str) -> str | None:
    runtime = importlib.import_module("onnxruntime")
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # loads the CUDA libraries that come with torch
    if provider in runtime.get_available_providers():
        return None
    return f"the installed onnxruntime has no {provider}: pip install onnxruntime-gpu"
