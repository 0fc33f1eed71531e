"""Option files of repositories that derive from BasicSR load, and mean what they mean there."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import tiny_run
import torch
import yaml
from others_options import PUBLISHED, Published, option_file, stand_in

from safmn import registry
from safmn.errors import OptionError
from safmn.options import Options, load_options
from safmn.options.differences import to_yaml
from safmn.train import main as train

NAMES = [f"{facts.repository}-{facts.mode}" for facts in PUBLISHED]


@pytest.fixture
def networks() -> Iterator[None]:
    """Register a stand-in for every network in the table that is not installed."""
    registry.import_basicsr()
    added = {facts.network["type"]: stand_in(facts) for facts in PUBLISHED if facts.arguments}
    added = {name: kind for name, kind in added.items() if name not in registry.ARCH_REGISTRY}
    windows = Published("mine", "train", {"type": "Windows", "window_size": 24}, "window_size=24", top={"scale": 2})
    registry.ARCH_REGISTRY._obj_map.update({**added, "Windows": stand_in(windows)})
    yield
    for name in (*added, "Windows"):
        del registry.ARCH_REGISTRY._obj_map[name]


def load(folder: Path, data: dict[str, Any], mode: str = "train", **arguments: Any) -> Options:
    path = folder / "options.yml"
    path.write_text(to_yaml(data), encoding="utf-8")
    return load_options(path, mode=cast(Literal["train", "test"], mode), **arguments)


def find(repository: str, mode: str) -> dict[str, Any]:
    """Return the option file of an entry of the table."""
    return option_file(next(f for f in PUBLISHED if (f.repository, f.mode) == (repository, mode)))


def test_the_table_has_more_than_eight_repositories() -> None:
    assert len({facts.repository.split(" ")[0] for facts in PUBLISHED}) > 8


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("facts", PUBLISHED, ids=NAMES)
def test_published_option_files_load(facts: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = option_file(facts)
    options = load(tmp_path, data, facts.mode)
    assert options.network_g["type"] == facts.network["type"]
    warned = [record.getMessage().split("options.yml: ")[1].split(":")[0] for record in caplog.records]
    assert len(warned) == len(set(warned))  # each once
    refused = ("task", "use_chop", "flip_seq", "param_key", "use_flip", "tile", "geometric_augs")
    assert not [key for key in warned if key.split(".")[-1] in refused]
    assert load(tmp_path, options.raw, facts.mode).raw == options.raw


@pytest.mark.usefixtures("networks")
def test_keys_of_others_become_ours(tmp_path: Path) -> None:
    hat = load(tmp_path, find("HAT", "test"), "test").val
    assert hat is not None
    assert (hat.tile, hat.tile_overlap) == (256, 32)
    seemore = load(tmp_path, find("SeemoRe", "test"), "test").val
    assert seemore is not None
    assert (seemore.tile, seemore.tile_overlap) == (200, 16)
    naf = load(tmp_path, find("NAFNet", "train"))
    assert naf.datasets["train"]["use_hflip"] is False
    assert naf.train is not None
    assert naf.train.grad_clip == 0.01
    restormer = load(tmp_path, find("Restormer (one patch size)", "train"))
    assert (restormer.datasets["train"]["type"], restormer.datasets["train"]["use_hflip"]) == (
        "PairedImageDataset",
        True,
    )
    assert restormer.val is not None
    assert restormer.val.window == 8
    progressive = load(tmp_path, find("Restormer", "train")).datasets["train"]
    assert progressive["gt_sizes"] == [128, 160, 192, 256, 320, 384]
    assert progressive["augmentations"] == [{"type": "MixUp", "prob": 0.5, "alpha": 1.2}]
    imagenet = load(tmp_path, find("HAT (ImageNet)", "train")).datasets["train"]
    assert (imagenet["type"], imagenet["dataroot_lq"], imagenet["lq"]) == (
        "PairedImageDataset", None, {"enlarge": True},
    )  # fmt: skip
    assert load(tmp_path, find("HAT (real)", "train")).datasets["train"]["meta_info"] == "data/list.txt"
    plksr = load(tmp_path, find("PLKSR", "train")).train
    assert plksr is not None
    assert plksr.precision == "fp16"
    ensemble = load(tmp_path, find("CAT (self-ensemble)", "test"), "test").val
    assert ensemble is not None
    assert ensemble.self_ensemble
    tiles = load(tmp_path, find("CAMixerSR (tiles)", "test"), "test").val
    assert tiles is not None
    assert tiles.tile == 64
    atd = load(tmp_path, find("ATD", "train"))
    assert atd.val is not None
    assert atd.val.metrics["psnr"]["test_y_channel"] is True


@pytest.mark.usefixtures("networks")
def test_a_key_given_twice_under_two_names_is_refused(tmp_path: Path) -> None:
    data = find("NAFNet", "train")
    data["datasets"]["train"]["use_hflip"] = True
    with pytest.raises(OptionError, match=r"datasets\.train\.use_flip: means the same as use_hflip"):
        load(tmp_path, data)


def test_unknown_keys_are_fatal_unless_tolerance_is_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_run.make_images(tmp_path)
    data = tiny_run.options(tmp_path)
    data["traning"] = {"x": 1}
    data["val"]["chop"] = True
    data["train"]["pixel_opt"]["gamma"] = 2
    data["datasets"]["train"]["mosaic"] = True
    data["network_g"]["upscale_factor"] = 2
    data["model_type"] = "NobodysModel"
    with pytest.raises(OptionError) as caught:
        load(tmp_path, data)
    keys = ("traning", "val.chop", "pixel_opt.gamma", "train.mosaic", "network_g.upscale_factor", "model_type")
    for key in keys:
        assert f"{key}: " in str(caught.value)
    assert "Did you mean 'train'?" in str(caught.value)
    for tolerant in ({"tolerant": True}, {"overrides": ["tolerant=true"]}):
        caplog.clear()
        options = load(tmp_path, data, **tolerant)
        assert options.model_type == "SRModel"
        assert "gamma" not in options.raw["train"]["pixel_opt"]
        assert "upscale_factor" not in options.network_g
        for key in keys:
            assert sum(f"{key}: " in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(OptionError, match=r"network_g\.dim: expected a whole number"):
        load(tmp_path, {**data, "network_g": {**data["network_g"], "dim": "wide"}}, tolerant=True)


class Wordy(torch.nn.Module):
    """A user's network: a word where the annotation says int, and a list where the default is a number."""

    def __init__(self, lr_space: int = 1, size=64, width: int = 8, upscale: int = 2) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3 * upscale**2, 3, padding=1)
        assert isinstance(width, int), "width must be a number"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(self.conv(x), 2)


