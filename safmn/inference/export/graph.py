"""The graph that a file holds: a network that takes images of every size."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn import __version__
from safmn.archs.safmnv3_arch import VarianceSAFM
from safmn.errors import WeightsError
from safmn.inference.optimize import for_graph, frozen_copy
from safmn.weights import ForeignNetwork, recognise


def mirrored(x: Tensor, dim: int, multiple: int) -> Tensor:
    """``x`` continued at the end of ``dim`` to a multiple of ``multiple``, mirrored without repeating the edge.

    As :class:`safmn.inference.tiling.Frame` pads, in operations that graphs have: padding by reflection must be shorter
    than the image, there and in torch.
    """
    length = x.shape[dim]
    period = 2 * length - 2 + 1 // length  # of an endlessly mirrored image; 1 for a single pixel
    index = torch.arange((length + multiple - 1) // multiple * multiple, device=x.device) % period
    return x.index_select(dim, torch.minimum(index, period - index))


class AnySize(nn.Module):
    """A network that wants multiples of its window, made to take every size as :class:`safmn.Upscaler` does.

    Args:
        network: maps (B, 3, h, w) to (B, 3, h * scale, w * scale).
        scale: of the network.
        window: what h and w must be multiples of.
    """

    def __init__(self, network: nn.Module, scale: int, window: int) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w), h and w at least 1, to (B, 3, h * scale, w * scale)."""
        height, width = x.shape[2], x.shape[3]
        x = mirrored(mirrored(x, 2, self.window), 3, self.window)
        y = self.network(x)
        return y[:, :, : height * self.scale, : width * self.scale]


class FixedSize(nn.Module):
    """The same for images of one size: a graph without any arithmetic on shapes.

    Args:
        network, scale, window: as of :class:`AnySize`.
        size: (height, width) of the images.
    """

    def __init__(self, network: nn.Module, scale: int, window: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.window = window
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, 3, h * scale, w * scale)."""
        height, width = self.size
        y: Tensor = self.network(self._continued(self._continued(x, 2, height), 3, width))
        if height % self.window or width % self.window:
            y = y[:, :, : height * self.scale, : width * self.scale]
        return y

    def _continued(self, x: Tensor, dim: int, length: int) -> Tensor:
        """``x`` mirrored to the next multiple of the window, in steps that are shorter than the image."""
        missing = -length % self.window
        if length == 1 and missing:
            return torch.cat([x] * self.window, dim=dim)
        while missing:
            step = min(missing, length - 1)
            x = functional.pad(x, (0, 0, 0, step) if dim == 2 else (0, step, 0, 0), mode="reflect")
            missing, length = missing - step, length + step
        return x


def simple_variance(x: Tensor) -> Tensor:
    """:func:`safmn.archs.safmnv3_arch.frame_variance` in means and sums, without the frame's size as a number.

    The pixels are counted in units of 256, which half precision can hold.
    """
    unit = 1 / 256
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    count = (centred * 0 + unit).sum(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    return (centred * centred).mean(dim=(2, 3), keepdim=True) * (count / (count - unit))


def in_simple_operations(network: nn.Module) -> nn.Module:
    """A copy of :func:`safmn.inference.optimize.for_graph` in operations that all formats have."""
    graph = for_graph(network)
    for module in graph.modules():
        if isinstance(module, VarianceSAFM):
            module.variance = simple_variance
    return graph


def with_explicit_padding(network: nn.Module) -> nn.Module:
    """``network`` with its depthwise convolutions padded by a layer of their own.

    OpenCV's (4.13) read memory that is not theirs where the image is one pixel high or wide, as pooled maps may be.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and module.groups > 1 and isinstance(module.padding, tuple):
            rows, columns = module.padding
            module.padding = (0, 0)
            network.set_submodule(name, nn.Sequential(nn.ZeroPad2d((columns, columns, rows, rows)), module))
    return network


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        network: in float32 on the CPU, in evaluation mode; its input's sides are multiples of ``window``.
        scale: output pixels per input pixel, along each side.
        window: see ``network``.
        facts: what the file says about it.
    """

    network: nn.Module
    scale: int
    window: int
    facts: dict[str, str]

    def __call__(self, x: Tensor) -> Tensor:
        """What the file must give for (B, 3, h, w) of any size."""
        with torch.no_grad():
            y: Tensor = AnySize(self.network, self.scale, self.window)(x)
        return y


def subject_of(network: nn.Module) -> Subject:
    """A network of :func:`safmn.load_network` with what is known about it."""
    halo = getattr(network, "halo", None)
    scale, window = int(network.scale), int(getattr(network, "window", 1))  # type: ignore[arg-type]
    inner = network.network if isinstance(network, ForeignNetwork) else network
    try:
        found = recognise(inner.state_dict())
        name, arguments = found.type, found.kwargs
    except WeightsError:  # not of the family
        name, arguments = type(inner).__name__, {}
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
    return Subject(frozen_copy(inner).cpu(), scale, window, facts)
