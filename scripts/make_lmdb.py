"""Build an lmdb of images, like ``safmn prepare lmdb``: ``python scripts/make_lmdb.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installing the package

from safmn.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main(["lmdb", *sys.argv[1:]]))
