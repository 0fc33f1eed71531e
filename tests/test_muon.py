"""Muon: equal to torch's Muon and AdamW, saved and restored, and steps with a learning rate on the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from safmn.archs import SAFMN
from safmn.errors import OptionError
from safmn.optim import muon
from safmn.optim.muon import Muon, orthogonal
from safmn.optim.optimizers import build_optimizer, groups_on, state_of

SECTION = {"type": "Muon", "lr": 2e-3, "matrix_lr_ratio": 3.0}


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(8, 40), columns=st.integers(8, 40), seed=st.integers(0, 2**31))
def test_orthogonal_matrices_have_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    matrices = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed))
    for result, matrix in zip(orthogonal(matrices, steps=5), matrices, strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.diag(left.T @ result @ right.T)  # the singular values in the matrix's singular directions
        large = torch.linalg.svdvals(matrix / matrix.norm()) > 0.02  # smaller ones grow, but do not reach one
        assert values[large].min() > 0.6
        assert values.max() < 1.3


def follow(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int) -> list[torch.Tensor]:
    """Take steps with random gradients and return the parameter after each."""
    generator = torch.Generator().manual_seed(7)
    path = []
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_matrices_move_as_with_torchs_muon(decay: float) -> None:
    start = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    theirs, ours = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    muon = Muon([ours], lr=1e-2, matrix_lr_ratio=1.0, weight_decay=decay)
    for expected, got in zip(follow(reference, theirs, 6), follow(muon, ours, 6), strict=True):
        moved = (expected - start).norm()
        assert (got - expected).norm() < 0.02 * moved  # torch's Muon iterates in bfloat16


@pytest.mark.parametrize("shape", [(36,), (9, 1, 3, 3), (3, 36, 3, 3), (36, 3, 3, 3)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_other_parameters_move_as_with_adam_without_decay(shape: tuple[int, ...], decay: float) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    theirs, ours = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    muon = Muon([ours], lr=1e-2, weight_decay=decay)  # applies the decay only to matrices
    for expected, got in zip(follow(reference, theirs, 6), follow(muon, ours, 6), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_convolution_moves_like_the_matrix_with_its_output_channels_as_rows() -> None:
    start = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    flat = nn.Parameter(start.flatten(1).clone())
    paths = [follow(Muon([flat]), flat, 3)]
    for layout in (torch.contiguous_format, torch.channels_last):
        conv = nn.Parameter(start.clone(memory_format=layout))
        generator = torch.Generator().manual_seed(7)
        muon = Muon([conv])
        for expected in paths[0]:
            conv.grad = torch.randn(16, 72, generator=generator).view(16, 8, 3, 3)
            muon.step()
            torch.testing.assert_close(conv.detach().flatten(1), expected)


def test_a_restored_state_continues_equally() -> None:
    torch.manual_seed(0)
    network = SAFMN(dim=12, n_blocks=1, upscaling_factor=2)
    x, target = torch.rand(2, 1, 3, 16, 16), torch.rand(2, 1, 3, 32, 32)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for image, wanted in zip(x, target, strict=True):
            optimizer.zero_grad()
            (model(image) - wanted).abs().mean().backward()
            optimizer.step()

    muon = build_optimizer(SECTION, network.parameters())
    train(network, muon)
    later = copy.deepcopy(network)
    resumed = build_optimizer(SECTION, later.parameters())
    resumed.load_state_dict(copy.deepcopy(muon.state_dict()))
    forgetful = copy.deepcopy(network)
    train(network, muon)
    train(later, resumed)
    train(forgetful, build_optimizer(SECTION, forgetful.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), later.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(network.parameters(), forgetful.parameters(), strict=True))


def test_parameters_without_a_gradient_do_not_change() -> None:
    used, unused = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8, 8))
    muon = Muon([used, unused], weight_decay=0.1)
    used.grad = torch.eye(8)
    muon.step()
    assert torch.equal(unused, torch.ones(8, 8))
    assert not torch.equal(used, torch.ones(8, 8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -1.0}, "lr.*must not be negative"),
        ({"matrix_lr_ratio": -1.0}, "matrix_lr_ratio.*must not be negative"),
        ({"momentum": 1.0}, r"momentum.*must be in \[0, 1\), not 1\.0"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\).*\(0\.9, 1\.0\)"),
    ],
)
def test_numbers_out_of_range_are_rejected(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.ones(8, 8))], **wrong)


def parameters() -> list[nn.Parameter]:
    """Return matrices, equal every time, in both memory layouts, and parameters that are not matrices."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(16, 12, 3, 3), (16, 12, 3, 3), (12, 24), (9, 1, 3, 3), (20,)]
    result = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    result[0].data = result[0].data.contiguous(memory_format=torch.channels_last)
    return result


