"""Extract the initial weights of the runs in options/zoo from this repository's history.

``python scripts/zoo/starts.py`` writes ``experiments/starts/<name>.safetensors`` for each. They are the final weights
of earlier runs, and are no longer in the tree. The script needs a clone with its whole history (``git fetch
--unshallow``).
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
COMMIT = "99dd631"  # the last commit with all but the last one
SCALES = ("x2", "x3", "x4")
# name of the weights -> path in that commit, or commit:path
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
    **{f"flat_{scale}": f"53c705e:safmn/weights/zoo/safmn-{scale}.safetensors" for scale in SCALES},
    "flat_real_x4": "53c705e:safmn/weights/zoo/safmn-x4-real.safetensors",
    "clean_real_x4": "b544da6:safmn/weights/zoo/safmn-x4-real.safetensors",
}


def content(place: str) -> bytes:
    """Return the content of a file, ``path`` in that commit or ``commit:path``.

    Raises:
        UserError: the clone does not have the commit.
    """
    commit, path = place.split(":") if ":" in place else (COMMIT, place)
    command = ["git", "-C", str(ROOT), "show", f"{commit}:{path}"]
    shown = subprocess.run(command, capture_output=True)
    if shown.returncode:
        raise UserError(
            f"commit {commit} is not in this clone; get the whole history: git fetch --unshallow "
            f"({shown.stderr.decode(errors='replace').strip()})"
        )
    return shown.stdout


@exit_status
def main() -> int:
    """Write all weights and return the exit status."""
    for name, place in STARTS.items():
        target = ROOT / "experiments" / "starts" / f"{name}.safetensors"
        write_atomically(target, content(place))
        say(f"{target.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
