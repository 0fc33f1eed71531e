"""The operators of the native kernels, and the networks that are planned from them."""

from __future__ import annotations

import copy
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peer_helpers import WEIGHTS
from test_native import TOLERANCE, lively, random_image
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.archs import SAFMN, SAFMNPP, LightSAFMNPP, SAFMNv3
from safmn.archs.peers import PEERS
from safmn.archs.peers.form import folded, in_form
from safmn.archs.stages import Skip, StageModule, stages_of
from safmn.errors import OptionError
from safmn.imaging import read_rgb
from safmn.inference.backends import make_backend
from safmn.kernels.cpu import compilation
from safmn.kernels.cpu.build import build
from safmn.kernels.cpu.inference import SOURCE, Kernels, this_machine, with_workspace
from safmn.kernels.cpu.planning.planner import Planner
from safmn.metrics import psnr
from safmn.weights import load_network

pytestmark = pytest.mark.skipif(compilation.compiler() is None, reason="no C++ compiler")

SIZES = ((1, 1), (2, 3), (7, 5), (33, 64), (6, 131))


@pytest.fixture(autouse=True)
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def planned(network: nn.Module, kernels: Kernels | None = None) -> Callable[[Tensor], Tensor]:
    """The network by its plan, for a batch of one image, even if it has a program of its own."""
    run = with_workspace(Planner(network, kernels or this_machine(), half=False))
    return torch.no_grad()(lambda x: run(x[0])[None])


def check(network: nn.Module, *sizes: tuple[int, int], kernels: Kernels | None = None) -> None:
    """Assert that the plan gives the network's result in float64, as nearly as eager mode in float32, or to 1e-5."""
    run, exact = planned(network, kernels), copy.deepcopy(network).double()
    for size in sizes:
        x = random_image(1, int(getattr(network, "in_channels", 3)), *size)
        with torch.no_grad():
            expected = exact(x.double())
            error = (network(x) - expected).abs().max()
        y = run(x)
        assert y.shape == expected.shape
        assert y.dtype == torch.float32
        largest = torch.maximum(TOLERANCE * expected.abs().max().clamp(min=1e-3), 4 * error)
        assert (y - expected).abs().max() <= largest, size


class Between(nn.Module):
    """Three convolutions around an operation on 20 channels, which is what is tested."""

    def __init__(self, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 20, 3, 1, 1), nn.Conv2d(3, 20, 3, 1, 1)
        self.last = nn.Conv2d(20, 4, 3, 1, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.operation(self.first(x), self.second(x)))
        return y


