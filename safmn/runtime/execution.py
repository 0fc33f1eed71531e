"""Choose how a run computes: device, precision, compilation and memory format. All such decisions are made here."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from safmn.errors import OptionError, first_line
from safmn.kernels.cpu.compilation import compiler
from safmn.system.memory import keep_freed_memory

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
Kernels = Literal["torch", "native"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """The decisions as plain data. ``precision`` applies to the forward pass; weights and losses stay float32.

    Attributes:
        about_kernels: why ``kernels`` has its value, for the log; "" if there is nothing to say.
    """

    device: torch.device
    precision: Precision = "fp32"
    compile: bool = False
    kernels: Kernels = "torch"
    channels_last: bool = True
    deterministic: bool = False
    cuda_graph: bool = False
    about_kernels: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The torch data type of ``precision``."""
        return _DTYPES[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of the forward pass: autocast to the precision, or nothing for float32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, and convert its 4-D tensors to the memory format; it needs 4 dimensions."""
        network.to(self.device)
        if self.channels_last:
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.ndim == 4:
                    tensor.data = tensor.data.to(memory_format=self.memory_format)
        return network

    def describe(self) -> str:
        """Return a one-line description for the log."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        how = "native kernels" if self.kernels == "native" else "compiled" if self.compile else "eager"
        about = f" ({self.about_kernels})" if self.about_kernels else ""
        parts = [name, self.precision, how + about]
        parts += ["channels_last"] if self.channels_last else []
        parts += ["deterministic"] if self.deterministic else []
        parts += ["one CUDA graph for each step"] if self.cuda_graph else []
        return ", ".join(parts) + (f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else "")


def named_device(name: str | torch.device, local_rank: int = 0) -> torch.device:
    """Return a torch device; for ``auto`` the first available of CUDA and XPU (this rank's GPU), MPS and the CPU.

    Raises:
        OptionError: this machine does not have the device.
    """
    if str(name) == "auto":
        for kind in (torch.cuda, torch.xpu):
            if kind.is_available():
                return torch.device(kind.__name__.removeprefix("torch."), local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()  # the device "meta" has no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # torch may raise any of these
        raise OptionError(f"device {str(name)!r} cannot be used on this machine: {first_line(error)}") from error
    return found


def choose_device(num_gpu: int | None, local_rank: int = 0) -> torch.device:
    """Return the device that ``num_gpu`` requests; if there is no GPU, the CPU, with a warning.

    Args:
        num_gpu: BasicSR's key: 0 for the CPU, 1 or more for one GPU per process, None for the available device.
        local_rank: the number of this process on its machine, which selects its GPU.
    """
    device = torch.device("cpu") if num_gpu == 0 else named_device("auto", local_rank)
    if num_gpu and device.type == "cpu":
        logger.warning("num_gpu: %s, but this machine has no usable GPU: using the CPU", num_gpu)
    return device


def device_count() -> int:
    """Return the number of devices other than the CPU, the value of ``num_gpu: auto``."""
    return torch.cuda.device_count() or torch.xpu.device_count() or int(torch.backends.mps.is_available())


def choose_execution(
    device: torch.device,
    *,
    precision: str | None = None,
    compile: bool | None = None,
    kernels: Kernels = "torch",
    channels_last: bool | None = None,
    deterministic: bool = False,
    cuda_graph: bool = False,
    about_kernels: str = "",
) -> Execution:
    """Complete the options with defaults that were measured to be fastest (docs/performance.md).

    Raises:
        OptionError: the device does not support the options.
    """
    chosen = precision or "fp32"
    if chosen not in _DTYPES:
        raise OptionError(f"train.precision: unknown precision {precision!r}; choose fp32, bf16 or fp16")
    if chosen == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise OptionError("train.precision: bf16 is not supported by this GPU; choose fp16 or fp32")
    if compile and device.type == "cpu" and compiler() is None:
        raise OptionError("train.compile: true needs a C++ compiler (g++ or clang++) on this machine; install one")
    if kernels == "native":
        _check_native(device, chosen, compile=bool(compile))
    if cuda_graph and (device.type != "cuda" or chosen == "fp16"):
        raise OptionError(
            f"train.cuda_graph: true needs an NVIDIA GPU and fp32 or bf16; this run uses {device.type}, {chosen}. "
            "Remove it, or change num_gpu or precision"
        )
    return Execution(
        device,
        chosen,  # type: ignore[arg-type]
        compile=bool(compile),
        kernels=kernels,
        channels_last=_channels_last(device, kernels) if channels_last is None else channels_last,
        deterministic=deterministic,
        cuda_graph=cuda_graph,
        about_kernels=about_kernels,
    )


def _channels_last(device: torch.device, kernels: Kernels) -> bool:
    """Whether the memory format was measured to be the faster one; on other devices it was not tried."""
    return device.type == "cuda" or (device.type == "cpu" and kernels != "native")


def _check_native(device: torch.device, precision: str, *, compile: bool) -> None:
    possible = {"cpu": ("fp32",), "cuda": ("fp32", "bf16")}
    if precision not in possible.get(device.type, ()) or compile:
        how = "compiled" if compile else precision
        raise OptionError(
            "train.kernels: native needs the CPU in fp32, or an NVIDIA GPU in fp32 or bf16, without compile; this run "
            f"uses {device.type}, {how}. Remove it, or change num_gpu, precision or compile"
        )


def apply_global_settings(execution: Execution) -> None:
    """Apply the settings of torch and the C library for the whole process."""
    if execution.device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = not execution.deterministic
    if execution.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes cuBLAS deterministic
        torch.use_deterministic_algorithms(True)
    if execution.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


@contextlib.contextmanager
def comparable_convolutions() -> Iterator[None]:
    """Disable TensorFloat-32 and the search for the fastest kernel per image size, within the block."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = False, False, False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
