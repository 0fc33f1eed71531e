"""Find out by trying what a network does not say about itself: scale, window, smallest size, exactness of tiles.

The networks of SAFMN state all of this in attributes. For any other network, small images are run through it:

- scale: the size of one output divided by the size of its input;
- window: the smallest number whose multiples are accepted as sides, with an output of exactly scale times the size;
- smallest size: the smallest accepted side that is a multiple of the window;
- halo: one input pixel is NaN, which spreads to every output value that is computed from it, even with a weight of 0.
  The result is checked: a piece with its halo must give the same output as the whole image.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.errors import DataError
from safmn.own_code import described
from safmn.system.memory import is_out_of_memory

logger = logging.getLogger(__name__)

# Sides that are tried for the scale, in this order. They are multiples of every window below.
_SIDES = (64, 120, 126, 112, 144, 96, 128, 192, 160, 256, 200, 48, 32, 16)
_OF_SIZE = (RuntimeError, ValueError, AssertionError, IndexError)  # a network's errors about the size of an image
_WINDOWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 24, 28, 30, 32, 36, 40, 48, 56, 60, 64)
_LARGEST_FRAME = 128  # pixels along each side of the largest image on which the halo is looked for
_EXACT = 1e-4  # largest difference, relative to the output's range, of a piece from the whole

WHOLE_FRAME = None
"""The halo of a network whose output may depend on the whole image."""


@dataclass(frozen=True)
class Traits:
    """What is known about a network.

    Attributes:
        scale: output pixels per input pixel, along each side.
        window: sides of the input must be multiples of this.
        smallest: smallest side of the input, a multiple of ``window``.
        halo: how far an output pixel depends on the input, in LR pixels to each side; None if it may depend on the
            whole image: then tiles are not exact.
        found: names of the traits that were found by trying, not stated by the network.
    """

    scale: int
    window: int
    smallest: int
    halo: int | None
    found: tuple[str, ...] = ()

    def __str__(self) -> str:
        sides = "any size" if self.window == 1 else f"sides that are multiples of {self.window}"
        least = f" from {self.smallest} pixels on" if self.smallest > self.window else ""
        tiles = f"exact tiles with {self.halo} pixels around them" if self.halo is not None else "no exact tiles"
        return f"scale {self.scale}, {sides}{least}, {tiles}"


class ProbingError(DataError):
    """A network cannot be used for upscaling: it fails on every image, or its output is no enlarged RGB image."""


def traits_of(network: nn.Module, *, with_halo: bool = True) -> Traits:
    """Return the traits of a network; find those by trying that it does not state in ``scale``, ``window``, ``halo``.

    Args:
        network: maps (B, 3, h, w) to (B, 3, h * scale, w * scale); it is run in evaluation mode.
        with_halo: whether to find the halo, which takes the most time; without it, an unknown halo is None.

    Raises:
        ProbingError: the network accepts none of the images that were tried, or its output is no enlarged RGB image.
    """
    with _quiet(network):
        side, scale = _scale(network)
        found = [] if getattr(network, "scale", None) == scale else ["scale"]
        window = getattr(network, "window", None)
        if not _is_positive(window):
            window = _window(network, scale, side)
            found.append("window")
        smallest = _smallest(network, scale, window)
        halo = stated_halo(network)
        if halo is None:
            halo = _halo(network, scale, window, smallest) if with_halo else WHOLE_FRAME
            found.append("halo")
        return Traits(scale, window, smallest, halo, tuple(found))


def scale_of(network: nn.Module) -> int:
    """Return a network's scale, as stated by its attribute ``scale``, or from a forward pass.

    Raises:
        ProbingError: see :func:`traits_of`.
    """
    scale = getattr(network, "scale", None)
    if _is_positive(scale):
        return scale
    with _quiet(network):
        return _scale(network)[1]


def known_traits(network: nn.Module) -> Traits:
    """Return scale and window, as stated by the network's attributes; if one is not, both from forward passes.

    Raises:
        ProbingError: see :func:`traits_of`.
    """
    scale, window = getattr(network, "scale", None), getattr(network, "window", None)
    if _is_positive(scale) and _is_positive(window):
        return Traits(scale, window, window, getattr(network, "halo", WHOLE_FRAME))
    return traits_of(network, with_halo=False)


def stated_halo(network: object) -> int | None:
    """Return the halo that a network states in its attribute ``halo``, or None."""
    halo = getattr(network, "halo", None)
    return halo if _is_whole(halo) else None


def padded(x: Tensor, multiple: int, smallest: int = 1) -> Tensor:
    """Return (B, C, h, w) mirrored at the right and the bottom to multiples of a number and to a smallest size."""
    for dim in (2, 3):
        length = x.shape[dim]
        wanted = max(-(-length // multiple) * multiple, smallest)
        if wanted > length:
            period = max(2 * (length - 1), 1)
            index = torch.arange(wanted, device=x.device) % period
            x = x.index_select(dim, torch.minimum(index, period - index) if length > 1 else index)
    return x


class WindowFinder:
    """Runs a network on images of any size; pads an image only if the network refuses its size.

    The window is found at the first refusal by trying padded sizes, and kept for the images after it.

    Attributes:
        window: sides are padded to multiples of this; None as long as the network has refused nothing.
    """

    def __init__(self) -> None:
        self.window: int | None = None

    def __call__(self, network: nn.Module, lq: Tensor) -> Tensor:
        """Return the network's output for ``lq``, cropped to its size times the scale.

        Args:
            network: always the same one; maps (B, C, h, w) to (B, C, h * scale, w * scale).
            lq: (B, C, h, w).

        Raises:
            Exception: that of the network, if it accepts no padded size either.
        """
        if self.window is not None:
            return _run_padded(network, lq, self.window)
        try:
            y: Tensor = network(lq)
            return y
        except _OF_SIZE as refusal:
            if is_out_of_memory(refusal) or _accepts(network, lq):
                raise  # the size is not the reason
            tried = {lq.shape[-2:]}
            for window in _WINDOWS[1:]:
                if (size := padded(lq, window).shape[-2:]) in tried:
                    continue
                tried.add(size)
                with contextlib.suppress(Exception):
                    y = _run_padded(network, lq, window)
                    self.window = window
                    logger.info(
                        "%s refuses an image of %dx%d pixels, so images are padded to multiples of %d",
                        type(network).__name__, lq.shape[-1], lq.shape[-2], window,
                    )  # fmt: skip
                    return y
            raise


def _accepts(network: nn.Module, lq: Tensor) -> bool:
    try:
        network(lq)
    except Exception:
        return False
    return True


def _run_padded(network: nn.Module, lq: Tensor, window: int) -> Tensor:
    larger = padded(lq, window)
    y: Tensor = network(larger)
    scale = y.shape[-1] // larger.shape[-1]
    return y[..., : lq.shape[-2] * scale, : lq.shape[-1] * scale]


@contextlib.contextmanager
def _quiet(network: nn.Module) -> Iterator[None]:
    """Context for trying: evaluation mode, no gradients, and the random state as before afterwards."""
    training = network.training
    network.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        network.train(training)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive(value: object) -> TypeGuard[int]:
    return _is_whole(value) and value > 0


def _image(network: nn.Module, height: int, width: int) -> Tensor:
    """Return a smooth random image for the network, (1, 3, h, w) in [0, 1], always the same for a size."""
    weight = next((each for each in network.parameters() if each.is_floating_point()), torch.empty(0))
    noise = torch.rand(1, 3, -(-height // 4), -(-width // 4), generator=torch.Generator().manual_seed(0))
    image = functional.interpolate(noise, size=(height, width), mode="bilinear")
    return image.to(weight.device, weight.dtype if weight.dtype != torch.float64 else torch.float64)


def _ratio(network: nn.Module, height: int, width: int) -> tuple[int, Exception | None]:
    """Return the scale if the network maps an image of this size to an enlarged one; else 0, and its error if any."""
    try:
        y = network(_image(network, height, width))
    except Exception as error:  # a user's network may raise anything
        return 0, error
    if not torch.is_tensor(y) or y.ndim != 4 or y.shape[1] != 3:
        found = f"shape {tuple(y.shape)}" if torch.is_tensor(y) else type(y).__name__
        return 0, ProbingError(
            f"{type(network).__name__} gives {found} for an image (1, 3, {height}, {width}); upscaling needs RGB "
            "images (B, 3, h * scale, w * scale)"
        )
    scale = y.shape[2] // height
    return (scale if scale and y.shape[2:] == (height * scale, width * scale) else 0), None


def _scale(network: nn.Module) -> tuple[int, int]:
    """Return a side that the network accepts, and the scale."""
    failure: Exception | None = None
    window = getattr(network, "window", None)
    sides = [-(-side // window) * window for side in _SIDES] if _is_positive(window) else list(_SIDES)
    for side in sides:
        scale, error = _ratio(network, side, side)
        if scale:
            return side, scale
        failure = failure or error
    name = type(network).__name__
    if (other := with_rgb(network, sides)) is not None:
        raise ProbingError(
            f"the network {name} takes images of {other.channels} channel{'s' * (other.channels > 1)}, not RGB ones: "
            "it can be trained, validated and tested, but other commands need a network for RGB images"
        ) from failure
    if isinstance(failure, ProbingError):
        raise failure
    reason = described(failure) if failure else "its outputs are not a whole number of times as large"
    raise ProbingError(
        f"the network {name} enlarges no RGB image of {', '.join(map(str, sorted(set(sides))))} pixels along each side."
        f" {reason}"
    ) from failure


class OnRGB(nn.Module):
    """A network for one or four channels as one for RGB, so that its traits can be found. Colours get lost.

    Attributes:
        channels: the channels that the network takes.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, h, w) to (B, 3, h * scale, w * scale)."""
        y: Tensor = self.network(torch.cat((x, x), dim=1)[:, : self.channels])
        return y[:, [0, 1, 2]] if self.channels > 1 else y.repeat(1, 3, 1, 1)


def with_rgb(network: nn.Module, sides: Sequence[int] = _SIDES) -> OnRGB | None:
    """Return a network that takes and gives one or four channels as one for RGB; None if it does not take them."""
    if isinstance(network, OnRGB):
        return None
    with _quiet(network):
        for channels in (1, 4):
            adapted = OnRGB(network, channels)
            if any(_ratio(adapted, side, side)[0] for side in sides):
                return adapted
    return None


def _window(network: nn.Module, scale: int, accepted: int) -> int:
    """Return the smallest number whose multiples the network accepts as sides."""
    for window in _WINDOWS:
        first = -(-accepted // window)
        sides = [(first + step) * window for step in (1, 2, 3)]  # not all of them are multiples of a larger number
        if all(_ratio(network, *size)[0] == scale for size in zip(sides, sides[1:] + sides[:1], strict=True)):
            return window
    return accepted


def _smallest(network: nn.Module, scale: int, window: int) -> int:
    """Return the smallest multiple of the window that the network accepts as a side."""
    for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64):
        if all(
            _ratio(network, *size)[0] == scale
            for size in ((count * window,) * 2, (count * window, (count + 1) * window))
        ):
            return count * window
    return 64 * window


def _halo(network: nn.Module, scale: int, window: int, smallest: int) -> int | None:
    """Return the halo, or None if there is none within :data:`_LARGEST_FRAME`, or if pieces differ from the whole."""
    for frame in (_LARGEST_FRAME // 2, _LARGEST_FRAME):
        side = max(-(-frame // window) * window, smallest)
        middle = side // 2 // window * window
        reach = 0
        for offset in range(min(window, side - middle)):
            found = _reach(network, scale, side, middle + offset)
            if found is None:
                break
            reach = max(reach, found)
        else:
            return reach if _is_exact(network, scale, window, smallest, reach) else None
    return None


def _reach(network: nn.Module, scale: int, side: int, place: int) -> int | None:
    """Return how far a pixel's influence reaches; None if it reaches an edge of the image."""
    image = _image(network, side, side)
    image[:, :, place, place] = torch.nan
    touched = ~torch.isfinite(network(image)[0]).all(dim=0)  # (H, W)
    rows, columns = touched.any(dim=1).nonzero() // scale, touched.any(dim=0).nonzero() // scale
    if not len(rows):
        return None  # the network replaces NaN: nothing is known
    low, high = min(int(rows.min()), int(columns.min())), max(int(rows.max()), int(columns.max()))
    return None if low <= 0 or high >= side - 1 else max(place - low, high - place)


def _is_exact(network: nn.Module, scale: int, window: int, smallest: int, halo: int) -> bool:
    """Return whether a piece with its halo gives the same output as the whole image."""
    around = -(-halo // window) * window
    core = max(-(-16 // window) * window, window)
    side = max(core + 2 * around, smallest)
    whole = _image(network, side + window, side + 2 * window)
    full = network(whole)
    piece = network(whole[:, :, window:, 2 * window :])
    inner = slice(around * scale, (around + core) * scale)
    expected = full[:, :, window * scale :, 2 * window * scale :][:, :, inner, inner]
    difference = (piece[:, :, inner, inner] - expected).abs().max()
    return bool(difference <= _EXACT * max(1.0, float(expected.abs().max())))
