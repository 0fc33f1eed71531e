"""Weights & Biases, with the meaning that BasicSR gives to ``logger.wandb``; the curves have TensorBoard's names."""

from __future__ import annotations

import secrets
from pathlib import Path

from safmn.errors import OptionError, first_line
from safmn.options import Options
from safmn.training.trackers import keep_id, known_id
from safmn.value_types import Array

_KEY = "wandb"


class WeightsAndBiases:
    """Sends a run to Weights & Biases, or keeps it in ``wandb`` in the run's folder with ``WANDB_MODE=offline``."""

    name = "Weights & Biases"

    def __init__(self, options: Options, root: Path) -> None:
        import wandb

        section = options.logger.wandb
        identifier = section.resume_id or known_id(root, _KEY) or secrets.token_hex(4)
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=section.project,
                entity=section.entity,
                id=identifier,
                resume="allow",
                name=options.name,
                config=options.raw,
                dir=str(root),
                settings=wandb.Settings(console="off"),  # it would take over the progress bar's output
            )
        except wandb.errors.Error as error:
            raise OptionError(
                f"{options.source}: logger.wandb: {first_line(error)}. `wandb login` gives access; with "
                "WANDB_MODE=offline the run is kept here, and `wandb sync` sends it later"
            ) from error
        keep_id(root, _KEY, identifier)

    def scalar(self, tag: str, value: float, iteration: int) -> None:
        """See :class:`~safmn.training.trackers.Tracker`."""
        self._run.log({tag: value}, step=iteration)

    def image(self, tag: str, image: Array, iteration: int) -> None:
        """See :class:`~safmn.training.trackers.Tracker`."""
        self._run.log({tag: self._wandb.Image(image)}, step=iteration)

    def close(self, *, finished: bool) -> None:
        """See :class:`~safmn.training.trackers.Tracker`."""
        self._run.finish(exit_code=0 if finished else 1)
