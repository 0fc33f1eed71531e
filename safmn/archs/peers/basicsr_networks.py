"""Networks that BasicSR has: declared for recognition, tables and tiling, and used by BasicSR's names and code.

Without BasicSR, their weights are left to spandrel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from safmn.archs.peers.declaration import PEERS, Arguments, Code, Form, Geometry, Paper, Peer
from safmn.archs.peers.ecbsr import ECBSR_Y, training_arguments
from safmn.archs.peers.parts import same_names, square_side
from safmn.archs.receptive import Conv, Step, halo
from safmn.archs.shapes import Shapes, length, shuffle_scale

_LICENCE = "Apache-2.0"
_BASICSR = Code("XPixelGroup/BasicSR", _LICENCE)
_RGB = {"num_in_ch": 3, "num_out_ch": 3}


@dataclass(frozen=True)
class WindowAttention:
    """Self-attention in windows of ``size``, whose grid begins at ``shift``: a :class:`safmn.archs.receptive.Step`."""

    size: int
    shift: int

    def first(self, pixel: int) -> int:
        """Implement :meth:`safmn.archs.receptive.Step.first`."""
        return (pixel - self.shift) // self.size * self.size + self.shift


def _upsample_scale(shapes: Shapes) -> int | None:
    """Return the scale of BasicSR's ``Upsample``: one step of 3, or several of 2."""
    steps = [name for name in shapes if name.startswith("upsample.") and name.endswith(".weight")]
    if not steps:
        return None
    outward, inward = shapes[steps[0]][:2]
    return 3 if outward == 9 * inward else 2 ** len(steps)


def _edsr_arguments(shapes: Shapes) -> Arguments | None:
    if not same_names(shapes, "conv_first.weight", "body.0.conv1.weight", "conv_after_body.weight", "conv_last.weight"):
        return None
    dim, channels = shapes["conv_first.weight"][:2]
    return {
        "num_in_ch": channels,
        "num_out_ch": shapes["conv_last.weight"][0],
        "num_feat": dim,
        "num_block": length(shapes, "body"),
        "upscale": _upsample_scale(shapes),
        "res_scale": 0.1 if dim >= 256 else 1,  # as published: only the large network scales its residuals
    }


def _edsr_geometry(network: Any) -> Geometry:
    steps = [Conv()] * (2 * len(network.body) + 2 + 2)  # the enlargement may have two convolutions; conv_last
    return Geometry(_enlargement(network), 1, halo(steps, 1))


def _enlargement(network: Any) -> int:
    """Return the scale of BasicSR's ``Upsample`` in a network."""
    scale = 1
    for layer in network.upsample:
        scale *= getattr(layer, "upscale_factor", 1)
    return scale


def _rcan_arguments(shapes: Shapes) -> Arguments | None:
    first = "body.0.residual_group.0.rcab"
    if not same_names(shapes, "conv_first.weight", f"{first}.0.weight", f"{first}.3.attention.1.weight"):
        return None
    dim, channels = shapes["conv_first.weight"][:2]
    return {
        "num_in_ch": channels,
        "num_out_ch": channels,
        "num_feat": dim,
        "num_group": length(shapes, "body"),
        "num_block": length(shapes, "body.0.residual_group"),
        "squeeze_factor": dim // shapes[f"{first}.3.attention.1.weight"][0],
        "upscale": _upsample_scale(shapes),
    }


