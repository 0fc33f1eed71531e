"""Every installed back end gives the result of eager; ``auto`` rejects wrong ones; errors explain mistakes."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from skimage import data
from torch import Tensor, nn

import safmn
from safmn.archs import FAMILY
from safmn.archs.stages import Plain
from safmn.errors import OptionError
from safmn.inference.backends import NAMES, Backend, auto, available_backends, make_backend
from safmn.registry import ARCH_REGISTRY, build

SMALL = {"SAFMN_BCIE": {"dim": 8, "n_blocks": 1, "num_layers": 1}, "SAFMNv3": {"dim": 16, "num_blocks": 1}}
INSTALLED = [name for name, problem in available_backends("cpu").items() if problem is None]
FAST = [name for name in INSTALLED if name not in ("auto", "eager", "compile")]
NO_BFLOAT16 = ("onnxruntime", "openvino")  # the first has no kernels for it, the second rounds more than allowed


def photo(height: int, width: int, batch: int = 1) -> Tensor:
    crops = [data.astronaut()[20 * i : 20 * i + height, 180 : 180 + width].copy() for i in range(batch)]
    return torch.stack([torch.from_numpy(crop).permute(2, 0, 1).float() / 255 for crop in crops])


def small(kind: str = "SAFMN") -> nn.Module:
    torch.manual_seed(0)
    section = {"type": kind, **SMALL.get(kind, {"dim": 24, "n_blocks": 1})}
    return build(ARCH_REGISTRY, section).eval().requires_grad_(False)


def make(name: str, network: nn.Module, precision: str = "fp32") -> Backend:
    """Return the back end; skip the test if the back end does not support the network."""
    try:
        return make_backend(name, network, precision=precision)
    except OptionError as error:
        if f"for {type(network).__name__}" not in str(error):
            raise
        pytest.skip(str(error))


def largest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.fixture(scope="module")
def x2() -> nn.Module:
    return safmn.load_network("safmn-x2")


@pytest.mark.parametrize("name", FAST)
def test_equals_eager_on_a_photograph(name: str, x2: nn.Module) -> None:
    backend = make(name, x2)
    kept = []
    # In some back ends, a repeated size takes another path. Comparing at the end shows that no result is overwritten.
    for x in (photo(96, 128), photo(96, 128), photo(96, 128) / 2, photo(40, 64), photo(48, 56, batch=2)):
        kept.append((backend(x), x2(x)))
    assert max(largest(*pair) for pair in kept) <= 1e-4


@pytest.mark.parametrize("kind", [network.__name__ for network in FAMILY])
@pytest.mark.parametrize("name", FAST)
def test_every_network(name: str, kind: str) -> None:
    network = small(kind)
    x = photo(64, 48)
    assert largest(make(name, network)(x), network(x)) <= 1e-4


SIGNALLED = """
import signal, sys, torch, safmn.archs
from safmn.inference.backends import make_backend
used = [make_backend(sys.argv[1], safmn.archs.SAFMN(dim=4, n_blocks=1).eval()) for _ in range(2)]
for backend in used:
    backend(torch.rand(1, 3, 16, 16))
del backend, used[0], used[0]  # in the order of creation
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("name", FAST)
def test_signals_are_handled_after_a_back_end_is_deleted(name: str) -> None:
    """OpenVINO's plugin can leave a freed stack for signal handlers behind."""
    command = [sys.executable, "-c", SIGNALLED, name]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "handled\n"


@pytest.mark.parametrize("name", FAST)
def test_part_of_a_network(name: str) -> None:
    torch.manual_seed(0)
    stage = Plain(nn.Conv2d(12, 20, 3, 1, 1), 12).eval().requires_grad_(False)
    x = torch.rand(1, 12, 24, 33)
    assert largest(make(name, stage)(x), stage(x)) <= 1e-4


@pytest.mark.parametrize("name", FAST)
def test_odd_sizes_through_the_upscaler(name: str, x2: nn.Module) -> None:
    image = data.astronaut()[:37, 180:233]
    result = safmn.Upscaler(x2, backend=name)(image).astype(int)
    expected = safmn.Upscaler(x2, backend="eager")(image).astype(int)
    assert result.shape == (74, 106, 3)
    assert abs(result - expected).max() <= 1  # rounding ties
    assert (result != expected).mean() <= 1e-3


