"""Training patches from decoded pixels: slices of a memory map, or one gather from GPU memory."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safmn.data.batch_draws import DRAWS, first_draws
from safmn.data.options import CropOptions, read_options
from safmn.data.patch_weights import PatchWeights
from safmn.data.sample_keys import Batch, Patches, Sample, SampleKey, patches_of
from safmn.data.store_format import CheckSource, StoredImage, StoreFile
from safmn.errors import DataError, OptionError, first_line
from safmn.imaging.file_names import image_name
from safmn.registry import DATASET_REGISTRY

logger = logging.getLogger(__name__)

_UPLOAD_BYTES = 1 << 28  # copied to the device at a time


class StoreOptions(CropOptions, frozen=True, kw_only=True):
    """Keys of :class:`PatchStore`.

    Attributes:
        dataroot: A file made with ``safmn prepare store``.
        device: Where patches are cut. ``cuda`` keeps all pixels in GPU memory.
        check_source: When to compare the store with its source images and refuse it if they changed: ``always``,
            ``if_present`` (only if their folders exist) or ``never``.
        patch_weights: A file that says where patches are drawn more often, made by ``scripts/zoo/hardness.py``. The
            weights then choose the images, too. null: each image in turn, and each place in it alike.
    """

    dataroot: str
    device: Literal["cpu", "cuda"] = "cpu"
    check_source: CheckSource = "always"
    patch_weights: str | None = None


@dataclass(frozen=True)
class PatchPlan:
    """The addresses of the pixels of a batch of patches, as offsets into the bytes of the store.

    Row b of ``gt`` or ``lq`` (int64, (B, 4)) holds origin, plane, down and across: pixel (c, y, x) of patch b is at
    ``origin + c * plane + y * down + x * across``. Flips are negative steps; a transposition swaps down and across.
    """

    keys: list[SampleKey]
    paths: list[str]
    gt: np.ndarray
    lq: np.ndarray


class _Planes(NamedTuple):
    """Offsets and sizes of the images in the store: int64, (images,) each."""

    offset: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]

    @classmethod
    def of(cls, images: Sequence[StoredImage], offsets: Sequence[int], factor: int) -> _Planes:
        """Return the planes of images that begin at ``offsets`` and are ``factor`` times as large as the LQ images."""
        sizes = [(image.lq_height * factor, image.lq_width * factor) for image in images]
        height, width = np.array(sizes, np.int64).reshape(-1, 2).T
        return cls(np.array(offsets, np.int64), height, width)

    def addresses(self, images: NDArray[np.int64], patches: Patches, side: int, factor: int) -> NDArray[np.int64]:
        """Return rows of :class:`PatchPlan` for one patch of each image, at ``factor`` times the patch's position."""
        offset, height, width = (values[images] for values in self)
        top = patches.top * factor + np.where(patches.vflip, side - 1, 0)
        left = patches.left * factor + np.where(patches.hflip, side - 1, 0)
        row, column = np.where(patches.vflip, -width, width), np.where(patches.hflip, -1, 1)
        down, across = np.where(patches.rot90, column, row), np.where(patches.rot90, row, column)
        return np.stack([offset + top * width + left, height * width, down, across], axis=1)


def gather(pixels: Tensor, addresses: Tensor, side: int) -> Tensor:
    """Cut a batch of patches with one gather, on the device of ``pixels``.

    Args:
        pixels: uint8, (bytes,).
        addresses: int64, (B, 4), as in :class:`PatchPlan`, on the same device.
        side: side of the patches in pixels.

    Returns:
        float32 (B, 3, side, side) in [0, 1].
    """
    kernel = _gather_kernel(pixels.device) if pixels.is_cuda else None
    return kernel(pixels, addresses, side) if kernel else _gather_by_torch(pixels, addresses, side)


