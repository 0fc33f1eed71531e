"""The back ends of one network, made for one state of its weights and one process."""

from __future__ import annotations

import itertools
import logging
import os

import torch
from torch import Tensor, nn

from safmn.archs.stages import Chain, map_modules
from safmn.errors import OptionError
from safmn.inference.backends import Backend, make_backend
from safmn.inference.guard import Guard
from safmn.inference.optimize import replica
from safmn.runtime.threads import Lock

logger = logging.getLogger(__name__)

# Back ends whose instances do not each keep memory of their own: a network has dozens of stages.
_SHARING = ("native", "eager", "compile")
_TRIES = 5  # to copy the weights while another thread writes to them


class Engine:
    """Back ends for a network as a whole and for its stages. They hold copies of the weights. Safe for threads.

    Args:
        network: in evaluation mode, on ``device``.
        chain: its stages; None where it has none.
        backend, device, precision: see :func:`safmn.inference.backends.make_backend`.
        name: of the weights, for messages.

    Attributes:
        whole: runs the whole network. "auto" decides when it is first called.
        guard: finds garbage in what the network makes of images.
    """

    def __init__(
        self, network: nn.Module, chain: Chain | None, *, backend: str, device: torch.device, precision: str, name: str
    ) -> None:
        if device.type == "cuda" and torch.cuda._is_in_bad_fork():
            raise OptionError(
                "CUDA cannot be used in a forked process after its parent has used it: start processes with the "
                "method 'spawn' or 'forkserver', or load the network only after the fork"
            )
        self._backend = backend
        self._chain = chain
        self._device = device
        self._precision = precision
        self._process = os.getpid()
        self._lock = Lock()
        self._stages: Chain | None = None
        in_precision = "" if precision == "fp32" else f" in {precision}"
        self.guard = Guard(
            replica(network),
            scale=network.scale,  # type: ignore[arg-type]
            window=getattr(network, "window", 1),
            device=device,
            name=name + in_precision,
        )
        for _ in range(_TRIES):
            self._versions = versions(network)
            self.whole = self._made(backend, network)
            if self._versions == versions(network):
                break

    def fits(self, network: nn.Module) -> bool:
        """Whether it was made in this process, and ``network`` still has the weights that it was made for."""
        return self._process == os.getpid() and self._versions == versions(network)

    def choose(self, sample: Tensor) -> None:
        """Let "auto" decide on a sample: on a whole photograph, eager alone would take longer than all the rest."""
        if self.whole.name == "auto":
            self.whole(sample)

    def stages(self, sample: Tensor) -> Chain:
        """The network's stages, each run by the back end that suits the whole network; made at the first call."""
        self.choose(sample)
        with self._lock:
            if self._stages is None:
                self._stages = self._made_stages()
            return self._stages

    def _made_stages(self) -> Chain:
        name = self.whole.name
        if self._backend == "auto" and name not in _SHARING:
            logger.info("Cut frames are run eagerly: back end %s would hold memory for each of many stages.", name)
            name = "eager"
        assert self._chain is not None
        return map_modules(self._chain, lambda stage: self._made(name, stage))

    def _made(self, name: str, network: nn.Module) -> Backend:
        return make_backend(name, network, device=self._device, precision=self._precision)


def versions(network: nn.Module) -> list[tuple[int, int]]:
    """Where each of the weights is and how often it was written to; those made in inference mode do not count.

    Writing to a weight's ``data`` is not counted by torch.
    """
    weights = itertools.chain(network.parameters(), network.buffers())
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
