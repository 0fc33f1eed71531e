"""The upscaler gives the network's result on the whole frame, also in pieces; the command keeps finished outputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from repeater import repeated, repeater
from skimage import data
from torch import nn

from safmn import Upscaler
from safmn.cli.upscale import main
from safmn.errors import DataError, OptionError
from safmn.inference.backends import auto
from safmn.registry import ARCH_REGISTRY, build
from safmn.system import memory


def network(**arguments: int) -> torch.nn.Module:
    torch.manual_seed(0)
    section = {"type": "SAFMN", "dim": 16, "n_blocks": 2, "upscaling_factor": 2, **arguments}
    return build(ARCH_REGISTRY, section).eval().requires_grad_(False)


def photo(height: int, width: int) -> torch.Tensor:
    image = np.tile(data.astronaut(), (2, 3, 1))[:height, :width]
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255  # (1, 3, height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 72), (200, 328), (136, 1032)])
@pytest.mark.parametrize("tile", [32, 64])
def test_pieces_equal_the_whole_frame(height: int, width: int, tile: int) -> None:
    net = network()
    image = photo(height, width)
    with torch.no_grad():
        whole = net(image).clamp(0, 1)
    pieces = Upscaler(net, tile=tile, backend="eager")(image)
    assert float((pieces.clamp(0, 1) - whole).abs().max()) <= 1e-5


def test_other_sizes_are_padded_and_cropped_the_same_way_with_and_without_tiles() -> None:
    net = network()
    image = photo(101, 203)
    whole, pieces = (Upscaler(net, tile=tile, backend="eager")(image) for tile in (0, 32))
    assert whole.shape == (1, 3, 202, 406)
    assert float((whole - pieces).abs().max()) <= 1e-5


UPSCALER = Upscaler(repeater(), device="cpu", backend="eager")
LARGEST = {"uint8": 255, "uint16": 65535}


def values(shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    if dtype in LARGEST:
        return generator.integers(0, LARGEST[dtype] + 1, shape, dtype)
    return generator.random(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(9, 14), (9, 14, 1), (9, 14, 2), (9, 14, 3), (9, 14, 4), (3, 9, 14, 3), (2, 9, 14, 2)]
)
def test_array_in_array_out(shape: tuple[int, ...], dtype: str) -> None:
    image = values(shape, dtype)
    result = UPSCALER(image)
    assert isinstance(result, np.ndarray)
    assert result.dtype == image.dtype
    expected = repeated(image, axis=1 if len(shape) == 4 else 0)
    assert result.shape == expected.shape
    if dtype in LARGEST:
        assert np.array_equal(result, expected)
    else:
        assert np.allclose(result, expected, atol=1e-6, rtol=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape", [(9, 14), (1, 9, 14), (2, 9, 14), (3, 9, 14), (4, 9, 14), (2, 3, 9, 14), (2, 1, 9, 14)]
)
def test_tensor_in_tensor_out(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    image = torch.from_numpy(values(shape, "float32"))
    image = image.to(dtype) if dtype.is_floating_point else (image * torch.iinfo(dtype).max).to(torch.int32).to(dtype)
    result = UPSCALER(image)
    assert isinstance(result, torch.Tensor)
    assert (result.dtype, result.device) == (dtype, image.device)
    expected = torch.from_numpy(repeated(image.to(torch.float64).numpy(), axis=len(shape) - 2))
    assert torch.allclose(result.to(torch.float64), expected, atol=1e-6, rtol=1e-2 if dtype.itemsize == 2 else 1e-6)


class InWindows(nn.Module):
    """A foreign network that accepts only whole windows."""

    scale, halo = 2, 0

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = nn.functional.pixel_unshuffle(x, self.window)
        return self.weight * repeat_pixels(nn.functional.pixel_shuffle(windows, self.window))


def repeat_pixels(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("window", [5, 6, 12, 200])
def test_back_ends_are_chosen_on_whole_windows(window: int, caplog: pytest.LogCaptureFixture) -> None:
    image = values((150, 140, 3), "uint8")
    assert np.array_equal(Upscaler(InWindows(window), device="cpu")(image), repeated(image))
    assert "failed" not in caplog.text
    if importlib.util.find_spec("onnxruntime") is not None:
        upscaler = Upscaler(InWindows(window), device="cpu", backend="onnxruntime")
        assert np.array_equal(upscaler(image), repeated(image))


@pytest.mark.parametrize("change", ["in place", "assigned", "buffer"])
def test_weights_may_change_between_calls(change: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.PixelShuffle(2)).eval()
    network.scale = 2
    image, upscaler = values((8, 8, 3), "float32"), Upscaler(network, device="cpu", backend="eager")
    upscaler(image)
    with torch.no_grad():
        if change == "in place":
            network[0].weight.mul_(-1)
        elif change == "assigned":
            state = {name: value.clone() for name, value in network.state_dict().items()}
            network.load_state_dict(state | {"0.weight": -state["0.weight"]}, assign=True)
        else:
            network[1].running_mean.add_(0.3)
    assert np.array_equal(upscaler(image), Upscaler(network, device="cpu", backend="eager")(image))


def test_arrays_in_any_memory_layout() -> None:
    image = values((9, 14, 3), "uint8")
    frozen = image.copy()
    frozen.setflags(write=False)
    big_endian = values((9, 14, 3), "uint16").astype(">u2")
    assert np.array_equal(UPSCALER(image[::-1, ::2, ::-1]), repeated(image[::-1, ::2, ::-1]))
    assert np.array_equal(UPSCALER(np.asfortranarray(image)), repeated(image))
    assert np.array_equal(UPSCALER(frozen), repeated(image))
    assert np.array_equal(UPSCALER(big_endian), repeated(big_endian))
    tensor = torch.from_numpy(values((14, 9, 3), "float32")).requires_grad_().permute(2, 1, 0)
    assert not UPSCALER(tensor).requires_grad
    assert torch.allclose(UPSCALER(tensor)[:, ::2, ::2], tensor)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.int64),
        np.zeros((8, 8), bool),
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((8, 8), complex),
        *([np.zeros((8, 8), np.longdouble)] if np.longdouble().itemsize > 8 else []),
        torch.zeros(8, 8, 3),
        torch.zeros(8, 8, dtype=torch.int32),
        torch.zeros(3, 8, 8).to_sparse(),
        torch.zeros(3, 8, 8, device="meta"),
        [[0, 1]],
        "photo.png",
    ],
)
def test_invalid_images_are_refused(image: object) -> None:
    with pytest.raises(DataError, match="cannot upscale"):
        UPSCALER(image)  # type: ignore[type-var]


def test_values_slightly_outside_of_the_range_are_clamped() -> None:
    assert np.array_equal(UPSCALER(np.full((4, 4), 1.4, np.float32)), np.ones((8, 8), np.float32))
    with pytest.raises(DataError, match="divide by 255"):
        UPSCALER(np.full((4, 4), 7.0, np.float32))


def test_self_ensemble_is_the_mean_of_eight() -> None:
    net = network()
    image = photo(40, 64)
    views = [torch.rot90(image, turns, (2, 3)) for turns in range(4)]
    with torch.no_grad():
        outs = [torch.rot90(net(view), -turns, (2, 3)) for turns, view in enumerate(views)]
        outs += [torch.rot90(net(view.flip(3)).flip(3), -turns, (2, 3)) for turns, view in enumerate(views)]
    expected = torch.stack(outs).mean(dim=0).clamp(0, 1)
    result = Upscaler(net, device="cpu", backend="eager", self_ensemble=True)(image)
    assert float((result - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": -8}, "tile=-8"),
        ({"tile": "512"}, "tile='512'"),
        ({"tile": True}, "tile=True"),
        ({"tile": np.int64(-8)}, "tile="),
        ({"device": None}, "device 'None' cannot be used"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"weights": 3}, "weights=3: give a file"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "tpu9"}, "tpu9"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"backend": "egaer"}, "Did you mean 'eager'"),
        ({"full_frame_semantics": True, "backend": "compile"}, "needs 'eager'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Upscaler(**{"weights": repeater(), "device": "cpu", **arguments})


def test_a_numpy_integer_is_a_tile_width() -> None:
    assert type(Upscaler(repeater(), tile=np.int64(64), device="cpu").tile) is int  # type: ignore[arg-type]


def test_free_memory_of_a_container_counts_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("9000")
    (tmp_path / "memory.current").write_text("8000")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 7000\n")
    assert memory.free_bytes(torch.device("cpu")) == 8000
    (tmp_path / "memory.max").write_text("max")
    assert memory.free_bytes(torch.device("cpu")) > 8000


def _cut_out(hidden: float, dtype: Any) -> np.ndarray:
    """Return a ring of one colour on transparent pixels of the colour ``hidden``: (40, 56, 4)."""
    mask = np.zeros((40, 56), np.uint8)
    cv2.circle(mask, (26, 18), 12, 255, 2, cv2.LINE_AA)
    image = np.full((40, 56, 4), hidden)
    image[mask > 0, :3] = (1.0, 0.85, 0.1)
    image[..., 3] = mask / 255
    return image.astype(dtype) if dtype == np.float32 else np.rint(image * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_invisible_colours_do_not_show(dtype: Any) -> None:
    upscaler = Upscaler("safmn-x2", device="cpu", backend="eager")
    full = 1 if dtype == np.float32 else np.iinfo(dtype).max
    black, white = (upscaler(_cut_out(hidden, dtype)) for hidden in (0.0, 1.0))
    visible = black[..., 3] > 0
    np.testing.assert_array_equal(black[..., 3], white[..., 3])
    np.testing.assert_array_equal(black[visible], white[visible])
    np.testing.assert_allclose(
        black[visible][:, :3] / full, np.broadcast_to((1, 0.85, 0.1), (visible.sum(), 3)), atol=0.02
    )
    hidden = (_cut_out(0.0, dtype)[..., 3] == 0).repeat(2, 0).repeat(2, 1) & ~visible
    assert (black[hidden][:, :3] == 0).all()  # unchanged
    assert (white[hidden][:, :3] == full).all()
    assert 0.7 < (~visible).mean() < 0.9  # no ghost around the ring
    grey = upscaler(_cut_out(0.0, dtype)[..., 2:])
    np.testing.assert_array_equal(grey[..., 1], black[..., 3])


def test_full_alpha_stays_full() -> None:
    """A hole in an opaque photograph causes no ringing of alpha elsewhere."""
    image = np.dstack([data.astronaut()[:48, :48], np.full((48, 48), 255, np.uint8)])
    image[20:28, 20:28, 3] = 0
    alpha = Upscaler("safmn-x2", device="cpu", backend="eager")(image)[..., 3]
    far = np.ones((96, 96), bool)
    far[2 * 17 : 2 * 31, 2 * 17 : 2 * 31] = False
    assert (alpha[far] == 255).all()
    assert (alpha[45:51, 45:51] == 0).all()


def test_a_result_that_exceeds_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safmn.inference.upscaler.free_bytes", lambda device: 1000)
    with pytest.raises(DataError, match="GiB of memory"):
        UPSCALER(np.zeros((20, 20, 3), np.uint8))


def test_an_ensemble_takes_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image, scale = np.zeros((20, 20, 3), np.uint8), UPSCALER.scale
    monkeypatch.setattr("safmn.inference.upscaler.free_bytes", lambda device: 12 * scale**2 * image.size)
    UPSCALER(image)
    with pytest.raises(DataError, match="GiB of memory"):
        Upscaler(UPSCALER.network, device="cpu", backend="eager", self_ensemble=True)(image)


@pytest.mark.parametrize(
    ("height", "width", "sample"), [(150, 200, (128, 128)), (128, 129, (128, 128)), (20, 200, (24, 200))]
)
def test_the_back_end_is_chosen_on_a_sample(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, sample: tuple[int, int]
) -> None:
    """The sample is at most 128x128 pixels: running eager on a whole photograph would take longer than the rest."""
    seen = []
    original = auto.choose

    def choose(network: Any, x: torch.Tensor, **keywords: Any) -> Any:
        seen.append(tuple(x.shape[2:]))
        return original(network, x, **keywords)

    monkeypatch.setattr(auto, "choose", choose)
    image = np.ascontiguousarray(data.astronaut()[:height, :width])
    upscaler = Upscaler(network(), device="cpu")
    result = upscaler(image)
    assert seen == [sample]
    assert np.abs(result.astype(int) - Upscaler(network(), backend="eager", device="cpu")(image)).max() <= 1
    upscaler(image)
    assert seen == [sample]


def test_progress_adds_up() -> None:
    for image in (np.zeros((40, 90, 3), np.uint8), values((40, 90, 4), "uint8"), values((2, 40, 90, 3), "uint8")):
        for tile in (0, 32):
            for ensemble in (False, True):
                parts: list[float] = []
                upscaler = Upscaler(repeater(), tile=tile, device="cpu", backend="eager", self_ensemble=ensemble)
                upscaler(image, progress=parts.append)
                assert sum(parts) == pytest.approx(1)


def test_command_upscales_good_files_and_names_bad_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "good.png"), data.chelsea()[:40, :48, ::-1])
    cv2.imwrite(str(folder / "grey.png"), data.camera()[:32, :40])
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:400])
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--weights", "safmn-x2", "--backend", "eager"]
    assert main(arguments) == 1
    messages = "".join(capfd.readouterr())
    assert "empty.png" in messages
    assert "cut.png" in messages
    assert "Traceback" not in messages
    assert cv2.imread(str(tmp_path / "out/good.png")).shape == (80, 96, 3)
    assert cv2.imread(str(tmp_path / "out/grey.png"), cv2.IMREAD_UNCHANGED).shape == (64, 80)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.png", "grey.png"]
    before = (tmp_path / "out/good.png").stat().st_mtime_ns
    assert main(arguments) == 1
    assert (tmp_path / "out/good.png").stat().st_mtime_ns == before  # kept


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((8, 8, 3), 200.0, np.float32), "they must be 0 to 1"),
        (torch.full((3, 8, 8), -3.0), "they must be 0 to 1"),
        (np.full((8, 8), np.nan, np.float32), "not numbers"),
        (torch.full((1, 3, 8, 8), torch.inf), "not numbers"),
    ],
)
def test_floats_that_would_come_out_white_or_black_are_refused(values: np.ndarray | torch.Tensor, said: str) -> None:
    upscale = Upscaler(repeater(), device="cpu", backend="eager")
    with pytest.raises(DataError, match=said):
        upscale(values)
    assert upscale(np.full((8, 8, 3), 1.2, np.float32)).max() <= 1  # as after a filter that overshoots
