"""Test a network on benchmark sets: plan the test from options or a weight file, run it, write table and report.

:func:`plan_from_options` and :func:`plan_of_network` return a :class:`TestPlan`, :func:`run` carries it out.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safmn import weights as files
from safmn.archs.peers import in_form
from safmn.data import build_dataset
from safmn.errors import (
    EXIT_FAILED,
    EXIT_USER_ERROR,
    FILE_ONLY,
    OptionError,
    RankError,
    UserError,
    WeightsError,
    first_line,
    located,
)
from safmn.evaluation.applying import WHOLE, Applying, applying_of, fitted
from safmn.evaluation.fast_network import FastNetwork, Kernels, fastest
from safmn.evaluation.image_sets import paired_section
from safmn.evaluation.methods import section_of
from safmn.evaluation.published import SETS
from safmn.evaluation.report import Scoreboard
from safmn.evaluation.scoring import SetResult, bare, evaluate
from safmn.imaging.file_names import folder_mistake
from safmn.imports import log_imports
from safmn.inference.sources import weights_of
from safmn.metrics import network_name
from safmn.options import Expectation, Options
from safmn.options.datasets import degrades
from safmn.own_code import full_traceback, is_from_own_code
from safmn.prepare.hints import absence, hint, is_on_request
from safmn.registry import ARCH_REGISTRY, build
from safmn.runtime.distributed import Ranks
from safmn.system.console import say
from safmn.system.files import set_aside
from safmn.system.memory import OUT_OF_MEMORY, keep_freed_memory
from safmn.system.signals import sigterm_as_ctrl_c
from safmn.training.experiment import HeldLog, environment, start_logging

logger = logging.getLogger(__name__)

_RESULTS, _REPORT = "results", "metrics.json"


@dataclass(frozen=True)
class TestPlan:
    """A network, and the sets and metrics to test it with.

    Attributes:
        name: name of the results.
        folder: folder for the report, the log and saved images.
        network: the network with its weights, on the device; :func:`run` wraps it.
        section: the ``network_g`` section of the network; None if only the weights are known.
        weights: file of the weights.
        scale: scale of super-resolution.
        sets: name of a set -> its data set section.
        metrics: name of a metric -> its section.
        expect: name of a set -> expected means of the metrics, with tolerances.
        save_images: write the output images.
        suffix: suffix of the names of the output images.
        option_file: path of the option file, if the test comes from one.
        options: content of the option file.
        require_all: report every missing set as a failure, also those that are available on request only.
        seed: seeds the global generators around a user's data sets, networks and metrics.
        applying: tiles and windows.
        ensemble: measure every set a second time with self-ensemble; results are named ``<set> (self-ensemble)``.
        kernels: see :class:`safmn.evaluation.fast_network.FastNetwork`.
    """

    name: str
    folder: Path
    network: nn.Module | FastNetwork
    section: Mapping[str, Any] | None
    weights: Path | None
    scale: int
    sets: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]
    expect: Mapping[str, Expectation] = field(default_factory=dict)
    save_images: bool = False
    suffix: str = ""
    option_file: str | None = None
    options: Mapping[str, Any] | None = None
    require_all: bool = False
    seed: int = 0
    applying: Applying = WHOLE
    ensemble: bool = False
    kernels: Kernels = "auto"


@contextlib.contextmanager
def results_folder(name: str, ranks: Ranks, root: str | None = None) -> Iterator[Path]:
    """Yield the folder ``results/<name>`` (or ``<root>/<name>``), and prepare it at the end of the block.

    Build the plan inside the block. If the block succeeds, the results of an earlier test are set aside and a new log
    file is started in the folder. It also gets the lines that were logged in the block.
    """
    folder = Path(root or _RESULTS) / name
    start_logging(None, is_main=ranks.is_main)
    if not ranks.is_main:
        yield folder
        return
    log = HeldLog()
    log_imports()
    yield folder
    if (folder / _REPORT).exists():
        logger.info("the results of an earlier test of this name are kept in %s", set_aside(folder))
    folder.mkdir(parents=True, exist_ok=True)
    log.write_to(folder / f"test_{name}_{time.strftime('%Y%m%d_%H%M%S')}.log")


def plan_from_options(
    options: Options,
    folder: Path,
    device: torch.device,
    *,
    weights: str | None = None,
    require_all: bool = False,
    ensemble: bool = False,
) -> TestPlan:
    """Plan the test that an option file describes, and load the network.

    Args:
        weights: the weights to test, instead of those that the file names; see
            :func:`safmn.inference.sources.weights_of` for a file that names none.
        ensemble: also measure with self-ensemble, as ``val.self_ensemble: true`` does.

    Raises:
        OptionError: there is no test set or no weight file.
        WeightsError: the weights cannot be read or belong to a different network.
    """
    with located(f"{options.source}: network_g"):
        network = build(ARCH_REGISTRY, options.network_g)
    source = weights or options.path.pretrain_network_g or weights_of(options)
    if source is not None:
        with located(f"{options.source}: path.pretrain_network_g" if weights is None else "--weights"):
            files.load_into(
                network,
                source,
                param_key=options.path.param_key_g,
                strict=options.path.strict_load_g,
                section=options.network_g,
            )
    elif any(True for _ in network.parameters()):
        raise OptionError(f"{options.source}: path.pretrain_network_g is missing: there are no weights to test")
    val = options.val
    return TestPlan(
        name=options.name,
        folder=folder,
        network=in_form(network).to(device).eval().requires_grad_(False),
        section=options.network_g,
        weights=None if source is None else files.locate(source),
        scale=options.scale,
        sets=_sets_by_name(options),
        metrics=val.metrics if val is not None else {},
        expect=options.expect,
        save_images=val is not None and val.save_img,
        suffix=(val.suffix if val is not None else None) or options.name,
        option_file=options.source,
        options=options.raw,
        require_all=require_all,
        seed=options.manual_seed,
        applying=WHOLE if val is None else applying_of(val, self_ensemble=False),
        ensemble=ensemble or (val is not None and val.self_ensemble),
        kernels=val.kernels if val is not None else "auto",
    )


def _sets_by_name(options: Options) -> dict[str, Mapping[str, Any]]:
    sets: dict[str, Mapping[str, Any]] = {}
    for key, section in options.datasets.items():
        if section["phase"] == "train":
            continue
        name = section.get("name", key)
        if name in sets:
            raise OptionError(f"{options.source}: datasets.{key}.name: another data set has the name {name!r}, too")
        sets[name] = section
    if not sets:
        raise OptionError(f"{options.source}: datasets: there is no test set, such as test_1")
    return sets


def plan_of_network(
    network: nn.Module,
    source: str | None,
    folder: Path,
    *,
    scale: int | None = None,
    pairs: Sequence[str] = (),
    benchmark: str | None = None,
    save_images: bool = False,
    require_all: bool = False,
    ensemble: bool = False,
    kernels: Kernels = "auto",
    options: Options | None = None,
) -> TestPlan:
    """Plan the usual test of a network: PSNR and SSIM on the Y channel, cropped by the scale.

    Args:
        network: from :func:`safmn.load_network` or :func:`safmn.inference.sources.load_named`.
        source: its weight file, or the name of weights that come with the package; None: unknown.
        folder: folder of the results.
        scale: the scale that the weights must have; None: any.
        pairs: test sets, ``NAME=HR_DIR,LR_DIR`` each.
        benchmark: folder with ``<Set>/HR`` and ``<Set>/LR_bicubic/X<scale>``; without it and without ``pairs``,
            ``datasets/benchmark``.
        save_images: write the output images.
        require_all, ensemble, kernels: see :class:`TestPlan`.
        options: the network's option file, if it has one: the tiles, windows and self-ensemble of ``val`` are used,
            and its metrics of other names than ``psnr`` and ``ssim`` are measured, too.

    Raises:
        WeightsError: the network has a different scale.
        OptionError: a pair is not of the form ``NAME=HR_DIR,LR_DIR``, or a name is used twice.
    """
    found = int(network.scale)  # type: ignore[arg-type]
    if scale is not None and scale != found:
        raise WeightsError(f"{source or folder.name}: the network is for scale {found}, but --scale is {scale}")
    sets: dict[str, dict[str, Any]] = {}
    for text in pairs:
        name, section = _pair_section(text, found)
        if name in sets:
            raise OptionError(f"--set {text}: another set has the name {name!r}, too")
        sets[name] = section
    if benchmark is not None or not pairs:
        sets |= _benchmark_sections(Path(benchmark or "datasets/benchmark"), found)
    measure = {"crop_border": found, "test_y_channel": True}
    val = options.val if options is not None else None
    own = val.metrics if val is not None else {}
    usual = {"psnr": {"type": "calculate_psnr", **measure}, "ssim": {"type": "calculate_ssim", **measure}}
    return TestPlan(
        name=folder.name,
        folder=folder,
        network=network,
        section=section_of(network),
        weights=None if source is None else files.locate(source),
        scale=found,
        sets={name: {**section, "phase": "test", "scale": found} for name, section in sets.items()},
        metrics={**usual, **{name: section for name, section in own.items() if name not in usual}},
        save_images=save_images,
        suffix=folder.name,
        option_file=options.source if options is not None else None,
        options=options.raw if options is not None else None,
        require_all=require_all,
        seed=options.manual_seed if options is not None else 0,
        applying=WHOLE if val is None else applying_of(val, self_ensemble=False),
        ensemble=ensemble or (val is not None and val.self_ensemble),
        kernels=kernels,
    )


def in_tiles(plan: TestPlan, tile: int | None) -> TestPlan:
    """Return the plan with tiles of this many LQ pixels; 0: whole images, None: as planned."""
    return plan if tile is None else replace(plan, applying=replace(plan.applying, tile=tile or None))


def _pair_section(text: str, scale: int) -> tuple[str, dict[str, Any]]:
    name, _, folders = text.partition("=")
    hr, _, lr = folders.partition(",")
    if not (name and hr and lr):
        raise OptionError(
            f"--set {text}: expected NAME=HR_DIR,LR_DIR, for example Set5=Set5/HR,Set5/LR_bicubic/X{scale}"
        )
    if mistake := folder_mistake(name):
        raise OptionError(f"--set {text}: {mistake}")
    return name, paired_section(name, Path(hr), Path(lr), scale)


def _benchmark_sections(root: Path, scale: int) -> dict[str, dict[str, Any]]:
    """Return the sections of the sets in a benchmark folder, in the papers' order; without any, of all papers' sets."""
    present = [entry.parent.name for entry in sorted(root.glob("*/HR"))]
    known = [name for name in SETS if name in present]
    names = [*known, *(name for name in present if name not in known)] or list(SETS)
    return {
        name: paired_section(name, root / name / "HR", root / name / "LR_bicubic" / f"X{scale}", scale)
        for name in names
    }


def run(plan: TestPlan, ranks: Ranks, device: torch.device) -> int:
    """Test the sets one after another, print the table, write the report, and return the exit status.

    A set that cannot be tested does not stop the others.

    Returns:
        1 if a mean differs from its expected value; otherwise 2 if a set could not be tested; otherwise 0.
    """
    results: dict[str, SetResult] = {}
    failures: dict[str, str] = {}
    left_out = _left_out(plan)
    plan = prepared(replace(plan, applying=fitted(plan.applying, plan.network)), device)
    try:
        with sigterm_as_ctrl_c():
            for name, section in plan.sets.items():
                if name in left_out:
                    continue
                try:
                    for label, applying in _rows(plan, name):
                        results[label] = _run_set(plan, name, label, section, applying, ranks, device)
                except (UserError, OSError, *OUT_OF_MEMORY) as error:
                    if isinstance(error, RankError) and error.fatal:
                        raise
                    failures[name] = _explain(name, section, error)
                    if is_from_own_code(error):
                        logger.error("traceback of the error:\n%s", full_traceback(error), extra=FILE_ONLY)
    except BaseException:  # report the sets that were tested before, whatever the error is
        failures |= {
            name: f"{name}: not finished" for name in plan.sets if name not in {**results, **failures, **left_out}
        }
        if ranks.is_main:
            _report(_board(plan, results, failures, left_out, device), plan.folder)
        raise
    board = _board(plan, results, failures, left_out, device)
    if ranks.is_main:
        _report(board, plan.folder)
    if board.drifts():
        return EXIT_FAILED
    return EXIT_USER_ERROR if failures else 0


def _left_out(plan: TestPlan) -> dict[str, str]:
    """Return the missing sets that are available on request only, with advice: the test leaves them out.

    A set is not left out if the option file has expected values for it or if ``require_all`` is set. If all sets
    would be left out, none is.
    """
    found = {
        name: hint(section["dataroot_gt"])
        for name, section in plan.sets.items()
        if name not in plan.expect
        and isinstance(section.get("dataroot_gt"), str)
        and is_on_request(section["dataroot_gt"])
        and not os.path.exists(section["dataroot_gt"])
    }
    return {} if plan.require_all or len(found) == len(plan.sets) else found


def _board(
    plan: TestPlan,
    results: Mapping[str, SetResult],
    failures: Mapping[str, str],
    left_out: Mapping[str, str],
    device: torch.device,
) -> Scoreboard:
    return Scoreboard(
        metrics=plan.metrics,
        network_name=network_name(plan.section) if plan.section else None,
        scale=plan.scale,
        results=results,
        failures=failures,
        left_out=left_out,
        expect=plan.expect,
        facts=_facts(plan, device),
        options=plan.options,
        data=plan.sets,
        degraded=[name for name, section in plan.sets.items() if degrades(section["type"])],
    )


def _rows(plan: TestPlan, name: str) -> list[tuple[str, Applying]]:
    """Return the rows of a set in the table: its name and, if asked for, a second row with self-ensemble."""
    rows = [(name, plan.applying)]
    if plan.ensemble:
        rows.append((f"{name} (self-ensemble)", replace(plan.applying, self_ensemble=True)))
    return rows


def prepared(plan: TestPlan, device: torch.device) -> TestPlan:
    """Return the plan with its network on the fastest kernels, and let the process keep freed memory for images."""
    if device.type == "cpu":
        keep_freed_memory()
    return replace(plan, network=fastest(bare(plan.network), device, kernels=plan.kernels))


def _run_set(
    plan: TestPlan,
    name: str,
    label: str,
    section: Mapping[str, Any],
    applying: Applying,
    ranks: Ranks,
    device: torch.device,
) -> SetResult:
    """Score the network on the set ``name``; ``label`` names the result."""
    dataset = build_dataset(section, phase=section["phase"], scale=plan.scale, seed=plan.seed)
    folder = f"{name}_self_ensemble" if applying.self_ensemble else name
    save_dir = plan.folder / "visualization" / folder if plan.save_images else None
    result = evaluate(
        plan.network,
        dataset,
        name=name,
        metrics=plan.metrics,
        device=device,
        save_dir=save_dir,
        suffix=plan.suffix,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=plan.seed,
        applying=applying,
    )
    means = "".join(f", {metric} {value:.4f}" for metric, value in result.mean.items())
    saved = f"; saved in {save_dir}" if save_dir else ""
    logger.info("%s: %d images in %.1f s%s%s", label, len(result.per_image), result.seconds, means, saved)
    return replace(result, name=label)


def _explain(name: str, section: Mapping[str, Any], error: Exception) -> str:
    """Describe in one line why a set could not be tested; if its files are missing, with the command that gets them."""
    if absent := absence(section):
        return f"{name} is missing: {absent}"
    if isinstance(error, OUT_OF_MEMORY):
        advice = "set val.tile, or use a --device with more memory"
        return f"{name}: memory ran out, {advice} ({first_line(error)})"
    return f"{name}: {error}"


def _report(board: Scoreboard, folder: Path) -> None:
    board.write(folder)  # first: printing fails if the reader of a pipe is gone
    if board.results and board.metrics:
        say(f"\n{board.table()}\n")
    for line in board.garbage():
        logger.warning(line)
    for line in board.drifts():
        logger.error("drifted: %s", line)
    for name, line in board.left_out.items():
        logger.warning("left out: %s was not found. %s", name, line)
    for line in board.failures.values():
        logger.error("not tested: %s", line)
    logger.info("report: %s and metrics.md", folder / _REPORT)


def _facts(plan: TestPlan, device: torch.device) -> dict[str, Any]:
    return {
        "name": plan.name,
        "network": dict(plan.section) if plan.section else type(bare(plan.network)).__name__,
        "scale": plan.scale,
        "weights": _identity(plan.weights),
        "tile": plan.applying.tile,
        "option file": _identity(Path(plan.option_file)) if plan.option_file else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": environment(),
    }


def _identity(path: Path | None) -> dict[str, str] | None:
    """Return the path and the SHA-256 of a file."""
    if path is None:
        return None
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
