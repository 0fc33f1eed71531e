"""Fast forms of the training step have the results of the plain one; the defaults are those measured to be best."""

from __future__ import annotations

import copy
import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark_training
import pytest
import tiny_run
import torch
from torch.nn import functional as F

from safmn.archs.blocks import ChannelNorm
from safmn.errors import OptionError
from safmn.optim.ema import MovingAverage
from safmn.options import load_options
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution, choose_device, choose_execution, device_count, named_device
from safmn.training.build import prepare_execution
from safmn.training.models.sr_model import SRModel

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights_too", [False, True])
def test_channel_norm_and_its_gradients_equal_float64_to_rounding(dtype: torch.dtype, weights_too: bool) -> None:
    torch.manual_seed(0)
    norm = ChannelNorm(36)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    image = torch.randn(2, 36, 24, 16).to(dtype)
    direction = torch.randn(2, 36, 24, 16).to(dtype)
    if weights_too:
        norm = norm.to(dtype)
    exact = copy.deepcopy(norm).double()
    results = []
    for layer, kind in ((norm, dtype), (exact, torch.float64)):
        x = image.detach().clone().to(kind).requires_grad_()
        y = layer(x)
        assert y.dtype == kind
        y.backward(direction.to(kind))
        results.append([y.detach(), x.grad, layer.weight.grad, layer.bias.grad])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for got, expected in zip(*results, strict=True):
        assert got is not None
        assert expected is not None
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * float(expected.std()))


def test_channel_norm_in_bf16_keeps_the_gradients_of_its_weights_in_float32() -> None:
    """These gradients are sums over all pixels, of which bf16 would keep only 8 bits."""
    torch.manual_seed(0)
    norm = ChannelNorm(36)
    image, direction = torch.randn(2, 8, 64, 64, 36).bfloat16()
    image.requires_grad_()
    norm(image.permute(0, 3, 1, 2)).backward(direction.permute(0, 3, 1, 2))
    exact = copy.deepcopy(norm).double()
    exact.zero_grad()
    exact(image.double().permute(0, 3, 1, 2)).backward(direction.double().permute(0, 3, 1, 2))
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == torch.float32
    torch.testing.assert_close(norm.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-3)
    plain = F.layer_norm(image, (36,), norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(norm(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), plain, rtol=1e-2, atol=1e-2)


def test_our_step_equals_basicsrs(tmp_path: Path) -> None:
    """Three steps of BasicSR's model, as the benchmark builds it, and of ours give equal losses, weights, averages."""
    opt = benchmark_training.basicsr_options(benchmark_training.Setting(str(tmp_path), False, 2, 16, 0, None))
    network = {"dim": 8, "n_blocks": 2, "ffn_scale": 2.0, "upscaling_factor": 4}
    opt["network_g"] = {"type": "SAFMN_spandrel", **network}
    opt["datasets"] = {"train": {"name": "train", "type": "PairedImageDataset", "dataroot_gt": str(tmp_path)}}
    opt["datasets"]["train"] |= {"dataroot_lq": str(tmp_path), "gt_size": 64, "batch_size_per_gpu": 2}
    ours = our_model(opt, network, tmp_path)
    theirs = benchmark_training.basicsr_model(copy.deepcopy(opt))
    theirs.net_g.load_state_dict(ours.networks["net_g"].bare.state_dict())
    theirs.model_ema(0)
    torch.manual_seed(1)
    for iteration in (1, 2, 3):
        batch = {"lq": torch.rand(2, 3, 16, 16), "gt": torch.rand(2, 3, 64, 64)}
        theirs.update_learning_rate(iteration)
        theirs.feed_data(batch)
        theirs.optimize_parameters(iteration)
        ours.set_learning_rate(iteration)
        losses = ours.training_step([batch], iteration).losses
        assert float(sum(losses.values())) == pytest.approx(theirs.get_current_log()["l_pix"], rel=1e-5)
    trained = ours.networks["net_g"]
    assert trained.average is not None
    for a, b in ((trained.bare, theirs.net_g), (trained.average.network, theirs.net_g_ema)):
        for name, value in a.state_dict().items():
            torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-3, atol=2e-4)


