"""How busy other programs keep the machine."""

from __future__ import annotations

import time

import psutil


class OtherPrograms:
    """The work of other programs since this object was made."""

    def __init__(self) -> None:
        self._wall, self._before, self._mine = time.perf_counter(), _busy(), _own()

    def cores(self) -> float:
        """Return how many cores other programs used on average."""
        wall, busy, own = time.perf_counter() - self._wall, _busy() - self._before, _own() - self._mine
        return max(busy - own, 0.0) / wall if wall > 0 else 0.0


def _busy() -> float:
    """Return the seconds in which the machine's cores worked for any program."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal")))


def _own() -> float:
    """Return the seconds in which they worked for this process."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
