"""Save the outputs of a network and compute their metrics, for :func:`safmn.evaluation.scoring.evaluate`."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from safmn.errors import DataError, UserError
from safmn.imaging import to_levels, write_image
from safmn.imaging.file_names import image_name
from safmn.metrics.fidelity import calculate_psnr, calculate_ssim, y_of_bgr
from safmn.metrics.set_metric import SetMetric, set_metric_of
from safmn.own_code import defined_at, described
from safmn.registry import METRIC_REGISTRY, find
from safmn.runtime.random_state import global_generators, named_rng

_NIQE_BLOCK, _NIQE_FEW = 96, 6  # pixels along a side; blocks up to which a crop border may leave fewer than two
logger = logging.getLogger(__name__)


class Samples(NamedTuple):
    """What a metric of whole sets needs of one image, (n, features): of the output, and of the GT if there is one."""

    made: np.ndarray
    gt: np.ndarray | None


@dataclass(frozen=True)
class Score:
    """What was measured of one image.

    Attributes:
        index: its place in the data set.
        image: its name.
        path: its LQ file.
        values: metric -> value.
        garbage: number of output pixels that the guard would replace.
        samples: metric of whole sets -> what it needs of this image.
    """

    index: int
    image: str
    path: str
    values: dict[str, float]
    garbage: int
    samples: dict[str, Samples]


class Draws:
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


class Output(NamedTuple):
    """The network's result for one item.

    Attributes:
        image: (H, W, C) RGB, uint8, or uint16 if the item's files have 16 bits (``bits``).
        garbage: how many of its pixels the guard would replace.
        exact: float32 (H, W, C) RGB, not rounded, with Y in [0, 255], from a network that gives Y; else None.
    """

    image: np.ndarray
    garbage: int = 0
    exact: np.ndarray | None = None


@dataclass(frozen=True)
class _Metric:
    function: Callable[..., Any]
    arguments: dict[str, Any]

    @property
    def needs_reference(self) -> bool:
        parameter = inspect.signature(self.function).parameters.get("img2")
        return parameter is not None and parameter.default is inspect.Parameter.empty

    def takes(self, image: str) -> bool:
        """Return whether it gets an image: ``lq`` only by that name, the others also by ``**kwargs``."""
        parameters = inspect.signature(self.function).parameters
        any_name = image != "lq" and any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        return image in parameters or any_name

    @property
    def takes_exact_y(self) -> bool:
        """Whether this is PSNR or SSIM of Y, which take images of any type."""
        usual = self.arguments.get("input_order", "HWC") == "HWC"
        return (
            usual and self.function in (calculate_psnr, calculate_ssim) and bool(self.arguments.get("test_y_channel"))
        )


class Scorer:
    """Saves output images and computes their metrics."""

    def __init__(
        self,
        set_name: str,
        metrics: Mapping[str, Mapping[str, Any]],
        save_dir: Path | None,
        suffix: str | None,
        paths: Sequence[str],
        draws: Draws,
    ) -> None:
        self.draws = draws
        self.set_name = set_name
        self._images = Counter(name for path in paths for name in {image_name(path), Path(path).name})
        self.save_dir = save_dir
        self.ending = f"_{suffix}.png" if suffix else ".png"
        self.metrics: dict[str, _Metric] = {}
        self.of_sets: dict[str, SetMetric] = {}
        self._order = list(metrics)
        for name, section in metrics.items():
            # `better` is for validation (higher or lower); it is not an argument of the function
            arguments = {k: v for k, v in section.items() if k not in ("type", "better")}
            if (kind := set_metric_of(section)) is not None:
                self.of_sets[name] = kind(**arguments)
            else:
                self.metrics[name] = _Metric(find(METRIC_REGISTRY, section["type"]), arguments)
        self._warned = False
        self._saved: set[str] = set()

    def __call__(
        self,
        index: int,
        item: Mapping[str, Any],
        output: np.ndarray,
        garbage: int = 0,
        exact: np.ndarray | None = None,
    ) -> Score:
        """Save and score the result for one item; the arguments after ``item`` are those of :class:`Output`."""
        path = str(item["lq_path"])
        image = image_name(path)
        if self.save_dir is not None:
            write_image(self.save_dir / self._file_name(index, image, Path(path).name), output)
        images = {"img": _bgr(output)}
        if item.get("gt") is not None:
            images["img2"] = _bgr(matching(to_levels(item["gt"], bits(item)), output, item))
        if any(metric.takes("lq") for metric in self.metrics.values()):
            images["lq"] = _bgr(to_levels(item["lq"], bits(item)))
        values = self._measure(index, path, images, None if exact is None else _bgr(exact))
        return Score(index, image, path, values, garbage, self._samples(index, path, images))

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
        luma: dict[str, np.ndarray] = {}
        for name, metric in self.metrics.items():
            if metric.needs_reference and "img2" not in images:
                self._warn_once(name)
                continue
            if metric.takes_exact_y and not luma:  # for PSNR and SSIM together
                shown = images if exact is None else {**images, "img": exact}
                luma = {kind: y_of_bgr(image) for kind, image in shown.items()}
            known = luma if metric.takes_exact_y else images
            shown = {kind: image for kind, image in known.items() if metric.takes(kind)}
            with self._explained(name, metric.function, index, path, images["img"]):
                values[name] = _number(metric.function(**shown, **metric.arguments), defined_at(metric.function))
        return values

    def _samples(self, index: int, path: str, images: Mapping[str, np.ndarray]) -> dict[str, Samples]:
        """Return what the metrics of whole sets need of an image."""
        found = {}
        for name, metric in self.of_sets.items():
            if metric.needs_gt and "img2" not in images:
                self._warn_once(name)
                continue
            with self._explained(name, type(metric), index, path, images["img"]):
                gt = metric.samples(images["img2"]) if metric.needs_gt else None
                found[name] = Samples(metric.samples(images["img"]), gt)
        return found

    @contextlib.contextmanager
    def _explained(self, name: str, owner: Any, index: int, path: str, image: np.ndarray) -> Iterator[None]:
        """Context in which a metric computes. Its errors name the set and the image; a user's may raise any."""
        try:
            with self.draws.of(owner, index, f"metric {name}"), torch.no_grad():
                yield
        except UserError as error:
            raise type(error)(f"data set {self.set_name!r}, {path}: metric {name!r}: {error}") from error
        except Exception as error:
            raise DataError(
                f"data set {self.set_name!r}, {path}: metric {name!r} failed on an image of {_size(image)}:"
                f" {_too_small_for(owner, image) or described(error)}"
            ) from error

    def means(self, scores: Sequence[Score]) -> dict[str, float]:
        """Return the mean of each metric over the images, and the value of each metric of whole sets.

        A metric with values that are not finite gets one warning.

        Raises:
            DataError: a metric of whole sets, maybe a user's, fails.
        """
        found: dict[str, float] = {}
        for name in self._order:
            if name in self.of_sets:
                samples = [score.samples[name] for score in scores if name in score.samples]
                found |= {name: self._of_set(name, samples)} if samples else {}
            elif values := [score.values[name] for score in scores if name in score.values]:
                found[name] = mean_of(values)
            self._warn_about_values(name, scores, found.get(name, 0.0))
        return found

    def _warn_about_values(self, metric: str, scores: Sequence[Score], total: float) -> None:
        """Say which value of a metric is no finite number: that of its first such image, or else that of the set."""
        odd = [score for score in scores if not math.isfinite(score.values.get(metric, 0.0))]
        where = f"data set {self.set_name!r}"
        if odd:
            value, few = odd[0].values[metric], f"{len(odd)} of {len(scores)} images"
            equal = " (the output equals the GT image)" if value == math.inf and self._is_psnr(metric) else ""
            logger.warning(
                "%s, %s: metric %r is %g%s, here and in all for %s; the mean of the set is %g",
                where, odd[0].path, metric, value, equal, few, total,
            )  # fmt: skip
        elif not math.isfinite(total) and len(scores) > 1:  # of one image it is no fault: the check before training
            logger.warning("%s: metric %r of the whole set is %g", where, metric, total)

    def _is_psnr(self, metric: str) -> bool:
        return metric in self.metrics and self.metrics[metric].function is calculate_psnr

    def _of_set(self, name: str, samples: Sequence[Samples]) -> float:
        metric = self.of_sets[name]
        gts = [each.gt for each in samples if each.gt is not None]
        try:
            with self.draws.of(type(metric), 0, f"metric {name}"), torch.no_grad():
                made = np.concatenate([each.made for each in samples])
                return float(metric.value(made, np.concatenate(gts) if gts else None))
        except UserError as error:
            raise type(error)(f"data set {self.set_name!r}: metric {name!r}: {error}") from error
        except Exception as error:
            raise DataError(f"data set {self.set_name!r}: metric {name!r} failed: {described(error)}") from error

    def _warn_once(self, metric: str) -> None:
        if not self._warned:
            logger.warning("data set %r has no GT images: metrics such as %r are left out", self.set_name, metric)
            self._warned = True


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of at least one value; infinity of both signs gives NaN."""
    finite = all(map(math.isfinite, values))
    return math.fsum(values) / len(values) if finite else sum(values) / len(values)


def _number(value: Any, place: str) -> float:
    """Return what a metric, defined at a place of the user's code, returned as a number.

    Raises:
        DataError: it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"it returns {type(value).__name__} instead of a number{place}") from None


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _too_small_for(owner: Any, image: np.ndarray) -> str | None:
    """Return why a metric of BasicSR, which does not check it, cannot measure a small image; None for others."""
    blocks = (image.shape[0] // _NIQE_BLOCK) * (image.shape[1] // _NIQE_BLOCK)
    if getattr(owner, "__name__", "") != "calculate_niqe" or blocks > _NIQE_FEW:
        return None
    return (
        f"NIQE compares blocks of {_NIQE_BLOCK}x{_NIQE_BLOCK} pixels and needs at least two of them inside the crop "
        "border: leave out small images, or the metric"
    )


def bits(item: Mapping[str, Any]) -> int:
    """Return the depth of an item's files: 16 if the data set says so, else 8."""
    return 16 if item.get("bits") == 16 else 8


def _bgr(image: np.ndarray) -> np.ndarray:
    """Convert RGB (H, W, 3) to BGR, the order of BasicSR's metrics; grey stays, and an alpha channel stays last.

    16 bits become float64 in [0, 255], so that metrics need not know the depth.
    """
    if image.ndim == 3 and image.shape[2] == 3:
        ordered: np.ndarray = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    else:
        ordered = np.ascontiguousarray(np.concatenate((image[..., 2::-1], image[..., 3:]), axis=-1))
    return ordered / 257.0 if image.dtype == np.uint16 else ordered


def matching(gt: np.ndarray, output: np.ndarray, item: Mapping[str, Any]) -> np.ndarray:
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
