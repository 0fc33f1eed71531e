"""The native kernels give the network's result for all sizes, wherever and however they are built."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from safmn.archs import SAFMN, SAFMN_BCIE, SAFMN_NTIRE23
from safmn.archs.stages import Chain, Skip, Stage, StageModule, stages_of
from safmn.errors import OptionError
from safmn.imaging import read_rgb, to_tensor, to_uint8
from safmn.inference import Upscaler
from safmn.inference.backends import auto, make_backend
from safmn.kernels.cpu import build, compilation
from safmn.kernels.cpu import inference as kernels
from safmn.kernels.cpu.programs import translate
from safmn.metrics import psnr
from safmn.weights import load_network

pytestmark = pytest.mark.skipif(compilation.compiler() is None, reason="no C++ compiler")

TOLERANCE = 1e-5
"""Largest error against float64, relative to the largest value."""


def lively(network: nn.Module, seed: int = 0) -> Any:
    """Give a network random weights and biases whose features neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 9
        parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
    return network.eval().requires_grad_(False)


def modules(chain: Chain) -> Iterator[tuple[Stage, StageModule]]:
    """Yield the stages of a chain that are modules."""
    for part in chain:
        if isinstance(part, Skip):
            yield from modules(part.inner)
        elif isinstance(part.run, StageModule):
            yield part, part.run


