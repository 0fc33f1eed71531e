"""SAFMN, the network of the ICCV 2023 paper (arXiv 2302.13800), in its efficient and classic ("SAFMN-L") sizes.

Efficient: dim 36, 8 blocks; classic: dim 128, 16 blocks. https://github.com/sunny2109/SAFMN
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from safmn.archs.blocks import FMM
from safmn.archs.family import family_member
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, ffn_scale, length, shuffle_scale
from safmn.archs.stages import Chain, conv_stage, fmm_stages, image_stage, skip
from safmn.value_types import Positive, PositiveFloat


@family_member(
    small={"dim": 8, "n_blocks": 2, "upscaling_factor": 3},
    sizes={
        **{f"SAFMN x{scale}": {"dim": 36, "n_blocks": 8, "upscaling_factor": scale} for scale in (2, 3, 4)},
        **{f"SAFMN-L x{scale}": {"dim": 128, "n_blocks": 16, "upscaling_factor": scale} for scale in (2, 3, 4)},
    },
)
class SAFMN(nn.Module):
    """Spatially-adaptive feature modulation network.

    Args:
        dim: feature channels, a multiple of four.
        n_blocks: number of feature mixing modules.
        ffn_scale: width of the channel mixers, relative to ``dim``.
        upscaling_factor: scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: if both sides of the image are multiples of this, the network is equivariant to shifts by it.
        halo: the largest distance, in LR pixels, from which an output pixel depends on the input, at such a size.

    Raises:
        OptionError: ``dim`` is not a multiple of four.
    """

    def __init__(
        self, dim: Positive = 36, n_blocks: Positive = 8, ffn_scale: PositiveFloat = 2.0, upscaling_factor: Positive = 4
    ) -> None:
        super().__init__()
        self.scale = upscaling_factor
        self.window = FMM.window
        self.halo = halo([Conv(), *FMM.steps * n_blocks, Conv()], self.window)
        self.to_feat = nn.Conv2d(3, dim, 3, 1, 1)
        self.feats = nn.Sequential(*[FMM(dim, ffn_scale) for _ in range(n_blocks)])
        self.to_img = nn.Sequential(nn.Conv2d(dim, 3 * upscaling_factor**2, 3, 1, 1), nn.PixelShuffle(upscaling_factor))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale). The output is not clamped."""
        x = self.to_feat(x)  # (B, dim, h, w)
        x = self.feats(x) + x
        image: Tensor = self.to_img(x)  # (B, 3, h * scale, w * scale)
        return image

    def stages(self) -> Chain:
        """Return the network as a chain of stages; see :mod:`safmn.archs.stages`."""
        network: Any = self  # the type checker takes every attribute of a module for a Tensor or a Module
        blocks = tuple(stage for block in network.feats for stage in fmm_stages(block))
        dim = network.to_feat.out_channels
        return (conv_stage(network.to_feat), skip(blocks, dim), image_stage(network.to_img, dim, network.scale))

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return the constructor's arguments, read from a state dict's shapes; None if they are another network's."""
        if not {"to_feat.weight", "feats.0.norm1.weight", "feats.0.ccm.ccm.0.weight", "to_img.0.weight"} <= set(shapes):
            return None
        dim = shapes["to_feat.weight"][0]
        return {
            "dim": dim,
            "n_blocks": length(shapes, "feats"),
            "ffn_scale": ffn_scale(dim, shapes["feats.0.ccm.ccm.0.weight"][0]),
            "upscaling_factor": shuffle_scale(shapes["to_img.0.weight"][0]),
        }
