"""Data sets and the loader that feeds training: samples are a function of (seed, epoch, index)."""

from __future__ import annotations

from safmn.data.keys import Batch, KeyedDataset, Patch, Sample, SampleKey, draw_patch, sample_rng
from safmn.data.loader import TrainingLoader

__all__ = ["Batch", "KeyedDataset", "Patch", "Sample", "SampleKey", "TrainingLoader", "draw_patch", "sample_rng"]
