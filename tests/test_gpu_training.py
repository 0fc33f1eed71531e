"""The GPU form of SAFMN, computed on the CPU without fusion, has the network's outputs and gradients."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safmn_gradients import CASES, assert_close, case, network, squares

from safmn.archs import SAFMN, SAFMNPP
from safmn.errors import OptionError
from safmn.imaging import read_rgb, to_tensor
from safmn.kernels.gpu import training as gpu_training
from safmn.kernels.gpu.training import GPUTrainedSAFMN
from safmn.options import load_options
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution, choose_execution
from safmn.train import main
from safmn.training.models.sr_model import SRModel
from safmn.weights import load_network

CPU = torch.device("cpu")


def fused(own: SAFMN) -> GPUTrainedSAFMN:
    """Return the GPU form in float32 without fusion."""
    return GPUTrainedSAFMN(own, fusion="none")


@settings(max_examples=25, deadline=None)
@given(drawn=st.fixed_dictionaries({**CASES, "batch": st.integers(1, 3)}))
def test_outputs_and_gradients(drawn: dict[str, Any]) -> None:
    assert_close(fused, *case(**drawn))


def test_the_published_size_on_a_photograph(benchmark_dir: Path) -> None:
    images = squares(to_tensor(read_rgb(benchmark_dir / "Set5/LR_bicubic/X4/butterflyx4.png")))
    trained = load_network("safmn-x4")
    assert type(trained) is SAFMN
    assert_close(fused, trained.train().requires_grad_(True), images, tolerance=1e-4)


def test_bfloat16_is_close_to_float64() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    own = SAFMN(dim=36, n_blocks=2, upscaling_factor=4)
    assert_close(lambda own: GPUTrainedSAFMN(own, torch.bfloat16, fusion="none"), own, images, tolerance=0.05)


def test_equal_pixels_share_the_gradient_of_their_maximum() -> None:
    """In a flat image, all pixels of a window equal its maximum, so only the sum of their gradients is defined."""
    images = torch.full((1, 3, 32, 32), 0.5)
    assert_close(fused, network(dim=8, n_blocks=1, upscaling_factor=2), images, only_clear_maxima=False)


def test_unsupported_networks_sizes_and_settings_are_refused() -> None:
    with pytest.raises(OptionError, match="only SAFMN, not SAFMNPP"):
        GPUTrainedSAFMN(SAFMNPP(), fusion="none")
    with pytest.raises(OptionError, match="multiples of 8, not 12x16"):
        GPUTrainedSAFMN(SAFMN(dim=8, n_blocks=1), fusion="none")(torch.rand(1, 3, 16, 12))
    for precision, compile in (("fp16", False), ("fp32", True)):
        with pytest.raises(OptionError, match=r"train\.kernels: native needs the CPU in fp32"):
            choose_execution(torch.device("cuda"), precision=precision, compile=compile, kernels="native")
    with pytest.raises(OptionError, match=r"train\.cuda_graph: true needs an NVIDIA GPU"):
        choose_execution(torch.device("cuda"), precision="fp16", cuda_graph=True)


@pytest.mark.parametrize("obstacle", ["no Triton", "wide", "broken", "wrong"])
def test_torch_compile_is_used_if_our_kernels_cannot_run(
    obstacle: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def error(network: SAFMN, dtype: torch.dtype) -> float:
        if obstacle == "broken":
            raise RuntimeError("no such instruction\nand more")
        return 0.5 if obstacle == "wrong" else 0.0

    monkeypatch.setattr(gpu_training, "kernel_error", error)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if obstacle == "no Triton" else object())
    wide = SAFMN(dim=68 if obstacle == "wide" else 8, n_blocks=1)
    assert GPUTrainedSAFMN(wide).fusion == "compile"
    reason = {
        "no Triton": "Triton is not installed",
        "wide": "wider than 64 channels",
        "broken": "cannot run on this machine: RuntimeError: no such instruction",
        "wrong": "50.0% off",
    }[obstacle]
    assert "torch.compile" in caplog.text
    assert reason in caplog.text


def test_our_kernels_are_used_if_their_error_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_training, "kernel_error", lambda network, dtype: 0.01)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert GPUTrainedSAFMN(SAFMN(dim=36, n_blocks=1)).fusion == "kernels"


def test_cuda_graph_on_the_cpu_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run.make_images(tmp_path)
    option_file = tiny_run.write_options(tmp_path, tiny_run.options(tmp_path, cuda_graph=True))
    assert main(["-opt", str(option_file)]) == 2
    assert "train.cuda_graph: true needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["Adam", "Muon"])
def test_the_step_for_graphs_equals_the_plain_step(tmp_path: Path, kind: str) -> None:
    """On the CPU, take the step that can be recorded: rates and counters are tensors, and the flag is not read."""
    tiny_run.make_images(tmp_path)
    optimizer = {"type": kind, "lr": 1e-3, "betas": [0.9, 0.99]}
    content = tiny_run.options(tmp_path, optim_g=optimizer, ema_warmup=True, grad_clip=1.0)
    options = load_options(tiny_run.write_options(tmp_path, content), mode="train")
    models = []
    for execution in (Execution(CPU), Execution(CPU, cuda_graph=True)):
        torch.manual_seed(0)
        models.append(SRModel(options, execution, Ranks()))
    generator = torch.Generator().manual_seed(2)
    for iteration in range(1, 6):
        batch = {"lq": torch.rand(2, 3, 16, 16, generator=generator), "gt": torch.rand(2, 3, 32, 32)}
        for model in models:
            model.set_learning_rate(iteration)
            model._step([batch])
        if iteration == 3:
            models[1].load_state(models[1].state())  # as when a run resumes
    states = [model.state()["net_g"] for model in models]
    for key in ("params", "params_ema"):
        for name, tensor in states[0][key].items():
            torch.testing.assert_close(states[1][key][name], tensor, rtol=1e-4, atol=1e-6)
    rates = [state["optimizer"]["param_groups"][0]["lr"] for state in states]
    assert rates[1] == pytest.approx(rates[0])
    assert models[1].networks["net_g"].learning_rate == pytest.approx(rates[0])
