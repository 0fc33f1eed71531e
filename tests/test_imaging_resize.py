"""imresize reproduces MATLAB's published images bit for bit, and follows the documented rule for all other inputs."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safmn.errors import UserError
from safmn.imaging import imresize, mod_crop, read_image, resize


def cubic(x: float) -> float:
    """Return the cubic kernel with a = -0.5."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def plain_axis(signal: np.ndarray, count: int, scale: float, border: str, antialiasing: bool) -> np.ndarray:
    """Apply the rule to one axis, sample by sample: (n, ...) -> (count, ...), float64."""
    n = len(signal)
    stretch = 1 / scale if scale < 1 and antialiasing else 1.0
    rows = []
    for x in range(count):
        centre = (x + 0.5) / scale - 0.5
        reach = 2 * stretch
        taps = range(math.floor(centre - reach) - 1, math.ceil(centre + reach) + 2)
        weights = np.array([cubic((centre - tap) / stretch) for tap in taps])
        if border == "symmetric":
            places = [tap % (2 * n) if tap % (2 * n) < n else 2 * n - 1 - tap % (2 * n) for tap in taps]
        else:
            places = [min(max(tap, 0), n - 1) for tap in taps]
        rows.append(np.tensordot(weights / weights.sum(), signal[places].astype(np.float64), axes=1))
    return np.stack(rows)


def plain_resize(
    image: np.ndarray, shape: tuple[int, int], scales: tuple[float, float], border: str, antialiasing: bool = True
) -> np.ndarray:
    """Apply the full rule: the axis that shrinks most comes first; integers are rounded and clamped after each pass."""
    result = image
    for axis in sorted((0, 1), key=lambda a: scales[a]):
        moved = plain_axis(np.moveaxis(result, axis, 0), shape[axis], scales[axis], border, antialiasing)
        if image.dtype.kind == "u":
            moved = np.clip(np.floor(moved + 0.5 + 1e-9), 0, np.iinfo(image.dtype).max)
        result = np.moveaxis(moved, 0, axis).astype(image.dtype)
    return result


def pixels(shape: tuple[int, ...], seed: int, dtype: type = np.uint8) -> np.ndarray:
    """Return noise; for odd seeds it is black and white only, for the strongest overshoot and clamping."""
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    return (rng.integers(0, 2, shape) * top if seed % 2 else rng.integers(0, top + 1, shape)).astype(dtype)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_published_lr_images_are_reproduced_bit_for_bit(benchmark_dir: Path, scale: int) -> None:
    compared = 0
    for folder in ("Set5", "Set14"):
        for path in sorted((benchmark_dir / folder / "HR").glob("*.png")):
            wanted = read_image(benchmark_dir / folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")
            made = imresize(mod_crop(read_image(path), scale), 1 / scale)
            assert made.shape == wanted.shape
            assert np.array_equal(made, wanted), f"{path} at x{scale}: {np.sum(made != wanted)} samples differ"
            compared += 1
    assert compared == 19


def test_rounding_only_once_differs_from_matlab(benchmark_dir: Path) -> None:
    """With floats between the passes, more than a tenth of the pixels differ, so the test above can fail."""
    image = mod_crop(read_image(benchmark_dir / "Set5/HR/butterfly.png"), 4)
    wanted = read_image(benchmark_dir / "Set5/LR_bicubic/X4/butterflyx4.png")
    once = np.clip(np.floor(imresize(image.astype(np.float64), 1 / 4) + 0.5), 0, 255)
    assert np.mean((once != wanted).any(axis=2)) > 0.1


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    channels=st.sampled_from([None, 1, 2, 3, 4, 5]),
    scale=st.sampled_from([1 / 8, 1 / 4, 1 / 3, 1 / 2, 2.0, 3.0, 4.0, 1.0, 1.5, 2 / 3]) | st.floats(0.11, 3.0),
    border=st.sampled_from(["symmetric", "replicate"]),
    antialiasing=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_uint8_follows_the_rule(
    height: int, width: int, channels: int | None, scale: float, border: str, antialiasing: bool, seed: int
) -> None:
    image = pixels((height, width) if channels is None else (height, width, channels), seed)
    shape = (math.ceil(height * scale), math.ceil(width * scale))
    made = imresize(image, scale, border=border, antialiasing=antialiasing)
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, plain_resize(image, shape, (scale, scale), border, antialiasing))


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    border=st.sampled_from(["symmetric", "replicate"]),
    seed=st.integers(0, 2**16),
)
def test_output_shape_scales_each_axis_to_fit(
    size: tuple[int, int], shape: tuple[int, int], border: str, seed: int
) -> None:
    image = pixels((*size, 3), seed)
    scales = (shape[0] / size[0], shape[1] / size[1])
    made = imresize(image, output_shape=shape, border=border)
    np.testing.assert_array_equal(made, plain_resize(image, shape, scales, border))


