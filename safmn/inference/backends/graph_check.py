"""Check the traced graph of a user's network: a trace holds everything that Python computed as a constant.

A network may compute the number of images or their size in Python, as many with window attention do (``int(windows
.shape[0] / ...)``). Its graph is then right for inputs like the traced one, and mixes images or fails for others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from safmn.errors import OptionError, first_line
from safmn.inference.backends.base import Backend, example_input
from safmn.inference.samples import made_up_photographs
from safmn.weights.networks import kind_of, without_wrappers

_LARGEST_ERROR = {"fp32": 1e-3}  # relative to the larger of the value and 1
_LARGEST_ERROR_OF_HALF = 0.05


def takes_several(backend: Backend, network: nn.Module) -> bool:
    """Run the graph of a user's network on images of another size than the traced one: on two at once, or on one.

    The package's networks and BasicSR's are tested; they are not run.

    Args:
        backend: the back end, ready to run.
        network: the network, in eager mode, in float32.

    Returns:
        Whether the graph is right for several images at once. If not, it is right for one.

    Raises:
        OptionError: the graph's result for one image differs from the network's.
    """
    if type(without_wrappers(network)).__module__.startswith(("safmn.", "basicsr.")) or backend.channels != 3:
        return True
    example = example_input(network)
    window = int(getattr(network, "window", 1))
    images = made_up_photographs(example.shape[2] + 2 * window, example.shape[3] + window)[:2].to(example)
    if _problem(backend, network, images) is None:
        return True
    problem = _problem(backend, network, images[:1])
    if problem is None:
        return False
    raise OptionError(
        f"back end {backend.name!r} cannot run {kind_of(network)}: its graph {problem} for an image of "
        f"{images.shape[3]}x{images.shape[2]} pixels. Networks that compute with the size in Python have such graphs: "
        "it is a constant there. Choose 'eager' or 'auto'"
    )


def _problem(backend: Backend, network: nn.Module, images: Tensor) -> str | None:
    """Return what is wrong with the graph's result for some images; None if nothing is, or the network refuses one."""
    try:
        with torch.no_grad():
            expected: Tensor = network(images)
    except Exception as error:  # a user's network may raise anything
        return None if len(images) == 1 else f"was not tried: {first_line(error):.200}"
    try:
        result = backend(images)
    except Exception as error:  # other packages raise anything
        return f"fails ({first_line(error):.200})"
    if result.shape != expected.shape:
        return f"gives {tuple(result.shape)} instead of {tuple(expected.shape)}"
    if not bool(expected.isfinite().all()):
        return None
    worst = float(((result - expected).abs() / expected.abs().clamp(min=1)).max())
    right = worst <= _LARGEST_ERROR.get(backend.precision, _LARGEST_ERROR_OF_HALF)  # false for NaN
    return None if right else f"is wrong by {worst:.2g}"
