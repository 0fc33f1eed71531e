"""TensorBoard files in ``tb_logger``, with the option file as hyper-parameters."""

from __future__ import annotations

from pathlib import Path

from safmn.options import Options
from safmn.training.trackers import flat, metric_tags
from safmn.value_types import Array


class TensorBoard:
    """Writes event files. Entries after ``start``, of an earlier run that was resumed, are dropped by TensorBoard."""

    name = "TensorBoard"

    def __init__(self, options: Options, root: Path, *, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(root / "tb_logger"), purge_step=start + 1)
        # HParams shows the newest value of each metric's curve beside the options
        experiment, begin, self._end = hparams(flat(options.raw), dict.fromkeys(metric_tags(options), 0.0))
        for summary in (experiment, begin):
            self._writer._get_file_writer().add_summary(summary)  # add_hparams would make a run of its own for them

    def scalar(self, tag: str, value: float, iteration: int) -> None:
        """See :class:`~safmn.training.trackers.Tracker`."""
        self._writer.add_scalar(tag, value, iteration)

    def image(self, tag: str, image: Array, iteration: int) -> None:
        """See :class:`~safmn.training.trackers.Tracker`."""
        self._writer.add_image(tag, image, iteration, dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        """See :class:`~safmn.training.trackers.Tracker`."""
        if finished:
            self._writer._get_file_writer().add_summary(self._end)
        self._writer.close()
