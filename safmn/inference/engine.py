"""The back ends of one network, built for one state of its weights and one process."""

from __future__ import annotations

import itertools
import logging
import os

import torch
from torch import Tensor, nn

from safmn.archs.peers import folded
from safmn.archs.stages import Chain, map_modules
from safmn.errors import OptionError
from safmn.inference.backends import Backend, make_backend
from safmn.inference.guard import Guard
from safmn.inference.optimize import replica
from safmn.runtime.threads import Lock

logger = logging.getLogger(__name__)

# Back ends whose instances share their working memory. A network has dozens of stages, and each needs an instance.
_SHARING = ("native", "eager", "compile")
_TRIES = 5  # attempts to copy the weights while another thread writes to them


class Engine:
    """Back ends for a whole network and for its stages. They hold copies of the weights. Thread-safe.

    Args:
        network: in evaluation mode, on ``device``.
        chain: the network's stages; None if it has none.
        backend, device, precision: see :func:`safmn.inference.backends.make_backend`.
        name: the name of the weights, for messages.

    Attributes:
        whole: runs the whole network. "auto" decides at its first call.
        guard: finds garbage in the network's output.

    Raises:
        OptionError: the back end cannot be built, or the device is CUDA in a forked process that cannot use it.
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
        self._network = network
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
            self.whole = self._build(backend, network)
            if self._versions == versions(network):
                break

    def fits(self, network: nn.Module) -> bool:
        """Return whether the engine was built in this process and ``network`` still has the same weights."""
        return self._process == os.getpid() and self._versions == versions(network)

    def choose(self, sample: Tensor) -> None:
        """Let "auto" choose a back end on a small sample.

        To choose, "auto" also runs eager. On a whole photograph, this run would take longer than the rest.
        """
        if self.whole.name == "auto":
            self.whole(sample)

    def settle(self, name: str) -> None:
        """Run the network with the back end called ``name`` instead of the one that "auto" would choose."""
        with self._lock:
            self._backend, self.whole, self._stages = name, self._build(name, self._network), None

    def stages(self, sample: Tensor) -> Chain:
        """Return the network's stages on the back end chosen for the whole network. The first call builds them."""
        self.choose(sample)
        with self._lock:
            if self._stages is None:
                self._stages = self._build_stages()
            return self._stages

    def _build_stages(self) -> Chain:
        name = self.whole.name
        if self._backend == "auto" and name not in _SHARING:
            logger.info("Cut frames run eagerly: back end %s would hold memory for each of the many stages.", name)
            name = "eager"
        assert self._chain is not None
        return map_modules(self._chain, lambda stage: self._build(name, stage))

    def _build(self, name: str, network: nn.Module) -> Backend:
        return make_backend(name, folded(network), device=self._device, precision=self._precision)


def versions(network: nn.Module) -> list[tuple[int, int]]:
    """Return the address and torch's write counter of each weight, to detect changes.

    The counter is 0 for weights created in inference mode, which have none. torch does not count writes to a weight's
    ``data``.
    """
    weights = itertools.chain(network.parameters(), network.buffers())
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