def random_image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def check(run: Any, network: nn.Module, x: Tensor) -> None:
    """Assert that ``run(x)`` is the network's result in float64, up to rounding."""
    expected = copy.deepcopy(network).double()(x.double())
    y = run(x)
    assert y.shape == expected.shape
    assert y.dtype == torch.float32
    assert (y - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.fixture
def threads() -> Iterator[Any]:
    """Return torch.set_num_threads, and undo it after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@settings(max_examples=25, deadline=None)
@given(
    dim=st.sampled_from([4, 12, 36, 52]),
    ffn_scale=st.sampled_from([1.0, 1.7, 2.0]),
    scale=st.integers(1, 4),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 20)),
    batch=st.integers(1, 3),
)
def test_any_safmn_on_any_frame(dim: int, ffn_scale: float, scale: int, cells: tuple[int, int], batch: int) -> None:
    network = lively(SAFMN(dim, n_blocks=2, ffn_scale=ffn_scale, upscaling_factor=scale))
    check(make_backend("native", network), network, random_image(batch, 3, 8 * cells[0], 8 * cells[1]))


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 140))
def test_stages_of_any_width(height: int, width: int) -> None:
    chain = stages_of(lively(SAFMN(dim=12, n_blocks=1, upscaling_factor=2)))
    assert chain is not None
    stages = list(modules(chain))
    assert len(stages) == 4
    for stage, module in stages:
        sides = (-(-side // stage.window) * stage.window for side in (height, width))
        check(make_backend("native", module), module, random_image(1, stage.channels, *sides))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_any_number_of_threads(count: int, threads: Any) -> None:
    threads(count)
    network = lively(SAFMN(n_blocks=2))
    run = make_backend("native", network)
    x = random_image(1, 3, 72, 80)
    y = run(x)
    threads(1)
    assert torch.equal(run(x), y)
    check(run, network, x)


@pytest.mark.parametrize("cells", [(1, 1), (2, 5)])
@pytest.mark.parametrize(
    "network", [SAFMN_NTIRE23(n_blocks=3), SAFMN_BCIE(dim=20, n_blocks=2, num_layers=2)], ids=["NTIRE23", "BCIE"]
)
def test_other_networks(network: nn.Module, cells: tuple[int, int]) -> None:
    lively(network)
    check(make_backend("native", network), network, random_image(2, 3, *(16 * side for side in cells)))


def test_a_subclass_with_another_forward_does_not_run_as_its_parent() -> None:
    class Changed(SAFMN):
        def forward(self, x: Tensor) -> Tensor:
            return 1 - super().forward(x)

    network = lively(Changed(dim=4, n_blocks=1))
    check(make_backend("native", network), network, random_image(1, 3, 8, 16))


def check_frame(network: nn.Module, *shape: int) -> None:
    """Assert that the back end gives eager mode's result in float32, which decides where pooled cells begin."""
    x = random_image(*shape)
    expected = network(x)
    assert (make_backend("native", network)(x) - expected).abs().max() <= 2 * TOLERANCE * expected.abs().max()


@settings(max_examples=25, deadline=None)
@given(sides=st.tuples(st.integers(1, 60), st.integers(1, 150)), count=st.integers(1, 3), mirrored=st.booleans())
def test_adaptive_pooling_on_any_frame(sides: tuple[int, int], count: int, mirrored: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        check_frame(lively(SAFMN(dim=8, n_blocks=2, upscaling_factor=2)), 1, 3, *(sides[::-1] if mirrored else sides))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("sides", [(9, 21), (37, 53), (16, 31), (1, 1), (7, 100)])
@pytest.mark.parametrize(
    ("network", "window"), [(SAFMN_NTIRE23(n_blocks=2), 1), (SAFMN_BCIE(dim=20, n_blocks=1, num_layers=2), 2)]
)
def test_adaptive_pooling_in_other_networks(network: nn.Module, window: int, sides: tuple[int, int]) -> None:
    check_frame(lively(network), 1, 3, *(side * window for side in sides))


def test_an_empty_batch() -> None:
    run = make_backend("native", lively(SAFMN(dim=8, n_blocks=1)))
    assert run(torch.empty(0, 3, 8, 8)).shape == (0, 3, 32, 32)


def test_later_calls_do_not_overwrite_results() -> None:
    network = lively(SAFMN(dim=8, n_blocks=1))
    run = make_backend("native", network)
    x = random_image(1, 3, 16, 24)
    first = run(x)
    kept = first.clone()
    run(random_image(1, 3, 8, 40))  # a different size in the same workspace
    assert torch.equal(first, kept)
    assert torch.equal(run(x), kept)


class InWorker(torch.utils.data.Dataset[Tensor]):
    """A data set whose workers use a back end that their parent process has used before."""

    def __init__(self, run: Any, x: Tensor) -> None:
        self.run, self.x = run, x

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        y: Tensor = self.run(self.x)[0]
        return y


@pytest.mark.forks
def test_a_forked_worker_can_use_the_back_end(threads: Any) -> None:
    threads(2)
    network = lively(SAFMN(dim=8, n_blocks=1))
    run, x = make_backend("native", network), random_image(1, 3, 32, 24)
    expected = run(x)
    loader = DataLoader(InWorker(run, x), num_workers=1, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(y, expected) for y in loader)


def overwrite(workspace: kernels.Workspace) -> None:
    workspace.get("map", 8).fill_(1)


@pytest.mark.forks
def test_forked_processes_do_not_share_memory_for_maps() -> None:
    workspace = kernels.Workspace()
    ours = workspace.get("map", 8).fill_(0)
    process = multiprocessing.get_context("fork").Process(target=overwrite, args=(workspace,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert ours.sum() == 0


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags for x86")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3"])
def test_other_processors(machine: str, tmp_path: Path) -> None:
    if "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8") and machine != "x86-64":
        pytest.skip("this processor cannot run it")
    built = kernels.Kernels(build.build(kernels.SOURCE, [f"-march={machine}"], tmp_path))
    assert not built.has_half
    network = lively(SAFMN(n_blocks=1))
    program = translate(network, built, half=False)
    assert program is not None
    check(lambda x: program.run(x[0])[None], network, random_image(1, 3, 24, 88))


def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bypass the cache of loaded kernels, as in a new process."""
    monkeypatch.setattr(kernels, "_this_machine", kernels._this_machine.__wrapped__)


def test_the_default_dtype_changes_nothing() -> None:
    network, image = lively(SAFMN(dim=8, n_blocks=1)), random_image(1, 3, 16, 24)
    expected = make_backend("native", network)(image)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(make_backend("native", network)(image), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_processes_that_build_at_the_same_time(tmp_path: Path) -> None:
    code = "from safmn.kernels.cpu.inference import this_machine; this_machine()"
    environment = os.environ | {"SAFMN_CACHE": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert [path.suffix for path in (tmp_path / "native").iterdir()] == [".so"]


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAFMN_CACHE", str(tmp_path / "file"))
    uncached(monkeypatch)
    network = lively(SAFMN(dim=8, n_blocks=1))
    check(make_backend("native", network), network, random_image(1, 3, 16, 16))
    assert "for this process only" in caplog.text


def test_the_name_of_a_build_depends_on_flags_processor_and_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {build.library_path(kernels.SOURCE, flags, tmp_path) for flags in ([], ["-mavx"])}
    monkeypatch.setattr(build, "processor", lambda: "another one")
    names.add(build.library_path(kernels.SOURCE, [], tmp_path))
    source = tmp_path / "kernels.cpp"
    source.write_text("// changed")
    monkeypatch.setattr(kernels, "SOURCE", source)
    names.add(build.library_path(kernels.SOURCE, [], tmp_path))
    assert len(names) == 4


def compiler_script(folder: Path, body: str) -> Path:
    script = folder / "compiler"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return script


def test_a_compiler_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(compiler_script(tmp_path, "echo too old >&2; exit 1")))
    monkeypatch.setenv("SAFMN_CACHE", str(tmp_path))
    uncached(monkeypatch)
    network = lively(SAFMN(dim=8, n_blocks=1))
    with pytest.raises(OSError, match="too old"):
        make_backend("native", network)
    assert list((tmp_path / "native").iterdir()) == []
    chosen = make_backend("auto", network)
    check(chosen, network, random_image(1, 3, 16, 16))
    assert chosen.name != "native"
    assert "native failed" in caplog.text
    assert "OSError" in caplog.text


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    network = lively(SAFMN(dim=8, n_blocks=1))
    with pytest.raises(OptionError, match=r"need a C\+\+ compiler"):
        make_backend("native", network)
    with caplog.at_level(logging.INFO):
        chosen = make_backend("auto", network)
        check(chosen, network, random_image(1, 3, 16, 16))
    assert chosen.name != "native"
    assert "Back end native: not used: the native kernels need a C++ compiler" in caplog.text
    hints = [
        record.message for record in caplog.records if record.name == "safmn.backend" and "missing" in record.message
    ]
    assert len(hints) == 1
    assert hints[0].startswith("A faster back end is missing: the native kernels need a C++ compiler: install g++ or ")


def test_what_is_missing_is_said_only_if_it_would_be_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(missing: str | None, unfit: str | None = None) -> Any:
        return SimpleNamespace(missing=lambda device: missing, unfit=lambda network, precision: unfit)

    def said(*candidates: Any) -> str | None:
        monkeypatch.setattr(auto, "candidates_of_auto", lambda device_type: candidates)
        return auto.faster_if_installed(nn.Identity(), torch.device("cpu"), "fp32")

    assert said(kind(None), kind("b")) is None
    assert said(kind("a"), kind("b", "no kernels"), kind("c"), kind(None), kind("d")) == "a; c"
    assert said(kind("a", "no kernels")) is None


def test_compilers_of_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has a clang++ that only asks to install the tools; GCC for Windows makes code that crashes."""
    monkeypatch.delenv("CXX", raising=False)
    script = compiler_script(tmp_path, "exit 0")
    installed = {"clang++": "/usr/bin/clang++"}
    monkeypatch.setattr(compilation.shutil, "which", installed.get)
    monkeypatch.setattr(compilation.platform, "system", lambda: "Darwin")
    for status, found in ((2, None), (0, "/usr/bin/clang++")):
        asked = SimpleNamespace(returncode=status)
        monkeypatch.setattr(compilation.subprocess, "run", lambda command, asked=asked, **options: asked)
        assert compilation.compiler() == found
    assert "xcode-select --install" in compilation.how_to_get_a_compiler()
    monkeypatch.setattr(compilation.platform, "system", lambda: "Windows")
    assert compilation.compiler() is None
    assert "on Windows none is used" in compilation.how_to_get_a_compiler()
    installed[str(script)] = str(script)
    monkeypatch.setenv("CXX", str(script))
    assert compilation.compiler() == str(script)


def test_flags_of_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"aarch64": ("-mcpu=native",), "arm64": (), "riscv64": ()}  # arm64: a Mac
    for machine, flags in expected.items():
        monkeypatch.setattr(compilation.platform, "machine", lambda machine=machine: machine)
        assert compilation.machine_flags() == flags


