"""Run a network on a test set and score its outputs, for ``safmn test`` and for validation."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from safmn.archs.peers import InForm
from safmn.archs.peers.form import with_luma_in_range
from safmn.data.workers import explain_death
from safmn.errors import DataError, UserError
from safmn.evaluation.applying import WHOLE, Applying, in_whole_windows
from safmn.evaluation.scorer import Draws, Output, Score, Scorer, bits, matching
from safmn.imaging import to_levels, to_uint8
from safmn.inference.guard import Guard
from safmn.own_code import defined_at, described
from safmn.runtime.agreement import raise_together
from safmn.runtime.distributed import on_all_ranks
from safmn.runtime.execution import Execution, Precision, comparable_convolutions
from safmn.system.console import one_line
from safmn.system.memory import OUT_OF_MEMORY, is_out_of_memory

logger = logging.getLogger(__name__)

_SCORES_WAITING = 2  # outputs that wait in memory for the scoring thread


class Interrupted(Exception):
    """Raised by ``network`` to end an evaluation early; then all ranks raise it."""


@dataclass(frozen=True)
class SetResult:
    """Scores of one set.

    Attributes:
        name: the set's name.
        per_image: image (name of the LQ file without ending) -> metric -> value, in the order of the data set. Metrics
            of whole sets have no values here.
        mean: metric -> mean over the images, or the value of a metric of whole sets.
        garbage: image -> number of output pixels that the guard (:mod:`safmn.inference.guard`) would replace, without
            images that have none. The scores are without the guard.
        seconds: wall-clock time of reading, network, scoring and saving.
    """

    name: str
    per_image: dict[str, dict[str, float]]
    mean: dict[str, float]
    seconds: float
    garbage: dict[str, int] = field(default_factory=dict)


def evaluate(
    network: Callable[[Tensor], Tensor],
    dataset: Any,
    *,
    name: str,
    metrics: Mapping[str, Mapping[str, Any]],
    device: torch.device | str,
    save_dir: Path | str | None = None,
    suffix: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
    precision: Precision = "fp32",
    seed: int = 0,
    applying: Applying = WHOLE,
    count_garbage: bool = True,
    on_image: Callable[[int, Mapping[str, float]], None] | None = None,
) -> SetResult:
    """Score ``network`` on every item of ``dataset``.

    With several ranks, rank i modulo ``world_size`` processes image i. All ranks return all results, and the numbers
    are those of a single rank. Call this on all ranks, with a network that is not wrapped for distributed training.
    TensorFloat-32 is off for the call, because it changes the third decimal of the scores on a GPU.

    Args:
        network: maps (1, C, h, w) in [0, 1] to (1, C, h * scale, w * scale). A module runs in eval mode. It may be a
            :class:`safmn.evaluation.fast_network.FastNetwork`, which computes several images at once.
        dataset: ``dataset[i]`` is a dict with ``lq`` and, if available, ``gt``: float (C, H, W) RGB in [0, 1];
            ``lq_path`` and ``gt_path``.
        name: name of the set, for the progress bar and messages.
        metrics: name of a metric -> its section of the option file: ``type`` is a registered function or
            :class:`safmn.metrics.set_metric.SetMetric`, the other keys are its arguments. A function gets ``img`` and
            ``img2``, uint8 (H, W, C) BGR, or float64 with values in [0, 255] if the item says ``bits: 16``. Without GT,
            metrics that need ``img2`` are left out with a warning.
        device: device of the network.
        save_dir: folder for the output images, ``<image>_<suffix>.png``; ``None``: do not save them.
        suffix: see ``save_dir``; ``None``: ``<image>.png``.
        rank: rank of this process.
        world_size: number of ranks.
        progress: show a progress bar (rank 0, on a terminal).
        precision: ``bf16`` and ``fp16`` run the network under autocast.
        seed: seeds the global generators of python, numpy and torch around a user's data set, network and metrics,
            with ``name`` and the index of the image, so every call on any rank draws the same.
        applying: tiles, windows and self-ensemble; by default whole images.
        count_garbage: count the pixels that the guard would replace.
        on_image: called on each rank with the index and the scores of every image of this rank, in their order.

    Raises:
        DataError: the set is empty, an image cannot be read, a GT image is not ``scale`` times its LQ image, or the
            network or a metric fails on an image.
        OSError, MemoryError, torch.OutOfMemoryError: a full disk, an unreadable folder, an image that is too large. An
            error on one rank is raised on all ranks; on the others as a RankError that names the rank.
        OptionError: a metric is not registered.
        Interrupted: the network raised it on this or another rank.
    """
    start = time.perf_counter()
    if len(dataset) == 0:
        raise DataError(f"data set {name!r} holds no images")
    draws = Draws(seed, name, torch.device(device))
    scorer = Scorer(name, metrics, None if save_dir is None else Path(save_dir), suffix, _lq_paths(dataset), draws)
    execution = Execution(torch.device(device), precision)
    forward = _Forward(network, name, execution, draws, applying, count_garbage)
    indices = range(rank, len(dataset), world_size)
    hidden = None if progress and rank == 0 else True
    outcome: list[Score] | Exception
    with tqdm(total=len(indices), desc=one_line(name), unit="image", leave=False, disable=hidden) as bar:
        try:
            with _in_eval_mode(network), comparable_convolutions():
                outcome = list(_shown(_score_all(forward, dataset, indices, scorer), bar, on_image))
        except Exception as error:  # any error must reach the other ranks, which wait for this one
            outcome = error
    return _collect(name, _gather(outcome, world_size), scorer, start)


def check_first_pair(dataset: Any, name: str, scale: int) -> None:
    """Refuse, before a run begins, a set whose first GT image is not ``scale`` times its LQ image.

    Raises:
        DataError: the sizes do not fit (the message names the set and both images) or an image cannot be read.
    """
    if not len(dataset):
        return
    item = _item(dataset, 0, Draws(0, name, torch.device("cpu")))
    if item.get("gt") is None:
        return
    height, width = (side * scale for side in item["lq"].shape[-2:])
    try:
        matching(to_uint8(item["gt"]), np.empty((height, width, 1), np.uint8), item)
    except DataError as error:
        raise DataError(f"data set {name!r}: {error}") from error


class _Forward:
    """Runs the network on one item, ``lq``, float (C, h, w) in [0, 1]."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        set_name: str,
        execution: Execution,
        draws: Draws,
        applying: Applying,
        count_garbage: bool,
    ) -> None:
        self.network = network
        self.applying = applying
        self.set_name = set_name
        self.execution = execution
        self.draws = draws
        self._count_garbage = count_garbage
        self._guard: Guard | None = None

    def __call__(self, index: int, item: Mapping[str, Any]) -> Output:
        lq = item["lq"].unsqueeze(0).to(self.execution.device)  # (1, C, h, w)
        try:
            drawn = self.draws.of(bare(self.network), index, "network")
            with drawn, explain_death(), torch.no_grad(), self.execution.autocast():
                images = self.applying(self.network, lq)  # (1, C, H, W)
        except (UserError, OSError, Interrupted, *OUT_OF_MEMORY):
            raise
        except Exception as error:  # a user's network may raise any exception
            if is_out_of_memory(error):  # torch on the CPU raises nothing more precise
                raise MemoryError(str(error)) from error
            raise DataError(
                f"data set {self.set_name!r}, {item['lq_path']}: the network {_kind(self.network)} does not take an"
                f" input of shape {tuple(lq.shape)} (images, channels, height, width): {described(error)}"
            ) from error
        if not torch.is_tensor(images) or images.ndim != 4:
            found = f"a tensor of shape {tuple(images.shape)}" if torch.is_tensor(images) else type(images).__name__
            raise DataError(f"the network {_kind(self.network)} gives {found}, not images (B, C, H, W)")
        output = images[0].float()
        # A finite sum is 20 times as fast to find. That of large values may be infinite.
        if not math.isfinite(float(output.sum())) and not torch.isfinite(output).all():
            logger.warning("the network's output for %s holds NaN or Inf: its scores are meaningless", item["lq_path"])
        garbage = self._garbage(lq, images) if self._count_garbage else 0
        return Output(to_levels(output, bits(item)), garbage, self._exact(output))

    def _exact(self, output: Tensor) -> np.ndarray | None:
        """Return (C, H, W) as (H, W, C) in [0, 255], unrounded, its Y clamped to that range, if the network gives Y.

        The field rounds RGB outputs to 8 bits before it measures their Y, but not the Y of networks that give only it.
        """
        network = bare(self.network)
        if not isinstance(network, InForm) or network.form.channels != "Y":
            return None
        return (with_luma_in_range(output[None])[0] * 255).movedim(0, -1).contiguous().cpu().numpy()

    def _garbage(self, lq: Tensor, images: Tensor) -> int:
        """Return the number of pixels that the guard would replace."""
        scale = images.shape[2] // lq.shape[2]
        if images.shape[1:] != (lq.shape[1], lq.shape[2] * scale, lq.shape[3] * scale) or lq.shape[1] not in (1, 3):
            return 0  # the guard compares the reduced output with the input, which this network does not allow
        if self._guard is None or self._guard.scale != scale:
            channels = lq.shape[1]

            def run(x: Tensor) -> Tensor:
                with (
                    self.draws.of(bare(self.network), 0, "guard"),
                    self.execution.autocast(),
                ):
                    return in_whole_windows(self.network, x[:, :channels])

            self._guard = Guard(run, scale=scale, window=8, device=lq.device, name=_kind(self.network))
        return self._guard.count(lq, images.float().clamp(0, 1))


