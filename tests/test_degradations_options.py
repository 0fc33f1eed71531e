"""Degradation options: which values are rejected, with which key in the message, and what published files mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import pytest

from safmn.degradations import parse_options
from safmn.errors import OptionError
from safmn.options import load_options
from safmn.train import main as train

GT = {"gt_size": 128}


def rejected(degradation: dict[str, Any], dataset: dict[str, Any], key: str, message: str, scale: int = 4) -> None:
    """Check that the options are rejected with a message that begins with the key."""
    with pytest.raises(OptionError, match=rf"^{re.escape(key)}: .*{message}"):
        parse_options(GT | degradation, dataset, scale=scale)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resize_prob", [0.2, 0.7, 0.2], "sums to 1.1, not to 1"),
        ("resize_prob2", [1.2, -0.2, 0], "negative probability"),
        ("resize_prob", [0.5, 0.5], "3"),
        ("resize_range", [1.1, 1.5], "contain 1"),
        ("resize_range", [0, 1.5], "above 0"),
        ("resize_range2", [1.2, 0.3], "not a range"),
        ("resize_range2", [0.001, 1.2], "no pixel"),
        ("noise_range", [-1, 30], "at least 0"),
        ("noise_range2", [1, 300], "at most 255"),
        ("noise_range", [1, 2, 3], "length 2"),
        ("noise_range", "wide", "array"),
        ("poisson_scale_range", [-0.5, 3], "at least 0"),
        ("jpeg_range", [0, 95], "at least 1"),
        ("jpeg_range2", [10, 101], "at most 100"),
        ("gaussian_noise_prob", 1.5, "not a probability"),
        ("gray_noise_prob2", -0.1, "not a probability"),
        ("second_blur_prob", 2, "not a probability"),
        ("gt_size", 130, "multiple of scale"),
        ("gt_size", 512, "only 100x100"),
        ("high_order_degradation", False, "PairedImageDataset"),
        ("noise_rnge", [1, 2], "Did you mean 'noise_range'"),
        ("mode", "per_batch", "per_batch"),
    ],
)
def test_wrong_degradation_keys_are_rejected(key: str, value: Any, message: str) -> None:
    rejected({key: value}, {}, key, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blur_kernel_size", 20, "must be odd"),
        ("blur_kernel_size2", 5, "from 7"),
        ("kernel_prob", [0.45, 0.25, 0.12, 0.03, 0.12, 0.04], "sums to 1.01"),
        ("kernel_prob2", [0.5, 0.5], "2 values, not 6"),
        ("kernel_list", ["iso", "anis", "generalized_iso"], "Did you mean 'aniso'"),
        ("kernel_list2", [], "is empty"),
        ("sinc_prob", 1.1, "not a probability"),
        ("final_sinc_prob", -0.1, "not a probability"),
        ("blur_sigma", [0, 3], "above 0"),
        ("blur_sigma2", [3, 0.2], "not a range"),
        ("betag_range", [1.5, 4], "contain 1"),
    ],
)
def test_wrong_blur_keys_are_rejected(key: str, value: Any, message: str) -> None:
    rejected({}, {key: value}, f"datasets.train.{key}", message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codec_list", ["jpg"], "Did you mean 'jpeg'"),
        ("codec_prob", [0.5, 0.5], "2 values, not 1"),
        ("resize_modes", ["area", "cubic"], "Did you mean 'bicubic'"),
        ("webp_range", [0, 50], "at least 1"),
        ("sensor_noise_prob", 3, "not a probability"),
        ("sensor_shot_range", [0, 0.1], "above 0"),
        ("lanczos_avif_range", [10, 5], "not a range"),
    ],
)
def test_wrong_keys_of_our_own_are_rejected(key: str, value: Any, message: str) -> None:
    rejected({key: value}, {}, f"degradation.{key}", message)


def test_keys_that_do_not_fit_together_are_rejected() -> None:
    rejected({"bicubic_prob": 0.6, "lanczos_avif_prob": 0.6}, {}, "degradation.lanczos_avif_prob", "more than 1")
    rejected({}, {"gt_size": 256}, "gt_size", r"128 at the top level, 256 .*datasets\.train")
    rejected({"mode": "batch_pool", "queue_size": 100}, {"batch_size_per_gpu": 16}, "queue_size", "multiple of")
    parse_options(GT | {"mode": "batch_pool", "queue_size": 192}, {"batch_size_per_gpu": 16}, scale=4)
    with pytest.raises(OptionError, match="gt_size: missing"):
        parse_options({}, {}, scale=4)


TRAIN = "datasets:train:"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["resize_prob=[0.2, 0.7, 0.2]"], "resize_prob"),
        (["resize_prob2=[0, 0, 0]"], "resize_prob2"),
        (["resize_prob=[0.2, 0.7, true]"], "resize_prob"),
        (["resize_range=[0.15]"], "resize_range"),
        (["resize_range=[0.15, 1000]"], "resize_range"),
        (["resize_range=[0.002, 1.2]"], "resize_range"),
        (["resize_range2=[.nan, 1.2]"], "resize_range2"),
        (["gaussian_noise_prob=true"], "gaussian_noise_prob"),
        (["gray_noise_prob2='0.4'"], "gray_noise_prob2"),
        (["noise_range=[1, .inf]"], "noise_range"),
        (["poisson_scale_range2=[0.05, 1e30]"], "poisson_scale_range2"),
        (["jpeg_range=[95, 30]"], "jpeg_range"),
        (["jpeg_range2=[0, 95]"], "jpeg_range2"),
        (["second_blur_prob=1.1"], "second_blur_prob"),
        ([f"{TRAIN}blur_kernel_size=20"], "datasets.train.blur_kernel_size"),
        ([f"{TRAIN}blur_kernel_size2=63"], "datasets.train.blur_kernel_size2"),
        ([f"{TRAIN}blur_kernel_size=21.5"], "datasets.train.blur_kernel_size"),
        ([f"{TRAIN}kernel_list=[iso, cone]"], "datasets.train.kernel_list"),
        ([f"{TRAIN}kernel_prob=[0.5, 0.4, 0, 0, 0, 0]"], "datasets.train.kernel_prob"),
        ([f"{TRAIN}kernel_prob2=[]"], "datasets.train.kernel_prob2"),
        ([f"{TRAIN}blur_sigma=[0, 3]"], "datasets.train.blur_sigma"),
        ([f"{TRAIN}betap_range2=[1.1, 2]"], "datasets.train.betap_range2"),
        ([f"{TRAIN}sinc_prob2=-0.1"], "datasets.train.sinc_prob2"),
        ([f"{TRAIN}final_sinc_prob=2"], "datasets.train.final_sinc_prob"),
        ([f"{TRAIN}batch_size_per_gpu=0"], "datasets.train.batch_size_per_gpu"),
        ([f"{TRAIN}gt_size=64"], "datasets.train.gt_size"),
        ([f"{TRAIN}io_backend:type=zip"], "datasets.train.io_backend.type"),
        (["datasets:val:blur_kernel_size=20"], "datasets.val.blur_kernel_size"),
        (["datasets:val:kernel_prob=[1, 1]"], "datasets.val.kernel_prob"),
        (["gt_size=130", f"{TRAIN}gt_size=130"], "gt_size"),
        (["gt_size=404", f"{TRAIN}gt_size=404"], "gt_size"),
        (["degradation:crop_size=124"], "gt_size"),
        (["degradation:crop_size=-400"], "degradation.crop_size"),
        (["degradation:crop_size=1000000"], "degradation.crop_size"),
        (["degradation:crop_size=400.5"], "degradation.crop_size"),
        (["degradation:mode=pool"], "degradation.mode"),
        (["degradation:mode=batch_pool", "queue_size=17"], "queue_size"),
        (["degradation:mode=batch_pool", "queue_size=0"], "queue_size"),
        (["degradation:codec_list=[jpeg, webp]"], "degradation.codec_prob"),
        (["degradation:codec_list=[heic]"], "degradation.codec_list"),
        (["degradation:codec_prob=[0.5]"], "degradation.codec_prob"),
        (["degradation:resize_modes=[lanzcos]"], "degradation.resize_modes"),
        (["degradation:final_resize_modes=[]"], "degradation.final_resize_modes"),
        (["degradation:bicubic_prob=-1"], "degradation.bicubic_prob"),
        (["degradation:avif_range=[0, 50]"], "degradation.avif_range"),
        (["degradation:sensor_read_range=[0.5, 2]"], "degradation.sensor_read_range"),
        (["degradation:resize_first=maybe"], "degradation.resize_first"),
        (["degradation:jpg_range=[1, 2]"], "degradation.jpg_range"),
        (["degradation=5"], "degradation"),
        (["high_order_degradation=false"], "high_order_degradation"),
    ],
)
def test_loading_an_option_file_reports_the_key(changes: list[str], key: str, request: pytest.FixtureRequest) -> None:
    file = str(request.config.rootpath / "options" / "demo_real_x4.yml")
    with pytest.raises(OptionError, match=rf"(^|[\s:]){re.escape(key)}[:\s]|^--force_yml {re.escape(key)}="):
        load_options(file, mode="train", overrides=changes)


def test_training_with_a_wrong_key_has_status_2_and_writes_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(request.config.rootpath / "options" / "demo_real_x4.yml")
    assert train(["-opt", file, "--force_yml", "datasets:train:blur_kernel_size=20"]) == 2
    assert "datasets.train.blur_kernel_size: 20 must be odd" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_avif_is_rejected_if_opencv_cannot_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "haveImageWriter", lambda _: False)
    rejected({"codec_list": ["avif"]}, {}, "degradation.codec_list", "cannot write AVIF")
    parse_options(GT, {}, scale=4)


def test_defaults_equal_real_esrgans() -> None:
    options = parse_options(GT | {"gt_usm": True}, {}, scale=2)
    assert options.first.blur.sizes == (7, 9, 11, 13, 15, 17, 19, 21)
    assert options.first.quality["jpeg"] == (30, 95)
    assert options.second.quality["jpeg"] == (10, 95)
    assert (options.crop_size, options.gt_size) == (400, 128)
    assert options.degrade_sharpened
    assert options.needs_sharpened
    assert not options.resize_first
    assert "nearest" not in options.resize_modes
    assert options.codecs == ("jpeg",)
    assert (options.bicubic_prob, options.lanczos_avif_prob, options.first.sensor_prob) == (0, 0, 0)


def test_gan_files_get_safmns_published_order() -> None:
    """SAFMN's GAN model degrades the GT itself, resizes before the first blur, and also draws ``nearest``."""
    options = parse_options(GT | {"l1_gt_usm": True, "percep_gt_usm": True, "gan_gt_usm": False}, {}, scale=4)
    assert options.resize_first
    assert "nearest" in options.resize_modes
    assert "nearest" not in options.final_resize_modes
    assert not options.degrade_sharpened
    assert options.needs_sharpened
    changed = parse_options(
        GT | {"l1_gt_usm": True, "resize_first": False, "resize_modes": ["area"], "degrade_sharpened": True},
        {},
        scale=4,
    )
    assert (changed.resize_first, changed.resize_modes, changed.degrade_sharpened) == (False, ("area",), True)


def test_the_crop_size_is_rounded_down_to_a_multiple_of_the_scale() -> None:
    """BasicSR fails at x3, because the sizes of LQ and GT do not match."""
    options = parse_options({"gt_size": 192}, {}, scale=3)
    assert options.crop_size == 399


@pytest.mark.parametrize(
    "name",
    [
        "train_real_x2",
        "train_real_x4",
        "train_real_gan_x4",
        "train_real_gan_ldl_x4",
        "demo_real_x4",
        "demo_real_gan_x4",
    ],
)
def test_our_option_files_are_valid(name: str, request: pytest.FixtureRequest) -> None:
    options = load_options(request.config.rootpath / "options" / f"{name}.yml", mode="train")
    assert parse_options(options.degradation, options.datasets["train"], scale=options.scale).scale == options.scale
