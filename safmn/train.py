"""Train a network from an option file: ``python safmn/train.py -opt options/train_x4.yml`` or ``safmn train -opt ...``.

Exit status: 0 done; 1 a bug, with a traceback; 2 a mistake in the options or the data; 130, 143, 138, 129 or 131 after
SIGINT, SIGTERM, SIGUSR1, SIGHUP or SIGQUIT. After a signal the run is saved, and the same command with --auto_resume
resumes it. Ctrl-C before the first step and a second Ctrl-C save nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file: Python has put safmn/ first on the path, but we need its parent
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from safmn.errors import exit_status
from safmn.system.console import ArgumentParser


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="safmn train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-opt", required=True, metavar="FILE", help="option file (YAML), or the name of one that `safmn options` lists"
    )
    parser.add_argument("--auto_resume", action="store_true", help="resume from the newest complete checkpoint")
    parser.add_argument(
        "--allow-changes", action="store_true", help="resume even if options that affect the result have changed"
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument("--debug", action="store_true", help="log every iteration; validate and save every 8")
    parser.add_argument("--tolerant", action="store_true", help="warn about unknown keys instead of refusing the file")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--force_yml",
        nargs="+",
        default=(),
        metavar="A:B=C",
        help="replace values of the option file, e.g. train:ema_decay=0.999",
    )
    return parser


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the training entry point with ``argv`` (default: the command line) and return the exit status."""
    arguments = _parser().parse_args(argv)
    # Where a fork server starts the loader's workers (Linux from Python 3.14 on), it imports this once for all of them.
    multiprocessing.set_forkserver_preload(["safmn.data.loading"])
    import torch

    from safmn import compat

    compat.require_basicsr()
    from safmn.options import load_options
    from safmn.runtime import distributed
    from safmn.runtime.agreement import together
    from safmn.training.build import build_trainer

    options = load_options(
        arguments.opt,
        mode="train",
        overrides=arguments.force_yml,
        debug=arguments.debug,
        tolerant=arguments.tolerant,
    )
    use_cuda = torch.cuda.is_available() and options.num_gpu != 0
    dist = options.dist_params
    ranks = distributed.join(arguments.launcher, backend=dist.backend, port=dist.port, use_cuda=use_cuda)
    try:
        with together():
            resume = arguments.auto_resume or distributed.restarted()
            trainer = build_trainer(options, ranks, auto_resume=resume, allow_changes=arguments.allow_changes)
            return trainer.run()
    finally:
        distributed.leave()


if __name__ == "__main__":
    sys.exit(main())
