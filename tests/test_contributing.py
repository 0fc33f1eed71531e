"""The code examples of CONTRIBUTING.md work unchanged."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch

import safmn
from safmn.archs import FAMILY
from safmn.archs.complexity import complexity
from safmn.archs.stages import stages_of
from safmn.data import SampleKey, build_dataset, sample_rng
from safmn.degradations import apply_recipe, draw_recipe, from_json, parse_options, to_json
from safmn.errors import OptionError
from safmn.inference.backends.base import BACKENDS
from safmn.options import described
from safmn.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    DEGRADATION_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    import_basicsr,
)
from safmn.train import main
from safmn.weights import load_network, save_weights

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"
REGISTRIES = (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY)


def code_of(title: str) -> tuple[str, str]:
    """Return the file name and the Python code of the section ``### title``."""
    section = GUIDE.read_text(encoding="utf-8").split(f"### {title}\n")[1].split("\n### ")[0]
    name = re.search(r"`safmn/\w+/(?:\w+/)*(\w+)\.py`", section)
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert name is not None
    assert code is not None
    return name[1], code[1]


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Any]:
    """Return a function that imports an example as a separate module. Its registrations are undone after the test."""
    import_basicsr()  # first, so that its registrations are not undone
    before = [dict(registry._obj_map) for registry in REGISTRIES]
    steps, family, backends = dict(DEGRADATION_REGISTRY._components), list(FAMILY), dict(BACKENDS)
    imported = []

    def load(title: str) -> ModuleType:
        name, code = code_of(title)
        path = tmp_path / f"{name}.py"
        path.write_text(code)
        spec = importlib.util.spec_from_file_location(f"contributed_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        imported.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for registry, content in zip(REGISTRIES, before, strict=True):
        registry._obj_map.clear()
        registry._obj_map.update(content)
    DEGRADATION_REGISTRY._components.clear()
    DEGRADATION_REGISTRY._components.update(steps)
    FAMILY[:] = family
    BACKENDS.clear()
    BACKENDS.update(backends)
    for name in imported:
        del sys.modules[name]


def train(folder: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Train for 4 iterations and return the lines of the record."""
    content["path"]["experiments_root"] = str(folder / "experiments")
    content["train"] |= {"total_iter": 4, "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [4]}}
    assert main(["-opt", str(tiny_run.write_options(folder, content))]) == 0
    return tiny_run.record(folder)


def test_a_network_trains_upscales_and_is_recognised(example: Any, images: Path, tmp_path: Path) -> None:
    network = example("A network").Tiny(dim=8, upscaling_factor=2).eval()
    content = tiny_run.options(images)
    content["network_g"] = {"type": "Tiny", "dim": 8, "upscaling_factor": 2}
    train(tmp_path, content)
    found = load_network(tmp_path / "experiments/tiny/models/net_g_latest.pth")  # recognised only from its weights
    assert (type(found).__name__, found.scale) == ("Tiny", 2)
    assert stages_of(found) is not None
    assert complexity(found, (720, 1280)).params == sum(weight.numel() for weight in network.parameters())
    image = np.random.default_rng(0).random((90, 70, 3), dtype=np.float32)
    whole, cut = (safmn.Upscaler(found, tile=tile, backend="eager")(image) for tile in (0, 32))
    assert np.abs(whole - cut).max() < 1e-6
    save_weights(tmp_path / "tiny.safetensors", params=network.state_dict())
    assert load_network(tmp_path / "tiny.safetensors").scale == 2
    assert "dim" in [key.name for kind in described.networks() if kind.name == "Tiny" for key in kind.keys]


def test_a_loss_trains_and_is_logged(example: Any, images: Path, tmp_path: Path) -> None:
    example("A loss")
    content = tiny_run.options(images)
    content["train"]["losses"] = [{"type": "GradientLoss", "loss_weight": 0.1}]
    assert {"l_pix", "l_freq", "l_gradient"} <= train(tmp_path, content)[0].keys()


def test_a_metric_is_measured_in_validation(example: Any, images: Path, tmp_path: Path) -> None:
    example("A metric")
    content = tiny_run.options(images)
    content["val"]["metrics"]["error"] = {"type": "calculate_mean_error", "crop_border": 2, "better": "lower"}
    [validation] = [line for line in train(tmp_path, content) if "set" in line]
    assert 0 < validation["error"] < 128


def test_a_data_set_is_repeatable_and_trains(example: Any, images: Path, tmp_path: Path) -> None:
    example("A data set")
    section = {"name": "Gradients", "type": "Gradients", "gt_size": 32, "batch_size_per_gpu": 2, "count": 10}
    dataset = build_dataset(section, phase="train", scale=2)
    one, same = (dataset.sample(3, sample_rng(0, SampleKey(0, 3))) for _ in range(2))
    assert torch.equal(one["gt"], same["gt"])
    assert (tuple(one["gt"].shape), tuple(one["lq"].shape)) == ((3, 32, 32), (3, 16, 16))
    content = tiny_run.options(images)
    content["datasets"]["train"] = section
    assert train(tmp_path, content)


def test_a_degradation_step_is_drawn_stored_and_applied(example: Any) -> None:
    example("A degradation step")
    keys = {"gt_size": 64, "extra": [{"type": "Dust", "share": [0.01, 0.01], "place": "end"}]}
    recipe = draw_recipe(parse_options(keys, {}, scale=2), sample_rng(0, SampleKey(0, 1)))
    image = np.full((96, 96, 3), 0.8, np.float32)
    lq = apply_recipe(from_json(to_json(recipe)), image)
    assert 0 < np.mean(lq < 0.4) < 0.05


def test_a_back_end_equals_eager_and_rejects_other_precisions(example: Any) -> None:
    example("A back end")
    network = safmn.load_network("safmn-x2")
    image = np.random.default_rng(0).random((40, 56, 3), dtype=np.float32)
    ours, eager = (safmn.Upscaler(network, backend=name, device="cpu")(image) for name in ("scripted", "eager"))
    assert np.abs(ours - eager).max() < 1e-4
    with pytest.raises(OptionError, match="fp32"):
        safmn.Upscaler(network, backend="scripted", device="cpu", precision="bf16")
