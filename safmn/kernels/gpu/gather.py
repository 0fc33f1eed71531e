"""Cutting, turning and converting the patches of a batch on a GPU, in one Triton kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024  # pixels of a plane for each program


@triton.jit
def _gather(pixels, addresses, patches, side, tile: tl.constexpr):
    """A part of one channel of one patch; grid: (patches * 3, parts)."""
    plane_number = tl.program_id(0)
    number = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = number < side * side
    row, column = (number // side).to(tl.int64), (number % side).to(tl.int64)
    address = addresses + plane_number // 3 * 4
    origin = tl.load(address) + plane_number % 3 * tl.load(address + 1)
    index = origin + row * tl.load(address + 2) + column * tl.load(address + 3)
    value = tl.load(pixels + index, mask=inside, other=0).to(tl.float32)
    place = patches + plane_number.to(tl.int64) * side * side + number
    tl.store(place, tl.div_rn(value, 255.0), mask=inside)  # rounded as the CPU rounds; / would be within 2 ulp


def gather(pixels: Tensor, addresses: Tensor, side: int) -> Tensor:
    """As :func:`safmn.data.patch_store.gather`, bit for bit."""
    patches = torch.empty(len(addresses), 3, side, side, dtype=torch.float32, device=pixels.device)
    grid = (len(addresses) * 3, triton.cdiv(side * side, _TILE))
    _gather[grid](pixels, addresses, patches, side, tile=_TILE)
    return patches
