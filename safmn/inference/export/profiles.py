"""Rules of programs that read an exported format in a special way.

"upscayl" stands for Upscayl and builds of realesrgan-ncnn-vulkan with all ncnn layers (official builds lack pooling and
others). Facts about Upscayl (with its engine upscayl-ncnn) and realesrgan-ncnn-vulkan, from their sources: They cut
images into tiles (of 200 pixels if the GPU has 2 GB). Each tile gets ``PREPADDING`` more pixels on every side, mirrored
at the edge of the image, and is run separately, as RGB of 0 to 1. Upscayl reads the scale from the model's name.
"""

from __future__ import annotations

from pathlib import Path

from safmn.errors import OptionError

PREPADDING = 10
SCALES = (2, 3, 4)


def check_name(output: Path, scale: int) -> None:
    """Raise OptionError if Upscayl does not support the scale or would read a different one from the file's name."""
    if scale not in SCALES:
        raise OptionError(f"{output}: Upscayl and realesrgan-ncnn-vulkan support x2, x3 and x4, not x{scale}")
    read = scales_in(output.stem)
    if read != {scale}:
        wrong = ", ".join(f"x{number}" for number in sorted(read - {scale}))
        raise OptionError(
            f"{output}: Upscayl would read the scale {wrong} from this name; choose a name with x{scale} and no other "
            f"number next to an x, such as {output.with_name(f'safmn-x{scale}{output.suffix}')}"
        )


def scales_in(stem: str) -> set[int]:
    """Return the scales that Upscayl's user interface and its engine read from a model's name; their rules differ."""
    window = _first(stem.lower(), (2, 3)) or 4
    engine = _first(stem, (1, 2, 3, 4, 8, 16)) or 4
    return {window, engine}


def _first(stem: str, scales: tuple[int, ...]) -> int | None:
    """Return the first of the scales that the name contains as ``x2`` or ``2x``; None if it contains none."""
    return next((scale for scale in scales if f"x{scale}" in stem or f"{scale}x" in stem), None)


def note(halo: int | None) -> str:
    """Return the note for the user about the tiles of these programs.

    Args:
        halo: the network's halo; None if it sees the whole frame.
    """
    sees = "the whole image" if halo is None else f"{halo} pixels"
    return (
        "for Upscayl: put the .param and the .bin into a folder named models. It cuts images into tiles with "
        f"{PREPADDING} pixels around them; this network sees {sees}, so tiles differ from the whole image near their "
        "edges (docs/programs.md says how much)"
    )
