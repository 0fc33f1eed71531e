"""Mistakes in a user's own components end with one message that names the file, the key or the component."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from torch import Tensor, nn

from safmn.data.collating import collated, image_of, odd_values
from safmn.data.sample_keys import KeyedDataset, SampleKey
from safmn.errors import DataError, OptionError
from safmn.evaluation.scoring import evaluate
from safmn.optim.optimizers import build_optimizer
from safmn.optim.schedules import build_schedule
from safmn.options import load_options, plugins
from safmn.options.problems import Problems
from safmn.registry import (
    ARCH_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    OPTIMIZER_REGISTRY,
    SCHEDULE_REGISTRY,
    build,
)
from safmn.runtime.distributed import Ranks
from safmn.train import main
from safmn.training.models import SRModel
from safmn.training.models.base_model import Criterion, Model, image_loss
from safmn.training.step_flags import StepFlags

# --- data sets --------------------------------------------------------------------------------------------------------

PLACE = r"\S*test_own_mistakes\.py, line \d+"
LQ, GT = torch.zeros(3, 8, 8), torch.zeros(3, 16, 16)


class Items:
    """Gives the items of a list."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (((LQ, GT), (LQ, GT)), r"Items gives a tuple; an item is a dict"),
        (({"lq": LQ, "x": None}, {"lq": LQ, "x": None}), r"Items .*'x' is NoneType"),
        (({"lq": LQ}, {"lq": LQ[:, :7]}), r"Items .*'lq' has the shapes \(3, 7, 8\), \(3, 8, 8\)"),
        (({"lq": LQ, "name": "a"}, {"lq": LQ}), r"Items .*not all of them have the key 'name'"),
    ],
)
def test_items_that_make_no_batch_are_explained(items: tuple[Any, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        KeyedDataset(Items(*items), 0).batch([SampleKey(0, 0), SampleKey(0, 1)])


def test_what_a_batch_may_hold() -> None:
    items = [{"lq": LQ.numpy(), "index": np.int64(i), "word": "a", "share": 0.5} for i in range(2)]
    batch = collated(items, "Items")
    assert image_of(batch, "lq").shape == (2, 3, 8, 8)
    assert batch["word"] == ["a", "a"]
    assert batch["index"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"lq": LQ}, "gives no 'gt', only 'lq'"),
        ({"gt": GT.to(torch.uint8)}, "'gt' as uint8"),
        ({"gt": GT.double()}, "'gt' as float64"),
        ({"gt": [1, 2]}, "'gt' as list"),
    ],
)
def test_images_must_be_float32(batch: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        image_of(batch, "gt")


def test_the_data_set_of_a_batch_is_named_with_its_place() -> None:
    batch = KeyedDataset(Items({"lq": LQ, "hr": GT}), 0).batch([SampleKey(0, 0)])
    with pytest.raises(DataError, match=rf"the training set Items \({PLACE}\) gives no 'gt', only 'lq', 'hr'; an item"):
        image_of(batch, "gt")
    with pytest.raises(DataError, match=rf"data set 'Set' \({PLACE}\): lq of item 0 is not a tensor"):
        evaluate(Plain(), Items({"lq": LQ.numpy()}), name="Set", metrics={}, device="cpu", progress=False)


def test_values_of_0_to_255_are_noticed() -> None:
    assert odd_values({"lq": LQ, "gt": GT + 255}) == (
        "gt has values up to 255: images are expected in [0, 1], or near it if normalised"
    )
    assert odd_values({"lq": LQ - 5, "gt": GT + 5, "index": torch.tensor([300])}) is None


# --- networks, losses, models -----------------------------------------------------------------------------------------


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyConv2d(12, 3)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.layer(x), 2)


class Empty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2)


class Detached(nn.Module):
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return (pred.detach() - target).abs().mean()


class Forgets(SRModel):
    def training_step(self, batches: Any, iteration: int) -> Any:
        super().training_step(batches, iteration)


def test_lazy_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Lazy", Lazy)
    with pytest.raises(OptionError, match="Lazy has a layer without sizes, LazyConv2d"):
        build(ARCH_REGISTRY, {"type": "Lazy"})


