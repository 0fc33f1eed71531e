"""Users' networks, losses and data sets: unusual ones work, and wrong ones are reported with a clear message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import weight_norm

import safmn
from safmn.errors import DataError, OptionError, WeightsError
from safmn.evaluation.scoring import evaluate
from safmn.imaging import read_rgb, write_image
from safmn.imports import log_imports
from safmn.optim.schedules import build_schedule
from safmn.options import load_options, plugins
from safmn.options.problems import Problems
from safmn.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.train import main
from safmn.training.models.trained_network import TrainedNetwork
from safmn.training.progress import Progress
from safmn.weights import load_into, save_weights

CPU = Execution(torch.device("cpu"))
Capture = pytest.CaptureFixture[str]


class Small(nn.Module):
    """A small x2 network. Subclasses override :meth:`middle`, which gets 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> Any:
        return nn.functional.pixel_shuffle(self.last(self.middle(self.first(x))), 2)


class Normalised(Small):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class WeightNormed(Small):
    def __init__(self) -> None:
        super().__init__()
        self.first = weight_norm(self.first)


class Viewing(Small):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], -1).view(x.shape)


class Two(Small):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


def run(
    images: Path, folder: Path, kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch, *arguments: str, **train: Any
) -> int:
    """Train the network for 6 iterations and return the exit status."""
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, kind.__name__, kind)
    content = tiny_run.options(images, total_iter=6, **train)
    content["network_g"] = {"type": kind.__name__}
    content["path"]["experiments_root"] = str(folder / "experiments")
    content["train"]["scheduler"]["periods"] = [6]
    return main(["-opt", str(tiny_run.write_options(folder, content)), *arguments])


@pytest.mark.parametrize("kind", [Normalised, WeightNormed, Viewing])
def test_networks_with_batch_norm_weight_norm_or_view_train(
    images: Path, tmp_path: Path, kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(images, tmp_path, kind, monkeypatch) == 0
    network = kind()
    load_into(network, tmp_path / "experiments/tiny/models/net_g_latest.pth", param_key="params_ema")


@pytest.mark.parametrize("model", ["SRGANModel", "ESRGANModel"])
def test_gans_train_on_pairs_with_a_discriminator_of_fixed_size(model: str, images: Path, tmp_path: Path) -> None:
    for source in images.rglob("*.png"):  # the discriminator only takes 128x128
        target = tmp_path / source.relative_to(images)
        write_image(target, read_rgb(source).repeat(2, axis=0).repeat(2, axis=1))
    content = tiny_run.options(tmp_path, total_iter=4)
    content["model_type"] = model
    content["path"]["experiments_root"] = str(tmp_path / "experiments")
    content["datasets"]["train"]["gt_size"] = 128
    content["network_g"] = {"type": "MSRResNet", "num_feat": 8, "num_block": 1, "upscale": 2}
    content["network_d"] = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4}
    content["train"] |= {
        "optim_d": {"type": "Adam", "lr": 1e-4},
        "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 5e-3},
    }
    assert main(["-opt", str(tiny_run.write_options(tmp_path, content))]) == 0
    assert {"l_g_pix", "l_g_gan", "l_d_real", "l_d_fake"} <= tiny_run.record(tmp_path)[0].keys()


