"""Augmentations of training pairs: Yoo, Ahn and Sohn, "Rethinking Data Augmentation for Image Super-resolution:
A Comprehensive Analysis and a New Strategy" (CutBlur), CVPR 2020, table 1.

Each augmentation changes the LQ patch and its GT patch in the same way. All draws come from a generator that belongs to
the sample, (seed, epoch, index), and so does the second sample that MixUp and CutMix need.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from safmn.data.sample_keys import Batch, SampleKey
from safmn.errors import OptionError, did_you_mean
from safmn.imaging import imresize
from safmn.value_types import PositiveFloat

_STREAM = 0xA06  # separates these draws from those of the crops
_GT_KEYS = ("gt", "gt_usm")
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Images: TypeAlias = dict[str, Tensor]
"""The images of one sample by their keys: ``lq`` (C, h, w), ``gt`` and maybe ``gt_usm`` (C, s*h, s*w), in [0, 1]."""


class Augmentation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys that all augmentations share.

    Attributes:
        type: name of the augmentation.
        prob: probability with which a sample is augmented; in ``OneOf``, the relative weight.
    """

    type: str
    prob: Share = 1.0

    mixes = False
    """Whether a second sample is needed."""

    def apply(self, images: Images, other: Images | None, rng: np.random.Generator) -> Images:
        """Return the augmented images; ``other`` is the second sample, if :attr:`mixes`."""
        raise NotImplementedError


class Blend(Augmentation, frozen=True, kw_only=True):
    """Blend with one random colour, whose share is drawn between 0 and 1 - ``alpha``."""

    alpha: Share = 0.6

    def apply(self, images: Images, other: Images | None, rng: np.random.Generator) -> Images:
        keep = rng.uniform(self.alpha, 1)
        colour = torch.from_numpy(rng.random((images["gt"].shape[0], 1, 1), np.float32))
        return {name: keep * image + (1 - keep) * colour for name, image in images.items()}


class RGBPermutation(Augmentation, frozen=True, kw_only=True):
    """Exchange the colour channels at random."""

    def apply(self, images: Images, other: Images | None, rng: np.random.Generator) -> Images:
        order = rng.permutation(images["gt"].shape[0]).tolist()
        return {name: image[order] for name, image in images.items()}


class Cutout(Augmentation, frozen=True, kw_only=True):
    """Set a share ``alpha`` of the LQ pixels to zero, at random places; the GT stays."""

    alpha: Share = 0.001

    def apply(self, images: Images, other: Images | None, rng: np.random.Generator) -> Images:
        lq = images["lq"]
        kept = torch.from_numpy(rng.random(lq.shape[-2:]) >= self.alpha)
        return {**images, "lq": lq * kept}


class MixUp(Augmentation, frozen=True, kw_only=True):
    """Mix two samples with a share drawn from Beta(``alpha``, ``alpha``) (Zhang et al., "mixup", ICLR 2018)."""

    alpha: PositiveFloat = 1.2
    mixes = True

    def apply(self, images: Images, other: Images | None, rng: np.random.Generator) -> Images:
        assert other is not None
        share = float(rng.beta(self.alpha, self.alpha))
        return {name: share * image + (1 - share) * other[name] for name, image in images.items()}


class CutMix(Augmentation, frozen=True, kw_only=True):
    """Paste a rectangle of another sample, whose sides are about ``alpha`` of a patch (Yun et al., ICCV 2019)."""

    alpha: Share = 0.7
    mixes = True

    def apply(self, images: Images, other: Images | None, rng: np.random.Generator) -> Images:
        assert other is not None
        target, source, size = _boxes(images["lq"], self.alpha, rng)
        return _pasted(images, other, target, source, size)


class CutMixUp(Augmentation, frozen=True, kw_only=True):
    """Mix a rectangle of another sample in, or all but the rectangle: CutMix and MixUp together."""

    alpha: Share = 0.7
    beta: PositiveFloat = 1.2
    mixes = True

    def apply(self, images: Images, other: Images | None, rng: np.random.Generator) -> Images:
        assert other is not None
        mixed = MixUp(type="MixUp", alpha=self.beta).apply(images, other, rng)
        target, _, size = _boxes(images["lq"], self.alpha, rng)
        if rng.random() < 0.5:
            return _pasted(images, mixed, target, target, size)
        return _pasted(mixed, images, target, target, size)


class CutBlur(Augmentation, frozen=True, kw_only=True):
    """Replace a rectangle of the LQ patch, or all but the rectangle, by the reduced GT.

    The network learns where and how much to restore. At scale 1 the GT itself is pasted, as in the paper. For
    super-resolution, the paper enlarges the LQ patch before the network. Here the LQ patch stays small, and the GT is
    reduced by MATLAB-exact bicubic; that changes nothing for LQ images that are nothing but bicubic reductions.
    """

    alpha: Share = 0.7

    def apply(self, images: Images, other: Images | None, rng: np.random.Generator) -> Images:
        lq, gt = images["lq"], images["gt"]
        scale = gt.shape[-1] // lq.shape[-1]
        clean = gt if scale == 1 else _reduced(gt, scale)
        target, _, size = _boxes(lq, self.alpha, rng)
        outside, inside = (lq, clean) if rng.random() < 0.5 else (clean, lq)
        return {**images, "lq": _pasted({"lq": outside}, {"lq": inside}, target, target, size)["lq"]}


class OneOf(Augmentation, frozen=True, kw_only=True):
    """Apply one of several augmentations, drawn by their weights ``prob`` (the paper's mixture of augmentations)."""

    of: Annotated[list[dict[str, Any]], Meta(min_length=1)]


