"""Learning rates equal those of BasicSR's schedulers at every iteration."""

from __future__ import annotations

import pytest
import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR

from safmn.errors import OptionError
from safmn.optim.schedules import build_schedule

CASES = [
    (CosineAnnealingRestartLR, {"periods": [40], "restart_weights": [1], "eta_min": 1e-5}),
    (CosineAnnealingRestartLR, {"periods": [10, 10, 20], "restart_weights": [1, 0.5, 0.25], "eta_min": 1e-7}),
    (MultiStepRestartLR, {"milestones": [5, 20, 20, 30], "gamma": 0.5}),
    (
        MultiStepRestartLR,
        {"milestones": [5, 12, 15, 30], "gamma": 0.1, "restarts": [0, 10, 25], "restart_weights": [1, 0.5, 2]},
    ),
]


@pytest.mark.parametrize(("scheduler", "arguments"), CASES)
def test_equals_basicsr(scheduler: type, arguments: dict) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    reference = scheduler(optimizer, **arguments)
    schedule = build_schedule({"type": scheduler.__name__, **arguments})
    for iteration in range(1, 41):
        if iteration > 1:  # as BaseModel.update_learning_rate does
            optimizer.step()
            reference.step()
        assert schedule(iteration, 2e-4) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_warmup_is_linear_and_then_the_schedule_follows() -> None:
    section = {"type": "MultiStepLR", "milestones": [100], "gamma": 0.5}
    schedule = build_schedule(section, warmup_iter=10)
    assert [schedule(i, 1.0) for i in (1, 5, 9, 10, 11)] == [0.1, 0.5, 0.9, 1.0, 1.0]


def test_the_rate_stays_at_eta_min_after_the_last_period() -> None:
    schedule = build_schedule({"type": "CosineAnnealingRestartLR", "periods": [10], "eta_min": 1e-6})
    assert schedule(11, 1e-3) == schedule(50, 1e-3) == pytest.approx(1e-6)


def test_the_error_for_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"Did you mean 'CosineAnnealingRestartLR'\?"):
        build_schedule({"type": "CosineAnnealingRestart"})


def test_true_cosine_annealing_equals_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.01)
    ours = build_schedule({"type": "TrueCosineAnnealingLR", "T_max": 7, "eta_min": 0.01})
    for iteration in range(1, 20):
        assert ours(iteration, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-9)
        optimizer.step()
        theirs.step()


def test_restormers_schedule_has_a_lowest_rate_for_each_period() -> None:
    """Constant over the first period, because its lowest rate is the base rate; then a cosine to the second one's."""
    section = {"periods": [4, 8], "restart_weights": [1, 1], "eta_mins": [0.3, 0.01]}
    ours = build_schedule({"type": "CosineAnnealingRestartCyclicLR", **section})
    assert [ours(iteration, 0.3) for iteration in range(1, 5)] == pytest.approx([0.3] * 4)
    assert ours(9, 0.3) == pytest.approx((0.3 + 0.01) / 2)
    assert ours(13, 0.3) == pytest.approx(0.01)
    with pytest.raises(OptionError, match="same length"):
        build_schedule({"type": "CosineAnnealingRestartCyclicLR", "periods": [4, 8]})
