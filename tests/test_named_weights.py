"""Learning rates, freezing and gradual unfreezing by the names of weights; a resumed run is exact."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import yaml
from torch import nn

from safmn.archs import SAFMN
from safmn.imports import import_named
from safmn.kernels.cpu.build import can_load
from safmn.optim.muon import Muon
from safmn.optim.named_weights import can_stop
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.train import main as train
from safmn.training.models.trained_network import TrainedNetwork


def run(folder: Path, *arguments: str, **keys: Any) -> int:
    folder.mkdir(exist_ok=True)
    tiny_run.make_images(folder)
    data = tiny_run.options(folder, **keys)
    data["logger"]["save_checkpoint_freq"] = 2
    (folder / "run.yml").write_text(yaml.safe_dump(data))
    return train(["-opt", str(folder / "run.yml"), *arguments])


def weights(folder: Path, iteration: int) -> dict[str, torch.Tensor]:
    file = folder / f"experiments/tiny/models/net_g_{iteration}.pth"
    return dict(torch.load(file, weights_only=True)["params"])


def moved(folder: Path, first: int, last: int) -> set[str]:
    before, after = weights(folder, first), weights(folder, last)
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
def test_freezing_unfreezing_and_resuming(optimizer: str, tmp_path: Path) -> None:
    entries = [
        {"names": ["to_feat.*"], "lr_factor": 0},
        {"names": ["feats.*"], "frozen_until": 4, "lr_factor": 0.5},
    ]
    keys = {
        "weights_by_name": entries,
        "warmup_iter": -1,
        "optim_g": {"type": optimizer, "lr": 1e-3, "weight_decay": 0.1},
    }
    assert run(tmp_path / "a", total_iter=8, **keys) == 0
    assert moved(tmp_path / "a", 2, 4) == {"to_img"}
    assert moved(tmp_path / "a", 4, 8) == {"to_img", "feats"}
    for total in (2, 6, 8):  # interrupted twice
        assert run(tmp_path / "b", "--auto_resume", total_iter=total, **keys) == 0
    for name, tensor in weights(tmp_path / "a", 8).items():
        assert torch.equal(tensor, weights(tmp_path / "b", 8)[name]), name


def test_the_learning_rate_of_a_group(tmp_path: Path) -> None:
    """SGD's first step is proportional to the learning rate."""
    keys: dict[str, Any] = {"total_iter": 2, "warmup_iter": -1, "ema_decay": 0.0}
    keys["scheduler"] = {"type": "MultiStepLR", "milestones": [100]}
    keys["optim_g"] = {"type": "SGD", "lr": 1e-2}
    steps = {}
    for name, entries in (("plain", []), ("half", [{"names": ["to_img.*", "nothing.*"], "lr_factor": 0.5}])):
        assert run(tmp_path / name, **{**keys, "total_iter": 1, "weights_by_name": entries}) == 0
        steps[name] = weights(tmp_path / name, 1)
    start = tmp_path / "start"
    frozen = [{"names": ["*"], "lr_factor": 0}]
    assert run(start, **{**keys, "total_iter": 1, "weights_by_name": frozen}) == 0
    zero = weights(start, 1)
    for name in zero:
        full, half = steps["plain"][name] - zero[name], steps["half"][name] - zero[name]
        torch.testing.assert_close(half, full * (0.5 if name.startswith("to_img") else 1), rtol=1e-3, atol=1e-7)


