"""What a run knows about itself besides the networks: where it is, its best results, what it skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Saved with every checkpoint; all of it follows from the iterations done, nothing from the clock."""

    iteration: int = 0
    validated_at: int = 0  # the newest iteration whose validation is complete
    skipped: int = 0  # iterations without an update because of NaN or Inf
    fingerprints: dict[str, str] = field(default_factory=dict)  # of data and teacher: option key -> what is there
    best: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # set -> metric -> {value, iteration}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """The inverse of :meth:`as_dict`."""
        return cls(**data)

    def note(self, set_name: str, metric: str, value: float, *, higher_is_better: bool) -> bool:
        """Remember a validation result if it is the best of its kind so far; returns whether it is."""
        if not math.isfinite(value):
            return False
        record = self.best.setdefault(set_name, {}).get(metric)
        better = record is None or (value > record["value"] if higher_is_better else value < record["value"])
        if better:
            self.best[set_name][metric] = {"value": value, "iteration": self.iteration}
        return better
