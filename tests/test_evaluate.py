"""Evaluation of a set: scores, file names, pairs that do not fit, and the same results on any number of ranks."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.data import build_dataset
from safmn.errors import DataError, OptionError
from safmn.evaluation.scorer import Draws, Scorer
from safmn.evaluation.scoring import SetResult, evaluate
from safmn.imaging import read_rgb
from safmn.registry import DATASET_REGISTRY, METRIC_REGISTRY

PSNR = {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": False}}


@pytest.fixture(autouse=True)
def _log_reaches_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let log records reach caplog at the root logger: the commands switch propagation off."""
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)


def enlarge(lq: Tensor) -> Tensor:
    """Upscale by two with bicubic interpolation, in place of a network."""
    return functional.interpolate(lq, scale_factor=2, mode="bicubic", align_corners=False)


def item(index: int, size: tuple[int, int] = (20, 24), extra: int = 0, gt: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(index)
    lq = torch.rand(3, *size, generator=generator)
    found: dict[str, Any] = {"lq": lq, "lq_path": f"lq/image{index}x2.png"}
    if gt:
        shape = (3, 2 * size[0] + extra, 2 * size[1] + extra)
        found |= {"gt": torch.rand(shape, generator=generator), "gt_path": f"gt/image{index}.png"}
    return found


def score(dataset: Any, network: Any = enlarge, metrics: Mapping[str, Any] = PSNR, **arguments: Any) -> SetResult:
    return evaluate(network, dataset, name="set", metrics=metrics, device="cpu", progress=False, **arguments)


def test_scores_equal_basicsrs_on_a_real_set(benchmark_dir: Path) -> None:
    from basicsr.metrics import calculate_metric
    from basicsr.utils import tensor2img

    folders = {
        "dataroot_gt": benchmark_dir / "Set5" / "HR",
        "dataroot_lq": benchmark_dir / "Set5" / "LR_bicubic" / "X2",
    }
    section = {"name": "Set5", "type": "PairedImageDataset", "filename_tmpl": "{}x2", "io_backend": {"type": "disk"}}
    dataset = build_dataset({**section, **{k: str(v) for k, v in folders.items()}}, phase="test", scale=2)
    metrics = {"psnr_y": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}, **PSNR}
    result = score(dataset, metrics=metrics)
    assert list(result.per_image) == [f"{name}x2" for name in ("baby", "bird", "butterfly", "head", "woman")]
    for index, values in enumerate(result.per_image.values()):
        pair = dataset[index]
        images = {"img": tensor2img(enlarge(pair["lq"][None])), "img2": tensor2img(pair["gt"])}
        for metric, options in metrics.items():
            assert values[metric] == pytest.approx(calculate_metric(images, options), abs=1e-6)
    assert result.mean["psnr_y"] == pytest.approx(33.66, abs=0.5)  # torch's bicubic is not MATLAB's


def test_results_have_the_order_of_the_set_and_means() -> None:
    result = score([item(index) for index in range(7)])
    assert list(result.per_image) == [f"image{index}x2" for index in range(7)]
    values = [each["psnr"] for each in result.per_image.values()]
    assert len(set(values)) == 7
    assert result.mean["psnr"] == pytest.approx(np.mean(values), rel=1e-12)
    assert result.seconds > 0
    assert result.name == "set"


