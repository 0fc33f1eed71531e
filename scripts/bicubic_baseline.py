"""What bicubic enlargement reaches on the sets of a test option file: ``bicubic_baseline.py -opt options/test_x4.yml``.

The same images, metrics and borders as ``safmn test -opt`` with that file; a Markdown table. It is MATLAB's
``imresize``, the bicubic of the papers' tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also without the package installed

from safmn.data import build_dataset
from safmn.errors import OptionError, exit_status
from safmn.evaluation.scoring import evaluate
from safmn.imaging import imresize, to_tensor, to_uint8
from safmn.options import load_options
from safmn.system.console import say, table


def bicubic(scale: int) -> Callable[[Tensor], Tensor]:
    """MATLAB's bicubic enlargement as a network: (1, 3, h, w) to (1, 3, scale * h, scale * w), in [0, 1]."""

    def enlarge(lq: Tensor) -> Tensor:
        return to_tensor(imresize(to_uint8(lq[0]), scale))[None]

    return enlarge


@exit_status
def main() -> int:
    """Enlarge, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file for testing")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="as of safmn test")
    arguments = parser.parse_args()
    options = load_options(arguments.opt, mode="test", overrides=arguments.force_yml)
    if options.val is None or not options.val.metrics:
        raise OptionError(f"{options.source}: val.metrics is missing: nothing says what to measure")
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
