"""Arguments and option keys of components (BasicSR's, ours and users'), read from signatures and sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.metrics.psnr_ssim import calculate_psnr
from test_options import for_testing, for_training, load, paired, set_at
from torch import nn

from safmn import registry
from safmn.errors import OptionError
from safmn.options.signatures import REQUIRED, option_keys, plain_hint, signature_of

# --- signatures ------------------------------------------------------------------------------------------------------


class Parent(nn.Module):
    def __init__(self, width: int, depth: int | None = None, names: tuple[str, ...] = ()) -> None:
        super().__init__()


class Child(Parent):
    def __init__(self, gain=1, norm=True, act="relu", pool=None, widths=(1, 2), **kwargs):
        super().__init__(**kwargs)


class Sink(Parent):
    def __init__(self, gain: float, **kwargs: Any) -> None:
        super().__init__(3)


class Reader(Parent):
    def __init__(self, gain: float, **kwargs: Any) -> None:
        super().__init__(kwargs["width"])


class Heir(Child):
    pass


def test_a_parents_arguments_are_added_if_kwargs_are_passed_on() -> None:
    for kind in (Child, Heir):
        signature = signature_of(kind)
        assert list(signature.hints) == ["gain", "norm", "act", "pool", "widths", "width", "depth", "names"]
        assert signature.required == ["width"]
        assert not signature.is_open


def test_types_follow_from_defaults_and_annotations() -> None:
    hints = signature_of(Child).hints
    assert (hints["gain"], hints["norm"], hints["act"]) == (float, bool, str | None)
    assert (hints["pool"], hints["widths"]) == (Any, list[Any])
    assert (hints["width"], hints["depth"], hints["names"]) == (int, int | None, list[str])


def test_kwargs_open_a_signature_only_if_they_are_read() -> None:
    assert not signature_of(Sink).is_open
    assert signature_of(Reader).is_open
    assert list(signature_of(Sink).hints) == ["gain"]


def test_types_without_annotation_and_default_come_from_the_docstring() -> None:
    assert signature_of(calculate_psnr).hints["crop_border"] is int
    assert signature_of(PerceptualLoss).hints["layer_weights"] == dict[str, Any]


def test_signature_of_a_function() -> None:
    signature = signature_of(calculate_psnr, without=("img", "img2"))
    assert list(signature.hints) == ["crop_border", "input_order", "test_y_channel"]
    assert signature.defaults["crop_border"] is REQUIRED
    assert not signature.is_open


def test_signatures_of_torch_and_basicsr() -> None:
    adam = signature_of(torch.optim.Adam, without=("params",))
    assert {"lr", "betas", "eps", "weight_decay", "amsgrad", "fused"} <= set(adam.hints)
    assert adam.hints["lr"] is float  # `float | Tensor`
    assert "layer_weights" in signature_of(PerceptualLoss).required


@pytest.mark.parametrize(
    ("hint", "plain"),
    [
        (int, int),
        (float | torch.Tensor, float),
        (bool | None, bool | None),
        (tuple[float | torch.Tensor, float], tuple[float, float]),
        (tuple[int, ...], list[int]),
        (list[int], list[int]),
        (list, list[Any]),
        (dict[str, float], dict[str, Any]),
        (torch.Tensor, Any),
        (nn.Module | None, Any),
        (Any, Any),
        (int | list[int], int | list[int]),
    ],
)
def test_plain_hint_keeps_what_yaml_can_contain(hint: Any, plain: Any) -> None:
    assert plain_hint(hint) == plain


# --- keys that a data set reads --------------------------------------------------------------------------------------


class FolderBase:
    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.root = opt["root"]


class Folder(FolderBase):
    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        self.depth = opt.get("depth", 3)

    def __getitem__(self, index: int) -> Any:
        if self.opt.get("flip"):
            return self.opt["io"]["type"]
        return None


class PassesOn(FolderBase):
    def __init__(self, opt: dict[str, Any]) -> None:
        self.pairs = sorted(opt)


class Computed(FolderBase):
    def __getitem__(self, index: int) -> Any:
        return self.opt[f"root_{index}"]


def test_keys_are_found_in_the_source_of_a_class_and_its_parents() -> None:
    keys = option_keys(Folder)
    assert keys.names == {"root", "depth", "flip", "io"}
    assert not keys.is_open


@pytest.mark.parametrize("kind", [PassesOn, Computed])
def test_uses_that_cannot_be_followed_make_the_keys_open(kind: type) -> None:
    assert option_keys(kind).is_open


def test_keys_of_basicsrs_data_sets() -> None:
    keys = option_keys(PairedImageDataset)
    assert {
        "dataroot_gt",
        "dataroot_lq",
        "meta_info_file",
        "filename_tmpl",
        "gt_size",
        "use_hflip",
        "color",
    } <= keys.names
    assert not keys.is_open
    assert {"kernel_prob2", "final_sinc_prob", "use_rot"} <= option_keys(RealESRGANDataset).names


# --- users' components -----------------------------------------------------------------------------------------------


class UserNet(nn.Module):
    def __init__(self, width: int, upscale: int = 2, mode: str = "plain") -> None:
        super().__init__()
        raise AssertionError("checking options must not build a network")


class UserSet:
    def __init__(self, opt: dict[str, Any]) -> None:
        raise AssertionError("checking options must not build a data set", opt["dataroot"], opt.get("every", 1))


def user_metric(img: Any, img2: Any, power: float = 2.0, **kwargs: Any) -> float:
    return 0.0


@pytest.fixture
def user_components() -> Iterator[None]:
    added = [
        (registry.ARCH_REGISTRY, UserNet),
        (registry.DATASET_REGISTRY, UserSet),
        (registry.METRIC_REGISTRY, user_metric),
    ]
    for kind, component in added:
        kind.register(component)
    yield
    for kind, component in added:
        del kind._obj_map[component.__name__]


@pytest.mark.usefixtures("user_components")
def test_users_components_are_checked_and_not_built(tmp_path: Path) -> None:
    data = for_testing(
        network_g={"type": "UserNet", "width": 3},
        datasets={"test_1": {"name": "Mine", "type": "UserSet", "dataroot": "x", "every": 2}},
        val={"metrics": {"mine": {"type": "user_metric", "power": 1, "better": "lower"}}},
    )
    load(tmp_path, data, "test")
    for key, message in {
        "network_g.with": r"network_g\.with: UserNet .*'with'\. Did you mean 'width'\?",
        "network_g.mode": r"network_g\.mode: expected text, got 3",
        "datasets.test_1.evry": r"datasets\.test_1\.evry: UserSet .*'evry'\. Did you mean 'every'\?",
        "val.metrics.mine.pow": r"val\.metrics\.mine\.pow: user_metric .*'pow'\. Did you mean 'power'\?",
    }.items():
        with pytest.raises(OptionError, match=message):
            load(tmp_path, set_at(data, key, 3), "test")


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("EDSR", {"num_in_ch": 3, "num_out_ch": 3, "upscale": 2, "res_scale": 0.1, "img_range": 255.0}),
        ("SRVGGNetCompact", {"upscale": 2, "act_type": "prelu"}),
        ("SwinIR", {"upscale": 2, "depths": [6, 6], "num_heads": [6, 6], "img_size": 48, "upsampler": "pixelshuffle"}),
        ("RRDBNet", {"num_in_ch": 3, "num_out_ch": 3, "scale": 2, "num_grow_ch": 32}),
        ("ECBSR", {"num_in_ch": 1, "num_out_ch": 1, "num_block": 4, "num_channel": 16, "with_idt": False,
                   "act_type": "prelu", "scale": 2}),
        ("MSRResNet", {"num_feat": 64, "upscale": 2}),
        ("RCAN", {"num_in_ch": 3, "num_out_ch": 3, "squeeze_factor": 16, "upscale": 2, "rgb_mean": [0.4, 0.4, 0.4]}),
    ],
)  # fmt: skip
def test_basicsrs_networks_are_checked(
    tmp_path: Path, network: str, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    data = for_training(network_g={"type": network, **arguments})
    load(tmp_path, data)
    misspelt = set_at(data, "network_g.num_blocs", 3)
    if network == "SwinIR":  # it has **kwargs, which it does not read
        load(tmp_path, misspelt)
        assert "network_g.num_blocs: SwinIR takes this key as one of **kwargs and does not read it" in caplog.text
    else:
        with pytest.raises(OptionError, match=rf"network_g\.num_blocs: {network} has no argument"):
            load(tmp_path, misspelt)


@pytest.mark.parametrize("backend", [{"type": "disk"}, {"type": "lmdb"}])
def test_io_back_ends_are_accepted(tmp_path: Path, backend: dict[str, Any]) -> None:
    sets = {"test": paired(io_backend=backend, meta_info_file="names.txt")}
    assert load(tmp_path, for_testing(datasets=sets), "test").datasets["test"]["io_backend"] == backend


def test_a_data_set_has_the_keys_of_its_options(tmp_path: Path) -> None:
    """They are the fields of the class attribute ``OPTIONS``."""
    train = {"name": "Store", "type": "PatchStore", "dataroot": "~/x.store", "device": "cpu", "check_source": "never"}
    data = for_training()
    data["datasets"]["train"] = {**train, "gt_size": 64, "batch_size_per_gpu": 2}
    assert load(tmp_path, data).datasets["train"]["dataroot"] != "~/x.store"
    with pytest.raises(OptionError, match=r"datasets\.train\.device: .*'cpu', 'cuda', got the text 'gpu'"):
        load(tmp_path, set_at(data, "datasets.train.device", "gpu"))
    with pytest.raises(OptionError, match=r"datasets\.train\.dataroot_gt: PatchStore .*'dataroot_gt'"):
        load(tmp_path, set_at(data, "datasets.train.dataroot_gt", "x"))
