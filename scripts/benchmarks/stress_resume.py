"""Kill a training run 200 times at random moments and compare its final files with those of an uninterrupted run.

The test suite does the same with 20 kills; this script uses the code of tests/test_resume.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny_run  # noqa: E402
from test_resume import kill_until_done  # noqa: E402

from safmn.system.console import say  # noqa: E402


def main() -> None:
    """Run the comparison without and with loader processes, with half of the kills each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as name:
        uninterrupted = Path(name) / "uninterrupted"
        tiny_run.make_images(uninterrupted)
        if tiny_run.finish(tiny_run.write_options(uninterrupted, tiny_run.options(uninterrupted))) != 0:
            sys.exit(f"the uninterrupted run failed: {(uninterrupted / 'options.log').read_text()}")
        for workers in (0, 2):
            fresh = Path(name) / f"workers{workers}"
            fresh.mkdir()
            kill_until_done(fresh, uninterrupted, workers, kills // 2)
            say(f"{kills // 2} kills with {workers} loader processes: the same bytes as without kills")


if __name__ == "__main__":
    main()
