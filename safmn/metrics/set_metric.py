"""Metrics of a whole set of images, such as FID: one value for the set instead of one for each image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from safmn.errors import OptionError
from safmn.registry import METRIC_REGISTRY, find
from safmn.value_types import Array


class SetMetric(ABC):
    """Base of metrics of whole sets. Each image becomes samples, and two sets of samples are compared.

    The constructor's arguments are the keys of its section of the option file.

    Attributes:
        better: which values are better.
    """

    better: ClassVar[Literal["higher", "lower"]] = "lower"

    @property
    def needs_gt(self) -> bool:
        """Whether the set is compared with GT images; without them, the metric is left out."""
        return True

    @abstractmethod
    def samples(self, image: Array) -> Array:
        """Return the samples of one image: (n, features).

        Args:
            image: (H, W, C) BGR, or one channel, values in [0, 255].
        """

    @abstractmethod
    def value(self, made: Array, gt: Array | None) -> float:
        """Return the metric; NaN if there are too few samples.

        Args:
            made: samples of all images of the network, (n, features).
            gt: samples of all GT images, (m, features); None if there are none.
        """


def set_metric_of(section: Mapping[str, Any]) -> type[SetMetric] | None:
    """Return the class of the metric of sets that a section of an option file names; None for other metrics."""
    try:
        component = find(METRIC_REGISTRY, section["type"])
    except (OptionError, KeyError):
        return None
    return component if isinstance(component, type) and issubclass(component, SetMetric) else None
