"""The field's losses equal an independent implementation: numpy in float64, or the authors' packages if installed."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from safmn.errors import OptionError, WeightsError
from safmn.losses.backbones import features
from safmn.losses.wavelet_loss import FILTERS, WaveletLoss
from safmn.registry import LOSS_REGISTRY, build

Array = np.ndarray[Any, Any]


def images(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return two images in [0, 1] that resemble each other."""
    generator = torch.Generator().manual_seed(sum(shape))
    pred = torch.rand(shape, generator=generator, dtype=torch.float64)
    target = (pred + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return pred.to(dtype), target.to(dtype)


def value(kind: str, pair: tuple[Tensor, Tensor], **arguments: Any) -> float:
    return float(build(LOSS_REGISTRY, {"type": kind, **arguments})(*pair))


def plain_ms_ssim(one: Array, other: Array, levels: int) -> float:
    """Return MS-SSIM of two (H, W) images in [0, 1], with scipy's correlation."""
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:levels])
    exponents /= 1 if levels == 5 else exponents.sum()
    steps = np.arange(11) - 5
    window = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def mean(image: Array) -> Array:
        return ndimage.correlate(image, window)[5:-5, 5:-5]

    product = 1.0
    for level in range(levels):
        x, y = mean(one), mean(other)
        structure = (2 * (mean(one * other) - x * y) + 0.03**2) / (
            mean(one * one) - x * x + mean(other * other) - y * y + 0.03**2
        )
        luminance = (2 * x * y + 0.01**2) / (x * x + y * y + 0.01**2)
        last = level == levels - 1
        product *= max((structure * luminance if last else structure).mean(), 0) ** exponents[level]
        if not last:
            one, other = (image.reshape(len(image) // 2, 2, -1, 2).mean(axis=(1, 3)) for image in (one, other))
    return product


@pytest.mark.parametrize(("side", "levels"), [(176, 5), (64, 3), (32, 1)])
def test_ms_ssim(side: int, levels: int) -> None:
    pair = images(2, 3, side, side)
    planes = [image.numpy().reshape(6, side, side) for image in pair]
    expected = 1 - np.mean([plain_ms_ssim(a, b, levels) for a, b in zip(*planes, strict=True)])
    assert value("MSSSIMLoss", pair, levels=levels, loss_weight=2) == pytest.approx(2 * expected, rel=1e-10)
    with pytest.raises(OptionError, match="set fewer levels, or a larger gt_size"):
        value("MSSSIMLoss", images(1, 3, 40, 40), levels=3)


def test_gradient_maps() -> None:
    pair = images(2, 3, 9, 12)
    found = []
    for image in pair:
        padded = np.pad(image.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        found.append(
            (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1])
        )
    lengths = [np.sqrt(x**2 + y**2 + 1e-6) for x, y in found]
    assert value("GradientMapLoss", pair) == pytest.approx(np.abs(lengths[0] - lengths[1]).mean(), rel=1e-12)
    both = np.mean([np.abs(a - b).mean() for a, b in zip(*found, strict=True)])
    assert value("GradientMapLoss", pair, of="components") == pytest.approx(both, rel=1e-12)


@pytest.mark.parametrize("name", FILTERS)
def test_wavelet_filters_are_orthonormal(name: str) -> None:
    low = np.array(FILTERS[name])
    assert low.sum() == pytest.approx(math.sqrt(2), rel=1e-9)
    for shift in range(0, len(low), 2):
        product = (low[shift:] * low[: len(low) - shift]).sum()
        assert product == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-9)


def plain_bands(image: Array, low: Array, gap: int) -> list[Array]:
    """Return the stationary bands of (H, W), from the definition: sums over shifted images."""
    high = low[::-1] * np.where(np.arange(len(low)) % 2, 1.0, -1.0)
    half = len(low) // 2

    def filtered(array: Array, taps: Array, axis: int) -> Array:
        shifts = ((half - 1 - k) * gap for k in range(len(taps)))
        return sum(tap * np.roll(array, -shift, axis) for tap, shift in zip(taps, shifts, strict=True))

    return [filtered(filtered(image, across, 1), down, 0) for across in (low, high) for down in (low, high)]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("stationary", [True, False])
def test_wavelets(name: str, stationary: bool) -> None:
    pred, target = images(1, 1, 16, 20)
    low = np.array(FILTERS[name])
    weights = [0.5, 1.0, 2.0, 3.0]
    difference = (pred - target)[0, 0].numpy()
    expected = 0.0
    for level in range(2):
        bands = plain_bands(difference, low, 2**level if stationary else 1)
        bands = bands if stationary else [band[1::2, 1::2] for band in bands]
        for index, band in enumerate(bands):
            if index or level == 1:
                expected += weights[index] * np.abs(band).mean()
        difference = bands[0]
    found = value("WaveletLoss", (pred, target), wavelet=name, levels=2, stationary=stationary, band_weights=weights)
    assert found == pytest.approx(expected, rel=1e-9)


def test_wavelets_equal_pywavelets() -> None:
    pywt = pytest.importorskip("pywt", reason="PyWavelets is not installed")
    image = images(1, 1, 32, 32)[0]
    for name, taps in FILTERS.items():
        assert np.allclose(pywt.Wavelet(name).dec_lo, taps, atol=1e-10)
        ours = WaveletLoss(wavelet=name).bands(image)
        ll, (lh, hl, hh) = pywt.swt2(image[0, 0].numpy(), name, level=1)[0]
        for mine, theirs in zip(ours, (ll, lh, hl, hh), strict=True):  # it may start at another pixel
            found = np.sort(np.abs(mine[0, 0].numpy()).ravel())
            assert found == pytest.approx(np.sort(np.abs(theirs).ravel()), abs=1e-9)
        decimated = WaveletLoss(wavelet=name, stationary=False).bands(image)
        approximation, details = pywt.dwt2(image[0, 0].numpy(), name, mode="periodization")
        for mine, theirs in zip(decimated, (approximation, *details), strict=True):
            found = np.sort(np.abs(mine[0, 0].numpy()).ravel())
            assert found == pytest.approx(np.sort(np.abs(theirs).ravel()), abs=1e-9)


def test_wavelets_on_luma_ignore_colour() -> None:
    pred, _ = images(1, 3, 8, 8)
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    other = torch.linalg.cross(weights, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))  # no change of luma
    target = pred + 1e-3 * other.view(1, 3, 1, 1)
    assert value("WaveletLoss", (pred, target), on_luma=True) == pytest.approx(0, abs=1e-12)
    assert value("WaveletLoss", (pred, target)) > 1e-3


