"""Find dead hidden channels of the channel mixers: ``channel_activity.py --weights safmn-x4 IMAGES...``

GELU is zero to seven digits below -5.5. A hidden channel that stays below -4 for every pixel of every image contributes
almost nothing, gets almost no gradient, and does not recover. For each block the script prints the number of such
channels and the mean magnitude before GELU.

White noise and drawings (drawings.py) may activate channels that are dead on photographs, and may give larger
activations. So the script also prints the range of the output for both, and how much the outputs for drawings differ
from the drawings when they are shrunk again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from drawings import drawing
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from safmn import weights
from safmn.errors import exit_status
from safmn.imaging import imresize, read_rgb, to_tensor
from safmn.system.console import say, table

DEAD = -4.0
DRAWINGS = range(1000, 1040)  # not used in training


def activity(network: nn.Module, images: list[Tensor]) -> list[tuple[int, int, float]]:
    """Return, for each block, the dead hidden channels, all hidden channels, and the mean magnitude before GELU.

    Args:
        network: SAFMN, whose ``feats`` are blocks with a channel mixer ``ccm``.
        images: (3, h, w) in [0, 1].
    """
    largest: list[list[Tensor]] = []
    magnitudes: list[list[float]] = []
    handles = []
    for block in network.feats:  # type: ignore[union-attr]
        highs: list[Tensor] = []
        means: list[float] = []

        def see(
            _: nn.Module, __: object, hidden: Tensor, highs: list[Tensor] = highs, means: list[float] = means
        ) -> None:
            highs.append(hidden.amax((0, 2, 3)))
            means.append(float(hidden.abs().mean()))

        handles.append(block.ccm.ccm[0].register_forward_hook(see))  # type: ignore[union-attr, index, operator]
        largest.append(highs)
        magnitudes.append(means)
    with torch.no_grad():
        for image in images:
            network(image[None])
    for handle in handles:
        handle.remove()
    result = []
    for highs, means in zip(largest, magnitudes, strict=True):
        high = torch.stack(highs).amax(0)  # (hidden,)
        result.append((int((high < DEAD).sum()), len(high), sum(means) / len(means)))
    return result


@torch.no_grad()
def on_drawings(network: nn.Module) -> tuple[float, float, float]:
    """Return the lowest and highest output for drawings, and the PSNR of the outputs that are shrunk again.

    The PSNR, in dB, is that of all drawings together. The range includes at least 0 to 1.
    """
    scale = int(network.scale)  # type: ignore[arg-type]
    lowest, highest, errors = 0.0, 1.0, []
    for lr in map(drawing, DRAWINGS):
        output = network(to_tensor(lr)[None])[0]
        lowest, highest = min(lowest, float(output.min())), max(highest, float(output.max()))
        image = output.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        errors.append(np.square(imresize(image, 1 / scale) / 255 - lr / 255).mean())
    return lowest, highest, float(-10 * np.log10(np.mean(errors)))


@exit_status
def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a name of safmn zoo, or a file")
    parser.add_argument("images", nargs="+", type=Path, help="LR images")
    arguments = parser.parse_args()
    network = weights.load_network(arguments.weights).eval()
    found = activity(network, [to_tensor(read_rgb(path)) for path in arguments.images])
    rows = [[str(i), f"{dead} of {count}", f"{mean:.1f}"] for i, (dead, count, mean) in enumerate(found)]
    say(table(["block", "dead hidden channels", "mean magnitude before GELU"], rows))
    torch.manual_seed(0)
    with torch.no_grad():
        noise = network(torch.rand(1, 3, 64, 64))
    say(f"\nOutput for white noise in [0, 1]: {float(noise.min()):.2f} to {float(noise.max()):.2f}")
    lowest, highest, shrunk = on_drawings(network)
    say(f"Output for {len(DRAWINGS)} drawings: {lowest:.2f} to {highest:.2f}; shrunk again, {shrunk:.2f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