def test_a_guessed_type_refuses_nothing_that_the_constructor_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.ARCH_REGISTRY.register(Wordy)
    try:
        data = tiny_run.options(tmp_path)
        data["network_g"] = {"type": "Wordy", "lr_space": "exp", "size": [48, 48]}
        state = torch.get_rng_state()
        options = load(tmp_path, data)
        assert torch.equal(state, torch.get_rng_state())
        assert options.network_g == data["network_g"]
        assert "network_g.lr_space: expected a whole number, got the text 'exp'" in caplog.text
        data["network_g"]["width"] = "wide"
        with pytest.raises(OptionError, match=r"network_g\.width: .*refuses it as well: AssertionError: width must"):
            load(tmp_path, data)
        caplog.clear()
        load(tmp_path, data, tolerant=True)
        assert "network_g.width: expected a whole number, got the text 'wide'" in caplog.text
    finally:
        del registry.ARCH_REGISTRY._obj_map["Wordy"]


def test_swinir_takes_a_list_as_img_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path, find("SwinIR", "test"), "test")
    assert "network_g.img_size: expected a number, got [48, 48]; this type is guessed" in caplog.text


def test_null_removes_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tiny_run.options(tmp_path)
    data["train"]["pixel_opt"]["gamma"] = 2
    data["datasets"]["train"]["mosaic"] = True
    data["anything"] = {"at": "all"}
    data["network_g"]["ffn_scale"] = None  # its default, 2.0
    nulls = ["anything=~", "train:pixel_opt:gamma=null", "datasets:train:mosaic=~", "train:fft_opt=~"]
    options = load(tmp_path, data, overrides=[*nulls, "network_g:n_blocks=null"])
    assert options.train is not None
    assert options.train.fft_opt is None
    assert options.train.pixel_opt == {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}
    assert options.network_g == {"type": "SAFMN", "dim": 8, "upscaling_factor": 2}
    assert not {"anything", "mosaic"} & {*options.raw, *options.datasets["train"]}
    assert not caplog.records
    with pytest.raises(OptionError, match=r"optim_g: Adam needs 'lr'"):
        load(tmp_path, data, overrides=[*nulls, "train:optim_g:lr=~"])


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("model", ["HATModel", "DATModel"])
def test_a_run_of_another_repositorys_model_validates_in_tiles(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of 32x32 do not fit into windows of 24; the network refuses such sizes."""
    tiny_run.make_images(tmp_path)
    data = copy.deepcopy(tiny_run.options(tmp_path, total_iter=2, fft_opt=None))
    data["model_type"] = model
    data["network_g"] = {"type": "Windows"}
    data["val"] |= {"val_freq": 2, "use_chop": True} if model == "DATModel" else {"val_freq": 2}
    if model == "HATModel":
        data["tile"] = {"tile_size": 24, "tile_pad": 8}
    data["datasets"]["train"]["gt_size"] = 48
    (tmp_path / "run.yml").write_text(yaml.safe_dump(data))
    monkeypatch.chdir(tmp_path)
    assert train(["-opt", "run.yml"]) == 0
    logging.getLogger("safmn").propagate = True
    assert (tmp_path / "experiments/tiny/models/net_g_2.pth").exists()
