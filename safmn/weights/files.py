"""``.pth`` and ``.safetensors`` files to state dicts and back. No code of a pickle is ever run."""

from __future__ import annotations

import io
import json
import logging
import os
import reprlib
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from safmn.errors import WeightsError, first_line, located
from safmn.system.files import atomic_path
from safmn.weights import zoo
from safmn.weights.other_files import what_it_is
from safmn.weights.pickles import StoredTensor, Unusable
from safmn.weights.torch_files import PICKLE_MAGIC, ZIP_MAGIC, TorchFile

StateDict = dict[str, Tensor]

logger = logging.getLogger(__name__)

# Under which keys files in the wild keep their state dict, the averaged weights first.
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net", "generator")
_DEEPEST = 2  # such keys within each other
# What DistributedDataParallel, torch.compile and some trainers put before every name.
_PREFIXES = ("module.", "_orig_mod.", "netG.")
# What trainers (PyTorch Lightning's users, say) call the network that is wanted, the averaged one first.
_AVERAGED = ("net_g_ema.", "ema_model.", "model_ema.", "ema.")
_TRAINERS = (*_AVERAGED, "net_g.", "netG.", "generator.", "network.", "model.", "net.")
_LONGEST_HEADER = 2**25  # bytes of a safetensors header


def locate(source: str | os.PathLike[str]) -> Path:
    """The file of ``source``: a path, or the name of weights that come with the package (:mod:`safmn.weights.zoo`).

    Raises:
        WeightsError: neither a file nor such a name.
    """
    path = Path(source)
    if path.suffix or len(path.parts) != 1 or path.exists():
        return path
    return zoo.path(str(source))


def load_state_dict(source: str | os.PathLike[str], *, param_key: str | None = None) -> StateDict:
    """Read the weights of one network.

    Args:
        source: a ``.pth`` (``{"params": ...}``, ``{"params_ema": ...}``, both, or bare; such keys may lie within
            another, as in ``{"state_dict": {"params": ...}}``) or ``.safetensors`` file, or a name that :func:`locate`
            knows. The content tells the format, not the ending.
        param_key: which of several state dicts; None takes the averaged weights where there are any. Where the file
            has another one only, that is taken, with a warning.

    Returns:
        Names and tensors, on the CPU, in the file's precision, without a ``module.`` prefix.

    Raises:
        WeightsError: missing, empty, damaged, not weights (integers or NaN, say), or pickled code; names the file and
            the reason.
    """
    path = locate(source)
    content, tensors = _read(path)
    with located(str(path)):
        state_dict: StateDict = tensors(_tensors(_unwrap(content, path, param_key)))
        _check_values(state_dict)
    return _without_prefixes(state_dict)


def has_average(source: str | os.PathLike[str]) -> bool:
    """Whether a file (as for :func:`load_state_dict`) says that it holds averaged weights, ``params_ema``.

    Raises:
        WeightsError: as :func:`load_state_dict`.
    """
    content, _ = _read(locate(source))
    for _level in range(_DEEPEST):
        if not isinstance(content, Mapping):
            return False
        if content.get("params_ema"):
            return True
        content = next((content[key] for key in _WRAPPERS if key in content), None)
    return False