def test_real_pictures(weights_dir: Path, benchmark_dir: Path) -> None:
    """On Set5 at x2, float32 gives the same files up to rounding ties, and bfloat16 loses less than 0.01 dB."""
    network: Any = load_network(weights_dir / "safmn_x2_official_fp16.safetensors")
    run = {precision: make_backend("native", network, precision=precision) for precision in ("fp32", "bf16")}
    lost = []
    for path in sorted((benchmark_dir / "Set5" / "LR_bicubic" / "X2").iterdir()):
        low = to_tensor(read_rgb(path))[None]
        low = low[..., : low.shape[2] // 8 * 8, : low.shape[3] // 8 * 8]
        high = read_rgb(benchmark_dir / "Set5" / "HR" / path.name.replace("x2", ""))
        high = high[: low.shape[2] * 2, : low.shape[3] * 2]
        exact = to_uint8(network(low))[0]
        y = {precision: to_uint8(backend(low))[0] for precision, backend in run.items()}
        differ = y["fp32"] != exact
        assert differ.mean() < 1e-4
        assert abs(y["fp32"].astype(int) - exact).max() <= 1
        lost.append(psnr(exact, high, crop=2, y=True) - psnr(y["bf16"], high, crop=2, y=True))
    assert sum(lost) / len(lost) < 0.01


def test_tiles_equal_the_whole_frame(photos_dir: Path) -> None:
    network = lively(SAFMN(dim=12, n_blocks=2, upscaling_factor=2))
    image = to_tensor(read_rgb(sorted((photos_dir / "val").iterdir())[0]))[None, :, :88, :184]
    whole = Upscaler(network, backend="eager", tile=0)(image)
    cut = Upscaler(network, backend="native", tile=64)(image)
    assert (whole - cut).abs().max() <= TOLERANCE
