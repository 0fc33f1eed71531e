"""Write a meta-info file, like ``safmn prepare meta``: ``python scripts/make_meta_info.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installing the package

from safmn.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main(["meta", *sys.argv[1:]]))