def save_weights(
    path: str | os.PathLike[str],
    *,
    params: Mapping[str, Tensor],
    params_ema: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights, atomically.

    ``.pth``: BasicSR's form, ``{"params": ..., "params_ema": ...}``, and ``metadata`` beside them if given.
    ``.safetensors``: one flat state dict (``params_ema`` if given, otherwise ``params``), ``metadata`` in the header.

    Raises:
        WeightsError: the path has another ending.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors"):
        raise WeightsError(
            f"{path}: weights are written as .pth or .safetensors, not {path.suffix or 'without ending'}."
        )
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            chosen = params if params_ema is None else params_ema
            header = {"format": "pt", **(metadata or {})}
            temporary.write_bytes(
                safetensors.torch.save(_detached(chosen), metadata=header)
            )  # save_file: for the owner only
            return
        content: dict[str, Any] = {"params": _detached(params)}
        if params_ema is not None:
            content["params_ema"] = _detached(params_ema)
        if metadata:
            content["metadata"] = dict(metadata)
        buffer = io.BytesIO()  # torch.save writes a file's own name into it; a buffer makes equal weights equal bytes
        torch.save(content, buffer)
        temporary.write_bytes(buffer.getvalue())


def _detached(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Contiguous copies on the CPU: a view would take its whole storage into the file.

    What a network adds that is no tensor (``get_extra_state``) is left out: it is not weights.
    """
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
        if torch.is_tensor(tensor)
    }


def load_plain(path: Path) -> Any:
    """Whatever a file of ``torch.save`` holds (a training state, say), as plain data and tensors; no code is run.

    Raises:
        WeightsError: missing, empty, damaged or pickled code; names the file and the reason.
    """
    content, tensors = _read(path)
    with located(str(path)):
        return tensors(content)


def _read(path: Path) -> tuple[Any, Callable[[Any], Any]]:
    """The content of a weight file, whatever it is, and what makes tensors of a part of it, on the CPU.

    Of a file of PyTorch only the description of its content is read: the values are, when that function is called.
    """
    with located(str(path)):
        if not path.exists():
            raise WeightsError("no such weight file.")
        if path.is_dir():
            raise WeightsError("a folder, not a weight file.")
        if not path.is_file():
            raise WeightsError("a device or a pipe, not a weight file.")
        with path.open("rb") as file:
            head = file.read(9)
        if not head:
            raise WeightsError("the file is empty (0 bytes). Get it again.")
        if head[8:] == b"{":
            return _read_safetensors(path), lambda content: content
        if head.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
            torch_file = TorchFile(path)
            return torch_file.content, torch_file.tensors
        other = what_it_is(path)
        if other:
            raise WeightsError(f"not a weight file, but {other}")
        if path.suffix == ".safetensors":
            return _read_safetensors(path), lambda content: content
        raise WeightsError(f"not a weight file: neither PyTorch nor safetensors (it begins with {head!r}).")


def _read_safetensors(path: Path) -> StateDict:
    try:
        _check_header(path)
        return safetensors.torch.load_file(path)
    except Exception as error:  # its header may say anything
        raise WeightsError(f"damaged or incomplete safetensors file ({first_line(error):.200}).") from error


def _check_header(path: Path) -> None:
    """What the library of safetensors does not look at: a header of endless length, and names that stand there twice.

    Raises:
        ValueError: there is something wrong.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_LONGEST_HEADER, path.stat().st_size):
            raise ValueError(f"a header of {length} bytes")
        header = file.read(length)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name stands in its header twice")
        return found

    json.loads(header, object_pairs_hook=once)


def _unwrap(content: Any, path: Path, param_key: str | None) -> Mapping[Any, Any]:
    """The innermost dictionary of what a file holds."""
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"holds {_in_words(content)}, not weights.")
    taken: list[str | None] = []
    for _ in range(_DEEPEST):
        keys = dict.fromkeys((param_key, *_WRAPPERS))
        wrapped = [key for key in keys if isinstance(content.get(key), Mapping) and content[key]]
        if not wrapped:
            break
        if param_key is None and "params" in wrapped[1:]:
            logger.info("%s holds %s: using %r", path, " and ".join(map(repr, wrapped)), wrapped[0])
        taken.append(wrapped[0])
        content = content[wrapped[0]]
    if taken and param_key not in (None, *taken):
        logger.warning("%s has no %r; using its %r.", path, param_key, taken[-1])
    return content


def _in_words(content: Any) -> str:
    if isinstance(content, (Tensor, StoredTensor)):
        return "a single tensor without a name"
    if isinstance(content, Unusable):
        return content.what
    return f"{type(content).__name__} {reprlib.repr(content):.60}"  # repr itself may be endless


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor | StoredTensor]:
    """The state dict without the numbers (an epoch, say) that some keep beside its tensors."""
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Unusable):
            raise WeightsError(f"{name} is {value.what}; only dense ones of floating point can be loaded.")
    kinds = (Tensor, StoredTensor)
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, kinds)}
    others = {name: value for name, value in content.items() if name not in tensors}
    strangers = [name for name, value in others.items() if not (tensors and isinstance(value, (int, float)))]
    if strangers or not tensors:
        keys = ", ".join(f"{name!r:.80}" for name in strangers[:4])
        raise WeightsError(f"not weights: {keys or 'nothing'} where tensors were expected.")
    return tensors


def _check_values(state_dict: StateDict) -> None:
    """Weights are floating point (but for indices and counters beside them), and numbers also in float32."""
    floating = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
    strange = [name for name, tensor in state_dict.items() if tensor.is_complex()]
    if strange or not floating:
        name = strange[0] if strange else next(iter(state_dict))
        raise WeightsError(f"{name} is {state_dict[name].dtype}; weights are floating point.")
    for name, tensor in floating.items():
        values = tensor.float()  # in which networks compute: what float64 holds may be too large for it
        # The sum takes a seventh of the time; that of large values may overflow.
        if not values.sum().isfinite() and not values.isfinite().all():
            raise WeightsError(f"{name} holds values that are not finite numbers (NaN or Inf) in float32.")


def _without_prefixes(state_dict: StateDict) -> StateDict:
    """Take off every prefix that all names have, and the counter that torch's ``AveragedModel`` puts beside them."""
    if len(state_dict) > 1:
        state_dict = {name: tensor for name, tensor in state_dict.items() if name != "n_averaged"}
    while any(all(name.startswith(prefix) for name in state_dict) for prefix in _PREFIXES):
        state_dict = {name.partition(".")[2]: tensor for name, tensor in state_dict.items()}
    return state_dict


def generators_in(state_dict: StateDict) -> Iterator[tuple[str, StateDict]]:
    """What a trainer's state dict may hold the generator under: each known prefix that occurs, and the names below it.

    To be tried where the names as they are fit nothing: a network's own names may begin in the same way.
    """
    for prefix in _TRAINERS:
        below = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        if below:
            yield prefix, below
