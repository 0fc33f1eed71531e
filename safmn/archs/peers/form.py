"""Run a network that takes another form of image as one that maps RGB in [0, 1] to RGB in [0, 1].

:func:`in_form` returns such a network for every door: training, validation, testing, upscaling and export.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.peers.declaration import Form, Geometry, form_of, peer_of

# ITU-R BT.601, studio swing, for channels in [0, 1], as in MATLAB's rgb2ycbcr.
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_BLACK = 16 / 255
_SPAN = 219 / 255  # Y of white minus Y of black


class InForm(nn.Module):
    """A network of others as the framework uses it: RGB LR image in [0, 1] to RGB image in [0, 1].

    For a network that takes Y, the result has the network's Y and the bicubic enlargement's chroma. Such a network also
    takes Y itself, (B, 1, h, w), and then gives Y: that is how it is trained (``color: y`` in a data set).

    Attributes:
        network: the network itself, whose ``state_dict`` is the published one.
        form: how it takes its image.
        scale, window, halo: see :class:`safmn.archs.family.Member`.
        smallest: smallest side, in LR pixels, that reaches the network; smaller images are continued to it.
    """

    one_channel: Tensor
    three_channels: Tensor

    def __init__(self, network: nn.Module, form: Form, geometry: Geometry) -> None:
        super().__init__()
        self.network = network
        self.form = form
        self.scale, self.window, self.halo = geometry.scale, geometry.window, geometry.halo
        self.smallest = form.smallest
        weight = next(network.parameters(), torch.empty(0))
        enlarges = form.enlarged or form.channels == "Y"
        for name, channels in (("one_channel", 1), ("three_channels", 3)):
            kernel = enlarging_kernel(self.scale, channels).to(weight.device) if enlarges else None
            self.register_buffer(name, kernel, persistent=False)
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w) RGB in [0, 1] to (B, 3, h * scale, w * scale), unclamped; any h and w."""
        height, width = x.shape[2], x.shape[3]
        x = continued(continued(x, 2, self.form.padded(height)), 3, self.form.padded(width))
        y = self._in_its_form(x)
        wanted = height * self.scale, width * self.scale
        return y if tuple(y.shape[2:]) == wanted else y[:, :, : wanted[0], : wanted[1]]

    def _in_its_form(self, x: Tensor) -> Tensor:
        if self.form.channels == "RGB" or x.shape[1] == 1:
            return self._run(self._enlarged(x) if self.form.enlarged else x)
        bicubic = self._enlarged(x)  # (B, 3, H, W)
        y = self._run(luma(bicubic) if self.form.enlarged else luma(x))  # (B, 1, H, W)
        return bicubic + (y - luma(bicubic)) / _SPAN  # a change of Y changes R, G and B alike

    def _enlarged(self, x: Tensor) -> Tensor:
        return enlarged(x, self.one_channel if x.shape[1] == 1 else self.three_channels, self.scale)

    def _run(self, x: Tensor) -> Tensor:
        white = self.form.largest
        y: Tensor = self.network(x) if white == 1 else self.network(x * white) / white
        return y


def in_form(network: nn.Module, *, any_size: bool = True) -> nn.Module:
    """Return a network that maps RGB in [0, 1] to RGB in [0, 1], with the same weights.

    It is ``network`` itself if that already does so, as networks do that are not declared in :mod:`safmn.archs.peers`.

    Args:
        network: the network, in its own form.
        any_size: whether it must take images of any size; for training, a patch of a wrong size is a mistake.
    """
    declared = peer_of(network)
    if declared is None:
        return network
    form = form_of(network)
    if not any_size and form.takes_rgb:
        return network
    if declared.geometry is not None:
        geometry = declared.geometry(network)
        return InForm(network, replace(form, multiple=geometry.window), geometry)
    if form.is_plain:
        return network
    return InForm(network, form, Geometry(network.scale, network.window, network.halo))  # type: ignore[arg-type]


