"""Options of one file that work against each other (``safmn doctor -opt``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from safmn.doctor.findings import Finding, State
from safmn.options import Options
from safmn.options.types import TrainSection
from safmn.prepare.parallel import default_jobs
from safmn.registry import ARCH_REGISTRY, build, find

_Found = Iterator[tuple[str, str]]


def examine_options(options: Options) -> list[Finding]:
    """Return what would be better in a file for training that can be used as it is: subject and advice."""
    train = options.train
    if train is None:
        return []
    rules: tuple[Callable[[Options, TrainSection], _Found], ...] = (_schedule, _frequencies, _average, _machine, _patch)
    return [Finding(State.BETTER, subject, text) for rule in rules for subject, text in rule(options, train)]


def _schedule(options: Options, train: TrainSection) -> _Found:
    last, section = train.total_iter, train.scheduler
    if train.warmup_iter >= last:
        yield "warmup_iter", f"the learning rate rises for {train.warmup_iter} iterations, but total_iter is {last}"
    periods = section.get("periods")
    if isinstance(periods, list) and sum(periods) > 1.01 * last:
        yield (
            "scheduler",
            f"its periods end at {sum(periods):g}, after total_iter {last}: the rate never reaches its minimum",
        )
    milestones = section.get("milestones")
    if isinstance(milestones, list) and milestones and min(milestones) >= last:
        yield "scheduler", f"no milestone comes before total_iter {last}: the learning rate stays constant"


def _frequencies(options: Options, train: TrainSection) -> _Found:
    last = train.total_iter
    if options.logger.print_freq > last:
        yield "print_freq", f"is {options.logger.print_freq}, total_iter {last}: losses are logged at the end only"
    if options.logger.save_checkpoint_freq > last:
        yield (
            "save_checkpoint_freq",
            f"is above total_iter {last}: a run that is killed starts again from the beginning",
        )
    sets = [name for name in options.datasets if name.startswith("val")]
    if options.val is None or not sets:
        yield "val", "there is no validation: add a val set and metrics to see whether the network gets better"
    elif not options.val.metrics:
        yield "val", "no metric is measured: add val.metrics.psnr"
    elif options.val.val_freq > last:
        yield "val_freq", f"is {options.val.val_freq}, total_iter {last}: the network is measured at the end only"


def _average(options: Options, train: TrainSection) -> _Found:
    if train.ema_decay and not train.ema_warmup:
        span = round(1 / (1 - train.ema_decay))
        if 3 * span > train.total_iter:
            yield (
                "ema_decay",
                f"averages over about {span} iterations, total_iter is {train.total_iter}: the average keeps much of "
                "the first weights; lower it, or set ema_warmup: true",
            )


def _machine(options: Options, train: TrainSection) -> _Found:
    cores, workers = default_jobs(), options.datasets.get("train", {}).get("num_worker_per_gpu", 0)
    if isinstance(workers, int) and workers > max(cores, 1):
        yield "num_worker_per_gpu", f"is {workers}, but this machine has {cores} processor cores for this run"
    if options.num_gpu == 0 and torch.cuda.is_available():
        yield "num_gpu", f"is 0, but {torch.cuda.get_device_name()} is free to use: num_gpu: 1"
    on_cpu = options.num_gpu == 0 or not (torch.cuda.is_available() or torch.xpu.is_available())
    if on_cpu and train.precision in ("fp16", "bf16"):
        yield "precision", f"{train.precision} is slower than fp32 on most CPUs"


def _window(options: Options) -> int | None:
    """Return the window of a network of ours, None for others: building those may need memory and time."""
    if not find(ARCH_REGISTRY, options.network_g["type"]).__module__.startswith("safmn."):
        return None
    with torch.device("meta"):
        network = build(ARCH_REGISTRY, options.network_g)
    window = getattr(network, "window", None)
    return window if isinstance(window, int) else None


def _patch(options: Options, train: TrainSection) -> _Found:
    size = options.datasets.get("train", {}).get("gt_size")
    window = _window(options)
    if isinstance(size, int) and window and size // options.scale % window:
        yield (
            "gt_size",
            f"gives LQ patches of {size // options.scale} pixels; the network works in windows of {window}: take a "
            f"multiple of {window * options.scale}",
        )
