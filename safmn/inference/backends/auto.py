"""Choose the fastest back end that gives the right result."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safmn.errors import first_line
from safmn.inference.backends import remembered
from safmn.inference.backends.base import Backend, candidates_of_auto, register_backend
from safmn.inference.backends.remembered import Answer
from safmn.inference.backends.torch_backends import Eager
from safmn.inference.samples import made_up_photographs
from safmn.runtime.threads import BUILDING
from safmn.system.memory import is_out_of_memory

logger = logging.getLogger(__name__)
chosen_logger = logging.getLogger("safmn.backend")
"""Says in one line which back end runs, and why."""

_RUNS = 3
# Largest error against eager float32, for values in [0, 1]. One level of 8 bits is 3.9e-3. An error of 2e-4 therefore
# changes an 8-bit result only if the value is close to a rounding tie.
LARGEST_ERROR = 2e-4
# Smallest PSNR against float32 in dB, for half precisions, where the mean error matters. With 56 dB, an image with a
# PSNR of 34 dB loses 0.03 dB; one with 28 dB loses 0.007 dB.
LEAST_PSNR = 56.0


@register_backend
class Auto(Backend):
    """Chooses a back end at the first input, and then runs that one.

    It takes the first candidate, in the order of ``tried_by_auto``, that is installed, supports the network, gives the
    right result and is not slower than eager. Candidates are tested on a made-up photograph of the input's size. On the
    input itself the network may overshoot without bounds and amplify rounding errors, so that no candidate would pass.

    Attributes:
        name: "auto" before the first input, then the name of the chosen back end.
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
            with BUILDING:  # other threads wait for the choice, and no two choices are timed at the same time
                chosen = self._chosen
                if chosen is None:
                    assert self._network is not None
                    sample = _sample(x) if self.channels == 3 else x  # the input of a stage is features, not an image
                    chosen = choose(self._network, sample, device=self.device, precision=self.precision)
                    self._chosen, self.name, self._network = chosen, chosen.name, None
                    self.follows_threads, self.exact_areas = chosen.follows_threads, chosen.exact_areas
        return chosen(x)


def _sample(x: Tensor) -> Tensor:
    """Return a made-up photograph of the shape, type and device of ``x``, (B, 3, h, w)."""
    return made_up_photographs(*x.shape[2:])[:1].expand(len(x), -1, -1, -1).contiguous().to(x)


def choose(network: nn.Module, x: Tensor, *, device: torch.device, precision: str) -> Backend:
    """Return the first candidate for ``network`` that passes the checks on ``x``, or eager if none does.

    The result is remembered for the next run (:mod:`safmn.inference.backends.remembered`). Candidates that fail or
    cannot be used are logged with the reason.

    Args:
        network: the network or stage.
        x: (B, C, h, w), an input on which the network works well.
        device, precision: see :func:`safmn.inference.backends.make_backend`.
    """
    if what_to_install := faster_if_installed(network, device, precision):
        chosen_logger.info("A faster back end is missing: %s.", what_to_install)
    candidates = list(candidates_of_auto(device.type))
    asked = remembered.question(network, x, candidates, device=device, precision=precision)
    answer = remembered.recall(asked)
    backend = None if answer is None else _made_again(answer, candidates, network, x, precision=precision)
    if asked is not None and answer is not None and backend is not None:
        for warning in answer.warnings:
            logger.warning("%s (found in an earlier run; to try again, delete %s)", warning, remembered.file_of(asked))
        _say(answer, precision, ", as an earlier run found")
        return backend
    backend, answer, lasting = _tried(candidates, network, x, device=device, precision=precision)
    if asked is not None and lasting:
        remembered.remember(asked, answer)
    _say(answer, precision, "")
    return backend


def _say(answer: Answer, precision: str, how: str) -> None:
    reason = "no other one is faster" if answer.backend == "eager" else f"{answer.times:.1f} times as fast as eager"
    chosen_logger.info("Back end %s, %s: %s%s.", answer.backend, precision, reason, how)


