"""A data set that mixes others: each training sample comes from one of them, drawn by its share."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch

from safmn.data.options import CommonOptions, read_options
from safmn.data.sample_keys import Sample
from safmn.data.stages import of_size
from safmn.errors import OptionError, did_you_mean
from safmn.registry import DATASET_REGISTRY, find

_PATHS = ("dataroot", "dataroot_gt", "dataroot_lq", "meta_info", "meta_info_file", "patch_weights")


def _expanded(value: Any) -> Any:
    """Replace a leading ``~`` by the home folder, as is done for the paths of a section outside a mixture."""
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


class MixedOptions(CommonOptions, frozen=True, kw_only=True):
    """Keys of :class:`MixedDataset`.

    Attributes:
        parts: A name of your choice -> the section of a data set. A part without ``gt_size``, ``use_hflip`` or
            ``use_rot`` takes those of the mixture.
        shares: Name of a part -> its relative weight; null: equal weights.
        gt_size: Side of the GT patch in pixels, a multiple of the scale; needed for training.
        use_hflip: Flip half of the patches left to right.
        use_rot: Flip half of the patches top to bottom, and transpose half of them.
    """

    parts: dict[str, dict[str, Any]]
    shares: dict[str, float] | None = None
    gt_size: int | None = None
    use_hflip: bool = False
    use_rot: bool = False


@DATASET_REGISTRY.register()
class MixedDataset(torch.utils.data.Dataset[Sample]):
    """Training samples of several data sets, mixed by shares.

    An epoch is as long as the longest part. The generator of a sample also draws the part that it comes from.

    Args:
        opt: the data set's section of the option file, with ``phase`` and ``scale``; and ``degradation`` if one of
            the parts degrades images.

    Raises:
        OptionError: a key is missing or wrong, or the data set of a part has no ``sample()``, ``image_names()`` or
            ``OPTIONS``.
        DataError: a part raised it.
    """

    OPTIONS: ClassVar[type[MixedOptions]] = MixedOptions

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options: MixedOptions = read_options(self.OPTIONS, opt)
        if self.options.phase != "train":
            raise OptionError(f"data set {self.options.name!r}: MixedDataset is for training; validate on its parts")
        if not self.options.parts:
            raise OptionError(f"data set {self.options.name!r}: parts is empty; name at least one data set")
        self.parts = {name: self._build(name, section, opt) for name, section in self.options.parts.items()}
        self._shares = self._probabilities()

    def _build(self, name: str, section: dict[str, Any], opt: Mapping[str, Any]) -> Any:
        where = f"data set {self.options.name!r}: parts.{name}"
        if "type" not in section:
            raise OptionError(f"{where}: the key 'type' is missing")
        kind: Any = find(DATASET_REGISTRY, section["type"])
        if not all(hasattr(kind, name) for name in ("sample", "image_names", "OPTIONS")):
            raise OptionError(
                f"{where}: a {section['type']} cannot be mixed; use a data set with sample(), image_names() and OPTIONS"
            )
        known = [field.encode_name for field in msgspec.structs.fields(kind.OPTIONS)]
        for key in section:
            if key not in known:
                raise OptionError(f"{where}: {section['type']} reads no key {key!r}.{did_you_mean(key, known)}")
        section = {key: _expanded(value) if key in _PATHS else value for key, value in section.items()}
        shared = {key: opt[key] for key in ("gt_size", "use_hflip", "use_rot", "phase", "scale") if key in opt}
        outside = {"degradation": opt["degradation"]} if getattr(kind, "degrades", False) else {}
        return kind({"name": f"{self.options.name}.{name}", **shared, **section, **outside})

    def _probabilities(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        shares = self.options.shares or dict.fromkeys(self.parts, 1.0)
        if set(shares) != set(self.parts):
            raise OptionError(
                f"data set {self.options.name!r}: shares names {', '.join(shares)}; the parts are "
                f"{', '.join(self.parts)}"
            )
        values = np.array([shares[name] for name in self.parts], np.float64)
        if not np.isfinite(values).all() or (values < 0).any() or not values.any():
            raise OptionError(f"data set {self.options.name!r}: shares must be 0 or more, and not all 0")
        return values / values.sum()

    def with_gt_size(self, gt_size: int) -> MixedDataset:
        """Return the same mixture with GT patches of another size; parts that are not SAFMN's stay as they are."""
        other = copy.copy(self)
        other.parts = {name: of_size(part, gt_size) for name, part in self.parts.items()}
        return other

    def __len__(self) -> int:
        return max(map(len, self.parts.values()))

    def image_names(self) -> list[str]:
        """Return the image names of all parts, one part after the other."""
        return [name for part in self.parts.values() for name in part.image_names()]

    @property
    def draws_digest(self) -> str:
        """The checksums of the parts that have one."""
        return "".join(getattr(part, "draws_digest", "") for part in self.parts.values())

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a training sample of one of the parts; all draws come from ``rng``.

        Returns:
            ``lq`` (3, p, p) and ``gt`` (3, s*p, s*p), float32 in [0, 1]; ``gt_path``.
        """
        part = list(self.parts.values())[int(rng.choice(len(self.parts), p=self._shares))]
        sample: Sample = part.sample(index % len(part), rng)
        return {name: sample[name] for name in ("lq", "gt", "gt_path")}
