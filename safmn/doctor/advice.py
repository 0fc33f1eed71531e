"""Options of one file that work against each other (``safmn doctor -opt``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from safmn.data.stages import patch_sizes
from safmn.doctor.findings import Finding, State
from safmn.evaluation.published import SETS
from safmn.options import Options
from safmn.options.types import TrainSection
from safmn.prepare.parallel import default_jobs
from safmn.registry import ARCH_REGISTRY, build, find

_Found = Iterator[tuple[str, str]]
_HIGHEST_RATE = 5e-3  # of Adam and its relatives


def examine_options(options: Options) -> list[Finding]:
    """Return what would be better in a file for training that can be used as it is: subject and advice."""
    train = options.train
    found = list(_measures(options))
    if train is not None:
        rules: tuple[Callable[[Options, TrainSection], _Found], ...] = (
            *(_schedule, _rate, _frequencies, _average, _machine, _patch),
        )
        found += [each for rule in rules for each in rule(options, train)]
    return [Finding(State.BETTER, subject, text) for subject, text in found]


def _measures(options: Options) -> _Found:
    """PSNR and SSIM that do not compare with the field's tables."""
    names = {section.get("name", key) for key, section in options.datasets.items()}
    for name, section in (options.val.metrics if options.val is not None else {}).items():
        if section["type"] not in ("calculate_psnr", "calculate_ssim"):
            continue
        where = f"val.metrics.{name}"
        if section.get("better") == "lower":
            yield where, "better is lower, so the worst weights would be kept as the best: better: higher"
        if options.scale > 1 and section.get("crop_border") != options.scale:
            yield where, f"crop_border is {section.get('crop_border')}; papers leave out {options.scale}, the scale"
        if options.train is None and names & set(SETS) and not section.get("test_y_channel"):
            yield where, "measures RGB; papers measure Y on these sets: test_y_channel: true"


def _rate(options: Options, train: TrainSection) -> _Found:
    kind, rate = str(train.optim_g.get("type")), train.optim_g.get("lr")
    if "adam" in kind.lower() and isinstance(rate, (int, float)) and rate > _HIGHEST_RATE:
        yield "optim_g", f"a learning rate of {rate:g} is very high for {kind}: these networks train with 1e-4 to 1e-3"


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
    elif isinstance(milestones, list) and milestones and max(milestones) >= last:
        beyond = sum(each >= last for each in milestones)
        yield "scheduler", f"{beyond} of {len(milestones)} milestones come after total_iter {last} and have no effect"


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
        yield "num_worker_per_gpu", f"is {workers}; processor cores of this machine for this run: {cores}"
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
    data = options.datasets.get("train", {})
    window = _window(options)
    for size in dict.fromkeys(patch_sizes(data)) if data else ():
        if size is None or not window or not size // options.scale % window:
            continue
        yield (
            "gt_sizes" if data.get("gt_sizes") else "gt_size",
            f"gives LQ patches of {size // options.scale} pixels; the network works in windows of {window}: take a "
            f"multiple of {window * options.scale}",
        )
