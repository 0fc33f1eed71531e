"""What 8-bit products (AVX-512 VNNI) would gain in the native kernels: a measurement and a bound for SAFMN.

    python scripts/benchmarks/int8_convolution.py                       # safmn-x2, 640x360 to 1280x720, one thread

The dense 3x3 convolutions of the channel mixers take nearly half of the time of SAFMN's native kernels. This script
measures one of them in 8 bits (int8_convolution.cpp: direct, per-channel weights, quantised from float and back) beside
the kernels' own (Winograd's F(4x4, 3x3) in float32 and in bfloat16), all with the GELU and on one thread. Then it says
how fast the whole network would be with each: its measured time, less what the convolutions would save. Times are CPU
time.

The last rows are bounds, not measurements: products at the processor's measured peak and nothing else, neither
quantising nor transforms nor GELU. "F(2x2)" has 2.25 times fewer products than a direct convolution, F(4x4) 4 times.
An instruction multiplies 4 times as many pairs in 8 bits as in float32, which is what F(4x4) saves already.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from benchmark_harness import argument_parser, compare, report, use_threads
from safmn import load_network
from safmn.errors import UserError, exit_status
from safmn.kernels.cpu.compilation import compile_library, machine_flags
from safmn.kernels.cpu.inference import this_machine
from safmn.kernels.cpu.layers import packed, winograd_taps
from safmn.kernels.cpu.programs import translate
from safmn.system.console import say, table

SOURCE = Path(__file__).with_suffix(".cpp")
BLOCK, LANES, CELL = 12, 16, 4  # sums of a block, floats in a vector, channels in 32 bits
PEAK_TIMES = 200_000
DIRECT, F2, F4 = 1.0, 2.25, 4.0  # how many times fewer products than a direct convolution


def load(folder: Path) -> ctypes.CDLL:
    """Compile and open int8_convolution.cpp.

    Raises:
        UserError: this processor has no AVX-512 VNNI.
        OSError: the compiler failed.
    """
    library = folder / "int8_convolution.so"
    compile_library(SOURCE, machine_flags(), library)
    opened = ctypes.CDLL(str(library))
    if not opened.has_vnni():
        raise UserError("this processor has no AVX-512 VNNI, which this measurement is about")
    return opened


class Quantised:
    """A 3x3 convolution in 8 bits, and its input's range.

    Args:
        conv: the convolution; its input channels are a multiple of 4, its output channels one of 12.
        largest: largest absolute value of the input. Larger ones are clipped.

    Attributes:
        levels: weights as whole numbers of -127 to 127, (out, in, 3, 3).
        scales: what a level of an output's weights stands for, (out, 1, 1, 1).
        factor: levels of the input per unit.
    """

    def __init__(self, conv: nn.Conv2d, largest: float) -> None:
        weight = conv.weight.detach()
        self.scales = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        self.levels = (weight / self.scales).round()
        self.factor = 127 / largest
        self.scale = (self.scales.flatten() / self.factor).contiguous()
        self.bias = torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach().clone()
        self.offset = (-128 * self.levels.sum((1, 2, 3))).to(torch.int32)
        cells = self.levels.to(torch.int8).unflatten(1, (-1, CELL)).unflatten(0, (-1, BLOCK))
        self.weights = cells.permute(0, 4, 5, 2, 1, 3).contiguous()  # (blocks, 3, 3, cells, BLOCK, 4)


class Sides:
    """The convolutions of one frame, ready to run.

    Args:
        library: see :func:`load`.
        conv: a 3x3 convolution between features.
        x: its input, (channels, height, width).
    """

    def __init__(self, library: ctypes.CDLL, conv: nn.Conv2d, x: Tensor) -> None:
        self.library = library
        self.out_channels, self.in_channels = conv.weight.shape[:2]
        self.height, self.width = x.shape[1:]
        self.line = int(library.line_of(self.width))
        kernels = this_machine()
        self.weights = {half: packed(winograd_taps(conv.weight), BLOCK, half) for half in (False, True)}
        self.bias = torch.zeros(self.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.quantised = Quantised(conv, float(x.abs().max()))
        self.map = torch.zeros(self.in_channels * self.height * self.line)
        kernels.call("to_map", x.contiguous(), self.map, self.in_channels, self.height, self.width, *x.stride()[:2])
        self.cells = torch.zeros(self.in_channels // CELL * self.height * self.line)

    def floats(self, half: bool, to: Tensor | None = None) -> None:
        """The kernels' own convolution; ``half``: factors in bfloat16."""
        shape = (self.in_channels, self.out_channels, self.height, self.width)
        self.library.convolve_float(*map(_address, (self.map, self.weights[half], self.bias, to)), *shape, int(half))

    def quantise(self) -> None:
        """Convert the input to 8 bits."""
        size = (self.in_channels, self.height, self.width)
        self.library.quantise_map(
            _address(self.map), _address(self.cells), *size, ctypes.c_float(self.quantised.factor)
        )

    def int8(self, to: Tensor | None = None) -> None:
        """Convert the input to 8 bits and convolve."""
        self.quantise()
        q = self.quantised
        tensors = (self.cells, q.weights, q.offset, q.scale, q.bias, to)
        shape = (self.in_channels, self.out_channels, self.height, self.width)
        self.library.convolve_int8(*map(_address, tensors), *shape)

    def image(self, run: Callable[[Tensor], None]) -> Tensor:
        """The result of ``run(to)`` as (out, height, width)."""
        to = torch.zeros(self.out_channels * self.height * self.line)
        run(to)
        image = torch.empty(self.out_channels, self.height, self.width)
        size = (self.out_channels, 0, self.out_channels, self.height, self.width, 1)
        this_machine().call("from_map", to, image, None, *size)
        return image


