"""The guard replaces garbage by bicubic, leaves everything else bit-identical, and reports what it replaced."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from repeater import repeated
from skimage import data
from torch import Tensor, nn
from torch.nn import functional

from safmn import Upscaler
from safmn.cli.upscale import main
from safmn.errors import DataError, WeightsError
from safmn.evaluation.scoring import evaluate
from safmn.imaging import imresize
from safmn.inference.guard import Finding, Guard, excess, replace
from safmn.inference.samples import made_up_photographs

GREEN = (0, 255, 0)


class Spoiled(nn.Module):
    """Repeats each pixel twice along both sides; where the input is green, the output goes through ``spoil``."""

    scale, window, halo = 2, 8, 8

    def __init__(self, spoil: Any = lambda y: 1 - y) -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        y = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        green = (y[:, 1:2] > 0.9) & (y[:, :1] < 0.1) & (y[:, 2:] < 0.1)
        return torch.where(green, self.spoil(y), y)


def mesh(y: Tensor) -> Tensor:
    """Make pixels alternately 20 levels lighter and darker, which keeps the mean."""
    rows, columns = torch.arange(y.shape[2])[:, None], torch.arange(y.shape[3])
    return y + (20 / 255) * (2.0 * ((rows + columns) % 2) - 1)


def picture(height: int = 112, width: int = 128) -> np.ndarray[Any, Any]:
    """Return a photograph with a green square of 40 pixels at (40, 48)."""
    image = np.ascontiguousarray(data.astronaut()[100 : 100 + height, 100 : 100 + width])
    image[40:80, 48:88] = GREEN
    return image


def upscaler(network: nn.Module | None = None, **arguments: Any) -> Upscaler:
    return Upscaler(network or Spoiled(), device="cpu", backend="eager", **arguments)


def test_garbage_becomes_bicubic_and_the_rest_stays() -> None:
    image, found = picture(), []
    result = upscaler()(image, report=found.append)
    bicubic = 255 * imresize(image / 255, 2).clip(0, 1)  # floats are rounded and clamped once, at the end
    square = (slice(80, 160), slice(96, 176))
    assert np.abs(result[square].astype(int) - bicubic[square]).max() <= 1
    assert np.abs(result[88:152, 104:168].astype(int) - GREEN).max() == 0
    far = np.ones(result.shape[:2], bool)
    far[80 - 32 : 160 + 32, 96 - 32 : 176 + 32] = False
    assert (result[far] == repeated(image)[far]).all()
    finding = found[0]
    assert finding == Finding((7 * 7 * 16 * 16,), 224 * 256, "Spoiled", True)  # 5x5 blocks and their neighbours
    assert "12544 of 57344 pixels" in str(finding)
    assert "Spoiled" in str(finding)


def test_there_are_no_seams() -> None:
    """The result fades from bicubic to the network's output: it stays between the two, without jumps."""
    image = picture()
    image[:, :, :] = np.where((image == GREEN).all(axis=2, keepdims=True), image, np.uint8(100))
    network = Spoiled(lambda y: 1 - y)
    network.forward = lambda x: Spoiled.forward(network, x) + 0.012  # type: ignore[method-assign] # 3 levels lighter
    result = upscaler(network)(image).astype(int)
    assert result[0, 0, 0] == 103
    assert result[72, 104, 0] in (100, 101)
    steps = np.abs(np.diff(result[64:72, :96, 0], axis=1))
    assert steps.max() == 1


def test_a_mesh_with_the_right_mean_is_garbage_too() -> None:
    colour = (20, 235, 20)  # leaves room for the mesh in the range of 0 to 255
    image = np.full((64, 64, 3), colour, np.uint8)
    without = upscaler(Spoiled(mesh), guard=False)(image)
    assert without.mean(axis=(0, 1)) == pytest.approx(np.array(colour), abs=0.01)
    assert without.std(axis=(0, 1)) == pytest.approx(20, abs=0.01)
    assert (upscaler(Spoiled(mesh))(image) == colour).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float16"])