def test_images_are_saved_under_basicsrs_names(tmp_path: Path) -> None:
    dataset = [item(0), item(1, gt=False)]
    score(dataset, metrics={}, save_dir=tmp_path / "set", suffix="run")
    score(dataset, metrics={}, save_dir=tmp_path / "set")
    names = ("image0x2_run.png", "image1x2_run.png", "image0x2.png", "image1x2.png")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted(names)
    saved = read_rgb(tmp_path / "set" / "image0x2_run.png")
    expected = enlarge(dataset[0]["lq"][None])[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    np.testing.assert_array_equal(saved, expected.numpy())
    assert cv2.imread(str(tmp_path / "set" / "image0x2_run.png")).shape == (40, 48, 3)


class Named:
    """A data set with items at ``paths``; with ``listed`` it has the attribute ``paths``, as our data sets do."""

    def __init__(self, paths: list[str], listed: bool) -> None:
        self.items = [{**item(index), "lq_path": path} for index, path in enumerate(paths)]
        if listed:
            self.paths = paths

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("paths", [["a/x.png", "b/x.png", "c/x.png"], ["a/x", "b/x"], ["x.jpg", "x.png"]])
def test_every_image_is_saved(paths: list[str], listed: bool, tmp_path: Path) -> None:
    score(Named(paths, listed), metrics={}, save_dir=tmp_path, suffix="run")
    assert len(list(tmp_path.iterdir())) == len(paths)


def test_ranks_do_not_overwrite_each_others_images(tmp_path: Path) -> None:
    dataset = Named(["x.jpg", "y.png", "x.png"], listed=True)
    scorers = [Scorer("set", {}, tmp_path, None, dataset.paths, Draws(0, "set", torch.device("cpu"))) for _ in range(2)]
    output = np.zeros((40, 48, 3), np.uint8)
    for index, rank in ((0, 0), (1, 1), (2, 1)):
        scorers[rank](index, dataset[index], output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jpg.png", "x.png.png", "y.png"]


def test_a_users_metric_gets_uint8_bgr() -> None:
    seen = []

    def blue_of_lq(img: np.ndarray, img2: np.ndarray, gain: float = 1.0) -> np.float32:
        seen.append((img, img2))
        return np.float32(gain * img[..., 0].mean())

    METRIC_REGISTRY.register(suffix="testing")(blue_of_lq)
    pair = item(3)
    result = score([pair], metrics={"blue": {"type": "blue_of_lq_testing", "gain": 2, "better": "lower"}})
    img, img2 = seen[0]
    assert img.dtype == img2.dtype == np.uint8
    assert img.shape == img2.shape == (40, 48, 3)
    assert result.mean["blue"] == pytest.approx(2 * img[..., 0].mean(), rel=1e-6)
    np.testing.assert_array_equal(img2[..., 0], pair["gt"][2].mul(255).round().byte().numpy())


def test_a_remainder_of_the_gt_smaller_than_the_scale_is_cropped() -> None:
    larger = item(0, extra=1)
    exact = {**larger, "gt": larger["gt"][:, :-1, :-1]}
    assert score([larger]).mean == score([exact]).mean


@pytest.mark.parametrize("extra", [2, -1, -20])
def test_the_message_about_a_pair_that_does_not_fit_names_both_images(extra: int) -> None:
    with pytest.raises(DataError, match=r"gt/image1\.png .* lq/image1x2\.png \(24x20\) .* 48x40"):
        score([item(0), item(1, extra=extra)])


def test_without_gt_metrics_that_need_one_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def brightness(img: np.ndarray, **kwargs: Any) -> float:
        return float(img.mean())

    METRIC_REGISTRY.register(suffix="testing")(brightness)
    metrics = {**PSNR, "brightness": {"type": "brightness_testing"}}
    result = score([item(index, gt=False) for index in range(3)], metrics=metrics)
    assert set(result.mean) == {"brightness"}
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "'set' has no GT" in warning
    assert "'psnr'" in warning


def test_an_empty_set_an_unknown_metric_and_a_tiny_image_are_named() -> None:
    with pytest.raises(DataError, match="'set' holds no images"):
        score([])
    with pytest.raises(OptionError, match=r"metric .*'calculate_pnsr'"):
        score([item(0)], metrics={"psnr": {"type": "calculate_pnsr"}})
    with pytest.raises(DataError, match=r"'set', lq/image0x2\.png: metric 'ssim': .*10x8 .*too small"):
        score([item(0, size=(4, 5))], metrics={"ssim": {"type": "calculate_ssim", "crop_border": 2}})


def test_the_input_of_a_network_with_windows_is_padded_to_whole_windows(benchmark_dir: Path) -> None:
    from basicsr.archs.swinir_arch import SwinIR

    torch.manual_seed(0)
    layers = {"depths": [2], "num_heads": [2], "embed_dim": 8, "window_size": 4, "img_size": 16}
    network = SwinIR(upscale=2, upsampler="pixelshuffle", **layers).eval()
    lq = torch.rand(3, 9, 14)
    output = {}
    metrics = {"seen": {"type": "keep_testing"}}

    def keep(img: np.ndarray) -> float:
        output["img"] = img[..., ::-1]
        return 0.0

    METRIC_REGISTRY.register(suffix="testing")(keep)
    score([{"lq": lq, "lq_path": "a.png"}], network, metrics)
    padded = functional.pad(lq[None], (0, 2, 0, 3), mode="reflect")  # as BasicSR's SwinIRModel.test pads and crops
    with torch.no_grad():
        expected = network(padded)[0, :, :18, :28].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    np.testing.assert_array_equal(output["img"], expected.numpy())


def test_a_network_that_does_not_fit_the_images_is_named() -> None:
    grey = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2))
    with pytest.raises(DataError, match=r"'set', lq/image0x2\.png: .*Sequential .* shape \(1, 3, 20, 24\)"):
        score([item(0)], grey)