def _made_again(
    answer: Answer, candidates: Sequence[type[Backend]], network: nn.Module, x: Tensor, *, precision: str
) -> Backend | None:
    """Return the back end of an answer, or None if it can no longer be made or run."""
    device = x.device
    kinds: list[type[Backend]] = [*candidates, Eager]
    kind = next((kind for kind in kinds if kind.name == answer.backend), None)
    if kind is None or kind.missing(device) or kind.unfit(network, precision):
        return None
    try:
        backend = kind(network, device=device, precision=precision)
        if kind is not Eager and not bool(backend(x).isfinite().all()):
            logger.warning("Back end %s is not used: its result is not finite.", kind.name)
            return None
        return backend
    except Exception as error:  # other packages raise anything; then all candidates are tried again
        logger.warning("Back end %s failed and is not used: %s", kind.name, _reason(error))
        return None


def _tried(
    candidates: Sequence[type[Backend]], network: nn.Module, x: Tensor, *, device: torch.device, precision: str
) -> tuple[Backend, Answer, bool]:
    """Try the candidates. Return the back end, the answer, and whether to remember it."""
    eager = Eager(network, device=device, precision=precision)
    exact = eager if precision == "fp32" else Eager(network, device=device, precision="fp32")
    expected = exact(x)
    if not bool(expected.isfinite().all()):
        logger.info("Back end eager, %s: its result is not finite, so no other back end can be checked.", precision)
        return eager, Answer("eager"), False
    limit, _ = _fastest(eager, x)
    warnings: list[str] = []
    lasting = True
    for candidate in candidates:
        problem = candidate.missing(device) or candidate.unfit(network, precision)
        if problem:
            logger.info("Back end %s: not used: %s.", candidate.name, problem)
            continue
        try:
            backend = candidate(network, device=device, precision=precision)
            for _ in range(2):  # the first call plans and allocates; the second prepares for a repeated size
                backend(x)
            seconds, y = _fastest(backend, x)
        except Exception as error:  # other packages raise anything; the next candidate may work
            lasting = lasting and not is_out_of_memory(error)
            warnings.append(f"Back end {candidate.name} failed and is not used: {_reason(error)}")
            logger.warning("%s", warnings[-1])
            continue
        problem = discrepancy(y, expected, precision)
        if problem:
            warnings.append(f"Back end {candidate.name} is not used: {problem}.")
            logger.warning("%s", warnings[-1])
        elif seconds > limit:
            logger.info("Back end %s is not used: slower than eager here.", candidate.name)
        else:
            return backend, Answer(backend.name, limit / seconds, tuple(warnings)), lasting
    return eager, Answer("eager", warnings=tuple(warnings)), lasting


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def faster_if_installed(network: nn.Module, device: torch.device, precision: str) -> str | None:
    """Return what is missing for the back ends that come before the first one that can be used; None if nothing.

    Args:
        network, device, precision: see :func:`safmn.inference.backends.make_backend`.
    """
    missing = []
    for candidate in candidates_of_auto(device.type):
        if candidate.unfit(network, precision) is not None:
            continue
        problem = candidate.missing(device)
        if problem is None:
            break
        missing.append(problem)
    return "; ".join(missing) or None


def discrepancy(y: Tensor, expected: Tensor, precision: str) -> str | None:
    """Return why ``y``, computed in ``precision``, differs too much from ``expected``; None if it does not."""
    if y.shape != expected.shape:
        return f"its result has shape {tuple(y.shape)} instead of {tuple(expected.shape)}"
    # Values above 1, which are clamped later, are compared by relative error.
    error = (y - expected).abs() / expected.abs().clamp(min=1)
    if precision == "fp32":
        worst = float(error.max())
        return None if worst <= LARGEST_ERROR else f"its result is wrong by up to {worst:.2g}"
    psnr = float(-10 * torch.log10(error.cpu().double().square().mean() + 1e-12))  # MPS has no float64
    return None if psnr >= LEAST_PSNR else f"its result has only {psnr:.1f} dB PSNR against that of float32"


def _fastest(backend: Backend, x: Tensor) -> tuple[float, Tensor]:
    """Return the seconds and the result of the fastest of some runs; other programs may delay a single run."""
    return min((_timed(backend, x) for _ in range(_RUNS)), key=lambda run: run[0])


def _timed(backend: Backend, x: Tensor) -> tuple[float, Tensor]:
    """Return the seconds of one run, and its result."""
    _wait(x)
    start = time.perf_counter()
    y = backend(x)
    _wait(x)
    return time.perf_counter() - start, y


def _wait(x: Tensor) -> None:
    """Wait until the device has computed everything."""
    if x.device.type in ("cuda", "xpu", "mps"):
        number = () if x.device.type == "mps" else (x.device,)
        torch.get_device_module(x.device).synchronize(*number)
