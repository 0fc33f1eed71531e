"""SAFMN_BCIE: SAFMN blocks at half resolution, for blind removal of JPEG artefacts.

The entry to the NTIRE 2024 challenge on blind compressed image enhancement. https://github.com/sunny2109/SAFMN
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.blocks import FMM
from safmn.archs.family import family_member
from safmn.archs.receptive import Conv, Shuffle, Unshuffle, halo
from safmn.archs.shapes import Shapes, ffn_scale, length, shuffle_scale
from safmn.archs.stages import Chain, Stage, conv_stage, fmm_stages, image_stage, skip
from safmn.value_types import Positive, PositiveFloat


class FMMGroup(nn.Module):
    """A residual group: ``num_layers`` feature mixing modules and a 3x3 convolution."""

    def __init__(self, num_layers: int, dim: int, ffn_scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[FMM(dim, ffn_scale) for _ in range(num_layers)])
        self.conv = nn.Conv2d(dim, dim, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        x = self.conv(self.layers(x)) + x
        return x


@family_member(small={"dim": 8, "n_blocks": 2, "num_layers": 2}, sizes={"SAFMN_BCIE": {}})
class SAFMN_BCIE(nn.Module):
    """Restores an image without changing its size.

    Args:
        dim: feature channels, a multiple of four.
        n_blocks: number of groups.
        num_layers: number of feature mixing modules in each group.
        ffn_scale: width of the channel mixers, relative to ``dim``.
        upscaling_factor: factor of the pixel unshuffle before and the pixel shuffle after the blocks; not an SR scale.

    Attributes:
        scale: 1: the output is as large as the input.
        window: if both sides are multiples of this, the network is equivariant to shifts by it.
        halo: the largest distance, in pixels, from which an output pixel depends on the input, at such a size.

    Raises:
        OptionError: ``dim`` is not a multiple of four.
    """

    FIXED_SCALE: ClassVar[int] = 1  # the `scale` that an option file must give

    def __init__(
        self,
        dim: Positive = 128,
        n_blocks: Positive = 8,
        num_layers: Positive = 6,
        ffn_scale: PositiveFloat = 2.0,
        upscaling_factor: Positive = 2,
    ) -> None:
        super().__init__()
        self.factor = factor = upscaling_factor
        self.scale = self.FIXED_SCALE
        self.window = FMM.window * factor
        groups = (*FMM.steps * num_layers, Conv()) * n_blocks
        self.halo = halo([Unshuffle(factor), Conv(), *groups, Conv(), Shuffle(factor), Conv()], self.window)
        self.to_feat = nn.Sequential(nn.PixelUnshuffle(factor), nn.Conv2d(3 * factor**2, dim, 3, 1, 1))
        self.feats = nn.Sequential(*[FMMGroup(num_layers, dim, ffn_scale) for _ in range(n_blocks)])
        self.to_img = nn.Sequential(
            nn.Conv2d(dim, dim * factor**2, 3, 1, 1), nn.PixelShuffle(factor), nn.Conv2d(dim, 3, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Restore (B, 3, h, w), RGB in [0, 1], to the same shape. The output is not clamped.

        If ``upscaling_factor`` does not divide a side, the last row or column is repeated and the result is cropped.
        """
        height, width = x.shape[-2:]
        down, right = -height % self.factor, -width % self.factor
        x = functional.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
        x = self.to_feat(x)  # (B, dim, h / factor, w / factor)
        x = self.feats(x) + x
        image: Tensor = self.to_img(x)  # (B, 3, h, w)
        return image[..., :height, :width] if down or right else image

    def stages(self) -> Chain:
        """Return the network as a chain of stages; see :mod:`safmn.archs.stages`."""
        network: Any = self  # the type checker takes every attribute of a module for a Tensor or a Module
        unshuffle, conv = network.to_feat
        dim = conv.out_channels
        groups = tuple(
            skip((*(stage for block in group.layers for stage in fmm_stages(block)), conv_stage(group.conv)), dim)
            for group in network.feats
        )
        shuffled = network.to_img[:2]  # convolution and pixel shuffle
        return (
            Stage(unshuffle, 3, halo=0, window=network.factor, down=network.factor),
            conv_stage(conv),
            skip(groups, dim),
            image_stage(shuffled, dim, network.factor),
            conv_stage(network.to_img[2]),
        )

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return the constructor's arguments, read from a state dict's shapes; None if they are another network's."""
        first = "feats.0.layers.0"
        if not {"to_feat.1.weight", f"{first}.norm1.weight", f"{first}.ccm.ccm.0.weight", "to_img.0.weight"} <= set(
            shapes
        ):
            return None
        dim = shapes["to_feat.1.weight"][0]
        return {
            "dim": dim,
            "n_blocks": length(shapes, "feats"),
            "num_layers": length(shapes, "feats.0.layers"),
            "ffn_scale": ffn_scale(dim, shapes[f"{first}.ccm.ccm.0.weight"][0]),
            "upscaling_factor": shuffle_scale(shapes["to_img.0.weight"][0], dim),
        }
