"""Data sets, and the loader that feeds training. Each sample is a function of (seed, epoch, index)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from safmn.data.bundled_photos import BundledPhotos
from safmn.data.drawn import DegradedDrawings, DrawnImages
from safmn.data.loader import TrainingLoader
from safmn.data.mixed import MixedDataset
from safmn.data.paired import PairedImageDataset, SingleImageDataset
from safmn.data.patch_store import PatchStore
from safmn.data.pixel_patterns import PixelPatterns
from safmn.data.realesrgan_dataset import RealESRGANDataset
from safmn.data.sample_keys import Batch, KeyedDataset, Patch, Sample, SampleKey, draw_patch, sample_rng
from safmn.errors import DataError, OptionError, UserError
from safmn.options.keywords import keyword_arguments, takes_keywords
from safmn.own_code import described
from safmn.registry import DATASET_REGISTRY, find
from safmn.runtime.random_state import global_generators, named_rng

__all__ = [
    "Batch",
    "BundledPhotos",
    "DegradedDrawings",
    "DrawnImages",
    "KeyedDataset",
    "MixedDataset",
    "PairedImageDataset",
    "Patch",
    "PatchStore",
    "PixelPatterns",
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
    """Build the data set that a section of an option file describes. The section itself is not modified.

    Args:
        section: the section, with the key ``type``: any name registered in BasicSR's ``DATASET_REGISTRY``.
        phase: ``train``, ``val`` or ``test``.
        scale: the scale that the option file sets.
        seed: seeds the global generators while the constructor runs.

    Raises:
        OptionError: there is no data set of that type, a key is missing, or the constructor fails.
        DataError: images are missing or do not match.
    """
    build = find(DATASET_REGISTRY, section["type"])
    options = {**copy.deepcopy(dict(section)), "phase": phase, "scale": scale}
    name = section.get("name", section["type"])
    try:
        with global_generators(named_rng(seed, "build", str(name))):
            return build(**keyword_arguments(build, options)) if takes_keywords(build) else build(options)
    except KeyError as error:  # BasicSR's data sets report a missing key this way
        raise OptionError(f"data set {name!r} ({section['type']}): missing key {error}") from error
    except AssertionError as error:  # and folders that do not match this way
        raise DataError(f"data set {name!r} ({section['type']}): {error}") from error
    except (UserError, OSError):
        raise
    except Exception as error:  # a user's constructor may raise any exception
        raise OptionError(f"data set {name!r} ({section['type']}) cannot be built: {described(error)}") from error
