"""Training steps and runs: accumulation, ranks, NaN and Inf, locks, resuming, changed options, mistakes."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from basicsr.archs import build_network
from torch import nn

from safmn.errors import CheckpointError, DataError, UserError
from safmn.evaluation.scoring import Interrupted, evaluate
from safmn.optim.ema import MovingAverage
from safmn.optim.schedules import build_schedule
from safmn.registry import ARCH_REGISTRY
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.train import main
from safmn.training import build as setup
from safmn.training.checkpoint import Checkpointer
from safmn.training.device_batches import batches_on_device
from safmn.training.experiment import Experiment
from safmn.training.models import RealGANModel
from safmn.training.models.sr_model import SRModel
from safmn.training.models.trained_network import TrainedNetwork
from safmn.training.progress import Progress
from safmn.training.saving import Saver
from safmn.training.validation import Validator
from safmn.weights import save_weights

REPOSITORY = Path(__file__).resolve().parent.parent
SECTION = {"type": "SAFMN", "dim": 8, "n_blocks": 1, "ffn_scale": 2.0, "upscaling_factor": 2}
CPU = Execution(torch.device("cpu"))


def write(images: Path, folder: Path, **train: Any) -> Path:
    content = tiny_run.options(images, **train)
    content["path"]["experiments_root"] = str(folder / "experiments")
    return tiny_run.write_options(folder, content)


def trained(execution: Execution = CPU, **keywords: Any) -> TrainedNetwork:
    torch.manual_seed(0)
    section = {"type": "CosineAnnealingRestartLR", "periods": [10]}
    optimizer = {"type": "Adam", "lr": 1e-3}
    network = build_network(SECTION)
    return TrainedNetwork(
        network, execution, Ranks(), optimizer=optimizer, schedule=build_schedule(section), **keywords
    )


def batch(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "lq": torch.rand(size, 3, 16, 16, generator=generator),
        "gt": torch.rand(size, 3, 32, 32, generator=generator),
    }


def accumulate(network: TrainedNetwork, batches: list[dict[str, torch.Tensor]]) -> None:
    for part in network.micro_batches(batches, parts=len(batches)):
        network.backward({"l1": (network.forward(part["lq"]) - part["gt"]).abs().mean()})


def step(network: TrainedNetwork, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    accumulate(network, batches)
    network.update()
    return network.losses


def test_accumulated_micro_batches_equal_the_large_batch() -> None:
    whole, parts = trained(), trained()
    large = batch(8)
    for _ in range(3):
        expected = step(whole, [large])
        got = step(parts, [{name: image[i : i + 2] for name, image in large.items()} for i in range(0, 8, 2)])
        torch.testing.assert_close(got["l1"], expected["l1"])
    for a, b in zip(whole.bare.parameters(), parts.bare.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_keeps_float32_weights_and_learns(precision: str) -> None:
    network = trained(Execution(torch.device("cpu"), precision))  # type: ignore[arg-type]
    losses = []
    for _ in range(12):
        with network.execution.autocast():
            losses.append(float(step(network, [batch(4)])["l1"]))
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in network.bare.parameters())


def test_state_round_trip_continues_exactly() -> None:
    """This holds for the contiguous moments of a checkpoint, even if the weights are channels_last."""
    for execution in (CPU, Execution(torch.device("cpu"), channels_last=False)):
        first = trained(execution, ema_decay=0.9)
        step(first, [batch(4)])
        second = trained(execution, ema_decay=0.9)
        contiguous = copy.deepcopy(first.state())
        for moments in contiguous["optimizer"]["state"].values():
            moments["exp_avg"] = moments["exp_avg"].contiguous()
            moments["exp_avg_sq"] = moments["exp_avg_sq"].contiguous()
        second.load_state(contiguous)
        for network in (first, second):
            step(network, [batch(4)])
        for name, tensor in first.state()["params_ema"].items():
            assert torch.equal(tensor, second.state()["params_ema"][name]), name


def test_average_equals_basicsr_formula() -> None:
    network = build_network(SECTION)
    average = MovingAverage(network, 0.99)
    expected = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for _ in range(3):
        for name, parameter in network.named_parameters():
            parameter.data += torch.randn_like(parameter)
            expected[name].mul_(0.99).add_(parameter.data, alpha=0.01)
        average.update(1)
    for name, parameter in average.network.named_parameters():
        torch.testing.assert_close(parameter.data, expected[name])


def test_average_with_warmup_does_not_depend_on_the_initial_weights() -> None:
    network = build_network(SECTION)
    average = MovingAverage(network, 0.999, warmup=True)
    target = torch.ones(())
    for iteration in range(1, 101):
        for parameter in network.parameters():
            parameter.data.fill_(1.0)
        average.update(iteration)
    assert all(torch.allclose(p, target, atol=1e-4) for p in average.network.parameters())


def test_clipping_bounds_the_norm() -> None:
    network = trained(grad_clip=1e-3)
    step(network, [batch(2)])
    norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_a_nan_in_the_loss_changes_nothing() -> None:
    network = trained(ema_decay=0.9)
    step(network, [batch(2)])
    before = copy.deepcopy(network.state())
    poisoned = batch(2)
    poisoned["gt"][0, 0, 0, 0] = float("nan")
    accumulate(network, [poisoned])
    assert network.update() == 1.0
    for part in ("params", "params_ema"):
        assert all(torch.equal(before[part][name], value) for name, value in network.state()[part].items())
    assert network.optimizer.state_dict()["state"][0]["step"] == before["optimizer"]["state"][0]["step"]


def poison(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    original = SRModel.training_step

    def poisoned_step(self: SRModel, batches: Any, iteration: int) -> Any:
        if iteration in at:
            batches[0]["gt"][0] = float("inf")
        return original(self, batches, iteration)

    monkeypatch.setattr(SRModel, "training_step", poisoned_step)


def test_stop_on_nonfinite_names_iteration_and_samples(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {5})
    assert main(["-opt", str(write(images, tmp_path))]) == 2
    message = capfd.readouterr().err
    assert "iteration 5" in message
    assert "photo" in message
    assert "Iteration 4 is saved" in message
    states = Experiment(tmp_path / "experiments/tiny").training_states
    assert json.loads((states / "000000004/state.json").read_text())["iteration"] == 4
    monkeypatch.undo()
    assert main(["-opt", str(write(images, tmp_path)), "--auto_resume"]) == 0
    whole = tmp_path / "whole"
    whole.mkdir()
    assert main(["-opt", str(write(images, whole))]) == 0
    ours, expected = (folder / "experiments/tiny/models/net_g_latest.pth" for folder in (tmp_path, whole))
    assert ours.read_bytes() == expected.read_bytes()


def test_a_network_that_shares_a_module_trains_and_resumes_exactly(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 12, 3, padding=1)
            self.again = nn.ModuleList([self.first])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.pixel_shuffle(self.first(x) + self.again[0](x), 2)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Shared", Shared)
    prints = []
    for name, ends in (("whole", [9]), ("parts", [4, 9])):
        folder = tmp_path / name
        folder.mkdir()
        for end in ends:
            content = tiny_run.options(images, total_iter=end)
            content["network_g"] = {"type": "Shared"}
            content["path"]["experiments_root"] = str(folder / "experiments")
            content["train"]["scheduler"]["periods"] = [9]
            assert main(["-opt", str(tiny_run.write_options(folder, content)), "--auto_resume"]) == 0
        prints.append((folder / "experiments/tiny/models/net_g_latest.pth").read_bytes())
    assert prints[0] == prints[1]


def test_no_iteration_is_lost_when_data_cannot_be_read(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def ends_after_five(*arguments: Any) -> Any:
        yield from itertools.islice(batches_on_device(*arguments), 5)
        raise DataError("photo.png: cannot be read")

    whole = tmp_path / "whole"
    whole.mkdir()
    assert main(["-opt", str(write(images, whole))]) == 0
    monkeypatch.setattr("safmn.training.trainer.batches_on_device", ends_after_five)
    assert main(["-opt", str(write(images, tmp_path))]) == 2
    captured = capfd.readouterr()
    assert "photo.png" in captured.err
    assert "iteration 5 is saved" in captured.out + captured.err
    states = Experiment(tmp_path / "experiments/tiny").training_states
    assert max(path.name for path in states.iterdir()) == "000000005"
    monkeypatch.undo()
    assert main(["-opt", str(write(images, tmp_path)), "--auto_resume"]) == 0
    ours, expected = (folder / "experiments/tiny/models/net_g_latest.pth" for folder in (tmp_path, whole))
    assert ours.read_bytes() == expected.read_bytes()


def test_skip_on_nonfinite_counts_and_is_bounded(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {5, 9})
    assert main(["-opt", str(write(images, tmp_path, on_nonfinite="skip"))]) == 0
    state = json.loads((tmp_path / "experiments/tiny/training_states/000000024/state.json").read_text())
    assert state["progress"]["skipped"] == 2
    skipped = {line["iter"]: line["skipped"] for line in tiny_run.record(tmp_path) if "skipped" in line}
    assert sorted(skipped) == [5, 9]
    assert all(Path(sample).is_file() for samples in skipped.values() for sample in samples)
    assert {len(samples) for samples in skipped.values()} == {2}
    shutil.rmtree(tmp_path / "experiments")
    assert main(["-opt", str(write(images, tmp_path, on_nonfinite="skip", max_skips=1))]) == 2
    assert "max_skips" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network_g": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}},
         ["network_g", "(2, 1, 16, 16)", "(2, 3, 32, 32)"]),
        ({"datasets:train:color": "y"}, ["lq (2, 1, 16, 16)"]),
        ({"network_g": {"type": "SwinIR", "upscale": 2, "window_size": 6, "embed_dim": 12, "num_heads": [2],
                        "depths": [1], "upsampler": "pixelshuffle"}}, [tiny_run.MISFIT]),
    ],
)  # fmt: skip
def test_parts_that_do_not_match_give_one_message_without_a_traceback(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], words: list[str]
) -> None:
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    assert main(["-opt", str(write(images, tmp_path)), "--force_yml", *overrides]) == 2
    err = capfd.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("safmn: error:") and all(w in line for w in words)]
    assert "Traceback" not in err


def test_a_later_error_is_a_bug_and_keeps_its_traceback(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SRModel.training_step

    def fails(self: SRModel, batches: Any, iteration: int) -> Any:
        if iteration == 2:
            raise KeyError("ours")
        return original(self, batches, iteration)

    monkeypatch.setattr(SRModel, "training_step", fails)
    monkeypatch.setattr("safmn.own_code.is_own", lambda file: False)  # this file would be the user's
    with pytest.raises(KeyError, match="ours"):
        main(["-opt", str(write(images, tmp_path))])


def test_a_users_network_with_5d_weights_trains_and_resumes(images: Path, tmp_path: Path) -> None:
    """The network is defined in a file that the option file imports."""
    (tmp_path / "deep_arch.py").write_text(
        "from basicsr.utils.registry import ARCH_REGISTRY\n"
        "from torch import nn\n"
        "@ARCH_REGISTRY.register()\n"
        "class DeepOfTheTest(nn.Module):\n"
        "    def __init__(self, num_feat=4):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv3d(1, 4, 3, padding=1)\n"
        "        self.shuffle = nn.PixelShuffle(2)\n"
        "    def forward(self, x):\n"
        "        y = self.conv(x[:, None])\n"  # (B, 4, 3, h, w)
        "        return self.shuffle(y.transpose(1, 2).flatten(1, 2))\n"
    )
    path = str(write(images, tmp_path))
    overrides = [f"imports=[{tmp_path / 'deep_arch.py'}]", "network_g={type: DeepOfTheTest, num_feat: 4}"]
    assert main(["-opt", path, "--force_yml", *overrides]) == 0
    assert main(["-opt", path, "--auto_resume", "--force_yml", *overrides, "train:total_iter=26"]) == 0


def test_a_validation_set_of_another_scale_is_refused_at_the_start(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--force_yml", f"datasets:val:dataroot_lq={images / 'val/hr'}"]
    assert main(["-opt", str(write(images, tmp_path)), *wrong]) == 2
    err = capfd.readouterr().err
    for words in ("photo5.png", "64x64", "scale", "dataroot_lq", "filename_tmpl"):
        assert words in err
    assert not (tmp_path / "experiments/tiny/models").exists()


def test_a_finished_run_says_so(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(write(images, tmp_path))
    assert main(["-opt", path]) == 0
    capfd.readouterr()
    assert main(["-opt", path, "--auto_resume"]) == 0
    message = capfd.readouterr().err
    assert "nothing to train" in message
    assert "24 of 24" in message


def test_an_operation_that_cannot_be_deterministic_is_explained(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: Any) -> None:
        raise RuntimeError(
            "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set ..."
        )

    monkeypatch.setattr(SRModel, "training_step", forbidden)
    assert main(["-opt", str(write(images, tmp_path))]) == 2
    message = capfd.readouterr().err
    assert "adaptive_max_pool2d_backward_cuda" in message
    assert "multiple of 8 * scale" in message


def test_second_run_in_a_folder_is_refused(images: Path, tmp_path: Path) -> None:
    option_file = write(images, tmp_path)
    first = tiny_run.start(option_file, "--force_yml", "train:total_iter=100000", "val:val_freq=100000")
    root = tmp_path / "experiments/tiny"
    for _ in range(200):
        if (root / "record.jsonl").exists():
            break
        time.sleep(0.05)
    second = tiny_run.finish(option_file, "--auto_resume")
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert second == 2
    assert "is in use by process" in (tmp_path / "options.log").read_text()


def test_older_run_is_archived_not_overwritten(images: Path, tmp_path: Path) -> None:
    option_file = str(write(images, tmp_path, total_iter=3))
    assert main(["-opt", option_file]) == 0
    assert main(["-opt", option_file]) == 0
    archived = [path for path in (tmp_path / "experiments").iterdir() if "_archived_" in path.name]
    assert len(archived) == 1
    assert (archived[0] / "models/net_g_3.pth").is_file()


def test_a_start_that_fails_leaves_the_older_run_in_its_place(images: Path, tmp_path: Path) -> None:
    option_file = str(write(images, tmp_path, total_iter=3))
    assert main(["-opt", option_file]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "experiments").rglob("*") if path.suffix}
    assert main(["-opt", option_file, "--force_yml", "datasets:train:dataroot_gt=/nowhere"]) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "experiments").rglob("*") if path.suffix} == before


def test_a_start_without_checkpoints_keeps_the_older_weights(images: Path, tmp_path: Path) -> None:
    """If all checkpoints are damaged, the message advises to move training_states away; the run then starts at 0."""
    option_file = str(write(images, tmp_path, total_iter=3))
    assert main(["-opt", option_file]) == 0
    root = tmp_path / "experiments/tiny"
    before = (root / "models/net_g_3.pth").read_bytes()
    shutil.rmtree(root / "training_states")
    assert main(["-opt", option_file, "--auto_resume"]) == 0
    [archived] = [path for path in (tmp_path / "experiments").iterdir() if "_archived_" in path.name]
    assert (archived / "models/net_g_3.pth").read_bytes() == before


def test_resuming_with_other_images_is_refused(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "images"
    shutil.copytree(images, mine)
    option_file = write(mine, tmp_path, total_iter=3)
    assert main(["-opt", str(option_file)]) == 0
    for kind in ("hr", "lr"):
        (mine / "train" / kind / "photo0.png").rename(mine / "train" / kind / "other.png")
    more = ["-opt", str(option_file), "--auto_resume", "--force_yml", "train:total_iter=4"]
    assert main(more) == 2
    assert "datasets.train: 5 images, names " in capfd.readouterr().err
    assert main([*more, "--allow-changes"]) == 0
    assert main(more) == 0  # the new checkpoint has the fingerprint of these images


def test_an_interrupted_validation_is_recorded_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds if the run is resumed, and killed after the validation but before the next checkpoint."""
    content = tiny_run.options(images, total_iter=9)
    content["path"]["experiments_root"] = str(tmp_path / "experiments")
    content["logger"] |= {"save_checkpoint_freq": 5, "keep_best": False}
    arguments = ["-opt", str(tiny_run.write_options(tmp_path, content)), "--auto_resume"]
    validate, step = Validator.run, SRModel.training_step

    def interrupted(*_: Any, **__: Any) -> bool:
        raise Interrupted

    def killed(self: SRModel, batches: Any, iteration: int) -> Any:
        if iteration == 8:
            raise KeyboardInterrupt
        return step(self, batches, iteration)

    monkeypatch.setattr(Validator, "run", interrupted)
    assert main(arguments) == 143  # interrupted in the validation at 6, and saved
    monkeypatch.setattr(Validator, "run", validate)
    monkeypatch.setattr(SRModel, "training_step", killed)
    assert main(arguments) == 130  # killed at 8, after the repeated validation at 6
    monkeypatch.setattr(SRModel, "training_step", step)
    assert main(arguments) == 0
    lines = map(json.loads, (tmp_path / "experiments/tiny/record.jsonl").read_text().splitlines())
    assert [line["iter"] for line in lines if "set" in line] == [6, 9]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_save_and_leave_within_ten_seconds(images: Path, tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup, so SIGHUP is ignored")
    option_file = write(images, tmp_path)
    long = ["train:total_iter=100000", "val:val_freq=90000", "logger:save_checkpoint_freq=90000"]
    run = tiny_run.start(option_file, "--force_yml", *long)  # only the signal makes it save
    root = tmp_path / "experiments/tiny"
    while not (root / "record.jsonl").exists():
        assert run.is_alive()
        time.sleep(0.05)
    sent = time.monotonic()
    os.kill(run.pid, number)
    run.join()
    assert time.monotonic() - sent < 10
    assert run.exitcode == 128 + number
    assert len(list((root / "training_states").iterdir())) == 1


@pytest.mark.parametrize(("end", "status"), [(DataError("no such image"), 2), (Interrupted(), 128 + signal.SIGTERM)])
def test_a_validation_that_ends_early_is_repeated_and_nothing_is_lost(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Exception, status: int
) -> None:
    content = tiny_run.options(images, total_iter=9)
    content["datasets"]["val_2"] = {**content["datasets"]["val"], "name": "second"}
    content["logger"]["save_checkpoint_freq"] = 4
    runs = []
    for failing in (False, True):
        folder = tmp_path / str(failing)
        folder.mkdir()
        content["path"]["experiments_root"] = str(folder / "experiments")
        option_file = str(tiny_run.write_options(folder, content))
        if failing:
            with monkeypatch.context() as patch:

                def fails_in_the_second_set(*arguments: Any, name: str, **keywords: Any) -> Any:
                    if name == "second":
                        raise end
                    return evaluate(*arguments, name=name, **keywords)

                patch.setattr("safmn.training.validation.evaluate", fails_in_the_second_set)
                assert main(["-opt", option_file]) == status
            states = folder / "experiments/tiny/training_states"
            assert [path.name for path in sorted(states.iterdir())] == ["000000004", "000000006"]
        assert main(["-opt", option_file, "--auto_resume"]) == 0
        prints = tiny_run.fingerprint(folder)
        runs.append({name: digest for name, digest in prints.items() if not name.endswith(".json")})
    assert "models/net_g_best.pth" in runs[0]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("fails_in", "saved"), [("_adversarial_loss", 7), ("_discriminator_loss", 6)])
