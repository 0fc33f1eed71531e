"""``safmn bench``: measure networks by the field's protocols, and rebuild the paper's tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safmn.cli import method_arguments as shared
from safmn.errors import EXIT_USER_ERROR, OptionError, did_you_mean, exit_status
from safmn.inference.choices import BACKEND_MODULES, PRECISIONS, unknown_backend
from safmn.system.console import ArgumentParser, complain, say

if TYPE_CHECKING:
    from safmn.evaluation.speed_sides import Protocol

_TABLES = ("efficient", "classic", "runtime", "winners")
_FIGURES = (".pdf", ".svg", ".png")
_RUNS = 50


VERBS = {
    "complexity": "parameters, multiply-adds and activations, by fvcore's rules",
    "quality": "PSNR and SSIM on benchmark sets; only what is new is measured",
    "speed": "time and memory, by the paper's protocol, all sides in turn; only what is new is measured",
    "table": "rebuild a table of the paper with measured columns",
    "plot": "draw PSNR over cost; the area of a circle is the number of parameters",
}


def usage() -> str:
    """Return the help text."""
    verbs = "\n".join(f"  {verb:11s}{what}" for verb, what in VERBS.items())
    return f"""usage: safmn bench <verb> [options]      (safmn bench <verb> --help for its options)

{verbs}

