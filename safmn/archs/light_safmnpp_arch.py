"""Light SAFMN++, the entry to the AIS 2024 challenge on real-time super-resolution of AVIF images to 4K.

https://github.com/sunny2109/SAFMN
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from safmn.archs.blocks import SimpleSAFM
from safmn.archs.family import family_member
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, ffn_scale, length, shuffle_scale
from safmn.archs.stages import Chain, conv_stage, image_stage, mixer_stage, simple_safm_stages, skip
from safmn.value_types import Positive, PositiveFloat


class Mixer(nn.Module):
    """A 3x3 convolution to ``int(dim * ffn_scale)`` channels, GELU, a 1x1 back to ``dim``; no biases."""

    def __init__(self, dim: int, ffn_scale: float) -> None:
        super().__init__()
        hidden = int(dim * ffn_scale)
        self.conv = nn.Sequential(
            nn.Conv2d(dim, hidden, 3, 1, 1, bias=False), nn.GELU(), nn.Conv2d(hidden, dim, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        mixed: Tensor = self.conv(x)
        return mixed


class LightSAFMNPPBlock(nn.Module):
    """Simple feature modulation of half the channels, then the mixer; no skip."""

    steps = (*SimpleSAFM.steps, Conv())

    def __init__(self, dim: int, ffn_scale: float) -> None:
        super().__init__()
        self.conv1 = SimpleSAFM(dim, ratio=2)
        self.conv2 = Mixer(dim, ffn_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.conv2(self.conv1(x))
        return x


@family_member(small={"dim": 8, "n_blocks": 2}, sizes={"LightSAFMNPP x4": {}})
class LightSAFMNPP(nn.Module):
    """Light SAFMN++: no biases, no normalisation, one skip around all blocks.

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
        self, dim: Positive = 32, n_blocks: Positive = 2, ffn_scale: PositiveFloat = 1.5, upscaling_factor: Positive = 4
    ) -> None:
        super().__init__()
        self.scale = upscaling_factor
        self.window = SimpleSAFM.window
        self.halo = halo([Conv(), *LightSAFMNPPBlock.steps * n_blocks, Conv()], self.window)
        self.to_feat = nn.Conv2d(3, dim, 3, 1, 1, bias=False)
        self.feats = nn.Sequential(*[LightSAFMNPPBlock(dim, ffn_scale) for _ in range(n_blocks)])
        self.to_img = nn.Sequential(
            nn.Conv2d(dim, 3 * upscaling_factor**2, 3, 1, 1, bias=False), nn.PixelShuffle(upscaling_factor)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale). The output is not clamped."""
        x = self.to_feat(x)  # (B, dim, h, w)
        x = self.feats(x) + x
        image: Tensor = self.to_img(x)  # (B, 3, h * scale, w * scale)
        return image

    def stages(self) -> Chain:
        """Return the network as a chain of stages; see :mod:`safmn.archs.stages`."""
        network: Any = self  # the type checker takes every attribute of a module for a Tensor or a Module
        dim = network.to_feat.out_channels
        blocks = tuple(
            stage
            for block in network.feats
            for stage in (*simple_safm_stages(block.conv1), mixer_stage(block.conv2.conv))
        )
        return (conv_stage(network.to_feat), skip(blocks, dim), image_stage(network.to_img, dim, network.scale))

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return the constructor's arguments, read from a state dict's shapes; None if they are another network's."""
        if not {
            "to_feat.weight",
            "feats.0.conv1.proj.weight",
            "feats.0.conv2.conv.0.weight",
            "to_img.0.weight",
        } <= set(shapes):
            return None
        dim = shapes["to_feat.weight"][0]
        return {
            "dim": dim,
            "n_blocks": length(shapes, "feats"),
            "ffn_scale": ffn_scale(dim, shapes["feats.0.conv2.conv.0.weight"][0]),
            "upscaling_factor": shuffle_scale(shapes["to_img.0.weight"][0]),
        }
