"""Compare training recipes with the same budget: variants of ``options/zoo/study_x4.yml``, tested on Set5 and Set14.

Every run is trained on the same number of LR pixels (``--patches`` times 32x32; ``budget`` is a factor for it), and
differs from ``base`` in one respect. The runs are in ``experiments/study_<variant>_<seed>``; finished ones are not
trained again. The script prints a Markdown table with the mean over the seeds: PSNR-Y of the EMA weights, the
difference to ``base``, and PSNR-Y of the raw weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn.system.console import say

OPTIONS = Path("options/zoo/study_x4.yml")
TEST = Path("options/test_x4.yml")
SCALE = 4
SETS = ("Set5", "Set14")


@dataclass(frozen=True)
class Variant:
    """Changes to the option file.

    Attributes:
        meaning: description for the table.
        batch: batch size in units of 32x32 LR pixels, from which the number of iterations follows.
        overrides: ``key:path=value`` as for ``--force_yml``.
        tune: share of the iterations for a second run with ``tune_overrides``, which starts from the first's weights.
        budget: factor for the number of patches.
    """

    meaning: str
    batch: int = 8
    overrides: tuple[str, ...] = ()
    tune: float = 0.0
    tune_overrides: tuple[str, ...] = ()
    budget: float = 1.0


def _patches(side: int, batch: int) -> tuple[str, ...]:
    return f"datasets:train:gt_size={SCALE * side}", f"datasets:train:batch_size_per_gpu={batch}"


ADAM = ("train:optim_g={type: Adam, lr: 1.5e-3, betas: [0.9, 0.99]}",)
MSE = ("train:optim_g:lr=2e-4", "train:warmup_iter=-1", "train:pixel_opt:type=MSELoss", "train:fft_opt:loss_weight=0.0")
VARIANTS = {
    "base": Variant("Muon, weight decay 0.2, batch 8, FFT 0.05, average 0.999 with warm-up"),
    "adam": Variant("Adam", overrides=ADAM),
    "decay0": Variant("no weight decay", overrides=("train:optim_g:weight_decay=0.0",)),
    "decay0.3": Variant("weight decay 0.3", overrides=("train:optim_g:weight_decay=0.3",)),
    "decay3": Variant("weight decay 3", overrides=("train:optim_g:weight_decay=3.0",)),
    "batch16": Variant("batch 16", batch=16),
    "ratio1": Variant("matrix_lr_ratio 1", overrides=("train:optim_g:matrix_lr_ratio=1.0",)),
    "ratio6": Variant("matrix_lr_ratio 6", overrides=("train:optim_g:matrix_lr_ratio=6.0",)),
    "ema_0.99": Variant("average 0.99", overrides=("train:ema_decay=0.99",)),
    "ema_0.9999": Variant("average 0.9999", overrides=("train:ema_decay=0.9999",)),
    "ema_plain": Variant("average 0.999 without warm-up", overrides=("train:ema_warmup=false",)),
    "fft0": Variant("FFT weight 0", overrides=("train:fft_opt:loss_weight=0.0",)),
    "fft0.2": Variant("FFT weight 0.2", overrides=("train:fft_opt:loss_weight=0.2",)),
    "patch64": Variant("LR patches of 64x64, batch 2", overrides=_patches(64, 2)),
    "patch48": Variant("LR patches of 48x48, half as many iterations", batch=18, overrides=_patches(48, 8)),
    "patch24": Variant("LR patches of 24x24, batch 16", batch=9, overrides=_patches(24, 16)),
    "no_warmup": Variant("no warm-up of the rate", overrides=("train:warmup_iter=-1",)),
    "twice": Variant("twice the iterations", budget=2.0),
    "all_photos": Variant(
        "all photographs", overrides=(f"datasets:train:dataroot=datasets/photos/all_x{SCALE}.store",)
    ),
    "hard_photos": Variant(
        "the hard ones of all photographs", overrides=(f"datasets:train:dataroot=datasets/photos/hard_x{SCALE}.store",)
    ),
    "mse_tune": Variant("last tenth with MSE alone", tune=0.1, tune_overrides=MSE),
}


def train(name: str, iterations: int, overrides: Sequence[str]) -> Path:
    """Train for ``iterations``, or continue an interrupted run, and return the file of the weights."""
    changes = [f"name={name}", f"train:total_iter={iterations}", f"train:scheduler:periods=[{iterations}]"]
    changes += [f"val:val_freq={iterations}", f"logger:save_checkpoint_freq={iterations}", *overrides]
    weights = Path("experiments") / name / "models" / f"net_g_{iterations}.pth"
    if not weights.exists():
        command = [sys.executable, "safmn/train.py", "-opt", str(OPTIONS), "--auto_resume", "--force_yml", *changes]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-2000:]}")
    return weights


def _is_of(report: Path, weights: Path) -> bool:
    """Return whether a report is of these weights, and not of earlier ones in the same file."""
    tested = json.loads(report.read_text(encoding="utf-8"))["weights"]["sha256"]
    return bool(tested == hashlib.sha256(weights.read_bytes()).hexdigest())


def psnr(weights: Path, key: str) -> list[float]:
    """Return the PSNR-Y of ``params`` or ``params_ema`` on each of the sets."""
    name = f"{weights.parent.parent.name}_{key}"
    report = Path("results") / name / "metrics.json"
    if not report.exists() or not _is_of(report, weights):
        test = ["safmn/test.py", "-opt", str(TEST), "--force_yml", f"name={name}", "expect={}"]
        test += [f"path:pretrain_network_g={weights}", f"path:param_key_g={key}"]
        subprocess.run([sys.executable, *test], capture_output=True, check=False)  # status 2 if other sets are missing
    sets = json.loads(report.read_text(encoding="utf-8"))["sets"]
    return [sets[name]["mean"]["psnr"] for name in SETS]


def run(key: str, seed: int, patches: int) -> tuple[list[float], list[float], float]:
    """Train one variant; return PSNR-Y of the EMA and of the raw weights, and the minutes (about 0 if finished)."""
    variant = VARIANTS[key]
    began = time.monotonic()
    iterations = round(patches * variant.budget / variant.batch)
    first = round(iterations * (1 - variant.tune))
    overrides = [f"manual_seed={seed}", f"datasets:train:batch_size_per_gpu={variant.batch}", *variant.overrides]
    name = f"study_{key}_{seed}"
    weights = train(name, first, overrides)
    if first < iterations:
        start = [f"path:pretrain_network_g={weights}", "path:param_key_g=params_ema", *variant.tune_overrides]
        weights = train(f"{name}_tuned", iterations - first, [*overrides, *start])
    minutes = (time.monotonic() - began) / 60
    return psnr(weights, "params_ema"), psnr(weights, "params"), minutes


def table(rows: dict[str, list[tuple[list[float], list[float], float]]]) -> str:
    """Return the Markdown table with the means over the seeds."""
    lines = ["| variant | Set5 | Set14 | to base | raw Set5 | seeds' spread | minutes |", "| --- " * 7 + "|"]
    base = statistics.mean(run[0][0] for run in rows["base"])
    for key, runs in rows.items():
        set5, set14 = (statistics.mean(run[0][i] for run in runs) for i in range(2))
        raw = statistics.mean(run[1][0] for run in runs)
        spread = max(run[0][0] for run in runs) - min(run[0][0] for run in runs)
        minutes = statistics.mean(run[2] for run in runs)
        lines.append(
            f"| {VARIANTS[key].meaning} (`{key}`) | {set5:.2f} | {set14:.2f} | {set5 - base:+.2f} | {raw:.2f} "
            f"| {spread:.2f} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=[], help=f"of {', '.join(VARIANTS)}; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    parser.add_argument(
        "--patches", type=int, default=8000, help="LR pixels that a run is trained on, in units of 32x32"
    )
    arguments = parser.parse_args()
    if unknown := [key for key in arguments.variants if key not in VARIANTS]:
        parser.error(f"no variant {', '.join(unknown)}")
    chosen = ["base", *(key for key in arguments.variants or VARIANTS if key != "base")]
    rows: dict[str, list[tuple[list[float], list[float], float]]] = {key: [] for key in chosen}
    for seed in arguments.seeds:
        for key in chosen:
            rows[key].append(run(key, seed, arguments.patches))
            say(f"{key}, seed {seed}: {rows[key][-1][0][0]:.2f} dB")
    say(table(rows))


if __name__ == "__main__":
    main()
