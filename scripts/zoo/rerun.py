"""Train the first iterations of a published run again, and compare every logged loss with the published log.

``rerun.py docs/runs/body_x2.jsonl -opt options/zoo/safmn_x2_2_body.yml`` runs 200 iterations in a minute. On the same
kind of processor, with the same torch and number of threads, the losses should be equal; otherwise the last digits
differ.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.system.console import say


def losses(record: Path, last: int) -> dict[int, dict[str, float]]:
    """Return the entries of the losses by iteration, up to iteration ``last``."""
    entries = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return {entry["iter"]: entry for entry in entries if "lr" in entry and entry["iter"] <= last}


def main() -> int:
    """Train and compare; return the exit status.

    It is 0 if all losses are equal, 1 if some differ, and that of the training if this fails.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="log of the published run")
    parser.add_argument("-opt", required=True, metavar="FILE", help="its option file")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1, help="number of processes of the published run (torchrun)")
    arguments = parser.parse_args()
    name = f"rerun_{arguments.record.stem}"
    shutil.rmtree(Path("experiments") / name, ignore_errors=True)
    changes = [f"name={name}", f"train:total_iter={arguments.iterations}"]
    python = [sys.executable]
    if arguments.processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(arguments.processes)]
    command = [*python, "safmn/train.py", "-opt", arguments.opt, "--force_yml", *changes]
    if status := subprocess.run(command, check=False).returncode:
        return status
    expected = losses(arguments.record, arguments.iterations)
    got = losses(Path("experiments") / name / "record.jsonl", arguments.iterations)
    different = [iteration for iteration in expected if got.get(iteration) != expected[iteration]]
    for iteration in different:
        say(f"iteration {iteration}: {got.get(iteration)} instead of {expected[iteration]}")
    say(f"{len(expected) - len(different)} of {len(expected)} logged iterations are equal")
    return 1 if different or not expected else 0


if __name__ == "__main__":
    sys.exit(main())
