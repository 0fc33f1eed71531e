"""Compiled kernels that come with a wheel: the right level is chosen, and the results equal those compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safmn.archs import SAFMN
from safmn.inference.backends import make_backend
from safmn.kernels.cpu import build, compilation, inference, shipped, training

pytestmark = pytest.mark.skipif(compilation.compiler() is None, reason="no C++ compiler")
OLD, NEW = {"sse4_2"}, {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}
WIDE = NEW | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the wheel's."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    monkeypatch.setattr(shipped, "architecture", lambda: "x86_64")
    return tmp_path


@pytest.mark.parametrize(
    ("features", "narrow", "expected"),
    [
        (OLD, False, None),
        (NEW, False, "avx2"),
        (WIDE, False, "avx512"),
        (WIDE, True, "avx2"),
        (WIDE | {"avx512_bf16"}, False, "avx512bf16"),
        (WIDE | {"avx512_bf16"}, True, "avx2"),
    ],
)
def test_the_best_level_that_the_processor_has(
    features: set[str], narrow: bool, expected: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_features", lambda: frozenset(features))
    for level in compilation.LEVELS["x86_64"]:
        (folder / f"inference-{level.name}.so").touch()
    found = shipped.shipped_library(inference.SOURCE, narrow=narrow)
    assert found == (folder / f"inference-{expected}.so" if expected else None)


def test_a_source_checkout_has_none() -> None:
    assert shipped.shipped_library(inference.SOURCE) is None


@pytest.mark.slow
def test_shipped_kernels_compute_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler, both passes use the wheel's libraries and agree with torch."""
    level = compilation.LEVELS[compilation.architecture()][-1]  # the only one that every test machine has
    assert len(compilation.compile_levels(tmp_path / "libraries", [level])) == 2
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "libraries")
    monkeypatch.setattr(build, "compiler", lambda: None)
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("compiled"))
    inference._this_machine.cache_clear()
    training.this_machine.cache_clear()
    try:
        assert build.can_load()
        torch.manual_seed(0)
        network = SAFMN(dim=8, n_blocks=2, ffn_scale=2.0, upscaling_factor=2)
        x = torch.rand(1, 3, 32, 40)
        native = make_backend("native", network.eval(), device=torch.device("cpu"), precision="fp32")
        torch.testing.assert_close(native(x), network(x), rtol=1e-4, atol=2e-5)
        batch = torch.rand(16, 3, 16, 16)
        gradients = []
        for forward in (network, training.NativeSAFMN(network)):
            network.zero_grad()
            forward(batch).square().mean().backward()
            gradients.append(
                [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
            )
        for ours, theirs in zip(gradients[1], gradients[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    finally:
        inference._this_machine.cache_clear()
        training.this_machine.cache_clear()
