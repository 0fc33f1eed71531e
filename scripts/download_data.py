"""Get data sets, like ``safmn prepare download``: ``python scripts/download_data.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installing the package

from safmn.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main(["download", *sys.argv[1:]]))
