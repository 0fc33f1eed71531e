"""``.pth`` and ``.safetensors`` files to state dicts and back. No code of a pickle is ever run."""

from __future__ import annotations

import io
import logging
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from safmn.errors import WeightsError, first_line
from safmn.system.files import atomic_path
from safmn.weights import zoo

StateDict = dict[str, Tensor]

logger = logging.getLogger(__name__)

# Under which keys files in the wild keep their state dict, the averaged weights first.
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net", "generator")
_DEEPEST = 2  # such keys within each other
# What DistributedDataParallel, torch.compile and some trainers put before every name.
_PREFIXES = ("module.", "_orig_mod.", "netG.")
_PICKLE_MAGIC = b"\x80"
_ZIP_MAGIC = b"PK\x03\x04"
_DOS_DIRECTORY = 0x10  # the attribute in a zip archive's directory


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
    state_dict = _tensors(_unwrap(_read(path), path, param_key), path)
    _check_values(state_dict, path)
    return _without_prefixes(state_dict)


def has_average(source: str | os.PathLike[str]) -> bool:
    """Whether a file (as for :func:`load_state_dict`) says that it holds averaged weights, ``params_ema``.

    Raises:
        WeightsError: as :func:`load_state_dict`.
    """
    content = _read(locate(source))
    for _ in range(_DEEPEST):
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


def _read(path: Path) -> Any:
    """The content of a weight file, whatever it is, on the CPU."""
    if not path.exists():
        raise WeightsError(f"{path}: no such weight file.")
    if path.is_dir():
        raise WeightsError(f"{path}: a folder, not a weight file.")
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise WeightsError(f"{path}: the file is empty (0 bytes).")
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    if head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        return _read_torch(path)
    raise WeightsError(f"{path}: not a weight file: neither PyTorch nor safetensors (it begins with {head!r}).")


def _read_safetensors(path: Path) -> StateDict:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: damaged or incomplete safetensors file ({error}).") from error


def _read_torch(path: Path) -> Any:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.is_zipfile(path):
            _verify_checksums(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path}: {_reason(error, path)}") from error
    return content


def _verify_checksums(path: Path) -> None:
    """PyTorch does not look at the checksums in its own files: a damaged weight would load as another weight."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.external_attr & _DOS_DIRECTORY:  # torch would take it for empty, and its tensor stay as it was
                raise zipfile.BadZipFile(f"{member.filename} is marked as a folder")
            if member.CRC:  # 0 where the writer was told to leave them out
                archive.read(member)


def _has_whole_pickles(path: Path) -> bool:
    """Whether the pickles of a file (PyTorch's old form has four: magic, version, system, content) end as they should.

    Cut within the name of an allowed class, one would look as if it held a class that is not allowed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            for _ in range(4):
                if file.tell() < size:
                    list(pickletools.genops(file))
        except ValueError:
            return False
    return True


def _reason(error: Exception, path: Path) -> str:
    """One sentence on why ``torch.load`` refused a file."""
    text = str(error)
    code = re.search(r"GLOBAL `?([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and code and (zipfile.is_zipfile(path) or _has_whole_pickles(path)):
        return (
            f"holds a pickled Python object ({code[1]}) and not only weights; it is refused, since loading it would "
            "run code. Ask for a plain state dict or a .safetensors file."
        )
    if "TorchScript" in text:
        return "a TorchScript archive, not a state dict."
    return f"damaged or incomplete PyTorch file ({first_line(error)})."


def _unwrap(content: Any, path: Path, param_key: str | None) -> Mapping[Any, Any]:
    """The innermost dictionary of what a file holds."""
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: holds {type(content).__name__} {content!r:.60}, not weights.")
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


def _tensors(content: Mapping[Any, Any], path: Path) -> StateDict:
    """The state dict without the numbers (an epoch, say) that some keep beside its tensors."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    others = {name: value for name, value in content.items() if name not in tensors}
    strangers = [name for name, value in others.items() if not (tensors and isinstance(value, (int, float)))]
    if strangers or not tensors:
        keys = ", ".join(repr(name) for name in strangers[:4])
        raise WeightsError(f"{path}: not weights: {keys or 'nothing'} where tensors were expected.")
    return tensors


def _check_values(state_dict: StateDict, path: Path) -> None:
    """Weights are dense, floating point (but for indices and counters beside them) and numbers."""
    for name, tensor in state_dict.items():
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise WeightsError(
                f"{path}: {name} is a sparse tensor or one without values; only dense ones can be loaded."
            )
    floating = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
    if not floating:
        name, tensor = next(iter(state_dict.items()))
        raise WeightsError(f"{path}: {name} is {tensor.dtype}; weights are floating point.")
    for name, tensor in floating.items():
        # The sum takes a seventh of the time; that of large values may overflow.
        if not tensor.float().sum().isfinite() and not tensor.isfinite().all():
            raise WeightsError(f"{path}: {name} holds values that are not finite numbers (NaN or Inf).")


def _without_prefixes(state_dict: StateDict) -> StateDict:
    """Take off every prefix that all names have, and the counter that torch's ``AveragedModel`` puts beside them."""
    if len(state_dict) > 1:
        state_dict = {name: tensor for name, tensor in state_dict.items() if name != "n_averaged"}
    while any(all(name.startswith(prefix) for name in state_dict) for prefix in _PREFIXES):
        state_dict = {name.partition(".")[2]: tensor for name, tensor in state_dict.items()}
    return state_dict
