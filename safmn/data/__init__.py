"""Data sets and the loader that feeds training: samples are a function of (seed, epoch, index)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from safmn.data.bundled_photos import BundledPhotos
from safmn.data.drawn import DrawnImages
from safmn.data.keys import Batch, KeyedDataset, Patch, Sample, SampleKey, draw_patch, sample_rng
from safmn.data.loader import TrainingLoader
from safmn.data.mixed import MixedDataset
from safmn.data.paired import PairedImageDataset, SingleImageDataset
from safmn.data.patch_store import PatchStore
from safmn.data.realesrgan_dataset import RealESRGANDataset
from safmn.errors import DataError, OptionError, UserError
from safmn.registry import DATASET_REGISTRY, find
from safmn.runtime.random_state import global_generators, named_rng

__all__ = [
    "Batch",
    "BundledPhotos",
    "DrawnImages",
    "KeyedDataset",
    "MixedDataset",
    "PairedImageDataset",
    "Patch",
    "PatchStore",
    "RealESRGANDataset",
    "Sample",
    "SampleKey",
    "SingleImageDataset",
    "TrainingLoader",
    "build_dataset",
    "draw_patch",
    "sample_rng",
]


def build_dataset(section: Mapping[str, Any], *, phase: str, scale: int, seed: int = 0) -> Any:
    """Build the data set that a section of an option file names; the section itself is not modified.

    Args:
        section: has ``type``; anything registered in BasicSR's ``DATASET_REGISTRY`` works.
        phase: ``train``, ``val`` or ``test``.
        scale: the option file's scale.
        seed: of what its constructor draws from the global generators.

    Raises:
        OptionError: no data set of that type, or a key it needs is missing.
        DataError: images are missing or do not match.
    """
    build = find(DATASET_REGISTRY, section["type"])
    options = {**copy.deepcopy(dict(section)), "phase": phase, "scale": scale}
    name = section.get("name", section["type"])
    try:
        with global_generators(named_rng(seed, "build", str(name))):
            return build(options)
    except KeyError as error:  # how BasicSR's data sets report a missing key
        raise OptionError(f"data set {name!r} ({section['type']}): missing key {error}") from error
    except AssertionError as error:  # how they report folders that do not match
        raise DataError(f"data set {name!r} ({section['type']}): {error}") from error
    except (UserError, OSError):
        raise
    except Exception as error:  # constructors may be anybody's, and raise anything
        reason = f"{type(error).__name__}: {error}"
        raise OptionError(f"data set {name!r} ({section['type']}) cannot be built: {reason}") from error
