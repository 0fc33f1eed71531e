"""Where a run's curves and images go besides the record: TensorBoard, Weights & Biases, MLflow.

Each tracker is a module with a class that follows :class:`Tracker`. A resumed run goes on in the same curves: the
identifiers that Weights & Biases and MLflow gave to the run are kept in ``trackers.json`` in the run's folder.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from safmn.errors import UserError, first_line
from safmn.options import Options
from safmn.system.files import write_atomically
from safmn.value_types import Array

logger = logging.getLogger(__name__)

Values: TypeAlias = dict[str, bool | int | float | str]


class Tracker(Protocol):
    """Stores the curves and images of one run."""

    name: str

    def scalar(self, tag: str, value: float, iteration: int) -> None:
        """Add a point to the curve ``tag``."""
        ...

    def image(self, tag: str, image: Array, iteration: int) -> None:
        """Add an image, uint8 (H, W, 3) RGB."""
        ...

    def close(self, *, finished: bool) -> None:
        """Write everything. ``finished`` is whether the run did its last iteration."""
        ...


def open_trackers(options: Options, root: Path, *, start: int) -> list[Tracker]:
    """Open the trackers that an option file asks for.

    Args:
        root: the run's folder.
        start: iteration from which the run continues.

    Raises:
        UserError: a tracker cannot be opened. The message names its key.
    """
    from safmn.training.trackers.tensorboard import TensorBoard

    section = options.logger
    opened: list[Tracker] = [TensorBoard(options, root, start=start)] if section.use_tb_logger else []
    # as in BasicSR, a debug run is not sent anywhere
    if section.wandb.project is not None and not options.debug:
        opened.append(_Forgiving(_open("wandb", "WeightsAndBiases", options, root)))
    if section.mlflow.experiment is not None and not options.debug:
        opened.append(_Forgiving(_open("mlflow", "MLflow", options, root)))
    return opened


def _open(module: str, kind: str, options: Options, root: Path) -> Tracker:
    """Open a tracker; its class is imported only now, because its package is optional."""
    build = getattr(importlib.import_module(f"safmn.training.trackers.{module}"), kind)
    try:
        tracker: Tracker = build(options, root)
        return tracker
    except UserError:
        raise
    except Exception as error:  # of a server, an account, a database
        raise UserError(f"{options.source}: logger.{module}: {type(error).__name__}: {first_line(error)}") from error


class _Forgiving:
    """A tracker whose failure does not end the run: a server may be gone for a while in a long run."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker: Tracker | None = tracker
        self.name = tracker.name

    def scalar(self, tag: str, value: float, iteration: int) -> None:
        """See :class:`Tracker`."""
        self._call(lambda tracker: tracker.scalar(tag, value, iteration))

    def image(self, tag: str, image: Array, iteration: int) -> None:
        """See :class:`Tracker`."""
        self._call(lambda tracker: tracker.image(tag, image, iteration))

    def close(self, *, finished: bool) -> None:
        """See :class:`Tracker`."""
        self._call(lambda tracker: tracker.close(finished=finished))

    def _call(self, call: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            call(self.tracker)
        except Exception as error:
            self.tracker = None
            logger.warning(
                "%s failed and gets nothing more from this run, which goes on (a resume tries again): %s: %s",
                *(self.name, type(error).__name__, first_line(error)),
            )


def flat(options: Mapping[str, Any]) -> Values:
    """Return the options of a file as hyper-parameters: key path -> plain value. Keys without a value are left out.

    >>> flat({"scale": 4, "train": {"optim_g": {"lr": 0.001}, "losses": [{"type": "L1Loss"}]}, "path": None})
    {'scale': 4, 'train.optim_g.lr': 0.001, 'train.losses': '[{"type": "L1Loss"}]'}
    """
    found: Values = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{below}": each for below, each in flat(value).items()}
        elif isinstance(value, (bool, int, float, str)):
            found[str(key)] = value
        elif value is not None:
            found[str(key)] = json.dumps(value, default=str)
    return found


def metric_tags(options: Options) -> list[str]:
    """Return the tags of the validation curves of a run."""
    metrics = options.val.metrics if options.val is not None else {}
    sets = [section.get("name", key) for key, section in options.datasets.items() if key.split("_")[0] == "val"]
    return [f"metrics/{name}/{metric}" for name in sets for metric in metrics]


def known_id(root: Path, tracker: str) -> str | None:
    """Return the identifier that a tracker gave to this run before; None if it is new."""
    try:
        found = json.loads((root / _FILE).read_text(encoding="utf-8")).get(tracker)
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def keep_id(root: Path, tracker: str, identifier: str) -> None:
    """Keep the identifier that a tracker gave to this run."""
    try:
        known = json.loads((root / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    write_atomically(root / _FILE, json.dumps({**known, tracker: identifier}, indent=1) + "\n")


_FILE = "trackers.json"
