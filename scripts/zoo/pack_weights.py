"""Measure trained weights and add them to the package: ``scripts/zoo/pack_weights.py NET.pth --name safmn-x2 ...``.

The header of the safetensors file describes the network, its training and its scores. The checksum goes into
``safmn/weights/zoo/index.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn import weights
from safmn.data import build_dataset
from safmn.errors import exit_status
from safmn.evaluation.scoring import evaluate
from safmn.options import load_options
from safmn.system.console import say
from safmn.system.files import write_atomically
from safmn.weights.zoo import FOLDER, INDEX


def measure(path: Path, param_key: str, test: str, sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the mean of each metric on each of the named sets of a test option file, on full frames."""
    options = load_options(test, mode="test")
    assert options.val is not None
    network = weights.load_network(path, param_key=param_key)
    sections = {section["name"]: section for section in options.datasets.values()}
    results = {}
    for name in sets:
        dataset = build_dataset(sections[name], phase="test", scale=options.scale)
        results[name] = evaluate(network, dataset, name=name, metrics=options.val.metrics, device="cpu").mean
    return results


@exit_status
def main() -> int:
    """Measure the weights, and write the file and the index; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="net_g_<iter>.pth of a run")
    parser.add_argument("--name", required=True, help="name in the zoo, e.g. safmn-x2")
    parser.add_argument("--param-key", default="params_ema", choices=["params", "params_ema"])
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--option-file", required=True, help="the option file that trained them, in options/")
    parser.add_argument("--commit", required=True, help="git commit of the code that trained them (the log names it)")
    parser.add_argument("--data", required=True, help="short description of the training data")
    parser.add_argument("--licence", default="CC BY-SA 4.0")
    parser.add_argument("--test", required=True, help="the option file to test with, e.g. options/test_x2.yml")
    parser.add_argument("--sets", nargs="+", default=["Set5", "Set14"], help="names of its sets to measure")
    arguments = parser.parse_args()
    state = weights.load_state_dict(arguments.weights, param_key=arguments.param_key)
    found = weights.recognise(state)
    card = {
        "type": found.type,
        "arguments": found.kwargs,
        "scale": found.scale,
        "iterations": arguments.iterations,
        "option_file": arguments.option_file,
        "commit": arguments.commit,
        "data": arguments.data,
        "licence": arguments.licence,
        "param_key": arguments.param_key,
        "metrics": measure(arguments.weights, arguments.param_key, arguments.test, arguments.sets),
    }
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in card.items()}
    file = FOLDER / f"{arguments.name}.safetensors"
    weights.save_weights(file, params=state, metadata=header)
    index = json.loads(INDEX.read_text(encoding="utf-8"))
    index[arguments.name] = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    write_atomically(INDEX, json.dumps(dict(sorted(index.items())), indent=1) + "\n")
    say(f"{file}\n{json.dumps(card, indent=1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