def bare(network: Any) -> Any:
    """Return the network within its wrappers, which are no modules and have it as their attribute ``network``."""
    while not isinstance(network, nn.Module) and hasattr(network, "network"):
        network = network.network
    return network


def _kind(network: object) -> str:
    network = bare(network)
    return type(network.network if isinstance(network, InForm) else network).__name__


def _lq_paths(dataset: Any) -> list[str]:
    """Return the paths of the LQ images as far as the data set's ``pairs`` or ``paths`` list them."""
    pairs = getattr(dataset, "pairs", None)
    paths = getattr(dataset, "paths", []) if pairs is None else [getattr(pair, "lq", None) for pair in pairs]
    return [str(path) for path in paths if path is not None]


@contextlib.contextmanager
def _in_eval_mode(network: object) -> Iterator[None]:
    """Put a module into eval mode for the block; ignore other callables."""
    module = network if isinstance(network, nn.Module) and network.training else None
    if module is not None:
        module.eval()
    try:
        yield
    finally:
        if module is not None:
            module.train()


def _item(dataset: Any, index: int, draws: Draws) -> Mapping[str, Any]:
    """Return an item of a data set; add ``lq_path`` if it has none.

    Raises:
        DataError: the data set (maybe a user's) fails on the item or returns a wrong one; the message names it.
    """
    name = draws.set_name
    try:
        with draws.of(dataset, index, "data"):
            item = dataset[index]
        if not torch.is_tensor(item["lq"]) or item["lq"].ndim != 3:
            raise DataError(f"data set {name!r}{defined_at(dataset)}: lq of item {index} is not a tensor (C, h, w)")
    except (UserError, OSError, *OUT_OF_MEMORY):
        raise
    except Exception as error:
        raise DataError(f"data set {name!r} fails on item {index}: {described(error)}") from error
    return item if "lq_path" in item else {**item, "lq_path": f"{name}_{index:04d}"}


