"""The user's cache of the back ends that "auto" chose. "auto" chooses again only when a choice may no longer hold.

A question contains everything that a choice depends on: the machine, the network with its weights, the versions of all
software that computes, the number of threads, the device and the precision. The answer is the choice. Each question has
its own file, which also contains the answer. A damaged file counts as no answer. If no file can be written, "auto"
chooses again in each run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import safmn
from safmn.inference.backends.base import Backend
from safmn.kernels.cpu.build import processor
from safmn.system.files import cache_folder, write_atomically
from safmn.weights.digest import network_digest

logger = logging.getLogger(__name__)

_SMALL = 64 * 64  # pixels, below which starting a computation takes longer than the computation
_MOST = 200  # answers that are kept
_LONGEST = 2**16  # bytes of a file that is read
_PACKAGE = Path(safmn.__file__).resolve().parent
_COMPUTING = ("archs", "inference", "kernels")  # our own packages on which a result depends


@dataclass(frozen=True)
class Answer:
    """The result of one choice.

    Attributes:
        backend: the name of the chosen back end.
        times: its speed as a multiple of eager's: 2.0 is twice as fast.
        warnings: one sentence for each back end that failed or gave a wrong result.
    """

    backend: str
    times: float = 1.0
    warnings: tuple[str, ...] = ()


def question(
    network: nn.Module, x: Tensor, candidates: Sequence[type[Backend]], *, device: torch.device, precision: str
) -> dict[str, Any] | None:
    """Return all that the choice for ``network`` and inputs like ``x``, (B, C, h, w), depends on, for JSON.

    None if the network has tensors without plain values, for example sparse ones: then nothing is remembered.
    """
    try:
        digest = network_digest(network)
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return {
        "safmn": [safmn.__version__, _own_files()],
        "torch": str(torch.__version__),
        "candidates": [[kind.name, *kind.versions()] for kind in candidates],
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": _device(device),
        "precision": precision,
        "network": [type(network).__name__, digest],
        "small": x.shape[0] * x.shape[2] * x.shape[3] < _SMALL,
    }


def recall(asked: dict[str, Any] | None) -> Answer | None:
    """Return the answer to a question that was asked before; None if it was not, or if its file is damaged."""
    if asked is None:
        return None
    try:
        with file_of(asked).open("rb") as file:
            content = json.loads(file.read(_LONGEST))
        if content["question"] != asked:
            return None
        backend, times, warnings = (content["answer"][key] for key in ("backend", "times", "warnings"))
        return Answer(str(backend), float(times), tuple(str(warning) for warning in warnings))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def remember(asked: dict[str, Any], answer: Answer) -> None:
    """Keep an answer. A cache that cannot be written is not an error."""
    path = file_of(asked)
    try:
        content = json.dumps({"question": asked, "answer": asdict(answer)}, indent=1)
        write_atomically(path, content, flush=False)
        _forget_oldest(path.parent)
    except OSError as error:
        logger.info("The choice of the back end cannot be kept for the next run: %s", error)


def file_of(asked: dict[str, Any]) -> Path:
    """Return the file in which the answer to a question is kept."""
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "backends" / f"{key}.json"


def _forget_oldest(folder: Path) -> None:
    """Remove the answers beyond the limit: weights that are being trained are others each time."""
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
    for file in files[:-_MOST]:
        file.unlink(missing_ok=True)


def _device(device: torch.device) -> list[Any]:
    if device.type != "cuda":
        return [device.type]
    return ["cuda", torch.cuda.get_device_name(device), torch.version.cuda, torch.backends.cudnn.version()]


@functools.cache
def _own_files() -> str:
    """Return a hash of the sizes and times of our own files: in a clone of SAFMN they change without a new version.

    Otherwise a choice would still be remembered after a kernel was changed.
    """
    digest = hashlib.sha256()
    for part in _COMPUTING:
        for file in sorted((_PACKAGE / part).rglob("*")):
            if file.suffix in (".py", ".cpp", ".h", ".so"):
                with contextlib.suppress(OSError):  # an editor may have just removed it
                    state = file.stat()
                    digest.update(f"{file.relative_to(_PACKAGE)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