def bare(network: nn.Module) -> nn.Module:
    """Return the network itself, without :class:`InForm`."""
    return network.network if isinstance(network, InForm) else network


def folded(network: nn.Module) -> nn.Module:
    """Return a network in its form for inference: what its method ``folded`` or declaration gives; otherwise itself."""
    if isinstance(network, InForm):
        inner = folded(network.network)
        return network if inner is network.network else in_form(inner)
    declared = peer_of(network)
    fold = declared and (declared.fold or getattr(type(network), "folded", None))
    if not fold:
        return network
    with torch.no_grad():
        twin: nn.Module = fold(network)
    if twin is network:
        return network
    return twin.train(network.training).requires_grad_(False)


def luma(image: Tensor) -> Tensor:
    """Return the Y channel (BT.601, 16/255 to 235/255) of (B, 3, h, w) RGB in [0, 1]: (B, 1, h, w)."""
    red, green, blue = image.split(1, dim=1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + _BLACK


def with_luma_in_range(image: Tensor) -> Tensor:
    """Return (B, 3, h, w) RGB, or (B, 1, h, w) Y, with each pixel's Y clamped to [0, 1]; R, G and B change alike."""
    if image.shape[1] == 1:
        return image.clamp(0, 1)
    y = luma(image)
    return image + (y.clamp(0, 1) - y) / _SPAN


def continued(x: Tensor, dim: int, length: int) -> Tensor:
    """Return ``x`` continued at the end of ``dim`` to ``length``, mirrored without repeating the edge."""
    side = x.shape[dim]
    if side == length:
        return x
    period = max(2 * side - 2, 1)
    index = torch.arange(length, device=x.device) % period
    return x.index_select(dim, torch.minimum(index, period - index))


def enlarging_kernel(scale: int, channels: int = 1) -> Tensor:
    """Return the weights of :func:`enlarged`: (channels * scale**2, 1, 5, 5), a filter for each place in a pixel.

    The filters are those of MATLAB's ``imresize``: Keys' cubic with a = -0.5, aligned at the image's edges.
    """
    taps = torch.zeros(scale, 5, dtype=torch.float64)
    for place in range(scale):
        centre = (place + 0.5) / scale - 0.5
        for tap in range(5):
            taps[place, tap] = _cubic(abs(tap - 2 - centre))
    taps /= taps.sum(1, keepdim=True)
    kernel = taps[:, None, :, None] * taps[None, :, None, :]  # (row, column, 5, 5)
    return kernel.reshape(scale * scale, 1, 5, 5).float().repeat(channels, 1, 1, 1)


def _cubic(distance: float) -> float:
    if distance < 1:
        return (1.5 * distance - 2.5) * distance**2 + 1
    return ((-0.5 * distance + 2.5) * distance - 4) * distance + 2 if distance < 2 else 0.0


def enlarged(x: Tensor, kernel: Tensor, scale: int) -> Tensor:
    """Enlarge (B, C, h, w) bicubically to (B, C, h * scale, w * scale), in floating point, as MATLAB's ``imresize``."""
    channels = kernel.shape[0] // scale**2
    x = _mirrored_edges(_mirrored_edges(x, 2), 3)
    return functional.pixel_shuffle(functional.conv2d(x, kernel.to(x.dtype), groups=channels), scale)


def _mirrored_edges(x: Tensor, dim: int) -> Tensor:
    """Add two mirrored rows (``dim`` 2) or columns (3) at both ends, the edge repeated. A single row is repeated.

    It slices instead of asking for the size, so that an exported graph takes a single row as well.
    """
    x = x.transpose(dim, 0)
    first, last = x[:1], x[-1:]
    second, before = torch.cat([x[:2], first])[1:2], torch.cat([last, x[-2:]])[-2:-1]
    return torch.cat([second, first, x, last, before]).transpose(dim, 0)
