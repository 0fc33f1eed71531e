"""Test a network: ``python safmn/test.py -opt options/test_x4.yml``, or ``safmn test -opt ...``.

Without an option file, ``safmn test --weights FILE`` recognises the network and tests it on the benchmark sets in
datasets/benchmark, or on the sets given by --benchmark or --set. The command prints a table of the results beside the
published numbers and writes results/<name>/metrics.json and metrics.md.

Exit status: 0 done; 1 a number differs from the one that the option file expects; 2 a mistake in the options or
weights, or a set is missing or damaged (the others are tested); 130 after Ctrl-C and 143 after SIGTERM, with a report
of the sets finished so far. The results of an earlier test of the same name are renamed and kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # run as a file: Python has put safmn/ first on the path, but we need its parent
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from safmn.errors import exit_status
from safmn.system.console import ArgumentParser

if TYPE_CHECKING:
    import torch


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="safmn test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("the network")
    what.add_argument("-opt", metavar="FILE", help="option file (YAML), or the name of one that `safmn options` lists")
    what.add_argument(
        "--weights",
        metavar="FILE",
        help="weights to test; with -opt: the weights of its network",
    )
    what.add_argument(
        "--imports",
        nargs="+",
        default=(),
        metavar="FILE.py",
        help="code of your own that registers the network; it is run",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, xpu, mps, auto; default: num_gpu of the option file")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="a second row for each set: mean of 8 flips and rotations (8 times the work)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="compute images in tiles of N LQ pixels; 0: whole images (default: val.tile of the option file, or 0)",
    )
    parser.add_argument(
        "--require_all",
        action="store_true",
        help="fail if any set is missing, even one that its authors only give on request",
    )
    file = parser.add_argument_group("with -opt")
    file.add_argument(
        "--force_yml",
        nargs="+",
        default=(),
        metavar="A:B=C",
        help="replace values of the option file, e.g. path:pretrain_network_g=net_g_latest.pth",
    )
    file.add_argument(
        "--debug",
        action="store_true",
        help="write the results to debug_<name>; show the whole traceback of an error in your own code",
    )
    file.add_argument("--tolerant", action="store_true", help="warn about unknown keys instead of refusing the file")
    file.add_argument("--auto_resume", action="store_true", help="ignored, for compatibility with BasicSR")
    file.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    alone = parser.add_argument_group("other sets than those of -opt")
    alone.add_argument("--scale", type=int, help="scale of the network; needed for weights that serve several")
    alone.add_argument(
        "--set", dest="sets", nargs="+", action="extend", default=[], metavar="NAME=HR_DIR,LR_DIR", help="test sets"
    )
    alone.add_argument("--benchmark", metavar="DIR", help="folder of <Set>/HR and <Set>/LR_bicubic/X<scale>")
    alone.add_argument("--save_img", action="store_true", help="write the output images")
    alone.add_argument(
        "--kernels",
        choices=["auto", "native", "torch"],
        default="auto",
        help="on a CPU: the native kernels if they give the network's result (auto), or torch's operations",
    )
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; an argument that has no effect is an error."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not (arguments.opt or arguments.weights):
        parser.error("one of the arguments -opt --weights is required")
    for name in ("force_yml", "tolerant"):
        if getattr(arguments, name) and not arguments.opt:
            parser.error(f"--{name} is only allowed with -opt")
    if arguments.opt and not _own_sets(arguments):
        for name in ("scale", "save_img", "kernels"):
            if getattr(arguments, name) != parser.get_default(name):
                instead = " (for the sets of -opt: --force_yml val:save_img=true)" if name == "save_img" else ""
                parser.error(f"--{name} is only allowed with --weights or with --set or --benchmark{instead}")
    if arguments.tile is not None and arguments.tile < 0:
        parser.error("--tile must be 0 or more")
    return arguments


def _own_sets(arguments: argparse.Namespace) -> bool:
    """Return whether the test is on given sets, not on those of the option file."""
    return bool(not arguments.opt or arguments.sets or arguments.benchmark)


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the test entry point with ``argv`` (default: the command line) and return the exit status."""
    arguments = _parse(argv)
    return _on_own_sets(arguments) if _own_sets(arguments) else _from_options(arguments)


