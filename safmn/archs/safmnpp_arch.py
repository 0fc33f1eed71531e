"""SAFMN++, the entry to the NTIRE 2024 challenge on efficient super-resolution. https://github.com/sunny2109/SAFMN"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from safmn.archs.blocks import FeedForward, SimpleSAFM, enlarge
from safmn.archs.family import family_member
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, ffn_scale, length, shuffle_scale
from safmn.archs.stages import Chain, Skip, Stage, conv_stage, feed_forward_stage, image_stage, simple_safm_stages, skip
from safmn.value_types import Positive, PositiveFloat


class SAFMNPPBlock(nn.Module):
    """Simple feature modulation of a third of the channels, then a 3x3 channel mixer; one skip around both."""

    steps = (*SimpleSAFM.steps, Conv())

    def __init__(self, dim: int, ffn_scale: float) -> None:
        super().__init__()
        self.conv1 = SimpleSAFM(dim, ratio=3)
        self.conv2 = FeedForward(dim, ffn_scale, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.conv2(self.conv1(x)) + x
        return x


@family_member(small={"dim": 9, "n_blocks": 2, "upscaling_factor": 2}, sizes={"SAFMNPP x4": {}})
class SAFMNPP(nn.Module):
    """SAFMN++: no biases, no normalisation, a bilinear image skip.

    Args:
        dim: feature channels.
        n_blocks: number of blocks.
        ffn_scale: width of the channel mixers, relative to ``dim``.
        upscaling_factor: scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: if both sides of the image are multiples of this, the network is equivariant to shifts by it.
        halo: the largest distance, in LR pixels, from which an output pixel depends on the input, at such a size.
    """

    def __init__(
        self, dim: Positive = 36, n_blocks: Positive = 6, ffn_scale: PositiveFloat = 1.5, upscaling_factor: Positive = 4
    ) -> None:
        super().__init__()
        self.scale = upscaling_factor
        self.window = SimpleSAFM.window
        self.halo = halo([Conv(), *SAFMNPPBlock.steps * n_blocks, Conv()], self.window)
        self.to_feat = nn.Conv2d(3, dim, 3, 1, 1, bias=False)
        self.feats = nn.Sequential(*[SAFMNPPBlock(dim, ffn_scale) for _ in range(n_blocks)])
        self.to_img = nn.Sequential(
            nn.Conv2d(dim, 3 * upscaling_factor**2, 3, 1, 1, bias=False), nn.PixelShuffle(upscaling_factor)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale). The output is not clamped."""
        detail: Tensor = self.to_img(self.feats(self.to_feat(x)))  # (B, 3, h * scale, w * scale)
        return detail + enlarge(x, self.scale)

    def stages(self) -> Chain:
        """Return the network as a chain of stages; see :mod:`safmn.archs.stages`."""
        network: Any = self  # the type checker takes every attribute of a module for a Tensor or a Module
        dim, scale = network.to_feat.out_channels, network.scale
        blocks = tuple(
            skip((*simple_safm_stages(block.conv1), feed_forward_stage(block.conv2)), dim) for block in network.feats
        )
        enlarged = Stage(lambda x: enlarge(x, scale), 3, halo=1, up=scale)
        return (Skip((conv_stage(network.to_feat), *blocks, image_stage(network.to_img, dim, scale)), enlarged),)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return the constructor's arguments, read from a state dict's shapes; None if they are another network's."""
        if not {
            "to_feat.weight",
            "feats.0.conv1.proj.weight",
            "feats.0.conv2.conv1.weight",
            "to_img.0.weight",
        } <= set(shapes):
            return None
        dim = shapes["to_feat.weight"][0]
        return {
            "dim": dim,
            "n_blocks": length(shapes, "feats"),
            "ffn_scale": ffn_scale(dim, shapes["feats.0.conv2.conv1.weight"][0]),
            "upscaling_factor": shuffle_scale(shapes["to_img.0.weight"][0]),
        }
