"""Run a network on a test set and score its outputs, for ``safmn test`` and for validation."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from safmn.archs.peers import InForm
from safmn.data.workers import explain_death
from safmn.errors import DataError, UserError
from safmn.evaluation.applying import WHOLE, Applying, in_whole_windows
from safmn.imaging import to_levels, to_uint8, write_image
from safmn.imaging.file_names import image_name
from safmn.inference.guard import Guard
from safmn.metrics.fidelity import calculate_psnr, calculate_ssim
from safmn.own_code import described
from safmn.registry import METRIC_REGISTRY, find
from safmn.runtime.agreement import raise_together
from safmn.runtime.distributed import on_all_ranks
from safmn.runtime.execution import Execution, Precision, comparable_convolutions
from safmn.runtime.random_state import global_generators, named_rng
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
        per_image: image (name of the LQ file without ending) -> metric -> value, in the order of the data set.
        mean: metric -> mean over the images.
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
        metrics: name of a metric -> its section of the option file: ``type`` is a registered function, the other keys
            are its arguments. It gets ``img`` and ``img2``, uint8 (H, W, C) BGR, or float64 with values in [0, 255] if
            the item says ``bits: 16``. Without GT, metrics that need
            ``img2`` are left out with a warning.
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
    draws = _Draws(seed, name, torch.device(device))
    scorer = _Scorer(name, metrics, None if save_dir is None else Path(save_dir), suffix, _lq_paths(dataset), draws)
    execution = Execution(torch.device(device), precision)
    forward = _Forward(network, name, execution, draws, applying, count_garbage)
    indices = range(rank, len(dataset), world_size)
    hidden = None if progress and rank == 0 else True
    outcome: list[_Score] | Exception
    with tqdm(total=len(indices), desc=one_line(name), unit="image", leave=False, disable=hidden) as bar:
        try:
            with _in_eval_mode(network), comparable_convolutions():
                outcome = list(_shown(_score_all(forward, dataset, indices, scorer), bar, on_image))
        except Exception as error:  # any error must reach the other ranks, which wait for this one
            outcome = error
    return _collect(name, _gather(outcome, world_size), start)


def check_first_pair(dataset: Any, name: str, scale: int) -> None:
    """Refuse, before a run begins, a set whose first GT image is not ``scale`` times its LQ image.

    Raises:
        DataError: the sizes do not fit (the message names the set and both images) or an image cannot be read.
    """
    if not len(dataset):
        return
    item = _item(dataset, 0, _Draws(0, name, torch.device("cpu")))
    if item.get("gt") is None:
        return
    height, width = (side * scale for side in item["lq"].shape[-2:])
    try:
        _matching(to_uint8(item["gt"]), np.empty((height, width, 1), np.uint8), item)
    except DataError as error:
        raise DataError(f"data set {name!r}: {error}") from error


@dataclass(frozen=True)
class _Score:
    index: int
    image: str
    path: str
    values: dict[str, float]
    garbage: int


class _Draws:
    """Makes the random draws of a user's code a function of the seed, the set and the image."""

    def __init__(self, seed: int, set_name: str, device: torch.device) -> None:
        self.seed = seed
        self.set_name = set_name
        self.device = device
        self._generators = threading.Lock()  # global generators: the reading, network and scoring threads take turns

    @contextlib.contextmanager
    def of(self, owner: Any, index: int, what: str) -> Iterator[None]:
        """Seed the global generators while ``owner``, a user's data set, network or metric, processes an image.

        The code of SAFMN and BasicSR's metrics do not use these generators, so nothing is done for them.
        """
        module = getattr(owner if inspect.isfunction(owner) else type(owner), "__module__", "")
        if module.startswith(("safmn.", "basicsr.metrics.")):
            yield
            return
        rng = named_rng(self.seed, what, self.set_name, index)
        with self._generators, global_generators(rng, self.device):
            yield


class _Output(NamedTuple):
    """The network's result for one item.

    Attributes:
        image: (H, W, C) RGB, uint8, or uint16 if the item's files have 16 bits (``bits``).
        garbage: how many of its pixels the guard would replace.
        exact: float32 (H, W, C) RGB in [0, 255], neither rounded nor clamped, from a network that gives Y; else None.
    """

    image: np.ndarray
    garbage: int = 0
    exact: np.ndarray | None = None


