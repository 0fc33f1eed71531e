"""The graph in an exported file: a network that takes images of any size."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn import __version__
from safmn.archs.blocks import mirrored
from safmn.archs.peers import InForm, bare, folded, in_form
from safmn.archs.safmnv3_arch import VarianceSAFM
from safmn.errors import WeightsError
from safmn.inference.optimize import for_graph, frozen_copy
from safmn.weights import WrappedNetwork, kind_of, recognise


class AnySize(nn.Module):
    """A network with padding and cropping, so that it takes any size, like :class:`safmn.Upscaler`.

    Args:
        network: maps (B, 3, h, w) to (B, 3, h * scale, w * scale); h and w are multiples of ``window``.
        scale: the network's scale.
        window: see ``network``.
    """

    def __init__(self, network: nn.Module, scale: int, window: int) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, h, w), h and w at least 1, to (B, 3, h * scale, w * scale)."""
        height, width = x.shape[2], x.shape[3]
        x = mirrored(mirrored(x, 2, self.window), 3, self.window)
        y = self.network(x)
        return y[:, :, : height * self.scale, : width * self.scale]


class FixedSize(nn.Module):
    """Like :class:`AnySize` for images of a single size, without arithmetic on shapes in the graph.

    Args:
        network, scale, window: see :class:`AnySize`.
        size: (height, width) of the images.
    """

    def __init__(self, network: nn.Module, scale: int, window: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.window = window
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, h, w) to (B, 3, h * scale, w * scale)."""
        height, width = self.size
        y: Tensor = self.network(self._continued(self._continued(x, 2, height), 3, width))
        if height % self.window or width % self.window:
            y = y[:, :, : height * self.scale, : width * self.scale]
        return y

    def _continued(self, x: Tensor, dim: int, length: int) -> Tensor:
        """Return ``x`` mirrored to the next multiple of the window, in steps shorter than the image."""
        missing = -length % self.window
        if length == 1 and missing:
            return torch.cat([x] * self.window, dim=dim)
        while missing:
            step = min(missing, length - 1)
            x = functional.pad(x, (0, 0, 0, step) if dim == 2 else (0, step, 0, 0), mode="reflect")
            missing, length = missing - step, length + step
        return x


def simple_variance(x: Tensor) -> Tensor:
    """Compute :func:`safmn.archs.safmnv3_arch.frame_variance` with means and sums, without using the shape.

    Pixels are counted in units of 256, so that the count fits into half precision.
    """
    unit = 1 / 256
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    count = (centred * 0 + unit).sum(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    return (centred * centred).mean(dim=(2, 3), keepdim=True) * (count / (count - unit))


def in_simple_operations(network: nn.Module) -> nn.Module:
    """Return :func:`safmn.inference.optimize.for_graph` of a network, with only operations that all formats support."""
    graph = for_graph(network)
    for module in graph.modules():
        if isinstance(module, VarianceSAFM):
            module.variance = simple_variance
    return graph


def with_explicit_padding(network: nn.Module) -> nn.Module:
    """Move the padding of all depthwise convolutions of ``network`` into separate layers, in place, and return it.

    OpenCV's depthwise convolutions (4.13) read outside of their memory if the image is one pixel high or wide, as
    pooled maps may be.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and module.groups > 1 and isinstance(module.padding, tuple):
            rows, columns = module.padding
            module.padding = (0, 0)
            network.set_submodule(name, nn.Sequential(nn.ZeroPad2d((columns, columns, rows, rows)), module))
    return network


@dataclass(frozen=True)
class Subject:
    """The network to export, and facts about it.

    Attributes:
        network: in float32 on the CPU, in evaluation mode; the sides of its input are multiples of ``window``.
        scale: output pixels per input pixel, along each side.
        window: see ``network``.
        facts: metadata for the file.
        smallest: smallest side that the network takes; the file does not pad smaller images.
    """

    network: nn.Module
    scale: int
    window: int
    facts: dict[str, str]
    smallest: int = 1

    @property
    def usual(self) -> int:
        """A side that the network takes: the smallest one, or the window if that is larger."""
        return max(self.window, self.smallest)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the result that the file must give for (B, 3, h, w) of any size."""
        with torch.no_grad():
            y: Tensor = AnySize(self.network, self.scale, self.window)(x)
        return y


def subject_of(network: nn.Module) -> Subject:
    """Return a network from :func:`safmn.load_network` with facts about it."""
    halo = getattr(network, "halo", None)
    scale, window = int(network.scale), int(getattr(network, "window", 1))  # type: ignore[arg-type]
    inner = network.network if isinstance(network, WrappedNetwork) else in_form(network)
    try:
        found = recognise(bare(inner).state_dict(), scale=scale)
        name, arguments = found.type, found.kwargs
    except WeightsError:  # not one that we know
        section = (network.section if isinstance(network, WrappedNetwork) else None) or {}
        name, arguments = kind_of(network), {key: value for key, value in section.items() if key != "type"}
    smallest = inner.form.smallest if isinstance(inner, InForm) else 1
    if isinstance(network, WrappedNetwork):
        smallest = network.smallest
    facts = {
        "producer": f"safmn {__version__}",
        "network": name,
        "arguments": json.dumps(arguments),
        "scale": str(scale),
        "window": str(window),
        "tile_halo": "whole frame" if halo is None else str(halo),
        "channels": "RGB",
        "values": "0 to 1",
        "padding": "inside the graph, mirrored to multiples of the window",
        "input": "(batch, 3, height, width), RGB, values in [0, 1]",
        "output": f"(batch, 3, {scale} * height, {scale} * width), RGB, values about [0, 1]: clamp them",
    }
    if smallest > window:
        facts["padding"] += f"; sides of at least {smallest}"
    return Subject(frozen_copy(folded(inner)).cpu(), scale, window, facts, smallest)
