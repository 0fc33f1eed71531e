"""Published results of efficient super-resolution networks: quality on the benchmark sets, and cost.

Quality is PSNR in dB and SSIM, both on the Y channel with a crop border equal to the scale, for LR images made with
MATLAB's bicubic. Cost is for a 1280x720 output: parameters in thousands, multiply-adds in 10^9 as fvcore counts them,
activations (outputs of convolutions) in millions.

Sources: SAFMN, SAFMN-L, bicubic, IMDN, PAN, ShuffleMixer, LAPAR-A, EDSR-baseline, CARN, RFDN and RLFN as reported in
Sun, Dong, Tang and Pan, "Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution", ICCV 2023
(arXiv 2302.13800). SMFANet: Zheng, Sun, Dong and Pan, ECCV 2024. SeemoRe-T: Zamfir, Wu, Mehta, Zhang and Timofte,
ICML 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
_ALIASES = {"bsd100": "b100", "bsds100": "b100"}


@dataclass(frozen=True)
class Row:
    """One row of a published table; ``None`` for numbers that the source does not give.

    Attributes:
        network: name of the network.
        scale: scale of super-resolution.
        quality: set -> (PSNR, SSIM).
        params: parameters in thousands.
        madds: multiply-adds in 10^9.
        acts: activations in millions.
    """

    network: str
    scale: int
    quality: Mapping[str, tuple[float, float | None]]
    params: float | None = None
    madds: float | None = None
    acts: float | None = None


def _over_sets(*values: tuple[float, float | None]) -> dict[str, tuple[float, float | None]]:
    return dict(zip(SETS, values, strict=True))


# fmt: off
ROWS: tuple[Row, ...] = (
    Row("Bicubic", 2, _over_sets((33.66, 0.9299), (30.24, 0.8688), (29.56, 0.8431), (26.88, 0.8403), (30.80, 0.9339))),
    Row("SAFMN", 2, _over_sets((38.00, 0.9605), (33.54, 0.9177), (32.16, 0.8995), (31.84, 0.9256), (38.71, 0.9771)),
        params=228, madds=52, acts=299),
    Row("SMFANet", 2, _over_sets((38.08, None), (33.65, None), (32.22, None), (32.20, None), (39.11, None))),
    Row("SAFMN-L", 2, _over_sets((38.28, 0.9616), (34.14, 0.9220), (32.39, 0.9024), (33.06, 0.9366), (39.56, 0.9790)),
        params=5560, madds=1274),
    Row("Bicubic", 3, _over_sets((30.39, 0.8682), (27.55, 0.7742), (27.21, 0.7385), (24.46, 0.7349), (26.95, 0.8556))),
    Row("SAFMN", 3, _over_sets((34.34, 0.9267), (30.33, 0.8418), (29.08, 0.8048), (27.95, 0.8474), (33.52, 0.9437)),
        params=233, madds=23, acts=134),
    Row("SAFMN-L", 3, _over_sets((34.80, 0.9301), (30.68, 0.8485), (29.34, 0.8110), (28.99, 0.8679), (34.66, 0.9504)),
        params=5580, madds=569),
    Row("Bicubic", 4, _over_sets((28.42, 0.8104), (26.00, 0.7027), (25.96, 0.6675), (23.14, 0.6577), (24.89, 0.7866))),
    Row("SAFMN", 4, _over_sets((32.18, 0.8948), (28.60, 0.7813), (27.58, 0.7359), (25.97, 0.7809), (30.43, 0.9063)),
        params=239.52, madds=13.56, acts=76.70),
    Row("SMFANet", 4, _over_sets((32.25, None), (28.71, None), (27.64, None), (26.18, None), (30.82, None)),
        params=197, madds=11),
    Row("SeemoRe-T", 4, _over_sets((32.31, None), (28.72, None), (27.65, None), (26.23, None), (30.82, None)),
        params=232, madds=12),
    Row("SAFMN-L", 4, _over_sets((32.65, 0.9005), (28.96, 0.7898), (27.82, 0.7440), (26.81, 0.8058), (31.59, 0.9192)),
        params=5600, madds=321),
    Row("IMDN", 4, {"Set5": (32.21, None)}, params=715, madds=41),
    Row("PAN", 4, {"Set5": (32.13, None)}, params=272, madds=28),
    Row("ShuffleMixer", 4, {"Set5": (32.21, None)}, params=411, madds=28),
    Row("LAPAR-A", 4, {"Set5": (32.15, None)}, params=659, madds=94),
    Row("EDSR-baseline", 4, {"Set5": (32.09, None)}, params=1518, madds=114),
    Row("CARN", 4, {"Set5": (32.13, None)}, params=1592, madds=91),
    Row("RFDN", 4, {"B100": (27.60, 0.7368)}, params=433, madds=23.82, acts=98.46),
    Row("RLFN", 4, {"B100": (27.60, 0.7364)}, params=544, madds=29.88, acts=111.17),
)
# fmt: on


def published(network: str, scale: int, set_name: str) -> tuple[float, float | None] | None:
    """Return the published (PSNR in dB, SSIM) of a network on a set, Y channel, crop = scale; ``None`` if unpublished.

    Args:
        network: a name as in :data:`ROWS`, such as ``SAFMN`` or ``SAFMN-L``; case does not matter.
        scale: scale of super-resolution.
        set_name: ``Set5``, ``Set14``, ``B100`` (also ``BSD100``), ``Urban100`` or ``Manga109``; case does not matter.
    """
    wanted = set_name.lower()
    wanted = _ALIASES.get(wanted, wanted)
    for row in ROWS:
        if row.network.lower() == network.lower() and row.scale == scale:
            return next((pair for name, pair in row.quality.items() if name.lower() == wanted), None)
    return None


def network_name(section: Mapping[str, Any]) -> str | None:
    """Return the name in :data:`ROWS` of the network that a ``network_g`` section describes; ``None`` for others."""
    if section.get("type") != "SAFMN" or section.get("ffn_scale", 2.0) != 2.0:
        return None
    sizes = {(36, 8): "SAFMN", (128, 16): "SAFMN-L"}
    return sizes.get((section.get("dim", 36), section.get("n_blocks", 8)))  # type: ignore[arg-type]
