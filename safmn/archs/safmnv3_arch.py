"""SAFMNv3, the entry to the NTIRE 2025 challenge on efficient super-resolution. https://github.com/sunny2109/SAFMN"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.archs.blocks import FeedForward, enlarge, max_pool, spread
from safmn.archs.family import family_member
from safmn.archs.shapes import Shapes, ffn_scale, length, shuffle_scale
from safmn.value_types import Positive, PositiveFloat


def frame_variance(x: Tensor) -> Tensor:
    """Return the unbiased variance of each channel over the frame, (B, C, h, w) to (B, C, 1, 1)."""
    return torch.var(x, dim=(2, 3), keepdim=True)


class VarianceSAFM(nn.Module):
    """Simple feature modulation of ``split`` channels; the gate also uses their variance over the frame."""

    def __init__(self, dim: int, split: int = 12) -> None:
        super().__init__()
        self.variance = frame_variance  # the export replaces it by simpler operations with the same result
        self.conv1 = nn.Conv2d(dim, split, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(dim, dim - split, 3, 1, 1, bias=False)
        self.conv3 = nn.Conv2d(split, split, 1, bias=False)
        self.dwconv = nn.Conv2d(split, split, 3, 1, 1, groups=split, bias=False)
        self.out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        modulated, plain = self.conv1(x), self.conv2(x)  # (B, split, h, w), (B, dim - split, h, w)
        variance = self.variance(modulated)  # (B, split, 1, 1)
        gate = self.conv3(self.dwconv(max_pool(modulated, 8)) + variance)  # (B, split, h // 8, w // 8)
        gate = spread(gate, x.shape[-2:], 8)
        modulated = F.gelu(gate) * modulated
        x = self.out(F.gelu(torch.cat([plain, modulated], dim=1)))  # (B, dim, h, w)
        return x


class SAFMNv3Block(nn.Module):
    """Modulation, then a 1x1 channel mixer; one skip around both."""

    def __init__(self, dim: int, ffn_scale: float) -> None:
        super().__init__()
        self.conv1 = VarianceSAFM(dim)
        self.conv2 = FeedForward(dim, ffn_scale, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.conv2(self.conv1(x)) + x
        return x


@family_member(small={"dim": 16, "num_blocks": 2, "upscaling_factor": 3}, sizes={"SAFMNv3 x4": {}})
class SAFMNv3(nn.Module):
    """SAFMNv3: no biases, no normalisation, a bilinear image skip.

    Args:
        dim: feature channels, more than twelve.
        num_blocks: number of blocks.
        ffn_scale: width of the channel mixers, relative to ``dim``.
        upscaling_factor: scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: if both sides of the image are multiples of this, all pooling windows have the same size.
        halo: None: the gate uses the variance of the whole frame, so no tile gives exactly the same result.
    """

    def __init__(
        self,
        dim: Positive = 40,
        num_blocks: Positive = 6,
        ffn_scale: PositiveFloat = 1.5,
        upscaling_factor: Positive = 4,
    ) -> None:
        super().__init__()
        self.scale = upscaling_factor
        self.window = 8
        self.halo = None
        self.to_feat = nn.Conv2d(3, dim, 3, 1, 1, bias=False)
        self.feats = nn.Sequential(*[SAFMNv3Block(dim, ffn_scale) for _ in range(num_blocks)])
        self.to_img = nn.Sequential(
            nn.Conv2d(dim, 3 * upscaling_factor**2, 3, 1, 1, bias=False), nn.PixelShuffle(upscaling_factor)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale). The output is not clamped."""
        detail: Tensor = self.to_img(self.feats(self.to_feat(x)))  # (B, 3, h * scale, w * scale)
        return detail + enlarge(x, self.scale)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return the constructor's arguments, read from a state dict's shapes; None if they are another network's."""
        if not {
            "to_feat.weight",
            "feats.0.conv1.conv3.weight",
            "feats.0.conv2.conv1.weight",
            "to_img.0.weight",
        } <= set(shapes):
            return None
        dim = shapes["to_feat.weight"][0]
        return {
            "dim": dim,
            "num_blocks": length(shapes, "feats"),
            "ffn_scale": ffn_scale(dim, shapes["feats.0.conv2.conv1.weight"][0]),
            "upscaling_factor": shuffle_scale(shapes["to_img.0.weight"][0]),
        }