@functools.cache
def _gather_kernel(device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor] | None:
    """Return the Triton kernel that gathers patches, or None without Triton; None with a warning if it fails a test."""
    if importlib.util.find_spec("triton") is None:
        return None
    pixels = torch.arange(256, device=device).to(torch.uint8)
    addresses = torch.tensor([[0, 64, 8, 1], [63, 64, -1, -8]], device=device)
    try:
        from safmn.kernels.gpu import gather as gpu_gather

        if torch.equal(gpu_gather.gather(pixels, addresses, 8), _gather_by_torch(pixels, addresses, 8)):
            return gpu_gather.gather
        reason = "it returns wrong pixels"
    except Exception as error:  # compilers and drivers raise many types
        reason = f"{type(error).__name__}: {first_line(error)}"
    logger.warning("patches are cut by torch, which is slower: our kernel cannot run on this machine: %s", reason)
    return None


def _gather_by_torch(pixels: Tensor, addresses: Tensor, side: int) -> Tensor:
    origin, plane, down, across = (column.view(-1, 1, 1, 1) for column in addresses.unbind(1))
    steps = torch.arange(side, device=pixels.device)
    channel = torch.arange(3, device=pixels.device).view(1, 3, 1, 1)
    index = origin + channel * plane + steps.view(1, 1, -1, 1) * down + steps.view(1, 1, 1, -1) * across
    # The divisor is a tensor because CUDA multiplies by the reciprocal of a Python number, which rounds differently. It
    # is created on the device because a copy would wait for the GPU.
    return pixels[index].to(torch.float32).div_(torch.full((), 255.0, device=pixels.device))


def slice_patches(pixels: np.ndarray, addresses: np.ndarray, side: int) -> Tensor:
    """Cut the patches one by one from a memory map; arguments and result are those of :func:`gather`."""
    result = torch.empty(len(addresses), 3, side, side, dtype=torch.float32)
    cut, source = np.empty((3, side, side), np.uint8), pixels.data
    # Use numpy: this runs in a thread beside the training step and must not occupy torch's thread pool.
    for patch, (origin, *steps) in zip(result.numpy(), addresses.tolist(), strict=True):
        cut[...] = np.ndarray(cut.shape, np.uint8, source, origin, steps)
        patch[...] = cut
        patch /= np.float32(255)
    return result