def _swinir_arguments(shapes: Shapes) -> Arguments | None:
    block = "layers.0.residual_group.blocks.0"
    table, hidden = f"{block}.attn.relative_position_bias_table", f"{block}.mlp.fc1.weight"
    if not same_names(shapes, "conv_first.weight", table, hidden, "upsample.0.weight", "conv_after_body.weight"):
        return None
    dim, channels = shapes["conv_first.weight"][:2]
    classic = "conv_before_upsample.0.weight" in shapes
    side = square_side(shapes[table][0])
    if channels != 3 or side is None:
        return None
    window = (side + 1) // 2
    mask = shapes.get("layers.0.residual_group.blocks.1.attn_mask")
    windows = square_side(mask[0]) if mask else None
    layers = range(length(shapes, "layers"))
    blocks = [f"layers.{layer}.residual_group.blocks" for layer in layers]
    return {
        "upscale": _upsample_scale(shapes) if classic else shuffle_scale(shapes["upsample.0.weight"][0]),
        "in_chans": 3,
        "img_size": window * (windows or 64 // window),
        "window_size": window,
        "img_range": 1.0,
        "depths": tuple(length(shapes, name) for name in blocks),
        "embed_dim": dim,
        "num_heads": tuple(shapes[f"{name}.0.attn.relative_position_bias_table"][1] for name in blocks),
        "mlp_ratio": shapes[hidden][0] / dim,
        "upsampler": "pixelshuffle" if classic else "pixelshuffledirect",
        "resi_connection": "1conv",
    }


def _swinir_geometry(network: Any) -> Geometry:
    size = network.layers[0].residual_group.blocks[0].window_size
    steps: list[Step] = [Conv()]
    for layer in network.layers:
        steps += [WindowAttention(size, block.shift_size) for block in layer.residual_group.blocks]
        steps.append(Conv())
    steps += [Conv()] * (2 if network.upsampler == "pixelshuffledirect" else 5)
    return Geometry(network.upscale, size, halo(steps, size))


def _ecbsr_arguments(shapes: Shapes) -> Arguments | None:
    found = training_arguments(shapes)
    if found is None or found["colors"] == 1:  # with one colour, it is ECBSR_Y
        return None
    return {
        "num_in_ch": found["colors"],
        "num_out_ch": found["colors"],
        "num_block": found["module_nums"],
        "num_channel": found["channel_nums"],
        "with_idt": False,
        "act_type": found["act_type"],
        "scale": found["scale"],
    }


def _folded_ecbsr(network: Any) -> nn.Module:
    """Return BasicSR's ECBSR as plain convolutions. It has the names of our training form, and computes the same."""
    first, activation = network.backbone[0].conv3x3, network.backbone[0].act_type
    if activation not in ("prelu", "relu"):  # never published
        return network  # type: ignore[no-any-return]
    twin = ECBSR_Y(
        module_nums=len(network.backbone) - 2,
        channel_nums=first.out_channels,
        with_idt=any(block.with_idt for block in network.backbone),
        act_type=activation,
        scale=network.scale,
        colors=first.in_channels,
    )
    twin.to(first.weight.device).load_state_dict(network.state_dict())
    return twin.folded()


def _declare(
    name: str,
    module: str,
    *,
    small: Arguments,
    sizes: dict[str, Arguments],
    paper: Paper,
    arguments_from: Any,
    geometry: Any,
    fold: Callable[[Any], nn.Module] | None = None,
    form: Form | None = None,
    scale_argument: str = "upscale",
    note: str = "",
) -> None:
    PEERS[name] = Peer(
        name=name,
        network=None,
        where=f"basicsr.archs.{module}",
        small=small,
        sizes=sizes,
        scales=(2, 3, 4),
        scale_argument=scale_argument,
        paper=paper,
        code=_BASICSR,
        form=form or Form(),
        arguments_from=arguments_from,
        geometry=geometry,
        fold=fold,
        note=note or "BasicSR's own.",
    )


_declare(
    "EDSR",
    "edsr_arch",
    small={**_RGB, "num_feat": 8, "num_block": 2, "upscale": 2},
    sizes={
        "EDSR-baseline": {**_RGB, "num_feat": 64, "num_block": 16, "res_scale": 1},
        "EDSR": {**_RGB, "num_feat": 256, "num_block": 32, "res_scale": 0.1},
    },
    paper=Paper(
        "Lim, Son, Kim, Nah, Lee",
        "Enhanced Deep Residual Networks for Single Image Super-Resolution",
        "CVPR Workshops 2017",
        "1707.02921",
    ),
    arguments_from=_edsr_arguments,
    geometry=_edsr_geometry,
)
_declare(
    "RCAN",
    "rcan_arch",
    small={**_RGB, "num_feat": 16, "num_group": 1, "num_block": 1, "squeeze_factor": 4, "upscale": 2},
    sizes={"RCAN": {**_RGB, "num_feat": 64, "num_group": 10, "num_block": 20, "squeeze_factor": 16}},
    paper=Paper(
        "Zhang, Li, Li, Wang, Zhong, Fu",
        "Image Super-Resolution Using Very Deep Residual Channel Attention Networks",
        "ECCV 2018",
        "1807.02758",
    ),
    arguments_from=_rcan_arguments,
    geometry=lambda network: Geometry(_enlargement(network), 1, None),
)
_declare(
    "SwinIR",
    "swinir_arch",
    small={
        "upscale": 2,
        "img_size": 16,
        "window_size": 4,
        "depths": [2],
        "embed_dim": 12,
        "num_heads": [2],
        "mlp_ratio": 2,
        "upsampler": "pixelshuffledirect",
    },
    sizes={
        "SwinIR-light": {
            "img_size": 64,
            "window_size": 8,
            "depths": [6, 6, 6, 6],
            "embed_dim": 60,
            "num_heads": [6, 6, 6, 6],
            "mlp_ratio": 2,
            "upsampler": "pixelshuffledirect",
        },
        "SwinIR": {
            "img_size": 64,
            "window_size": 8,
            "depths": [6] * 6,
            "embed_dim": 180,
            "num_heads": [6] * 6,
            "mlp_ratio": 2,
            "upsampler": "pixelshuffle",
        },
    },
    paper=Paper(
        "Liang, Cao, Sun, Zhang, Van Gool, Timofte",
        "SwinIR: Image Restoration Using Swin Transformer",
        "ICCV Workshops 2021",
        "2108.10257",
    ),
    arguments_from=_swinir_arguments,
    geometry=_swinir_geometry,
    form=Form(multiple=8),
)
_declare(
    "ECBSR",
    "ecbsr_arch",
    small={**_RGB, "num_block": 1, "num_channel": 8, "with_idt": False, "act_type": "prelu", "scale": 2},
    sizes={},
    paper=Paper(
        "Zhang, Zeng, Zhang",
        "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices",
        "ACM MM 2021",
    ),
    arguments_from=_ecbsr_arguments,
    geometry=lambda network: Geometry(network.scale, 1, len(network.backbone)),
    fold=_folded_ecbsr,
    scale_argument="scale",
    note="BasicSR's RGB variant, in the form for training. The paper's is ECBSR_Y.",
)
