"""Enhanced spatial attention (ESA): Liu et al., CVPR 2020. RFDN, BSRN, RLFN and OmniSR use it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.parts import conv1, enlarged_to


def plain_conv(inward: int, outward: int, stride: int, padding: int) -> nn.Conv2d:
    """Return an ordinary 3x3 convolution."""
    return nn.Conv2d(inward, outward, 3, stride, padding)


SMALLEST = 15
"""Smallest side of the input: below, nothing is left after the stride of 2 and the pooling."""


class ESA(nn.Module):
    """A gate for every value, computed on a map six times smaller.

    Args:
        dim: channels of the input.
        inner: channels of the small map.
        full: two more convolutions on the small map (RFDN); otherwise RLFN's form.
        conv: makes the 3x3 convolutions, from input channels, output channels, stride and padding.
        activation: the function between the convolutions on the small map.
    """

    def __init__(
        self,
        dim: int,
        inner: int,
        *,
        full: bool = False,
        conv: Callable[[int, int, int, int], nn.Module] = plain_conv,
        activation: Callable[[Tensor], Tensor] = functional.relu,
    ) -> None:
        super().__init__()
        self.full, self.activation = full, activation
        self.conv1 = conv1(dim, inner)
        self.conv_f = conv1(inner, inner)
        if full:
            self.conv_max = conv(inner, inner, 1, 1)
        self.conv2 = conv(inner, inner, 2, 0)
        self.conv3 = conv(inner, inner, 1, 1)
        if full:
            self.conv3_ = conv(inner, inner, 1, 1)
        self.conv4 = conv1(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w), h and w at least 15, to the same shape."""
        reduced = self.conv1(x)  # (B, inner, h, w)
        small = functional.max_pool2d(self.conv2(reduced), 7, stride=3)  # (B, inner, about h / 6, about w / 6)
        if self.full:
            small = self.activation(self.conv_max(small))
            small = self.conv3_(self.activation(self.conv3(small)))
        else:
            small = self.conv3(small)
        gate = self.conv4(enlarged_to(small, x) + self.conv_f(reduced))
        return x * torch.sigmoid(gate)