def test_a_network_with_two_outputs_is_reported_by_name(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert run(images, tmp_path, Two, monkeypatch) == 2
    assert re.search(r"\bTwo .*tuple", capfd.readouterr().err)
    item = {"lq": torch.rand(3, 8, 8), "gt": torch.rand(3, 16, 16), "lq_path": "a.png"}
    with pytest.raises(DataError, match=r"network Two .*tuple"):
        evaluate(Two(), [item], name="Set", metrics={}, device="cpu", progress=False)


def test_a_step_with_nan_does_not_change_buffers() -> None:
    torch.manual_seed(0)
    section = {"type": "CosineAnnealingRestartLR", "periods": [10]}
    network = TrainedNetwork(
        Normalised(), CPU, Ranks(), optimizer={"type": "Adam", "lr": 1e-3}, schedule=build_schedule(section),
        ema_decay=0.9, halt_on_nonfinite=False,
    )  # fmt: skip
    before = [buffer.clone() for buffer in network.bare.buffers()]

    def step(lq: torch.Tensor) -> float:
        network.set_learning_rate(1)
        for image in network.micro_batches([lq], parts=1):
            network.backward({"l1": network.forward(image).abs().mean()})
        return float(network.update())

    assert step(torch.full((1, 3, 8, 8), float("nan"))) == 1
    assert all(torch.equal(*pair) for pair in zip(before, network.bare.buffers(), strict=True))
    assert step(torch.rand(1, 3, 8, 8)) == 0
    assert not torch.equal(before[0], next(network.bare.buffers()))


class OneElement(nn.Module):
    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().mean().expand(self.shape)


@pytest.mark.parametrize(("shape", "status"), [([1, 1], 0), ([2], 2)])
def test_a_loss_must_have_one_element(
    images: Path, tmp_path: Path, shape: list[int], status: int, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "OneElement", OneElement)
    loss = {"type": "OneElement", "shape": shape}
    assert run(images, tmp_path, Small, monkeypatch, pixel_opt=loss, fft_opt=None) == status
    if status:
        assert re.search(r"loss l_pix .*shape \(2,\)", capfd.readouterr().err)


def test_the_log_of_a_run_contains_the_error_that_ended_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert run(images, tmp_path, Two, monkeypatch, "--force_yml", "sanity=false") == 2
    [log] = (tmp_path / "experiments/tiny").glob("train_*.log")
    assert "stopped: OptionError: " in log.read_text()
    assert len(re.findall(r"\bTwo .*tuple", capfd.readouterr().err)) == 1


def test_weights_that_fit_nowhere_are_rejected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With ``strict=False``, weights that fit in part are loaded with a warning."""
    path = tmp_path / "other.pth"
    save_weights(path, params={f"unrelated.{name}": value for name, value in Small().state_dict().items()})
    with pytest.raises(WeightsError, match=r"other\.pth.*Small"):
        load_into(Small(), path, strict=False)
    save_weights(path, params={**Small().state_dict(), "more": torch.zeros(1)})
    load_into(Normalised(), path, strict=False)
    assert "4 of 9 tensors" in caplog.text


def test_weight_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        save_weights(tmp_path / name, params=Small().state_dict())
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}
    assert load_file(tmp_path / "a.safetensors").keys() == Small().state_dict().keys()


# --- data sets ------------------------------------------------------------------------------------------------------


class Failing:
    def __init__(self, opt: dict[str, Any]) -> None:
        if opt.get("dataroot") == "bad":
            raise RuntimeError("no luck")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise IndexError("out of luck")


def test_data_sets_that_fail_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Failing", Failing)
    with pytest.raises(OptionError, match=r"data set 'Mine' \(Failing\).*RuntimeError: no luck"):
        safmn.data.build_dataset({"type": "Failing", "name": "Mine", "dataroot": "bad"}, phase="val", scale=2)
    with pytest.raises(DataError, match=r"data set 'Mine' .*item 0: IndexError: out of luck"):
        evaluate(Small(), Failing({}), name="Mine", metrics={}, device="cpu", progress=False)


def test_an_item_without_a_path_is_named_after_the_data_set() -> None:
    result = evaluate(Small(), [{"lq": torch.rand(3, 8, 8)}], name="Mine", metrics={}, device="cpu", progress=False)
    assert list(result.per_image) == ["Mine_0000"]


def test_the_best_value_is_reset_when_the_metric_changes(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(iteration=1)
    on_y, on_rgb = ({"type": "calculate_psnr", "test_y_channel": y} for y in (True, False))
    assert progress.note("Set5", "psnr", 32.0, section=on_y)
    assert not progress.note("Set5", "psnr", 31.0, section=on_y)
    assert progress.note("Set5", "psnr", 30.0, section=on_rgb)
    [warning] = [record.getMessage() for record in caplog.records]
    assert "psnr" in warning
    assert "Set5" in warning
    assert not progress.note("Set5", "psnr", 29.0, section=on_rgb)


# --- imports --------------------------------------------------------------------------------------------------------


def import_file(path: Path) -> str:
    """Import a file as ``imports`` does; return the error's message, or an empty string."""
    problems = Problems("options.yml")
    plugins.import_all({"imports": [str(path)]}, problems)
    try:
        problems.raise_all()
    except OptionError as error:
        return str(error)
    return ""


def test_an_imported_file_may_use_neighbouring_files_and_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "blocks_of_the_test.py").write_text("WIDTH = 8\n")
    (tmp_path / "arch_of_the_test.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom blocks_of_the_test import WIDTH\n"
        "@dataclass\nclass Settings:\n    width: int = WIDTH\n"
    )
    assert import_file(tmp_path / "arch_of_the_test.py") == ""


