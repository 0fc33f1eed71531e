"""The network of ``safmn test`` and of validation: native kernels where they give its result, with the same digits."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native import lively
from torch import Tensor

from safmn.archs import SAFMN
from safmn.errors import OptionError
from safmn.evaluation import benchmark as testing
from safmn.evaluation import fast_network
from safmn.evaluation.fast_network import fastest
from safmn.evaluation.scoring import SetResult, evaluate
from safmn.kernels.cpu import compilation
from safmn.runtime.distributed import Ranks
from safmn.weights import load_network

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(compilation.compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _log_reaches_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let log records reach caplog at the root logger: the commands switch propagation off."""
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)


def network() -> Any:
    """A network whose output looks like an image: few random features, on a grey ground."""
    made = lively(SAFMN(dim=8, n_blocks=2, upscaling_factor=2))
    made.to_img[0].weight.data.mul_(0.1)
    made.to_img[0].bias.data.fill_(0.5)
    return made


class Items:
    """A data set of random pairs of different sizes, most of which are no multiples of 8."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        height, width = 30 + 3 * index, 61 - 5 * index
        lq, gt = (torch.rand(3, height * k, width * k, generator=generator) for k in (1, 2))
        return {"lq": lq, "gt": gt, "lq_path": f"{index}.png"}


METRICS = {
    "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
    "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
}


def scores(run: Any) -> dict[str, dict[str, float]]:
    return evaluate(run, Items(), name="set", metrics=METRICS, device=CPU, progress=False).per_image


@needs_compiler
@pytest.mark.parametrize("count", [1, 2, 3])
def test_scores_are_those_of_eager_mode_with_any_number_of_threads(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    own, before = network(), torch.get_num_threads()
    expected = scores(own)
    torch.set_num_threads(count)
    try:
        with caplog.at_level(logging.INFO):
            fast = fastest(own, CPU)
            assert fast.images_at_once == count
            found = scores(fast)
        assert caplog.text.count("native kernels for testing SAFMN: used: they agree with eager mode to") == 1
    finally:
        torch.set_num_threads(before)
    assert list(found) == list(expected)
    for image, values in expected.items():
        assert found[image]["psnr"] == pytest.approx(values["psnr"], abs=1e-3)
        assert found[image]["ssim"] == pytest.approx(values["ssim"], abs=1e-5)


@needs_compiler
def test_weights_are_taken_over_when_asked_to() -> None:
    own = network()
    fast, x = fastest(own, CPU), Items()[0]["lq"][None]
    before = fast(x)
    own.to_img[0].bias.data.add_(0.25)  # torch does not count this change
    assert torch.equal(fast(x), before)
    fast.renew()
    assert torch.allclose(fast(x), before + 0.25, atol=1e-5)


def test_torch_can_be_chosen_and_other_networks_run_as_they_are() -> None:
    class Changed(SAFMN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    for own, kernels in ((network(), "torch"), (lively(Changed(dim=4, n_blocks=1)), "auto")):
        fast = fastest(own, CPU, kernels=kernels)
        assert fast is own
    problem = "there are no native kernels for Changed: the operator _softmax"
    with pytest.raises(OptionError, match=f"kernels: native cannot be used: {problem}"):
        fastest(own, CPU, kernels="native")
    with pytest.raises(OptionError, match="Conv2d has no attribute window"):
        fastest(torch.nn.Conv2d(3, 3, 3, 1, 1), CPU, kernels="native")


@needs_compiler
@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_kernels_with_another_result_are_not_used(
    error: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, translate = network(), fast_network.translate

    def wrong(*arguments: Any, **more: Any) -> Any:
        program = translate(*arguments, **more)
        assert program is not None

        def run(x: Tensor) -> Tensor:
            return program.run(x) + error

        return replace(program, run=run)

    monkeypatch.setattr(fast_network, "translate", wrong)
    fast, x = fastest(own, CPU), Items()[0]["lq"][None]
    assert torch.equal(fast(x), own(x))
    assert "not used: they differ from eager mode by" in caplog.text
    fast.renew()
    fast(x)
    assert caplog.text.count("not used") == 1


@needs_compiler
def test_published_weights_have_the_same_digits(weights_dir: Path, benchmark_dir: Path, tmp_path: Path) -> None:
    """On Set5 at x2, PSNR agrees to 4 decimals and SSIM to 6."""
    file = weights_dir / "safmn_x2_official_fp16.safetensors"
    plan = testing.plan_of_network(load_network(file), str(file), tmp_path, benchmark=str(benchmark_dir))

    def run_set(plan: testing.TestPlan) -> SetResult:
        return testing._run_set(plan, "Set5", "Set5", plan.sets["Set5"], plan.applying, Ranks(), CPU)

    eager, native = (
        run_set(testing.prepared(replace(plan, kernels=kernels), CPU)).mean for kernels in ("torch", "native")
    )
    assert native["psnr"] == pytest.approx(eager["psnr"], abs=5e-5)
    assert native["ssim"] == pytest.approx(eager["ssim"], abs=1e-6)
