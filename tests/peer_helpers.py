"""What the tests of the networks of others share: the golden data, small networks, weight files with known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import SHARED
from torch import Tensor, nn

from safmn.archs.peers import PEERS
from safmn.registry import ARCH_REGISTRY, build

GOLDEN = SHARED / "golden_peers"
WEIGHTS = SHARED / "weights_peers"

# Names that the golden data has for networks registered under another name: BasicSR has an ECBSR of its own.
_REGISTERED = {"ECBSR": "ECBSR_Y", "ECBSR_BASICSR": "ECBSR", "HiT_SR": "HiT_SIR"}


def registered(entry: dict[str, Any]) -> str:
    """Return the registered name of a golden entry's network."""
    return _REGISTERED.get(entry["arch"], entry["arch"])


def entries() -> list[dict[str, Any]]:
    """Return the entries of the golden data; without it none, and the tests that use them are skipped."""
    manifest = GOLDEN / "manifest.json"
    return json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else []


def label(entry: dict[str, Any]) -> str:
    """Return the name of an entry for a test."""
    return f"{entry['name']}_x{entry['scale']}" if entry["scale"] else entry["name"]


def arguments(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments of a golden entry."""
    unused = {"net"} if entry["arch"] == "HiT_SR" else set()
    return {name: value for name, value in entry["kwargs"].items() if name not in unused}


def golden_state(entry: dict[str, Any], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a golden entry, drawn as the data's description says.

    Args:
        entry: the entry.
        own: the state dict of the built network, for tensors that it computes itself.
    """
    as_built = tuple(entry.get("as_constructed_suffixes", ()))
    plus_one = tuple(entry.get("plus_one", ("norm1.weight", "norm2.weight")))
    state = {}
    for k, (name, shape) in enumerate(entry["state_dict"].items()):
        if as_built and name.endswith(as_built):
            state[name] = own[name]
            continue
        value = np.random.RandomState(1000 + k).randn(*shape)
        if len(shape) > 1:
            value = value * entry["gain"] / np.sqrt(np.prod(shape[1:]))
        else:
            value = value * 0.1 + name.endswith(plus_one)
        for ending, fixed in entry.get("fixed", {}).items():
            if name.endswith(ending):
                value = np.broadcast_to(np.array(fixed), shape)
        state[name] = torch.from_numpy(np.array(value, dtype=np.float32))
    return state


def small(name: str, **changes: Any) -> nn.Module:
    """Return a small network with weights so large that no signal vanishes between layers, in evaluation mode."""
    torch.manual_seed(0)
    network: nn.Module = build(ARCH_REGISTRY, {"type": name, **PEERS[name].small, **changes}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.7 / max(1, parameter[0].numel()) ** 0.5)
    return network


def published(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the table in the README of the weights: file, scale, PSNR and SSIM on Set5 and Set14."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) > 6:
            five, fourteen = (tuple(float(value) for value in cell.split("/")) for cell in cells[5:7])
            rows.append({"file": cells[0].strip("`"), "scale": int(cells[3]), "Set5": five, "Set14": fourteen})
    return rows