def test_after_an_error_in_a_step_the_last_whole_step_is_kept(
    fails_in: str, saved: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the generator's step undoes it, with its changes to the discriminator's buffers, and saves.

    After an error in the discriminator's step, which follows, nothing can be saved.
    """
    content = tiny_run.real_options(images, tmp_path, "RealGANModel", workers=0)
    content["train"] |= {"total_iter": 9}
    content["train"]["scheduler"]["periods"] = [9]
    content["val"]["val_freq"] = 9
    prints = []
    for failing in (False, True):
        folder = tmp_path / str(failing)
        folder.mkdir()
        content["path"]["experiments_root"] = str(folder / "experiments")
        arguments = ["-opt", str(tiny_run.write_options(folder, content)), "--auto_resume"]
        if failing:
            compute = getattr(RealGANModel, fails_in)
            reached = []

            def out_of_memory(
                self: RealGANModel, *batch: Any, compute: Any = compute, reached: Any = reached, **kind: Any
            ) -> Any:
                result = compute(self, *batch, **kind)
                if self.net_d.iteration == 8:
                    reached.append(8)
                    raise MemoryError("no room")
                return result

            with monkeypatch.context() as patch:
                patch.setattr(RealGANModel, fails_in, out_of_memory)
                with pytest.raises(MemoryError, match="no room"):
                    main(arguments)
            assert reached == [8]
            assert Checkpointer(folder / "experiments/tiny/training_states").iterations()[-1] == saved
        assert main(arguments) == 0
        found = tiny_run.fingerprint(folder)
        prints.append({name: digest for name, digest in found.items() if not name.endswith(".json")})
    assert "models/net_d_9.pth" in prints[0]
    assert prints[0] == prints[1]


def interrupt_step(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Send SIGTERM to this process during one iteration."""
    original = SRModel.training_step

    def interrupted_step(self: SRModel, batches: Any, iteration: int) -> Any:
        if iteration == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches, iteration)

    monkeypatch.setattr(SRModel, "training_step", interrupted_step)


