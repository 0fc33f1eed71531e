"""The frequency loss of SAFMN's recipes: L1 between the Fourier coefficients of prediction and target.

Sun, Dong, Tang and Pan, "Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution", ICCV 2023,
eq. 9; earlier in Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", ICCV 2021.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from safmn.errors import OptionError
from safmn.registry import LOSS_REGISTRY

_REDUCTIONS = ("none", "mean", "sum")


@LOSS_REGISTRY.register()
class FFTLoss(nn.Module):
    """L1 between the real and imaginary parts of the unnormalised ``rfft2`` of prediction and target.

    Args:
        loss_weight: factor on the result.
        reduction: ``mean`` or ``sum`` over all real and imaginary parts; ``none`` to keep them separate.

    Raises:
        OptionError: ``reduction`` has another value.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise OptionError(f"FFTLoss: reduction: {reduction!r}; choose one of {', '.join(_REDUCTIONS)}")
        self.loss_weight = loss_weight
        self.reduction = reduction

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of two (B, C, H, W) images in [0, 1].

        The computation uses at least float32, also under autocast, because unscaled Fourier coefficients overflow
        float16.

        Returns:
            A scalar, or (B, C, H, W // 2 + 1, 2) with reduction ``none``.
        """
        difference = _at_least_float32(pred) - _at_least_float32(target)  # one transform is enough: it is linear
        if self.reduction == "none":
            return self.loss_weight * torch.view_as_real(torch.fft.rfft2(difference)).abs()
        total: Tensor = _SpectrumL1.apply(difference)  # type: ignore[no-untyped-call]
        if self.reduction == "mean":
            total = total / _coefficients(difference)
        return self.loss_weight * total


def _at_least_float32(image: Tensor) -> Tensor:
    return image.to(torch.promote_types(image.dtype, torch.float32))


def _coefficients(image: Tensor) -> int:
    """Return the number of real and imaginary parts in the ``rfft2`` of an image (..., H, W)."""
    return image.numel() // image.shape[-1] * (image.shape[-1] // 2 + 1) * 2


class _SpectrumL1(torch.autograd.Function):
    """The sum of |real| + |imaginary| over ``rfft2(x)``. The gradient takes one inverse real transform.

    Autograd's gradient of ``rfft2`` copies into a complex tensor of twice the size and transforms that.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)  # (B, C, H, W // 2 + 1) complex
        parts = torch.view_as_real(spectrum)
        total = parts.abs().sum()
        if ctx.needs_input_grad[0]:
            parts.sign_()  # in-place: `spectrum` now holds the gradient with respect to itself
            ctx.save_for_backward(_adjoint_rfft2(spectrum, x.shape[-1]))
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient * grad


def _adjoint_rfft2(spectrum: Tensor, width: int) -> Tensor:
    """Apply the transpose of ``rfft2`` to a (B, C, H, W // 2 + 1) complex tensor and overwrite it; return (B, C, H, W).

    ``irfft`` counts every column twice (the second time as its mirror image), except the first one and, for even
    widths, the last one. So the columns counted twice are halved here. Of the other columns only the real part belongs
    to the result. Libraries do not specify how they treat the imaginary part, so it is set to zero here.
    """
    spectrum[..., 1 : (width + 1) // 2] *= 0.5
    spectrum = torch.fft.ifft(spectrum, dim=-2, norm="forward")
    parts = torch.view_as_real(spectrum)
    parts[..., 0, 1] = 0
    if width % 2 == 0:
        parts[..., -1, 1] = 0
    return torch.fft.irfft(spectrum, n=width, dim=-1, norm="forward")