def trained(network: nn.Module, optimizer: str, stops: bool | None) -> TrainedNetwork:
    """Train 4 steps, the first two with frozen first layers; ``stops`` replaces whether these get no gradients."""
    entries = [{"names": ["0.*"], "lr_factor": 0}, {"names": ["to_feat.*", "feats.0.*"], "frozen_until": 2}]
    entries = entries[1:] if hasattr(network, "to_feat") else [{**entries[0], "lr_factor": 1, "frozen_until": 2}]
    kernels: Any = "native" if hasattr(network, "to_feat") else "torch"
    result = TrainedNetwork(
        copy.deepcopy(network), Execution(torch.device("cpu"), kernels=kernels), Ranks(),
        optimizer={"type": optimizer, "lr": 1e-3}, schedule=lambda iteration, base: base, weights_by_name=entries,
    )  # fmt: skip
    if stops is not None:
        result._stops_gradients = stops
    for iteration in range(1, 5):
        result.set_learning_rate(iteration)
        images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(iteration))
        for image in result.micro_batches([images], parts=1):
            result.backward({"l1": result.forward(image).square().mean()})
        frozen = [parameter for parameter in result.parameters if parameter.grad is None]
        assert bool(frozen) == (iteration <= 2 and result._stops_gradients)
        result.update()
    return result


@pytest.mark.parametrize("optimizer", ["Adam", "Muon"])
@pytest.mark.parametrize("kind", ["layers", "native"])
def test_frozen_weights_cost_no_gradients_and_the_others_are_the_same(kind: str, optimizer: str) -> None:
    torch.manual_seed(0)
    if kind == "native":
        if not can_load():
            pytest.skip("there is no compiler for the native kernels")
        network: nn.Module = SAFMN(dim=8, n_blocks=3, upscaling_factor=2)
    else:
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    assert not can_stop(nn.Sequential(network, nn.GroupNorm(1, 3)))
    one, other = (trained(network, optimizer, stops) for stops in (True, False))
    for name, weight in one.bare.named_parameters():
        assert torch.equal(weight, dict(other.bare.named_parameters())[name]), name


def test_the_first_step_after_freezing_is_that_of_a_new_optimiser() -> None:
    """Muon's Adam counts a weight's steps from its first gradient."""
    torch.manual_seed(0)
    weight, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = Muon([{"params": [weight]}, {"params": [frozen]}], lr=1e-2)
    for step in range(3):
        weight.grad = torch.ones(3)
        frozen.grad = torch.full((3,), 0.1) if step == 2 else None
        optimizer.step()
    assert torch.allclose(frozen.detach(), torch.full((3,), 1 - 1e-2))


def test_a_network_that_recomputes_activations_keeps_its_gradients(tmp_path: Path) -> None:
    """The older form of ``torch.utils.checkpoint`` gives no gradients if its input needs none."""
    path = tmp_path / "recomputing_of_the_test.py"
    path.write_text(
        "import torch.utils.checkpoint\nfrom torch import nn\n"
        "class Recomputing(nn.Sequential):\n    def forward(self, x):\n        x = self[0](x)\n"
        "        return torch.utils.checkpoint.checkpoint(self[1], x, use_reentrant=True)\n"
    )
    kind = import_named(str(path)).name
    network = sys.modules[kind].Recomputing(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    assert not can_stop(network)
    before = network[1].weight.clone()
    assert not torch.equal(trained(network, "Adam", None).bare[1].weight, before)  # type: ignore[index, arg-type]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"names": ["fests.*"]}, "weights_by_name[0]: fests.* matches no weight"),
        ({"names": ["feats.*"], "lr_fctor": 1}, "weights_by_name[0].lr_fctor: unknown key. Did you mean 'lr_factor'?"),
        ({"lr_factor": 1}, "weights_by_name[0]: the key 'names' is missing"),
    ],
)
def test_mistakes_are_named(
    entry: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, total_iter=1, weights_by_name=[entry]) == 2
    assert message in capfd.readouterr().err


def test_names_and_a_cuda_graph_are_refused_before_anything_is_built(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entries = [{"names": ["feats.*"], "lr_factor": 0.5}]
    assert run(tmp_path, total_iter=1, cuda_graph=True, weights_by_name=entries) == 2
    assert "train.weights_by_name: does not work with cuda_graph; remove one of them" in capfd.readouterr().err
    assert not (tmp_path / "experiments").exists()