@pytest.mark.parametrize("why", ["damaged", "superseded"])
def test_a_run_that_resumed_from_an_earlier_checkpoint_sets_later_ones_aside(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    option_file = str(write(images, tmp_path, total_iter=12))
    assert main(["-opt", option_file]) == 0
    states = tmp_path / "experiments/tiny/training_states"
    if why == "damaged":
        (states / "000000012/state.json").write_text("cut")
        arguments = ["-opt", option_file, "--auto_resume"]
    else:
        arguments = ["-opt", option_file, "--force_yml", f"path:resume_state={states / '000000009'}"]
    interrupt_step(monkeypatch, at=10)
    assert main(arguments) == 128 + signal.SIGTERM
    assert sorted(path.name for path in states.iterdir())[-2:] == ["000000010", f"{why}-000000012"]
    assert main(["-opt", option_file, "--auto_resume"]) == 0
    log = (tmp_path / "experiments/tiny/train_tiny.log").read_text()
    assert f"resumed from {states / '000000010'}, iteration 10" in log


def test_a_full_disk_names_the_weights_and_the_newest_intact_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full_at_the_second(path: Path, **keywords: Any) -> None:
        if path.name == "net_g_6.pth":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_weights(path, **keywords)

    monkeypatch.setattr("safmn.training.saving.save_weights", full_at_the_second)
    assert main(["-opt", str(write(images, tmp_path))]) == 2
    message = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("safmn: error: "))
    assert re.search(r"net_g_6\.pth.*No space left.*MiB free.*iteration 3.*--auto_resume", message)


