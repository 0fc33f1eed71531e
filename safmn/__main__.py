"""``python -m safmn <verb>``: the console command where its script is not on the path."""

import sys

from safmn.cli import main

sys.exit(main())
