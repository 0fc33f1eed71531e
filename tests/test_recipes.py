"""The parts of option files in docs/recipes.md load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml

from safmn.options import load_options

PAGE = Path(__file__).resolve().parent.parent / "docs/recipes.md"
BLOCKS = re.findall(r"^### (.+?)$|^## (.+?)$|^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def recipes() -> list[tuple[str, dict[str, Any]]]:
    """Return the YAML blocks of the page with the headings above them."""
    found, heading = [], ""
    for small, large, block in BLOCKS:
        heading = small or large or heading
        if block:
            found.append((heading, yaml.safe_load(block)))
    return found


def merged(data: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` with the keys of ``part``, section by section."""
    result = dict(data)
    for key, value in part.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


@pytest.mark.parametrize(("heading", "part"), recipes(), ids=[f"{i}-{h}" for i, (h, _) in enumerate(recipes())])
def test_each_recipe_loads(heading: str, part: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {} if "base" in part else tiny_run.options(tmp_path)
    if not data:
        (tmp_path / "run.yml").write_text(yaml.safe_dump(part))
        assert load_options(tmp_path / "run.yml", mode="train").name == "mine"
        return
    data["scale"] = data["network_g"]["upscaling_factor"] = 4
    data["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "crop_border": 4}}
    if "losses" in part.get("train", {}):
        data["train"] = {key: value for key, value in data["train"].items() if not key.endswith("_opt")}
    if "network_g" in part:  # another network replaces the section
        data["network_g"] = {}
    kind = part.get("datasets", {}).get("train", {}).get("type")
    if kind and kind != "PairedImageDataset":  # a recipe that names another data set replaces the section
        loader = ("batch_size_per_gpu", "num_worker_per_gpu", "gt_size")
        data["datasets"]["train"] = {key: data["datasets"]["train"][key] for key in ("name", *loader)}
    (tmp_path / "run.yml").write_text(yaml.safe_dump(merged(data, part)))
    assert load_options(tmp_path / "run.yml", mode="train").train is not None, heading
