"""Draw the picture at the top of the README: a detail of a photograph as LQ, bicubic, safmn-x4 and GT.

``readme_picture.py`` writes docs/example.webp. The photograph (public domain) comes with scikit-image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

import safmn
from safmn.imaging import imresize

SCALE = 4
PANEL = (296, 215)  # pixels, width and height
TITLE, GAP = 22, 6


def main() -> int:
    """Draw and write the picture; return the exit status."""
    gt = data.chelsea()[20:260, 100:420]
    lq = imresize(gt, 1 / SCALE)
    panels = {
        "LQ": lq.repeat(SCALE, 0).repeat(SCALE, 1),
        "bicubic": imresize(lq, SCALE),
        "safmn-x4": safmn.Upscaler("safmn-x4", device="cpu")(lq),
        "GT": gt,
    }
    detail = np.s_[30:190, 60:280]
    width, height = PANEL
    sheet = Image.new("RGB", ((width + GAP) * len(panels) - GAP, height + TITLE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for index, (name, panel) in enumerate(panels.items()):
        left = index * (width + GAP)
        resample = Image.Resampling.NEAREST if name == "LQ" else Image.Resampling.BICUBIC
        sheet.paste(Image.fromarray(panel[detail]).resize(PANEL, resample), (left, TITLE))
        pen.text((left + 3, 1), name, fill="black", font=font)
    sheet.save(Path(__file__).resolve().parents[2] / "docs" / "example.webp", quality=88)
    return 0


if __name__ == "__main__":
    sys.exit(main())
