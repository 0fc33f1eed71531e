"""Output of a training run: log lines, the record, trackers and the progress bar. Only rank 0 writes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from safmn.training.experiment import Experiment
from safmn.training.trackers import Tracker

logger = logging.getLogger(__name__)


class Reporter:
    """Reports the losses and validation results of one run.

    Args:
        experiment: the folder of the record.
        start: iteration from which the run continues; later entries of an earlier run are dropped.
        validated: iteration of the newest complete validation; later ones are dropped, since the run repeats them.
        total: last iteration.
        trackers: get the scalars and images, too, such as TensorBoard's files.
        speaks: whether to write anything; false on every rank but 0.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        start: int,
        validated: int,
        total: int,
        speaks: bool,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.experiment = experiment
        self.speaks = speaks
        self.total = total
        self.bar = tqdm(initial=start, total=total, unit="it", dynamic_ncols=True, disable=None if speaks else True)
        self._last = (start, time.perf_counter())
        self._shown: dict[str, str] = {}
        self._done = start
        self.trackers = trackers
        if speaks:
            experiment.rewind_record(start, validated)

    def step(self) -> None:
        """Advance the progress bar by one iteration."""
        self._done += 1
        self.bar.update()

    def losses(
        self, iteration: int, epoch: int, learning_rate: float, losses: Mapping[str, float], waited: float
    ) -> None:
        """Log the losses of one iteration and the share of time spent waiting for data since the last call."""
        if not self.speaks:
            return
        self.experiment.append_record({"iter": iteration, "epoch": epoch, "lr": learning_rate, **losses})
        rate = self._rate(iteration)
        remaining = (self.total - iteration) / rate
        text = "  ".join(f"{name} {value:.4e}" for name, value in losses.items())
        logger.info(
            "epoch %d  iter %d  lr %.3e  %.4g it/s  data %.0f%%  eta %s  %s",
            *(epoch, iteration, learning_rate, rate, 100 * waited, tqdm.format_interval(remaining), text),
        )
        self._show(loss=f"{sum(losses.values()):.4f}")
        for name, value in losses.items():
            self._scalar(f"losses/{name}", value, iteration)
        self._scalar("learning_rate", learning_rate, iteration)

    def _rate(self, iteration: int) -> float:
        """Return the iterations per second since the last call."""
        before, then = self._last
        self._last = (iteration, time.perf_counter())
        return max(iteration - before, 1) / max(self._last[1] - then, 1e-9)

    def validation(self, iteration: int, set_name: str, means: Mapping[str, float], best: Mapping[str, Any]) -> None:
        """Log the mean scores of one set, each with the best so far."""
        if not self.speaks:
            return
        self.experiment.append_record({"iter": iteration, "set": set_name, **means})
        parts = [
            f"{metric} {value:.4f}"
            + (f" (best {best[metric]['value']:.4f} at {best[metric]['iteration']})" if metric in best else "")
            for metric, value in means.items()
        ]
        logger.info("validation  iter %d  %s  %s", iteration, set_name, "  ".join(parts))
        for metric, value in means.items():
            self._scalar(f"metrics/{set_name}/{metric}", value, iteration)
            self._show(**{metric: f"{value:.2f}"})

    def skipped(self, iteration: int, samples: Sequence[str]) -> None:
        """Log the samples of an iteration whose step was skipped because of NaN or Inf."""
        if not self.speaks:
            return
        self.experiment.append_record({"iter": iteration, "skipped": list(samples)})
        logger.warning(
            "iteration %d is skipped: a loss or gradient is NaN or Inf; samples: %s", iteration, ", ".join(samples)
        )

    def image(self, iteration: int, tag: str, image: Any) -> None:
        """Add an image, uint8 (H, W, 3) RGB, to the trackers under ``tag``."""
        for tracker in self.trackers:
            tracker.image(tag, image, iteration)

    def close(self) -> None:
        """Close the progress bar and the trackers."""
        self.bar.close()
        for tracker in self.trackers:
            tracker.close(finished=self._done >= self.total)

    def _show(self, **values: str) -> None:
        self._shown.update(values)
        self.bar.set_postfix(self._shown, refresh=False)

    def _scalar(self, tag: str, value: float, iteration: int) -> None:
        for tracker in self.trackers:
            tracker.scalar(tag, value, iteration)
