"""The state of a run besides its networks: the iteration, the best results, the skipped iterations."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from safmn.metrics.direction import lower_is_better

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """The progress of a run, saved with every checkpoint. It depends on the iterations done, never on the clock."""

    iteration: int = 0
    validated_at: int = 0  # the newest iteration with a complete validation
    skipped: int = 0  # number of iterations without an update because of NaN or Inf
    fingerprints: dict[str, str] = field(default_factory=dict)  # of data and teacher: option key -> fingerprint
    best: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # set -> metric -> {value, iteration, of}

    def as_dict(self) -> dict[str, Any]:
        """Return the progress as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """Return the progress from the data that :meth:`as_dict` returned."""
        return cls(**data)

    def note(self, set_name: str, metric: str, value: float, *, section: Mapping[str, Any]) -> bool:
        """Store a validation result if it is the best of its set and metric so far, and return whether it is.

        Args:
            section: the metric's section of the option file. If the stored best value was measured with another
                section (for example on the Y channel instead of RGB), the two cannot be compared and it is dropped.
        """
        if not math.isfinite(value):
            return False
        record = self.best.setdefault(set_name, {}).get(metric)
        if record is not None and record.get("of", section) != section:
            logger.warning("%s of %s has other settings now: its former best value is dropped", metric, set_name)
            record = None
        higher_is_better = not lower_is_better(section)
        better = record is None or (value > record["value"] if higher_is_better else value < record["value"])
        if better:
            self.best[set_name][metric] = {"value": value, "iteration": self.iteration, "of": dict(section)}
        return better
