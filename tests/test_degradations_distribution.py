"""Our degradations have BasicSR's distributions: a short run of scripts/benchmarks/compare_degradation.py."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safmn.imaging import list_images

SIDE = 96


@pytest.fixture
def comparison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Yield the script as a module, with seeded global generators, which are restored afterwards."""
    monkeypatch.syspath_prepend(request.config.rootpath / "scripts" / "benchmarks")
    import compare_degradation

    python, numpy = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield compare_degradation
    random.setstate(python)
    np.random.set_state(numpy)


def their_dataset(photos: Path, folder: Path) -> Any:
    import basicsr_degradation

    names = [path.name for path in list_images(photos)][:8]
    return basicsr_degradation.dataset(photos, names, folder / "meta_info.txt")


def failures(rows: list[tuple[str, float, float, float, float]]) -> list[str]:
    """Return the quantities whose distributions differ by more than the bound."""
    return [f"{name}: {theirs:.4g} {ours:.4g}" for name, theirs, ours, distance, bound in rows if distance > bound]


@pytest.mark.slow
def test_kernels_and_images_have_basicsrs_distributions(comparison: Any, photos_dir: Path, tmp_path: Path) -> None:
    dataset = their_dataset(photos_dir / "train", tmp_path)
    rows = comparison.compare(comparison.their_kernels(dataset, 200), comparison.our_kernels(3000))
    assert len(rows) == 9
    assert not failures(rows)
    gts = comparison.gt_images(photos_dir / "train", SIDE, 8)
    theirs = comparison.their_images(dataset, gts, 100)
    rows = comparison.compare(theirs, comparison.our_images(comparison.our_options(), gts, 240))
    assert len(rows) == 10
    assert not failures(rows)


@pytest.mark.slow
def test_the_comparison_can_fail(comparison: Any, photos_dir: Path) -> None:
    """Slightly different options are detected."""
    gts = comparison.gt_images(photos_dir / "train", SIDE, 8)
    published = comparison.our_images(comparison.our_options(), gts, 240)
    changed = comparison.our_options(noise_range=[1, 20], poisson_scale_range=[0.05, 2], resize_prob=[0.4, 0.5, 0.1])
    found = failures(comparison.compare(published, comparison.our_images(changed, gts, 240)))
    assert any(name.startswith("noise 1") for name in found)
    assert any(name.startswith("size after") for name in found)
