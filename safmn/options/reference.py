"""Generate the reference of option files: every key with its type, its default and what it does, as Markdown.

``python -m safmn.options.reference`` rewrites ``docs/options.md`` and ``safmn/options/schema.json``. A test checks that
both are up to date. This needs the package docstring_parser.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safmn.degradations.keys import BlurKeys, DegradationKeys, PublishedKeys
from safmn.options import described
from safmn.options.datasets import LoaderOptions, idle_keys
from safmn.options.described import Described, DescribedKey
from safmn.options.schema import json_schema
from safmn.options.signatures import REQUIRED
from safmn.options.typed import describe
from safmn.options.types import (
    DistParams,
    FlatAreasSection,
    LoggerSection,
    MlflowOptions,
    OptionFile,
    PathOptions,
    TeacherSection,
    TrainSection,
    ValSection,
    WandbOptions,
)

_INTRODUCTION = """\
# Option files

This page lists every key of an option file. `python -m safmn.options.reference` generates it from the code; do not edit
it. A key without a default is required. `~` (null) means "not given". An unknown key is an error. Any key can be set on
the command line, for example `--force_yml train:total_iter=1000`.

Editors complete and check option files with the JSON Schema that the first line of a file names:
`# yaml-language-server: $schema=../safmn/options/schema.json`.

[training.md](training.md) and [realworld.md](realworld.md) explain how the keys work together.
"""

_DATASETS = """\
## datasets

The sections are called `train`, `val`, `val_2`, ..., `test_1`, ... Each has `name`, `type` and the keys of its type.
"""
_EXPECT = """\
## expect

Numbers that `safmn test` must reproduce. For each data set, by its `name`: the metrics with their values, and
`tolerance`, one number or one for each metric. If a value differs by more, the test ends with exit status 1.

```yaml
expect:
  Set5: {psnr: 32.06, ssim: 0.8927, tolerance: {psnr: 0.005, ssim: 0.0005}}
```
"""


def markdown() -> str:
    """Return the whole page."""
    top = described.section(OptionFile)
    published = {key.name for key in described.section(PublishedKeys).keys}
    loader = described.section(LoaderOptions).keys
    general = [key for key in top.keys if key.name not in published]
    parts = [
        _INTRODUCTION,
        _table("Top level", "", general),
        _struct("path", PathOptions),
        _struct("train", TrainSection),
        _struct("train.teacher", TeacherSection),
        _struct("train.flat_areas", FlatAreasSection),
        _table(
            "train.losses, entry",
            "Keys of an entry, in addition to `type` and the arguments of the loss.",
            described.loss_keys().keys,
        ),
        _struct("val", ValSection),
        _struct("logger", LoggerSection),
        _struct("logger.wandb", WandbOptions),
        _struct("logger.mlflow", MlflowOptions),
        _struct("dist_params", DistParams),
        _EXPECT,
        _DATASETS,
        _table("Keys of the loader", "In the section `train`, for every type.", loader, 3),
        _components(described.installed(described.data_sets()), "Data set"),
        _idle(),
        _table("Degradation", _DEGRADATION, described.section(PublishedKeys).keys),
        _table("degradation", "Keys of the section `degradation`.", _own_degradation(published)),
        _table("Blur", "Keys of data sets that degrade images.", _own_keys(BlurKeys)),
        "## Networks\n\n`network_g`, `network_d`.\n",
        _components(described.installed(described.networks()), "Network"),
        "## Losses\n\nEntries of `train.losses`, or BasicSR's keys (`pixel_opt`, ...).\n",
        _components(described.installed(described.losses()), "Loss"),
        "## Metrics\n\nEntries of `val.metrics`; each can also have `better: higher` (default) or `better: lower`.\n",
        _components(described.installed(described.metrics()), "Metric"),
        "## Optimisers\n\n`train.optim_g`, `train.optim_d`.\n",
        _components(described.optimisers(), "Optimiser"),
        "## Schedules\n\n`train.scheduler`.\n",
        _components(described.schedules(), "Schedule"),
        "## Models\n\n`model_type`.\n",
        _models(),
    ]
    return "\n".join(parts).rstrip() + "\n"


_DEGRADATION = """\
Real-ESRGAN's keys, at the top level of a file for real-world training. Ranges are `[low, high]`; keys with a final `2`
are for the second stage. [realworld.md](realworld.md) explains them.
"""


def _own_degradation(published: Iterable[str]) -> list[DescribedKey]:
    return [key for key in described.section(DegradationKeys).keys if key.name not in published]


def _own_keys(kind: type[BlurKeys]) -> list[DescribedKey]:
    shared = ("gt_size", "use_hflip", "use_rot", "batch_size_per_gpu")
    return [key for key in described.section(kind).keys if key.name not in shared]


def _struct(title: str, kind: Any) -> str:
    found = described.section(kind)
    return _table(title, found.text, found.keys)


def _components(kinds: Sequence[Described], what: str) -> str:
    """Return a table for each of our components, and one table of names and keys for those of other packages."""
    parts = [_table(kind.name, kind.text, kind.keys, 3) for kind in kinds if kind.ours]
    foreign = [kind for kind in kinds if not kind.ours]
    if foreign:
        rows = [f"| `{kind.name}` | {_arguments(kind)} |" for kind in foreign]
        parts.append("\n".join([f"### From other packages\n\n| {what.lower()} | keys |\n| --- | --- |", *rows, ""]))
    return "\n".join(parts)


def _arguments(kind: Described) -> str:
    shown = [f"`{key.name}`" + ("" if key.default is not REQUIRED else " (required)") for key in kind.keys]
    return ", ".join(shown + ["..."] * kind.is_open) or "none"


def _models() -> str:
    rows = [f"| `{model.name}` | {model.text} |" for model in described.installed(described.models())]
    return "\n".join(["| model | what it trains |\n| --- | --- |", *rows, ""])


def _idle() -> str:
    rows = [f"| `{name}` | {text} |" for name, text in idle_keys().items()]
    head = "### Keys without effect\n\nKeys of the section `train` in BasicSR's files.\n\n| key | |\n| --- | --- |"
    return "\n".join([head, *rows, ""])


def _table(title: str, text: str, keys: Iterable[DescribedKey], depth: int = 2) -> str:
    rows = [f"| `{key.name}` | {_type(key)} | {_default(key)} | {_cell(key.text)} |" for key in keys]
    head = "| key | type | default | what it does |\n| --- | --- | --- | --- |"
    table = "\n".join([head, *rows]) if rows else "No keys."
    return "\n\n".join(part for part in (f"{'#' * depth} {title}", text.strip(), table) if part) + "\n"


def _type(key: DescribedKey) -> str:
    if key.hint is Any:
        return ""
    return _cell(describe(key.hint).replace("'", "`"))


def _default(key: DescribedKey) -> str:
    if key.default is REQUIRED:
        return "(required)"
    if key.default is None:
        return "`~`"
    if hasattr(key.default, "__struct_fields__"):
        return ""
    value = list(key.default) if isinstance(key.default, tuple) else key.default
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write both files into the checkout that contains this module."""
    root = Path(__file__).resolve().parent.parent.parent
    (root / "docs" / "options.md").write_bytes(markdown().encode())
    schema = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    (root / "safmn" / "options" / "schema.json").write_bytes(schema.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
