"""The native kernels for 64-bit ARM, cross-compiled and run by QEMU: values, gradients, vector instructions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_arm import CLANG_SCALAR, build_counter, counted, with_one_lane
from emulated_kernels import (
    CLANG,
    GCC,
    TRAINING_SOURCE,
    EmulatedKernels,
    EmulatedTrainingKernels,
    Library,
    Target,
    build_caller,
    training_with,
)
from safmn_gradients import assert_close, case, squares
from test_archs import golden_state
from test_native import check, lively, random_image
from torch import Tensor, nn

from safmn.archs import SAFMN, SAFMN_BCIE, SAFMN_NTIRE23, SAFMNPP, SAFMNv3
from safmn.imaging import read_rgb, to_tensor
from safmn.kernels.cpu.inference import SOURCE
from safmn.kernels.cpu.programs import translate
from safmn.kernels.cpu.training import NativeSAFMN
from safmn.registry import ARCH_REGISTRY, find
from safmn.weights import load_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[GCC, CLANG], ids=["g++", "clang++"])
def target(request: pytest.FixtureRequest) -> Target:
    chosen: Target = request.param
    problem = chosen.missing()
    if problem:
        pytest.skip(problem)
    return chosen


@pytest.fixture(scope="module")
def libraries(target: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """The compiled libraries, by source."""
    folder = tmp_path_factory.mktemp("arm")
    return {source: target.build(source, folder) for source in (SOURCE, TRAINING_SOURCE)}


@pytest.fixture(scope="module")
def running(libraries: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Library]]:
    """The same, in emulated processes."""
    caller = build_caller(tmp_path_factory.mktemp("caller"))
    emulated = {source: Library(caller, path) for source, path in libraries.items()}
    yield emulated
    for library in emulated.values():
        library.close()


def run_by(library: Library, network: nn.Module, threads: int = 1) -> Callable[[Tensor], Tensor]:
    """The network as the library computes it, for a batch of one image."""
    program = translate(network, EmulatedKernels(library, threads), half=False)
    assert program is not None
    return lambda x: program.run(x[0])[None]


@pytest.mark.parametrize(
    "network",
    [
        SAFMN(dim=36, n_blocks=1, upscaling_factor=4),
        SAFMN(dim=4, n_blocks=2, ffn_scale=1.7, upscaling_factor=1),
        SAFMN(dim=52, n_blocks=1, ffn_scale=1.0, upscaling_factor=3),
        SAFMN_NTIRE23(n_blocks=1),
        SAFMN_BCIE(dim=20, n_blocks=1, num_layers=2),
        SAFMNPP(dim=25, n_blocks=1),
        SAFMNv3(dim=20, num_blocks=1, upscaling_factor=3),
    ],
    ids=["SAFMN x4", "narrow", "wide", "NTIRE23", "BCIE", "planned", "planned, variance"],
)
def test_networks(network: nn.Module, running: dict[Path, Library]) -> None:
    lively(network)
    for sides in ((16, 16), (32, 80)):
        check(run_by(running[SOURCE], network), network, random_image(1, 3, *sides))


def test_golden_outputs(running: dict[Path, Library], golden_dir: Path) -> None:
    """Outputs of the reference implementations, for sizes that the kernels run without padding."""
    files = {"00_SAFMN_x2_48x48.npz", "02_SAFMN_x4_8x8.npz", "04_SAFMN_BCIE_x2_48x64.npz"}
    compared = set()
    for entry in json.loads((golden_dir / "manifest.json").read_text()):
        cases = [case for case in entry["cases"] if case["file"] in files]
        if not cases:
            continue
        network: Any = find(ARCH_REGISTRY, entry["arch"])(**entry["kwargs"]).eval().requires_grad_(False)
        network.load_state_dict(golden_state(entry))
        run = run_by(running[SOURCE], network)
        for golden in cases:
            random = np.random.RandomState(golden["input"]["randomstate_seed"])
            image = torch.from_numpy(random.rand(*golden["input"]["shape"]).astype(np.float32))
            expected = np.load(golden_dir / golden["file"])["output"]
            assert np.abs(run(image).numpy() - expected).max() <= 1e-4 * expected.std(), golden["file"]
            compared.add(golden["file"])
    assert compared == files


def test_a_photograph(running: dict[Path, Library], benchmark_dir: Path) -> None:
    network = load_network("safmn-x4").requires_grad_(False)
    image = to_tensor(read_rgb(benchmark_dir / "Set5/LR_bicubic/X4/butterflyx4.png"))[None, :, :24, :40]
    check(run_by(running[SOURCE], network), network, image)


def test_the_number_of_threads_changes_nothing(running: dict[Path, Library]) -> None:
    network, x = lively(SAFMN(dim=12, n_blocks=2)), random_image(1, 3, 40, 24)
    assert torch.equal(*(run_by(running[SOURCE], network, threads)(x) for threads in (1, 3)))


@pytest.mark.parametrize(
    "drawn",
    [
        {"dim": 36, "blocks": 1, "ffn": 2.0, "scale": 2, "batch": 5, "height": 2, "width": 1},
        {"dim": 4, "blocks": 3, "ffn": 1.7, "scale": 3, "batch": 2, "height": 1, "width": 2},
        {"dim": 20, "blocks": 2, "ffn": 1.0, "scale": 1, "batch": 4, "height": 2, "width": 3},
    ],
    ids=["x2", "narrow", "x1"],
)
@pytest.mark.filterwarnings("ignore:Using `assume` outside")
def test_gradients(drawn: dict[str, Any], running: dict[Path, Library]) -> None:
    with training_with(EmulatedTrainingKernels(running[TRAINING_SOURCE], threads=2)):
        assert_close(NativeSAFMN, *case(**drawn))


@pytest.mark.filterwarnings("ignore:Using `assume` outside")
def test_gradients_of_trained_weights_on_a_photograph(running: dict[Path, Library], benchmark_dir: Path) -> None:
    images = squares(to_tensor(read_rgb(benchmark_dir / "Set5/LR_bicubic/X4/butterflyx4.png")))[:4]
    trained = load_network("safmn-x4")
    assert type(trained) is SAFMN
    with training_with(EmulatedTrainingKernels(running[TRAINING_SOURCE])):
        assert_close(NativeSAFMN, trained.train().requires_grad_(True), images, tolerance=1e-4)


def instructions(library: Path) -> list[tuple[int, str]]:
    """The addresses and instructions of a library."""
    command = ["aarch64-linux-gnu-objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [(int(address, 16), code) for address, code in re.findall(r"^ *([0-9a-f]+):\t(.+)$", text, re.MULTILINE)]


def loops(listed: list[tuple[int, str]], longest: int = 40) -> Iterator[list[str]]:
    """Yield the instructions of every short loop: what lies between a branch and its target before it."""
    for i, (address, code) in enumerate(listed):
        branch = re.match(r"b\.\w+\t([0-9a-f]+)", code)
        if branch and 0 < address - int(branch[1], 16) < 4 * longest:
            yield [code for _, code in listed[i - (address - int(branch[1], 16)) // 4 : i + 1]]


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-objdump") is None, reason="no aarch64-linux-gnu-objdump")
def test_vector_instructions_are_used(libraries: dict[Path, Path], running: dict[Path, Library]) -> None:
    """Vectors of four; and the loops of the matrix products keep 2 x 12 sums, inputs and weights in the registers."""
    assert EmulatedTrainingKernels(running[TRAINING_SOURCE]).lanes == 4
    assert EmulatedKernels(running[SOURCE]).block_size == 12
    for library in libraries.values():
        listed = instructions(library)
        whole = sum(bool(re.match(r"fmla\tv\d+\.4s", code)) for _, code in listed)
        single = sum(bool(re.match(r"f(n?madd|n?msub|mul)\ts\d", code)) for _, code in listed)
        assert whole > 4 * single
        products = [loop for loop in loops(listed) if sum("fmla" in code for code in loop) == 24]
        assert products
        spilt = [code for loop in products for code in loop if re.match(r"(ld|st)\w+\t[{qv].*\[sp", code)]
        assert not spilt


def test_scalar_code_executes_three_times_as_many_instructions(tmp_path: Path) -> None:
    problem = CLANG.missing() or (None if shutil.which("g++") else "no g++")
    if problem:
        pytest.skip(problem)
    caller, counter = build_caller(tmp_path), build_counter(tmp_path)
    network, x = lively(SAFMN(n_blocks=1)), random_image(1, 3, 16, 32)
    vectors = CLANG.build(SOURCE, tmp_path)
    scalar = CLANG_SCALAR.build(with_one_lane(SOURCE, tmp_path / "scalar"), tmp_path)
    values, counts = zip(
        *(
            counted(caller, counter, library, lambda it: float(run_by(it, network)(x).sum()))
            for library in (vectors, scalar)
        ),
        strict=True,
    )
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert counts[1] > 3 * counts[0] > 3e6
