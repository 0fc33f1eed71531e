"""load_options: accepted files and the resulting options, and the message for every kind of mistake."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

import safmn  # noqa: F401 - registers the components that option files name
from safmn.errors import OptionError
from safmn.options import Options, differences, dump, load_options
from safmn.options.differences import MISSING, to_yaml
from safmn.registry import DATASET_REGISTRY, MODEL_REGISTRY
from safmn.training.resuming import changed_keys

ALL_FILES = (Path(__file__).resolve().parent.parent / "options").rglob("*.yml")
OPTION_FILES = sorted(path for path in ALL_FILES if path.parent.name != "peers")  # those: test_peer_recipes.py
Mode = Literal["train", "test"]


def paired(**keys: Any) -> dict[str, Any]:
    """Return the section of a paired data set."""
    return {
        "name": "Set",
        "type": "PairedImageDataset",
        "dataroot_gt": "data/HR",
        "dataroot_lq": "data/LR",
        "io_backend": {"type": "disk"},
        **keys,
    }


def for_training(**sections: Any) -> dict[str, Any]:
    """Return a short option file for training that uses most sections."""
    data = {
        "name": "run",
        "model_type": "SRModel",
        "scale": 2,
        "manual_seed": 3,
        "datasets": {
            "train": paired(name="Train", gt_size=64, use_hflip=True, batch_size_per_gpu=4, num_worker_per_gpu=0),
            "val": paired(),
        },
        "network_g": {"type": "SAFMN", "dim": 36, "n_blocks": 8, "ffn_scale": 2.0, "upscaling_factor": 2},
        "path": {"pretrain_network_g": None, "strict_load_g": True},
        "train": {
            "total_iter": 100,
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]},
            "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [100], "restart_weights": [1]},
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        },
        "val": {"val_freq": 50, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "better": "higher"}}},
        "logger": {"print_freq": 10, "save_checkpoint_freq": 50},
    }
    return {**data, **sections}


def for_testing(**sections: Any) -> dict[str, Any]:
    """Return a short option file for testing."""
    data = {key: value for key, value in for_training().items() if key not in ("train", "logger")}
    data["datasets"] = {"test_1": paired(name="Set5"), "test_2": paired(name="Set14")}
    return {**data, **sections}


def load(tmp_path: Path, data: dict[str, Any], mode: Mode = "train", **arguments: Any) -> Options:
    path = tmp_path / "options.yml"
    path.write_text(to_yaml(data), encoding="utf-8")
    return load_options(path, mode=mode, **arguments)


def set_at(data: dict[str, Any], keys: str, value: Any) -> dict[str, Any]:
    """Return a copy of ``data`` with one value set; missing sections are created."""
    data = copy.deepcopy(data)
    *way, last = keys.split(".")
    section = data
    for key in way:
        section = section.setdefault(key, {})
    section[last] = value
    return data


def without(data: dict[str, Any], keys: str) -> dict[str, Any]:
    """Return a copy of ``data`` without one key."""
    data = copy.deepcopy(data)
    *way, last = keys.split(".")
    section = data
    for key in way:
        section = section[key]
    del section[last]
    return data


# --- SAFMN's option files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OPTION_FILES, ids=lambda path: path.stem)
def test_each_of_our_option_files_loads_without_warnings(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = load_options(path, mode="test" if path.stem.startswith("test") else "train")
    assert f"x{options.scale}" in path.stem
    assert options.network_g["upscaling_factor"] == options.scale
    assert not caplog.records


def test_the_training_files_have_the_published_values() -> None:
    paths = [path for path in OPTION_FILES if path.stem.startswith("train_")]
    assert len(paths) == 10
    for path in paths:
        options = load_options(path, mode="train")
        train, data = options.train, options.datasets["train"]
        assert train is not None
        large = options.network_g["dim"] == 128
        assert options.network_g["n_blocks"] == (16 if large else 8)
        assert (options.manual_seed, train.ema_decay, train.total_iter) == (10, 0.999, 500_000)
        if options.model_type == "SRModel":
            patch, batch, rate, least = (48, 48, 3e-4, 1e-6) if large else (64, 64, 1e-3, 1e-5)
            assert data["gt_size"] == patch * options.scale
            assert (data["batch_size_per_gpu"], data["dataset_enlarge_ratio"]) == (batch, 10)
            assert (train.optim_g["lr"], train.scheduler["eta_min"]) == (rate, least)
            assert train.fft_opt == {"type": "FFTLoss", "loss_weight": 0.05, "reduction": "mean"}
        else:
            assert train.optim_g["lr"] == 1e-4
            assert options.degradation["jpeg_range2"] == (10, 95)
            assert options.degradation["gt_size"] == data["gt_size"] == (180 if train.gan_opt is None else 128)


def test_the_test_files_measure_like_the_papers_tables() -> None:
    """Five sets, the Y channel, and a border of ``scale`` pixels cropped."""
    published = [path for path in OPTION_FILES if path.stem.startswith("test_") and path.parent.name != "zoo"]
    paths = [path for path in published if "real" not in path.stem]
    assert len(paths) == 6
    for path in paths:
        options = load_options(path, mode="test")
        sets = [section["name"] for section in options.datasets.values()]
        assert sets == ["Set5", "Set14", "B100", "Urban100", "Manga109"]
        assert options.val is not None
        assert list(options.val.metrics) == ["psnr", "ssim"]
        for metric in options.val.metrics.values():
            assert (metric["crop_border"], metric["test_y_channel"]) == (options.scale, True)


# --- the resulting options -------------------------------------------------------------------------------------------


def test_values_and_defaults(tmp_path: Path) -> None:
    options = load(tmp_path, for_training())
    assert (options.name, options.model_type, options.scale, options.manual_seed) == ("run", "SRModel", 2, 3)
    assert (options.mode, options.debug, options.source) == ("train", False, str(tmp_path / "options.yml"))
    train = options.train
    assert train is not None
    assert (train.total_iter, train.accumulate, train.grad_clip, train.on_nonfinite) == (100, 1, None, "stop")
    assert (train.precision, train.compile, train.channels_last) == (None, None, None)
    assert (options.logger.keep_last, options.logger.keep_every, options.logger.keep_best) == (3, None, True)
    assert options.path.strict_load_g is True
    assert options.datasets["train"]["phase"] == "train"
    assert all(section["scale"] == 2 for section in options.datasets.values())
    assert options.network_d is None
    assert options.expect == {}


def test_an_integer_may_be_written_as_5e3(tmp_path: Path) -> None:
    options = load(tmp_path, set_at(set_at(for_training(), "val.val_freq", 5e3), "train.scheduler.periods", [1e5]))
    assert options.val is not None
    assert options.val.val_freq == 5000
    assert isinstance(options.val.val_freq, int)


def test_phases_and_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    data = for_testing()
    data["datasets"]["val_2"] = paired(name="Val", dataroot_gt="~/data/HR")
    data["path"]["pretrain_network_g"] = "~/net.pth"
    options = load(tmp_path, data, "test")
    assert [section["phase"] for section in options.datasets.values()] == ["test", "test", "val"]
    assert options.datasets["val_2"]["dataroot_gt"] == "/home/user/data/HR"
    assert options.path.pretrain_network_g == "/home/user/net.pth"
    assert options.raw["path"]["pretrain_network_g"] == "~/net.pth"


def test_num_gpu_auto_is_the_number_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert load(tmp_path, for_training(num_gpu="auto")).num_gpu == 3
    assert load(tmp_path, for_training(num_gpu=1)).num_gpu == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert load(tmp_path, for_training(num_gpu="auto")).num_gpu == 1


def test_options_are_frozen_and_can_be_pickled(tmp_path: Path) -> None:
    options = load(tmp_path, for_training())
    with pytest.raises(AttributeError):
        options.scale = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        options.train.total_iter = 4  # type: ignore[misc, union-attr]
    assert pickle.loads(pickle.dumps(options)) == options


def test_raw_is_a_copy(tmp_path: Path) -> None:
    options = load(tmp_path, for_training())
    options.raw["network_g"]["dim"] = 1
    assert options.network_g["dim"] == 36


def test_dump_is_an_option_file_with_the_same_options(tmp_path: Path) -> None:
    for path in OPTION_FILES:
        options = load_options(path, mode="test" if path.stem.startswith("test") else "train")
        copied = tmp_path / path.name
        copied.write_text(dump(options), encoding="utf-8")
        again = load_options(copied, mode=options.mode)
        same = {name: getattr(options, name) for name in ("source", "raw")}
        assert msgspec.structs.replace(again, **same) == options


def test_expectations(tmp_path: Path) -> None:
    data = for_testing(
        expect={"Set5": {"psnr": 38, "tolerance": 0.002}, "Set14": {"psnr": 33.5, "tolerance": {"psnr": 1}}}
    )
    options = load(tmp_path, data, "test")
    assert options.expect["Set5"].values == {"psnr": 38.0}
    assert options.expect["Set5"].tolerance == {"psnr": 0.002}
    assert options.expect["Set14"].tolerance == {"psnr": 1.0}
    again = tmp_path / "again.yml"
    again.write_text(dump(options))
    assert load_options(again, mode="test").expect == options.expect


def test_differences(tmp_path: Path) -> None:
    old = load(tmp_path, for_training()).raw
    changed = load(tmp_path, for_training(), overrides=["train:optim_g:lr=2e-3", "train:grad_clip=1", "name=other"]).raw
    assert differences(old, old) == []
    assert differences(old, changed) == [
        ("name", "run", "other"),
        ("train.optim_g.lr", 1e-3, 2e-3),
        ("train.grad_clip", MISSING, 1),
    ]
    assert differences({"a": None, "b": 1, "c": [1]}, {"b": 1.0, "c": [1.0]}) == []
    assert differences({"a": True}, {"a": 1}) == [("a", True, 1)]
    own = {"datasets": {"train": {"type": "NotRegistered", "root": "a"}}}  # options.yml of a run names these keys
    complete = {"datasets": {"train": {"type": "NotRegistered", "root": "a", "phase": "train", "scale": 2}}}
    assert differences(own, complete) == differences(complete, own) == []
    assert differences({"a": {"b": 1}}, {"a": 2}) == [("a", {"b": 1}, 2)]


@pytest.mark.parametrize(
    ("key", "default", "other"),
    [
        ("deterministic", False, True),
        ("find_unused_parameters", False, True),
        ("use_static_graph", True, None),
        ("train.accumulate", 1, 2),
        ("train.optim_g.eps", 1e-8, 1e-7),
        ("train.optim_g.amsgrad", False, True),
        ("train.scheduler.eta_min", 0, 1e-7),
        ("train.pixel_opt.reduction", "mean", "sum"),
        ("network_g.dim", 36, 40),
        ("datasets.train.filename_tmpl", "{}", "{}x2"),
        ("datasets.train.use_rot", False, True),
        ("datasets.train.dataset_enlarge_ratio", 1, 2),
        ("datasets.train.use_shuffle", True, None),
    ],
)
def test_a_written_default_is_not_a_difference(key: str, default: object, other: object) -> None:
    """Another value is one, except for keys without effect (``other`` is None)."""
    given = set_at(for_training(), key, default)
    absent = without(given, key)
    assert differences(absent, given) == differences(given, absent) == []
    if other is not None:
        assert [found[0] for found in differences(given, set_at(for_training(), key, other))] == [key]
        assert [found[0] for found in differences(absent, set_at(for_training(), key, other))] == [key]


# --- overrides and debug ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "decisive"),
    [
        ("auto_resume", True, None),
        ("datasets.train.io_backend", {"type": "lmdb"}, False),
        ("datasets.train.dataroot_gt", "elsewhere", False),
        ("datasets.train.num_worker_per_gpu", 2, False),
        ("datasets.train.pin_memory", True, None),
        ("datasets.train.gt_size", 32, True),
        ("datasets.val.gt_size", 32, False),
        ("path.pretrain_network_g", "other.pth", False),
        ("train.total_iter", 200, False),
        ("train.optim_g.lr", 1e-4, True),
        ("network_g.dim", 32, True),
    ],
)
def test_which_changes_affect_the_result(key: str, value: object, decisive: bool | None) -> None:
    """``decisive`` is None if the change is ignored."""
    harmless, found = changed_keys(for_training(), set_at(for_training(), key, value))
    assert (len(harmless), len(found)) == {None: (0, 0), False: (1, 0), True: (0, 1)}[decisive]


def test_overrides(tmp_path: Path) -> None:
    entries = [
        "train:optim_g:lr=5e-4",
        "datasets:val:dataroot_gt=/a=b/c",
        "path:resume_state=~",
        "name=no",
        "train:precision=bf16",
        "val:metrics:ssim={type: calculate_ssim, crop_border: 2}",
        "dist_params:backend=gloo",
    ]
    options = load(tmp_path, for_training(), overrides=entries)
    assert options.train is not None
    assert options.val is not None
    assert (options.train.optim_g["lr"], options.train.precision) == (5e-4, "bf16")
    assert options.datasets["val"]["dataroot_gt"] == "/a=b/c"
    assert (options.name, options.path.resume_state, options.dist_params.backend) == ("no", None, "gloo")
    assert list(options.val.metrics) == ["psnr", "ssim"]
    assert options.raw["train"]["optim_g"]["lr"] == 5e-4


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "train:total_itr=5",
            r"--force_yml train:total_itr=5: train\.total_itr: .*Did you mean 'total_iter'",
        ),
        ("train:optim_g:lrr=5", r"train\.optim_g\.lrr: Adam has no argument 'lrr'\. Did you mean 'lr'"),
        ("train:total_iter=soon", r"train\.total_iter: expected a whole number, at least 1, got the text 'soon'"),
        ("name:first=x", r"name: is not a section.*--force_yml name:first=x"),
        ("train:total_iter", r"expected key:key=value"),
        ("=5", r"expected key:key=value"),
        ("train::x=5", r"expected key:key=value"),
        ("train.total_iter=5", r"expected key:key=value"),
        ("name=[1", r"--force_yml name=\[1: '\[1' .*YAML"),
        ("name=!!python/name:os.system ''", r"the YAML tag"),
        ("name=__import__('os').system('true')", None),
    ],
)
def test_wrong_overrides_are_reported(tmp_path: Path, entry: str, message: str | None) -> None:
    """``message`` is None for text that looks like code: it is only text."""
    if message is None:
        assert load(tmp_path, for_training(), overrides=[entry]).name == entry.partition("=")[2]
        return
    with pytest.raises(OptionError, match=message):
        load(tmp_path, for_training(), overrides=[entry])


def test_a_null_data_set_is_left_out(tmp_path: Path) -> None:
    expect = {name: {"psnr": 30.0, "tolerance": 1} for name in ("Set5", "Set14")}
    options = load(tmp_path, for_testing(expect=expect), "test", overrides=["datasets:test_2=~"])
    assert list(options.datasets) == ["test_1"]
    assert list(options.expect) == ["Set5"]


def test_debug_changes_the_name_and_the_frequencies(tmp_path: Path) -> None:
    options = load(tmp_path, for_training(), debug=True, overrides=["val:val_freq=20"])
    assert (options.name, options.debug) == ("debug_run", True)
    assert options.val is not None
    assert (options.val.val_freq, options.logger.save_checkpoint_freq, options.logger.print_freq) == (8, 8, 1)
    assert load(tmp_path, for_training(name="debug_run"), debug=True).name == "debug_run"
    assert load(tmp_path, without(for_training(), "logger"), debug=True).logger.print_freq == 1


def test_a_name_with_debug_does_not_start_debugging(tmp_path: Path) -> None:
    options = load(tmp_path, for_training(name="debug_of_mine"))
    assert options.val is not None
    assert (options.debug, options.val.val_freq, options.logger.print_freq) == (False, 50, 10)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("scal", "scale"),
        ("train.total_iters", "total_iter"),
        ("path.pretrain_model_g", "pretrain_network_g"),
        ("logger.print_frequency", "print_freq"),
        ("logger.wandb.projekt", "project"),
        ("network_g.upscale_factor", "upscaling_factor"),
        ("train.optim_g.learning_rate", None),
        ("train.optim_g.beta", "betas"),
        ("train.scheduler.period", "periods"),
        ("train.pixel_opt.weight", "loss_weight"),
        ("val.metrics.psnr.crop_boarder", "crop_border"),
        ("val.metrics.psnr.img2", None),
        ("datasets.train.use_hflp", "use_hflip"),
        ("datasets.train.batch_size", "batch_size_per_gpu"),
        ("datasets.val.dataroot_g", "dataroot_gt"),
        ("datasets.val.io_backend.tipe", "type"),
        ("dist_params.ports", "port"),
    ],
)
def test_unknown_keys_are_reported_with_line_and_nearest_key(tmp_path: Path, key: str, nearest: str | None) -> None:
    with pytest.raises(OptionError) as caught:
        load(tmp_path, set_at(for_training(), key, 1))
    message = str(caught.value)
    assert "options.yml, line " in message
    assert f": {key}: " in message
    assert f"Did you mean {nearest!r}?" in message if nearest else "Did you mean" not in message
    line = int(message.split("line ")[1].split(":")[0])
    assert key.split(".")[-1] in (tmp_path / "options.yml").read_text().splitlines()[line - 1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scale", "2", r"whole number, at least 1, got the text '2'"),
        ("scale", 0, r"at least 1, got 0"),
        ("scale", 2.5, r"got 2\.5"),
        ("scale", True, r"got true"),
        ("scale", None, r"got null"),
        ("name", 5, r"expected text .*got 5"),
        ("name", ".", r"'\.' .*folder"),
        ("name", "..", r"'\.\.' .*folder"),
        ("name", "../escaped", "results folder"),
        ("name", "/tmp/elsewhere", "results folder"),
        ("name", "a/b", "results folder"),
        ("name", "a\0b", r"x00.*folder"),
        ("num_gpu", "all", r"whole number, at least 0 .*'auto', got the text 'all'"),
        ("num_gpu", -1, r"got -1"),
        ("imports", ["nowhere.py"], r"imports\[0\]: nowhere.py .*FileNotFoundError"),
        ("imports", ["no.such.module"], r"no.such.module .*ModuleNotFoundError"),
        ("network_g.n_blocks", -1, r"got -1"),
        ("val.metrics.psnr.crop_border", -1, r"got -1"),
        ("val.metrics.psnr.input_order", "CHW", r"one of 'HWC'"),
        ("manual_seed", -1, r"at least 0"),
        ("datasets", [], r"expected a section, got \[\]"),
        ("datasets.train", "here", r"expected a section, got the text 'here'"),
        ("train", "much", r"expected a section, got the text 'much'"),
        ("train.total_iter", 0, r"at least 1, got 0"),
        ("train.ema_decay", 1, r"less than 1, got 1"),
        ("train.ema_decay", "high", r"a number, at least 0, less than 1, got the text 'high'"),
        ("train.precision", "fp61", r"'bf16', 'fp16', 'fp32'.*got the text 'fp61'\. Did you mean 'fp16'"),
        ("train.grad_clip", 0, r"greater than 0"),
        ("train.on_nonfinite", "ignore", r"one of 'skip', 'stop'"),
        ("train.optim_g", None, r"expected a section, got null"),
        ("train.optim_g.lr", "1e-3", r"greater than 0, got the text '1e-3'"),
        ("train.optim_g.lr", -1e-3, r"greater than 0"),
        ("train.optim_g.betas", [0.9], r"a list of 2 items"),
        ("train.optim_g.betas", [0.9, 1.5], r"a list of 2 items"),
        ("train.optim_g.amsgrad", 1, r"expected true or false, got 1"),
        ("train.optim_g.type", "Adamm", r"'Adamm'.* Did you mean 'Adam'"),
        ("train.optim_g.type", 3, r"expected a name, got 3"),
        ("train.scheduler.type", "Cosine", r"no scheduler named 'Cosine'"),
        ("train.scheduler.periods", 100, r"expected a list, .*at least 1, got 100"),
        ("train.pixel_opt.type", "L2Loss", r"no loss named 'L2Loss'"),
        ("train.pixel_opt.type", "GANLoss", r"GANLoss.*discriminator.*gan_opt"),
        ("train.pixel_opt.reduction", "none", r"mean or sum, got 'none'"),
        ("train.fft_opt", {"type": "FFTLoss", "reduction": "avg"}, r"reduction: .*mean or sum, got 'avg'"),
        ("train.pixel_opt.loss_weight", "1", r"expected a number, got the text '1'"),
        ("model_type", "SRModle", r"no model named 'SRModle'.*Did you mean 'SRModel'\?"),
        ("model_type", "EDVRModel", r"EDVRModel is not supported.*Known: .*SRModel"),
        ("network_g.type", "SAFNM", r"no network named 'SAFNM'.*Did you mean 'SAFMN'"),
        ("network_g.dim", "36", r"whole number, at least 1, got the text '36'"),
        ("network_g.dim", 36.0, r"whole number, at least 1, got 36\.0"),
        ("network_g.ffn_scale", "two", r"greater than 0, got the text 'two'"),
        ("network_g.ffn_scale", 0, r"greater than 0, got 0"),
        ("datasets.train.type", "PairedDataset", r"no data set named 'PairedDataset'"),
        ("datasets.train.name", "../escaped", "results folder"),
        ("datasets.train.filename_tmpl", "{} {}", r"'\{\} \{\}' .*\{\} once"),
        ("datasets.train.filename_tmpl", "{", r"\{\} once"),
        ("datasets.train.mean", [0.5, 0.5], r"channel, 3, got 2"),
        ("datasets.train.std", [1, 0, 1], r"greater than 0 or null, got"),
        ("datasets.train.gt_size", "64", r"got the text '64'"),
        ("datasets.train.use_hflip", "y", r"expected true or false, got the text 'y'"),
        ("datasets.train.batch_size_per_gpu", 0, r"at least 1"),
        ("datasets.train.io_backend.type", "zip", r"'disk', 'lmdb', got the text 'zip'"),
        ("val.metrics.psnr.type", "calculate_pnsr", r"no metric named 'calculate_pnsr'.*Did you mean 'calculate_psnr'"),
        ("val.metrics.psnr.type", "calculate_psnr_pt", r"no metric named .*Did you mean 'calculate_psnr'"),
        ("val.metrics.psnr.better", "more", r"one of 'higher', 'lower'"),
        ("val.metrics.psnr.test_y_channel", "y", r"expected true or false"),
        ("val.metrics", [], r"expected a section, got \[\]"),
        ("path.resume_state", "", r"expected text that is not empty"),
        ("path.strict_load_g", "never", r"expected true or false, got the text 'never'"),
        ("logger.wandb.project", "", r"expected text that is not empty"),
        ("dist_params.backend", "mpi", r"one of 'gloo', 'nccl'"),
    ],
)
def test_a_wrong_value_is_one_mistake_that_names_the_key(tmp_path: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        load(tmp_path, set_at(for_training(), key, value))
    assert key in str(caught.value)
    assert "mistakes" not in str(caught.value), "one mistake was reported as several"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("name", r"the key 'name' is missing"),
        ("scale", r"the key 'scale' is missing"),
        ("network_g", r"the key 'network_g' is missing"),
        ("network_g.type", r"network_g: the key 'type' is missing"),
        ("datasets.val.type", r"datasets\.val: the key 'type' is missing"),
        ("datasets", r"the key 'datasets' is missing"),
        ("datasets.train", r"datasets: the section 'train' is missing"),
        ("datasets.train.gt_size", r"datasets\.train: the key 'gt_size' is missing"),
        ("datasets.train.batch_size_per_gpu", r"datasets\.train: the key 'batch_size_per_gpu' is missing"),
        ("datasets.val.dataroot_gt", r"datasets\.val: the key 'dataroot_gt' is missing"),
        ("datasets.val.name", r"datasets\.val: the key 'name' is missing"),
        ("train", r"the section 'train' is missing"),
        ("train.total_iter", r"train: the key 'total_iter' is missing"),
        ("train.optim_g", r"train: the key 'optim_g' is missing"),
        ("train.optim_g.lr", r"train\.optim_g: Adam needs 'lr'"),
        ("train.scheduler.periods", r"CosineAnnealingRestartLR needs 'periods'"),
        ("train.pixel_opt", r"train: no loss is given"),
        ("val.metrics.psnr.crop_border", r"calculate_psnr needs 'crop_border'"),
        ("datasets.val", r"val\.metrics: there is no val set"),
    ],
)
def test_missing_keys_are_named(tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(tmp_path, without(for_training(), key))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("datasets.train.gt_size", 63, r"datasets\.train\.gt_size: 63 .*multiple of the scale, 2"),
        ("network_g.upscaling_factor", 4, r"network_g\.upscaling_factor: is 4, but .*`scale` is 2"),
        ("network_g", {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3}, r"upscale: is 4 \(its default\), but"),
        ("network_g", {"type": "EDSR", "num_out_ch": 3, "upscale": 2}, r"network_g: EDSR needs 'num_in_ch'"),
        ("network_g", {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3}, r"network_g\.scale: is 4 \(its default\)"),
        ("train.scheduler.restart_weights", [1, 1], r"periods has 1 items, restart_weights 2"),
        ("train.scheduler", {"type": "MultiStepLR", "milestones": [5], "restarts": [0, 5]}, r"restarts has 2 items"),
        ("train.gan_opt", {"type": "GANLoss", "gan_type": "vanilla"}, r"train\.gan_opt: has no effect: SRModel"),
        ("train.net_d_iters", 2, r"train\.net_d_iters: has no effect: SRModel"),
        ("path.ignore_resume_networks", ["network_g"], r"path\.ignore_resume_networks: is not supported"),
        ("network_d", {"type": "UNetDiscriminatorSN", "num_in_ch": 3}, r"network_d: has no effect: SRModel"),
        ("jpeg_range", [30, 95], r"jpeg_range: has no effect: SRModel"),
        ("degradation.mode", "per_sample", r"degradation: has no effect: SRModel"),
        ("datasets.val.scale", 3, r"datasets\.val\.scale: is 3, but must be 2"),
        ("datasets.test_1", paired(name="Test"), r"datasets\.test_1: test sets .*'val'"),
        ("datasets.train_2", paired(name="More"), r"datasets\.train_2: .*one training set.*'train'"),
        ("datasets.validation", paired(name="More"), r"datasets\.validation: .*start with train or val or test"),
        ("datasets.val_2", paired(), r"datasets\.val_2\.name: 'Set' .*datasets\.val\b"),
        ("expect.Set6", {"psnr": 1.0, "tolerance": 1}, r"expect\.Set6: no data set .*'Set6'; known: .*Set"),
        ("expect.Set", {"snr": 1.0, "tolerance": 1}, r"expect\.Set\.snr: .*val\.metrics; known: psnr"),
        ("expect.Set", {"tolerance": 1}, r"expect\.Set: names no metric"),
        ("expect.Set", {"psnr": 1.0}, r"expect\.Set: the key 'tolerance' is missing"),
        ("expect.Set", {"psnr": "1", "tolerance": 1}, r"expect\.Set\.psnr: expected a number"),
        ("expect.Set", {"psnr": 1, "tolerance": -1}, r"expect\.Set\.tolerance: expected a number, at least 0"),
        ("expect.Set", {"psnr": 1, "tolerance": {}}, r"expect\.Set\.tolerance: the key 'psnr' is missing"),
        ("expect.Set", {"psnr": 1, "tolerance": {"psnr": 1, "x": 1}}, r"expect\.Set\.tolerance\.x: unknown key"),
    ],
)
def test_keys_that_do_not_fit_together_are_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(tmp_path, set_at(for_training(), key, value))


def test_a_network_with_a_fixed_scale_needs_that_scale(tmp_path: Path) -> None:
    bcie = {"type": "SAFMN_BCIE", "dim": 8, "n_blocks": 1}
    load(tmp_path, for_testing(network_g=bcie, scale=1), "test")
    with pytest.raises(OptionError, match=r"scale: is 2, but SAFMN_BCIE .*scale 1"):
        load(tmp_path, for_testing(network_g=bcie), "test")


def degraded(**keys: Any) -> dict[str, Any]:
    return {"type": "RealESRGANDataset", "name": "Real", "dataroot_gt": "data/HR", **keys}


@pytest.mark.parametrize("first", ["train", "val"])
def test_every_data_set_is_checked_in_any_order(tmp_path: Path, first: str) -> None:
    train = degraded(gt_size=64, batch_size_per_gpu=1)
    sets = {"train": train, "val": degraded(name="Val", blur_kernel_size=20)}
    ordered = {first: sets[first], **sets}
    with pytest.raises(OptionError, match=r"datasets\.val\.blur_kernel_size"):
        load(tmp_path, for_testing(model_type="RealSRModel", datasets=ordered), "test")


def test_a_model_and_a_data_set_may_be_subclassed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, base in ((MODEL_REGISTRY, "RealESRGANModel_safmn"), (DATASET_REGISTRY, "RealESRGANDataset_safmn")):
        kind = registry.get(base)
        name = "Own" + base.removesuffix("_safmn")
        monkeypatch.setitem(registry._obj_map, name, type(name, (kind,), {}))
    gan = {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1}
    train = {**for_training()["train"], "gan_opt": gan, "optim_d": {"type": "Adam", "lr": 1e-4}}
    discriminator = {"type": "UNetDiscriminatorSN", "num_in_ch": 3}
    sets = {"train": degraded(type="OwnRealESRGANDataset", gt_size=64, batch_size_per_gpu=1)}
    data = for_training(
        model_type="OwnRealESRGANModel", datasets=sets, train=train, network_d=discriminator, l1_gt_usm=True, val=None
    )
    options = load(tmp_path, data)
    assert options.degradation["degrade_sharpened"] is True
    assert options.datasets["train"]["degradation"] == options.degradation
    with pytest.raises(OptionError, match="OwnRealESRGANModel trains a discriminator"):
        load(tmp_path, {**data, "network_d": None})


def test_a_model_without_our_attributes_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(options: Any, execution: Any, ranks: Any) -> None:
        return None

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "OwnFunction", own)
    assert load(tmp_path, for_training(model_type="OwnFunction")).model_type == "OwnFunction"


def test_a_metric_with_gt_needs_a_data_set_with_gt(tmp_path: Path) -> None:
    single = {"name": "Real", "type": "SingleImageDataset", "dataroot_lq": "real", "io_backend": {"type": "disk"}}
    niqe = {"metrics": {"niqe": {"type": "calculate_niqe", "crop_border": 0, "better": "lower"}}}
    load(tmp_path, for_testing(datasets={"test_1": single}, val=niqe), "test")
    with pytest.raises(OptionError, match=r"val\.metrics\.psnr: .*GT images.*datasets\.test_1"):
        load(tmp_path, for_testing(datasets={"test_1": single}), "test")


def test_each_mode_needs_its_sections(tmp_path: Path) -> None:
    assert load(tmp_path, for_training(), "test").train is not None  # a file for training can be used for testing
    with pytest.raises(OptionError, match=r"section 'train' is missing.*for testing"):
        load(tmp_path, for_testing())
    with pytest.raises(OptionError, match=r"datasets: .*to test on; add .*'test_1'"):
        load(tmp_path, without(without(for_training(), "datasets.val"), "val"), "test")


def test_all_mistakes_are_reported_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = for_training()
    data["scale"] = "two"
    data["network_g"]["dims"] = 3
    data["train"]["optim_g"]["lr"] = "fast"
    data["val"]["metrics"]["psnr"]["crop"] = 3
    data["val"]["freq"] = 5
    with pytest.raises(OptionError) as caught:
        load(tmp_path, data, overrides=["logger:print_freq=0"])
    header, *lines = str(caught.value).splitlines()
    assert header == f"{tmp_path / 'options.yml'} has 6 mistakes:"
    keys = ["logger.print_freq", "scale", "network_g.dims", "train.optim_g.lr", "val.metrics.psnr.crop", "val.freq"]
    assert [key in line for key, line in zip(keys, lines, strict=True)] == [True] * 6


def test_keys_without_effect_are_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """BasicSR's default values of these keys are accepted silently."""
    data = for_training()
    data["datasets"]["train"] |= {"use_shuffle": True, "prefetch_mode": None, "persistent_workers": True}
    load(tmp_path, data)
    assert not caplog.records
    data["datasets"]["train"] |= {"use_shuffle": False, "prefetch_mode": "cuda", "pin_memory": True}
    data["datasets"]["val"] |= {"use_hflip": False, "num_worker_per_gpu": 4}
    with caplog.at_level(logging.WARNING):
        load(tmp_path, data)
    said = [record.getMessage() for record in caplog.records]
    assert all("has no effect" in text for text in said)
    assert [text.split(": ")[1].split(".", 1)[1] for text in said] == [
        "train.use_shuffle",
        "train.prefetch_mode",
        "train.pin_memory",
        "val.use_hflip",
        "val.num_worker_per_gpu",
    ]


@pytest.mark.parametrize("model", ["SRGANModel", "ESRGANModel"])
def test_a_test_of_a_gan_needs_only_the_generator(model: str, tmp_path: Path) -> None:
    assert load(tmp_path, for_testing(model_type=model), "test").model_type == model
    with pytest.raises(OptionError, match=f"'network_d' is missing; {model}"):
        load(tmp_path, for_training(model_type=model))


def test_basicsrs_video_models_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="VideoBaseModel is not supported"):
        load(tmp_path, for_training(model_type="VideoBaseModel"))


def test_swinir_model_is_accepted_and_static_graph_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(tmp_path, for_training(model_type="SwinIRModel", use_static_graph=True))
    assert "use_static_graph: has no effect" in caplog.text


def test_a_schedule_that_ends_early_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path, set_at(for_training(), "train.total_iter", 200))
    [warning] = [record.getMessage() for record in caplog.records]
    assert "train.scheduler.periods: end at 100;" in warning
    assert "total_iter, 200" in warning
