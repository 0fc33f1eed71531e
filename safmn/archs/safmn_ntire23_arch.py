"""SAFMN's entry to the NTIRE 2023 challenge on efficient super-resolution.

Its blocks have no normalisation and no biases, and pool by twice the factors of SAFMN. It has one global response
normalisation (Woo et al., ConvNeXt V2, arXiv 2301.00808) and a bilinear image skip. https://github.com/sunny2109/SAFMN
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from safmn.archs.blocks import CCM, SAFM, enlarge
from safmn.archs.family import family_member
from safmn.archs.shapes import Shapes, ffn_scale, length, shuffle_scale
from safmn.value_types import Positive, PositiveFloat


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its L2 norm over the frame, relative to the mean of these norms; affine, with a skip."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        response = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)  # (B, dim, 1, 1)
        relative = response / (response.mean(dim=1, keepdim=True) + self.eps)
        return self.gamma * (x * relative) + self.beta + x


class PlainFMM(nn.Module):
    """Feature mixing module without normalisation and biases; it pools by 4, 8 and 16."""

    def __init__(self, dim: int, ffn_scale: float) -> None:
        super().__init__()
        self.safm = SAFM(dim, factors=(4, 8, 16), bias=False)
        self.ccm = CCM(dim, ffn_scale, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.safm(x) + x
        x = self.ccm(x) + x
        return x


@family_member(small={"dim": 8, "n_blocks": 2}, sizes={"SAFMN_NTIRE23 x4": {}})
class SAFMN_NTIRE23(nn.Module):
    """SAFMN's entry to NTIRE 2023.

    Args:
        dim: feature channels, a multiple of four.
        n_blocks: number of feature mixing modules.
        ffn_scale: width of the channel mixers, relative to ``dim``.
        upscaling_factor: scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: if both sides of the image are multiples of this, all pooling windows have the same size.
        halo: None: the response normalisation sees the whole frame, so no tile gives exactly the same result.

    Raises:
        OptionError: ``dim`` is not a multiple of four.
    """

    def __init__(
        self, dim: Positive = 36, n_blocks: Positive = 8, ffn_scale: PositiveFloat = 2.0, upscaling_factor: Positive = 4
    ) -> None:
        super().__init__()
        self.scale = upscaling_factor
        self.window = 16
        self.halo = None
        self.norm = GlobalResponseNorm(dim)
        self.to_feat = nn.Conv2d(3, dim, 3, 1, 1)
        self.feats = nn.Sequential(*[PlainFMM(dim, ffn_scale) for _ in range(n_blocks)])
        self.to_img = nn.Sequential(nn.Conv2d(dim, 3 * upscaling_factor**2, 3, 1, 1), nn.PixelShuffle(upscaling_factor))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale). The output is not clamped."""
        feature = self.norm(self.to_feat(x))  # (B, dim, h, w)
        detail: Tensor = self.to_img(self.feats(feature))  # (B, 3, h * scale, w * scale)
        return detail + enlarge(x, self.scale)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return the constructor's arguments, read from a state dict's shapes; None if they are another network's."""
        if not {"norm.gamma", "to_feat.weight", "feats.0.ccm.ccm.0.weight", "to_img.0.weight"} <= set(shapes):
            return None
        dim = shapes["to_feat.weight"][0]
        return {
            "dim": dim,
            "n_blocks": length(shapes, "feats"),
            "ffn_scale": ffn_scale(dim, shapes["feats.0.ccm.ccm.0.weight"][0]),
            "upscaling_factor": shuffle_scale(shapes["to_img.0.weight"][0]),
        }
