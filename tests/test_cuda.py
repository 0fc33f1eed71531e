"""Training on a GPU: the losses of the CPU, exact resume, all precisions, flags that are read with a delay."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from basicsr.archs import build_network

from safmn.archs import SAFMN
from safmn.data import KeyedDataset, SampleKey, build_dataset
from safmn.data.store_format import Source
from safmn.kernels.gpu.training import GPUTrainedSAFMN, kernel_error
from safmn.prepare.store import build_store
from safmn.runtime.distributed import Ranks
from safmn.train import main
from safmn.training.checkpoint import Checkpointer
from safmn.training.models.sr_model import SRModel
from safmn.training.step_flags import StepFlags
from safmn.weights import save_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    tiny_run.make_images(folder)
    source = Source(2, str(folder / "train/hr"), str(folder / "train/lr"), "{}", None)
    build_store(folder / "train.store", source, jobs=1)
    return folder


@pytest.fixture(autouse=True)
def _global_settings() -> Any:
    """Restore the process-wide settings that a run may change."""
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


def run(images: Path, folder: Path, *arguments: str, num_gpu: int = 1, store: bool = False, **train: Any) -> int:
    """Train in this process and return the exit status."""
    content = tiny_run.options(images, **train)
    content |= {"num_gpu": num_gpu, "deterministic": True}
    content["path"]["experiments_root"] = str(folder / "experiments")
    if store:
        section = content["datasets"]["train"]
        for key in ("dataroot_gt", "dataroot_lq", "io_backend"):
            del section[key]
        section |= {"type": "PatchStore", "dataroot": str(images / "train.store"), "device": "cuda"}
    folder.mkdir(exist_ok=True)
    return main(["-opt", str(tiny_run.write_options(folder, content)), *arguments])


def losses(folder: Path) -> list[float]:
    found = [entry["l_pix"] + entry["l_freq"] for entry in tiny_run.record(folder) if "lr" in entry]
    assert found
    return found


def test_losses_equal_those_of_the_cpu(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "cpu", num_gpu=0) == 0
    assert run(images, tmp_path / "cuda") == 0
    # TF32 in the convolutions, and differences grow over 24 steps
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=2e-2)
    assert losses(tmp_path / "cuda")[0] == pytest.approx(losses(tmp_path / "cpu")[0], rel=2e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.1)])
def test_reduced_precision_learns_as_fp32_does(images: Path, tmp_path: Path, precision: str, tolerance: float) -> None:
    assert run(images, tmp_path / "fp32") == 0
    assert run(images, tmp_path / precision, precision=precision) == 0
    full, reduced = losses(tmp_path / "fp32"), losses(tmp_path / precision)
    assert sum(reduced[-6:]) == pytest.approx(sum(full[-6:]), rel=tolerance)
    assert sum(reduced[-6:]) < sum(reduced[:6])
    weights = torch.load(tmp_path / precision / "experiments/tiny/models/net_g_24.pth")["params"]
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def interrupt_at(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    """Send SIGUSR1 to this process during that iteration."""
    step = SRModel.training_step

    def interrupted(self: SRModel, batches: Any, number: int) -> Any:
        if number == iteration:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batches, number)

    monkeypatch.setattr(SRModel, "training_step", interrupted)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("store", [False, True])
def test_a_deterministic_run_resumes_to_identical_files(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, store: bool
) -> None:
    arguments = {"precision": precision, "store": store, "grad_clip": 1.0}
    assert run(images, tmp_path / "whole", **arguments) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        assert run(images, tmp_path / "parts", **arguments) == 138
    stopped_at = Checkpointer(tmp_path / "parts/experiments/tiny/training_states").iterations()[-1]
    assert 8 <= stopped_at <= 8 + 2  # the flag is read up to two iterations later
    assert run(images, tmp_path / "parts", "--auto_resume", **arguments) == 0
    prints = [
        {name: digest for name, digest in tiny_run.fingerprint(folder).items() if not name.endswith(".json")}
        for folder in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert prints[0] == prints[1]


def test_patch_store_on_the_gpu_gives_the_batches_of_the_disk(images: Path) -> None:
    options = tiny_run.options(images)["datasets"]["train"]
    disk = build_dataset(options, phase="train", scale=2)
    crops = {key: options[key] for key in ("name", "gt_size", "use_hflip", "use_rot")}
    section = {"type": "PatchStore", "dataroot": str(images / "train.store"), "device": "cuda", **crops}
    store = build_dataset(section, phase="train", scale=2)
    keys = [SampleKey(epoch, index) for epoch in range(3) for index in range(5)]
    expected, got = KeyedDataset(disk, 7).batch(keys), KeyedDataset(store, 7).batch(keys)
    for name in ("lq", "gt"):
        assert got[name].is_cuda
        assert torch.equal(got[name].cpu(), expected[name])


def test_training_from_the_store_on_the_gpu_equals_training_from_the_disk(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "disk") == 0
    assert run(images, tmp_path / "store", store=True) == 0
    assert losses(tmp_path / "store") == losses(tmp_path / "disk")


def poison(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> list[dict[str, torch.Tensor]]:
    """Put infinity into the GT of these iterations; return a list that collects the weights before and after them."""
    step: Callable[..., Any] = SRModel.training_step
    seen: list[dict[str, torch.Tensor]] = []

    def weights(model: SRModel) -> dict[str, torch.Tensor]:
        trained = model.networks["net_g"]
        assert trained.average is not None
        named = [*trained.bare.named_parameters()]
        named += [(f"ema.{name}", value) for name, value in trained.average.network.named_parameters()]
        return {name: value.detach().clone() for name, value in named}

    def poisoned(self: SRModel, batches: Any, iteration: int) -> Any:
        if iteration in at:
            batches[0]["gt"][0] = float("inf")
            seen.append(weights(self))
        result = step(self, batches, iteration)
        if iteration in at:
            seen.append(weights(self))
        return result

    monkeypatch.setattr(SRModel, "training_step", poisoned)
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stop_on_nonfinite_keeps_the_weights_and_names_the_iteration(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], precision: str
) -> None:
    seen = poison(monkeypatch, {5})
    assert run(images, tmp_path / precision, precision=precision) == 2
    message = capfd.readouterr().err
    assert "iteration 5: " in message
    assert "NaN or Inf" in message
    assert "photo" in message
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    states = Checkpointer(tmp_path / precision / "experiments/tiny/training_states").iterations()
    assert states == [3]  # nothing was saved after it


def test_skip_on_nonfinite_keeps_the_weights_and_continues(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = poison(monkeypatch, {5, 9})
    assert run(images, tmp_path / "skip", on_nonfinite="skip") == 0
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(seen[1]["to_feat.weight"], seen[2]["to_feat.weight"])  # changed between the two
    progress = Checkpointer(tmp_path / "skip/experiments/tiny/training_states").load_latest()
    assert progress is not None
    assert progress.progress["skipped"] == 2
    assert run(images, tmp_path / "bounded", on_nonfinite="skip", max_skips=1) == 2
    assert "max_skips" in capfd.readouterr().err


def test_skip_works_with_an_optimiser_that_is_not_fused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = poison(monkeypatch, {5})
    optimizer = {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99], "foreach": True}
    assert run(images, tmp_path / "foreach", on_nonfinite="skip", optim_g=optimizer) == 0
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_watch_reads_flags_two_iterations_late_and_all_of_them_when_drained() -> None:
    watch = StepFlags(torch.device("cuda"), Ranks())
    verdicts = []
    for iteration in range(1, 6):
        flag = torch.tensor(float(iteration == 2), device="cuda")
        batches = [{"lq_path": [f"image{iteration}"]}]
        verdicts.append(watch.push(iteration, flag, stop=10 * (iteration == 4), batches=batches))
    assert [[verdict.iteration for verdict in due] for due in verdicts] == [[], [], [1], [2], [3]]
    assert verdicts[3][0].nonfinite
    assert verdicts[3][0].samples == ["image2"]
    rest = watch.drain()
    assert [(verdict.iteration, verdict.stop) for verdict in rest] == [(4, 10), (5, 0)]
    assert watch.drain() == []


def test_compiled_step_equals_eager(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "eager", total_iter=6) == 0
    assert run(images, tmp_path / "compiled", total_iter=6, compile=True) == 0
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-2)


MUON = {"type": "Muon", "lr": 1e-3, "matrix_lr_ratio": 3.0, "weight_decay": 0.2}
ADAM = {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]}


@pytest.mark.parametrize("optimizer", [ADAM, MUON], ids=["Adam", "Muon"])
def test_graphed_step_equals_eager(images: Path, tmp_path: Path, optimizer: dict[str, Any]) -> None:
    common = {"optim_g": optimizer, "ema_warmup": True, "grad_clip": 1.0}
    assert run(images, tmp_path / "eager", **common) == 0
    assert run(images, tmp_path / "graphed", cuda_graph=True, **common) == 0
    assert losses(tmp_path / "graphed") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)
    eager, graphed = (
        torch.load(tmp_path / name / "experiments/tiny/models/net_g_24.pth", weights_only=True)["params_ema"]
        for name in ("eager", "graphed")
    )
    for name in eager:
        torch.testing.assert_close(graphed[name], eager[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 5e-2)])
def test_native_kernels_have_the_losses_of_torch(
    images: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    assert run(images, tmp_path / "torch") == 0
    assert run(images, tmp_path / "native", kernels="native", precision=precision, cuda_graph=True) == 0
    assert losses(tmp_path / "native") == pytest.approx(losses(tmp_path / "torch"), rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("dim", [8, 36, 64])
def test_triton_kernels_equal_the_unfused_form(dim: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(dim)
    network = SAFMN(dim=dim, n_blocks=2).to("cuda")
    assert kernel_error(network, dtype) < tolerance
    assert GPUTrainedSAFMN(network, dtype).fusion == "kernels"


@pytest.mark.parametrize(
    "how", [{}, {"precision": "bf16", "kernels": "native", "cuda_graph": True, "optim_g": MUON}], ids=["eager", "fast"]
)
def test_a_run_with_a_teacher_has_the_losses_of_the_cpu(images: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    teacher = tmp_path / "teacher.pth"
    save_weights(teacher, params=build_network(tiny_run.options(images)["network_g"]).state_dict())
    keys = {"teacher": {"weights": str(teacher), "except_images": "photo3.png"}, **how}
    assert run(images, tmp_path / "cuda", store=True, **keys) == 0
    cpu = {key: value for key, value in keys.items() if key in ("teacher", "optim_g")}
    assert run(images, tmp_path / "cpu", num_gpu=0, **cpu) == 0
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=5e-2)


def test_a_graphed_run_resumes_to_identical_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"precision": "bf16", "store": True, "cuda_graph": True, "kernels": "native", "optim_g": MUON}
    assert run(images, tmp_path / "whole", **arguments) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        assert run(images, tmp_path / "parts", **arguments) == 138
    assert run(images, tmp_path / "parts", "--auto_resume", **arguments) == 0
    whole, parts = (
        (tmp_path / name / "experiments/tiny/models/net_g_24.pth").read_bytes() for name in ("whole", "parts")
    )
    assert whole == parts


def test_a_graphed_step_skips_nonfinite_iterations(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = poison(monkeypatch, {2, 9})  # before and after the recording
    assert run(images, tmp_path / "skip", on_nonfinite="skip", cuda_graph=True, optim_g=MUON) == 0
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(seen[1]["to_feat.weight"], seen[2]["to_feat.weight"])