@DATASET_REGISTRY.register()
class PatchStore(torch.utils.data.Dataset[Sample]):
    """The image pairs of a patch store. Samples are bit-identical to those of the same images in folders.

    Args:
        opt: the data set's section of the option file, with ``phase`` and ``scale``.

    Raises:
        OptionError: a key is missing or wrong; the store has a different scale or holds GT images only.
        DataError: the store is missing, damaged or out of date, or an image is smaller than the crop (raised here);
            there is no GPU or its memory is too small (raised at the first batch).
    """

    OPTIONS: ClassVar[type[StoreOptions]] = StoreOptions

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: StoreOptions = read_options(self.OPTIONS, opt)
        self.store = StoreFile(self.options.dataroot)
        self.images = self.store.index.images
        self.scale = self.store.index.source.scale
        self._device_pixels: dict[str, Tensor] = {}  # shared by copies with other patches
        self._gt = _Planes.of(self.images, [image.offset for image in self.images], self.scale)
        self._lq = _Planes.of(self.images, [image.lq_offset(self.scale) for image in self.images], 1)
        if self.store.index.source.gt_alone:
            raise OptionError(
                f"data set {self.options.name!r}: the patch store {self.store.path} holds GT images only; degrade "
                "them with type: RealESRGANDataset and io_backend: {type: store}, or make the store with --scale"
            )
        if self.scale != self.options.scale:
            raise OptionError(
                f"data set {self.options.name!r}: the patch store {self.store.path} is for scale {self.scale}, but the "
                f"option file sets scale {self.options.scale}"
            )
        self.store.check_sources(self.options.check_source, self.options.name)
        if self.options.phase == "train":
            self.lq_patch = self.options.lq_patch
            self._check_crops()
        self._weights = self._read_weights() if self.options.patch_weights and self.options.phase == "train" else None

    def _read_weights(self) -> PatchWeights:
        weights = PatchWeights.load(str(self.options.patch_weights))
        sizes = np.stack([self._lq.height, self._lq.width], axis=1)
        where = (
            f"data set {self.options.name!r}: the weights {self.options.patch_weights} are not for {self.store.path}"
        )
        weights.check([image.hr.name for image in self.images], sizes, where)
        return weights

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
        """Return the names of the GT images, without folder and ending, in the order of their indices."""
        return [image_name(image.hr.name) for image in self.images]

    @property
    def draws_digest(self) -> str:
        """A checksum of what decides where patches are drawn, beside the names of the images."""
        return self._weights.digest if self._weights is not None else ""

    @property
    def on_device(self) -> bool:
        """Whether batches are made on the GPU: any thread may plan them, the training thread gathers them."""
        return self.options.device != "cpu"

    def plan(self, keys: Sequence[SampleKey], seed: int) -> PatchPlan:
        """Draw the crops and augmentations of a batch. This is cheap and does not depend on the device."""
        images = np.array([key.index for key in keys], np.int64) % len(self.images)
        images, gt, lq = self._places(images, first_draws([(seed, key.epoch, key.index) for key in keys]))
        return PatchPlan(list(keys), [self._path(index) for index in images], gt, lq)

    def _places(
        self, images: NDArray[np.int64], draws: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the images and the addresses of GT and LQ patches; with weights, the draws choose the images, too."""
        options, side = self.options, self.lq_patch
        if self._weights is not None:
            images, draws = self._weights.places(draws)
        height, width = self._lq.height[images], self._lq.width[images]
        patches = patches_of(draws, height, width, side, options.use_hflip, options.use_rot)
        return (
            images,
            self._gt.addresses(images, patches, side * self.scale, self.scale),
            self._lq.addresses(images, patches, side, 1),
        )

    def gather(self, plan: PatchPlan) -> Batch:
        """Return the batch of a plan.

        Returns:
            ``lq`` (B, 3, p, p) and ``gt`` (B, 3, gt_size, gt_size), float32 in [0, 1]; ``lq_path``, ``gt_path``,
            ``keys``.

        Raises:
            DataError: there is no GPU, or its memory is too small for the store.
        """
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
        """Return the training batch of ``keys``; see :meth:`gather`."""
        return self.gather(self.plan(keys, seed))

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a training sample of image ``index``, on the CPU; all draws come from ``rng``."""
        images, gt, lq = self._places(np.array([index]), rng.random((1, DRAWS)))
        path, side, pixels = self._path(int(images[0])), self.lq_patch, self.store.pixels
        return {
            "lq": slice_patches(pixels, lq, side)[0],
            "gt": slice_patches(pixels, gt, side * self.scale)[0],
            "lq_path": path,
            "gt_path": path,
        }

    def __getitem__(self, index: int) -> Sample:
        """Return the whole pair: ``lq`` (3, h, w) and ``gt`` (3, scale*h, scale*w), float32 in [0, 1]; their paths."""
        lq, gt = (torch.from_numpy(image / np.float32(255)) for image in (self.store.lq(index), self.store.gt(index)))
        path = self._path(index)
        return {"lq": lq, "gt": gt, "lq_path": path, "gt_path": path}

    def _path(self, index: int) -> str:
        return f"{self.store.path}/{self.images[index].hr.name}"

    def _uploaded(self) -> Tensor:
        """Return the bytes of the store in the memory of ``options.device``; the first call copies them there."""
        device = self.options.device
        if device not in self._device_pixels:
            self._device_pixels[device] = _upload(self.store, torch.device(device))
        return self._device_pixels[device]


def _to_device(addresses: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(addresses)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _upload(store: StoreFile, device: torch.device) -> Tensor:
    pixels = store.pixels
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DataError("device: cuda of a PatchStore needs a CUDA device, but there is none. Set device: cpu.")
        free, _ = torch.cuda.mem_get_info()
        if len(pixels) > free:
            raise DataError(
                f"the patch store {store.path} has {len(pixels) / 2**30:.1f} GiB, but the GPU has only "
                f"{free / 2**30:.1f} GiB free. Set device: cpu."
            )
    uploaded = torch.empty(len(pixels), dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), _UPLOAD_BYTES):
        uploaded[start : start + _UPLOAD_BYTES] = torch.from_numpy(pixels[start : start + _UPLOAD_BYTES].copy())
    return uploaded
