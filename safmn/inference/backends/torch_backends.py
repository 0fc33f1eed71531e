"""PyTorch itself: operation by operation, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from safmn.inference.backends.base import Backend
from safmn.inference.optimize import with_precision
from safmn.kernels.cpu.build import compiler

_GRAPHS = 4  # input sizes for which a CUDA graph is kept; each holds the memory of all activations


class Eager(Backend):
    """The network as it is."""

    name = "eager"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        self.network = with_precision(network, precision).to(device)
        if device.type == "cuda":
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        y: Tensor = self.network(x)
        return y


class Compiled(Backend):
    """``torch.compile``: sizes that differ are compiled once more, then dynamically.

    On the CPU with the weights frozen into oneDNN's layout (a quarter faster); on a GPU with autotuning.
    """

    name = "compile"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        options: dict[str, Any] = {"freezing": True} | ({"max_autotune": True} if device.type == "cuda" else {})
        self._compiled = torch.compile(with_precision(network, precision).to(device), options=options)

    @torch.no_grad()  # not inference_mode: freezing needs tensors with a version
    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
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


class CudaGraphs(Backend):
    """The network's kernels recorded once for each input size and launched as one: for networks bound by launches."""

    name = "cuda-graphs"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        network = with_precision(network, precision).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = Compiled.missing(device) is None
        self.network = torch.compile(network, options={"freezing": True}) if fused else network
        self._graphs: OrderedDict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = OrderedDict()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        if x.shape not in self._graphs:
            self._graphs[x.shape] = self._record(x)
            if len(self._graphs) > _GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(x.shape)
        graph, source, result = self._graphs[x.shape]
        source.copy_(x)
        graph.replay()
        return result.clone()

    def _record(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """The graph for inputs of the shape of ``x``, with its fixed input and output."""
        source = x.clone()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, chooses algorithms and fills caches outside the recording
                self.network(source)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.network(source)
        return graph, source, result

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """CUDA devices only."""
        return None if device.type == "cuda" else f"CUDA graphs need a CUDA device, not {device.type}"
