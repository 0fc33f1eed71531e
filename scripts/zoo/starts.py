"""Take the weights that the runs of options/zoo started from out of this repository's history.

``python scripts/zoo/starts.py`` writes ``experiments/starts/<name>.safetensors`` for each. They are what earlier runs
ended with, and are not kept in the tree. Needs a clone with its whole history (``git fetch --unshallow``).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.errors import UserError, exit_status
from safmn.system.console import say
from safmn.system.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "99dd631"  # the last one that holds all of them
SCALES = ("x2", "x3", "x4")
# name of the start -> its place in that commit
STARTS = {
    "gpu_x4_19500": "docs/runs/gpu_x4_19500.safetensors",
    **{
        f"{run}_{scale}": f"docs/runs/{run}_{scale}.safetensors"
        for run in ("body", "photos", "hard", "gpu_hard")
        for scale in SCALES
    },
    **{f"drawings_{scale}": f"safmn/zoo/safmn-{scale}.safetensors" for scale in SCALES},
    **{f"{run}_real_x4": f"docs/runs/{run}_real_x4.safetensors" for run in ("long", "longer")},
    "longest_real_x4": "safmn/zoo/safmn-x4-real.safetensors",
}


def content(place: str) -> bytes:
    """The bytes of a file of that commit.

    Raises:
        UserError: the history does not hold it.
    """
    command = ["git", "-C", str(ROOT), "show", f"{COMMIT}:{place}"]
    shown = subprocess.run(command, capture_output=True)
    if shown.returncode:
        raise UserError(
            f"commit {COMMIT} is not in this clone; get the whole history: git fetch --unshallow "
            f"({shown.stderr.decode(errors='replace').strip()})"
        )
    return shown.stdout


@exit_status
def main() -> int:
    """Write all of them and return the exit status."""
    for name, place in STARTS.items():
        target = ROOT / "experiments" / "starts" / f"{name}.safetensors"
        write_atomically(target, content(place))
        say(f"{target.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
