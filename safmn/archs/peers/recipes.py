"""Write the option files of the published recipes: options/peers/train_NAME_xS.yml, from one template and one table.

``python -m safmn.archs.peers.recipes`` rewrites them from ``options/peers/recipes.tsv``. A test checks that they are up
to date. Each file changes SAFMN's file of the same scale (``base``): it keeps data set paths, validation and logging.

The table has a row for each network and size. Its cells are in the syntax of option files:

- ``patch``: ``LR 64`` or ``HR 192``; an HR patch is rounded to a multiple of the scale;
- ``losses`` and ``more``: keys of the section ``train``, separated by semicolons;
- ``start``: ``4<2`` if the authors start x4 from their weights for x2;
- ``source``: the authors' file with these values, and where it differs from what is done here.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safmn.archs.peers.declaration import PEERS, Form

FOLDER = Path(__file__).resolve().parents[3] / "options" / "peers"
_IMAGES = {  # what a recipe is trained on -> where its images are, and what they are
    "DF2K": ("DF2K", True, "DIV2K and Flickr2K"),
    "DIV2K": ("DIV2K", True, "the 800 images of DIV2K"),
    "T91": ("T91", False, "the 91 images of Yang et al."),
    "T291": ("T291", False, "the 91 images of Yang et al. and the 200 for training of BSD300"),
}
_UNUSED = ("pixel_opt", "fft_opt")  # losses of the base

_TEMPLATE = """\
# yaml-language-server: $schema=../../safmn/options/schema.json
# {size} x{scale} on {data}, the published recipe. Written by python -m safmn.archs.peers.recipes.
# Source: {source}.
# Data: {images}; see docs/peers.md.{begin}
base: train_x{scale}
name: {run}
model_type: SRModel
scale: {scale}

datasets:
  train:
    name: {data}
    type: PairedImageDataset
    dataroot_gt: datasets/{folder}/HR{sub}
    dataroot_lq: datasets/{folder}/LR_bicubic{sub}/X{scale}
    filename_tmpl: '{template}'
    gt_size: {patch}
    batch_size_per_gpu: {batch}
{colour}
network_g:
{network}
{start}
train:
  total_iter: {iterations}
  ema_decay: {ema}
  optim_g: {optimiser}
  scheduler: {schedule}
{keys}
"""


@dataclass(frozen=True)
class Recipe:
    """A row of the table at one scale.

    Attributes:
        cells: column -> text.
        scale: the scale.
    """

    cells: dict[str, str]
    scale: int

    @property
    def run(self) -> str:
        """The name of the run, such as ``IMDN_x4``."""
        return f"{self._plain_size}_x{self.scale}"

    @property
    def path(self) -> Path:
        """The option file."""
        return FOLDER / f"train_{self.run}.yml"

    @property
    def _plain_size(self) -> str:
        return self.cells["size"].replace(" (training form)", "").replace("+", "-plus")

    def text(self) -> str:
        """Return the content of the option file."""
        cells, scale = self.cells, self.scale
        declared = PEERS[cells["network"]]
        arguments = {"type": declared.name, **declared.arguments(cells["size"], scale)}
        folder, squares, images = _IMAGES[cells["data"]]
        keys = _keys(cells["losses"]) | _keys(cells["more"])
        ema = keys.pop("ema_decay", "0.0")
        keys = {name: keys.get(name, "~") for name in _UNUSED} | keys
        begin, start = self._start()
        return _TEMPLATE.format(
            size=self._plain_size,
            scale=scale,
            run=self.run,
            data=cells["data"],
            source=cells["source"],
            images=images,
            begin=begin,
            folder=folder,
            sub="_sub" if squares else "",
            template="{}" if squares else f"{{}}x{scale}",
            patch=_patch(cells["patch"], scale),
            batch=cells["batch"],
            colour=_colour(declared.form, scale),
            network="\n".join(f"  {name}: {_yaml(value)}" for name, value in arguments.items()),
            start=start,
            iterations=cells["iterations"],
            ema=ema,
            optimiser=cells["optimiser"],
            schedule=cells["schedule"],
            keys="\n".join(f"  {name}: {value}" for name, value in keys.items()),
        )

    def _start(self) -> tuple[str, str]:
        """Return a comment and the section of the weights from which the authors start."""
        earlier = dict(pair.split("<") for pair in self.cells["start"].split()).get(str(self.scale))
        if earlier is None:
            return "", ""
        run = f"{self._plain_size}_x{earlier}"
        weights = f"experiments/{run}/models/net_g_latest.pth"
        return (
            f"\n# It starts from the weights of train_{run}.yml.",
            f"\npath:\n  pretrain_network_g: {weights}\n  strict_load_g: false\n",
        )


def recipes() -> Iterator[Recipe]:
    """Yield the recipes of the table, each at each of its scales."""
    with (FOLDER / "recipes.tsv").open(encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            for scale in cells["scales"].split():
                yield Recipe(cells, int(scale))


def _patch(text: str, scale: int) -> int:
    """Return the side of the HR patch."""
    kind, side = text.split()
    return int(side) * scale if kind == "LR" else round(int(side) / scale) * scale


def _keys(text: str) -> dict[str, str]:
    """Return the keys and values of a cell."""
    return dict(part.split(": ", 1) for part in re.split(r";\s*", text) if part)


def _colour(form: Form, scale: int) -> str:
    """Return the keys of a network of Y, which is trained and validated on Y."""
    if form.channels == "RGB":
        return ""
    metric = f"{{type: calculate_psnr, crop_border: {scale}, test_y_channel: true}}"
    return f"    color: y\n\nval:\n  metrics:\n    psnr: {metric}\n"


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)


def main() -> int:
    """Write the option files, and remove those that are no longer in the table."""
    written = {recipe.path: recipe.text() for recipe in recipes()}
    for path in set(FOLDER.glob("train_*.yml")) - set(written):
        path.unlink()
    for path, text in written.items():
        path.write_bytes(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
