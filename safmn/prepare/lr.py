"""``safmn prepare lr``: make LR images from HR images as MATLAB does, for several scales at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from safmn.errors import DataError, exit_status
from safmn.imaging import image_size, imresize, mod_crop
from safmn.imaging.resize import Border
from safmn.prepare import arguments as arguments_of
from safmn.prepare.outputs import inputs, is_made, named, read_colours, write_made
from safmn.prepare.parallel import Outcome, default_jobs, for_each


def make_lr(
    hr: Path, output: Path, scales: Sequence[int], *, border: Border = "symmetric", jobs: int | None = None
) -> Outcome:
    """Make ``output/X<s>/<name>x<s>.png`` from every image in ``hr``, cropped to a multiple of s, for every scale s.

    Existing images are kept if they are complete, have the right size, are not older than their HR image and were made
    with the same border. A file that does not name its border counts as symmetric, which MATLAB uses today.

    Raises:
        DataError: the folder or images are missing, or a scale is below 2. An unreadable image is only a failure in
            the outcome; the others are made.
    """
    if not scales or min(scales) < 2:
        raise DataError(f"scales {list(scales)}: LR images need scales of 2 or more")
    work = partial(_make, output=output, scales=sorted(set(scales)), border=border)
    return for_each(work, inputs(hr), jobs=jobs or default_jobs(), description=f"LR of {hr}")


def lr_path(folder: Path, name: str, scale: int) -> Path:
    """Return the customary path of the LR image of HR image ``name`` (without suffix): ``X4/namex4.png``."""
    return folder / f"X{scale}" / f"{name}x{scale}.png"


def _make(source: Path, *, output: Path, scales: Sequence[int], border: Border) -> tuple[int, int]:
    height, width = image_size(source)
    if min(height, width) < scales[-1]:
        raise DataError(f"{source}: {width}x{height} (width x height) is too small for x{scales[-1]}")
    paths = {scale: lr_path(output, source.stem, scale) for scale in scales}
    recipe = "" if border == "symmetric" else f"border {border}"
    missing = [s for s, path in paths.items() if not is_made(path, (height // s, width // s), source, recipe)]
    if missing:
        image = read_colours(source)
        for scale in missing:
            write_made(paths[scale], imresize(mod_crop(image, scale), 1 / scale, border=border), recipe)
    return len(missing), len(scales) - len(missing)


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, 1 if images failed, or 2 for a user's mistake."""
    arguments = arguments_of.lr().parse_args(argv)
    hr = named(arguments.hr)
    output = arguments.output or hr.parent / "LR_bicubic"
    outcome = make_lr(hr, output, arguments.scales, border=arguments.border, jobs=arguments.jobs)
    return outcome.report(f"LR images in {output}")
