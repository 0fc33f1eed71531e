"""The check before training: one batch is trained on a copy, one image of each validation set is measured.

A fault in a network, loss, data set or metric then shows after seconds instead of at the first validation. The check
leaves no trace in the run: it builds a model and, where needed, data sets of its own, and drops them before those of
the run are built. So it does not need memory for two models, and the run's bytes are the same with and without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from safmn.data import TrainingLoader
from safmn.data.collating import odd_values
from safmn.data.loading import start_loading
from safmn.data.progressive import ProgressiveLoader
from safmn.data.sample_keys import Batch, KeyedDataset
from safmn.data.stages import of_size
from safmn.evaluation.applying import applying_of
from safmn.evaluation.scoring import evaluate
from safmn.options import Options
from safmn.runtime.agreement import raise_together
from safmn.runtime.distributed import Ranks
from safmn.runtime.execution import Execution
from safmn.runtime.random_state import seed_everything
from safmn.system.memory import drop_cached_memory
from safmn.training.device_batches import batches_on_device
from safmn.training.explained import explained_step
from safmn.training.models import Model
from safmn.training.models.base_model import checked_result, training_section

logger = logging.getLogger(__name__)

BuildModel = Callable[[Options, Execution, Ranks], Model]
BuildDataset = Callable[[Mapping[str, Any]], Any]


def check_training(
    options: Options,
    execution: Execution,
    ranks: Ranks,
    loader: TrainingLoader | ProgressiveLoader,
    sets: Mapping[str, Any],
    *,
    build_model: BuildModel,
    build_dataset: BuildDataset,
) -> None:
    """Train one micro-batch of each stage and validate one image of each set, with a model that is dropped afterwards.

    Every rank checks alone, with the samples of its own first batch. ``compile`` and ``cuda_graph`` are left out: they
    do not change what is computed, and take long to start.

    Args:
        loader: the run's loader; it gives the keys of the first batch.
        sets: the run's validation sets by name.
        build_model: builds the model.
        build_dataset: builds the data set of a section.

    Raises:
        UserError: what the first step and the first validation of the run would raise; on all ranks.
        Exception: an error in the user's code.
    """
    began = time.perf_counter()
    failed: Exception | None = None
    odd: str | None = None
    unmeasured: list[str] = []
    try:
        with _quiet():
            plain = dataclasses.replace(execution, compile=False, cuda_graph=False)
            seed_everything(options.manual_seed)
            model = build_model(options, plain, Ranks(ranks.rank, 1, ranks.local_rank))
            for part in loader.parts:
                batch = _first_batch(options, part, build_dataset)
                odd = odd or odd_values(batch)
                _train(model, options, batch, ranks)
            unmeasured = _validate(model, options, sets, build_dataset)
    except Exception as error:
        failed = error
    model = None  # type: ignore[assignment]
    gc.collect()
    drop_cached_memory(execution.device)
    raise_together(failed)
    if odd:
        logger.warning("%s: datasets.train: %s", options.source, odd)
    for text in unmeasured:
        logger.warning("%s", text)
    more = f", one image of {', '.join(sets)} validated and measured" if sets else ""
    trained = "one batch" if len(loader.parts) == 1 else f"one batch of each of {len(loader.parts)} stages"
    logger.info("sanity: %s trained on a copy%s, in %.1f s", trained, more, time.perf_counter() - began)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the messages of a second model out of the log: the run's own model gives them again."""
    root = logging.getLogger("safmn")
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _first_batch(options: Options, loader: TrainingLoader, build_dataset: BuildDataset) -> Batch:
    """Return the first micro-batch of this rank, loaded as in the run: in a worker process if the run has any.

    A worker has a copy of the data set. Without workers, a data set that may change when it is read is built again.
    """
    keyed = loader.keyed
    if not loader.num_workers and not is_unchanging(keyed.dataset):
        dataset = of_size(build_dataset(options.datasets["train"]), keyed.gt_size)
        keyed = KeyedDataset(dataset, options.manual_seed, gt_size=keyed.gt_size)
    keys = itertools.islice(loader.keys(0), 1)
    loading = start_loading(keyed, keys, workers=min(loader.num_workers, 1), ahead=1, pin_memory=False)
    try:
        return loading.take()
    finally:
        loading.close()


def is_unchanging(dataset: Any) -> bool:
    """Return whether reading a data set does not change it: it is one of ours, and mixes no others."""
    return type(dataset).__module__.startswith("safmn.") and not hasattr(dataset, "parts")


def _train(model: Model, options: Options, batch: Batch, ranks: Ranks) -> None:
    """Run one step, of an iteration in which a GAN trains both of its networks."""
    train = training_section(options)
    iteration = (train.net_d_init_iters // train.net_d_iters + 1) * train.net_d_iters
    (batches,) = batches_on_device(iter([[batch]]), model.execution)
    seed_everything(options.manual_seed, iteration, ranks.rank)
    for each in (1, train.total_iter // 2, train.total_iter, iteration):  # what the schedule gives later, too
        model.set_learning_rate(max(each, 1))
    with explained_step(options.source, batches, is_first=True):
        checked_result(model, model.training_step(batches, iteration))


def _validate(model: Model, options: Options, sets: Mapping[str, Any], build_dataset: BuildDataset) -> list[str]:
    """Validate one image of each set, without saving anything. Return sentences about values that are not finite."""
    found = []
    sections = {section.get("name", key): section for key, section in options.datasets.items()}
    for name, dataset in sets.items():
        assert options.val is not None  # there are no validation sets without it
        if len(dataset):
            result = evaluate(
                model.validation_network.eval(),
                _FirstItem(dataset if is_unchanging(dataset) else build_dataset(sections[name])),
                name=name,
                metrics=options.val.metrics,
                device=model.execution.device,
                progress=False,
                seed=options.manual_seed,
                applying=applying_of(options.val),
            )
            for image, values in result.per_image.items():
                odd = {metric: value for metric, value in values.items() if not math.isfinite(value)}
                found += [f"sanity: metric {key!r} is {value:g} for {image} of {name}" for key, value in odd.items()]
    return found


class _FirstItem:
    """The first item of a data set, as a data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]
