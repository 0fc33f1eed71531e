"""Programs that read a format by rules of their own.

Facts about Upscayl (with its engine upscayl-ncnn) and realesrgan-ncnn-vulkan, from their sources: they cut images into
tiles (of 200 pixels where the GPU has 2 GB), read ``PREPADDING`` more pixels on every side, mirrored at the edge of the
image, and feed each tile by itself, RGB of 0 to 1. Upscayl reads the scale from the model's name.
"""

from __future__ import annotations

from pathlib import Path

from safmn.errors import OptionError

UPSCAYL = "upscayl"
"""Upscayl, and builds of realesrgan-ncnn-vulkan with a complete ncnn (the official ones lack pooling, among others)."""
PREPADDING = 10
SCALES = (2, 3, 4)


def check_name(output: Path, scale: int) -> None:
    """Raise OptionError where Upscayl would read another scale from the file's name, or does not know the scale."""
    if scale not in SCALES:
        raise OptionError(f"{output}: Upscayl and realesrgan-ncnn-vulkan know x2, x3 and x4, not x{scale}")
    read = scales_in(output.stem)
    if read != {scale}:
        wrong = ", ".join(f"x{number}" for number in sorted(read - {scale}))
        raise OptionError(
            f"{output}: Upscayl would take the model for {wrong}, by its name; choose one with x{scale} and no other "
            f"number beside an x, such as {output.with_name(f'safmn-x{scale}{output.suffix}')}"
        )


def scales_in(stem: str) -> set[int]:
    """The scales that Upscayl's window and its engine read from a model's name: they look for different ones."""
    window = _first(stem.lower(), (2, 3)) or 4
    engine = _first(stem, (1, 2, 3, 4, 8, 16)) or 4
    return {window, engine}


def _first(stem: str, scales: tuple[int, ...]) -> int | None:
    """The first scale that stands in the name as ``x2`` or ``2x``."""
    return next((scale for scale in scales if f"x{scale}" in stem or f"{scale}x" in stem), None)


def note(halo: int | None) -> str:
    """What to say about the tiles of these programs."""
    sees = "the whole image" if halo is None else f"{halo} pixels"
    return (
        "for Upscayl: put the .param and the .bin into a folder named models. It cuts images into tiles with "
        f"{PREPADDING} pixels around them; this network sees {sees}, so that tiles differ from the whole image near "
        "their edges (docs/export.md says how much)"
    )
