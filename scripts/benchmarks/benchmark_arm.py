"""Check the native kernels for 64-bit ARM under QEMU: errors against float64, and instructions against scalar code.

    python scripts/benchmarks/benchmark_arm.py

QEMU's speed says nothing about that of a processor, so executed instructions are counted, without those that start the
program. Forward: the weights safmn-x4 on a made-up photograph. Backward: forward and backward pass of SAFMN x2 with two
blocks and random weights on 16 patches; gradients are compared by their norms. The scalar code is the same code with
one lane per vector. Needs Debian's or Ubuntu's packages g++-aarch64-linux-gnu, clang and qemu-user.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from emulated_kernels import (
    CLANG,
    EMULATOR,
    GCC,
    TRAINING_SOURCE,
    EmulatedKernels,
    EmulatedTrainingKernels,
    Library,
    Target,
    build_caller,
    training_with,
)
from torch import Tensor, nn

from safmn.archs import SAFMN
from safmn.errors import OptionError, exit_status
from safmn.inference.samples import made_up_photographs
from safmn.kernels.cpu.inference import SOURCE, Kernels, this_machine
from safmn.kernels.cpu.programs import translate
from safmn.kernels.cpu.training import NativeSAFMN
from safmn.system.console import say, table
from safmn.weights import load_network

PLUGIN = Path(__file__).with_name("count_instructions.cpp")
HEADER = SOURCE.with_name("vectors.h")
GENERAL_LANES = "LANES = 4, BLOCK = 6"

CLANG_SCALAR = replace(CLANG, flags=(*CLANG.flags, "-fno-vectorize", "-fno-slp-vectorize"))


class Forward:
    """The inference kernels on one image."""

    source = SOURCE

    def __init__(self) -> None:
        self.network = load_network("safmn-x4").requires_grad_(False)
        self.image = made_up_photographs(48, 72)[1]
        self.exact = copy.deepcopy(self.network).double()(self.image[None].double())[0]

    def native(self, kernels: Kernels) -> float:
        """Return the largest error of these kernels; values are in [0, 1]."""
        program = translate(self.network, kernels, half=False)
        assert program is not None
        return float((program.run(self.image) - self.exact).abs().max())

    def emulated(self, library: Library) -> float:
        """Return the error of an emulated library."""
        return self.native(EmulatedKernels(library))


class Backward:
    """The training kernels on one batch."""

    source = TRAINING_SOURCE

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = SAFMN(n_blocks=2, upscaling_factor=2)
        self.images = made_up_photographs(64, 64)[1].unfold(1, 16, 16).unfold(2, 16, 16)
        self.images = self.images.permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()  # (16, 3, 16, 16)
        self.weights = torch.randn(16, 3, 32, 32)
        self.exact = self.gradients(copy.deepcopy(self.network).double(), torch.float64)

    def gradients(self, form: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return the output of a form of the network, and the gradients of all parameters."""
        y = form(self.images.to(dtype))
        return [y.detach(), *torch.autograd.grad((y * self.weights.to(dtype)).sum(), list(form.parameters()))]

    def error(self, found: list[Tensor]) -> float:
        """Return the largest error of the output or a gradient, as a norm, relative to its own."""
        pairs = zip(found, self.exact, strict=True)
        return max(float((one - other).norm() / other.norm()) for one, other in pairs)

    def emulated(self, library: Library) -> float:
        """Return the error of an emulated library."""
        with training_with(EmulatedTrainingKernels(library)):
            return self.error(self.gradients(NativeSAFMN(self.network)))


def with_one_lane(source: Path, folder: Path) -> Path:
    """Copy a source to ``folder``, with vectors of one lane and nothing that is written for ARM."""
    folder.mkdir(exist_ok=True)
    for file in (source, *source.parent.glob("*.h")):
        text = file.read_text(encoding="utf-8").replace("__aarch64__", "FOR_NO_PROCESSOR")
        (folder / file.name).write_text(text.replace(GENERAL_LANES, "LANES = 1, BLOCK = 12"), encoding="utf-8")
    assert GENERAL_LANES in HEADER.read_text(encoding="utf-8")
    return folder / source.name


def build_counter(folder: Path) -> Path:
    """Compile QEMU's plugin, for this machine."""
    counter = folder / "counter.so"
    subprocess.run(["g++", "-O2", "-shared", "-fPIC", str(PLUGIN), "-o", str(counter)], check=True)
    return counter


def counted(caller: Path, counter: Path, library: Path, use: Callable[[Library], float]) -> tuple[float, int]:
    """Return the result of ``use``, and the instructions that it made the emulated process execute."""

    def run(use: Callable[[Library], float]) -> tuple[float, int]:
        out = counter.with_name("count")
        emulated = Library(caller, library, (*EMULATOR, "-plugin", f"{counter},out={out}"))
        result = use(emulated)
        emulated.close()
        return result, int(out.read_text())

    result, instructions = run(use)
    return result, instructions - run(lambda _: 0.0)[1]


@exit_status
def main() -> int:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    problem = CLANG.missing()
    if problem:
        raise OptionError(problem)
    forward, backward = Forward(), Backward()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        caller, counter = build_caller(folder), build_counter(folder)

        def measure(target: Target, one_lane: bool = False) -> list[tuple[float, int]]:
            results = []
            for part in (forward, backward):
                source = with_one_lane(part.source, folder / "scalar") if one_lane else part.source
                library = target.build(source, folder)
                results.append(counted(caller, counter, library, part.emulated))
            return results

        base = measure(CLANG_SCALAR, one_lane=True)
        sides = {"clang++, scalar": base, "clang++": measure(CLANG), "g++": measure(GCC)}
    here = [forward.native(this_machine()), backward.error(backward.gradients(NativeSAFMN(backward.network)))]
    rows = [["this machine", *(cell for error in here for cell in (f"{error:.1e}", "", ""))]]
    for name, parts in sides.items():
        row = [f"ARM, {name}"]
        for (error, count), (_, scalar_count) in zip(parts, base, strict=True):
            row += [f"{error:.1e}", f"{count / 1e6:.0f}", f"{scalar_count / count:.2f}x"]
        rows.append(row)
    titles = [
        f"{part}: {column}" for part in ("forward", "backward") for column in ("error", "M instructions", "ratio")
    ]
    say(table(["side", *titles], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