class _Forward:
    """Runs the network on one item, ``lq``, float (C, h, w) in [0, 1]."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        set_name: str,
        execution: Execution,
        draws: _Draws,
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

    def __call__(self, index: int, item: Mapping[str, Any]) -> _Output:
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
        if not torch.isfinite(output).all():
            logger.warning("the network's output for %s holds NaN or Inf: its scores are meaningless", item["lq_path"])
        garbage = self._garbage(lq, images) if self._count_garbage else 0
        return _Output(to_levels(output, _bits(item)), garbage, self._exact(output))

    def _exact(self, output: Tensor) -> np.ndarray | None:
        """Return (C, H, W) as (H, W, C) in [0, 255], unrounded, if the network gives Y.

        The field rounds RGB outputs to 8 bits before it measures their Y, but not the Y of networks that give only it.
        """
        network = bare(self.network)
        if not isinstance(network, InForm) or network.form.channels != "Y":
            return None
        return (output * 255).movedim(0, -1).contiguous().cpu().numpy()

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


def _item(dataset: Any, index: int, draws: _Draws) -> Mapping[str, Any]:
    """Return an item of a data set; add ``lq_path`` if it has none.

    Raises:
        DataError: the data set (maybe a user's) fails on the item or returns a wrong one; the message names it.
    """
    name = draws.set_name
    try:
        with draws.of(dataset, index, "data"):
            item = dataset[index]
        if not torch.is_tensor(item["lq"]) or item["lq"].ndim != 3:
            raise TypeError("its lq is not a tensor (C, h, w)")
    except (UserError, OSError, *OUT_OF_MEMORY):
        raise
    except Exception as error:
        raise DataError(f"data set {name!r} fails on item {index}: {described(error)}") from error
    return item if "lq_path" in item else {**item, "lq_path": f"{name}_{index:04d}"}


def _score_all(forward: _Forward, dataset: Any, indices: Sequence[int], scorer: _Scorer) -> Iterator[_Score]:
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

        def score(index: int, item: Future[Mapping[str, Any]], output: Future[_Output] | None) -> Future[_Score]:
            made = forward(index, item.result()) if output is None else output.result()
            return scoring.submit(scorer, index, item.result(), *made)

        running: deque[_Running] = deque()
        waiting: deque[Future[_Score]] = deque()
        for index in indices:
            running.append(start(index))
            if len(running) > at_once:
                waiting.append(score(*running.popleft()))
            if len(waiting) > _SCORES_WAITING:
                yield waiting.popleft().result()
        waiting.extend(score(*each) for each in running)
        yield from (each.result() for each in waiting)


_Running: TypeAlias = "tuple[int, Future[Mapping[str, Any]], Future[_Output] | None]"


@contextlib.contextmanager
def _threads(name: str, count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; when the block ends by an error, what has not begun is not begun any more."""
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _shown(
    scores: Iterator[_Score], bar: tqdm[Any], on_image: Callable[[int, Mapping[str, float]], None] | None
) -> Iterator[_Score]:
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


@dataclass(frozen=True)
class _Metric:
    function: Callable[..., Any]
    arguments: dict[str, Any]

    @property
    def needs_reference(self) -> bool:
        parameter = inspect.signature(self.function).parameters.get("img2")
        return parameter is not None and parameter.default is inspect.Parameter.empty

    @property
    def takes_exact_y(self) -> bool:
        """Whether this is PSNR or SSIM of Y, which take images of any type."""
        return self.function in (calculate_psnr, calculate_ssim) and bool(self.arguments.get("test_y_channel"))


class _Scorer:
    """Saves output images and computes their metrics."""

    def __init__(
        self,
        set_name: str,
        metrics: Mapping[str, Mapping[str, Any]],
        save_dir: Path | None,
        suffix: str | None,
        paths: Sequence[str],
        draws: _Draws,
    ) -> None:
        self.draws = draws
        self.set_name = set_name
        self._images = Counter(name for path in paths for name in {image_name(path), Path(path).name})
        self.save_dir = save_dir
        self.ending = f"_{suffix}.png" if suffix else ".png"
        # `better` is for validation (higher or lower); it is not an argument of the function
        self.metrics = {
            name: _Metric(
                find(METRIC_REGISTRY, section["type"]),
                {k: v for k, v in section.items() if k not in ("type", "better")},
            )
            for name, section in metrics.items()
        }
        self._warned = False
        self._saved: set[str] = set()

    def __call__(
        self,
        index: int,
        item: Mapping[str, Any],
        output: np.ndarray,
        garbage: int = 0,
        exact: np.ndarray | None = None,
    ) -> _Score:
        """Save and score the result for one item; the arguments after ``item`` are those of :class:`_Output`."""
        path = str(item["lq_path"])
        image = image_name(path)
        if self.save_dir is not None:
            write_image(self.save_dir / self._file_name(index, image, Path(path).name), output)
        images = {"img": _bgr(output)}
        if item.get("gt") is not None:
            images["img2"] = _bgr(_matching(to_levels(item["gt"], _bits(item)), output, item))
        values = self._measure(index, path, images, None if exact is None else _bgr(exact))
        return _Score(index, image, path, values, garbage)

    def _file_name(self, index: int, image: str, file: str) -> str:
        """Return a unique file name: ``a``; with ending (``a.jpg``) if ``a.png`` exists, too; or with the index."""
        names = [image, file, f"{image}_{index:04d}"]
        unique = [
            name for name in names if self._images.get(name, 1) == 1 and f"{name}{self.ending}" not in self._saved
        ]
        name = f"{(unique or names[-1:])[0]}{self.ending}"
        self._saved.add(name)
        return name

    def _measure(
        self, index: int, path: str, images: Mapping[str, np.ndarray], exact: np.ndarray | None
    ) -> dict[str, float]:
        """Return the value of each metric; our metrics of Y get the output of networks that give Y unrounded."""
        values = {}
        for name, metric in self.metrics.items():
            if metric.needs_reference and "img2" not in images:
                self._warn_once(name)
                continue
            try:
                shown = images if exact is None or not metric.takes_exact_y else {**images, "img": exact}
                with self.draws.of(metric.function, index, f"metric {name}"), torch.no_grad():
                    values[name] = float(metric.function(**shown, **metric.arguments))
            except UserError as error:
                raise type(error)(f"data set {self.set_name!r}, {path}: metric {name!r}: {error}") from error
            except Exception as error:  # a user's metric may raise any exception
                raise DataError(
                    f"data set {self.set_name!r}, {path}: metric {name!r} failed on an image of {_size(images['img'])}:"
                    f" {described(error)}"
                ) from error
        return values

    def _warn_once(self, metric: str) -> None:
        if not self._warned:
            logger.warning("data set %r has no GT images: metrics such as %r are left out", self.set_name, metric)
            self._warned = True


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _bits(item: Mapping[str, Any]) -> int:
    """Return the depth of an item's files: 16 if the data set says so, else 8."""
    return 16 if item.get("bits") == 16 else 8


def _bgr(image: np.ndarray) -> np.ndarray:
    """Convert RGB (H, W, 3) to BGR, the order of BasicSR's metrics; grey stays, and an alpha channel stays last.

    16 bits become float64 in [0, 255], so that metrics need not know the depth.
    """
    ordered = np.ascontiguousarray(np.concatenate((image[..., 2::-1], image[..., 3:]), axis=-1))
    return ordered / 257.0 if image.dtype == np.uint16 else ordered


def _matching(gt: np.ndarray, output: np.ndarray, item: Mapping[str, Any]) -> np.ndarray:
    """Crop the GT to the size of the output; it may have up to ``scale`` - 1 more rows and columns.

    Raises:
        DataError: the sizes do not fit; the message names both images.
    """
    height, width = output.shape[:2]
    lq_height, lq_width = item["lq"].shape[-2:]
    scale = max(1, height // lq_height)
    excess = gt.shape[0] - height, gt.shape[1] - width
    if not all(0 <= pixels < scale for pixels in excess):
        raise DataError(
            f"{item.get('gt_path', 'the GT image')} is {gt.shape[1]}x{gt.shape[0]}, but {item['lq_path']}"
            f" ({lq_width}x{lq_height}) upscaled by {scale} is {width}x{height}: they are not a pair at this scale"
        )
    return gt[:height, :width]


def _gather(outcome: list[_Score] | Exception, world_size: int) -> list[_Score]:
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


def _collect(name: str, scores: Sequence[_Score], start: float) -> SetResult:
    per_image: dict[str, dict[str, float]] = {}
    garbage: dict[str, int] = {}
    for score in scores:
        if score.image in per_image:
            logger.warning("data set %r: two images have the name %r: %s", name, score.image, score.path)
        image = score.path if score.image in per_image else score.image
        per_image[image] = score.values
        if score.garbage:
            garbage[image] = score.garbage
    values: dict[str, list[float]] = {}
    for score in scores:
        for metric, value in score.values.items():
            values.setdefault(metric, []).append(value)
    mean = {metric: math.fsum(each) / len(each) for metric, each in values.items()}
    return SetResult(name, per_image, mean, time.perf_counter() - start, garbage)
