"""PSNR and SSIM equal BasicSR's. Published tables and network names. BasicSR's metrics stay available by name."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.utils.registry import METRIC_REGISTRY
from hypothesis import given, settings
from hypothesis import strategies as st

from safmn.errors import DataError, OptionError
from safmn.evaluation.published import SETS, published
from safmn.evaluation.published import rows as published_rows
from safmn.imaging import read_rgb
from safmn.metrics import calculate_psnr, calculate_ssim, fidelity, network_name, psnr, ssim
from safmn.registry import build, find

OURS = {"calculate_psnr": calculate_psnr, "calculate_ssim": calculate_ssim}


def basicsr_metric(name: str):  # type: ignore[no-untyped-def]
    from basicsr.metrics import psnr_ssim

    return getattr(psnr_ssim, name)


@pytest.fixture(scope="module")
def pairs(benchmark_dir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs (SR, HR) of real BGR images, upscaled by interpolation; comic has odd sizes, foreman has little texture."""
    found = {}
    for set_name, image in (("Set5", "bird"), ("Set14", "comic"), ("Set14", "foreman")):
        hr = cv2.imread(str(benchmark_dir / set_name / "HR" / f"{image}.png"))
        lr = cv2.imread(str(benchmark_dir / set_name / "LR_bicubic" / "X4" / f"{image}x4.png"))
        sr = cv2.resize(lr, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        found[image] = (sr, np.ascontiguousarray(hr[: sr.shape[0], : sr.shape[1]]))
    return found


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("y", [False, True])
@pytest.mark.parametrize("crop", [0, 4])
def test_equal_to_basicsr_on_real_images(pairs, name: str, y: bool, crop: int) -> None:  # type: ignore[no-untyped-def]
    for image, (sr, hr) in pairs.items():
        arguments = {"crop_border": crop, "test_y_channel": y}
        expected = basicsr_metric(name)(sr, hr, **arguments)
        assert OURS[name](sr, hr, **arguments) == pytest.approx(expected, abs=1e-6, rel=0), image


@pytest.mark.parametrize("name", OURS)
def test_equal_to_basicsr_in_chw_and_on_grey_and_float(pairs, name: str) -> None:  # type: ignore[no-untyped-def]
    sr, hr = pairs["bird"]
    variants = {
        "CHW": (sr.transpose(2, 0, 1), hr.transpose(2, 0, 1), {"input_order": "CHW"}),
        "CHW, Y": (sr.transpose(2, 0, 1), hr.transpose(2, 0, 1), {"input_order": "CHW", "test_y_channel": True}),
        "grey": (sr[..., 0], hr[..., 0], {}),
        "grey, Y": (sr[..., 0], hr[..., 0], {"test_y_channel": True}),
        "one channel": (sr[..., :1], hr[..., :1], {}),
        "float": (sr.astype(np.float32) + 0.25, hr.astype(np.float64), {}),
    }
    for variant, (a, b, arguments) in variants.items():
        expected = basicsr_metric(name)(a, b, crop_border=4, **arguments)
        assert OURS[name](a, b, crop_border=4, **arguments) == pytest.approx(expected, abs=1e-6, rel=0), variant


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("y", [False, True])
def test_equal_to_basicsr_on_nearly_equal_images(pairs, name: str, y: bool) -> None:  # type: ignore[no-untyped-def]
    """At a PSNR of 57 dB and more, where rounding of the Y channel affects the result."""
    _, hr = pairs["bird"]
    for rows in (3, 100, 288):
        other = hr.copy()
        other[:rows, ::2, 1] ^= 1
        expected = basicsr_metric(name)(other, hr, crop_border=2, test_y_channel=y)
        assert OURS[name](other, hr, crop_border=2, test_y_channel=y) == pytest.approx(expected, abs=1e-6, rel=0)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(11, 90),
    width=st.integers(11, 40),
    channels=st.sampled_from([1, 3]),
    y=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equal_to_basicsr_at_any_size(height: int, width: int, channels: int, y: bool, seed: int) -> None:
    a, b = np.random.default_rng(seed).integers(0, 256, (2, height, width, channels), dtype=np.uint8)
    for name, ours in OURS.items():
        expected = basicsr_metric(name)(a, b, crop_border=0, test_y_channel=y)
        assert ours(a, b, crop_border=0, test_y_channel=y) == pytest.approx(expected, abs=1e-6, rel=0)


@pytest.mark.parametrize("y", [False, True])
def test_rgb_functions_equal_the_bgr_metrics(pairs, y: bool) -> None:  # type: ignore[no-untyped-def]
    sr, hr = pairs["bird"]
    rgb_sr, rgb_hr = sr[..., ::-1], hr[..., ::-1]
    assert psnr(rgb_sr, rgb_hr, crop=4, y=y) == calculate_psnr(sr, hr, 4, test_y_channel=y)
    assert ssim(rgb_sr, rgb_hr, crop=4, y=y) == calculate_ssim(sr, hr, 4, test_y_channel=y)
    if y:  # the channel order affects the result
        assert abs(psnr(sr, hr, crop=4, y=True) - psnr(rgb_sr, rgb_hr, crop=4, y=True)) > 0.01


def test_equal_images_have_infinite_psnr_and_ssim_one(pairs) -> None:  # type: ignore[no-untyped-def]
    _, hr = pairs["bird"]
    for y in (False, True):
        assert math.isinf(psnr(hr, hr.copy(), y=y))
        assert ssim(hr, hr.copy(), y=y) == pytest.approx(1)


def test_psnr_of_a_constant_difference() -> None:
    zeros = np.zeros((20, 20, 3), np.uint8)
    assert psnr(zeros, zeros + 5) == pytest.approx(20 * math.log10(255 / 5))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_mistakes_are_named(metric) -> None:  # type: ignore[no-untyped-def]
    image = np.zeros((20, 24, 3), np.uint8)
    with pytest.raises(DataError, match=r"shape.*\(20, 24, 3\) and \(20, 23, 3\)"):
        metric(image, image[:, :23])
    with pytest.raises(DataError, match=r"24x20 .*too small"):
        metric(image, image, crop=10)
    with pytest.raises(OptionError, match="negative"):
        metric(image, image, crop=-1)
    with pytest.raises(OptionError, match=r"input_order: 'WHC'.*HWC or CHW"):
        find(METRIC_REGISTRY, f"calculate_{metric.__name__}")(image, image, crop_border=0, input_order="WHC")


def test_ssim_needs_11_rows_and_columns() -> None:
    image = np.zeros((14, 40), np.uint8)
    assert ssim(image, image, crop=1) == 1
    with pytest.raises(DataError, match=r"11x11 pixels.*border of 2"):
        ssim(image, image, crop=2)


def test_registry_prefers_ours_and_keeps_basicsr() -> None:
    assert find(METRIC_REGISTRY, "calculate_psnr") is calculate_psnr
    assert METRIC_REGISTRY.get("calculate_psnr") is basicsr_metric("calculate_psnr")
    assert list(inspect.signature(calculate_ssim).parameters)[:4] == ["img", "img2", "crop_border", "input_order"]
    image = np.zeros((16, 16, 3), np.uint8)
    section = {"type": "calculate_psnr", "crop_border": 0}
    assert build(METRIC_REGISTRY, section, img=image, img2=image + 255) == 0


def test_niqe_stays_usable_by_name(pairs) -> None:  # type: ignore[no-untyped-def]
    sr, hr = pairs["bird"]
    niqe = find(METRIC_REGISTRY, "calculate_niqe")
    assert 0 < niqe(img=hr, crop_border=4) < niqe(img=sr, crop_border=4)


def test_published_rows() -> None:
    assert published("SAFMN", 2, "Set5") == (38.00, 0.9605)
    assert published("safmn-l", 4, "bsd100") == (27.82, 0.7440)
    assert published("SMFANet", 4, "Manga109") == (30.82, None)
    assert published("SAFMN", 8, "Set5") is None
    assert published("SAFMN", 2, "DIV2K") is None
    assert published("Unheard", 2, "Set5") is None
    assert len({(row.table, row.network, row.scale) for row in published_rows()}) == len(published_rows())
    for row in published_rows():
        assert set(row.quality) <= set(SETS)
        assert all(20 < value < 40 and (s is None or 0.6 < s < 1) for value, s in row.quality.values())


def test_network_names() -> None:
    assert network_name({"type": "SAFMN", "dim": 36, "n_blocks": 8, "ffn_scale": 2.0, "upscaling_factor": 4}) == "SAFMN"
    assert network_name({"type": "SAFMN", "dim": 128, "n_blocks": 16}) == "SAFMN-L"
    assert network_name({"type": "SAFMN", "dim": 36, "n_blocks": 8, "ffn_scale": 1.5}) is None
    assert network_name({"type": "SAFMN", "upscaling_factor": 4}) == "SAFMN"
    assert network_name({"type": "SAFMN", "dim": 40, "n_blocks": 8}) is None
    assert network_name({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_block": 17}) is None


def test_read_rgb_has_the_channel_order_of_psnr(benchmark_dir: Path) -> None:
    path = benchmark_dir / "Set5" / "HR" / "bird.png"
    assert math.isinf(psnr(read_rgb(path), cv2.imread(str(path))[..., ::-1]))


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_y_that_is_computed_before_gives_the_same_digits(kind: type) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (40, 50, 3)).astype(kind) for _ in range(2))
    for metric in (fidelity.calculate_psnr, fidelity.calculate_ssim):
        whole = metric(a, b, crop_border=4, test_y_channel=True)
        assert whole == metric(fidelity.y_of_bgr(a), fidelity.y_of_bgr(b), crop_border=4, test_y_channel=True)
    scaled = a.astype(np.float32) / np.float32(255)
    exact = (scaled @ fidelity._BGR_LUMA + 16.0) / 255.0  # in the order of BasicSR's bgr2ycbcr
    assert np.array_equal(fidelity.y_of_bgr(a), exact.astype(np.float32) * np.float32(255))
    grey = a[..., 0]
    assert fidelity.y_of_bgr(grey) is grey
