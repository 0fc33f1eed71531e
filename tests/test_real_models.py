"""Real-world models: which network is trained when, the target of each loss, and the discriminator's gradient."""

from __future__ import annotations

import copy
import json
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny_run
import torch
from basicsr.losses.basic_loss import PerceptualLoss as BasicSRPerceptualLoss
from basicsr.models.esrgan_model import ESRGANModel as BasicSRESRGANModel
from torchvision.models import vgg19

from safmn.archs import SAFMN
from safmn.degradations.sharpening import sharpen
from safmn.errors import OptionError, WeightsError
from safmn.imaging import list_images, read_rgb, write_image
from safmn.losses import perceptual_loss
from safmn.losses.perceptual_loss import PerceptualLoss, vgg_file
from safmn.options import load_options
from safmn.registry import ARCH_REGISTRY
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.test import main as run_test
from safmn.training.models import ESRGANModel, RealGANModel, RealSRModel
from safmn.weights import save_weights

CPU = Execution(torch.device("cpu"))


UNET = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 8}


@ARCH_REGISTRY.register(suffix="testing")
class NormalisedDiscriminator(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 1, 3))


def build(
    folder: Path,
    model: str,
    *,
    degradation: dict[str, Any] | None = None,
    network_d: dict[str, Any] = UNET,
    **train: Any,
) -> Any:
    """Return a model with the options of a run on pairs and, for GANs, a discriminator and its loss."""
    folder.mkdir(exist_ok=True)
    options = load_options(str(tiny_run.write_options(folder, tiny_run.options(folder))), mode="train")
    gan: dict[str, Any] = {}
    if model != "RealSRModel":
        gan["optim_d"] = {"type": "Adam", "lr": 1e-4}
        gan["gan_opt"] = {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1}
    options = msgspec.structs.replace(
        options,
        degradation=degradation or {},
        network_d=network_d,
        train=msgspec.structs.replace(options.train, **gan, **train),
    )
    torch.manual_seed(0)
    kinds = {"RealSRModel": RealSRModel, "RealGANModel": RealGANModel, "ESRGANModel": ESRGANModel}
    return kinds[model](options, CPU, Ranks())


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = {"lq": 16, "gt": 32, "gt_usm": 32}
    return {name: torch.rand(2, 3, side, side, generator=generator) for name, side in images.items()}


def weights(network: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.bare.parameters()]


