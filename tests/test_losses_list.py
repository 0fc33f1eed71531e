"""``train.losses``: any number of losses, including users' own, in every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from torch import nn

from safmn.errors import OptionError
from safmn.options import differences, load_options
from safmn.options.losses import loss_entries
from safmn.registry import LOSS_REGISTRY
from safmn.train import main
from safmn.training.models.base_model import joined
from safmn.weights import load_state_dict


class OwnGradientLoss(nn.Module):
    """L1 between the horizontal differences of two images."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.loss_weight * (pred.diff(dim=-1) - target.diff(dim=-1)).abs().mean()


@pytest.fixture(autouse=True)
def own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "OwnGradientLoss", OwnGradientLoss)


def content(images: Path, folder: Path, losses: list[dict[str, Any]] | None, **train: Any) -> dict[str, Any]:
    """Return the options of a tiny run with these losses in ``train.losses``; None for BasicSR's keys."""
    made = tiny_run.options(images, total_iter=6, **train)
    made["train"]["scheduler"]["periods"] = [6]
    made["path"]["experiments_root"] = str(folder / "experiments")
    if losses is not None:
        del made["train"]["pixel_opt"], made["train"]["fft_opt"]
        made["train"]["losses"] = losses
    return made


def train(images: Path, folder: Path, losses: list[dict[str, Any]] | None, **keys: Any) -> list[dict[str, Any]]:
    """Train a tiny network and return the training lines of the record."""
    folder.mkdir(exist_ok=True)
    assert main(["-opt", str(tiny_run.write_options(folder, content(images, folder, losses, **keys)))]) == 0
    return [line for line in tiny_run.record(folder) if "lr" in line]


L1 = {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}
FFT = {"type": "FFTLoss", "loss_weight": 0.05, "reduction": "mean"}


def test_a_list_trains_to_the_same_weights_as_basicsrs_keys(images: Path, tmp_path: Path) -> None:
    keys = train(images, tmp_path / "keys", None)
    listed = train(images, tmp_path / "list", [L1, FFT])
    assert keys
    assert [line["l_pix"] for line in keys] == [line["l_l1"] for line in listed]
    weights = [load_state_dict(tmp_path / name / "experiments/tiny/models/net_g_6.pth") for name in ("keys", "list")]
    assert weights[0].keys() == weights[1].keys() != set()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_own_losses_are_logged_under_their_names(images: Path, tmp_path: Path) -> None:
    losses = [{"type": "OwnGradientLoss"}, {"type": "OwnGradientLoss", "name": "edges", "loss_weight": 3.0}, L1]
    [*_, last] = train(images, tmp_path, losses, pixel_opt=None)
    assert {"l_own_gradient", "l_edges", "l_l1"} <= last.keys()
    assert last["l_edges"] == pytest.approx(3 * last["l_own_gradient"], rel=1e-5)


def test_a_gan_trains_with_a_list(images: Path, tmp_path: Path) -> None:
    made = tiny_run.real_options(images, tmp_path, "RealGANModel", 0)
    made["train"] |= {"total_iter": 6, "net_d_init_iters": 0}
    made["train"]["scheduler"]["periods"] = [6]
    keys = ("pixel_opt", "fft_opt", "gan_opt", "ldl_opt")
    pixel, fft, gan, ldl = (made["train"].pop(key) for key in keys)
    made["train"]["losses"] = [gan, fft, {**pixel, "sharpened": False}, {**ldl, "role": "artefact", "name": "ldl"}]
    made["train"]["losses"].append({"type": "OwnGradientLoss"})
    assert main(["-opt", str(tiny_run.write_options(tmp_path, made))]) == 0
    assert {"l_g_l1", "l_g_fft", "l_g_ldl", "l_g_gan", "l_g_own_gradient", "l_d_real"} <= tiny_run.record(tmp_path)[
        0
    ].keys()


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([{"type": "L2Loss"}], r"train\.losses\[0\]\.type: no loss named 'L2Loss'"),
        ([L1, {"loss_weight": 1.0}], r"train\.losses\[1\]: the key 'type' is missing"),
        ([L1, {"type": "FFTLoss", "weight": 1.0}], r"train\.losses\[1\]\.weight: .*loss_weight"),
        ([{"type": "L1Loss", "role": "artifact"}], r"train\.losses\[0\]\.role: .*artefact"),
        ([{"type": "GANLoss", "gan_type": "vanilla"}], r"train\.losses\[0\]: has no effect: SRModel"),
        ([L1, {"type": "L1Loss", "role": "artefact"}], r"train\.losses\[1\]: has no effect: SRModel"),
        ([{**L1, "loss_weight": -1}], r"train\.losses\[0\]\.loss_weight: .*negative"),
        ([L1, "FFTLoss"], r"train\.losses\[1\]: .*section.*'FFTLoss'"),
        ([], r"no loss is given"),
    ],
)
def test_mistakes_name_the_entry(losses: list[Any], message: str, images: Path, tmp_path: Path) -> None:
    path = tiny_run.write_options(tmp_path, content(images, tmp_path, losses))
    with pytest.raises(OptionError, match=message):
        load_options(path, mode="train")


def test_losses_of_the_same_name_do_not_replace_each_other(images: Path, tmp_path: Path) -> None:
    [first, *_] = train(images, tmp_path, [{**L1, "name": "flat"}], flat_areas={"colours": 2})
    assert {"l_flat", "l_flat_2"} <= first.keys()
    with pytest.raises(OptionError, match=r"\bl_a\b.*train\.losses"):
        joined({"l_a": torch.zeros(())}, {"l_a": torch.ones(())})


def test_names_are_made_unique() -> None:
    entries = loss_entries({"pixel_opt": L1, "losses": [L1, L1, {"type": "WeightedTVLoss", "name": "pix"}]})
    assert [entry.name for entry in entries] == ["pix", "l1", "l1_2", "pix_2"]


def test_a_changed_entry_is_a_difference_and_a_written_default_is_not() -> None:
    old, new = ({"train": {"losses": [L1, {"type": "FFTLoss", **weight}]}} for weight in ({}, {"loss_weight": 1.0}))
    assert differences(old, new) == []
    new["train"]["losses"][0] = {**L1, "loss_weight": 2.0}
    assert differences(old, new) == [("train.losses[0].loss_weight", 1.0, 2.0)]
    assert differences(old, {"train": {"losses": [L1]}})
