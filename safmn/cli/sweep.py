"""``safmn sweep``: train every combination of some values of an option file, and compare the runs.

``safmn sweep -opt train.yml train.optim_g.lr=1e-3,5e-4 network_g.dim=36,48 --jobs 2`` trains four runs, two at a time.
Each has its own folder, <name>_lr=0.001_dim=36. Every run is started with --auto_resume: after an interruption the same
command goes on with the runs that are not finished. At the end there are a table (sweep.md) and a plot (sweep.png) in
experiments/<name>_sweep.

Exit status: 0 all runs are done; 1 a run failed (the others are done); 2 a mistake in the arguments or the option file;
130 after Ctrl-C, 143 after SIGTERM: the runs under way are saved.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from safmn.errors import exit_status
from safmn.system.console import ArgumentParser


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="safmn sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file, or a name that `safmn options` lists")
    parser.add_argument("values", nargs="+", metavar="KEY=V1,V2", help="a key of the file and its values")
    parser.add_argument("--tolerant", action="store_true", help="warn about unknown keys instead of refusing the file")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; default: 1")
    return parser


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep and return the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        parser.error("--jobs must be 1 or more")
    from safmn.training.sweep import sweep

    return sweep(arguments.opt, arguments.values, jobs=arguments.jobs, tolerant=arguments.tolerant)