def moved(network: Any, before: list[torch.Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(network.bare.parameters(), before, strict=True))


@pytest.mark.parametrize("sharpened", [False, True])
def test_gt_usm_decides_the_target_of_stage_one(tmp_path: Path, sharpened: bool) -> None:
    model = build(tmp_path, "RealSRModel", degradation={"gt_usm": sharpened}, fft_opt=None)
    data = batch()
    with torch.no_grad():
        output = model.net_g.bare(data["lq"])
    losses = model.training_step([data], 1).losses
    expected = (output - data["gt_usm" if sharpened else "gt"]).abs().mean()
    torch.testing.assert_close(losses["l_pix"], expected)


def test_the_gt_of_pairs_is_sharpened_by_the_model(tmp_path: Path) -> None:
    model = build(tmp_path, "RealSRModel", degradation={"l1_gt_usm": True}, fft_opt=None)
    data = batch()
    del data["gt_usm"]
    with torch.no_grad():
        output = model.net_g.bare(data["lq"])
    expected = (output - torch.stack([sharpen(image) for image in data["gt"]])).abs().mean()
    torch.testing.assert_close(model.training_step([data], 1).losses["l_pix"], expected)


def test_generator_receives_the_adversarial_gradient(tmp_path: Path) -> None:
    model = build(tmp_path, "RealGANModel", pixel_opt=None, fft_opt=None)
    before_g, before_d = weights(model.net_g), weights(model.net_d)
    result = model.training_step([batch()], 1)
    assert set(result.losses) == {"l_g_gan", "l_d_real", "l_d_fake"}
    assert all(torch.isfinite(loss) for loss in result.losses.values())
    assert moved(model.net_g, before_g)  # there is no other loss than the adversarial one
    assert moved(model.net_d, before_d)


def test_discriminator_is_frozen_while_the_generator_trains(tmp_path: Path) -> None:
    model = build(tmp_path, "RealGANModel")
    seen = []
    original = model.net_g.update

    def update() -> Any:
        seen.append([parameter.grad is None for parameter in model.net_d.parameters])
        return original()

    model.net_g.update = update
    model.training_step([batch()], 1)
    assert all(seen[0])
    assert all(parameter.requires_grad for parameter in model.net_d.parameters)


def test_net_d_iters_and_net_d_init_iters(tmp_path: Path) -> None:
    model = build(tmp_path, "RealGANModel", net_d_iters=2, net_d_init_iters=3)
    trained = []
    for iteration in range(1, 9):
        before = weights(model.net_g)
        before_d = weights(model.net_d)
        model.training_step([batch(iteration)], iteration)
        assert moved(model.net_d, before_d)
        if moved(model.net_g, before):
            trained.append(iteration)
    assert trained == [4, 6, 8]


@pytest.mark.parametrize(("key", "loss"), [("l1_gt_usm", "l_g_pix"), ("gan_gt_usm", "l_d_real")])
def test_each_key_gives_its_loss_the_sharpened_gt(tmp_path: Path, key: str, loss: str) -> None:
    values = []
    for sharpened in (False, True):
        model = build(tmp_path / str(sharpened), "RealGANModel", degradation={key: sharpened})
        values.append(float(model.training_step([batch()], 1).losses[loss]))
    assert values[0] != values[1]


def test_discriminator_losses_equal_basicsr(tmp_path: Path) -> None:
    """BasicSR averages over all pixels of the logits, with loss weight 1 for the discriminator."""
    model = build(tmp_path, "RealGANModel")
    data = batch()
    model.net_d.bare.eval()  # no power iterations, so that both sides use the same spectral norm
    with torch.no_grad():
        logits = model.net_d.bare(data["gt"])
        fake = model.net_d.bare(model.net_g.bare(data["lq"]))
    criterion = torch.nn.functional.binary_cross_entropy_with_logits
    losses = model.training_step([data], 1).losses
    torch.testing.assert_close(losses["l_d_real"], criterion(logits, torch.ones_like(logits)))
    torch.testing.assert_close(losses["l_d_fake"], criterion(fake, torch.zeros_like(fake)))


def test_esrgan_step_equals_basicsr(tmp_path: Path) -> None:
    """Losses and state after the step are equal; spectral norms depend on the order of the discriminator's inputs."""
    model = build(tmp_path, "ESRGANModel", fft_opt=None)
    theirs = types.SimpleNamespace(
        net_g=copy.deepcopy(model.net_g.bare), net_d=copy.deepcopy(model.net_d.bare), net_d_iters=1, net_d_init_iters=0,
        cri_pix=torch.nn.L1Loss(), cri_perceptual=None, cri_gan=model.gan, ema_decay=0, reduce_loss_dict=dict,
        **batch(),
    )  # fmt: skip
    for letter, ours in (("g", model.net_g), ("d", model.net_d)):
        settings = {key: ours.optimizer.param_groups[0][key] for key in ("lr", "betas", "weight_decay")}
        optimizer = torch.optim.Adam(getattr(theirs, f"net_{letter}").parameters(), **settings)
        setattr(theirs, f"optimizer_{letter}", optimizer)
    BasicSRESRGANModel.optimize_parameters(theirs, 1)
    losses = model.training_step([batch()], 1).losses
    for name in ("l_g_pix", "l_g_gan", "l_d_real", "l_d_fake"):
        torch.testing.assert_close(losses[name].detach(), theirs.log_dict[name].detach())
    for ours, other in ((model.net_g.bare, theirs.net_g), (model.net_d.bare, theirs.net_d)):
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], msg=name, rtol=1e-4, atol=1e-5)


def test_a_skipped_step_does_not_change_the_discriminators_statistics(tmp_path: Path) -> None:
    """The generator's step also runs the discriminator, before its own step."""
    network_d = {"type": "NormalisedDiscriminator_testing"}
    model = build(tmp_path, "RealGANModel", network_d=network_d, on_nonfinite="skip", fft_opt=None)
    model.training_step([batch()], 1)
    before = copy.deepcopy(model.net_d.bare.state_dict())
    bad = batch()
    bad["lq"][0, 0, 0, 0] = float("nan")
    assert model.training_step([bad], 2).nonfinite
    for name, value in model.net_d.bare.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    results = []
    for parts in (1, 2):
        model = build(tmp_path / str(parts), "RealGANModel")
        model.net_d.bare.eval()
        data = batch()
        batches = [data] if parts == 1 else [{k: v[i : i + 1] for k, v in data.items()} for i in range(2)]
        results.append((model.training_step(batches, 1).losses, model))
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-4, atol=1e-6)


