"""Convert ``.pth`` and ``.safetensors`` files to state dicts and back. Pickled code is never run."""

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

import safetensors.torch
import torch
from torch import Tensor

from safmn.errors import WeightsError, first_line, located
from safmn.system.files import atomic_path
from safmn.weights import hub, zoo
from safmn.weights.other_files import what_it_is
from safmn.weights.pickles import StoredTensor, Unusable
from safmn.weights.torch_files import PICKLE_MAGIC, ZIP_MAGIC, TorchFile

StateDict = dict[str, Tensor]

logger = logging.getLogger(__name__)

# Keys under which existing files store their state dict; those of averaged weights come first.
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net", "generator")
_DEEPEST = 2  # nesting depth of these keys
# Prefixes that DistributedDataParallel, torch.compile and some trainers add to every name.
_PREFIXES = ("module.", "_orig_mod.", "netG.")
# Names that trainers, for example with PyTorch Lightning, give the generator; those of averaged ones come first.
_AVERAGED = ("net_g_ema.", "ema_model.", "model_ema.", "ema.")
_TRAINERS = (*_AVERAGED, "net_g.", "netG.", "generator.", "network.", "model.", "net.")
_LONGEST_HEADER = 2**25  # bytes of a safetensors header


def locate(source: str | os.PathLike[str]) -> Path:
    """Return the path for ``source``: a path, the name of weights in the package, or ``hf:owner/name[/file]``.

    See :mod:`safmn.weights.zoo` and :mod:`safmn.weights.hub`, which downloads.

    Raises:
        WeightsError: the source is neither a file nor a known name, or cannot be downloaded.
    """
    if str(source).startswith(hub.PREFIX):
        return hub.fetch(str(source))
    path = Path(source)
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    if path.exists() and str(source) not in zoo.entries():  # a folder does not hide weights of the same name
        return path
    return zoo.path(str(source))


def load_state_dict(source: str | os.PathLike[str], *, param_key: str | None = None) -> StateDict:
    """Read the weights of one network.

    Args:
        source: a ``.pth`` or ``.safetensors`` file, or a name that :func:`locate` knows. The content determines the
            format, not the ending. A ``.pth`` file holds a bare state dict, ``{"params": ...}``, ``{"params_ema":
            ...}`` or both; these keys may be nested, as in ``{"state_dict": {"params": ...}}``.
        param_key: which of several state dicts to read. None prefers averaged weights. If the key is missing, another
            state dict is used, with a warning.

    Returns:
        Names and tensors, on the CPU, in the file's precision, without prefixes such as ``module.``.

    Raises:
        WeightsError: the file is missing, empty or damaged, holds pickled code or holds no weights (for example
            integers or NaN); the message names the file and the reason.
    """
    path = locate(source)
    content, tensors = _read(path)
    with located(str(path)):
        state_dict: StateDict = tensors(_tensors(_unwrap(content, path, param_key)))
        _check_values(state_dict)
    return _without_prefixes(state_dict)


def has_average(source: str | os.PathLike[str]) -> bool:
    """Return whether a file (see :func:`load_state_dict`) contains averaged weights, ``params_ema``.

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


def metadata_of(source: str | os.PathLike[str]) -> dict[str, str]:
    """Return the texts that a file has beside its weights, by key; see ``metadata`` of :func:`save_weights`.

    Raises:
        WeightsError: as :func:`load_state_dict`.
    """
    path = locate(source)
    content, _ = _read(path)
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    found = _check_header(path).get("__metadata__") if is_safetensors else None
    if isinstance(content, Mapping) and not is_safetensors:
        found = content.get("metadata")
    if not isinstance(found, Mapping):
        return {}
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, str)}


def save_weights(
    path: str | os.PathLike[str],
    *,
    params: Mapping[str, Tensor],
    params_ema: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights atomically.

    ``.pth``: BasicSR's format, ``{"params": ..., "params_ema": ...}``, plus ``metadata`` if given.
    ``.safetensors``: one flat state dict (``params_ema`` if given, otherwise ``params``), with ``metadata`` in the
    header.

    Raises:
        WeightsError: the path has a different ending.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors"):
        raise WeightsError(
            f"{path}: weights are written as .pth or .safetensors, not {path.suffix or 'without an ending'}."
        )
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            chosen = params if params_ema is None else params_ema
            header = {"format": "pt", **(metadata or {})}
            temporary.write_bytes(
                safetensors.torch.save(_detached(chosen), metadata=header)
            )  # save_file would make the file readable for the owner only
            return
        content: dict[str, Any] = {"params": _detached(params)}
        if params_ema is not None:
            content["params_ema"] = _detached(params_ema)
        if metadata:
            content["metadata"] = dict(metadata)
        buffer = io.BytesIO()  # torch.save stores the file's name; with a buffer, equal weights give equal bytes
        torch.save(content, buffer)
        temporary.write_bytes(buffer.getvalue())


def _detached(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Return contiguous copies on the CPU; a view would write its whole storage to the file.

    Anything that is not a tensor (``get_extra_state``) is dropped: it is not a weight.
    """
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
        if torch.is_tensor(tensor)
    }