@pytest.mark.parametrize("name", ["eager", *(name for name in FAST if name not in NO_BFLOAT16)])
def test_bfloat16_is_near_float32(name: str, x2: nn.Module) -> None:
    """The error is at most two levels of 8 bits anywhere, and 60 dB on average, which costs 0.03 dB at 38 dB."""
    x = photo(96, 128)
    y, expected = make_backend(name, x2, precision="bf16")(x).clamp(0, 1), x2(x).clamp(0, 1)
    assert y.dtype == torch.float32
    assert largest(y, expected) <= 2.5 / 255
    assert -10 * torch.log10((y - expected).square().mean()) >= 60


@pytest.mark.parametrize("name", [name for name in FAST if name in NO_BFLOAT16])
def test_back_ends_without_bfloat16_refuse_it(name: str) -> None:
    with pytest.raises(OptionError, match="bfloat16"):
        make_backend(name, small(), precision="bf16")


@pytest.mark.slow
@pytest.mark.skipif("compile" not in INSTALLED, reason="no C++ compiler or no headers of Python")
def test_compiled() -> None:
    network, x = small("LightSAFMNPP"), photo(32, 40)
    assert largest(make_backend("compile", network)(x), network(x)) <= 1e-4


@pytest.mark.parametrize("name", ["eager", *FAST])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_network_does_not_change(name: str, precision: str) -> None:
    network = small().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        make_backend(name, network, precision=precision)
    except OptionError:
        assert precision == "bf16"
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# The choice of "auto"


class Fake(Backend):
    """A back end with a given result or error."""

    name = "fake"
    result: ClassVar[Any] = None

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result(x)


def fake(label: str, result: Any) -> type[Backend]:
    return type(
        label, (Fake,), {"name": label, "result": result if isinstance(result, Exception) else staticmethod(result)}
    )


@functools.cache
def tried() -> tuple[Tensor, Tensor]:
    """Return the sample on which ``auto`` tests back ends for an input of 64x64 pixels, and the network's result."""
    sample = auto._sample(photo(64, 64))
    return sample, small()(sample)


def exact(x: Tensor) -> Tensor:
    """Return the network's result. That for ``auto``'s sample is precomputed, so that fakes are faster than eager."""
    sample, expected = tried()
    return expected if torch.equal(x, sample) else small()(x)


def choose(monkeypatch: pytest.MonkeyPatch, *candidates: type[Backend], precision: str = "fp32") -> Backend:
    """Return ``auto`` after it has chosen one of the candidates at its first input."""
    monkeypatch.setattr(auto, "candidates_of_auto", lambda device_type: candidates)
    network, x = small(), photo(64, 64)
    backend = make_backend("auto", network, precision=precision)
    assert backend.name == "auto"
    assert largest(backend(x), network(x)) <= (1e-4 if precision == "fp32" else 0.01)
    return backend