def step(muon: Muon, moved: list[nn.Parameter], seed: int) -> None:
    """Take a step with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in moved:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    muon.step()


def test_a_learning_rate_on_the_device_gives_equal_steps() -> None:
    plain, recorded = parameters(), parameters()
    muons = Muon(plain, lr=1e-2, weight_decay=0.3), Muon(recorded, lr=torch.tensor(1e-2), weight_decay=0.3)
    for seed in range(5):
        step(muons[0], plain, seed)
        step(muons[1], recorded, seed)
    for one, other in zip(plain, recorded, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("small", [0, 10**9], ids=["each shape separately", "all at once"])
def test_matrices_of_any_shape_step_equally_on_the_device(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, together = muon._packed, []

    def recorded(matrices: list[torch.Tensor]) -> torch.Tensor:
        together.append(len(matrices))
        return packed(matrices)

    monkeypatch.setattr(muon, "_SMALL", small)
    monkeypatch.setattr(muon, "_packed", recorded)
    generator = torch.Generator().manual_seed(3)
    shapes = [(8, 30), (30, 8), (16, 9, 3, 3), (40, 9, 1, 1), (8, 30), (9,)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    start[2] = start[2].to(memory_format=torch.channels_last)
    host, device = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    steppers = [Muon(host, 1e-2), Muon(device, torch.tensor(1e-2))]
    for _ in range(3):
        for one, other in zip(host, device, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for stepper in steppers:
            stepper.step()
    for one, other, before in zip(host, device, start, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
        assert not torch.equal(one, before)
    assert set(together) == ({5} if small else {1, 2})  # matrices that are orthogonalised together


def test_a_step_changes_nothing_if_found_inf_is_set() -> None:
    moved = parameters()
    muon = Muon(moved, lr=torch.tensor(1e-2), weight_decay=0.3)
    step(muon, moved, 1)
    before = copy.deepcopy([moved, *(list(state.values()) for state in muon.state.values())])
    for parameter in moved:
        parameter.grad = torch.full_like(parameter, float("nan"))
    muon.found_inf = torch.tensor(1.0)
    muon.step()
    after = [moved, *(list(state.values()) for state in muon.state.values())]
    for one, other in zip(before, after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert muon.param_groups[0]["steps"] == 1
    muon.found_inf = torch.tensor(0.0)
    step(muon, moved, 2)
    assert not torch.equal(before[0][0], moved[0])


def test_a_state_saved_from_the_device_continues_on_device_and_host() -> None:
    moved = parameters()
    device = torch.device("cpu")
    recorded = build_optimizer({**SECTION, "weight_decay": 0.1}, moved, graph_on=device)
    assert isinstance(recorded, Muon)
    step(recorded, moved, 1)
    state = state_of(recorded)
    assert (state["param_groups"][0]["lr"], state["param_groups"][0]["steps"]) == (pytest.approx(2e-3), 1)
    again, plain = copy.deepcopy(moved), copy.deepcopy(moved)
    resumed = build_optimizer({**SECTION, "weight_decay": 0.1}, again, graph_on=device)
    resumed.load_state_dict(copy.deepcopy(state))
    groups_on(device, resumed)
    host = build_optimizer({**SECTION, "weight_decay": 0.1}, plain)
    host.load_state_dict(copy.deepcopy(state))
    for optimizer, own in ((recorded, moved), (resumed, again), (host, plain)):
        step(optimizer, own, 2)  # type: ignore[arg-type]
    for one, two, three in zip(moved, again, plain, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, three)


@pytest.mark.parametrize("section", [{"type": "SGD", "lr": 1e-3}, {"type": "Adam", "lr": 1e-3, "foreach": True}])
def test_optimisers_that_a_cuda_graph_cannot_record_are_rejected(section: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"train\.cuda_graph.*Adam, AdamW, Muon"):
        build_optimizer(section, parameters(), graph_on=torch.device("cpu"))
