"""Where in a patch store training patches are drawn: a weight for each cell of a grid over every image.

The file is a ``.npz`` with ``cell`` (side of a cell in LQ pixels, about), ``names`` and ``sizes`` of the images, (n,)
and (n, 2), and ``weights``, the cells of one image after another, row by row. ``scripts/zoo/hardness.py`` makes one
from a store and a network.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safmn.errors import DataError


def grid_of(height: int, width: int, cell: int) -> tuple[int, int]:
    """Return how many rows and columns of about ``cell`` pixels divide an image evenly."""
    return max(round(height / cell), 1), max(round(width / cell), 1)


class PatchWeights:
    """The weights of all cells, and how draws become images and places.

    Args:
        cell: side of a cell in LQ pixels.
        names: names of the images.
        sizes: (n, 2), height and width of the LQ images.
        weights: (cells,), 0 or more; an image with weights of 0 only is never drawn.

    Raises:
        ValueError: the sizes and the weights do not fit, or no weight is above 0.
    """

    def __init__(self, cell: int, names: Sequence[str], sizes: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        self.cell, self.names, self.sizes = cell, list(names), np.asarray(sizes, np.int64).reshape(-1, 2)
        self.weights = np.asarray(weights, np.float64)
        grids = np.array([grid_of(int(height), int(width), cell) for height, width in self.sizes], np.int64).reshape(
            -1, 2
        )
        counts = grids.prod(axis=1)
        if len(self.names) != len(grids) or counts.sum() != len(self.weights):
            raise ValueError(f"{len(self.weights)} weights for {counts.sum()} cells of {len(self.names)} images")
        if not np.isfinite(self.weights).all() or (self.weights < 0).any() or not self.weights.any():
            raise ValueError("weights must be finite, 0 or more, and not all 0")
        self._grids, self._image = grids, np.repeat(np.arange(len(grids)), counts)
        self._first = np.cumsum(counts) - counts
        self._ends = np.cumsum(self.weights)

    def save(self, path: Path) -> None:
        """Write the file."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                cell=np.int64(self.cell),
                names=np.array(self.names),
                sizes=self.sizes,
                weights=self.weights.astype(np.float32),
            )

    @classmethod
    def load(cls, path: str | Path) -> PatchWeights:
        """Read a file that :meth:`save` wrote; it cannot run code.

        Raises:
            DataError: it is missing, damaged or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(int(file["cell"]), file["names"].tolist(), file["sizes"], file["weights"])
        except FileNotFoundError as error:
            raise DataError(f"no such file of patch weights: {path}") from error
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} holds no patch weights, or is damaged ({error})") from error

    @property
    def digest(self) -> str:
        """A checksum of all that decides the draws."""
        parts = (str(self.cell), "\n".join(self.names), self.sizes.tobytes(), self.weights.tobytes())
        return hashlib.sha256(b"\0".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()

    def check(self, names: Sequence[str], sizes: NDArray[np.int64], where: str) -> None:
        """Check that the weights were made for these images.

        Raises:
            DataError: names or sizes differ; ``where`` is named.
        """
        if self.names == list(names) and np.array_equal(self.sizes, sizes):
            return
        new = sorted(set(names) ^ set(self.names))
        what = f"{new[0]} is in only one of them" if new else "the order or the sizes of the images differ"
        raise DataError(f"{where}: {what}. Make the weights again from this store.")

    def places(self, draws: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the images, and draws for :func:`safmn.data.sample_keys.patches_of`.

        The first number of a draw chooses a cell by its weight; what is left of it, and the second number, are a point
        in the cell. A patch contains its point. With equal weights of equal cells, places are uniformly distributed.

        Args:
            draws: (n, 3), in [0, 1).
        """
        at = draws[:, 0] * self._ends[-1]
        cell = np.minimum(np.searchsorted(self._ends, at, side="right"), np.flatnonzero(self.weights)[-1])
        rest = np.clip((at - (self._ends[cell] - self.weights[cell])) / self.weights[cell], 0, np.nextafter(1, 0))
        image = self._image[cell]
        rows, columns = self._grids[image].T
        row, column = np.divmod(cell - self._first[image], columns)
        inside = np.nextafter(1, 0)  # (row + rest) / rows may be rounded to 1
        down, across = np.minimum((row + rest) / rows, inside), np.minimum((column + draws[:, 1]) / columns, inside)
        return image.astype(np.int64), np.stack([down, across, draws[:, 2]], axis=1)