def exact(quantised: Quantised, x: Tensor) -> Tensor:
    """What the 8-bit convolution must give for ``x`` (channels, height, width), in whole numbers until the GELU."""
    levels = (x * quantised.factor + 128).round().clamp(0, 255).double() - 128
    sums = nn.functional.conv2d(levels[None], quantised.levels.double(), padding=1)[0]
    return nn.functional.gelu(sums * quantised.scale.double()[:, None, None] + quantised.bias.double()[:, None, None])


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _input_of(network: nn.Module, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The input of a convolution within a network, for the image ``x`` (1, 3, h, w)."""
    seen: list[Tensor] = []
    with torch.inference_mode(), conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].clone())):
        network(x)
    return seen[0].clone()


@exit_status
def main() -> int:
    """Print both tables; return the exit status."""
    parser = argument_parser(__doc__)
    parser.add_argument("--weights", default="safmn-x2", help="weights of a SAFMN")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("HEIGHT", "WIDTH"), help="LR pixels")
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    use_threads(1)
    network: Any = load_network(arguments.weights)
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, *arguments.size), np.float32))
    blocks = list(network.feats)
    conv = blocks[len(blocks) // 2].ccm.ccm[0]
    program = translate(network, this_machine(), half=False)
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        library = load(Path(folder))
        sides = Sides(library, conv, _input_of(network, conv, image))
        library.multiply_adds.restype = ctypes.c_float
        runs: dict[str, Callable[[], object]] = {
            "whole network, float32": lambda: program.run(image[0]),
            "convolution, float32": lambda: sides.floats(False),
            "convolution, bfloat16": lambda: sides.floats(True),
            "convolution, 8 bits": sides.int8,
            "of which quantising": sides.quantise,
            "peak, float32": lambda: library.multiply_adds(0, PEAK_TIMES),
            "peak, 8 bits": lambda: library.multiply_adds(1, PEAK_TIMES),
        }
        timings = compare(runs, rounds=arguments.rounds, warmup=arguments.warmup, clock=time.process_time)
    seconds = {name: timing.median for name, timing in timings.items()}
    report(f"{arguments.weights}, one thread", timings, baseline="convolution, float32", json_line=arguments.json)
    say(
        "\n"
        + table(
            ["3x3 convolutions", "ms", "ms of the network", "speed-up"],
            bounds(seconds, conv, arguments.size, len(blocks)),
        )
    )
    return 0


def bounds(seconds: dict[str, float], conv: nn.Conv2d, size: tuple[int, int], count: int) -> list[list[str]]:
    """Rows: the network's time and speed-up with each kind of convolution, measured or bounded."""
    products = conv.weight.numel() * size[0] * size[1]
    per_second = {kind: BLOCK * LANES * PEAK_TIMES / seconds[f"peak, {kind}"] for kind in ("float32", "8 bits")}
    at_peak = products / (CELL * per_second["8 bits"])
    kinds = {
        "float32, as it is": seconds["convolution, float32"],
        "bfloat16": seconds["convolution, bfloat16"],
        "8 bits": seconds["convolution, 8 bits"],
        "bound: float32 products of F(4x4) alone": products / F4 / per_second["float32"],
        "bound: 8-bit products alone": at_peak / DIRECT,
        "bound: 8-bit products of F(2x2) alone": at_peak / F2,
        "bound: no convolution at all": 0.0,
    }
    whole = seconds["whole network, float32"]
    rows = []
    for name, one in kinds.items():
        left = whole - count * (seconds["convolution, float32"] - one)
        rows.append([name, f"{count * one * 1e3:.0f}", f"{left * 1e3:.0f}", f"{whole / left:.2f}x"])
    return rows


if __name__ == "__main__":
    sys.exit(main())
