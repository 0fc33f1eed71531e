"""Build an lmdb of images, as ``safmn prepare lmdb`` does: ``python scripts/make_lmdb.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without the package installed, too

from safmn.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main(["lmdb", *sys.argv[1:]]))
