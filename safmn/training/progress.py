"""What a run knows about itself besides the networks: where it is, its best results, what it skipped."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Saved with every checkpoint; all of it follows from the iterations done, nothing from the clock."""

    iteration: int = 0
    validated_at: int = 0  # the newest iteration whose validation is complete
    skipped: int = 0  # iterations without an update because of NaN or Inf
    fingerprints: dict[str, str] = field(default_factory=dict)  # of data and teacher: option key -> what is there
    best: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # set -> metric -> {value, iteration, of}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """The inverse of :meth:`as_dict`."""
        return cls(**data)

    def note(self, set_name: str, metric: str, value: float, *, section: Mapping[str, Any]) -> bool:
        """Remember a validation result if it is the best of its kind so far; returns whether it is.

        Args:
            section: the metric's in the option file. A best value of another one (of the Y channel, say, where it is
                of RGB now) cannot be compared, and is forgotten.
        """
        if not math.isfinite(value):
            return False
        record = self.best.setdefault(set_name, {}).get(metric)
        if record is not None and record.get("of", section) != section:
            logger.warning("%s of %s is measured otherwise now: its best value is forgotten", metric, set_name)
            record = None
        higher_is_better = section.get("better", "higher") == "higher"
        better = record is None or (value > record["value"] if higher_is_better else value < record["value"])
        if better:
            self.best[set_name][metric] = {"value": value, "iteration": self.iteration, "of": dict(section)}
        return better
