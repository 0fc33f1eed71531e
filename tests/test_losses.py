"""FFTLoss equals its definition, with gradients and in low precision. BasicSR's losses stay available by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safmn.errors import OptionError
from safmn.losses import FFTLoss
from safmn.registry import LOSS_REGISTRY, build, find


def plain_fft_loss(pred: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Return the loss as the published code computes it: two transforms, real and imaginary parts, L1."""
    spectra = [torch.fft.rfft2(image, dim=(-2, -1)) for image in (pred, target)]
    pred_parts, target_parts = (torch.stack([s.real, s.imag], dim=-1) for s in spectra)
    return torch.nn.functional.l1_loss(pred_parts, target_parts, reduction=reduction)


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    pred, target = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return pred.to(device, dtype).requires_grad_(), target.to(device, dtype).requires_grad_()


def value_and_gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return (loss.detach(), *torch.autograd.grad(loss, inputs))


@settings(deadline=None)
@given(height=st.integers(1, 13), width=st.integers(1, 13), reduction=st.sampled_from(["mean", "sum", "none"]))
def test_fft_loss_and_its_gradients_equal_the_definition(height: int, width: int, reduction: str) -> None:
    pred, target = images((2, 3, height, width))
    ours = FFTLoss(loss_weight=0.05, reduction=reduction)(pred, target)
    plain = 0.05 * plain_fft_loss(pred, target, reduction)
    assert ours.shape == plain.shape
    # weight the elements differently, so that with "none" the gradient of every element is compared
    weights = torch.linspace(0.5, 2, ours.numel(), dtype=ours.dtype).reshape(ours.shape)
    got = value_and_gradients((ours * weights).sum(), pred, target)
    expected = value_and_gradients((plain * weights).sum(), pred, target)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_fft_loss_in_float32_with_the_recipes_sizes() -> None:
    pred, target = images((2, 3, 256, 256), torch.float32)
    got = value_and_gradients(FFTLoss()(pred, target), pred)
    expected = value_and_gradients(plain_fft_loss(pred, target), pred)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    assert (got[1] - expected[1]).abs().max() < 1e-5 * expected[1].abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fft_loss_computes_in_float32_under_autocast(dtype: torch.dtype) -> None:
    pred, target = images((1, 3, 64, 64), torch.float32)
    low = pred.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = FFTLoss()(low, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain_fft_loss(low.float(), target), rtol=1e-6, atol=0)
    loss.backward()
    assert low.grad is not None
    assert low.grad.dtype == dtype


def test_fft_loss_of_a_white_prediction_does_not_overflow_in_half_precision() -> None:
    white = torch.ones(1, 3, 512, 512, dtype=torch.float16)  # float16 cannot hold the constant coefficient, 262144
    loss = FFTLoss(reduction="sum")(white, torch.zeros_like(white))
    assert loss.item() == pytest.approx(3 * 512 * 512, rel=1e-6)


def test_fft_loss_works_without_gradient() -> None:
    pred, target = images((1, 3, 16, 16))
    with torch.no_grad():
        loss = FFTLoss()(pred, target)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_fft_loss(pred, target).detach())


def test_fft_loss_takes_channels_last_and_applies_its_weight() -> None:
    pred, target = images((2, 3, 24, 20))
    last = (image.detach().contiguous(memory_format=torch.channels_last) for image in (pred, target))
    torch.testing.assert_close(FFTLoss(loss_weight=3.0)(*last), 3 * FFTLoss()(pred, target).detach())


def test_fft_loss_rejects_an_unknown_reduction() -> None:
    with pytest.raises(OptionError, match=r"'avg'.*none, mean, sum"):
        FFTLoss(reduction="avg")


def test_fft_loss_builds_by_name_in_basicsr_and_safmn() -> None:
    from basicsr.losses import build_loss

    section = {"type": "FFTLoss", "loss_weight": 0.05, "reduction": "mean"}
    assert isinstance(build_loss(section), FFTLoss)
    assert build(LOSS_REGISTRY, section).loss_weight == 0.05


@pytest.mark.parametrize("name", ["L1Loss", "MSELoss", "CharbonnierLoss", "WeightedTVLoss", "GANLoss"])
def test_losses_of_basicsr_stay_available(name: str) -> None:
    assert find(LOSS_REGISTRY, name).__module__.startswith("basicsr.losses.")


@pytest.mark.parametrize("on_luma", [False, True])
def test_the_psnr_loss_is_minus_the_mean_psnr(on_luma: bool) -> None:
    pred, target = images((3, 3, 20, 24))
    found = build(LOSS_REGISTRY, {"type": "PSNRLoss", "loss_weight": 0.5, "toY": on_luma})(pred, target)
    psnrs = []
    for one, other in zip(pred.detach().numpy(), target.detach().numpy(), strict=True):
        if on_luma:
            weights = np.array([65.481, 128.553, 24.966]) / 255
            one, other = (np.tensordot(weights, image, 1) + 16 / 255 for image in (one, other))
        psnrs.append(10 * np.log10(1 / (np.mean((one - other) ** 2) + 1e-8)))
    assert found.item() == pytest.approx(-0.5 * np.mean(psnrs), rel=1e-12)
    assert torch.autograd.gradcheck(build(LOSS_REGISTRY, {"type": "PSNRLoss", "toY": on_luma}), images((1, 3, 4, 4)))


def test_perceptual_loss_is_ours() -> None:
    assert find(LOSS_REGISTRY, "PerceptualLoss").__module__ == "safmn.losses.perceptual_loss"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(4, 3, 256, 256), (2, 3, 63, 47), (2, 3, 48, 50)])
def test_fft_loss_equals_the_definition_on_a_gpu(shape: tuple[int, ...]) -> None:
    pred, target = images(shape, device="cuda")
    got = value_and_gradients(FFTLoss()(pred, target), pred)
    expected = value_and_gradients(plain_fft_loss(pred, target), pred)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