@pytest.mark.parametrize("layout", ["array", "tensor", "batch", "alpha"])
def test_every_kind_of_image(dtype: str, layout: str) -> None:
    image = picture()
    if dtype != "uint8":
        image = (image.astype(np.uint16) * 257) if dtype == "uint16" else (image / 255).astype(dtype)
    full = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    calm = np.ascontiguousarray(image[:, ::-1])
    calm[40:80, 40:80] = full // 2
    green = np.array([0, full, 0])
    found: list[Finding] = []
    if layout == "array":
        result = upscaler()(image, report=found.append)
    elif layout == "tensor":
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        result = upscaler()(tensor, report=found.append).permute(1, 2, 0).numpy()
    elif layout == "batch":
        results = upscaler()(np.stack([calm, image]), report=found.append)
        assert (results[0] == repeated(calm)).all()
        assert found[0].pixels == (0, 7 * 7 * 16 * 16)
        assert "1 of 2 images" in str(found[0])
        result = results[1]
    else:
        alpha = np.full((*image.shape[:2], 1), full, image.dtype)
        alpha[:20] = full // 2
        result = upscaler()(np.concatenate([image, alpha], axis=2), report=found.append)[..., :3]
    assert len(found) == 1
    assert np.abs(result[90:150, 106:166].astype(float) - green).max() <= full * 1e-3


def test_the_guard_works_with_tiles_and_ensembles() -> None:
    image = picture(117, 131)
    whole = upscaler(tile=0)(image)
    assert (upscaler(tile=32)(image) == whole).all()
    ensemble = upscaler(self_ensemble=True, full_frame_semantics=True)(image)
    assert np.abs(ensemble[90:150, 106:166].astype(int) - GREEN).max() == 0


def test_grey_and_odd_sizes() -> None:
    for height, width in ((1, 1), (3, 50), (9, 8), (63, 65)):
        image = np.full((height, width), 255, np.uint8)
        network = Spoiled()
        network.forward = lambda x: 1 - x.repeat_interleave(2, 2).repeat_interleave(2, 3)  # type: ignore[method-assign]
        network.window = 1
        # This network inverts all images, including photographs, so the guard leaves its output.
        assert (upscaler(network)(image) == 0).all()
        assert (upscaler()(image) == 255).all()
        found: list[Finding] = []
        green = np.full((height, width, 3), GREEN, np.uint8)
        assert (upscaler()(green, report=found.append) == GREEN).all()
        assert found[0].pixels == (4 * height * width,)


def test_without_the_guard_the_output_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    image = picture()
    result = upscaler(guard=False)(image)
    assert (result[88:152, 104:168] == (255, 0, 255)).all()
    assert not caplog.records


