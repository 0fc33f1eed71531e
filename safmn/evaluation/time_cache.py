"""The user's cache of times: an interrupted measurement goes on, and what was timed once is not timed again.

Times are kept under everything that they depend on: the network, the back end, the precision, the size of the input,
the machine, the number of threads, and the software that computes. What cannot be asked for again is kept with them:
when they were measured, and how busy other programs kept the machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from safmn.evaluation.kept_lines import KeptLines


class TimeCache:
    """The times and the memory of one network on one back end.

    Args:
        question: all that they depend on; None: nothing is remembered.

    Attributes:
        seconds: the seconds of each run, in the order of measurement.
        peak: memory in MB; None if it is not known.
        since: when the first run was measured, in seconds since 1970; None if all were measured by this object.
        others: how many cores other programs used meanwhile, at most.
    """

    def __init__(self, question: Mapping[str, Any] | None) -> None:
        self.seconds: list[float] = []
        self.peak: float | None = None
        self.since: float | None = None
        self.others = 0.0
        self._lines = KeptLines("times", question)
        for entry in self._lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if "peak" in entry:
                    self.peak = float(entry["peak"])
                elif "others" in entry:
                    self.others = max(self.others, float(entry["others"]))
                else:
                    seconds, at = float(entry["seconds"]), float(entry["at"])
                    self.seconds.append(seconds)
                    self.since = at if self.since is None else min(at, self.since)

    def forget(self) -> None:
        """Forget all times and the memory."""
        self._lines.clear()
        self.seconds, self.peak, self.since, self.others = [], None, None, 0.0

    def add(self, seconds: float) -> None:
        """Keep the time of a run."""
        self.seconds.append(seconds)
        self._lines.add({"seconds": seconds, "at": time.time()})

    def set_peak(self, peak: float) -> None:
        """Keep the memory."""
        self.peak = peak
        self._lines.add({"peak": peak})

    def add_others(self, cores: float) -> None:
        """Keep how many cores other programs used during some of the runs."""
        self.others = max(self.others, cores)
        self._lines.add({"others": round(cores, 2)})
