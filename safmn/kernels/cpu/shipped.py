"""Find the compiled kernels that come with a wheel, for this processor. A source checkout has none."""

from __future__ import annotations

import functools
from pathlib import Path

from safmn.kernels.cpu.compilation import LEVELS, architecture

FOLDER = Path(__file__).with_name("libraries")


def shipped_library(source: Path, *, narrow: bool = False) -> Path | None:
    """Return the library of ``source`` for the best level that this processor has; None if there is none.

    Args:
        source: a C++ file of this folder.
        narrow: at most eight floats in a vector.
    """
    if not FOLDER.is_dir():
        return None
    for level in LEVELS.get(architecture(), ()):
        library = FOLDER / f"{source.stem}-{level.name}.so"
        if level.needs <= _features() and not (narrow and level.lanes > 8) and library.exists():
            return library
    return None


@functools.cache
def _features() -> frozenset[str]:
    """Return the features of this processor by their names in /proc/cpuinfo; none on other systems than Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.split())
