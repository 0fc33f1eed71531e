"""Other forms of SAFMN against the network itself in float64: values and gradients, for all sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from safmn.archs import SAFMN

# Networks and images, images as multiples of the network's window.
CASES: dict[str, st.SearchStrategy[Any]] = {
    "dim": st.integers(1, 10).map(lambda chunk: 4 * chunk),
    "blocks": st.integers(1, 3),
    "ffn": st.sampled_from([1.0, 1.7, 2.0]),
    "scale": st.integers(1, 4),
    "batch": st.integers(1, 19),
    "height": st.integers(1, 4),
    "width": st.integers(1, 4),
}
# Three blocks over four channels magnify rounding; a wrong border or window shows in the second digit.
TOLERANCE = 5e-4


def network(seed: int = 0, **arguments: Any) -> SAFMN:
    """Random weights, biases among them, whose features neither vanish nor explode."""
    result = SAFMN(**arguments)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in result.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 9
        parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5 + ("norm" in name)
    return result


def case(dim: int, blocks: int, ffn: float, scale: int, batch: int, height: int, width: int) -> tuple[SAFMN, Tensor]:
    """The network and the images of a draw from CASES."""
    images = torch.rand(batch, 3, 8 * height, 8 * width, generator=torch.Generator().manual_seed(batch))
    return network(dim, dim=dim, n_blocks=blocks, ffn_scale=ffn, upscaling_factor=scale), images


def values(forward: nn.Module, parameters: list[nn.Parameter], images: Tensor, weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of its product with ``weights``."""
    output = forward(images)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), parameters)]


def assert_close(form: Callable[[SAFMN], nn.Module], own: SAFMN, images: Tensor, tolerance: float = TOLERANCE) -> None:
    """Error of ``form(own)`` against float64: of the output and each gradient, as a norm, relative to its own."""
    exact = SAFMN(**SAFMN.arguments_from({name: tuple(t.shape) for name, t in own.state_dict().items()}))
    exact.double().load_state_dict(own.state_dict())
    size = (images.shape[0], 3, *(side * own.scale for side in images.shape[2:]))
    weights = torch.randn(size, generator=torch.Generator().manual_seed(1))
    got = values(form(own), list(own.parameters()), images, weights)
    expected = values(exact, list(exact.parameters()), images.double(), weights.double())
    for name, one, other in zip(["output", *own.state_dict()], got, expected, strict=True):
        assert (one - other).norm() <= tolerance * (other.norm() + 1e-3 * expected[1].norm()), name
