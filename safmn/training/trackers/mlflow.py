"""MLflow; the curves have TensorBoard's names."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any

from safmn.options import Options
from safmn.training.trackers import flat, keep_id, known_id
from safmn.value_types import Array

_KEY = "mlflow"
_LONGEST = 500  # characters of a parameter that every kind of MLflow server takes
_FOREIGN = re.compile(r"[^\w\-./: ]")  # characters that names of metrics and parameters must not have


class MLflow:
    """Sends a run to an MLflow server, or writes it to MLflow's database."""

    name = "MLflow"

    def __init__(self, options: Options, root: Path) -> None:
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # no warning where there is no git
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        section = options.logger.mlflow
        self._client: Any = MlflowClient(tracking_uri=section.tracking_uri)
        self._last: dict[str, int] | None = None  # newest iteration of each curve of a resumed run, as far as known
        identifier = known_id(root, _KEY)
        if identifier is not None:
            with contextlib.suppress(MlflowException):  # the run was deleted, or is on another server
                self._client.get_run(identifier)
                self._client.update_run(identifier, status="RUNNING")
                self._last = {}
        if identifier is None or self._last is None:
            identifier = self._new_run(options)
            keep_id(root, _KEY, identifier)
        self._id = identifier

    def _new_run(self, options: Options) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(options.logger.mlflow.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(options.logger.mlflow.experiment)
        run = self._client.create_run(experiment, run_name=options.name)
        identifier: str = run.info.run_id
        parameters = [Param(_named(key), str(value)[:_LONGEST]) for key, value in flat(options.raw).items()]
        for first in range(0, len(parameters), 100):  # as many as a server takes at once
            self._client.log_batch(identifier, params=parameters[first : first + 100])
        return identifier

    def scalar(self, tag: str, value: float, iteration: int) -> None:
        """See :class:`~safmn.training.trackers.Tracker`. Points that a resumed run repeats are left out."""
        name = _named(tag)
        if self._last is not None:
            if name not in self._last:
                history = self._client.get_metric_history(self._id, name)
                self._last[name] = max((point.step for point in history), default=-1)
            if iteration <= self._last[name]:
                return
        self._client.log_metric(self._id, name, value, timestamp=int(time.time() * 1000), step=iteration)

    def image(self, tag: str, image: Array, iteration: int) -> None:
        """See :class:`~safmn.training.trackers.Tracker`."""
        self._client.log_image(self._id, image, key=_named(tag), step=iteration)

    def close(self, *, finished: bool) -> None:
        """See :class:`~safmn.training.trackers.Tracker`."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _named(text: str) -> str:
    return _FOREIGN.sub("_", text)