def distinct(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return each record once: pytest listens twice to a logger that did not propagate when the test began."""
    return list({id(record): record for record in caplog.records}.values())


def test_without_a_report_a_warning_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)
    upscaler()(picture())
    assert [record.levelname for record in distinct(caplog)] == ["WARNING"]
    assert "12544 of 57344 pixels replaced by bicubic" in caplog.text
    assert "guard=False" in caplog.text


# Networks that do more than enlarge


class Shifting(Spoiled):
    """Lightens everything by ``levels``, like a network that changes the style of images."""

    def __init__(self, levels: float) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.levels / 255


def test_networks_that_restore_have_wider_bounds() -> None:
    grey = np.full((64, 64, 3), 100, np.uint8)
    assert (upscaler(Shifting(6))(grey) == 106).all()
    green = np.full((64, 64, 3), GREEN, np.uint8)
    assert (upscaler(Shifting(6))(green) == GREEN).all()  # inverted by the network, far worse than 6 levels


def test_the_guard_is_off_for_a_network_that_changes_all_colours_and_warns_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)
    styled = upscaler(Shifting(40))
    for _ in range(2):
        assert (styled(np.full((64, 64, 3), 100, np.uint8)) == 140).all()
    assert len(distinct(caplog)) == 1
    assert "guard against garbage is off: Shifting" in caplog.text


def test_tolerance_follows_new_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))
    network.scale, network.window = 2, 8  # type: ignore[assignment]
    with torch.no_grad():
        network[0].weight.zero_()
        for channel in range(3):
            network[0].weight[4 * channel : 4 * channel + 4, channel] = 1
        network[0].bias.fill_(40 / 255)
    shifted, image = upscaler(network), np.full((16, 16, 3), 100, np.uint8)
    assert (shifted(image) == 140).all()
    with torch.no_grad():
        network[0].bias.zero_()
    assert (shifted(image) == 100).all()
    assert shifted._current_engine().guard.tolerance == 1


# NaN and infinity


def test_an_output_that_is_nan_everywhere_is_an_error() -> None:
    nothing = Spoiled(lambda y: y * torch.nan)
    green = np.full((40, 50, 3), GREEN, np.uint8)
    for guard in (True, False):
        for image in (green, green.astype(np.float32) / 255):
            with pytest.raises(WeightsError, match="Spoiled is not finite"):
                upscaler(nothing, guard=guard)(image)
    with pytest.raises(WeightsError, match="image 1 of the batch"):
        upscaler(nothing)(np.stack([green // 2, green]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tile", [0, 32])
def test_parts_that_are_not_finite_are_replaced(bad: float, tile: int) -> None:
    network = Spoiled(lambda y: torch.full_like(y, bad))
    for image, full in ((picture(), 255), ((picture() / 255).astype(np.float32), 1)):
        found: list[Finding] = []
        result = upscaler(network, tile=tile)(image, report=found.append)
        assert np.abs(result[88:152, 104:168] - full * (np.array(GREEN) / 255)).max() == 0
        assert found[0].pixels == (7 * 7 * 16 * 16,)


def test_parts_that_are_not_finite_are_reported_without_the_guard() -> None:
    found: list[Finding] = []
    result = upscaler(Spoiled(lambda y: y * torch.nan), guard=False)(picture(), report=found.append)
    assert (result[88:152, 104:168] == 0).all()
    assert not found[0].replaced
    assert "not finite" in str(found[0])


def test_an_image_of_nan_is_refused() -> None:
    image = np.full((16, 16, 3), np.nan, np.float32)
    with pytest.raises(DataError, match="not numbers"):
        upscaler()(image)


# Bounds


def test_made_up_photographs_are_like_photographs() -> None:
    images = made_up_photographs(64, 64)
    assert images.shape == (4, 3, 64, 64)
    assert images.mean().item() == pytest.approx(0.517, abs=0.05)
    assert 0.05 < images[0].std() < 0.35


def test_excess_is_in_units_of_the_bounds() -> None:
    flat = torch.full((1, 3, 24, 20), 0.5)
    shift = torch.zeros(3)
    shift[1] = 8 / 255
    output = torch.full((1, 3, 48, 40), 0.5) + shift[:, None, None]
    assert excess(flat, output, 2).numpy() == pytest.approx(2.0, abs=1e-3)  # the bound is 4 levels in flat areas
    half = flat.clone()
    half[..., :10] = 0
    half[..., 10:] = 1
    assert excess(half, half.repeat_interleave(2, 2).repeat_interleave(2, 3), 2).max() == 0


def test_blocks_at_the_border_are_replaced_up_to_the_edge() -> None:
    source, target = torch.zeros(1, 3, 10, 10), torch.ones(1, 3, 20, 20)
    blocks = torch.tensor([[[False, False], [False, True]]])
    wide = replace(source, target, blocks, 2)
    assert wide.all()
    assert (target == 0).all()


@pytest.mark.parametrize("name", ["safmn-x2", "safmn-x4", "safmn-x2-real", "safmn-x4-real"])
def test_photographs_do_not_change(name: str) -> None:
    found: list[Finding] = []
    watched = Upscaler(name, device="cpu")
    for image in (data.chelsea()[60:188, 120:248], data.astronaut()[20:148, 160:288], data.coffee()[100:200, 200:300]):
        half = cv2.resize(np.ascontiguousarray(image), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        watched(half, report=found.append)
        watched(np.ascontiguousarray(image), report=found.append)
    assert not found


@pytest.mark.parametrize(
    ("file", "colour"),
    [
        ("safmn_x2_official_fp16.pth", (0, 0, 255)),
        ("safmnpp_x4.pth", (0, 255, 96)),
        ("safmnpp_x4.pth", (64, 255, 191)),
        ("safmnpp_x4.pth", (32, 223, 128)),
    ],
)
def test_flat_colours_of_published_weights(weights_dir: Path, file: str, colour: tuple[int, int, int]) -> None:
    """Without the guard there is garbage (a mesh for the last two); with it, errors are within the bounds."""
    image, found = np.full((64, 64, 3), colour, np.uint8), []
    without = upscaler_of(weights_dir / file, guard=False)(image).astype(int) - colour
    result = upscaler_of(weights_dir / file)(image, report=found.append).astype(int) - colour
    assert np.abs(without).max() > 30
    assert found
    side = 8 * result.shape[0] // 64
    blocks = result.reshape(8, side, 8, side, 3)
    assert np.abs(blocks.mean(axis=(1, 3))).max() <= 4
    assert blocks.std(axis=(1, 3)).max() <= 5


def upscaler_of(path: Path, **arguments: Any) -> Upscaler:
    return Upscaler(path, device="cpu", backend="eager", **arguments)


# The command and the evaluation


@pytest.fixture
def spoiled_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safmn.inference.upscaler._load", lambda weights, device, scale=None: Spoiled())


@pytest.mark.usefixtures("spoiled_weights")
def test_command_names_the_image(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)
    cv2.imwrite(str(tmp_path / "page.png"), picture()[..., ::-1])
    output = tmp_path / "large.png"
    arguments = [str(tmp_path / "page.png"), "-o", str(output), "--weights", "mine.pth", "--backend", "eager"]
    assert main(arguments) == 0
    assert "page.png: 12544 of 57344 pixels replaced by bicubic" in caplog.text
    assert "mine.pth" in caplog.text
    assert "--no-guard" in caplog.text
    assert tuple(cv2.imread(str(output))[120, 130]) == (0, 255, 0)
    caplog.clear()
    assert main([*arguments, "--no-guard", "--overwrite"]) == 0
    assert tuple(cv2.imread(str(output))[120, 130]) == (255, 0, 255)
    assert not caplog.records


@pytest.mark.usefixtures("spoiled_weights")
def test_an_animation_gets_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    from PIL import Image

    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)
    calm = Image.fromarray(np.full((112, 128, 3), 90, np.uint8))
    frames = [Image.fromarray(picture()), calm, Image.fromarray(picture()[::-1])]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    arguments = [str(tmp_path / "a.webp"), "-o", str(tmp_path / "out.webp"), "--weights", "w", "--backend", "eager"]
    assert main(arguments) == 0
    warnings = [record.getMessage() for record in distinct(caplog)]
    assert len(warnings) == 1
    assert "a.webp: 2 of 3 frames" in warnings[0]


def test_command_writes_no_output_that_is_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "safmn.inference.upscaler._load",
        lambda weights, device, scale=None: Spoiled(lambda y: y * torch.nan).to(device),
    )
    cv2.imwrite(str(tmp_path / "green.png"), np.full((32, 32, 3), GREEN, np.uint8))
    output = tmp_path / "large.png"
    arguments = [str(tmp_path / "green.png"), "-o", str(output), "--weights", "mine.pth", "--backend", "eager"]
    assert main(arguments) == 1
    messages = "".join(capfd.readouterr())
    assert "green.png" in messages
    assert "mine.pth is not finite" in messages
    assert not output.exists()


def test_evaluation_counts_but_does_not_replace() -> None:
    lq = torch.from_numpy(picture()).permute(2, 0, 1).float() / 255
    gt = functional.interpolate(lq[None], scale_factor=2)[0]
    sound = {"lq": lq * 0.8, "gt": gt, "lq_path": "calm.png"}
    dataset = [{"lq": lq, "gt": gt, "lq_path": "page.png"}, sound]
    metrics = {"psnr": {"type": "calculate_psnr", "crop_border": 0}}
    result = evaluate(Spoiled(), dataset, name="s", metrics=metrics, device="cpu", progress=False)
    assert result.garbage == {"page": 7 * 7 * 16 * 16}
    assert result.per_image["page"]["psnr"] < 12


def test_one_guard_serves_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [np.full((64, 64, 3), GREEN, np.uint8), np.full((64, 64, 3), 90, np.uint8)] * 4
    shared = upscaler()
    findings: list[list[Finding]] = [[] for _ in images]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: shared(pair[0], report=pair[1].append), zip(images, findings, strict=True)))
    assert [len(found) for found in findings] == [1, 0] * 4


def test_the_tolerance_is_one_for_networks_that_enlarge() -> None:
    guard = Guard(Spoiled(), scale=2, window=8, device=torch.device("cpu"), name="w")
    assert guard.tolerance == 1
