"""The user's cache of scores: what was measured once is not measured again.

A score is kept under everything that it depends on: the method (for networks: code and weights), the image pair, the
metric with its arguments, the device type, the precision, and the versions of torch and SAFMN.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safmn.evaluation.kept_lines import KeptLines

_VERSION = 2  # of what scores mean; raise it when padding, rounding or a metric changes


class ScoreCache:
    """The scores of one method.

    Args:
        question: all that the scores depend on, except image and metric; None: nothing is remembered.
    """

    def __init__(self, question: Mapping[str, Any] | None) -> None:
        self._scores: dict[tuple[str, str], float] = {}
        self._lines = KeptLines("scores", None if question is None else [_VERSION, question])
        for entry in self._lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._scores[str(entry["image"]), str(entry["metric"])] = float(entry["value"])

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, image: str, metric: str) -> float | None:
        """Return the score of an image, or None if it was not measured before."""
        return self._scores.get((image, metric))

    def put(self, image: str, metric: str, value: float) -> None:
        """Keep a score."""
        self._scores[image, metric] = value
        self._lines.add({"image": image, "metric": metric, "value": value})


def file_digest(*paths: Path | str) -> str:
    """Return a hash of the contents of files, for :class:`ScoreCache`."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()[:32]