def test_ctrl_c_before_the_first_step_gives_no_traceback(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safmn.training.build.build_trainer", interrupted)
    assert main(["-opt", str(write(images, tmp_path))]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "safmn: interrupted"


def test_changed_options_are_shown_and_refused(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    option_file = str(write(images, tmp_path))
    assert main(["-opt", option_file, "--force_yml", "train:total_iter=6"]) == 0
    decisive = ["-opt", option_file, "--auto_resume", "--force_yml", "train:total_iter=8", "train:optim_g:lr=5e-4"]
    assert main(decisive) == 2
    message = capfd.readouterr().err
    assert "train.optim_g.lr: 0.001 -> 0.0005" in message
    assert "--allow-changes" in message
    assert main([*decisive, "--allow-changes"]) == 0
    harmless = ["-opt", option_file, "--auto_resume", "--force_yml", "train:total_iter=10", "logger:print_freq=2"]
    assert main([*harmless, "train:optim_g:lr=5e-4"]) == 0


@pytest.fixture(scope="module")
def six_iterations(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 iterations without EMA, with an option file for 8 iterations."""
    folder = tmp_path_factory.mktemp("six")
    option_file = write(images, folder, ema_decay=0.0, total_iter=6)
    assert main(["-opt", str(option_file)]) == 0
    write(images, folder, ema_decay=0.0, total_iter=8)
    return folder


def go_on_with(six_iterations: Path, folder: Path, *changes: str) -> int:
    shutil.copytree(six_iterations / "experiments", folder / "experiments")
    root = f"path:experiments_root={folder / 'experiments'}"
    option_file = str(six_iterations / "options.yml")
    return main(["-opt", option_file, "--auto_resume", "--allow-changes", "--force_yml", root, *changes])


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (["train:ema_decay=0.9"], "no moving average"),
        (["train:precision=fp16"], "no loss scale"),
        (["train:optim_g:type=AdamW"], "another optimiser: AdamW"),
        (["train:optim_g:type=Muon"], "another optimiser: Muon"),
        (["train:optim_g={type: SGD, lr: 1.0e-3, momentum: 0.9}"], "another optimiser: SGD"),
        (["train:optim_g:amsgrad=true"], "another optimiser: Adam"),
    ],
)
def test_allowed_changes_reset_missing_state_with_a_warning(
    six_iterations: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: list[str], warning: str
) -> None:
    assert go_on_with(six_iterations, tmp_path, *changes) == 0
    assert warning in capfd.readouterr().err
    assert (tmp_path / "experiments/tiny/models/net_g_8.pth").is_file()


@pytest.mark.parametrize(
    "changes",
    [
        ["network_g:dim=12"],
        ["network_g:n_blocks=2"],
        ["network_g={type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 2}"],
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    six_iterations: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: list[str]
) -> None:
    assert go_on_with(six_iterations, tmp_path, *changes) == 2
    (message,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("safmn: error:")]
    assert "network_g is not" in message
    assert "path.pretrain_network_g" in message


def test_a_network_that_is_missing_in_the_checkpoint_is_named() -> None:
    model = SRModel.__new__(SRModel)
    model.networks = {"net_g": trained(), "net_d": trained()}
    with pytest.raises(CheckpointError, match=r"no network_d.*path\.pretrain_network_d"):
        model.load_state({"net_g": trained().state()})


def test_allowed_changes_of_the_optimiser_take_effect(six_iterations: Path, tmp_path: Path) -> None:
    assert go_on_with(six_iterations, tmp_path, "train:optim_g:lr=5e-4", "train:optim_g:betas=[0.8, 0.9]") == 0
    states = tmp_path / "experiments/tiny/training_states"
    before, after = (json.loads((states / f"{i:09d}/state.json").read_text()) for i in (6, 8))
    before, after = (state["networks"]["net_g"]["optimizer"]["param_groups"][0] for state in (before, after))
    assert (after["initial_lr"], after["betas"]) == (5e-4, [0.8, 0.9])
    assert list(after) == list(before)
    rates = {entry["iter"]: entry["lr"] for entry in tiny_run.record(tmp_path) if "lr" in entry}
    assert rates[7] < 0.6 * rates[6]


@pytest.mark.parametrize("optimizer", [None, {}, [], {"state": {}, "param_groups": [None]}])
def test_a_basicsr_state_without_an_optimiser_is_refused(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], optimizer: Any
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "states").mkdir()
    torch.save({"params": build_network(SECTION).state_dict()}, tmp_path / "models/net_g_20.pth")
    torch.save({"iter": 20, "optimizers": [optimizer]}, tmp_path / "states/20.state")
    state = f"path:resume_state={tmp_path}/states/20.state"
    assert main(["-opt", str(write(images, tmp_path)), "--force_yml", state, "train:ema_decay=0"]) == 2
    message = capfd.readouterr().err
    assert "20.state" in message
    assert "net_g does not fit" in message


@pytest.mark.parametrize("folder", ["old", "experiments/tiny", "--auto_resume"])
def test_resumes_from_a_basicsr_state(folder: str, images: Path, tmp_path: Path) -> None:
    """The state may also be in the folder of this experiment, if a user continues a run of BasicSR there.

    ``--auto_resume`` finds it, takes the newest one that has its weights, and later goes on from our checkpoints.
    """
    automatic = folder == "--auto_resume"
    folder = "experiments/tiny" if automatic else folder
    network = build_network(SECTION)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.99))
    network(torch.rand(1, 3, 16, 16)).mean().backward()
    optimizer.step()
    old = tmp_path / folder
    (old / "models").mkdir(parents=True)
    (old / "training_states").mkdir()
    weights = network.state_dict()
    torch.save({"params": weights, "params_ema": weights}, old / "models/net_g_20.pth")
    state = {"epoch": 3, "iter": 20, "optimizers": [optimizer.state_dict()], "schedulers": []}
    torch.save(state, old / "training_states/20.state")
    arguments = ["-opt", str(write(images, tmp_path))]
    if automatic:
        torch.save({**state, "iter": 22}, old / "training_states/22.state")  # without weights
        arguments += ["--auto_resume"]
    else:
        arguments += ["--force_yml", f"path:resume_state={old}/training_states/20.state"]
    assert main(arguments) == 0
    if automatic:
        assert not list(tmp_path.glob("experiments/tiny_archived*"))
        assert main(arguments) == 0  # from our checkpoint 24: nothing to do
        assert "22.state is not used" in (tmp_path / "experiments/tiny/train_tiny.log").read_text()
    assert [entry["iter"] for entry in tiny_run.record(tmp_path) if "lr" in entry] == [21, 22, 23, 24]
    saved = json.loads((tmp_path / "experiments/tiny/training_states/000000024/state.json").read_text())
    assert saved["iteration"] == 24
    log = (tmp_path / "experiments/tiny/train_tiny.log").read_text()
    assert "order of samples is not" in log


def test_a_basicsr_state_without_its_weights_is_named(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Starting at iteration 0 would not be what ``--auto_resume`` asks for."""
    states = tmp_path / "experiments/tiny/training_states"
    states.mkdir(parents=True)
    torch.save({"epoch": 3, "iter": 20, "optimizers": [], "schedulers": []}, states / "20.state")
    assert main(["-opt", str(write(images, tmp_path)), "--auto_resume"]) == 2
    message = capfd.readouterr().err
    assert "20.state is a training state of BasicSR, but the weights of its iteration are missing" in message
    assert (states / "20.state").exists()


@pytest.mark.parametrize("kind", ["SGD", "Muon"])
def test_a_basicsr_state_of_another_optimiser_is_refused(
    kind: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = build_network(SECTION)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 3, 16, 16)).mean().backward()
    optimizer.step()
    (tmp_path / "models").mkdir()
    (tmp_path / "states").mkdir()
    torch.save({"params": network.state_dict()}, tmp_path / "models/net_g_20.pth")
    torch.save({"epoch": 3, "iter": 20, "optimizers": [optimizer.state_dict()]}, tmp_path / "states/20.state")
    changes = [f"path:resume_state={tmp_path}/states/20.state", "train:ema_decay=0"]
    changes.append(f"train:optim_g={{type: {kind}, lr: 1e-3}}")
    assert main(["-opt", str(write(images, tmp_path)), "--force_yml", *changes]) == 2
    message = capfd.readouterr().err
    assert "of another kind" in message
    assert f"train.optim_g, {kind}." in message


def test_a_run_from_a_checkpoint_elsewhere_sets_the_older_runs_files_aside(images: Path, tmp_path: Path) -> None:
    """Otherwise the run could resume from an older checkpoint in its folder after a kill."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert main(["-opt", str(write(images, tmp_path / folder, total_iter=6))]) == 0
    source = tmp_path / "b/experiments/tiny/training_states/000000006"
    arguments = ["-opt", str(write(images, tmp_path / "a", total_iter=8)), "--force_yml"]
    assert main([*arguments, f"path:resume_state={source}"]) == 0
    states = tmp_path / "a/experiments/tiny/training_states"
    assert (states / "superseded-000000003").is_dir()
    assert [path.name for path in sorted(states.iterdir()) if path.name.isdigit()] == ["000000008"]
    record = (tmp_path / "a/experiments/tiny/record.jsonl").read_text().splitlines()
    assert [json.loads(line)["iter"] for line in record if "lr" in json.loads(line)] == [7, 8]
    assert len(list(states.parent.glob("record.jsonl_archived_*"))) == 1
    assert len(list(source.parent.iterdir())) == 2  # the checkpoints of run b are unchanged


def test_weights_are_in_basicsr_format(images: Path, tmp_path: Path) -> None:
    assert main(["-opt", str(write(images, tmp_path, total_iter=3))]) == 0
    loaded = torch.load(tmp_path / "experiments/tiny/models/net_g_3.pth", weights_only=True)
    assert set(loaded) == {"params", "params_ema", "metadata"}
    build_network(SECTION).load_state_dict(loaded["params_ema"], strict=True)


def test_log_has_options_versions_and_device(images: Path, tmp_path: Path) -> None:
    assert main(["-opt", str(write(images, tmp_path, total_iter=3))]) == 0
    log = (tmp_path / "experiments/tiny/train_tiny.log").read_text()
    for expected in (
        "git commit",
        f"torch: {torch.__version__}",
        "computing on cpu",
        "upscaling_factor: 2",
        "ema_decay",
    ):
        assert expected in log


def test_tensorboard_has_scalars(images: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["-opt", str(write(images, tmp_path, total_iter=6)), "--force_yml", "logger:use_tb_logger=true"]
    assert main(arguments) == 0
    events = EventAccumulator(str(tmp_path / "experiments/tiny/tb_logger")).Reload()
    assert {"losses/l_pix", "losses/l_freq", "metrics/val/psnr", "learning_rate"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"]


def torchrun(option_file: Path, *arguments: str, processes: int = 2) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [str(REPOSITORY / "safmn/train.py"), "-opt", str(option_file), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(images: Path, tmp_path: Path) -> None:
    content = tiny_run.options(images, total_iter=8)
    results = []
    for name, processes, size in (("one", 1, 4), ("two", 2, 2)):
        folder = tmp_path / name
        folder.mkdir()
        content["path"]["experiments_root"] = str(folder / "experiments")
        content["datasets"]["train"]["batch_size_per_gpu"] = size
        content["datasets"]["train"]["dataset_enlarge_ratio"] = 4
        assert torchrun(tiny_run.write_options(folder, content), processes=processes) == 0
        results.append((tiny_run.record(folder), torch.load(folder / "experiments/tiny/models/net_g_8.pth")))
    assert [entry["iter"] for entry in results[0][0] if "lr" in entry] == list(range(1, 9))
    assert [entry["iter"] for entry in results[0][0] if "set" in entry] == [6, 8]
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert a.pop("set", None) == b.pop("set", None)
        assert a == pytest.approx(b, rel=2e-4)
    for name, tensor in results[0][1]["params"].items():
        torch.testing.assert_close(results[1][1]["params"][name], tensor, rtol=1e-3, atol=1e-5)
    # A single process resumes from the checkpoint of two.
    option_file = tmp_path / "two/options.yml"
    content["train"]["total_iter"] = 10
    content["datasets"]["train"]["batch_size_per_gpu"] = 4
    tiny_run.write_options(tmp_path / "two", content)
    assert main(["-opt", str(option_file), "--auto_resume", "--allow-changes"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["network_g:dimm=8"], "network_g.dimm"),
        (["scale=3"], "upscaling_factor"),
        (["datasets:train:dataroot_gt=/nowhere"], "/nowhere"),
        (["path:pretrain_network_g=/no/weights.pth"], "/no/weights.pth"),
        (["datasets:train:batch_size_per_gpu=1000"], "dataset_enlarge_ratio"),
    ],
)
def test_mistakes_end_with_one_message_and_status_two(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(["-opt", str(write(images, tmp_path)), "--force_yml", *arguments]) == 2
    message = capfd.readouterr().err.strip().splitlines()
    errors = [line for line in message if line.startswith("safmn: error:")]
    assert len(errors) == 1
    assert expected in "\n".join(message)
    assert "Traceback" not in "\n".join(message)


def test_damaged_lines_of_the_record_are_removed_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("safmn"), "propagate", True)  # a run in another test may have turned it off
    experiment = Experiment(tmp_path)
    whole = b'{"iter": 1}\n', b'{"iter": 2, "set": "val"}\n', b'{"iter": 3}\n'
    damaged = b"\xff\xfe\n", b"[1]\n", b"7\n", b'{"epoch": 1}\n', b'{"iter": "1"}\n', b'{"iter": 2, "l_p'
    experiment.record.write_bytes(whole[0] + b"".join(damaged[:-1]) + whole[1] + whole[2] + damaged[-1])
    experiment.rewind_record(2, validated=2)
    assert experiment.record.read_bytes() == whole[0] + whole[1]
    assert [f"line {number} is damaged" in caplog.text for number in (1, 2, 6, 7, 9)] == [
        False,
        True,
        True,
        False,
        True,
    ]


def test_experiment_lock_is_released_with_the_run(tmp_path: Path) -> None:
    """Another process tries to take the lock, since a process can always take its own lock again."""
    experiment = Experiment(tmp_path / "x")
    code = (
        "import sys, pathlib; from safmn.training.experiment import Experiment; from safmn.errors import exit_status\n"
        "sys.exit(exit_status(lambda: Experiment(pathlib.Path(sys.argv[1])).lock() or 0)())"
    )

    def status() -> int:
        command = [sys.executable, "-c", code, str(tmp_path / "x")]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode

    experiment.lock()
    assert status() == 2
    experiment.unlock()
    assert status() == 0


def test_user_error_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)


def test_a_step_that_stops_the_run_does_not_change_the_loss_scale() -> None:
    """The checkpoint that the run then writes is of the previous iteration."""
    network = trained(Execution(torch.device("cpu"), "fp16"), halt_on_nonfinite=True)
    step(network, [batch(2)])
    before = network.state()["scaler"]
    bad = batch(2)
    bad["gt"][0, 0, 0, 0] = float("nan")
    accumulate(network, [bad])
    assert network.update()
    assert network.state()["scaler"] == before


def test_resuming_with_another_global_batch_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another number of processes changes the global batch without a change of the options."""
    command = ["-opt", str(write(images, tmp_path, total_iter=3))]
    assert main(command) == 0
    original = setup.build_loader

    def build_loader(*arguments: Any) -> Any:
        loader = original(*arguments)
        loader.global_batch *= 2
        return loader

    monkeypatch.setattr(setup, "build_loader", build_loader)
    command = ["-opt", str(write(images, tmp_path, total_iter=5)), "--auto_resume"]
    assert main(command) == 2
    assert re.search(r"global batch .*batch_size_per_gpu.*: 2 -> 4", capfd.readouterr().err)
    assert main([*command, "--allow-changes"]) == 0


def test_folders_that_are_not_checkpoints_are_ignored(images: Path, tmp_path: Path) -> None:
    command = ["-opt", str(write(images, tmp_path, total_iter=3))]
    assert main(command) == 0
    other = tmp_path / "experiments/tiny/training_states/2"
    other.mkdir()
    assert main(["-opt", str(write(images, tmp_path, total_iter=6)), "--auto_resume"]) == 0
    assert other.is_dir()


def test_the_best_checkpoint_is_that_of_the_first_set_with_a_value() -> None:
    """A set without GT has no value."""
    saver = types.SimpleNamespace(
        options=types.SimpleNamespace(logger=types.SimpleNamespace(keep_best=True)),
        validator=types.SimpleNamespace(datasets={"a": [], "b": []}, val=types.SimpleNamespace(metrics={"psnr": {}})),
    )
    best = Progress(best={"b": {"psnr": {"iteration": 4}}})
    assert Saver.best_iteration(saver, best) == 4  # type: ignore[arg-type]
    assert Saver.best_iteration(saver, Progress()) is None  # type: ignore[arg-type]
