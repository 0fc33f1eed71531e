"""Compare the Triton kernels with the network, on the CPU in Triton's interpreter (``pip install triton``).

conftest.py turns the interpreter on."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
    pytest.skip("needs Triton and no GPU; test_cuda.py is for GPUs", allow_module_level=True)

from safmn_gradients import assert_close, case, network
from triton.runtime import interpreter

from safmn.archs import SAFMN
from safmn.data import patch_store
from safmn.inference.backends.triton_backend import BlocksByKernels, TritonKernels
from safmn.kernels.gpu import blocks as gpu_blocks
from safmn.kernels.gpu import gather as gpu_gather
from safmn.kernels.gpu.training import GPUTrainedSAFMN, kernel_error


@pytest.fixture(autouse=True)
def _ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make scalars usable as indices: Triton 3.6 passes arrays of one element, which numpy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def by_kernels(own: SAFMN) -> GPUTrainedSAFMN:
    return GPUTrainedSAFMN(own, fusion="kernels")


@pytest.mark.parametrize(
    "size",
    [
        {"dim": 4, "blocks": 1, "ffn": 1.7, "scale": 2, "batch": 1, "height": 1, "width": 1},
        {"dim": 12, "blocks": 2, "ffn": 2.0, "scale": 3, "batch": 2, "height": 1, "width": 2},
        {"dim": 36, "blocks": 1, "ffn": 2.0, "scale": 4, "batch": 1, "height": 2, "width": 1},
    ],
    ids=lambda size: f"dim{size['dim']}",
)
def test_outputs_and_gradients(size: dict[str, Any]) -> None:
    assert_close(by_kernels, *case(**size))


def test_equal_pixels_share_the_gradient_of_their_maximum() -> None:
    images = torch.full((1, 3, 16, 16), 0.5)
    assert_close(by_kernels, network(dim=8, n_blocks=1, upscaling_factor=2), images, only_clear_maxima=False)


def test_programs_that_process_several_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer programs than windows, a program's partial sums cover several windows."""
    monkeypatch.setattr(gpu_blocks, "_PROGRAMS", dict.fromkeys(gpu_blocks._PROGRAMS, 2))
    images = torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    assert_close(by_kernels, network(dim=8, n_blocks=1, upscaling_factor=2), images)


def test_kernel_error_detects_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    own = network(dim=4, n_blocks=1, upscaling_factor=2).requires_grad_(False)  # as for a teacher
    assert kernel_error(own, torch.float32) < 1e-4
    monkeypatch.setattr(gpu_blocks, "_EPS", 1.0)
    assert kernel_error(own, torch.float32) > 0.2


def test_the_gather_kernel_equals_torchs_gather_and_is_chosen() -> None:
    pixels = torch.randint(256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    addresses = torch.tensor([[10, 1000, 20, 1], [900, 1000, -20, 1], [619, 1000, -1, -20], [0, 1000, 1, 20]])
    assert torch.equal(gpu_gather.gather(pixels, addresses, 16), patch_store.gather(pixels, addresses, 16))
    patch_store._gather_kernel.cache_clear()
    assert patch_store._gather_kernel(torch.device("cpu")) is gpu_gather.gather


# Without bfloat16, which numpy lacks: Triton's interpreter multiplies its bits as if they were numbers.
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e-5), (torch.float16, 2e-3)], ids=str)
def test_the_back_end_for_inference_gives_the_networks_image(dtype: torch.dtype, largest: float) -> None:
    own = network(dim=12, n_blocks=2, upscaling_factor=2).eval().requires_grad_(False)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = BlocksByKernels(own, dtype)(images)
        expected = own(images)
    assert made.dtype == torch.float32
    assert float((made - expected).abs().max() / expected.abs().max()) < largest


def test_the_back_end_for_inference_names_what_it_cannot_run() -> None:
    own = network(dim=12, n_blocks=1, upscaling_factor=2)
    assert TritonKernels.unfit(own, "fp16") is None
    assert "bf16 or fp16, not in fp32" in str(TritonKernels.unfit(own, "fp32"))
    assert "wider than 64" in str(TritonKernels.unfit(network(dim=68, n_blocks=1, upscaling_factor=2), "bf16"))
    assert "not for Linear" in str(TritonKernels.unfit(torch.nn.Linear(1, 1), "bf16"))
