"""The generated reference and JSON Schema are up to date and complete, and the schema accepts our option files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from safmn.options import described
from safmn.options.problems import Problems
from safmn.options.reader import read_document
from safmn.options.reference import markdown
from safmn.options.schema import json_schema
from safmn.options.signatures import REQUIRED

REPOSITORY = Path(__file__).resolve().parent.parent
OPTION_FILES = sorted((REPOSITORY / "options").rglob("*.yml"))
FIRST_LINE = "# yaml-language-server: $schema="


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


def data_of(path: Path) -> dict[str, Any]:
    problems = Problems(path)
    data = read_document(path, problems).data
    problems.raise_all()
    return data


def mistakes(schema: dict[str, Any], data: Any) -> list[str]:
    return [error.json_path for error in jsonschema.Draft202012Validator(schema).iter_errors(data)]


def test_the_committed_files_are_up_to_date(schema: dict[str, Any]) -> None:
    advice = "run python -m safmn.options.reference"
    assert (REPOSITORY / "docs/options.md").read_text(encoding="utf-8") == markdown(), advice
    assert json.loads((REPOSITORY / "safmn/options/schema.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(schema)
    ), advice


def test_every_key_of_our_components_is_described() -> None:
    groups = (
        described.networks(), described.losses(), described.metrics(), described.optimisers(), described.schedules(),
        described.data_sets(),
    )  # fmt: skip
    ours = [[kind for kind in group if kind.ours] for group in groups]
    assert all(ours)
    silent = [f"{kind.name}.{key.name}" for group in ours for kind in group for key in kind.keys if not key.text]
    assert silent == []


@pytest.mark.parametrize("path", OPTION_FILES, ids=lambda path: path.stem)
def test_every_option_file_fits_the_schema_and_names_it(path: Path, schema: dict[str, Any]) -> None:
    assert mistakes(schema, data_of(path)) == []
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(FIRST_LINE)
    assert (path.parent / first.removeprefix(FIRST_LINE)).resolve() == REPOSITORY / "safmn/options/schema.json"


@pytest.mark.parametrize(
    ("keys", "value", "where"),
    [
        (("network_g", "n_block"), 8, "$.network_g"),
        (("network_g", "dim"), "36", "$.network_g.dim"),
        (("network_g", "type"), "SAFNM", "$.network_g.type"),
        (("train", "optim_g", "lr"), -1, "$.train.optim_g.lr"),
        (("train", "pixel_opt", "weight"), 1, "$.train.pixel_opt"),
        (("datasets", "train", "gt_sise"), 256, "$.datasets.train"),
        (("val", "metrics", "psnr", "crop"), 4, "$.val.metrics.psnr"),
        (("total_iter",), 4, "$"),
    ],
)
def test_the_schema_rejects_mistakes(keys: tuple[str, ...], value: object, where: str, schema: dict[str, Any]) -> None:
    data = copy.deepcopy(data_of(REPOSITORY / "options/train_x4.yml"))
    section = data
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    found = jsonschema.Draft202012Validator(schema).iter_errors(data)
    leaves = {leaf.json_path for error in found for leaf in _leaves(error)}
    assert where in leaves


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network_g": {"dim": 48}},
        {"train": {"optim_g": {"lr": 1e-4}, "scheduler": {"eta_mins": [1e-6]}}},
        {"datasets": {"train": {"batch_size_per_gpu": 4, "dataroot_gt": None}, "val": None}},
        {"val": {"metrics": {"psnr": {"crop_border": 2}}}},
    ],
)
def test_a_file_with_a_base_may_leave_out_what_the_base_has(changes: dict[str, Any], schema: dict[str, Any]) -> None:
    assert mistakes(schema, {"base": "train_x4", **changes}) == []
    assert mistakes(schema, changes)  # without a base, much is missing


@pytest.mark.parametrize(
    "changes",
    [
        {"network_g": {"dimm": 48}},
        {"network_g": {"dim": "48"}},
        {"network_g": {"type": "SAFMN", "n_block": 8}},
        {"train": {"optim_g": {"lrr": 1e-4}}},
        {"datasets": {"train": {"gt_sise": 256}}},
        {"train": {"losses": [{"loss_weight": 1.0}]}},  # lists replace those of the base
        {"trian": {}},
    ],
)
def test_the_schema_rejects_mistakes_in_a_file_with_a_base(changes: dict[str, Any], schema: dict[str, Any]) -> None:
    assert mistakes(schema, {"base": "train_x4", **changes})


def _leaves(error: Any) -> list[Any]:
    return [leaf for inner in error.context for leaf in _leaves(inner)] if error.context else [error]


def test_large_bounds_are_written_out() -> None:
    assert "at most 4294967295" in markdown()
    assert "e+" not in "".join(line.split("|")[2] for line in markdown().splitlines() if line.startswith("| "))


def test_descriptions_have_defaults_and_required_keys() -> None:
    [safmn] = [kind for kind in described.networks() if kind.name == "SAFMN"]
    assert {key.name: key.default for key in safmn.keys}["dim"] == 36
    [paired] = [kind for kind in described.data_sets() if kind.name == "PairedImageDataset"]
    assert {key.name for key in paired.keys if key.default is REQUIRED} == {"dataroot_gt", "dataroot_lq"}
