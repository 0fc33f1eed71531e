"""Training patches from decoded pixels: slices of a memory map, or one gather from the memory of a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from safmn.data.keys import Batch, Patch, Sample, SampleKey, draw_patch, sample_rng
from safmn.data.options import CropOptions, read_options
from safmn.data.store_format import CheckSource, StoreFile
from safmn.errors import DataError, OptionError
from safmn.names import image_name
from safmn.registry import DATASET_REGISTRY

_UPLOAD_BYTES = 1 << 28  # how much is copied to the device at a time


class StoreOptions(CropOptions, frozen=True, kw_only=True):
    """Keys of :class:`PatchStore`."""

    dataroot: str  # the file that safmn prepare store made
    device: Literal["cpu", "cuda"] = "cpu"  # "cuda": all pixels are kept in the GPU's memory
    check_source: CheckSource = "always"  # refuse the store when its source images changed


_Address: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True)
class Plan:
    """Where the pixels of a batch of patches are, as addresses into the store's bytes.

    Pixel (c, y, x) of patch b is at ``origin + c * plane + y * down + x * across``, with these four the b-th row of
    ``gt`` or ``lq``: int64, (B, 4). Flips are negative steps; a transposition swaps the last two.
    """

    keys: list[SampleKey]
    paths: list[str]
    gt: np.ndarray
    lq: np.ndarray


def _address(offset: int, height: int, width: int, patch: Patch, side: int, factor: int) -> _Address:
    top, left = patch.top * factor, patch.left * factor
    row, column = width, 1
    if patch.vflip:
        top, row = top + side - 1, -row
    if patch.hflip:
        left, column = left + side - 1, -column
    down, across = (column, row) if patch.rot90 else (row, column)
    return offset + top * width + left, height * width, down, across


def gather(pixels: Tensor, addresses: Tensor, side: int) -> Tensor:
    """Patches as one gather, on the device of ``pixels``.

    Args:
        pixels: uint8, (bytes,).
        addresses: int64, (B, 4), as in :class:`Plan`, on the same device.

    Returns:
        float32 (B, 3, side, side) in [0, 1].
    """
    if pixels.is_cuda and importlib.util.find_spec("triton"):
        from safmn.data import gpu_gather  # Triton comes with torch for CUDA alone

        return gpu_gather.gather(pixels, addresses, side)
    origin, plane, down, across = (column.view(-1, 1, 1, 1) for column in addresses.unbind(1))
    steps = torch.arange(side, device=pixels.device)
    channel = torch.arange(3, device=pixels.device).view(1, 3, 1, 1)
    index = origin + channel * plane + steps.view(1, 1, -1, 1) * down + steps.view(1, 1, 1, -1) * across
    # A divisor on the device (made there: a copy would wait for the GPU): by a number, CUDA multiplies with its
    # reciprocal, which gives another float.
    return pixels[index].to(torch.float32).div_(torch.full((), 255.0, device=pixels.device))


def slice_patches(pixels: np.ndarray, addresses: np.ndarray, side: int) -> Tensor:
    """The same patches, cut one by one from a memory map; arguments and result as :func:`gather`."""
    result = torch.empty(len(addresses), 3, side, side)
    cut, source = np.empty((3, side, side), np.uint8), pixels.data
    # Computed by numpy: this runs in a thread beside the training step and must not use torch's pool of threads.
    for patch, (origin, *steps) in zip(result.numpy(), addresses.tolist(), strict=True):
        cut[...] = np.ndarray(cut.shape, np.uint8, source, origin, steps)
        patch[...] = cut
        patch /= np.float32(255)
    return result


@DATASET_REGISTRY.register()
class PatchStore(torch.utils.data.Dataset[Sample]):
    """The images of a patch store, as the same data set on disk would give them, bit for bit.

    Args:
        opt: the data set's section of the option file, with ``phase`` and ``scale``.

    Raises:
        OptionError: a key is missing or wrong; the store has another scale.
        DataError: the store is missing, damaged or no longer what its source images are; an image is smaller than the
            crop; the GPU's memory is too small for it.
    """

    OPTIONS: ClassVar[type[StoreOptions]] = StoreOptions

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: StoreOptions = read_options(self.OPTIONS, opt)
        self.store = StoreFile(self.options.dataroot)
        self.images = self.store.index.images
        self.scale = self.store.index.source.scale
        self._device_pixels: Tensor | None = None
        if self.store.index.source.gt_alone:
            raise OptionError(
                f"data set {self.options.name!r}: the patch store {self.store.path} holds GT images alone; degrade "
                "them with type: RealESRGANDataset and io_backend: {type: store}, or make the store with --scale"
            )
        if self.scale != self.options.scale:
            raise OptionError(
                f"data set {self.options.name!r}: the patch store {self.store.path} is for scale {self.scale}, the "
                f"option file says {self.options.scale}"
            )
        self.store.check_sources(self.options.check_source, self.options.name)
        if self.options.phase == "train":
            self.lq_patch = self.options.lq_patch
            self._check_crops()

    def _check_crops(self) -> None:
        small = [image for image in self.images if min(image.lq_height, image.lq_width) < self.lq_patch]
        if small:
            raise DataError(
                f"{len(small)} images of the patch store {self.store.path} are smaller than the crop of gt_size "
                f"{self.options.gt_size}: {small[0].hr.name} is {small[0].lq_width * self.scale}x"
                f"{small[0].lq_height * self.scale}. Lower gt_size, or make the store without them."
            )

    def __len__(self) -> int:
        return len(self.images)

    def image_names(self) -> list[str]:
        """The GT images' names, without folder and ending, in the order of their indices."""
        return [image_name(image.hr.name) for image in self.images]

    @property
    def on_device(self) -> bool:
        """Whether batches are made on the GPU: planned by any thread, gathered by the one that trains."""
        return self.options.device != "cpu"

    def plan(self, keys: Sequence[SampleKey], seed: int) -> Plan:
        """Draw crops and turns of a batch; cheap, and the same for every way to read the pixels."""
        places = [self._place(key.index % len(self.images), sample_rng(seed, key)) for key in keys]
        gt, lq = (np.array([place[side] for place in places], np.int64) for side in (0, 1))
        return Plan(list(keys), [self._path(key.index % len(self.images)) for key in keys], gt, lq)

    def _place(self, index: int, rng: np.random.Generator) -> tuple[_Address, _Address]:
        image, options, side, scale = self.images[index], self.options, self.lq_patch, self.scale
        height, width = image.lq_height, image.lq_width
        patch = draw_patch(rng, height, width, side, options.use_hflip, options.use_rot)
        return (
            _address(image.offset, height * scale, width * scale, patch, side * scale, scale),
            _address(image.lq_offset(scale), height, width, patch, side, 1),
        )

    def gather(self, plan: Plan) -> Batch:
        """The batch of a plan: ``lq`` (B, 3, p, p), ``gt`` (B, 3, gt_size, gt_size), float32 in [0, 1]; paths; keys."""
        side = self.lq_patch
        if self.on_device:
            pixels = self._uploaded()
            gt_at, lq_at = (_to_device(addresses, pixels.device) for addresses in (plan.gt, plan.lq))
            gt, lq = gather(pixels, gt_at, side * self.scale), gather(pixels, lq_at, side)
        else:
            gt = slice_patches(self.store.pixels, plan.gt, side * self.scale)
            lq = slice_patches(self.store.pixels, plan.lq, side)
        return {"lq": lq, "gt": gt, "lq_path": plan.paths, "gt_path": list(plan.paths), "keys": plan.keys}

    def batch(self, keys: Sequence[SampleKey], seed: int) -> Batch:
        """The training batch of ``keys``; see :meth:`gather`."""
        return self.gather(self.plan(keys, seed))

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """A training sample of image ``index``, on the CPU; every draw comes from ``rng``."""
        gt, lq = (np.array([address], np.int64) for address in self._place(index, rng))
        path, side, pixels = self._path(index), self.lq_patch, self.store.pixels
        return {
            "lq": slice_patches(pixels, lq, side)[0],
            "gt": slice_patches(pixels, gt, side * self.scale)[0],
            "lq_path": path,
            "gt_path": path,
        }

    def __getitem__(self, index: int) -> Sample:
        """The whole pair: ``lq`` (3, h, w) and ``gt`` (3, scale*h, scale*w), float32 in [0, 1]; paths."""
        lq, gt = (torch.from_numpy(image / np.float32(255)) for image in (self.store.lq(index), self.store.gt(index)))
        path = self._path(index)
        return {"lq": lq, "gt": gt, "lq_path": path, "gt_path": path}

    def _path(self, index: int) -> str:
        return f"{self.store.path}/{self.images[index].hr.name}"

    def _uploaded(self) -> Tensor:
        """The store's bytes in the memory of the current device of ``options.device``; copied on the first call."""
        if self._device_pixels is None:
            self._device_pixels = _upload(self.store, torch.device(self.options.device))
        return self._device_pixels


def _to_device(addresses: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(addresses)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _upload(store: StoreFile, device: torch.device) -> Tensor:
    pixels = store.pixels
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DataError("device: cuda of a PatchStore needs a CUDA device, and there is none. Set device: cpu.")
        free, _ = torch.cuda.mem_get_info()
        if len(pixels) > free:
            raise DataError(
                f"the patch store {store.path} has {len(pixels) / 2**30:.1f} GiB and the GPU {free / 2**30:.1f} GiB "
                "free. Set device: cpu."
            )
    uploaded = torch.empty(len(pixels), dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), _UPLOAD_BYTES):
        uploaded[start : start + _UPLOAD_BYTES] = torch.from_numpy(pixels[start : start + _UPLOAD_BYTES].copy())
    return uploaded