@pytest.mark.parametrize(
    ("network", "loss", "model", "words"),
    [
        (Empty, None, None, "Empty has no weights to train"),
        (Plain, Detached, None, r"no loss \(l_pix\) depends on the network's weights"),
        (Plain, None, Forgets, "Forgets.training_step returns NoneType"),
    ],
)
def test_parts_that_cannot_train_are_named(
    network: type[nn.Module],
    loss: type[nn.Module] | None,
    model: type[Model] | None,
    words: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    content = tiny_run.options(images, total_iter=2, fft_opt=None)
    content["path"]["experiments_root"] = str(tmp_path / "experiments")
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, network.__name__, network)
    content["network_g"] = {"type": network.__name__}
    if loss is not None:
        monkeypatch.setitem(LOSS_REGISTRY._obj_map, loss.__name__, loss)
        content["train"]["pixel_opt"] = {"type": loss.__name__}
    if model is not None:
        monkeypatch.setitem(MODEL_REGISTRY._obj_map, model.__name__, model)
        content["model_type"] = model.__name__
    assert main(["-opt", str(tiny_run.write_options(tmp_path, content))]) == 2
    assert re.search(words, capfd.readouterr().err)


class Abstract(Model):
    pass


def own_loss(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).abs().mean()


def test_functions_and_abstract_classes_are_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "own_loss", own_loss)
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "Abstract", Abstract)
    monkeypatch.setitem(SCHEDULE_REGISTRY._components, "TorchStep", torch.optim.lr_scheduler.StepLR)
    content = tiny_run.options(images, scheduler={"type": "TorchStep", "step_size": 5}, losses=[{"type": "own_loss"}])
    path = tiny_run.write_options(tmp_path, content | {"model_type": "Abstract"})
    with pytest.raises(OptionError) as caught:
        load_options(path, mode="train")
    for words in (
        "Abstract lacks training_step",
        "own_loss is a function; a loss is a class",
        "TorchStep takes an opt",
    ):
        assert words in str(caught.value)


def test_tolerance_leaves_out_the_options_of_an_unknown_model(images: Path, tmp_path: Path) -> None:
    content = tiny_run.options(images) | {"model_type": "TheirModel", "model": {"key": 1}}
    options = load_options(tiny_run.write_options(tmp_path, content), mode="train", tolerant=True)
    assert (options.model_type, options.model) == ("SRModel", {})


# --- schedules, optimisers, metrics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("fast", "gives str for iteration 3"),
        (-1.0, "gives -1 for"),
        (float("nan"), "gives nan for"),
        (None, "NoneType"),
    ],
)
def test_a_schedule_must_give_a_learning_rate(value: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULE_REGISTRY._components, "Own", lambda: lambda iteration, base: value)
    schedule = build_schedule({"type": "Own"}, warmup_iter=2)
    assert schedule(1, 1.0) == 0.5
    with pytest.raises(OptionError, match=rf"train\.scheduler: Own .*{words}"):
        schedule(3, 1.0)


def test_a_schedule_that_fails_is_named_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(iterations: int) -> Callable[..., float]:
        return lambda iteration: 1.0

    def divides(iterations: int) -> Callable[..., float]:
        return lambda iteration, base: base / iterations

    for function, words in ((wrong, "TypeError: .*takes 1 positional argument"), (divides, "ZeroDivisionError: ")):
        monkeypatch.setitem(SCHEDULE_REGISTRY._components, "Own", function)
        with pytest.raises(OptionError, match=rf"Own \({PLACE}\) fails in iteration 3: {words}"):
            build_schedule({"type": "Own", "iterations": 0})(3, 1.0)
    monkeypatch.setitem(SCHEDULE_REGISTRY._components, "Own", lambda iterations: "none")
    with pytest.raises(OptionError, match=rf"Own \({PLACE}\) returns a str, not a function"):
        build_schedule({"type": "Own", "iterations": 1})