Measures networks, and puts the results beside the published ones. docs/benchmarks.md has examples.
Exit status: 0 done; 2 a wrong argument, or a set or image that cannot be used (the others are measured)."""


def parser(verb: str) -> argparse.ArgumentParser:
    """Return the argument parser of a verb."""
    p = ArgumentParser(prog=f"safmn bench {verb}", description=f"{VERBS[verb][0].upper()}{VERBS[verb][1:]}.")
    {"complexity": _complexity, "quality": _quality, "speed": _speed, "table": _table, "plot": _plot}[verb](p)
    return p


def _complexity(p: argparse.ArgumentParser) -> None:
    shared.add_methods(p, text="networks to count (default: all with published sizes)")
    p.add_argument("--table", choices=_TABLES, help="the networks of a published table")
    p.add_argument("--size", default="1280x720", metavar="WxH", help="size of the output (default: 1280x720)")
    shared.add_output(p)


def _quality(p: argparse.ArgumentParser) -> None:
    shared.add_methods(p, text="methods to score (default: the package's weights and bicubic)")
    shared.add_data(p)
    shared.add_output(p)


def _speed(p: argparse.ArgumentParser) -> None:
    shared.add_methods(p, text="networks to time (default: those of the table)")
    p.add_argument("--table", choices=_TABLES, default="runtime", help="the networks of a table (default: runtime)")
    p.add_argument(
        "--backends",
        nargs="+",
        default=["eager"],
        metavar="B",
        help=f"all, {', '.join(BACKEND_MODULES)} (default: eager)",
    )
    p.add_argument("--precisions", nargs="+", default=["fp32"], choices=PRECISIONS, metavar="P", help="(default: fp32)")
    p.add_argument("--size", default="1280x720", metavar="WxH", help="size of the output (default: 1280x720)")
    _protocol(p)
    p.add_argument("--no-memory", action="store_true", help="do not measure memory (a process for each side)")
    shared.add_again(p)
    shared.add_output(p)


def _table(p: argparse.ArgumentParser) -> None:
    p.add_argument("table", choices=_TABLES, metavar="TABLE", help=", ".join(_TABLES))
    shared.add_methods(p, text="weights to measure, and methods to add (default: the package's weights and bicubic)")
    shared.add_data(p)
    _protocol(p)
    shared.add_output(p)


def _plot(p: argparse.ArgumentParser) -> None:
    shared.add_methods(p, text="weights to measure, and methods to add (default: the package's weights)")
    p.add_argument("--table", choices=_TABLES[:2], default="efficient", help="published points (default: efficient)")
    p.add_argument("--x", choices=("madds", "time"), default="madds", help="multiply-adds, or time measured here")
    p.add_argument("--set", dest="set_name", default="Set14", metavar="SET", help="set of the PSNR (default: Set14)")
    shared.add_data(p)
    _protocol(p)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".pdf, .svg (vectors) or .png")


def _protocol(p: argparse.ArgumentParser) -> None:
    p.add_argument("--runs", type=int, default=_RUNS, metavar="N", help=f"timed runs of each side (default: {_RUNS})")
    p.add_argument("--threads", type=int, metavar="N", help="threads on the CPU (default: all cores)")


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn bench`` and return its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        say(usage())
        return 0 if given else EXIT_USER_ERROR
    verb, rest = given[0], given[1:]
    if verb not in VERBS:
        complain(f"safmn: error: bench has no verb {verb!r}.{did_you_mean(verb, VERBS)}\n\n{usage()}")
        return EXIT_USER_ERROR
    arguments = parser(verb).parse_intermixed_args(rest)
    _check(verb, arguments)
    run = {"complexity": complexity, "quality": quality, "speed": speed, "table": table, "plot": plot}
    return run[verb](arguments)


def _check(verb: str, arguments: argparse.Namespace) -> None:
    """Find mistakes before torch is imported."""
    shared.check_scale(arguments.scale)
    if verb == "plot":
        if arguments.output.suffix not in _FIGURES:
            raise OptionError(f"-o {arguments.output}: the ending must be {', '.join(_FIGURES)}")
    else:
        shared.check_output(arguments.output)
    if getattr(arguments, "runs", 1) < 1:
        raise OptionError(f"--runs {arguments.runs}: choose 1 or more")
    if (getattr(arguments, "threads", None) or 1) < 1:
        raise OptionError(f"--threads {arguments.threads}: choose 1 or more")
    for name in getattr(arguments, "backends", ()):
        if name not in (*BACKEND_MODULES, "all"):
            raise unknown_backend(name, (*BACKEND_MODULES, "all"))
    if hasattr(arguments, "size"):
        arguments.size = _size(arguments.size)


def _size(text: str) -> tuple[int, int]:
    """Return ``WIDTHxHEIGHT`` as (height, width)."""
    width, x, height = text.partition("x")
    if not (x and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise OptionError(f"--size {text}: write WIDTHxHEIGHT, such as 1280x720")
    return int(height), int(width)


def complexity(arguments: argparse.Namespace) -> int:
    """Count networks."""
    from safmn.evaluation.costs import cost_of, cost_table
    from safmn.evaluation.methods import untrained
    from safmn.evaluation.paper_tables import networks_of
    from safmn.evaluation.sizes import sizes

    methods = shared.opened(arguments)
    if arguments.table:
        methods = [*networks_of(arguments.table, arguments.scale), *methods]
    elif not methods:
        methods = [untrained(size) for size in sizes() if arguments.scale in (None, size.scale)]
    costs = [cost_of(method, arguments.size, arguments.table) for method in methods if method.network is not None]
    if not costs:
        raise OptionError("there is no network to count: bicubic and images have no operations")
    shared.show([cost_table(costs, arguments.size)], arguments.output)
    return 0


def quality(arguments: argparse.Namespace) -> int:
    """Score methods beside the published scores."""
    from safmn.evaluation import bench
    from safmn.runtime.execution import named_device

    methods = shared.opened(arguments) or bench.shipped_and_bicubic(arguments.scale)
    device = named_device(arguments.device)
    data = arguments.data or ["benchmark"]
    tables, failures = bench.quality_tables(methods, data, device=device, remember=not arguments.again)
    shared.show(tables, arguments.output)
    return _report(failures)


def speed(arguments: argparse.Namespace) -> int:
    """Time networks."""
    from safmn.evaluation.paper_tables import networks_of
    from safmn.evaluation.speed import measure, speed_table
    from safmn.evaluation.speed_sides import with_values

    methods = shared.opened(arguments, with_values=True) or [
        with_values(method) for method in networks_of(arguments.table, arguments.scale or 4)
    ]
    protocol = _opened_protocol(arguments, arguments.size, memory=not arguments.no_memory)
    speeds, left_out = measure(methods, protocol, backends=arguments.backends, precisions=arguments.precisions)
    found = speed_table(speeds, protocol)
    found.notes += [f"left out: {reason}" for reason in left_out]
    shared.show([found], arguments.output)
    return 0


def table(arguments: argparse.Namespace) -> int:
    """Rebuild a table of the paper."""
    from safmn.evaluation import bench

    methods = shared.opened(arguments) or bench.shipped_and_bicubic(arguments.scale)
    protocol = _opened_protocol(arguments, (720, 1280))
    tables, failures = bench.paper_tables(
        arguments.table,
        methods,
        scale=arguments.scale,
        data=arguments.data or bench.default_data(),
        protocol=protocol,
        remember=not arguments.again,
    )
    shared.show(tables, arguments.output)
    return _report(failures)


def plot(arguments: argparse.Namespace) -> int:
    """Draw PSNR over cost."""
    from safmn.evaluation import bench, scatter

    scatter.check_installed()
    arguments.scale = arguments.scale or 4
    methods = shared.opened(arguments) or bench.shipped_and_bicubic(arguments.scale)
    protocol = _opened_protocol(arguments, (720, 1280), memory=False)
    timed = arguments.x == "time"
    found, failures, _ = bench.all_entries(
        arguments.table,
        methods,
        scale=arguments.scale,
        data=arguments.data or bench.default_data(),
        protocol=protocol,
        remember=not arguments.again,
        timed=timed,
    )
    points = scatter.points(found[arguments.scale], arguments.set_name, by_time=timed)
    scatter.draw(points, arguments.output, set_name=arguments.set_name, scale=arguments.scale, by_time=timed)
    say(f"written to {arguments.output}: {len(points)} points")
    return _report(failures)


def _opened_protocol(arguments: argparse.Namespace, size: tuple[int, int], *, memory: bool = True) -> Protocol:
    import torch

    from safmn.evaluation.speed_sides import WARM_UP, Protocol
    from safmn.runtime.execution import named_device

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    warm_up = min(WARM_UP, arguments.runs)
    return Protocol(
        named_device(arguments.device),
        arguments.runs,
        warm_up,
        output=size,
        memory=memory,
        remember=not arguments.again,
    )


def _report(failures: Sequence[str]) -> int:
    for failure in failures:
        complain(f"not measured: {failure}")
    return EXIT_USER_ERROR if failures else 0