def _score_all(forward: _Forward, dataset: Any, indices: Sequence[int], scorer: Scorer) -> Iterator[Score]:
    """Yield the scores of ``indices`` in order; read the next items and score the last ones while the network runs.

    One thread reads and one scores, so data sets and metrics need not be thread-safe. The network runs in the calling
    thread, unless it says that it takes several images at once.
    """
    at_once = max(min(getattr(forward.network, "images_at_once", 1), len(indices)), 1)
    read = functools.partial(_item, dataset, draws=forward.draws)
    with _threads("read", 1) as reading, _threads("score", 1) as scoring, _threads("network", at_once) as computing:

        def start(index: int) -> _Running:
            item = reading.submit(read, index)
            output = None if at_once < 2 else computing.submit(lambda: forward(index, item.result()))
            return index, item, output

        def score(index: int, item: Future[Mapping[str, Any]], output: Future[Output] | None) -> Future[Score]:
            made = forward(index, item.result()) if output is None else output.result()
            return scoring.submit(scorer, index, item.result(), *made)

        running: deque[_Running] = deque()
        waiting: deque[Future[Score]] = deque()
        for index in indices:
            running.append(start(index))
            if len(running) > at_once:
                waiting.append(score(*running.popleft()))
            if len(waiting) > _SCORES_WAITING:
                yield waiting.popleft().result()
        waiting.extend(score(*each) for each in running)
        yield from (each.result() for each in waiting)


_Running: TypeAlias = "tuple[int, Future[Mapping[str, Any]], Future[Output] | None]"


@contextlib.contextmanager
def _threads(name: str, count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; when the block ends by an error, what has not begun is not begun any more."""
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _shown(
    scores: Iterator[Score], bar: tqdm[Any], on_image: Callable[[int, Mapping[str, float]], None] | None
) -> Iterator[Score]:
    """Yield the scores unchanged; report each, advance the progress bar and show the means so far beside it."""
    sums: dict[str, float] = {}
    for done, score in enumerate(scores, 1):
        if on_image is not None:
            on_image(score.index, score.values)
        for metric, value in score.values.items():
            sums[metric] = sums.get(metric, 0.0) + value
        bar.set_postfix({metric: f"{total / done:.4g}" for metric, total in sums.items()}, refresh=False)
        bar.update()
        yield score


def _gather(outcome: list[Score] | Exception, world_size: int) -> list[Score]:
    """Return the scores of all ranks in the order of the data set; raise an error of one rank on all ranks.

    On the other ranks it is a RankError.
    """
    if world_size == 1:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
    error = outcome if isinstance(outcome, Exception) else None
    outcomes = on_all_ranks(outcome if error is None or isinstance(error, Interrupted) else None)
    if any(isinstance(each, Interrupted) for each in outcomes):
        raise Interrupted
    raise_together(error)
    return sorted((score for each in outcomes for score in each), key=lambda score: score.index)


def _collect(name: str, scores: Sequence[Score], scorer: Scorer, start: float) -> SetResult:
    per_image: dict[str, dict[str, float]] = {}
    garbage: dict[str, int] = {}
    for score in scores:
        if score.image in per_image:
            logger.warning("data set %r: two images have the name %r: %s", name, score.image, score.path)
        image = score.path if score.image in per_image else score.image
        per_image[image] = score.values
        if score.garbage:
            garbage[image] = score.garbage
    return SetResult(name, per_image, scorer.means(scores), time.perf_counter() - start, garbage)
