"""The native training kernels have SAFMN's outputs and gradients for all sizes, and train as torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safmn_gradients import CASES, assert_close, case, network, squares, values

from safmn.archs import SAFMN, SAFMNPP
from safmn.errors import OptionError
from safmn.imaging import read_rgb, to_tensor
from safmn.kernels.cpu import compilation
from safmn.kernels.cpu.training import NativeSAFMN, kernels_for, this_machine
from safmn.runtime.execution import choose_execution
from safmn.train import main
from safmn.weights import load_network

pytestmark = pytest.mark.skipif(compilation.compiler() is None, reason="no C++ compiler")


@settings(max_examples=25, deadline=None)
@given(drawn=st.fixed_dictionaries(CASES))
def test_outputs_and_gradients(drawn: dict[str, Any]) -> None:
    assert_close(NativeSAFMN, *case(**drawn))


def test_the_published_size_on_a_photograph(benchmark_dir: Path) -> None:
    images = squares(to_tensor(read_rgb(benchmark_dir / "Set5/LR_bicubic/X4/butterflyx4.png")))
    trained = load_network("safmn-x4")
    assert type(trained) is SAFMN
    assert_close(NativeSAFMN, trained.train().requires_grad_(True), images, tolerance=1e-4)


def test_the_number_of_threads_changes_nothing() -> None:
    native, threads = network(dim=8, n_blocks=2), torch.get_num_threads()
    images, weights = torch.rand(3 * this_machine().lanes - 1, 3, 16, 24), torch.rand(())
    results = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(values(NativeSAFMN(native), list(native.parameters()), images, weights))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_the_default_dtype_changes_nothing() -> None:
    native = network(dim=8, n_blocks=1)
    arguments = native, list(native.parameters()), torch.rand(2, 3, 16, 8), torch.rand(())
    expected = values(NativeSAFMN(arguments[0]), *arguments[1:])
    torch.set_default_dtype(torch.float64)
    try:
        found = values(NativeSAFMN(arguments[0]), *arguments[1:])
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_batch_size_chooses_the_number_of_lanes() -> None:
    widest = this_machine().lanes
    if widest != 16:
        pytest.skip("needs a processor with AVX-512")
    assert [kernels_for(batch).lanes for batch in (1, 8, 9, 16, 17, 24, 25, 32)] == [8, 8, 8, 8, 8, 8, 16, 16]


@pytest.mark.parametrize("images", ["transposed", "channels_last", "float64"])
def test_images_in_any_memory_format(images: str) -> None:
    native = NativeSAFMN(network(dim=8, n_blocks=1))
    plain = torch.rand(2, 3, 16, 8)
    given_as = {
        "transposed": plain.mT.contiguous().mT,
        "channels_last": plain.contiguous(memory_format=torch.channels_last),
        "float64": plain.double(),
    }[images]
    assert torch.equal(native(given_as), native(plain))


def test_unsupported_networks_sizes_and_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="only SAFMN, not SAFMNPP"):
        NativeSAFMN(SAFMNPP())
    with pytest.raises(OptionError, match="multiples of 8, not 12x16"):
        NativeSAFMN(network(dim=8, n_blocks=1))(torch.rand(1, 3, 16, 12))
    for other in ({"precision": "bf16"}, {"compile": True}):
        with pytest.raises(OptionError, match=r"train\.kernels: native needs the CPU in fp32"):
            choose_execution(torch.device("cpu"), kernels="native", **other)
    monkeypatch.setattr("safmn.kernels.cpu.training.can_load", lambda: False)
    with pytest.raises(OptionError, match=r"needs a C\+\+ compiler"):
        NativeSAFMN(network(dim=8, n_blocks=1))


# ------------------------------------------------------------------------------------------------------------ training


def options(images: Path, folder: Path, **train: Any) -> Path:
    content = tiny_run.options(images, **train)
    content["path"]["experiments_root"] = str(folder / "experiments")
    return tiny_run.write_options(folder, content)


def losses(folder: Path) -> list[float]:
    found = [entry["l_pix"] for entry in tiny_run.record(folder) if "l_pix" in entry]
    assert found
    return found


def test_a_run_has_the_losses_of_a_torch_run_and_resumes_exactly(images: Path, tmp_path: Path) -> None:
    torchs, ours, stopped = (tmp_path / name for name in ("torch", "ours", "stopped"))
    for folder in (torchs, ours, stopped):
        folder.mkdir()
    assert main(["-opt", str(options(images, torchs))]) == 0
    assert main(["-opt", str(options(images, ours, kernels="native"))]) == 0
    assert losses(ours) == pytest.approx(losses(torchs), rel=2e-3)
    assert main(["-opt", str(options(images, stopped, kernels="native", total_iter=15))]) == 0
    assert main(["-opt", str(options(images, stopped, kernels="native")), "--auto_resume"]) == 0
    weights = "experiments/tiny/models/net_g_24.pth"
    assert (stopped / weights).read_bytes() == (ours / weights).read_bytes()


def test_mistakes_in_the_option_file_end_with_status_2(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-opt", str(options(images, tmp_path, kernels="native", precision="bf16"))]) == 2
    assert "train.kernels: native needs the CPU in fp32" in capsys.readouterr().err
    option_file = options(images, tmp_path, kernels="native")
    assert main(["-opt", str(option_file), "--force_yml", "datasets:train:gt_size=24"]) == 2
    assert "multiples of 8, not 12x12" in capsys.readouterr().err
