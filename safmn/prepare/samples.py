"""``safmn prepare samples``: a contact sheet of training patches, or of drawings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from safmn.data import SampleKey, TrainingLoader, build_dataset, sample_rng
from safmn.data.drawing import KINDS, shares_of
from safmn.errors import OptionError, exit_status
from safmn.imaging import to_uint8, write_image
from safmn.options import load_options
from safmn.prepare.arguments import samples
from safmn.system.console import say_line
from safmn.value_types import Array

_GAP = 4  # pixels between two patches
_MOST = 1000  # patches in a sheet


def sheet_of(rows: Sequence[Sequence[Array]]) -> Array:
    """Return a white image with rows of uint8 (side, side, 3) patches of equal size."""
    side = rows[0][0].shape[0] + _GAP
    sheet = np.full((len(rows) * side + _GAP, max(map(len, rows)) * side + _GAP, 3), 255, np.uint8)
    for row, patches in enumerate(rows):
        for column, patch in enumerate(patches):
            top, left = row * side + _GAP, column * side + _GAP
            sheet[top : top + side - _GAP, left : left + side - _GAP] = patch
    return sheet


def _grid(text: str) -> tuple[int, int]:
    columns, _, rows = text.partition("x")
    if not (columns.isascii() and rows.isascii() and columns.isdigit() and rows.isdigit()):
        raise OptionError(f"--grid {text}: give columns x rows, such as 8x5")
    if not 1 <= int(columns) * int(rows) <= _MOST:
        raise OptionError(f"--grid {text}: choose 1 to {_MOST} patches")
    return int(columns), int(rows)


def _drawings(arguments: argparse.Namespace, columns: int) -> list[list[Array]]:
    """Return a row of drawings of each kind."""
    if arguments.side < 1:
        raise OptionError(f"--side {arguments.side}: choose 1 or more")
    names = list(KINDS) if arguments.kinds == ["all"] else arguments.kinds
    shares_of(dict.fromkeys(names, 1.0))  # says which name is unknown
    keys = [SampleKey(arguments.epoch, index) for index in range(columns)]
    seed = arguments.seed or 0
    return [[KINDS[name][0](sample_rng(seed, key), arguments.side) for key in keys] for name in names]


def _patches(arguments: argparse.Namespace, columns: int, rows: int) -> list[list[Array]]:
    """Return the GT patches of the first samples of an epoch, in their order."""
    options = load_options(arguments.opt, mode="train", overrides=arguments.force_yml, tolerant=arguments.tolerant)
    section = options.datasets["train"]
    seed = options.manual_seed if arguments.seed is None else arguments.seed
    dataset = build_dataset(section, phase="train", scale=options.scale, seed=seed)
    loader = TrainingLoader(dataset, batch_size=1, seed=seed, enlarge_ratio=section.get("dataset_enlarge_ratio", 1))
    batches = loader.batches(arguments.epoch * loader.iterations_per_epoch)
    try:
        found = [to_uint8(next(batches)[0]["gt"][0]) for _ in range(columns * rows)]
    finally:
        loader.close()
    return [found[start : start + columns] for start in range(0, len(found), columns)]


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Write the sheet; return the exit status."""
    arguments = samples().parse_args(argv)
    if bool(arguments.opt) == bool(arguments.kinds):
        raise OptionError("give either --opt FILE or --kinds KIND ...")
    for name in ("seed", "epoch"):
        if (getattr(arguments, name) or 0) < 0:
            raise OptionError(f"--{name} {getattr(arguments, name)}: must not be negative")
    columns, rows = _grid(arguments.grid)
    found = _drawings(arguments, columns) if arguments.kinds else _patches(arguments, columns, rows)
    write_image(arguments.output, sheet_of(found))
    say_line(f"{arguments.output}: {sum(map(len, found))} patches of {found[0][0].shape[0]} pixels")
    return 0
