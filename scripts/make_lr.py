"""Make LR images from HR images, like ``safmn prepare lr``: ``python scripts/make_lr.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installing the package

from safmn.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main(["lr", *sys.argv[1:]]))
