"""Keep other packages from downloading weights silently: say which file is missing and where it belongs."""

from __future__ import annotations

import contextlib
import importlib
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch

from safmn.errors import OptionError

_TARGETS = ("download_target", "cached_file", "dst")  # names that the packages give to the path of a download
_NAMED = (  # functions that modules imported by name: module, function, and what it downloads
    ("pyiqa.utils.download_util", "download_url_to_file", "file"),
    ("timm.models._hub", "hf_hub_download", "hub"),
)
_ALLOW = "allow the download (fetch: true in an option file, --fetch of safmn compare and safmn score)"


class DownloadRefused(OptionError):
    """A package wanted to download weights. The message says which file belongs where."""


@contextlib.contextmanager
def only_local_files(what: str) -> Iterator[None]:
    """Raise DownloadRefused where code in the block would download a file with torch, urllib or huggingface_hub.

    Args:
        what: who needs the file, for the message: ``metric lpips``.
    """

    def refuse(url: Any, dst: Any = None, *_: Any, **__: Any) -> NoReturn:
        address = url if isinstance(url, str) else getattr(url, "full_url", str(url))
        inside = sys._getframe(1).f_locals  # of the function that downloads: it knows the place
        place = dst or next((inside[name] for name in _TARGETS if name in inside), None)
        where = f"put it at {place}" if place else "put it into the package's cache folder"
        raise DownloadRefused(f"{what}: the file {address} is not on this machine: {where}, or {_ALLOW}")

    def from_hub(*args: Any, **given: Any) -> str:
        names = dict(zip(("repo_id", "filename"), args, strict=False)) | given
        hub = importlib.import_module("huggingface_hub")
        found = hub.try_to_load_from_cache(names["repo_id"], names["filename"], revision=names.get("revision"))
        if isinstance(found, str):
            return found
        folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{names['repo_id'].replace('/', '--')}"
        raise DownloadRefused(
            f"{what}: the file {names['filename']} of {names['repo_id']} (huggingface.co) is not on this machine: copy "
            f"the folder {folder} from a machine that has it, or {_ALLOW}"
        )

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.hub, "download_url_to_file", refuse))
        stack.enter_context(mock.patch.object(urllib.request, "urlopen", refuse))
        for module, name, replacement in _NAMED:
            with contextlib.suppress(ImportError):  # imported before the patch, or it would keep the patched function
                owner = importlib.import_module(module)
                stack.enter_context(mock.patch.object(owner, name, refuse if replacement == "file" else from_hub))
        yield