def _from_options(arguments: argparse.Namespace) -> int:
    from safmn.evaluation import benchmark as testing
    from safmn.options import load_options
    from safmn.runtime import distributed
    from safmn.runtime.agreement import together
    from safmn.weights import import_code

    import_code(arguments.imports)
    options = load_options(
        arguments.opt,
        mode="test",
        overrides=arguments.force_yml,
        debug=arguments.debug,
        tolerant=arguments.tolerant,
    )
    dist = options.dist_params
    use_cuda = _on_cuda(arguments.device, options.num_gpu)
    ranks = distributed.join(arguments.launcher, backend=dist.backend, port=dist.port, use_cuda=use_cuda)
    try:
        device = _device(arguments.device, options.num_gpu, ranks.local_rank)
        with together():
            with testing.results_folder(options.name, ranks, options.path.results_root) as folder:
                plan = testing.plan_from_options(
                    options,
                    folder,
                    device,
                    weights=arguments.weights,
                    require_all=arguments.require_all,
                    ensemble=arguments.ensemble,
                )
            return testing.run(testing.in_tiles(plan, arguments.tile), ranks, device)
    finally:
        distributed.leave()


def _on_own_sets(arguments: argparse.Namespace) -> int:
    from safmn.evaluation import benchmark as testing
    from safmn.inference.sources import load_named, network_from_options, options_named
    from safmn.runtime import distributed
    from safmn.runtime.agreement import together

    given = {"imports": arguments.imports, "scale": arguments.scale}
    options = None
    if arguments.opt:
        how = {"overrides": arguments.force_yml, "tolerant": arguments.tolerant, "debug": arguments.debug}
        options = options_named(arguments.opt, **how, **given)
    name = options.name if options is not None else _results_name(Path(arguments.weights))
    root = options.path.results_root if options is not None else None
    ranks = distributed.join(arguments.launcher, use_cuda=_on_cuda(arguments.device, None))
    try:
        device = _device(arguments.device, None, ranks.local_rank)
        with together():
            with testing.results_folder(name, ranks, root) as folder:
                if options is None:
                    network = load_named(arguments.weights, device=device, **given)
                else:
                    network = network_from_options(options, arguments.weights, device=device)
                plan = testing.plan_of_network(
                    network,
                    arguments.weights,
                    folder,
                    scale=arguments.scale,
                    pairs=arguments.sets,
                    benchmark=arguments.benchmark,
                    save_images=arguments.save_img,
                    require_all=arguments.require_all,
                    ensemble=arguments.ensemble,
                    kernels=arguments.kernels,
                    options=options,
                )
            return testing.run(testing.in_tiles(plan, arguments.tile), ranks, device)
    finally:
        distributed.leave()


def _results_name(weights: Path) -> str:
    """Return the file's stem, prefixed with the run's name if it lies in a run: all runs use the same file names."""
    parts = weights.absolute().parts
    run = f"{parts[-3]}_" if len(parts) > 3 and parts[-2] == "models" else ""
    return run + weights.stem


def _device(wanted: str | None, num_gpu: int | None, local_rank: int) -> torch.device:
    """Return the device that --device names, otherwise the one that ``num_gpu`` requests."""
    from safmn.runtime.execution import choose_device, named_device

    return choose_device(num_gpu, local_rank) if wanted is None else named_device(wanted, local_rank)


def _on_cuda(device: str | None, num_gpu: int | None) -> bool:
    import torch

    wanted = num_gpu != 0 if device is None else device.startswith(("cuda", "auto"))
    return wanted and torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
