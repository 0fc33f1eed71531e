"""Divide the files of ``safmn upscale`` among several processes, without any communication between them.

Each process makes the same list of files and takes its part of it. What a process takes does not depend on what is done
already, so any of them can be killed and started again, and none does the files of another one.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safmn.errors import OptionError
from safmn.inference.file_jobs import FileJob

# Typical bytes per pixel of a file, to tell the work from the size: opening 100,000 files would take minutes.
_BYTES_PER_PIXEL = {".png": 1.8, ".bmp": 3.0, ".tif": 3.0, ".tiff": 3.0, ".webp": 0.2, ".avif": 0.15, ".heic": 0.15}
_OTHER_IMAGES, _FILMS = 0.4, 0.01  # JPEG; H.264
_EACH = 1e4  # pixels that take as long as opening and closing a file


@dataclass(frozen=True)
class Shard:
    """One of several processes that share the files.

    Attributes:
        index: its number, from 0.
        count: number of processes.
        source: where the numbers come from, for messages.
        local_rank: its number on its machine, which selects its GPU; None if unknown.
    """

    index: int = 0
    count: int = 1
    source: str = ""
    local_rank: int | None = None

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


def find_shard(given: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """Return this process's shard: from ``--shard``, or else from the variables that torchrun and srun set.

    The variables of a SLURM job outside of srun do not count: there is one process only.

    Args:
        given: ``I/N``, from 1; None if the user gave none. ``1/1`` switches off the variables.

    Raises:
        OptionError: ``given`` is not of this form, or I is not from 1 to N.
    """
    if given is not None:
        numbers = re.fullmatch(r"(\d+)/(\d+)", given)
        index, count = (int(number) for number in numbers.groups()) if numbers else (0, 0)
        if not 1 <= index <= count:
            raise OptionError(f"--shard {given}: give I/N with I from 1 to N, such as 2/8")
        return Shard(index - 1, count, "--shard")
    for source, (index_name, count_name, local_name) in {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    }.items():
        values = [environment.get(name, "") for name in (index_name, count_name, local_name)]
        if values[0].isdecimal() and values[1].isdecimal() and int(values[0]) < int(values[1]):
            local = int(values[2]) if values[2].isdecimal() else None
            return Shard(int(values[0]), int(values[1]), source, local)
    return Shard()


def part_of(jobs: Sequence[FileJob], shard: Shard) -> list[FileJob]:
    """Return the jobs of one shard, in their order. All shards have about the same work (longest first).

    The sources are measured now, so do not change them while the processes run.
    """
    if shard.count == 1:
        return list(jobs)
    works = [_work(job) for job in jobs]
    longest_first = sorted(range(len(jobs)), key=lambda number: (-works[number], str(jobs[number].source)))
    loads = [(0.0, index) for index in range(shard.count)]
    own = []
    for number in longest_first:
        load, index = loads[0]
        heapq.heapreplace(loads, (load + works[number], index))
        if index == shard.index:
            own.append(number)
    return [jobs[number] for number in sorted(own)]


def _work(job: FileJob) -> float:
    """Return an estimate of the pixels in a file, from its size."""
    try:
        size = os.stat(job.source).st_size
    except OSError:  # its own process reports it
        return 0.0
    usual = _FILMS if job.is_film else _BYTES_PER_PIXEL.get(Path(job.source).suffix.lower(), _OTHER_IMAGES)
    return _EACH + size / usual