class Elementwise(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x - y


def test_losses_and_outputs_of_a_wrong_shape_are_named_with_their_place() -> None:
    criterion = Criterion("l_own", Elementwise(), "image", None, {})
    with pytest.raises(OptionError, match=rf"the loss l_own \({PLACE}\) returns shape \(1, 3, 16, 16\)"):
        image_loss(criterion, GT[None], GT[None])
    with pytest.raises(OptionError, match=r"network_g gives images of shape \(1, 3, 8, 8\), but the GT"):
        image_loss(criterion, LQ[None], GT[None])


def test_a_step_with_nan_names_its_losses_and_samples() -> None:
    flags = StepFlags(torch.device("cpu"), Ranks())
    losses = {"l_good": torch.ones(()), "l_bad": torch.full((), float("nan"))}
    batches = [{"lq": LQ, "gt_path": ["a.png"]}, {"lq": LQ, "keys": [SampleKey(1, 5)]}]
    (found,) = flags.push(3, torch.ones(()), stop=0, batches=batches, losses=losses)
    assert (found.losses, found.samples) == (["l_bad"], ["a.png", "index 5 of epoch 1"])
    (found,) = flags.push(4, torch.zeros(()), stop=0, batches=batches, losses=losses)
    assert not found.losses


def test_an_optimiser_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZER_REGISTRY._components, "Own", lambda params, lr: "none")
    with pytest.raises(OptionError, match=r"Own gives a str, not a torch\.optim\.Optimizer"):
        build_optimizer({"type": "Own", "lr": 1e-3}, [nn.Parameter(torch.ones(1))])


def measured(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "own", function)
    item = {"lq": torch.rand(3, 8, 8), "gt": torch.rand(3, 16, 16), "lq_path": "a.png"}
    metrics = {"own": {"type": "own"}}
    return evaluate(Plain(), [item], name="Set", metrics=metrics, device="cpu", progress=False).mean["own"]


def test_a_metric_gets_the_images_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(lambda img: img.shape[0], monkeypatch) == 16
    assert measured(lambda img, img2: img.shape[0] / img2.shape[0], monkeypatch) == 1
    assert measured(lambda img, lq: img.shape[0] / lq.shape[0], monkeypatch) == 2
    assert measured(lambda img, **others: len(others), monkeypatch) == 1
    with pytest.raises(DataError, match="metric 'own': it returns dict instead of a number"):
        measured(lambda img: {}, monkeypatch)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_two_files_cannot_register_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from safmn.registry import SCHEDULE_REGISTRY\n@SCHEDULE_REGISTRY.register()\ndef TwiceOfTheTest(): pass\n"
    for name in ("first_of_the_test", "second_of_the_test"):
        (tmp_path / f"{name}.py").write_text(code)
    problems = Problems("my.yml")
    plugins.import_all(
        {"imports": [str(tmp_path / f"{name}_of_the_test.py") for name in ("first", "second")]}, problems
    )
    with pytest.raises(OptionError, match="first_of_the_test has registered a scheduler named 'TwiceOfTheTest'"):
        problems.raise_all()
    del SCHEDULE_REGISTRY._components["TwiceOfTheTest"]


def test_how_to_name_files_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "sub/package_of_the_test"
    package.mkdir(parents=True)
    (package / "parts.py").write_text("from . import nothing\n")
    (tmp_path / "sub/json").mkdir()
    (tmp_path / "sub/json/__init__.py").touch()
    monkeypatch.chdir(tmp_path / "sub")
    for name, words in (
        ("package_of_the_test/parts.py", r"line 1: from \. import.*add one, which may be empty"),
        ("package_of_the_test/", r"package_of_the_test is a package if it has an __init__\.py"),
        ("./json", r"Python has another package json, .*__init__\.py: rename the folder"),
    ):
        problems = Problems("my.yml")
        plugins.import_all({"imports": [name]}, problems)
        with pytest.raises(OptionError, match=re.compile(words, re.DOTALL)):
            problems.raise_all()
    (tmp_path / "sub/beside.py").touch()
    monkeypatch.chdir(tmp_path)
    problems = Problems("sub/my.yml")
    plugins.check_files({"imports": ["beside.py"]}, problems)
    plugins.check_files({"imports": ["beside_it/"]}, problems)
    with pytest.raises(
        OptionError, match=r"there is no file beside\.py; .*working directory: write sub/beside\.py"
    ) as e:
        problems.raise_all()
    assert "there is no folder beside_it" in str(e.value)