def test_a_system_exit_of_an_imported_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    assert re.search(r"leaving\.py .*SystemExit: 3", import_file(tmp_path / "leaving.py"))


MARKS_THAT_IT_RAN = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"


def error_of(path: Path, *overrides: str) -> str:
    """Load an option file that has a mistake and return the message."""
    with pytest.raises(OptionError) as caught:
        load_options(path, mode="train", overrides=overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train:total_iter=-1", "total_iter"),
        ("train:totaliter=5", "unknown key"),
        ("network_g:dimm=8", "no argument 'dimm'"),
        ("datasets:train:gt_size=33", "multiple of the scale"),
        ("imports=[mine_of_the_test.py, nowhere.py]", "nowhere.py"),
    ],
)
def test_nothing_is_imported_if_the_file_has_a_mistake(
    override: str, message: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_the_test.py").write_text(MARKS_THAT_IT_RAN)
    path = tiny_run.write_options(tmp_path, {**tiny_run.options(images), "imports": ["mine_of_the_test.py"]})
    assert message in error_of(path, override)
    assert not (tmp_path / "mine_of_the_test.ran").exists()
    load_options(path, mode="train")
    assert (tmp_path / "mine_of_the_test.ran").exists()


def test_components_registered_by_imports_are_checked(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "late_of_the_test.py").write_text(
        "from safmn.registry import ARCH_REGISTRY, MODEL_REGISTRY\n"
        "from safmn.training.models import RealGANModel\n"
        "@ARCH_REGISTRY.register()\n"
        "class LateOfTheTest:\n    def __init__(self, width: int): pass\n"
        "@MODEL_REGISTRY.register()\n"
        "class LateModelOfTheTest(RealGANModel):\n    takes_teacher = True\n    has_discriminator = None\n"
    )
    content = tiny_run.options(images) | {"imports": [str(tmp_path / "late_of_the_test.py")]}
    content |= {"network_g": {"type": "LateOfTheTest", "width": 8}, "model_type": "LateModelOfTheTest"}
    content |= {"degradation": {"crop_size": 64}}
    content["train"]["teacher"] = {"weights": "safmn-x2"}
    path = tiny_run.write_options(tmp_path, content)
    with caplog.at_level("INFO", "safmn"):
        load_options(path, mode="train")
        assert "LateOfTheTest has no argument 'wdth'" in error_of(path, "network_g:wdth=8")
        assert "no network named 'Later" in error_of(path, "network_g:type=LaterOfTheTest")
        log_imports()
    assert f"imported late_of_the_test from {tmp_path / 'late_of_the_test.py'}" in caplog.text


# --- upscaling ------------------------------------------------------------------------------------------------------


def test_tiles_are_exact_for_a_network_with_a_halo() -> None:
    torch.manual_seed(0)
    network = Small().requires_grad_(False)
    network.scale, network.halo = 2, 2  # type: ignore[assignment]
    image = np.random.default_rng(0).random((90, 70, 3), dtype=np.float32)
    whole, pieces = (safmn.Upscaler(network, tile=tile, backend="eager")(image) for tile in (0, 32))
    assert np.abs(whole - pieces).max() < 1e-6


def test_an_upscaler_uses_the_current_weights_of_its_network() -> None:
    network = safmn.load_network("safmn-x2")
    upscaler = safmn.Upscaler(network, backend="native")
    image = np.random.default_rng(0).random((24, 24, 3), dtype=np.float32)
    before = upscaler(image)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.9)
    after = upscaler(image)
    assert np.abs(after - before).max() > 1e-3
    assert np.abs(after - safmn.Upscaler(network, backend="eager")(image)).max() < 1e-4
