"""``safmn compare``: the same images by several methods, paired image by image."""

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
        prog="safmn compare",
        description="Score weights, networks, folders of images and bicubic on the same images. The table has their "
        "cost, their scores, and the mean difference to the first one with a 95 percent interval, paired by image. "
        "Scores are kept: a second call measures only what is new. Exit status: 0 done; 2 a wrong argument, set or "
        "image.",
    )
    shared.add_methods(p, nargs="+", text="what to compare; the first is what others are compared with")
    shared.add_data(p, required=True)
    shared.add_metrics(p)
    shared.add_output(p)
    p.add_argument("--per-image", type=Path, metavar="FILE", help="also write every score (.csv, .md, .tex, .html)")
    p.add_argument("--report", type=Path, metavar="FILE", help="also write a page with pictures (.html)")
    p.add_argument("--crops", type=Path, metavar="FILE", help="write a grid of crops of one image (.png)")
    p.add_argument("--image", metavar="NAME", help="its image: NAME or SET/NAME (default: where scores differ most)")
    p.add_argument(
        "--box", metavar="x,y,w,h", help="its box, in pixels of the GT image (default: where images differ most)"
    )
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn compare`` and return its exit status."""
    arguments = parser().parse_intermixed_args(argv)
    shared.check_output(arguments.output)
    shared.check_output(arguments.per_image)
    box = None if arguments.box is None else shared.box_of(arguments.box)
    if arguments.crops is None and (box or arguments.image):
        raise OptionError("--box and --image belong to --crops FILE")
    if arguments.crops is not None and arguments.crops.suffix != ".png":
        raise OptionError(f"--crops {arguments.crops}: the ending must be .png")
    if arguments.report is not None and arguments.report.suffix != ".html":
        raise OptionError(f"--report {arguments.report}: the ending must be .html")
    return _compare(arguments, box)


def _compare(arguments: argparse.Namespace, box: tuple[int, int, int, int] | None) -> int:
    from safmn.evaluation import metric_choice
    from safmn.evaluation.comparison import compare, crop_grid, per_image_table
    from safmn.evaluation.costs import cost_of
    from safmn.evaluation.method_tables import method_table
    from safmn.evaluation.tables import write
    from safmn.imaging import write_image
    from safmn.runtime.execution import named_device

    methods = shared.opened(arguments)
    metrics = metric_choice.sections(shared.chosen_metrics(arguments), methods[0].scale, fetch=arguments.fetch)
    device = named_device(arguments.device)
    found = compare(methods, arguments.data, metrics, device=device, remember=not arguments.again)
    costs = {method.key: cost_of(method) for method in methods}
    title = f"Comparison at x{methods[0].scale}"
    table = method_table(title, methods, found.results, metrics, costs=costs, with_differences=True)
    shared.show([table], arguments.output)
    if arguments.per_image is not None:
        write([per_image_table(methods, found.results, metrics)], arguments.per_image)
        say(f"written to {arguments.per_image}")
    if arguments.report is not None:
        from safmn.report.compared import comparison_page
        from safmn.system.files import write_atomically

        write_atomically(arguments.report, comparison_page(found, table).render())
        say(f"written to {arguments.report}")
    if arguments.crops is not None:
        picture, name, (left, top, right, bottom) = crop_grid(found, image=arguments.image, box=box)
        write_image(arguments.crops, picture)
        say(f"written to {arguments.crops}: {name}, --box {left},{top},{right - left},{bottom - top}")
    return 0
