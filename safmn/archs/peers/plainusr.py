"""PlainUSR: Wang, Li, Wang and Liu, ACCV 2024 (arXiv 2409.13435)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Code, Form, Paper, peer
from safmn.archs.peers.parts import conv1, conv3, enlarged_to, exact, same_names, upsampler
from safmn.archs.receptive import Conv, halo
from safmn.archs.shapes import Shapes, shuffle_scale
from safmn.errors import OptionError
from safmn.value_types import Positive

Variant = Literal["general", "ultra", "large"]
_SLOPE = 0.05
_WINDOW, _STRIDE = 7, 3  # of the soft pooling
_PAPER = Paper(
    "Wang, Li, Wang, Liu",
    "PlainUSR: Chasing Faster ConvNet for Efficient Super-Resolution",
    "ACCV 2024",
    "2409.13435",
)
_CODE = Code("icandle/PlainUSR", "MIT")
_SIZES: dict[str, dict[str, Any]] = {
    "PlainUSR": {},
    "PlainUSR-L": {"variant": "large", "n_feat": 80, "im_feat": (80, 64, 48), "attn_feat": 16},
    "PlainUSR-M": {"n_feat": 48, "im_feat": (48, 32, 16), "attn_feat": 8},
    "PlainUSR-S": {"n_feat": 32, "im_feat": (32, 16, 8), "attn_feat": 4},
    "PlainUSR-T": {"variant": "ultra", "n_feat": 32, "im_feat": (32, 16), "attn_feat": 4},
    "PlainUSR-U": {"variant": "ultra", "n_feat": 16, "im_feat": (16, 8), "attn_feat": 4},
}
_FORM = Form(smallest=_WINDOW)


class Excitation(nn.Module):
    """A gate for each channel, made from a learnt vector alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tensor = nn.Parameter(0.1 * torch.ones(1, dim, 1, 1))
        self.se = nn.Sequential(
            nn.Flatten(), nn.Linear(dim, dim // 4, bias=False), nn.SiLU(), nn.Linear(dim // 4, dim, bias=False)
        )

    def forward(self) -> Tensor:
        """Return the gate, (1, dim, 1, 1)."""
        return torch.sigmoid(self.se(self.tensor))[:, :, None, None]


class TrainedConv(nn.Module):
    """A 3x3 convolution in the form for training: a skip around a wide residual branch that a vector gates."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand_conv = conv1(dim, 2 * dim)
        self.fea_conv = nn.Conv2d(2 * dim, 2 * dim, 3)
        self.reduce_conv = conv1(2 * dim, dim)
        self.se = Excitation(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        border = self.expand_conv(functional.pad(x, (1, 1, 1, 1)))  # around the image, the convolution's bias
        wide = border[:, :, 1:-1, 1:-1]
        y: Tensor = x + self.reduce_conv(wide + self.se() * self.fea_conv(border))
        return y

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the equal 3x3 convolution, in float64."""
        expand, middle, reduce = exact(self.expand_conv), exact(self.fea_conv), exact(self.reduce_conv)
        assert expand.bias is not None
        assert middle.bias is not None
        assert reduce.bias is not None
        gate = self.se().to(middle.weight)[0]  # (2 * dim, 1, 1)
        kernel = gate[..., None] * middle.weight
        kernel[:, :, 1, 1] += torch.eye(len(kernel)).to(kernel)
        inward, outward = expand.weight[:, :, 0, 0], reduce.weight[:, :, 0, 0]
        weight = torch.einsum("om,mnyx,ni->oiyx", outward, kernel, inward)
        weight[:, :, 1, 1] += torch.eye(len(weight)).to(weight)
        inner = kernel.sum((2, 3)) @ expand.bias + gate[:, 0, 0] * middle.bias
        return weight, outward @ inner + reduce.bias


class TrainedGate(nn.Module):
    """Replace the first channel, which gates the attention, by a mix of all; for training only."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = conv1(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        return torch.cat([self.conv(x), x[:, 1:]], dim=1)


class SoftPool(nn.Module):
    """Mean over windows, weighted by the exponential of the values."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w), h and w at least 7, to about a third of the size."""
        weight = x.exp()
        return functional.avg_pool2d(weight * x, _WINDOW, _STRIDE) / functional.avg_pool2d(weight, _WINDOW, _STRIDE)


class Importance(nn.Module):
    """Local importance attention: a gate from a small map, and one from the first channel."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv1(dim, inner), SoftPool(), nn.Conv2d(inner, inner, 3, 2, 1), conv3(inner, dim), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w), h and w at least 7, to the same shape."""
        return x * enlarged_to(self.body(x), x) * torch.sigmoid(x[:, :1])


class PlainImportance(nn.Module):
    """The attention of the smallest networks: the same with the first gate made at full size."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3(dim, dim), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        y: Tensor = x * self.body(x) * torch.sigmoid(x[:, :1])
        return y


class PlainBlock(nn.Module):
    """Plain convolutions and attention on the first channels; the others pass through."""

    def __init__(self, dim: int, convs: int, attention: nn.Module | None, trained: bool) -> None:
        super().__init__()
        self.dim = dim
        layers: list[nn.Module] = []
        for index in range(convs):
            layers += [nn.LeakyReLU(_SLOPE)] * (index > 0) + [TrainedConv(dim) if trained else conv3(dim, dim)]
        if attention is not None:
            layers += [TrainedGate(dim)] * trained + [attention]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        y: Tensor = self.body(x[:, : self.dim])
        return y if x.shape[1] == self.dim else torch.cat([y, x[:, self.dim :]], dim=1)


class _Plain(nn.Module):
    """What both forms of PlainUSR share."""

    def __init__(
        self, variant: Variant, n_feat: int, im_feat: tuple[int, ...], attn_feat: int, scale: int, *, trained: bool
    ) -> None:
        super().__init__()
        ultra = variant == "ultra"
        if len(im_feat) != (2 if ultra else 3) or max(im_feat) > n_feat:
            wanted = 2 if ultra else 3
            raise OptionError(
                f"im_feat is {list(im_feat)}: {variant!r} needs {wanted} numbers up to n_feat ({n_feat})."
            )
        self.settings = {"variant": variant, "n_feat": n_feat, "im_feat": im_feat, "attn_feat": attn_feat}
        self.settings["scale"] = scale
        self.scale, self.window = scale, 1
        convs = 3 if variant == "large" else 2
        self.head = conv3(3, n_feat + 3)
        _start_with_image(self.head)
        first, *middle = im_feat
        names = ["block1", "blockm", "block2"] if ultra else ["block1", "block2", "blockm", "block3", "block4"]
        for name, dim in zip(names, (first, *middle, *reversed(im_feat[:-1])), strict=True):
            attention: nn.Module | None = Importance(dim, attn_feat)
            if ultra:
                attention = PlainImportance(dim) if name == "blockm" else None
            self.add_module(name, PlainBlock(dim, convs, attention, trained))
        self.names = names
        self.tail = upsampler(n_feat + 3, scale)
        self.halo = halo([Conv()] * (2 + convs * len(names) + 1), self.window) if ultra else None
        self.form = Form() if ultra else _FORM

    def forward(self, x: Tensor) -> Tensor:
        """LR image (B, 3, h, w), RGB in [0, 1], to (B, 3, h * scale, w * scale), unclamped; sides of at least 7."""
        y = self.head(x)
        for name in self.names:
            y = getattr(self, name)(y)
        image: Tensor = self.tail(y)
        return image


@torch.no_grad()
def _start_with_image(head: nn.Conv2d) -> None:
    """Let the last three channels start as the image."""
    head.weight[-3:], head.bias[-3:] = 0.0, 0.0  # type: ignore[index]
    for colour in range(3):
        head.weight[colour - 3, colour, 1, 1] = 1.0


def _arguments_from(shapes: Shapes, conv: str) -> dict[str, Any] | None:
    """Return the arguments, with ``conv`` the weight of a block's convolution."""
    if not same_names(shapes, "head.weight", f"block1.body.0.{conv}", f"blockm.body.0.{conv}", "tail.0.weight"):
        return None
    ultra = "block3.body.0.bias" not in shapes and f"block3.body.0.{conv}" not in shapes
    names = ("block1", "blockm") if ultra else ("block1", "block2", "blockm")
    widths = tuple(shapes[f"{name}.body.0.{conv}"][1] for name in names if f"{name}.body.0.{conv}" in shapes)
    inner = [shape[0] for name, shape in shapes.items() if name.startswith("block1.body.") and _is_pooled(name)]
    large = f"block1.body.4.{conv}" in shapes
    return {
        "variant": "ultra" if ultra else "large" if large else "general",
        "n_feat": shapes["head.weight"][0] - 3,
        "im_feat": widths,
        "attn_feat": inner[0] if inner else 4,
        "scale": shuffle_scale(shapes["tail.0.weight"][0]),
    }


def _is_pooled(name: str) -> bool:
    return name.endswith(".body.0.weight") and name.count(".body.") == 2


@peer(
    small={"n_feat": 16, "im_feat": [16, 12, 8], "attn_feat": 4, "scale": 2},
    sizes={f"{name} (training)": size for name, size in _SIZES.items()},
    paper=_PAPER,
    code=_CODE,
    form=_FORM,
    scales=(2, 4),
    scale_argument="scale",
    note="The form for training; it folds into PlainUSR_deploy.",
)
class PlainUSR(_Plain):
    """PlainUSR in the form for training.

    Args:
        variant: ``general``; ``ultra``: three blocks and one attention; ``large``: three convolutions in each block.
        n_feat: Feature channels, besides three that start as the image.
        im_feat: Channels that the outer to the inner blocks change.
        attn_feat: Channels inside the attention.
        scale: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the sides need not be multiples of a number.
        halo: None: the attention depends on the size of the image; for ``ultra``, in LR pixels to each side.

    Raises:
        OptionError: ``im_feat`` has not three numbers (``ultra``: two), or one is larger than ``n_feat``.
    """

    def __init__(
        self,
        variant: Variant = "general",
        n_feat: Positive = 64,
        im_feat: tuple[Positive, ...] = (64, 48, 32),
        attn_feat: Positive = 16,
        scale: Positive = 4,
    ) -> None:
        super().__init__(variant, n_feat, tuple(im_feat), attn_feat, scale, trained=True)

    @torch.no_grad()
    def folded(self) -> PlainUSR_deploy:
        """Return the network for inference, with the same output up to rounding."""
        twin = PlainUSR_deploy(**self.settings)  # type: ignore[arg-type]
        state = {name: value for name, value in self.state_dict().items() if name.startswith(("head.", "tail."))}
        for name in self.names:
            index = 0
            for layer in getattr(self, name).body:
                key = f"{name}.body.{index}"
                if isinstance(layer, TrainedConv):
                    state[f"{key}.weight"], state[f"{key}.bias"] = layer.folded()
                elif isinstance(layer, TrainedGate):  # into the convolution before
                    mix = exact(layer.conv)
                    last = f"{name}.body.{index - 1}"
                    weight, bias = state[f"{last}.weight"], state[f"{last}.bias"]
                    first = torch.einsum("c,ciyx->iyx", mix.weight[0, :, 0, 0], weight), mix.weight[0, :, 0, 0] @ bias
                    assert mix.bias is not None
                    weight[0], bias[0] = first[0], first[1] + mix.bias[0]
                    continue
                else:
                    state |= {f"{key}.{inner}": value for inner, value in layer.state_dict().items()}
                index += 1
        twin.load_state_dict(state)
        return twin.to(self.head.weight).eval()

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        return _arguments_from(shapes, "expand_conv.weight")


@peer(
    small={"n_feat": 16, "im_feat": [16, 12, 8], "attn_feat": 4, "scale": 2},
    sizes=_SIZES,
    paper=_PAPER,
    code=_CODE,
    form=_FORM,
    scales=(2, 4),
    scale_argument="scale",
)
class PlainUSR_deploy(_Plain):
    """PlainUSR in the folded form, as published.

    Args:
        variant: ``general``; ``ultra``: three blocks and one attention; ``large``: three convolutions in each block.
        n_feat: Feature channels, besides three that start as the image.
        im_feat: Channels that the outer to the inner blocks change.
        attn_feat: Channels inside the attention.
        scale: Scale of super-resolution.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: 1: the sides need not be multiples of a number.
        halo: None: the attention depends on the size of the image; for ``ultra``, in LR pixels to each side.

    Raises:
        OptionError: ``im_feat`` has not three numbers (``ultra``: two), or one is larger than ``n_feat``.
    """

    def __init__(
        self,
        variant: Variant = "general",
        n_feat: Positive = 64,
        im_feat: tuple[Positive, ...] = (64, 48, 32),
        attn_feat: Positive = 16,
        scale: Positive = 4,
    ) -> None:
        super().__init__(variant, n_feat, tuple(im_feat), attn_feat, scale, trained=False)

    @classmethod
    def arguments_from(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The constructor's arguments, from the shapes of a state dict; None if it is another network's."""
        return None if "block1.body.0.expand_conv.weight" in shapes else _arguments_from(shapes, "weight")
