"""Scores of bicubic upscaling on the sets of a test option file: ``bicubic_baseline.py -opt options/test_x4.yml``.

Prints a Markdown table, with the same images, metrics and borders as ``safmn test -opt`` with that file. The bicubic is
that of MATLAB's ``imresize``, as in the tables of papers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.data import build_dataset
from safmn.errors import OptionError, exit_status
from safmn.evaluation.bicubic import bicubic
from safmn.evaluation.scoring import evaluate
from safmn.options import load_options
from safmn.system.console import say, table


@exit_status
def main() -> int:
    """Upscale, evaluate and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file for testing")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="as in safmn test")
    arguments = parser.parse_args()
    options = load_options(arguments.opt, mode="test", overrides=arguments.force_yml)
    if options.val is None or not options.val.metrics:
        raise OptionError(f"{options.source}: val.metrics is missing; it names the metrics to compute")
    metrics, enlarge = options.val.metrics, bicubic(options.scale)
    rows = []
    for section in options.datasets.values():
        dataset, name = build_dataset(section, phase="test", scale=options.scale), section["name"]
        mean = evaluate(enlarge, dataset, name=name, metrics=metrics, device="cpu").mean
        rows.append([name, *(f"{mean[metric]:.4f}" for metric in metrics)])
    say(table(["set", *(f"bicubic, {metric}" for metric in metrics)], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
