"""``safmn app``: open a page in the browser that upscales the images that are dropped into it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from safmn.errors import OptionError, exit_status
from safmn.system.console import ArgumentParser, say

_MAX_PIXELS = 24_000_000
_MAX_MEGABYTES = 50


def _parser() -> argparse.ArgumentParser:
    p = ArgumentParser(
        prog="safmn app",
        description="Open a page in the browser that upscales the images that are dropped into it. It runs on this "
        "computer and sends nothing elsewhere. Ctrl-C ends it and deletes all uploads.",
    )
    p.add_argument("--weights", action="append", default=[], metavar="FILE", help="offer these weights, too")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps (default: auto)")
    p.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at; 0.0.0.0 lets other computers in (default: %(default)s)",
    )
    p.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    p.add_argument("--no-browser", action="store_true", help="do not open a browser")
    p.add_argument(
        "--max-pixels", type=int, default=_MAX_PIXELS, metavar="N", help="refuse larger images (default: %(default)s)"
    )
    p.add_argument(
        "--max-megabytes",
        type=int,
        default=_MAX_MEGABYTES,
        metavar="N",
        help="refuse larger files (default: %(default)s)",
    )
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C and return the exit status."""
    options = _parser().parse_args(argv)
    for name in ("max_pixels", "max_megabytes"):
        if getattr(options, name) < 1:
            raise OptionError(f"--{name.replace('_', '-')} {getattr(options, name)}: choose 1 or more")
    from safmn.app.page import Page
    from safmn.system.signals import sigterm_as_ctrl_c

    page = Page(
        options.weights, device=options.device, max_pixels=options.max_pixels, max_megabytes=options.max_megabytes
    )
    try:
        with sigterm_as_ctrl_c(), contextlib.suppress(KeyboardInterrupt):
            page.serve(options.host, options.port, open_browser=not options.no_browser)
    finally:
        page.close()
    say("closed; all uploads and results are deleted")
    return 0