def test_consistency_of_luma_and_chroma() -> None:
    pred, target = images(2, 3, 24, 20)
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
    planes = np.einsum("bchw,dc->bdhw", (pred - target).numpy(), matrix)
    window = np.exp(-(np.arange(-6, 7) ** 2) / (2 * 2.0**2))
    window /= window.sum()
    blurred = ndimage.correlate1d(ndimage.correlate1d(planes, window, 3, mode="nearest"), window, 2, mode="nearest")
    expected = 0.7 * np.abs(blurred[:, 0]).mean() + 0.3 * np.abs(blurred[:, 1:]).mean()
    found = value("ConsistencyLoss", (pred, target), luma_weight=0.7, chroma_weight=0.3, sigma=2.0)
    assert found == pytest.approx(expected, rel=1e-9)
    plain = np.abs(planes[:, 0]).mean()
    assert value("ConsistencyLoss", (pred, target), chroma_weight=0, sigma=0) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize(("parts", "logs", "alpha"), [(1, False, 1.0), (2, True, 1.5)])
def test_focal_frequency(parts: int, logs: bool, alpha: float) -> None:
    pred, target = images(2, 3, 8, 12)
    losses = []
    for image in (pred - target).numpy():
        for rows in np.split(image, parts, axis=1):
            for patch in np.split(rows, parts, axis=2):
                for plane in patch:
                    distance = np.abs(np.fft.fft2(plane, norm="ortho"))
                    weights = distance**alpha
                    weights = np.log(weights + 1) if logs else weights
                    losses.append((weights / weights.max() * distance**2).mean())
    arguments = {"patch_factor": parts, "log_matrix": logs, "alpha": alpha}
    assert value("FocalFrequencyLoss", (pred, target), **arguments) == pytest.approx(np.mean(losses), rel=1e-10)
    assert value("FocalFrequencyLoss", (pred, pred)) == 0


def test_contextual_loss_on_patches() -> None:
    pred, target = images(2, 3, 7, 8)
    total = []
    patches = []
    for image in (pred.numpy(), target.numpy()):
        places = [(y, x) for y in range(5) for x in range(6)]
        patches.append(np.stack([image[:, :, y : y + 3, x : x + 3].reshape(2, -1) for y, x in places], axis=2))
    mean = patches[1].mean(axis=(0, 2), keepdims=True)
    one, other = ((part - mean) / np.linalg.norm(part - mean, axis=1, keepdims=True) for part in patches)
    for x, y in zip(one, other, strict=True):
        distance = np.maximum(1 - x.T @ y, 0)
        relative = distance / (distance.min(axis=1, keepdims=True) + 1e-5)
        weights = np.exp((1 - relative) / 0.5)
        weights /= weights.sum(axis=1, keepdims=True)
        total.append(-np.log(weights.max(axis=0).mean()))
    assert value("ContextualLoss", (pred, target), patch=3) == pytest.approx(np.mean(total), rel=1e-9)
    coarse = value("ContextualLoss", images(1, 3, 40, 40), max_positions=30)
    assert coarse > 0
    assert value("ContextualLoss", (pred, pred), patch=3) < 1e-3


