"""Single degradation operations equal BasicSR's functions, libjpeg, torch or theory."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import safmn  # noqa: F401 - makes basicsr importable
from safmn.degradations import fields, kernels, operations, sharpening
from safmn.degradations.recipe import Compress, GaussianNoise, Kernel, PoissonNoise, SensorNoise
from safmn.imaging import imresize, list_images, read_rgb

FAMILIES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


@functools.cache
def _photo(path: Path) -> np.ndarray:
    return read_rgb(path)


@pytest.fixture
def photo(photos_dir: Path) -> np.ndarray:
    """Return a photograph, uint8 (200, 180, 3)."""
    return _photo(list_images(photos_dir / "val")[0])[100:300, 60:240]


@pytest.fixture
def image(photo: np.ndarray) -> np.ndarray:
    """Return the photograph as float32 (200, 180, 3) in [0, 1]."""
    return photo.astype(np.float32) / 255


def planes(image: np.ndarray) -> torch.Tensor:
    """Convert an (H, W, 3) array to a (3, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def array(tensor: torch.Tensor) -> np.ndarray:
    """Convert a (3, H, W) tensor to an (H, W, 3) array."""
    return tensor.permute(1, 2, 0).numpy()


def done(name: str, image: np.ndarray, *arguments: Any) -> np.ndarray:
    """Return the result of an operation on a copy of the image; check that it is float32."""
    result = getattr(operations, name)(image.copy(), *arguments)
    assert result.dtype == np.float32
    return result


def random_kernel(rng: np.random.Generator, kind: str, size: int) -> Kernel:
    sigma_x, sigma_y = rng.uniform(0.2, 3, 2).tolist()
    rotation, beta = float(rng.uniform(-np.pi, np.pi)), float(rng.uniform(0.5, 4))
    if kind.endswith("aniso"):
        return Kernel(kind, size, sigma_x, sigma_y, rotation, beta)
    if kind == "sinc":
        return Kernel(kind, size, cutoff=float(rng.uniform(np.pi / 5, np.pi)))
    return Kernel(kind, size, sigma_x, sigma_x, 0.0, beta)


def basicsr_kernel(kernel: Kernel) -> np.ndarray:
    from basicsr.data import degradations as theirs

    size, isotropic = kernel.size, not kernel.kind.endswith("aniso")
    shape = (size, kernel.sigma_x, kernel.sigma_y, kernel.rotation)
    if kernel.kind == "sinc":
        return theirs.circular_lowpass_kernel(kernel.cutoff, size)
    if kernel.kind.startswith("generalized"):
        return theirs.bivariate_generalized_Gaussian(*shape, kernel.beta, isotropic=isotropic)
    if kernel.kind.startswith("plateau"):
        return theirs.bivariate_plateau(*shape, kernel.beta, isotropic=isotropic)
    return theirs.bivariate_Gaussian(*shape, isotropic=isotropic)


@pytest.mark.parametrize("kind", [*FAMILIES, "sinc"])
def test_kernels_equal_basicsrs(kind: str) -> None:
    rng = np.random.default_rng(0)
    for size in range(7, 23, 2):
        for _ in range(10):
            kernel = random_kernel(rng, kind, size)
            np.testing.assert_allclose(kernels.weights(kernel), basicsr_kernel(kernel), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", [*FAMILIES, "sinc"])
def test_blur_equals_basicsrs_filter2d(kind: str, image: np.ndarray) -> None:
    from basicsr.utils.img_process_util import filter2D

    rng = np.random.default_rng(1)
    for size in range(7, 23, 2):
        kernel = random_kernel(rng, kind, size)
        weights = torch.from_numpy(basicsr_kernel(kernel)).float()[None]
        expected = array(filter2D(planes(image)[None], weights)[0])
        blurred = done("blur", image, kernel)
        np.testing.assert_allclose(blurred, expected, rtol=0, atol=4e-6)


def test_blur_takes_images_smaller_than_the_kernel(image: np.ndarray) -> None:
    """BasicSR's filter fails on these; ours mirrors repeatedly."""
    kernel = random_kernel(np.random.default_rng(2), "aniso", 21)
    weights = kernels.weights(kernel)
    for height, width in ((5, 9), (1, 12), (3, 1)):
        small = image[:height, :width]
        padded = np.pad(small, ((10, 10), (10, 10), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (21, 21), axis=(0, 1))  # (h, w, 3, 21, 21)
        expected = np.einsum("hwcij,ij->hwc", windows, weights)
        np.testing.assert_allclose(done("blur", small, kernel), expected, rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [*FAMILIES, "sinc"])
@pytest.mark.parametrize("sigma", [5e-324, 1e-200, 1e-3, 1e200])
@pytest.mark.parametrize("beta", [5e-324, 1000.0, 1e308])
def test_kernels_with_extreme_parameters_are_normalised(kind: Any, sigma: float, beta: float) -> None:
    for other in (sigma, 1.0):
        values = kernels.weights(Kernel(kind, 7, sigma, other, 1.0, beta, cutoff=0.01))
        assert values.sum() == pytest.approx(1)
        assert values.max() == values[3, 3]


def test_kernels_are_factorised_if_that_is_less_work() -> None:
    kernel = kernels.weights(Kernel("iso", 21, 2.0, 2.0))
    factors = kernels.separable(kernel)
    assert factors is not None
    assert len(factors[0]) == 1
    for vectors in factors:
        assert np.array_equal(vectors, vectors[:, ::-1])
    assert kernels.separable(kernels.weights(Kernel("plateau_aniso", 7, 0.7, 2.0, 0.5, 1.5))) is None


@pytest.mark.parametrize("sharpened", [operations.sharpen, lambda image: array(sharpening.sharpen(planes(image)))])
def test_sharpen_equals_basicsrs(sharpened: Any, image: np.ndarray) -> None:
    from basicsr.utils.img_process_util import USMSharp, usm_sharp

    sharp = sharpened(image)
    np.testing.assert_allclose(sharp, array(USMSharp()(planes(image)[None])[0]), rtol=0, atol=2e-5)
    np.testing.assert_allclose(sharp, usm_sharp(image), rtol=0, atol=2e-5)
    assert np.abs(sharp - image).max() > 0.02


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic", "nearest"])
def test_resize_equals_torchs(mode: str, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    for factor in (0.15, 0.4137, 0.87, 1.23, 1.4999):
        expected = torch.nn.functional.interpolate(planes(image)[None], scale_factor=factor, mode=mode)[0]
        size = (int(height * factor), int(width * factor))
        assert expected.shape[1:] == size
        resized = done("resize", image, mode, size, factor)
        np.testing.assert_allclose(resized, array(expected), rtol=0, atol=1e-4)
    for size in ((50, 45), (33, 61), (250, 181)):
        expected = torch.nn.functional.interpolate(planes(image)[None], size=size, mode=mode)[0]
        resized = done("resize", image, mode, size, None)
        np.testing.assert_allclose(resized, array(expected), rtol=0, atol=1e-4)


def test_matlab_bicubic_equals_imresize_and_lanczos_is_antialiased(photo: np.ndarray, image: np.ndarray) -> None:
    resized = done("resize", image, "matlab_bicubic", (50, 45), None)
    assert np.array_equal(np.rint(resized * 255), imresize(photo, 1 / 4))
    stripes = np.repeat(np.arange(180)[None, :, None] % 2, 200, axis=0).repeat(3, axis=2).astype(np.float32)
    resized = done("resize", stripes, "lanczos", (50, 45), None)
    assert resized.shape == (50, 45, 3)
    np.testing.assert_allclose(resized[:, 2:-2], 0.5, atol=0.02)  # stripes too fine for the result become grey


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_equals_basicsrs(grey: bool, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our random numbers in place of torch's."""
    from basicsr.data.degradations import add_gaussian_noise_pt

    step = GaussianNoise(17.5, grey, 3)
    field = planes(fields.normal(step.seed, *image.shape[:2], grey=grey))
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: field[0] if len(shape) == 2 else field.expand(shape))
    expected = array(add_gaussian_noise_pt(planes(image)[None], step.sigma, float(grey))[0])
    monkeypatch.undo()
    noisy = done("gaussian_noise", image, step)
    np.testing.assert_allclose(noisy, expected, rtol=0, atol=1e-6)
    assert abs((noisy - image).std() * 255 - step.sigma) < 1


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("contrast", [1.0, 0.3], ids=["all levels", "few levels"])
def test_poisson_noise_equals_basicsrs(
    grey: bool, contrast: float, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With our counts in place of torch's. This compares levels, grey conversion, scale and clamping."""
    from basicsr.data.degradations import add_poisson_noise_pt

    source = image * np.float32(contrast)
    step = PoissonNoise(2.2, grey, 4)
    bins = fields.uniform_bins(step.seed, *image.shape[:2], grey=grey)
    shown = torch.tensordot(torch.tensor(operations.GREY_WEIGHTS), planes(source), 1) if grey else planes(source)
    brightest = float(torch.round(shown * 255).max() / 255)

    def counts(expected: torch.Tensor) -> torch.Tensor:
        if expected.shape[1] != bins.shape[2]:  # BasicSR also computes colour noise if it only uses grey noise
            return expected
        levels = round(float(expected.max()) / brightest)
        level = torch.round(expected[0] / levels * 255).long().permute(1, 2, 0).numpy()
        return planes(fields.poisson_quantiles(levels)[(level << fields.POISSON_BITS) + bins].astype(np.float32))[None]

    monkeypatch.setattr(torch, "poisson", counts)
    expected = array(add_poisson_noise_pt(planes(source)[None], step.scale, gray_noise=float(grey))[0])
    monkeypatch.undo()
    noisy = done("poisson_noise", source, step)
    different = np.abs(noisy - expected) > 2e-5
    assert different.mean() < 1e-3  # single precision rounds a few grey levels differently
    assert np.abs(noisy - source).std() > 0.01


@pytest.mark.parametrize(
    ("levels", "variance"), [(1, 0.012), (2, 0.012), (4, 0.0015), (16, 0.0015), (64, 0.0006), (256, 0.0006)]
)
def test_poisson_counts_have_the_mean_and_variance_of_poisson(levels: int, variance: float) -> None:
    """The bounds are those of docs/realworld.md."""
    table = fields.poisson_quantiles(levels).reshape(256, -1).astype(np.float64)
    expected = np.arange(256) / 255 * levels
    np.testing.assert_allclose(table.mean(axis=1), expected, rtol=4e-3)
    np.testing.assert_allclose(table.var(axis=1), expected, rtol=variance)
    assert not table[0].any()
    assert table.max() < 2**15


def test_fields_have_the_right_shape_and_distribution_and_repeat() -> None:
    noise = fields.normal(5, 200, 300, grey=False)
    assert noise.shape == (200, 300, 3)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert np.array_equal(noise, fields.normal(5, 200, 300, grey=False))
    assert not np.array_equal(noise, fields.normal(6, 200, 300, grey=False))
    bins = fields.uniform_bins(5, 200, 300, grey=True)
    assert bins.shape == (200, 300, 1)
    assert bins.max() < 1 << fields.POISSON_BITS
    assert abs(bins.mean() / (1 << fields.POISSON_BITS) - 0.5) < 0.01
    assert [fields.poisson_levels(n) for n in (1, 2, 3, 128, 129, 256)] == [1, 2, 4, 128, 256, 256]


def test_sensor_noise_grows_with_the_signal() -> None:
    step = SensorNoise(0.01, 0.005, 1)
    for light in (0.05, 0.5):
        flat = np.full((300, 300, 3), light ** (1 / 2.2), np.float32)
        linear = done("sensor_noise", flat, step).astype(np.float64) ** 2.2
        assert linear.std() == pytest.approx(np.sqrt(0.01 * light + 0.005**2), rel=0.03)


def libjpeg_by_opencv(image: np.ndarray, quality: int) -> np.ndarray:
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]


def test_jpeg_equals_libjpeg(photo: np.ndarray, image: np.ndarray) -> None:
    for quality in (10, 30, 49, 50, 75, 95, 100):
        compressed = done("compress", image, Compress("jpeg", quality))
        assert np.array_equal(np.rint(compressed * 255), libjpeg_by_opencv(photo, quality))


def test_diffjpeg_equals_basicsrs(image: np.ndarray) -> None:
    from basicsr.utils import DiffJPEG

    theirs = DiffJPEG(differentiable=False)
    for quality in (10, 33, 60, 95):
        for source in (image, image[:77, :51]):
            expected = array(theirs(planes(source)[None], float(quality))[0].detach())
            compressed = done("compress", source, Compress("diffjpeg", quality))
            different = np.abs(compressed - expected) > 1e-4
            assert different.mean() < 1e-3  # rounding errors move a few coefficients across one half


def test_diffjpeg_is_close_to_libjpeg(image: np.ndarray) -> None:
    """The mean difference is smaller than the compression error, and below 3.5 grey levels."""
    for quality in (30, 60, 95):
        real = operations.compress(image, Compress("jpeg", quality))
        approximate = operations.compress(image, Compress("diffjpeg", quality))
        assert np.abs(real - approximate).mean() * 255 < 3.5
        assert np.abs(real - approximate).mean() < np.abs(real - image).mean()


@pytest.mark.parametrize("codec", ["webp", "avif"])
def test_other_codecs_lose_more_at_lower_quality(codec: str, image: np.ndarray) -> None:
    if not cv2.haveImageWriter(f".{codec}"):
        pytest.skip(f"this OpenCV cannot write {codec}")
    losses = []
    for quality in (5, 40, 90):
        losses.append(np.abs(done("compress", image, Compress(codec, quality)) - image).mean() * 255)
    assert 20 > losses[0] > losses[1] > losses[2] > 0


def test_finish_rounds_half_to_even() -> None:
    values = np.array([-0.1, 0.5 / 255, 1.5 / 255, 0.3, 1.2], np.float32)
    strip = np.repeat(values[None, :, None], 3, axis=2)
    finished = done("finish", strip)
    assert np.allclose(finished[0, :, 0] * 255, [0, 0, 2, 76, 255], atol=1e-4)
