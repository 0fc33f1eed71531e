"""FID, KID and CMMD: how far a set of images is from a set of real ones, by the features of a network.

Images need no counterpart in the other set. They look at RGB. The networks come from torchmetrics with torch-fidelity
(both Apache-2.0) or from pyiqa (no commercial use). Their weights are never downloaded unless ``fetch`` is true.
"""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from tqdm import tqdm

from safmn.errors import DataError
from safmn.metrics.learned import Package, missing, versions
from safmn.metrics.set_distances import frechet, gaussian_mmd, polynomial_mmd
from safmn.metrics.set_metric import SetMetric
from safmn.registry import METRIC_REGISTRY
from safmn.value_types import Array, NotNegative

logger = logging.getLogger(__name__)


class _FeatureDistance(SetMetric):
    """A distance of two sets of feature vectors, one for each image or patch."""

    kind: ClassVar[Literal["inception", "clip"]] = "inception"
    version = staticmethod(versions)

    def __init__(self, package: str, patch: int, reference: str | None, fetch: bool) -> None:
        self._package, self._patch, self._reference, self._fetch = package, patch, reference, fetch

    @property
    def needs_gt(self) -> bool:
        """See :class:`SetMetric`."""
        return self._reference is None

    def samples(self, image: Array) -> Array:
        """Return the features of an image or of its patches: float32 (n, features).

        Raises:
            OptionError: the package or its weights are missing.
            DataError: the image is smaller than a patch.
        """
        from safmn.metrics.feature_networks import described, network

        describe = network(self.kind, self._package, self._fetch, type(self).__name__)
        return described(list(_patches(_rgb8(image), self._patch)), describe)

    def value(self, made: Array, gt: Array | None) -> float:
        """Return the distance; NaN for fewer than two images or patches."""
        real = gt if self._reference is None else self._of_folder()
        assert real is not None
        _warn_if_few(type(self).__name__, min(len(made), len(real)), made.shape[1])
        return self.distance(made, real)

    @abstractmethod
    def distance(self, made: Array, real: Array) -> float:
        """Return the distance of two sets of features, (n, features) and (m, features)."""

    def _of_folder(self) -> Array:
        """Return the features of the images in the folder ``reference``."""
        from safmn.imaging import list_images, read_rgb, to_levels, to_tensor

        paths = list_images(str(self._reference))
        shown = tqdm(paths, desc=f"{type(self).__name__}, {self._reference}", unit="image", leave=False, disable=None)
        found = []
        for path in shown:
            rgb = to_levels(to_tensor(read_rgb(path)), 8)
            found.append(self.samples(rgb[..., ::-1]))
        return np.concatenate(found)

    @staticmethod
    def missing(section: Mapping[str, Any]) -> str | None:
        """Return the sentence that says how to install what a section needs; None if it is installed."""
        package = section.get("package", "torchmetrics")
        packages = ("torchmetrics", "torch_fidelity") if package == "torchmetrics" else (package,)
        return next((sentence for each in packages if (sentence := missing(each)) is not None), None)


@METRIC_REGISTRY.register()
class FID(_FeatureDistance):
    """Fréchet Inception distance of the set to the GT images (Heusel et al., NeurIPS 2017): lower is better.

    With few images it is far too large, and it depends on their number. Compare only values of equal numbers of images.

    Args:
        package: ``torchmetrics`` (resizes as the original FID) or ``pyiqa`` (as clean-fid; no commercial use).
        patch: Side of the square patches that are compared; 0: whole images, shrunk to 299x299, which hides details.
        reference: Folder of real images to compare with, instead of the GT images; they need no counterparts.
        fetch: Download weights that are missing.
    """

    def __init__(
        self,
        package: Package = "torchmetrics",
        patch: NotNegative = 0,
        reference: str | None = None,
        fetch: bool = False,
    ) -> None:
        super().__init__(package, patch, reference, fetch)

    def distance(self, made: Array, real: Array) -> float:
        """See :func:`safmn.metrics.set_distances.frechet`."""
        return frechet(made, real)


@METRIC_REGISTRY.register()
class KID(_FeatureDistance):
    """Kernel Inception distance of the set to the GT images (Bińkowski et al., ICLR 2018): lower is better.

    It is unbiased, so that it suits small sets better than FID. It may be slightly negative.

    Args:
        package: ``torchmetrics`` (resizes as the original FID) or ``pyiqa`` (as clean-fid; no commercial use).
        patch: Side of the square patches that are compared; 0: whole images, shrunk to 299x299, which hides details.
        reference: Folder of real images to compare with, instead of the GT images; they need no counterparts.
        fetch: Download weights that are missing.
    """

    def __init__(
        self,
        package: Package = "torchmetrics",
        patch: NotNegative = 0,
        reference: str | None = None,
        fetch: bool = False,
    ) -> None:
        super().__init__(package, patch, reference, fetch)

    def distance(self, made: Array, real: Array) -> float:
        """See :func:`safmn.metrics.set_distances.polynomial_mmd`."""
        return polynomial_mmd(made, real)


@METRIC_REGISTRY.register()
class CMMD(_FeatureDistance):
    """CLIP maximum mean discrepancy of the set to the GT images (Jayasumana et al., CVPR 2024): lower is better.

    Args:
        package: ``pyiqa`` (no commercial use), which has the network.
        patch: Side of the square patches that are compared; 0: whole images, resized to 336x336.
        reference: Folder of real images to compare with, instead of the GT images; they need no counterparts.
        fetch: Download weights that are missing.
    """

    kind = "clip"

    def __init__(
        self,
        package: Literal["pyiqa"] = "pyiqa",
        patch: NotNegative = 0,
        reference: str | None = None,
        fetch: bool = False,
    ) -> None:
        super().__init__(package, patch, reference, fetch)

    def distance(self, made: Array, real: Array) -> float:
        """See :func:`safmn.metrics.set_distances.gaussian_mmd`."""
        return gaussian_mmd(made, real)

    @staticmethod
    def missing(section: Mapping[str, Any]) -> str | None:
        """See :class:`FID`."""
        return missing("pyiqa")


def _rgb8(image: Array) -> Array:
    """Return a BGR or grey image with values in [0, 255] as uint8 (H, W, 3) RGB."""
    height, width = image.shape[:2]
    channels = image.reshape(height, width, -1)[..., 2::-1]  # RGB, without alpha; grey stays one channel
    rounded = channels if channels.dtype == np.uint8 else channels.round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rounded, (height, width, 3)))


def _patches(image: Array, side: int) -> Iterator[Array]:
    """Yield the whole image, or its square patches side by side, from the middle of what does not divide evenly.

    Raises:
        DataError: the image is smaller than a patch.
    """
    height, width = image.shape[:2]
    if not side:
        yield image
        return
    if min(height, width) < side:
        raise DataError(f"an image of {width}x{height} has no patch of {side}x{side}; choose a smaller patch, or 0")
    for top in range(height % side // 2, height - side + 1, side):
        for left in range(width % side // 2, width - side + 1, side):
            yield image[top : top + side, left : left + side]


@functools.cache
def _warn_if_few(metric: str, samples: int, features: int) -> None:
    """Say once that a set is too small for a value that means something."""
    if samples < 2:
        logger.warning("%s needs at least two images or patches of each set; there is %d", metric, samples)
    elif samples <= features and metric == "FID":
        text = "FID of %d images or patches: below %d it is far too large and depends on their number; see KID"
        logger.warning(text, samples, features + 1)