def test_charbonnier_loss_of_basicsr() -> None:
    pred, target = images(2, 3, 9, 12)
    expected = np.sqrt((pred - target).numpy() ** 2 + 1e-6).mean()
    assert value("CharbonnierLoss", (pred, target), eps=1e-6) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "section",
    [
        {"type": "MSSSIMLoss", "levels": 1}, {"type": "GradientMapLoss"}, {"type": "WaveletLoss", "levels": 2},
        {"type": "ConsistencyLoss", "sigma": 1.0}, {"type": "FocalFrequencyLoss"},
        {"type": "ContextualLoss", "patch": 3},
    ],
    ids=lambda section: section["type"],
)  # fmt: skip
def test_gradients_and_low_precision(section: dict[str, Any]) -> None:
    loss = build(LOSS_REGISTRY, section)
    pred, target = images(1, 3, 12, 12, dtype=torch.float32)
    pred.requires_grad_()
    found = loss(pred, target)
    (gradient,) = torch.autograd.grad(found, pred)
    assert found.dtype == torch.float32
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    smaller = loss((pred - 1e-2 * gradient / gradient.abs().max()).detach(), target)
    assert smaller < found


# --- LPIPS and DISTS: random weights for the networks, which nobody may download here ------------------------------


def network_file(folder: Path, name: str) -> Path:
    from torchvision import models

    torch.manual_seed(5)
    network = getattr(models, name)(weights=None)
    path = folder / f"{name}.pth"
    torch.save({key: tensor for key, tensor in network.state_dict().items() if key.startswith("features")}, path)
    return path


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_the_authors_package(net: str, tmp_path: Path) -> None:
    lpips = pytest.importorskip("lpips", reason="lpips is not installed")
    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    file = network_file(tmp_path, name)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    trained = features(name, str(file), "x")
    for number in range(1, 6):
        for place, module in getattr(theirs.net, f"slice{number}").named_children():
            module.load_state_dict(trained[int(place)].state_dict())
    pair = images(2, 3, 64, 64, dtype=torch.float32)
    expected = theirs(*pair, normalize=True).mean()
    assert value("LPIPSLoss", pair, net=net, network_weights=str(file)) == pytest.approx(float(expected), rel=1e-4)


def test_dists_equals_the_authors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip(
        "DISTS_pytorch", reason="DISTS-pytorch is not installed: pip install lpips DISTS-pytorch"
    )
    file = network_file(tmp_path, "vgg16")
    code = importlib.import_module("DISTS_pytorch.DISTS_pt")
    stub = type(
        "Models",
        (),
        {"vgg16": staticmethod(lambda **_: type("V", (), {"features": features("vgg16", str(file), "x")}))},
    )
    monkeypatch.setattr(code, "models", stub)
    theirs = code.DISTS(load_weights=False)
    learned = torch.load(Path(module.__file__).parent / "weights.pt", weights_only=True)
    theirs.alpha.data, theirs.beta.data = learned["alpha"], learned["beta"]
    pair = images(2, 3, 64, 64, dtype=torch.float32)
    expected = float(theirs(*pair, batch_average=True))
    assert value("DISTSLoss", pair, network_weights=str(file)) == pytest.approx(expected, rel=1e-4)


def test_what_lpips_and_dists_need_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("safmn.losses.backbones.importlib.util.find_spec", lambda name: None)
    for kind in ("LPIPSLoss", "DISTSLoss"):
        with pytest.raises(WeightsError, match=rf"{kind} needs .* pip install 'lpips>="):
            build(LOSS_REGISTRY, {"type": kind})
    states = {"alpha": torch.ones(1, 1475, 1, 1), "beta": torch.ones(1, 1475, 1, 1)}
    torch.save(states, tmp_path / "learned.pt")
    with pytest.raises(WeightsError, match=r"vgg16, not found in: .*curl"):
        build(LOSS_REGISTRY, {"type": "DISTSLoss", "learned_weights": str(tmp_path / "learned.pt")})


def test_losses_equal_other_packages() -> None:
    msssim = pytest.importorskip("pytorch_msssim", reason="pytorch-msssim is not installed")
    frequency = pytest.importorskip("focal_frequency_loss", reason="focal-frequency-loss is not installed")
    pair = images(2, 3, 176, 181)
    assert value("MSSSIMLoss", pair) == pytest.approx(1 - float(msssim.ms_ssim(*pair, data_range=1.0)), rel=2e-5)
    expected = float(frequency.FocalFrequencyLoss(loss_weight=1.0, alpha=1.0)(*pair))
    assert value("FocalFrequencyLoss", pair) == pytest.approx(expected, rel=1e-5)
