"""``safmn prepare <verb>``. Each verb is a module with ``main(argv) -> exit status``, imported on use.

Exit statuses: 0 done; 1 some images failed; 2 a user's mistake or a failed download; 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from safmn.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, did_you_mean
from safmn.prepare.arguments import PARSERS
from safmn.system.console import complain, say

# verb -> (module with main(argv), description)
VERBS = {
    "download": (
        "safmn.prepare.download",
        "download DIV2K, Flickr2K, DF2K and the benchmark sets from their official hosts",
    ),
    "lr": ("safmn.prepare.lr", "make LR images from HR images with MATLAB's bicubic"),
    "subimages": ("safmn.prepare.subimages", "cut HR and LR images into squares (480, step 240) for training"),
    "meta": ("safmn.prepare.meta", "list the images of a folder in a BasicSR meta-info file"),
    "lmdb": ("safmn.prepare.image_lmdb", "put the images of a folder into one lmdb in BasicSR's format"),
    "store": ("safmn.prepare.store", "decode HR and LR images into one file for training"),
    "samples": ("safmn.prepare.samples", "write a contact sheet of what training would see"),
}


def usage() -> str:
    """Return the help text."""
    verbs = "\n".join(f"  {verb:10s} {what}" for verb, (_, what) in VERBS.items())
    return f"""usage: safmn prepare <verb> [options]      (safmn prepare <verb> --help for its options)

{verbs}

Every verb can be stopped with Ctrl-C and run again to resume; it never leaves partial output files.
Exit status: 0 done; 1 some images failed; 2 a user's mistake or a failed download; 130 interrupted.
For training as published:
  safmn prepare download df2k div2k-val benchmark
  safmn prepare lr --hr datasets/DF2K/HR --scales 2 3 4
  safmn prepare subimages --hr datasets/DF2K/HR --scales 2 3 4
datasets/README.md describes the layout."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn prepare`` with ``argv`` (default: the command line) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        say(usage())
        return 0 if arguments else EXIT_USER_ERROR
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        complain(f"safmn: error: prepare has no verb {verb!r}.{did_you_mean(verb, VERBS)}\n\n{usage()}")
        return EXIT_USER_ERROR
    PARSERS[verb]().parse_args(rest)  # help and mistakes are answered before anything else is imported
    module = importlib.import_module(VERBS[verb][0])
    status: int = module.main(rest)
    if status == EXIT_INTERRUPTED:
        complain("Finished files are kept; run the same command again to resume.")
    return status


if __name__ == "__main__":
    sys.exit(main())