def test_auto_does_not_judge_by_an_input_on_which_the_network_overshoots(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rounding errors that the network amplifies a million times do not exclude a back end."""
    network = small()
    seen = []

    def amplified(x: Tensor) -> Tensor:
        seen.append(x)
        return exact(x) + (100.0 if float(x.std()) < 1e-3 else 1e-6)

    monkeypatch.setattr(auto, "candidates_of_auto", lambda device_type: (fake("amplified", amplified),))
    backend = make_backend("auto", network)
    with caplog.at_level(logging.WARNING):
        backend(torch.zeros(1, 3, 64, 64))
    assert backend.name == "amplified"
    assert not caplog.records
    assert seen[0].shape == (1, 3, 64, 64)
    assert seen[0].std() > 0.05  # a made-up photograph, not the input


def test_auto_chooses_eager_for_a_network_that_gives_nan(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = small()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    monkeypatch.setattr(auto, "candidates_of_auto", lambda device_type: (fake("fast", lambda x: x),))
    backend = make_backend("auto", network)
    with caplog.at_level(logging.WARNING):
        backend(photo(64, 64))
    assert backend.name == "eager"
    assert not caplog.records


def test_auto_takes_the_first_that_is_right_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    right, other = fake("right", lambda x: exact(x) + 1e-5), fake("other", exact)
    assert choose(monkeypatch, right, other).name == "right"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda y: y + 0.003, "wrong by up to 0.003"),
        (lambda y: y * float("nan"), "wrong by up to nan"),
        (lambda y: y[:, :, :-1], "(1, 3, 255, 256) instead of (1, 3, 256, 256)"),
        (RuntimeError("kernel panic\nmore"), "RuntimeError: kernel panic"),
    ],
)
def test_auto_rejects_back_ends_that_fail_or_are_wrong(
    result: Any, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = fake("bad", result if isinstance(result, Exception) else lambda x: result(exact(x)))
    good = fake("good", exact)
    with caplog.at_level(logging.WARNING):
        assert choose(monkeypatch, bad, good).name == "good"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Back end bad" in caplog.text
    assert reason in caplog.text
    assert choose(monkeypatch, bad).name == "eager"


def test_auto_requires_56_db_of_bfloat16(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    noise = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    far, near = (fake(label, lambda x, s=s: exact(x) + s * noise) for label, s in (("far", 2e-3), ("near", 1e-3)))
    assert choose(monkeypatch, far, near, precision="bf16").name == "near"
    assert "far is not used" in caplog.text
    assert "54.0 dB" in caplog.text


def test_auto_skips_back_ends_that_are_missing_unfit_or_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import time

    def late(x: Tensor) -> Tensor:
        time.sleep(1)
        return exact(x)

    missing, unfit, slow = fake("missing", late), fake("unfit", late), fake("slow", late)
    monkeypatch.setattr(missing, "missing", classmethod(lambda cls, device: "pip install it"))
    monkeypatch.setattr(unfit, "unfit", classmethod(lambda cls, network, precision: "no such network"))
    with caplog.at_level(logging.INFO):
        assert choose(monkeypatch, missing, unfit, slow).name == "eager"
    assert "missing: not used: pip install it" in caplog.text
    assert "unfit: not used: no such network" in caplog.text
    assert "slow is not used: slower" in caplog.text


def test_auto_with_its_own_candidates_gives_the_result_of_eager(x2: nn.Module) -> None:
    backend = make_backend("auto", x2)
    for x in (photo(64, 64), photo(32, 48)):
        assert largest(backend(x), x2(x)) <= 2e-4
    assert backend.name in NAMES
    assert backend.name != "auto"


# Mistakes


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("openvino", "onnx"):
        backend = {"onnx": "onnxruntime"}.get(name, name)
        with pytest.raises(OptionError, match=rf": pip install '{name}>="):
            make_backend(backend, small())
        assert f": pip install '{name}>=" in str(available_backends("cpu")[backend])


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(OptionError, match=r"C\+\+ compiler.*install"):
        make_backend("compile", small())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "openvin"}, r"'openvin'.* 'openvino'\? Known: auto, "),
        ({"name": "eager", "precision": "half"}, "'half': choose fp32, bf16, fp16"),
        ({"name": "eager", "precision": "fp16"}, "'fp16' .*choose bf16 or fp32"),
        ({"name": "cuda-graphs"}, "CUDA graphs .*CUDA device, not cpu"),
        ({"name": "tensorrt"}, "TensorRT .*CUDA device, not cpu"),
        ({"name": "triton"}, "CUDA device, not cpu"),
        ({"name": "openvino", "device": "meta"}, "OpenVINO .*CPUs, not on meta"),
        ({"name": "onnxruntime", "device": "meta"}, "ONNX Runtime .*CUDA devices, not on meta"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, str], message: str) -> None:
    options = dict(arguments)
    with pytest.raises(OptionError, match=message):
        make_backend(options.pop("name"), small(), **options)


def test_missing_headers_of_python_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile includes Python.h, which Debian has in a package of its own."""
    monkeypatch.setattr("safmn.inference.backends.torch_backends.compiler", lambda: "g++")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "apt install python3-dev" in str(available_backends("cpu")["compile"])
    (tmp_path / "Python.h").touch()
    assert available_backends("cpu")["compile"] is None


def test_missing_triton_is_reported_in_a_fresh_process() -> None:
    """No other code has made torch import its module for Triton there."""
    code = """
import torch
from safmn.inference.backends.torch_backends import Compiled
problem = Compiled.missing(torch.device("cuda"))
assert problem is None or "pip install triton" in problem
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
