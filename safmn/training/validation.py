"""Validation during training: one set after the other, with the EMA weights if there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from safmn.evaluation.applying import Applying, Network, applying_of, fitted
from safmn.evaluation.fast_network import FastNetwork, fastest
from safmn.evaluation.scoring import Interrupted, SetResult, bare, evaluate
from safmn.imaging import to_uint8
from safmn.options import Options
from safmn.options.types import ValSection
from safmn.runtime.threads import Once
from safmn.training.experiment import Experiment
from safmn.training.models import Model
from safmn.training.progress import Progress
from safmn.training.reporter import Reporter


class Validator:
    """Validates on the ``val`` sets of an option file and stores the best results in the run's progress."""

    def __init__(self, options: Options, datasets: Mapping[str, Any], experiment: Experiment) -> None:
        self.options = options
        self.val = options.val or ValSection()
        self.datasets = datasets
        self.experiment = experiment
        self._network: Network | None = None
        self._applying = applying_of(self.val)

    @property
    def enabled(self) -> bool:
        """Whether there is a validation set."""
        return bool(self.datasets)

    def due(self, iteration: int, last: int) -> bool:
        """Return whether ``iteration`` ends with a validation: every ``val_freq`` and the last one, as in BasicSR."""
        return self.enabled and (iteration % self.val.val_freq == 0 or iteration == last)

    def run(self, model: Model, progress: Progress, reporter: Reporter, stop: Callable[[], bool]) -> bool:
        """Validate on every set and return whether these weights are the best so far and to be kept.

        The weights are the best if the first metric of the first set has a new best value. With ``keep_best: false``
        the result is always False.
        Results are stored only after every set is complete: an interrupted validation is repeated after the resume.

        Raises:
            Interrupted: ``stop()`` became true between two images, on this or another rank.
        """
        network = self._prepared(model)
        done = [self._evaluate(name, network, model, progress.iteration, stop) for name in self.datasets]
        improved = []
        for result, image in done:
            improved += self._note(result, progress)
            if image is not None:
                reporter.image(progress.iteration, f"images/{result.name}", to_uint8(image[0]))
            reporter.validation(progress.iteration, result.name, result.mean, progress.best.get(result.name, {}))
        model.networks["net_g"].bare.train()
        progress.validated_at = progress.iteration
        return self.options.logger.keep_best and bool(improved and improved[0])

    def _prepared(self, model: Model) -> Network:
        """Return the network to validate, with its current weights."""
        network = model.validation_network.eval()
        if bare(self._network) is not network:
            self._applying = fitted(applying_of(self.val), network)
            self._network = fastest(network, model.execution.device, kernels=self.val.kernels)
        if isinstance(self._network, FastNetwork):
            self._network.renew()
        assert self._network is not None
        return self._network

    def _evaluate(
        self, name: str, fast: Network, model: Model, iteration: int, stop: Callable[[], bool]
    ) -> tuple[SetResult, Tensor | None]:
        """Return the scores of one set and the output of its first image, (1, 3, H, W); None if it had no image."""
        val = self.val
        network = _Watched(fast, stop, self._applying)
        result = evaluate(
            network,
            self.datasets[name],
            name=name,
            metrics=val.metrics,
            device=model.execution.device,
            save_dir=self._image_folder(name) if val.save_img else None,
            suffix=val.suffix or str(iteration),
            rank=model.ranks.rank,
            world_size=model.ranks.world_size,
            progress=val.pbar,
            seed=self.options.manual_seed,
        )
        return result, network.first_output

    def _note(self, result: SetResult, progress: Progress) -> list[bool]:
        return [
            progress.note(result.name, metric, value, section=self.val.metrics[metric])
            for metric, value in result.mean.items()
        ]

    def _image_folder(self, name: str) -> Any:
        return self.experiment.visualization / name


class _Watched:
    """The network during validation. It stops between two images, and keeps an output for TensorBoard: the first."""

    def __init__(self, network: Network, stop: Callable[[], bool], applying: Applying) -> None:
        self.network = network
        self.images_at_once: int = getattr(network, "images_at_once", 1)
        self.stop = stop
        self.applying = applying
        self.first_output: Tensor | None = None  # (1, 3, H, W)
        self._is_first = Once()

    def __call__(self, lq: Tensor) -> Tensor:
        if self.stop():
            raise Interrupted
        keep = self._is_first()
        output = self.applying(self.network, lq)
        if keep:
            self.first_output = output
        return output