def test_output_shape_with_a_scale_gives_only_the_number_of_samples() -> None:
    image = pixels((41, 50), 4)
    made = imresize(image, 1 / 4, output_shape=(10, 13))
    np.testing.assert_array_equal(made, plain_resize(image, (10, 13), (1 / 4, 1 / 4), "symmetric"))
    np.testing.assert_array_equal(made[:, :12], imresize(image, 1 / 4)[:10, :12])


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 2.0, 0.7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_kept_between_passes(scale: float, dtype: type) -> None:
    image = np.random.default_rng(3).random((24, 36, 3)).astype(dtype)
    shape = (math.ceil(24 * scale), math.ceil(36 * scale))
    made = imresize(image, scale)
    assert made.dtype == dtype
    expected = plain_resize(image.astype(np.float64), shape, (scale, scale), "symmetric")
    np.testing.assert_allclose(made, expected, atol=1e-6 if dtype == np.float32 else 1e-12)
    if scale > 1:
        assert made.min() < 0 or made.max() > 1  # overshoot is not clamped


def test_floats_equal_basicsr() -> None:
    from basicsr.utils.matlab_functions import imresize as theirs

    image = np.random.default_rng(5).random((48, 64, 3)).astype(np.float32)
    for scale in (1 / 4, 1 / 2, 2.0):
        np.testing.assert_allclose(imresize(image, scale), theirs(image, scale), atol=2e-5)


@pytest.mark.parametrize("scale", [1 / 4, 2.0])
def test_uint16_follows_the_rule(scale: float) -> None:
    image = pixels((24, 20, 3), 8, np.uint16)
    shape = (int(24 * scale), int(20 * scale))
    np.testing.assert_array_equal(imresize(image, scale), plain_resize(image, shape, (scale, scale), "symmetric"))


@pytest.mark.parametrize("scale", resize._FIXED_POINT_SCALES)
@pytest.mark.parametrize("seed", [0, 1])
def test_fixed_point_and_double_precision_agree(scale: float, seed: int) -> None:
    """They agree on more samples than the plain rule can process, for noise and for black and white."""
    columns = pixels((240, 3001), seed)
    rows = math.ceil(240 * scale)
    fast = resize._resize_rows_in_fixed_point(columns, rows, scale, "symmetric")
    np.testing.assert_array_equal(fast, resize._resize_rows_by_matrix(columns, rows, scale, "symmetric", True))


def test_an_inexact_kernel_is_detected_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = pixels((32, 40, 3), 2)
    right = imresize(image, 1 / 4)
    kernel = resize._resize_rows_in_fixed_point
    monkeypatch.setattr(resize, "_resize_rows_in_fixed_point", lambda *a: kernel(*a) ^ 1)
    resize._fixed_point_is_exact.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "safmn"):
            np.testing.assert_array_equal(imresize(image, 1 / 4), right)
        assert "not exact" in caplog.text
    finally:
        resize._fixed_point_is_exact.cache_clear()


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (np.zeros((8, 8), bool), {"scale": 0.5}, "bool array of shape"),
        (np.zeros((8, 8), np.int64), {"scale": 0.5}, "int64"),
        (np.zeros((1, 8, 8, 3), np.uint8), {"scale": 0.5}, "shape"),
        (np.zeros((0, 8), np.uint8), {"scale": 0.5}, "empty"),
        ([[1, 2]], {"scale": 0.5}, "list"),
        (np.zeros((8, 8), np.uint8), {}, "needs a scale"),
        (np.zeros((8, 8), np.uint8), {"scale": 0}, "positive"),
        (np.zeros((8, 8), np.uint8), {"scale": -2}, "positive"),
        (np.zeros((8, 8), np.uint8), {"scale": float("nan")}, "positive"),
        (np.zeros((8, 8), np.uint8), {"output_shape": (0, 4)}, "output_shape"),
        (np.zeros((8, 8), np.uint8), {"output_shape": (4,)}, "output_shape"),
        (np.zeros((8, 8), np.uint8), {"scale": 0.5, "border": "circular"}, "circular"),
    ],
)
def test_bad_input_is_named(image: object, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        imresize(image, **arguments)  # type: ignore[arg-type]
