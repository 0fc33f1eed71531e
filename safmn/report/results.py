"""Read what ``safmn test`` left in ``results/<name>``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safmn.errors import UserError
from safmn.imaging.file_names import image_name
from safmn.report.runs import better

REPORT = "metrics.json"


@dataclass
class Scored:
    """One test set of a test.

    Attributes:
        per_image: image -> metric -> value.
        mean: metric -> mean over the images.
        published: metric -> published mean of this network.
        data: the set's section of the option file, with which its images can be read; empty if unknown.
    """

    per_image: dict[str, dict[str, float]]
    mean: dict[str, float]
    published: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def of_images(self) -> list[str]:
        """Return the metrics that have values of single images: all but those of whole sets."""
        return [metric for metric in self.mean if any(metric in scores for scores in self.per_image.values())]


@dataclass
class Test:
    """A test of one network.

    Attributes:
        name: a name that is unique in the report.
        root: its folder.
        sets: set -> scores.
        scale: upscaling factor.
        suffix: suffix of the names of the saved images.
        facts: network, weights, device, versions.
        options: content of the option file; empty for a test of weights.
        failed: set -> why it could not be tested.
    """

    name: str
    root: Path
    sets: dict[str, Scored]
    scale: int
    suffix: str
    facts: dict[str, Any]
    options: dict[str, Any]
    failed: dict[str, str] = field(default_factory=dict)

    def better(self, metric: str) -> str:
        """Return ``higher`` or ``lower``: which values of a metric are better."""
        return better(self.options, metric)

    def picture(self, set_name: str, image: str) -> Path | None:
        """Return the saved output of an image; None if the test saved none.

        Args:
            image: a key of ``per_image``: a name, or a path where two images have the same name.
        """
        folder = self.root / "visualization" / set_name
        file = Path(image).name
        for stem in (f"{image_name(image)}_{self.suffix}", f"{file}_{self.suffix}", image_name(image)):
            if (folder / f"{stem}.png").is_file():
                return folder / f"{stem}.png"
        return None


def is_test(folder: Path) -> bool:
    """Return whether a folder holds the report of a test."""
    return (folder / REPORT).is_file()


def read_test(folder: Path) -> Test:
    """Read the report of a test.

    Raises:
        UserError: ``metrics.json`` is damaged or not the report of a test, or no set was tested.
    """
    path = folder / REPORT
    try:
        content = json.loads(path.read_bytes())
        options = content["options"] or {}
        sets = {
            name: Scored(
                {image: _numbers(values) for image, values in scores["per_image"].items()},
                _numbers(scores["mean"]),
                _numbers(scores.get("published", {})),
                content.get("data", {}).get(name) or _section(options, name),
            )
            for name, scores in content["sets"].items()
        }
        name, scale = str(content["name"]), int(content["scale"])
        facts = {key: content.get(key) for key in ("network", "weights", "option file", "device", "versions")}
        failed = dict(content.get("failed", {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged or not the report of a test ({type(error).__name__}: {error})") from error
    if not sets:
        raise UserError(f"{path}: no set was tested" + "".join(f"; {each}" for each in failed.values()))
    val = options.get("val") or {}
    return Test(name, folder, sets, scale, str(val.get("suffix") or name), facts, options, failed)


def _section(options: Mapping[str, Any], set_name: str) -> dict[str, Any]:
    for key, section in (options.get("datasets") or {}).items():
        if isinstance(section, Mapping) and section.get("name", key) == set_name:
            return dict(section)
    return {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) if value is not None else math.nan for name, value in values.items()}