def test_an_out_of_memory_error_is_not_turned_into_a_data_error() -> None:
    def full(lq: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        score([item(0)], full)


def test_a_metric_that_fails_is_named() -> None:
    metrics = {"niqe": {"type": "calculate_niqe", "crop_border": 0}}
    with pytest.raises(DataError, match=r"'set', lq/image0x2\.png: metric 'niqe' failed .*48x40: "):
        score([item(0)], metrics=metrics)


class TrainingModeMatters(nn.Module):
    def forward(self, lq: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return enlarge(lq) * (0 if self.training else 1)


def test_a_module_runs_in_eval_mode_without_gradients_and_its_mode_is_restored() -> None:
    network = TrainingModeMatters()
    assert score([item(0)], network).mean == score([item(0)]).mean
    assert network.training
    assert torch.is_grad_enabled()
    network.eval()
    score([item(0)], network)
    assert not network.training


def test_any_exception_of_a_network_is_named_and_modes_are_restored() -> None:
    class Stop(Exception):
        pass

    class Failing(nn.Module):
        calls = 0

        def forward(self, lq: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise Stop
            return enlarge(lq)

    network = Failing()
    with pytest.raises(DataError, match=r"Failing[\s\S]*Stop") as caught:
        score([item(index) for index in range(9)], network)
    assert isinstance(caught.value.__cause__, Stop)
    assert network.calls == 3
    assert network.training


def test_low_precision_runs_under_autocast() -> None:
    network = nn.Conv2d(3, 12, 3, padding=1)
    seen = []

    def forward(lq: Tensor) -> Tensor:
        output = functional.pixel_shuffle(network(lq), 2)
        seen.append(output.dtype)
        return output

    full, low = (score([item(0)], forward, precision=precision) for precision in ("fp32", "bf16"))  # type: ignore[misc]
    assert list(dict.fromkeys(seen)) == [torch.float32, torch.bfloat16]
    assert low.mean["psnr"] == pytest.approx(full.mean["psnr"], abs=0.1)


def test_a_network_with_nan_in_its_output_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    score([item(0)], lambda lq: enlarge(lq) * float("nan"))
    assert "lq/image0x2.png holds NaN" in caplog.text


@pytest.mark.parametrize(("value", "mean"), [(float("nan"), "nan"), (float("-inf"), "-inf")])
def test_a_metric_without_a_finite_value_is_reported_once(
    value: float, mean: str, caplog: pytest.LogCaptureFixture
) -> None:
    def wild(img: np.ndarray) -> float:
        return value if img[0, 0, 0] > 100 else 1.0

    items = [{**item(index), "lq": torch.full((3, 8, 8), float(index > 0)), "gt": None} for index in range(3)]
    METRIC_REGISTRY.register(suffix=f"testing{mean}")(wild)
    result = score(items, metrics={"w": {"type": f"wild_testing{mean}"}})
    (message,) = [record.getMessage() for record in caplog.records]
    place = f"data set 'set', {items[1]['lq_path']}: metric 'w' is {mean}"
    assert message == f"{place}, here and in all for 2 of 3 images; the mean of the set is {mean}"
    assert str(result.mean["w"]) == mean


def test_an_output_that_equals_its_gt_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    same = item(0)
    result = score([{**same, "gt": enlarge(same["lq"][None])[0]}])
    assert result.mean["psnr"] == float("inf")
    assert "metric 'psnr' is inf (the output equals the GT image)" in caplog.text


def test_images_of_the_same_name_are_all_kept(caplog: pytest.LogCaptureFixture) -> None:
    first, second = item(0), {**item(1), "lq_path": "other/image0x2.png"}
    result = score([first, second])
    assert list(result.per_image) == ["image0x2", "other/image0x2.png"]
    assert "'image0x2': other/image0x2.png" in caplog.text


class Reads:
    """A data set that records which images are read, and fails on one of them."""

    def __init__(self, length: int, bad: int | None = None) -> None:
        self.length, self.bad, self.read = length, bad, []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        if index == self.bad:
            raise DataError(f"image {index} cannot be read")
        return item(index)


def test_every_image_is_read_once_and_an_unreadable_one_is_an_error() -> None:
    dataset = Reads(5)
    score(dataset)
    assert dataset.read == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="image 4 cannot be read"):
        score(Reads(5, bad=4))


RANK_SCRIPT = """
import json, os, sys
import torch.distributed as dist
sys.path[:0] = [{repository!r}, {tests!r}]
from safmn.runtime import distributed
from safmn.errors import UserError
from test_evaluate import Reads, item, score
ranks = distributed.join("pytorch")
arguments = dict(rank=ranks.rank, world_size=ranks.world_size)
counted = Reads(5)
result = score(counted, **arguments)
alone = score([item(0)], **arguments)
try:
    score(Reads(5, bad=1), **arguments)
except UserError as error:
    message = str(error)
found = dict(per_image=result.per_image, mean=result.mean, read=counted.read, alone=alone.mean, message=message)
open(os.path.join({out!r}, f"{{ranks.rank}}.json"), "w").write(json.dumps(found))
distributed.leave()
"""


@pytest.mark.slow
def test_two_ranks_share_the_work_and_get_the_same_numbers_as_one(tmp_path: Path) -> None:
    tests = Path(__file__).resolve().parent
    script = tmp_path / "rank.py"
    script.write_text(RANK_SCRIPT.format(repository=str(tests.parent), tests=str(tests), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    single = score([item(index) for index in range(5)])
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["per_image"] == single.per_image
        assert list(found["per_image"]) == list(single.per_image)
        assert found["mean"] == single.mean
        assert found["read"] == list(range(rank, 5, 2))
        assert found["alone"] == score([item(0)]).mean  # fewer images than ranks
        where = "" if rank == 1 else "rank 1 stopped: "  # the other rank names the rank with the error
        assert found["message"] == f"{where}image 1 cannot be read"


@pytest.fixture
def _fast_convolutions() -> Iterator[None]:
    """Set the flags of convolutions as training on a GPU does."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = True, True, True
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@pytest.mark.usefixtures("_fast_convolutions")
def test_tensorfloat_32_is_off_while_images_are_scored_and_restored_afterwards() -> None:
    seen: list[tuple[bool, ...]] = []

    def flags() -> tuple[bool, ...]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark

    def network(lq: torch.Tensor) -> torch.Tensor:
        seen.append(flags())
        if len(seen) == 2:
            raise RuntimeError("out of luck")
        return lq

    image = torch.rand(3, 16, 16)
    item = {"lq": image, "gt": image, "lq_path": "a.png", "gt_path": "a.png"}
    with pytest.raises(DataError, match="out of luck"):
        evaluate(network, [item, item], name="two", metrics={}, device="cpu")
    assert seen == [(False, False, False)] * 2
    assert flags() == (True, True, True)


# --- random draws in a user's code ----------------------------------------------------------------------------------


class Drawing:
    """A user's data set that draws its images from the global generators of python, numpy and torch."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked += 1
        shift = random.random() + np.random.rand()
        return {"lq": torch.rand(3, 8, 8), "gt": (torch.rand(3, 16, 16) + shift) / 3, "lq_path": f"{index}.png"}


class DrawingNetwork(torch.nn.Module):
    """A network that draws random numbers in eval mode, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2) + 0.2 * torch.rand(1)


def drawing_metric(img: np.ndarray, img2: np.ndarray) -> float:
    return float(np.abs(img.astype(float) - img2).mean() + random.random() + np.random.rand())


def drawn(dataset: Drawing, monkeypatch: pytest.MonkeyPatch, *, name: str = "set", **arguments: Any) -> dict[str, Any]:
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "drawing_metric", drawing_metric)
    metrics = {"mine": {"type": "drawing_metric"}}
    return evaluate(
        DrawingNetwork(), dataset, name=name, metrics=metrics, device="cpu", progress=False, **arguments
    ).per_image


def test_draws_of_a_users_code_depend_only_on_seed_set_and_image(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Drawing()
    first = drawn(dataset, monkeypatch)
    torch.manual_seed(5)
    random.seed(5)
    state = random.getstate(), torch.get_rng_state()
    assert drawn(dataset, monkeypatch) == first
    assert dataset.asked == 10
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert len({values["mine"] for values in first.values()}) == 5
    for other in (drawn(dataset, monkeypatch, seed=1), drawn(dataset, monkeypatch, name="other")):
        assert all(other[image] != first[image] for image in first)


def test_ranks_draw_the_same_numbers_as_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn(Drawing(), monkeypatch)
    shares = [drawn(Drawing(), monkeypatch, rank=rank, world_size=2) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 2]
    assert {**shares[0], **shares[1]} == first


def test_draws_in_the_constructor_of_a_data_set_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Subset(Drawing):
        def __init__(self, opt: dict[str, Any]) -> None:
            super().__init__()
            self.chosen = random.sample(range(1000), 5)

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Subset", Subset)
    chosen = [build_dataset({"type": "Subset"}, phase="val", scale=2, seed=seed).chosen for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
