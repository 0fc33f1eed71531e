"""Compare other forms of SAFMN with the network itself in float64: outputs and gradients, for all sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from safmn.archs import SAFMN, blocks

# Random networks and images; height and width count windows of the network.
CASES: dict[str, st.SearchStrategy[Any]] = {
    "dim": st.integers(1, 10).map(lambda chunk: 4 * chunk),
    "blocks": st.integers(1, 3),
    "ffn": st.sampled_from([1.0, 1.7, 2.0]),
    "scale": st.integers(1, 4),
    "batch": st.integers(1, 19),
    "height": st.integers(1, 4),
    "width": st.integers(1, 4),
}
# Three blocks of four channels magnify rounding errors. A wrong border or window changes the second digit.
TOLERANCE = 5e-4


def squares(image: Tensor) -> Tensor:
    """Return the first 64x64 pixels of an image (3, h, w) as (16, 3, 16, 16)."""
    return F.unfold(image[None, :, :64, :64], 16, stride=16).view(3, 16, 16, 16).permute(3, 0, 1, 2).contiguous()


def network(seed: int = 0, **arguments: Any) -> SAFMN:
    """Return a SAFMN with random weights and biases whose features neither vanish nor explode."""
    result = SAFMN(**arguments)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in result.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 9
        parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5 + ("norm" in name)
    return result


def case(dim: int, blocks: int, ffn: float, scale: int, batch: int, height: int, width: int) -> tuple[SAFMN, Tensor]:
    """Return the network and the images of a draw from CASES."""
    images = torch.rand(batch, 3, 8 * height, 8 * width, generator=torch.Generator().manual_seed(batch))
    return network(dim, dim=dim, n_blocks=blocks, ffn_scale=ffn, upscaling_factor=scale), images


def values(forward: nn.Module, parameters: list[nn.Parameter], images: Tensor, weights: Tensor) -> list[Tensor]:
    """Return the output and the gradients of the sum of its product with ``weights``."""
    output = forward(images)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), parameters)]


def clear_maxima(exact: SAFMN, images: Tensor, margin: float = 6e-6) -> Tensor:
    """Return which of ``images`` have no pooling window with two nearly equal largest values: bool (B,).

    Rounding decides which of two such values is the maximum and gets the gradient. So two forms of the network that are
    equally exact may pass it to different pixels. ``margin`` is relative to the largest pooled value, and wide enough
    for torch's AVX-512 convolutions, whose rounding errors are twice those of its AVX2 ones. Sizes are multiples of the
    network's window.
    """
    clear = torch.ones(len(images), dtype=torch.bool)

    def max_pool(x: Tensor, factor: int) -> Tensor:
        windows = F.unfold(x.flatten(0, 1)[:, None], factor, stride=factor)  # (B * C, factor**2, windows)
        largest, second = windows.topk(2, dim=1).values.unbind(1)
        clear.logical_and_(((largest - second) > margin * x.abs().max()).view(len(images), -1).all(1))
        return F.max_pool2d(x, factor)

    with torch.no_grad(), mock.patch.object(blocks, "max_pool", max_pool):
        exact(images)
    return clear


def assert_close(
    form: Callable[[SAFMN], nn.Module],
    own: SAFMN,
    images: Tensor,
    tolerance: float = TOLERANCE,
    *,
    only_clear_maxima: bool = True,
) -> None:
    """Assert that ``form(own)`` has the output and gradients of float64, by the relative norms of the differences.

    With ``only_clear_maxima``, images without clear maxima (:func:`clear_maxima`) are compared only in the output. At
    least one image must have them.
    """
    exact = SAFMN(**SAFMN.arguments_from({name: tuple(t.shape) for name, t in own.state_dict().items()}))
    exact.double().load_state_dict(own.state_dict())
    clear = clear_maxima(exact, images.double()) if only_clear_maxima else torch.ones(len(images))
    assume(clear.any())  # hypothesis replaces the draw; outside hypothesis this raises
    size = (images.shape[0], 3, *(side * own.scale for side in images.shape[2:]))
    weights = torch.randn(size, generator=torch.Generator().manual_seed(1)) * clear[:, None, None, None]
    got = values(form(own), list(own.parameters()), images, weights)
    expected = values(exact, list(exact.parameters()), images.double(), weights.double())
    for name, one, other in zip(["output", *own.state_dict()], got, expected, strict=True):
        error = (one - other).norm() / (other.norm() + 1e-3 * expected[1].norm())
        assert error <= tolerance, f"{name}: {error:.1e}"
