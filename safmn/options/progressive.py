"""Check the keys of progressive training: patch and batch sizes that change over the iterations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from safmn.data.stages import LISTS
from safmn.options.problems import Problems
from safmn.options.typed import is_whole
from safmn.options.types import OptionFile


def check_stages(file: OptionFile, problems: Problems) -> None:
    """Check the keys of progressive training."""
    section = file.datasets.get("train", {})
    where = ("datasets", "train")
    lists = {key: section[key] for key in LISTS if isinstance(section.get(key), list) and section[key]}
    if not lists:
        return
    if "iters" not in lists:
        problems.add((*where, next(iter(lists))), "needs `iters`: the number of iterations of each stage")
        return
    count = len(lists["iters"])
    for key, values in lists.items():
        if len(values) != count:
            problems.add((*where, key), f"has {len(values)} items, iters {count}; they must be equally many")
    limits = {"gt_sizes": section.get("gt_size") or file.gt_size, "mini_batch_sizes": section.get("batch_size_per_gpu")}
    for key, limit in limits.items():
        largest = max(filter(is_whole, lists.get(key, [])), default=0)
        if is_whole(limit) and largest > limit:
            name = {"gt_sizes": "gt_size", "mini_batch_sizes": "batch_size_per_gpu"}[key]
            problems.warn((*where, key), f"go up to {largest}, but {name}, the upper limit, is {limit}")
    for number, size in enumerate(lists.get("gt_sizes", [])):
        if is_whole(size) and size % file.scale:
            problems.add((*where, "gt_sizes", number), f"{size} is not a multiple of the scale, {file.scale}")
    if file.train is not None:
        if file.train.cuda_graph:
            problems.add(("train", "cuda_graph"), "records batches of one size; it does not work with iters")
        _warn_of_late_stages(lists["iters"], file.train.total_iter, problems)


def _warn_of_late_stages(iters: Sequence[Any], total: int, problems: Problems) -> None:
    if not all(map(is_whole, iters)):
        return
    reached = sum(1 for start in itertools.accumulate(iters[:-1], initial=0) if start < total)
    if reached < len(iters):
        text = f"total_iter, {total}, ends in stage {reached} of {len(iters)}"
        problems.warn(("datasets", "train", "iters"), text)