_KINDS: dict[str, type[Augmentation]] = {
    kind.__name__: kind for kind in (Blend, RGBPermutation, Cutout, MixUp, CutMix, CutMixUp, CutBlur, OneOf)
}
Name: TypeAlias = Literal["Blend", "RGBPermutation", "Cutout", "MixUp", "CutMix", "CutMixUp", "CutBlur", "OneOf"]


def parse(sections: Sequence[Mapping[str, Any]]) -> list[Augmentation]:
    """Return the augmentations that the key ``augmentations`` of a training set describes.

    Raises:
        OptionError: an entry has no or an unknown type, or a wrong key or value. The message names the entry.
    """
    return [_parse_one(section, f"augmentations[{index}]") for index, section in enumerate(sections)]


def _parse_one(section: Any, where: str) -> Augmentation:
    kind = section.get("type") if isinstance(section, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise OptionError(
            f"{where}: {kind!r} is no augmentation.{did_you_mean(str(kind), _KINDS)} Known: {', '.join(_KINDS)}"
        )
    try:
        found: Augmentation = msgspec.convert(dict(section), _KINDS[kind])
    except msgspec.ValidationError as error:
        raise OptionError(f"{where}: {kind}: {error}") from error
    if isinstance(found, OneOf):
        inner = [_parse_one(each, f"{where}.of[{index}]") for index, each in enumerate(found.of)]
        if not sum(each.prob for each in inner):
            raise OptionError(f"{where}.of: the weights prob are all 0")
    return found


class Augmenter:
    """Augments whole batches.

    Args:
        sections: the value of ``augmentations``.

    Raises:
        OptionError: see :func:`parse`.
    """

    def __init__(self, sections: Sequence[Mapping[str, Any]]) -> None:
        self.augmentations = parse(sections)

    def __call__(
        self, batch: Batch, keys: Sequence[SampleKey], seed: int, length: int, load: Callable[[list[SampleKey]], Batch]
    ) -> Batch:
        """Return the batch with augmented images.

        Args:
            keys: the keys of the batch's samples.
            seed: the run's seed.
            length: number of images of the data set.
            load: loads a batch without augmentations.
        """
        plans = [(rng, self._chosen(rng)) for rng in (_rng(seed, key) for key in keys)]
        partners = {
            number: SampleKey(keys[number].epoch, int(rng.integers(length)))
            for number, (rng, chosen) in enumerate(plans)
            if any(each.mixes for each in chosen)
        }
        second = load(list(partners.values())) if partners else {}
        places = {number: place for place, number in enumerate(partners)}
        names = [name for name in ("lq", *_GT_KEYS) if name in batch]
        result = copy.copy(batch)
        stacks: dict[str, list[Tensor]] = {name: [] for name in names}
        for number, (rng, chosen) in enumerate(plans):
            images = {name: batch[name][number] for name in names}
            other = {name: second[name][places[number]] for name in names} if number in places else None
            for augmentation in chosen:
                images = augmentation.apply(images, other, rng)
            for name in names:
                stacks[name].append(images[name].to(batch[name].dtype))
        return {**result, **{name: torch.stack(stack) for name, stack in stacks.items()}}

    def _chosen(self, rng: np.random.Generator) -> list[Augmentation]:
        """Draw which augmentations a sample gets, in their order."""
        chosen: list[Augmentation] = []
        for augmentation in self.augmentations:
            if rng.random() >= augmentation.prob:
                continue
            if isinstance(augmentation, OneOf):
                inner = parse(augmentation.of)
                weights = np.array([each.prob for each in inner])
                chosen.append(inner[int(rng.choice(len(inner), p=weights / weights.sum()))])
            else:
                chosen.append(augmentation)
        return chosen


def _rng(seed: int, key: SampleKey) -> np.random.Generator:
    sequence = np.random.SeedSequence([seed, key.epoch, key.index], spawn_key=(_STREAM,))
    return np.random.Generator(np.random.Philox(sequence))


def _boxes(
    lq: Tensor, alpha: float, rng: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Draw a rectangle: its place in this sample and in the other one, and its height and width, in LQ pixels."""
    height, width = lq.shape[-2:]
    ratio = float(np.clip(rng.normal(alpha, 0.01), 0, 1))
    rows, columns = int(height * ratio), int(width * ratio)
    places = [(int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))) for _ in range(2)]
    return places[0], places[1], (rows, columns)


def _pasted(
    images: Images, other: Images, target: tuple[int, int], source: tuple[int, int], size: tuple[int, int]
) -> Images:
    """Return copies of ``images`` with a rectangle of ``other``; places and size are in LQ pixels."""
    result = {}
    for name, image in images.items():
        scale = image.shape[-1] // images["lq"].shape[-1]
        rows, columns = (side * scale for side in size)
        (top, left), (y, x) = ((place[0] * scale, place[1] * scale) for place in (target, source))
        pasted = image.clone()
        pasted[:, top : top + rows, left : left + columns] = other[name][:, y : y + rows, x : x + columns]
        result[name] = pasted
    return result


def _reduced(gt: Tensor, scale: int) -> Tensor:
    """Reduce (C, s*h, s*w) in [0, 1] to (C, h, w) by MATLAB-exact bicubic, clamped."""
    planes = np.ascontiguousarray(gt.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.ascontiguousarray(imresize(planes, 1 / scale).transpose(2, 0, 1))).clamp(0, 1)
