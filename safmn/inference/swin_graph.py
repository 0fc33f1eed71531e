"""BasicSR's Swin transformer block in a form that a traced graph computes for every size and number of images.

BasicSR's code (``basicsr.archs.swinir_arch``) computes the number of images and the mask of shifted windows in Python.
A trace turns them into constants of the traced image. With several images, such a graph mixes them; graph compilers
refuse it for images of another number of windows. :class:`GraphSwinBlock` computes both inside the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_MASKED = -100.0  # added to the attention between pixels that are no neighbours before the shift; as in BasicSR


def is_swin_block(module: nn.Module) -> bool:
    """Return whether a module is BasicSR's block, or a copy of it under the same names, as in users' files."""
    attention = getattr(module, "attn", None)
    return (
        type(module).__name__ == "SwinTransformerBlock"
        and all(hasattr(module, name) for name in ("window_size", "shift_size", "norm1", "norm2", "mlp", "drop_path"))
        and all(hasattr(attention, name) for name in ("qkv", "proj", "num_heads", "scale", "relative_position_index"))
        and hasattr(module, "calculate_mask")
        and isinstance(module.window_size, int)
    )


class GraphSwinBlock(nn.Module):
    """A Swin transformer block (Liu et al., ICCV 2021) for graphs.

    Args:
        block: BasicSR's ``SwinTransformerBlock``, in evaluation mode; its layers are used, not copied.
    """

    position_bias: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.side, self.shift = int(block.window_size), int(block.shift_size)
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        attention = block.attn
        self.heads, self.scale = int(attention.num_heads), float(attention.scale)
        self.qkv, self.proj = attention.qkv, attention.proj
        pixels = self.side**2
        bias = attention.relative_position_bias_table[attention.relative_position_index.view(-1)]
        bias = bias.detach().reshape(pixels, pixels, self.heads).permute(2, 0, 1)
        self.register_buffer("position_bias", bias.contiguous())  # (heads, pixels, pixels)

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """Map (B, h * w, C) to the same shape; ``x_size`` is (h, w), both multiples of the window."""
        height, width = x_size
        rows, columns, dim = height // self.side, width // self.side, x.shape[2]
        image = self.norm1(x).reshape(-1, height, width, dim)
        if self.shift:
            image = torch.roll(image, (-self.shift, -self.shift), (1, 2))
        windows = image.reshape(-1, rows, self.side, columns, self.side, dim).permute(0, 1, 3, 2, 4, 5)
        mixed = self._attention(windows.reshape(-1, self.side**2, dim), height, width)  # (B * windows, pixels, C)
        windows = mixed.reshape(-1, rows, columns, self.side, self.side, dim).permute(0, 1, 3, 2, 4, 5)
        image = windows.reshape(-1, height, width, dim)
        if self.shift:
            image = torch.roll(image, (self.shift, self.shift), (1, 2))
        x = x + image.reshape(-1, height * width, dim)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def _attention(self, x: Tensor, height: int, width: int) -> Tensor:
        """Mix the pixels of each window: (B * windows, pixels, C) to the same shape."""
        pixels, dim = self.side**2, x.shape[2]
        query, key, value = (
            self.qkv(x).reshape(-1, pixels, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )  # (B * windows, heads, pixels, C / heads) each
        weights = (query * self.scale) @ key.transpose(-2, -1) + self.position_bias
        if self.shift:
            mask = self._mask(height, width, x)  # (windows, pixels, pixels)
            windows = height // self.side * (width // self.side)
            weights = weights.reshape(-1, windows, self.heads, pixels, pixels) + mask[:, None]
            weights = weights.reshape(-1, self.heads, pixels, pixels)
        mixed = (weights.softmax(-1) @ value).transpose(1, 2).reshape(-1, pixels, dim)
        y: Tensor = self.proj(mixed)
        return y

    def _mask(self, height: int, width: int, like: Tensor) -> Tensor:
        """Return what is added to the attention in each window: (windows, pixels, pixels), 0 or -100."""
        rows, columns = self._parts(height, like), self._parts(width, like)
        parts = rows[:, None] * 3 + columns[None]  # (h, w): nine parts, of which only pixels of the same one mix
        split = parts.reshape(height // self.side, self.side, width // self.side, self.side).permute(0, 2, 1, 3)
        flat = split.reshape(-1, self.side**2)
        return (flat[:, None] - flat[:, :, None]).ne(0).to(like.dtype) * _MASKED

    def _parts(self, length: int, like: Tensor) -> Tensor:
        """Return the part of each row or column: 0, 1 within the last window, 2 where the shift brought the others."""
        place = torch.arange(length, device=like.device)
        return (place >= length - self.side).to(like.dtype) + (place >= length - self.shift).to(like.dtype)
