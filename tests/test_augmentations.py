"""Augmentations follow their definition, keep LQ and GT together, and depend only on seed, epoch and index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from data_helpers import make_folders, paired_section
from torch import Tensor

from safmn.data import PairedImageDataset, TrainingLoader
from safmn.data.augmentations import Augmenter, parse
from safmn.data.sample_keys import KeyedDataset, SampleKey
from safmn.errors import OptionError
from safmn.imaging import imresize
from safmn.options import load_options

SCALE = 2


def pair(seed: int = 0, side: int = 16) -> dict[str, Tensor]:
    """Return an LQ patch, and a GT patch in which each LQ pixel is repeated."""
    lq = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    return {"lq": lq, "gt": lq.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)}


def matches(images: dict[str, Tensor]) -> bool:
    """Whether the GT still is the LQ image with repeated pixels."""
    return torch.allclose(images["gt"], images["lq"].repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2))


def apply(section: dict[str, Any], seed: int = 1, **arguments: Any) -> dict[str, Tensor]:
    (augmentation,) = parse([section])
    return augmentation.apply(pair(), pair(1), np.random.default_rng(seed), **arguments)


@pytest.mark.parametrize("kind", ["Blend", "RGBPermutation", "MixUp", "CutMix", "CutMixUp"])
def test_lq_and_gt_change_together(kind: str) -> None:
    for seed in range(8):
        assert matches(apply({"type": kind}, seed))


def test_the_definitions() -> None:
    lq, other = pair()["lq"], pair(1)["lq"]
    rng = np.random.default_rng(1)
    keep, colour = rng.uniform(0.6, 1), torch.from_numpy(rng.random((3, 1, 1), np.float32))
    torch.testing.assert_close(apply({"type": "Blend"})["lq"], keep * lq + (1 - keep) * colour)
    share = np.random.default_rng(1).beta(1.2, 1.2)
    torch.testing.assert_close(apply({"type": "MixUp"})["lq"], (share * lq + (1 - share) * other).float())
    permuted = apply({"type": "RGBPermutation"})["lq"]
    assert sorted(permuted.sum((1, 2)).tolist()) == sorted(lq.sum((1, 2)).tolist())
    cut = apply({"type": "Cutout", "alpha": 0.25})
    assert 0.1 < (cut["lq"] == 0).all(0).float().mean() < 0.4
    assert torch.equal(cut["gt"], pair()["gt"])
    mixed = apply({"type": "CutMix", "alpha": 0.5})["lq"]
    changed = (mixed != lq).any(0)
    rows, columns = changed.any(1).sum(), changed.any(0).sum()
    assert int(changed.sum()) == rows * columns
    assert 6 <= rows <= 9
    assert all(any(torch.equal(pixel, theirs) for theirs in other.flatten(1).T) for pixel in mixed[:, changed].T)


@pytest.mark.parametrize("scale", [1, 2])
def test_cutblur_pastes_the_reduced_gt(scale: int) -> None:
    (augmentation,) = parse([{"type": "CutBlur", "alpha": 0.5}])
    gt = torch.rand(3, 16 * scale, 16 * scale, generator=torch.Generator().manual_seed(3))
    lq = torch.zeros(3, 16, 16)
    planes = np.ascontiguousarray(gt.permute(1, 2, 0).numpy())
    clean = gt if scale == 1 else torch.from_numpy(imresize(planes, 0.5)).permute(2, 0, 1).clamp(0, 1)
    shares = []
    for seed in range(12):
        found = augmentation.apply({"lq": lq, "gt": gt}, None, np.random.default_rng(seed))
        assert found["gt"] is gt
        pasted = (found["lq"] != 0).any(0)
        torch.testing.assert_close(found["lq"][:, pasted], clean[:, pasted])
        shares.append(float(pasted.float().mean()))
    assert min(shares) < 0.4 < 0.6 < max(shares)  # inside the rectangle, or outside


def test_probabilities_and_one_of() -> None:
    sections = [{"type": "OneOf", "prob": 0.5, "of": [{"type": "Blend", "prob": 3}, {"type": "MixUp", "prob": 1}]}]
    with pytest.raises(OptionError, match=r"augmentations\[0\]\.of\[0\]: Blend: .*<= 1"):
        Augmenter(sections)
    sections[0]["of"] = [{"type": "Blend", "prob": 0.75}, {"type": "MixUp", "prob": 0.25}]
    augmenter = Augmenter(sections)
    rng = np.random.default_rng(0)
    chosen = [augmenter._chosen(rng) for _ in range(2000)]
    kinds = [each[0].type for each in chosen if each]
    assert 900 < len(kinds) < 1100
    assert 0.70 < kinds.count("Blend") / len(kinds) < 0.80


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "CutBlr"}, r"'CutBlr' is no augmentation\. Did you mean 'CutBlur'\?"),
        ({"prob": 1}, r"None is no augmentation"),
        ({"type": "MixUp", "prob": 1.5}, r"MixUp: .*<= 1"),
        ({"type": "MixUp", "beta": 1}, r"unknown field `beta`"),
        ({"type": "OneOf", "of": []}, r"length >= 1"),
    ],
)
def test_mistakes_are_named_by_the_check_of_options(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    from safmn.options.differences import to_yaml

    data = tiny_run.options(tmp_path)
    data["datasets"]["train"]["augmentations"] = [section]
    (tmp_path / "o.yml").write_text(to_yaml(data))
    with pytest.raises(OptionError, match=r"datasets\.train\.augmentations: augmentations\[0\].*" + message):
        load_options(tmp_path / "o.yml", mode="train")


def test_batches_depend_only_on_seed_epoch_and_index(tmp_path: Path) -> None:
    """The number of workers and of samples in a batch do not matter, and without augmentations nothing changes."""
    hr, lr = make_folders(tmp_path)
    section = paired_section(hr, lr, gt_size=16, phase="train", scale=2)
    sections = [{"type": "CutMix", "prob": 0.5}, {"type": "MixUp", "prob": 0.5}, {"type": "Blend", "prob": 0.5}]
    dataset = PairedImageDataset(section)

    def samples(size: int, workers: int, chosen: list[dict[str, Any]]) -> dict[SampleKey, Tensor]:
        loader = TrainingLoader(
            dataset, batch_size=size, seed=4, enlarge_ratio=4, num_workers=workers, augmentations=chosen
        )
        found: dict[SampleKey, Tensor] = {}
        try:
            for _, (batch,) in zip(range(12 // size), loader.batches(0), strict=False):
                found |= dict(zip(batch["keys"], batch["lq"], strict=True))
        finally:
            loader.close()
        return found

    reference = samples(4, 0, sections)
    for size, workers in ((2, 0), (4, 1)):
        other = samples(size, workers, sections)
        assert other.keys() == reference.keys()
        assert all(torch.equal(other[key], reference[key]) for key in reference)
    plain = samples(4, 0, [])
    changed = [not torch.equal(plain[key], reference[key]) for key in reference]
    assert sum(changed) > 0
    never = samples(4, 0, [{"type": "MixUp", "prob": 0.0}])
    assert all(torch.equal(plain[key], never[key]) for key in plain)
    keyed = KeyedDataset(dataset, 4, Augmenter(sections))
    assert keyed.batch(list(reference)[:1])["gt"].shape == (1, 3, 16, 16)
