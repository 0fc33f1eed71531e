"""The console command ``safmn <verb>``. Each verb is a module with ``main(argv) -> status``, imported on use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from safmn.errors import EXIT_USER_ERROR, WITHOUT_DESKTOP, did_you_mean
from safmn.system.console import complain, say

# verb -> (module with main(argv), description)
VERBS = {
    "train": ("safmn.train", "train a network from an option file"),
    "sweep": ("safmn.cli.sweep", "train every combination of some values, and compare the runs"),
    "test": ("safmn.test", "test a network on benchmark sets, from an option file or weights"),
    "upscale": ("safmn.cli.upscale", "upscale images, folders and videos"),
    "app": ("safmn.cli.app", "open a page in the browser that upscales images"),
    "bench": ("safmn.cli.bench", "cost, quality and speed of networks beside the published tables"),
    "compare": ("safmn.cli.compare", "compare weights, folders of images and bicubic, image by image"),
    "score": ("safmn.cli.score", "score folders of images that any code made"),
    "export": ("safmn.cli.export", "write a network as ONNX, OpenVINO, ncnn or TorchScript"),
    "prepare": ("safmn.cli.prepare", "make LR images, sub-images, lmdb, patch stores; download data sets"),
    "degrade": ("safmn.cli.degrade", "degrade an image as real-world training does"),
    "options": ("safmn.cli.options", "list the option files that come with the package, or print one"),
    "zoo": ("safmn.cli.zoo", "list the weights that come with the package"),
    "report": ("safmn.cli.report", "show training runs and tests in one HTML file"),
    "doctor": ("safmn.cli.doctor", "check this machine and, with -opt, a run before it starts"),
}


def usage() -> str:
    """Return the help text."""
    verbs = "\n".join(f"  {verb:10s}{what}" for verb, (_, what) in VERBS.items())
    return f"usage: safmn <verb> [options]      (safmn <verb> --help for its options)\n\n{verbs}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn`` with ``argv`` (default: the command line) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        say(usage())
        return 0 if arguments else EXIT_USER_ERROR
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        from safmn import __version__

        say(f"safmn {__version__}")
        return 0
    if verb not in VERBS:
        complain(f"safmn: error: no verb {verb!r}.{did_you_mean(verb, VERBS)}\n\n{usage()}")
        return EXIT_USER_ERROR
    try:
        status: int = importlib.import_module(VERBS[verb][0]).main(rest)
    except ImportError as error:
        if error.name is not None or "cannot open shared object file" not in str(error):
            raise
        complain(f"safmn: error: {error}. {WITHOUT_DESKTOP}")
        return EXIT_USER_ERROR
    return status


if __name__ == "__main__":
    sys.exit(main())
