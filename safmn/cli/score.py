"""``safmn score``: score folders of images, whatever made them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from safmn.cli import method_arguments as shared
from safmn.errors import OptionError, exit_status
from safmn.system.console import ArgumentParser, say


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    p = ArgumentParser(
        prog="safmn score",
        description="Score folders of images against GT images, or without GT images by metrics that need none. An "
        "image belongs to the GT image of its name; an addition such as x4 or _SAFMN is allowed. Exit status: 0 done; "
        "2 a wrong argument or image.",
    )
    p.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGES", help="folders; the first is what others are compared with"
    )
    p.add_argument("--gt", type=Path, metavar="DIR", help="folder of the GT images")
    p.add_argument(
        "--reference", type=Path, metavar="DIR", help="folder of real images for FID, KID and CMMD, instead of --gt"
    )
    p.add_argument(
        "--crop", type=int, default=4, metavar="N", help="pixels left out at each edge; usually the scale (default: 4)"
    )
    p.add_argument("--again", action="store_true", help="measure again what was measured before")
    shared.add_metrics(p)
    shared.add_output(p)
    p.add_argument("--per-image", type=Path, metavar="FILE", help="also write every score (.csv, .md, .tex, .html)")
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn score`` and return its exit status."""
    arguments = parser().parse_intermixed_args(argv)
    shared.check_output(arguments.output)
    shared.check_output(arguments.per_image)
    if arguments.crop < 0:
        raise OptionError(f"--crop {arguments.crop}: choose 0 or more")
    from safmn.evaluation import metric_choice
    from safmn.evaluation.comparison import per_image_table, score_folders
    from safmn.evaluation.method_tables import method_table
    from safmn.evaluation.tables import write

    metrics = metric_choice.sections(
        shared.chosen_metrics(arguments), arguments.crop, fetch=arguments.fetch, reference=arguments.reference
    )
    methods, results = score_folders(arguments.images, arguments.gt, metrics, remember=not arguments.again)
    table = method_table("Scores", methods, results, metrics, with_differences=len(methods) > 1)
    shared.show([table], arguments.output)
    if arguments.per_image is not None:
        write([per_image_table(methods, results, metrics)], arguments.per_image)
        say(f"written to {arguments.per_image}")
    return 0