def test_artefact_loss_is_finite_and_needs_an_average(tmp_path: Path) -> None:
    ldl = {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}
    model = build(tmp_path / "a", "RealGANModel", ldl_opt=ldl)
    assert torch.isfinite(model.training_step([batch()], 1).losses["l_g_ldl"])
    with pytest.raises(OptionError, match="ema_decay"):
        build(tmp_path / "b", "RealGANModel", ldl_opt=ldl, ema_decay=0)


def test_the_state_of_both_networks_is_restored_exactly(tmp_path: Path) -> None:
    first = build(tmp_path / "a", "RealGANModel")
    first.training_step([batch()], 1)
    second = build(tmp_path / "b", "RealGANModel")
    second.load_state(copy.deepcopy(first.state()))
    torch.manual_seed(5)
    first.training_step([batch(1)], 2)
    torch.manual_seed(5)
    second.training_step([batch(1)], 2)
    for name in ("net_g", "net_d"):
        for a, b in zip(first.networks[name].bare.parameters(), second.networks[name].bare.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.fixture
def random_vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with random weights for VGG19's features, in torchvision's format."""
    torch.manual_seed(3)
    state = vgg19(weights=None).features.state_dict()
    file = tmp_path / "vgg.pth"
    torch.save({f"features.{name}": value for name, value in state.items()}, file)
    return file


def test_perceptual_loss_equals_basicsr(random_vgg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"conv1_2": 0.1, "conv3_4": 1.0, "conv5_4": 1.0, "relu2_1": 0.5}
    ours = PerceptualLoss(layers, style_weight=2.0, vgg_weights=str(random_vgg))
    full = vgg19(weights=None)
    full.load_state_dict(torch.load(random_vgg), strict=False)
    monkeypatch.setattr("basicsr.archs.vgg_arch.vgg.vgg19", lambda pretrained: full)
    theirs = BasicSRPerceptualLoss(layers, style_weight=2.0)
    images = torch.rand(2, 1, 3, 64, 64)
    for a, b in zip(ours(*images), theirs(*images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_missing_vgg_weights_give_the_command_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(perceptual_loss.torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"curl .*vgg19-dcbb9e9d\.pth"):
        vgg_file("vgg19", None)
    with pytest.raises(WeightsError, match="nowhere"):
        PerceptualLoss({"conv5_4": 1.0}, vgg_weights="/nowhere/vgg.pth")


def test_unknown_layer_suggests_the_nearest(random_vgg: Path) -> None:
    with pytest.raises(OptionError, match=r"conv5_44.*\bconv5_4\b"):
        PerceptualLoss({"conv5_44": 1.0}, vgg_weights=str(random_vgg))


@pytest.mark.slow
def test_the_test_file_scores_a_folder_without_gt(
    photos_dir: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """options/test_real_x4.yml, with small weights, saves the images and reports NIQE, which needs no GT."""
    folder, weights_file = tmp_path / "lq", tmp_path / "net_g.pth"
    folder.mkdir()
    write_image(folder / "photo.png", read_rgb(list_images(photos_dir / "val")[0])[200:280, 200:280])
    network = SAFMN(dim=8, n_blocks=1, ffn_scale=2.0, upscaling_factor=4)
    save_weights(weights_file, params=network.state_dict())
    changes = [
        f"datasets:test_1:dataroot_lq={folder}",
        f"path:pretrain_network_g={weights_file}",
        f"path:results_root={tmp_path / 'results'}",
        "network_g:dim=8",
        "network_g:n_blocks=1",
        "num_gpu=0",
    ]
    file = str(request.config.rootpath / "options" / "test_real_x4.yml")
    assert run_test(["-opt", file, "--force_yml", *changes]) == 0
    saved = list((tmp_path / "results").rglob("photo*.png"))
    assert [read_rgb(path).shape for path in saved] == [(320, 320, 3)]
    report = json.loads(next((tmp_path / "results").rglob("metrics.json")).read_text())
    assert 0 < report["sets"]["RealTest"]["mean"]["niqe"] < 1000
