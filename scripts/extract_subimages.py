"""Cut images into sub-images, like ``safmn prepare subimages``: ``python scripts/extract_subimages.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installing the package

from safmn.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main(["subimages", *sys.argv[1:]]))