def pooled_and_enlarged(a: Tensor, mode: str) -> Tensor:
    size = a.shape[-2:]
    small = F.adaptive_max_pool2d(a, (max(size[0] // 4, 1), max(size[1] // 4, 1)))
    return F.interpolate(small.tanh(), size=size, mode=mode)


def squeezed(x: Tensor) -> Tensor:
    """Values times contrast and mean of their channel, as IMDN has them."""
    mean = x.mean((2, 3), keepdim=True)
    return x * ((x - mean).pow(2).mean((2, 3), keepdim=True).sqrt() + mean)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": lambda a, b: F.gelu(3 * a),
    "gelu, tanh": lambda a, b: F.gelu(3 * a, approximate="tanh"),
    "relu": lambda a, b: F.relu(a),
    "leaky relu": lambda a, b: F.leaky_relu(a, 0.05),
    "leaky relu in place": lambda a, b: F.leaky_relu(a, 0.2, inplace=True),
    "prelu": lambda a, b: F.prelu(a, torch.linspace(-1, 1, 20).to(a)),
    "silu": lambda a, b: F.silu(3 * a),
    "sigmoid": lambda a, b: torch.sigmoid(3 * a),
    "tanh": lambda a, b: torch.tanh(3 * a),
    "clamp": lambda a, b: a.clamp(-0.3, 0.4),
    "relu6": lambda a, b: F.relu6(a),
    "sqrt": lambda a, b: (a * a + 0.1).sqrt(),
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - b,
    "product": lambda a, b: a * b,
    "quotient": lambda a, b: a / (b * b + 0.5),
    "numbers": lambda a, b: 0.5 - (a * 2 + 1) / 3,
    "added in place": lambda a, b: a.add_(b).mul_(0.5),
    "sum with itself": lambda a, b: a + a,
    "square": lambda a, b: a**2,
    "per channel": lambda a, b: a * torch.linspace(-1, 1, 20).reshape(1, -1, 1, 1).to(a) + b,
    "parts": lambda a, b: torch.cat([b[:, 7:9], a.chunk(2, 1)[1] * b[:, :10], a.split([3, 17], 1)[0], b[:, -5:]], 1),
    "gate of one channel": lambda a, b: a * torch.sigmoid(b[:, 3:4]),
    "mean over the frame": lambda a, b: a * b.mean((2, 3), keepdim=True),
    "deviation over the frame": lambda a, b: a * (b - b.mean((2, 3), keepdim=True)).pow(2).mean((2, 3), True).sqrt(),
    "variance over the frame": lambda a, b: a * torch.var(b, dim=(2, 3), unbiased=False, keepdim=True),
    "statistics of parts": lambda a, b: squeezed(torch.cat([a[:, 3:9], b[:, 1:8], a[:, :7]], 1)) + b,
    "mean over channels": lambda a, b: a - a.mean(1, keepdim=True),
    "unit vectors": lambda a, b: F.normalize(a, dim=1) + b,
    "layer norm": lambda a, b: F.layer_norm(a.permute(0, 2, 3, 1), (20,)).permute(0, 3, 1, 2),
    "pooled, bilinear": lambda a, b: b * pooled_and_enlarged(a, "bilinear"),
    "pooled, nearest": lambda a, b: torch.cat([b[:, :8], pooled_and_enlarged(a[:, 4:16], "nearest")], 1),
    "one operand far back": lambda a, b: F.gelu(a) + F.silu(b) * a,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    check(lively(Between(OPERATIONS[name])), (1, 1), (9, 14), (5, 131))


def test_gelu_is_exact_to_a_millionth() -> None:
    """Everywhere, and also where it is nearly zero. Its argument comes from a convolution that copies the image."""

    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(F.conv2d(x, torch.eye(3)[:, :, None, None].to(x.device)))

    x = torch.cat([torch.linspace(-8, 8, 29993), torch.tensor([0.0, -0.0, 1e-20, -1e-20, -40.0, 40.0, 5.5])])
    x = x.reshape(1, 3, 100, 100)
    error = (planned(Alone())(x).double() - F.gelu(x.double())).abs()
    assert error.max() < 1e-6
    assert error[x.abs() < 1e-3].max() < 1e-7
    assert (error[x == 0] == 0).all()


class Layers(nn.Module):
    """Convolutions of every kind, one after the other and side by side."""

    def __init__(self, dim: int, wide: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, dim, 3, 1, 1)
        self.beside = nn.ModuleList([nn.Conv2d(dim, wide, 3, 1, 1, bias=False), nn.Conv2d(dim, 5, 3, 1, 1)])
        self.depthwise = nn.Conv2d(dim, 2 * dim, 3, 1, 1, groups=dim)
        self.mixed = nn.Conv2d(wide + 5 + 2 * dim, dim, 1)
        self.slopes = nn.PReLU(dim)
        self.strided = nn.Conv2d(dim, 4, 3, 2, 1)
        self.small = nn.Conv2d(4, dim, 3, 1, 1, bias=False)
        self.back = nn.Conv2d(2 * dim, dim, 1, bias=False)
        self.last = nn.Sequential(nn.Conv2d(dim, 12, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        parts = [F.gelu(conv(features)) for conv in self.beside]
        y = self.slopes(self.mixed(torch.cat([*parts, self.depthwise(features)], dim=1)) + features)
        gate = F.interpolate(self.small(self.strided(y)), size=y.shape[2:], mode="bilinear")
        image: Tensor = self.last(self.back(torch.cat([y, gate], dim=1)) * gate)
        return image + F.interpolate(x, scale_factor=2, mode="bilinear")


@pytest.mark.parametrize(("dim", "wide"), [(4, 7), (12, 24), (25, 50)])
def test_layers(dim: int, wide: int) -> None:
    check(lively(Layers(dim, wide)), *SIZES)


FAMILY = {
    "SAFMN++": lambda: SAFMNPP(n_blocks=2),
    "SAFMN++ x2": lambda: SAFMNPP(dim=20, n_blocks=1, upscaling_factor=2),
    "SAFMNv3": lambda: SAFMNv3(num_blocks=2),
    "SAFMNv3 x3": lambda: SAFMNv3(dim=17, num_blocks=1, upscaling_factor=3),
    "light SAFMN++": lambda: LightSAFMNPP(),
    "SAFMN": lambda: SAFMN(dim=12, n_blocks=1, upscaling_factor=2),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_family(name: str) -> None:
    """Any size; eager mode in float32 decides where pooled cells begin, so single pixels may differ from float64."""
    sizes = SIZES if "v3" not in name else SIZES[1:]  # the unbiased variance of one pixel does not exist
    check(lively(FAMILY[name]()), *sizes)


@pytest.mark.parametrize("name", ["RFDN", "RLFN", "RLFN_NTIRE", "SPAN", "SPAN_deploy", "IMDN", "SMFANet"])
def test_peers(name: str) -> None:
    network = PEERS[name].network
    assert network is not None
    check(in_form(folded(lively(network(**PEERS[name].small)))), (2, 3), (20, 37))


TRAINED = [
    ("RFDN_AIM_x4.pth", 4),
    ("RLFN_x4.pth", 4),
    pytest.param("SMFANet_DF2K_x3.pth", 3, marks=pytest.mark.slow),
    ("SPAN_ch26_NTIRE24_x4.pth", 4),
]


@pytest.mark.parametrize(("file", "scale"), TRAINED)
def test_trained_peers_make_the_same_images(file: str, scale: int, benchmark_dir: Path) -> None:
    """On a photograph: 8-bit values differ where they are rounded, by one level; PSNR is equal to 4 decimals."""
    if not (WEIGHTS / file).is_file():
        pytest.skip(f"the shared data has no {file}")
    network = in_form(folded(load_network(WEIGHTS / file, scale=scale)))
    low = read_rgb(benchmark_dir / f"Set5/LR_bicubic/X{scale}/womanx{scale}.png")
    high = read_rgb(benchmark_dir / "Set5/HR/woman.png")
    x = torch.from_numpy(low).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        eager, fast = (
            (run(x).clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
            for run in (network, planned(network))
        )
    levels = np.abs(eager.astype(int) - fast)
    assert levels.max() <= 1
    assert (levels > 0).mean() < 1e-3
    qualities = [psnr(image, high[: image.shape[0], : image.shape[1]], crop=scale, y=True) for image in (eager, fast)]
    assert qualities[0] == pytest.approx(qualities[1], abs=5e-5)
    assert qualities[0] > 25


def modules(chain: Any) -> Iterator[tuple[Any, StageModule]]:
    for part in chain:
        if isinstance(part, Skip):
            yield from modules(part.inner)
        elif isinstance(part.run, StageModule):
            yield part, part.run


@pytest.mark.parametrize("network", [SAFMNPP(dim=9, n_blocks=1), LightSAFMNPP(dim=8, n_blocks=1)], ids=["++", "light"])
def test_stages(network: nn.Module) -> None:
    for stage, module in modules(stages_of(lively(network))):
        check(module, (stage.window, 3 * stage.window))


@pytest.mark.parametrize("name", ["SAFMN++", "SAFMNv3"])
def test_any_number_of_threads(name: str) -> None:
    run, x = planned(lively(FAMILY[name]())), random_image(1, 3, 41, 50)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(run(x))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [*FAMILY, "RFDN", "SPAN_deploy", "SMFANet"])
def test_values_that_are_not_finite_stay_so(name: str, value: float) -> None:
    """They reach at least the pixels that they reach in eager mode."""
    peer = PEERS.get(name)
    network = lively(FAMILY[name]() if peer is None else in_form(peer.network(**peer.small)))  # type: ignore[misc]
    x = random_image(1, 3, 40, 41)
    x[0, 1, 17, 9] = value
    with torch.no_grad():
        expected = network(x).isfinite()
    assert not expected.all()
    assert not (planned(network)(x).isfinite() & ~expected).any()


@pytest.mark.parametrize("name", ["gelu", "gelu, tanh", "relu", "silu", "sigmoid", "leaky relu", "clamp"])
def test_activations_of_values_that_are_not_finite(name: str) -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return OPERATIONS[name](nn.functional.conv2d(x, torch.eye(3)[:, :, None, None].to(x.device)), x)

    x = torch.tensor([float("nan"), float("inf"), -float("inf")]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2).contiguous()
    x[:, 1:, :, 0] = 0.0
    x[:, 0, :, 1] = 0.0
    expected, y = OPERATIONS[name](x, x), planned(Alone())(x)
    assert not (y.isfinite() & ~expected.isfinite()).any()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags for x86")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3"])
def test_other_processors(machine: str, tmp_path: Path) -> None:
    if machine != "x86-64" and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this processor cannot run it")
    built = Kernels(build(SOURCE, [f"-march={machine}"], tmp_path))
    for network in (lively(Layers(25, 50)), lively(FAMILY["SAFMN++"]()), lively(FAMILY["SAFMNv3 x3"]())):
        check(network, *SIZES[1:], kernels=built)


class Enlarging(nn.Module):
    """Features and a last convolution of 16 of their channels, whose result is enlarged by pixel shuffle."""

    def __init__(self, scale: int, end: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 24, 3, 1, 1), nn.Conv2d(16, 3 * scale**2, 3, 1, 1)
        self.scale, self.end = scale, end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(x, self.last(F.gelu(self.first(x))[:, 8:]), self.scale)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("end", "joined"),
    [
        (lambda x, y, scale: F.pixel_shuffle(y, scale), True),
        (lambda x, y, scale: F.pixel_shuffle(y, scale) + F.interpolate(x, scale_factor=scale, mode="bilinear"), True),
        (lambda x, y, scale: F.pixel_shuffle(y, scale) + F.pixel_shuffle(y.tanh(), scale), False),
        (lambda x, y, scale: F.pixel_shuffle(y * 2, scale), False),
    ],
    ids=["alone", "with the image", "used twice", "changed"],
)
def test_the_last_convolution_writes_the_image(
    scale: int, end: Callable[..., Tensor], joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    call = Kernels.call

    def counted(self: Kernels, name: str, *arguments: Any) -> None:
        called.append(name)
        call(self, name, *arguments)

    monkeypatch.setattr(Kernels, "call", counted)
    check(lively(Enlarging(scale, end)), *SIZES)
    assert called.count("conv_to_image") == (len(SIZES) if joined else 0)
    made = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        made.append(planned(lively(Enlarging(scale, end)))(random_image(1, 3, 19, 150)))
    assert torch.equal(*made)


def test_later_calls_do_not_overwrite_results() -> None:
    run = planned(lively(SAFMNPP(dim=9, n_blocks=1)))
    x = random_image(1, 3, 16, 24)
    first = run(x)
    kept = first.clone()
    run(random_image(1, 3, 8, 40))
    assert torch.equal(first, kept)
    assert torch.equal(run(x), kept)


def test_a_result_that_is_the_input_is_copied() -> None:
    x = random_image(1, 3, 4, 5)
    y = planned(nn.Identity())(x)
    assert torch.equal(x, y)
    assert x.data_ptr() != y.data_ptr()


class Refused(nn.Module):
    """A network with an operation for which there are no kernels."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.operation = nn.Conv2d(3, 16, 3, 1, 1), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.first(x))


@pytest.mark.parametrize(
    ("operation", "problem"),
    [
        (nn.Conv2d(16, 3, 5, 1, 2), "a 5x5 convolution"),
        (nn.Conv2d(16, 16, 3, 1, 1, groups=4), "a 3x3 convolution in 4 groups"),
        (nn.Conv2d(16, 3, 3, 1, 2, 2), "a 3x3 convolution of this padding or dilation"),
        (nn.ConvTranspose2d(16, 3, 2, 2), "a transposed convolution"),
        (lambda x: x.softmax(1), "the operator _softmax"),
        (lambda x: x if x.sum() > 0 else -x, "the operator sum"),
        (lambda x: x[:, 1:3].relu_() + x[:, :2], "changes a part of a tensor"),
        (lambda x: {"image": x}, "not an image"),
    ],
)
def test_what_is_refused_is_named(operation: Any, problem: str) -> None:
    with pytest.raises(OptionError, match=f"there are no native kernels for Refused: .*{problem}"):
        make_backend("native", Refused(operation))


def test_a_size_without_kernels_runs_in_eager_mode(caplog: pytest.LogCaptureFixture) -> None:
    network = lively(Refused(lambda x: x.softmax(1) if x.shape[2] == 20 else x))
    run = make_backend("native", network)
    for height in (16, 20, 20):
        x = random_image(1, 3, height, 16)
        assert torch.allclose(run(x), network(x), atol=1e-5)
    said = [record.message for record in caplog.records if "eager runs images of 16x20" in record.message]
    assert len(said) == 1
    assert "the operator _softmax" in said[0]


def test_bfloat16_is_near() -> None:
    network, x = lively(SAFMNPP(n_blocks=1)), random_image(1, 3, 24, 40)
    exact = network(x)
    error = (make_backend("native", network, precision="bf16")(x) - exact).abs().max() / exact.abs().max()
    assert error < (0.02 if this_machine().has_half else TOLERANCE)


def test_no_warning_is_given_and_networks_do_not_change() -> None:
    network = lively(SAFMNPP(dim=9, n_blocks=1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned(network)(random_image(1, 3, 9, 9))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
