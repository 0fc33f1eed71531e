"""The choice of the fastest back end that gives the right result."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor, nn

from safmn.errors import first_line
from safmn.inference.backends.base import Backend, candidates_of_auto, register_backend
from safmn.inference.backends.torch_backends import Eager
from safmn.inference.samples import made_up_photographs
from safmn.runtime.threads import BUILDING

logger = logging.getLogger(__name__)


# Against eager float32, for values in [0, 1]. One level of 8 bits is 3.9e-3: what is left is rounding ties.
_RUNS = 3
LARGEST_ERROR = 2e-4
# Of half precisions the mean matters. 56 dB costs an image at 34 dB 0.03 dB, and one at 28 dB 0.007.
LEAST_PSNR = 56.0


@register_backend
class Auto(Backend):
    """Decides at the first input: the fastest candidate that is installed, fits, is right, and beats eager.

    It is tried on a made-up photograph of the input's size. On the input itself the network may overshoot without
    bounds, and amplify rounding errors until no fast candidate seems right.

    Attributes:
        name: "auto" before the first input, then the chosen back end's.
    """

    name = "auto"

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        self._network: nn.Module | None = network
        self._chosen: Backend | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        chosen = self._chosen
        if chosen is None:
            with BUILDING:  # threads that come meanwhile wait for the choice; no other one is timed beside it
                chosen = self._chosen
                if chosen is None:
                    assert self._network is not None
                    sample = _sample(x) if self.channels == 3 else x  # a stage of a network reads features
                    chosen = choose(self._network, sample, device=self.device, precision=self.precision)
                    self._chosen, self.name, self._network = chosen, chosen.name, None
        return chosen(x)


def _sample(x: Tensor) -> Tensor:
    """A made-up photograph of the shape, type and device of ``x``, (B, 3, h, w)."""
    return made_up_photographs(*x.shape[2:])[:1].expand(len(x), -1, -1, -1).contiguous().to(x)


def choose(network: nn.Module, x: Tensor, *, device: torch.device, precision: str) -> Backend:
    """The fastest back end for ``network`` that passes the check on ``x``, on which the network should be sound.

    What fails or cannot be used is logged with the reason; in the end there is always eager.
    """
    eager = Eager(network, device=device, precision=precision)
    exact = eager if precision == "fp32" else Eager(network, device=device, precision="fp32")
    expected = exact(x)
    if not bool(expected.isfinite().all()):
        logger.info("Back end eager, %s: not even eager gives finite numbers, so that none can be checked.", precision)
        return eager
    limit, _ = _fastest(eager, x)
    for candidate in candidates_of_auto(device.type):
        problem = candidate.missing(device) or candidate.unfit(network, precision)
        if problem:
            logger.info("Back end %s: not used: %s.", candidate.name, problem)
            continue
        try:
            backend = candidate(network, device=device, precision=precision)
            for _ in range(2):  # plans and allocates, and prepares for a size that comes again
                backend(x)
            seconds, y = _fastest(backend, x)
        except Exception as error:  # another package's; whatever it is, the next candidate can do the work
            reason = f"{type(error).__name__}: {first_line(error)}"
            logger.warning("Back end %s failed and is not used: %s", candidate.name, reason)
            continue
        problem = discrepancy(y, expected, precision)
        if problem:
            logger.warning("Back end %s is not used: %s.", candidate.name, problem)
        elif seconds > limit:
            logger.info("Back end %s is not used: slower than eager here.", candidate.name)
        else:
            logger.info("Back end %s, %s: %.1f times as fast as eager.", backend.name, precision, limit / seconds)
            return backend
    logger.info("Back end eager, %s.", precision)
    return eager


def discrepancy(y: Tensor, expected: Tensor, precision: str) -> str | None:
    """What is wrong with ``y``, computed in ``precision``, where ``expected`` is right; None where nothing is."""
    if y.shape != expected.shape:
        return f"its result has shape {tuple(y.shape)} instead of {tuple(expected.shape)}"
    # The image is clamped in the end; beyond it the relative error counts.
    error = (y - expected).abs() / expected.abs().clamp(min=1)
    if precision == "fp32":
        worst = float(error.max())
        return None if worst <= LARGEST_ERROR else f"its result is wrong by up to {worst:.2g}"
    psnr = float(-10 * torch.log10(error.double().square().mean() + 1e-12))
    return None if psnr >= LEAST_PSNR else f"its result is only {psnr:.1f} dB near that of float32"


def _fastest(backend: Backend, x: Tensor) -> tuple[float, Tensor]:
    """Seconds of the fastest of some runs, and the result: one alone may have had to wait for another program."""
    return min((_timed(backend, x) for _ in range(_RUNS)), key=lambda run: run[0])


def _timed(backend: Backend, x: Tensor) -> tuple[float, Tensor]:
    """Seconds, and the result."""
    _wait(x)
    start = time.perf_counter()
    y = backend(x)
    _wait(x)
    return time.perf_counter() - start, y


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