def load_plain(path: Path) -> Any:
    """Read any file of ``torch.save``, such as a training state, as plain data and tensors; no code is run.

    Raises:
        WeightsError: the file is missing, empty or damaged, or holds pickled code; the message names the file and the
            reason.
    """
    content, tensors = _read(path)
    with located(str(path)):
        return tensors(content)


def _read(path: Path) -> tuple[Any, Callable[[Any], Any]]:
    """Return the content of a weight file and a function that turns a part of it into tensors on the CPU.

    From a PyTorch file, only the description of the content is read here. The function reads the values.
    """
    with located(str(path)):
        if not path.exists():
            raise WeightsError("no such weight file.")
        if path.is_dir():
            raise WeightsError("is a folder, not a weight file.")
        if not path.is_file():
            raise WeightsError("is a device or a pipe, not a weight file.")
        with path.open("rb") as file:
            head = file.read(9)
        if not head:
            raise WeightsError("the file is empty (0 bytes). Download or copy it again.")
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
    except Exception as error:  # a damaged header can raise anything
        raise WeightsError(f"damaged or incomplete safetensors file ({first_line(error):.200}).") from error


def _check_header(path: Path) -> dict[str, Any]:
    """Return the header; check what the safetensors library does not: its length, and duplicate names in it.

    Raises:
        ValueError: the header is too long or has a duplicate name.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_LONGEST_HEADER, path.stat().st_size):
            raise ValueError(f"its header claims {length} bytes")
        header = file.read(length)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("its header has a duplicate name")
        return found

    parsed: dict[str, Any] = json.loads(header, object_pairs_hook=once)
    return parsed


def _unwrap(content: Any, path: Path, param_key: str | None) -> Mapping[Any, Any]:
    """Return the innermost dictionary of a file's content."""
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"holds {_in_words(content)}, not weights.")
    taken: list[str | None] = []
    for _ in range(_DEEPEST):
        keys = dict.fromkeys((param_key, *_WRAPPERS))
        wrapped = [key for key in keys if isinstance(content.get(key), Mapping) and content[key]]
        if not wrapped:
            break
        if param_key is None and "params" in wrapped[1:]:
            logger.info("%s contains %s: using %r", path, " and ".join(map(repr, wrapped)), wrapped[0])
        taken.append(wrapped[0])
        content = content[wrapped[0]]
    if taken and param_key not in (None, *taken):
        logger.warning("%s has no %r; using %r.", path, param_key, taken[-1])
    return content


def _in_words(content: Any) -> str:
    if isinstance(content, (Tensor, StoredTensor)):
        return "a single tensor without a name"
    if isinstance(content, Unusable):
        return content.what
    return f"{type(content).__name__} {reprlib.repr(content):.60}"  # repr() of nested content may never end


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor | StoredTensor]:
    """Return the state dict without the plain numbers, such as an epoch, that some files store beside the tensors."""
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Unusable):
            raise WeightsError(f"{name} is {value.what}; only dense floating-point tensors can be loaded.")
    kinds = (Tensor, StoredTensor)
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, kinds)}
    others = {name: value for name, value in content.items() if name not in tensors}
    strangers = [name for name, value in others.items() if not (tensors and isinstance(value, (int, float)))]
    if strangers or not tensors:
        keys = ", ".join(f"{name!r:.80}" for name in strangers[:4])
        raise WeightsError(f"not weights: found {keys or 'nothing'} instead of tensors.")
    return tensors


def _check_values(state_dict: StateDict) -> None:
    """Check that weights are floating point, except for indices and counters, and finite in float32.

    Raises:
        WeightsError: they are not; the message names the tensor.
    """
    floating = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
    strange = [name for name, tensor in state_dict.items() if tensor.is_complex()]
    if strange or not floating:
        name = strange[0] if strange else next(iter(state_dict))
        raise WeightsError(f"{name} is {state_dict[name].dtype}; weights must be floating point.")
    for name, tensor in floating.items():
        values = tensor.float()  # networks compute in float32, in which a large float64 value is infinite
        # The sum takes a seventh of the time of the full check, but it overflows for large values.
        if not values.sum().isfinite() and not values.isfinite().all():
            raise WeightsError(f"{name} holds values that are not finite numbers (NaN or Inf) in float32.")


def _without_prefixes(state_dict: StateDict) -> StateDict:
    """Remove every known prefix that all names share, and the counter that torch's ``AveragedModel`` adds."""
    if len(state_dict) > 1:
        state_dict = {name: tensor for name, tensor in state_dict.items() if name != "n_averaged"}
    while any(all(name.startswith(prefix) for name in state_dict) for prefix in _PREFIXES):
        state_dict = {name.partition(".")[2]: tensor for name, tensor in state_dict.items()}
    return state_dict


def generators_in(state_dict: StateDict) -> Iterator[tuple[str, StateDict]]:
    """Yield each known prefix under which a trainer's state dict may contain the generator, and the weights below it.

    Try these only if the unchanged names fit no network: a network's own names may start with such a prefix.
    """
    for prefix in _TRAINERS:
        below = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        if below:
            yield prefix, below