def our_model(opt: dict[str, Any], network: dict[str, Any], folder: Path) -> SRModel:
    content = {key: opt[key] for key in ("name", "model_type", "scale", "num_gpu", "manual_seed", "datasets", "train")}
    option_file = tiny_run.write_options(folder, {**content, "network_g": {"type": "SAFMN", **network}})
    return SRModel(load_options(option_file, mode="train"), Execution(CPU), Ranks())


def test_a_skip_flag_on_the_device_keeps_the_average_unchanged() -> None:
    network = torch.nn.Linear(3, 3)
    averages = [MovingAverage(network, 0.9) for _ in range(3)]
    before = copy.deepcopy(averages[0].network.state_dict())
    torch.nn.init.normal_(network.weight)
    for average, skip in zip(averages, (None, 0.0, 1.0), strict=True):
        average.update(1, skip=None if skip is None else torch.tensor(skip))
    plain, updated, skipped = (average.network.state_dict() for average in averages)
    for name in plain:
        torch.testing.assert_close(updated[name], plain[name])
        assert torch.equal(skipped[name], before[name])
    assert not torch.equal(plain["weight"], before["weight"])


def test_cpu_defaults_are_fp32_eager_channels_last() -> None:
    execution = choose_execution(CPU)
    assert (execution.precision, execution.compile, execution.channels_last) == ("fp32", False, True)


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """Use a separate process: the C library's arena of a thread depends on its earlier allocations."""
    script = """
import resource
import torch
from safmn.runtime.execution import Execution, apply_global_settings

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40 * 2**20 // 4)  # 40 MB: 10240 pages, by default all new in each call: glibc keeps up to 32 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if __name__ == "__main__":
    apply_global_settings(Execution(torch.device("cpu")))
    print([page_faults() for _ in range(12)][-1])  # the heap first grows until freed memory fits the next tensor
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, done


@pytest.mark.parametrize(
    ("available", "index", "expected", "count"),
    [
        ({"cuda": 2, "xpu": 0, "mps": 0}, 1, "cuda:1", 2),
        ({"cuda": 0, "xpu": 2, "mps": 0}, 1, "xpu:1", 2),
        ({"cuda": 0, "xpu": 0, "mps": 1}, 0, "mps", 1),
        ({"cuda": 0, "xpu": 0, "mps": 0}, 0, "cpu", 0),
    ],
)
def test_the_device_is_the_gpu_that_there_is(
    monkeypatch: pytest.MonkeyPatch, available: dict[str, int], index: int, expected: str, count: int
) -> None:
    """The availability is made up: no test runs on these GPUs."""
    for kind in (torch.cuda, torch.xpu):
        there = available[kind.__name__.removeprefix("torch.")]
        monkeypatch.setattr(kind, "is_available", lambda there=there: there > 0)
        monkeypatch.setattr(kind, "device_count", lambda there=there: there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available["mps"] > 0)
    assert str(named_device("auto", index)) == expected
    assert str(choose_device(None, index)) == expected
    assert str(choose_device(1, index)) == expected
    assert str(choose_device(0, index)) == "cpu"
    assert device_count() == count


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_settings_of_other_gpus(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No format is chosen that was not measured there; what needs CUDA says so; ranks are for CUDA and CPUs."""
    device = torch.device(name)
    assert not choose_execution(device).channels_last
    assert choose_execution(device, precision="bf16", channels_last=True).memory_format == torch.channels_last
    for options in ({"kernels": "native"}, {"cuda_graph": True}):
        with pytest.raises(OptionError, match=rf"uses {name}"):
            choose_execution(device, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=rf"device '{name}' cannot be used on this machine"):
        named_device(name)
    monkeypatch.setattr("safmn.training.build.choose_device", lambda *_: device)
    options = load_options(tiny_run.write_options(tmp_path, tiny_run.options(tmp_path)), mode="train")
    with pytest.raises(OptionError, match=rf"not on {name}: start one process, or set num_gpu: 0"):
        prepare_execution(options, Ranks(0, 2, 0))
