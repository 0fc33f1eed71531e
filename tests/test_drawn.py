"""The data sets DrawnImages and MixedDataset: reproducible samples, weights of kinds and parts, refused options."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch

from safmn.data import DegradedDrawings, DrawnImages, MixedDataset, SampleKey, TrainingLoader, build_dataset, sample_rng
from safmn.data.drawing import KINDS
from safmn.errors import OptionError
from safmn.imaging import imresize
from safmn.train import main
from safmn.weights import load_state_dict


def generator(number: int) -> np.random.Generator:
    return sample_rng(3, SampleKey(0, number))


def drawn(phase: str = "train", **keys: Any) -> DrawnImages:
    return DrawnImages({"type": "DrawnImages", "name": "d", "phase": phase, "scale": 4, "gt_size": 96, **keys})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_any_size_and_depends_only_on_the_generator(kind: str) -> None:
    draw = KINDS[kind][0]
    for number, side in enumerate((24, 63, 96, 256)):
        image = draw(generator(number), side)
        assert (image.shape, image.dtype) == ((side, side, 3), np.uint8)
        assert np.array_equal(image, draw(generator(number), side))
    images = [draw(generator(number), 96) for number in range(8)]
    assert len({image.tobytes() for image in images}) > 6


def test_flat_images_have_one_colour_and_most_others_do_not() -> None:
    def colours(kind: str) -> list[int]:
        images = [KINDS[kind][0](generator(number), 96) for number in range(12)]
        return [len(np.unique(image.reshape(-1, 3), axis=0)) for image in images]

    assert set(colours("flat")) == {1}
    for kind in set(KINDS) - {"flat"}:
        assert sum(count > 1 for count in colours(kind)) >= 9, kind


def test_a_sample_is_a_drawing_and_its_bicubic_reduction() -> None:
    sample = drawn().sample(0, generator(5))
    gt, lq = ((255 * sample[name]).round().byte().permute(1, 2, 0).numpy() for name in ("gt", "lq"))
    assert gt.shape == (96, 96, 3)
    assert np.array_equal(lq, imresize(gt, 1 / 4))
    assert sample["gt_path"].removeprefix("drawn_") in KINDS


def test_epochs_draw_new_images_and_validation_images_are_fixed() -> None:
    loader = TrainingLoader(drawn(length=6), batch_size=6, seed=1)
    first, second = (batch[0]["gt"] for batch, _ in zip(loader.batches(0), range(2), strict=False))
    loader.close()
    assert not any(torch.equal(a, b) for a in first for b in second)
    fixed = drawn("val", length=3)
    assert len(fixed) == 3
    assert torch.equal(fixed[1]["gt"], drawn("val", length=9)[1]["gt"])
    assert fixed[1]["gt"].shape == (3, 512, 512)
    with pytest.raises(IndexError):
        fixed[3]


def test_kinds_are_drawn_by_their_weights() -> None:
    dataset = drawn(kinds={"flat": 3, "edges": 1}, gt_size=16)
    found = Counter(dataset.sample(0, generator(number))["gt_path"] for number in range(400))
    assert set(found) == {"drawn_flat", "drawn_edges"}
    assert found["drawn_flat"] == pytest.approx(300, abs=40)


def test_noise_is_added_to_the_reductions_only() -> None:
    clean, noisy = (drawn(kinds={"leaves": 1}, **more).sample(0, generator(5)) for more in ({}, {"lq": {"noise": 9}}))
    assert torch.equal(clean["gt"], noisy["gt"])
    inside = (clean["lq"] > 0.2) & (clean["lq"] < 0.8)  # where nothing is clipped
    assert 255 * (noisy["lq"] - clean["lq"])[inside].std() == pytest.approx(9, rel=0.2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lq": {"noise": -1}}, "noise"),
        ({"kinds": {"flatt": 1}}, "'flatt'.*'flat'"),
        ({"kinds": {"flat": -1}}, "flat: -1"),
        ({"kinds": {"flat": 0}}, "above 0"),
        ({"gt_size": 98}, "multiple of scale 4"),
        ({"length": 0}, "length"),
    ],
)
def test_wrong_keys_of_drawings_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        drawn(**keys)


# ---- MixedDataset


def section(folder: Path, **keys: Any) -> dict[str, Any]:
    photos = {
        "type": "PairedImageDataset",
        "dataroot_gt": str(folder / "train/hr"),
        "dataroot_lq": str(folder / "train/lr"),
    }
    parts = {"photos": photos, "drawn": {"type": "DrawnImages", "kinds": {"flat": 1}, "length": 3}}
    return {"type": "MixedDataset", "name": "m", "gt_size": 32, "parts": parts, **keys}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    tiny_run.make_images(folder)
    return folder


def test_samples_come_from_the_parts_by_their_shares(images: Path) -> None:
    mixed = build_dataset(section(images, shares={"photos": 3, "drawn": 1}), phase="train", scale=2)
    assert isinstance(mixed, MixedDataset)
    assert len(mixed) == 5  # the length of the longest part
    samples = [mixed.sample(number % 5, generator(number)) for number in range(200)]
    paths = Counter(Path(sample["gt_path"]).name for sample in samples)
    assert paths.pop("drawn_flat") == pytest.approx(50, abs=20)
    assert set(paths) == {f"photo{number}.png" for number in range(5)}
    assert {tuple(sample["lq"].shape) for sample in samples} == {(3, 16, 16)}
    assert torch.equal(mixed.sample(2, generator(9))["gt"], mixed.sample(2, generator(9))["gt"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shares": {"photos": 1}}, "shares .*photos; .* photos, drawn"),
        ({"shares": {"photos": 1, "drawn": -1}}, "0 or more"),
        ({"parts": {}}, "parts is empty"),
        ({"parts": {"a": {"kinds": {}}}}, r"parts\.a: .*'type' is missing"),
        ({"parts": {"a": {"type": "DrawnImages", "kind": {"flat": 1}}}}, "no key 'kind'.*'kinds'"),
        ({"parts": {"a": {"type": "SingleImageDataset", "dataroot_lq": "x"}}}, "cannot be mixed"),
    ],
)
def test_wrong_mixtures_are_refused(images: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_dataset(section(images, **keys), phase="train", scale=2)


def run(images: Path, folder: Path, **train: Any) -> tuple[int, Path]:
    content = tiny_run.options(images, total_iter=8, **train)
    loader = {"batch_size_per_gpu": 4, "dataset_enlarge_ratio": 4}
    content["datasets"]["train"] = {**section(images), "use_hflip": True, "use_rot": True, **loader}
    content["path"] = {"experiments_root": str(folder / "experiments")}
    content["logger"] = {"print_freq": 1, "save_checkpoint_freq": 4}
    folder.mkdir()
    return main(["-opt", str(tiny_run.write_options(folder, content))]), folder / "experiments/tiny"


def test_a_run_on_a_mixture_with_a_teacher_and_flat_areas(images: Path, tmp_path: Path) -> None:
    status, first = run(images, tmp_path / "first")
    assert status == 0
    teacher = {"weights": str(first / "models/net_g_8.pth"), "except_images": "drawn_*"}
    status, second = run(images, tmp_path / "second", teacher=teacher, flat_areas={"colours": 4})
    assert status == 0
    record = [json.loads(line) for line in (second / "record.jsonl").read_text().splitlines()]
    losses = [line["l_flat"] for line in record if "l_flat" in line]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    again = run(images, tmp_path / "again", teacher=teacher, flat_areas={"colours": 4})[1]
    weights = [load_state_dict(folder / "models/net_g_8.pth") for folder in (second, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_pattern_that_matches_no_image_name_is_refused(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "run", teacher={"weights": "safmn-x2", "except_images": "drawing_*"})[0] == 2
    assert "drawing_*" in capfd.readouterr().err


def test_a_part_that_degrades_gets_the_degradation_keys_of_the_option_file(images: Path, tmp_path: Path) -> None:
    content = tiny_run.real_options(images, tmp_path, "RealSRModel", 0)
    photos = {"type": "RealESRGANDataset", "dataroot_gt": str(images / "train/hr")}
    mixed = section(images, parts={"photos": photos, "drawn": {"type": "DrawnImages"}})
    content["datasets"]["train"] = {**mixed, "batch_size_per_gpu": 4, "dataset_enlarge_ratio": 4}
    content["train"]["total_iter"] = 2
    assert main(["-opt", str(tiny_run.write_options(tmp_path, content))]) == 0


# ---- DegradedDrawings


def degraded(**more: Any) -> Any:
    keys = {"type": "DegradedDrawings", "name": "d", "kinds": {"text": 1, "flat": 0}, "gt_size": 64}
    return build_dataset({**keys, "degradation": {"crop_size": 96}, **more}, phase=more.get("phase", "train"), scale=4)


def test_drawings_are_degraded_like_photographs() -> None:
    dataset = degraded()
    assert isinstance(dataset, DegradedDrawings)
    one, again, other = (dataset.sample(0, generator(number)) for number in (3, 3, 4))
    assert (tuple(one["lq"].shape), tuple(one["gt"].shape)) == ((3, 16, 16), (3, 64, 64))
    assert torch.equal(one["lq"], again["lq"])
    assert torch.equal(one["gt"], again["gt"])
    assert not torch.equal(one["gt"], other["gt"])
    assert one["gt_path"] == "drawn_text"
    assert dataset.image_names() == ["drawn_text"]
    clean = imresize((255 * one["gt"]).round().byte().permute(1, 2, 0).numpy(), 1 / 4)
    assert np.abs(clean - 255 * one["lq"].permute(1, 2, 0).numpy()).max() > 5
    fixed = degraded(phase="val", length=2)
    assert len(fixed) == 2
    assert torch.equal(fixed[1]["lq"], degraded(phase="val", length=9)[1]["lq"])
    assert tuple(fixed[0]["gt"].shape) == (3, 512, 512)  # a whole drawing, large enough for every metric
    assert tuple(fixed[0]["lq"].shape) == (3, 128, 128)
    with pytest.raises(IndexError):
        fixed[2]


def test_degraded_and_clean_drawings_can_be_mixed() -> None:
    parts = {"clean": {"type": "DrawnImages", "kinds": {"edges": 1}}, "poor": {"type": "DegradedDrawings"}}
    section = {"type": "MixedDataset", "name": "m", "gt_size": 64, "parts": parts, "degradation": {"crop_size": 64}}
    mixed = build_dataset(section, phase="train", scale=4)
    found = [mixed.sample(0, generator(number)) for number in range(12)]
    assert {tuple(sample["lq"].shape) for sample in found} == {(3, 16, 16)}
    assert len({sample["gt_path"] for sample in found}) > 2


def test_wrong_keys_of_degraded_drawings_are_refused() -> None:
    with pytest.raises(OptionError, match=r"'d'.*'flatt'"):
        degraded(kinds={"flatt": 1})
    with pytest.raises(OptionError, match="per_sample"):
        degraded(degradation={"mode": "batch_pool", "queue_size": 8})
