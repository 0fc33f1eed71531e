"""Networks as files for other programs.

>>> export_network(safmn.load_network("safmn-x2"), "safmn_x2.onnx")
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from safmn.errors import OptionError, UserError, did_you_mean, first_line
from safmn.inference.export.formats import FORMATS, ExportError, Format, Job, Run, Size
from safmn.inference.export.graph import subject_of
from safmn.system.files import TEMPORARY, flush_directory, flush_file

__all__ = ["FORMATS", "TOLERANCE", "ExportError", "Exported", "export_network", "format_of"]

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 2e-2}
"""How far the file's result may be from the network's in float32, relative to the larger of that and 1."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: the one that was asked for first.
        sizes: (height, width) of the images that the file was checked with.
        error: its largest difference to the network on them, relative to the larger of the value and 1.
    """

    files: tuple[Path, ...]
    sizes: tuple[Size, ...]
    error: float


def format_of(name: str | None, output: str | os.PathLike[str]) -> Format:
    """The format called ``name``, or the one that the ending of ``output`` stands for.

    Raises:
        OptionError: there is none, or the two do not fit.
    """
    ending = Path(output).suffix.lower()
    endings = {form.ending: form.name for form in FORMATS.values()}
    known = ", ".join(f"{form} ({ending})" for ending, form in endings.items())
    name = endings.get(ending) if name is None else name
    if name is None:
        raise OptionError(f"{output}: no format has the ending {ending!r}; known: {known}")
    if name not in FORMATS:
        raise OptionError(f"no format {name!r}.{did_you_mean(name, FORMATS)} Known: {known}.")
    if FORMATS[name].ending != ending:
        raise OptionError(f"{output}: a file in the format {name} must end in {FORMATS[name].ending}")
    return FORMATS[name]


def export_network(
    network: nn.Module,
    output: str | os.PathLike[str],
    *,
    format: str | None = None,
    size: Size | None = None,
    precision: str = "fp32",
) -> Exported:
    """Write a network to a file that other programs run, and check that file against the network.

    The file takes RGB, (B, 3, h, w) float32 in [0, 1], of every size, and pads and crops as :class:`safmn.Upscaler`
    does; in ncnn's format h and w must be multiples of the network's window.

    Args:
        network: of :func:`safmn.load_network`.
        output: is complete and right, or stays as it was; also the files that some formats write beside it.
        format: "onnx", "openvino", "ncnn" or "torch"; None: the one that the ending of ``output`` stands for.
        size: (height, width) of the only input that the file shall take; None: every size.
        precision: "fp32", "fp16" (the weights; in ONNX and TorchScript the arithmetic too), "bf16" (TorchScript).

    Raises:
        OptionError: an argument is wrong, or a package is missing (the message says which).
        ExportError: the network cannot be written in this format, or the file gave other results than the network.
    """
    form = format_of(format, output)
    _check(form, size, precision)
    job = Job(subject_of(network), precision, size)
    target = Path(output)
    _check_beside(form, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=TEMPORARY) as folder:
        sizes = [size] if size else _sizes(job.subject.window, multiples=form.multiples)
        path = Path(folder) / target.with_suffix(form.ending).name  # libraries know formats by lower-case endings
        error = _write(form, job, path, sizes)
        files = _put(path, target)
    return Exported(files, tuple(sizes), error)


def _check(form: Format, size: Size | None, precision: str) -> None:
    """Raise OptionError where the format cannot be written so."""
    if precision not in form.precisions:
        raise OptionError(f"precision {precision!r}: {form.name} files can be {', '.join(form.precisions)}")
    if size and (not form.fixed or min(size) < 1):
        raise OptionError(
            f"size {size}: height and width are at least 1" if form.fixed else f"{form.name} files take no fixed size"
        )
    missing = form.missing()
    if missing:
        raise OptionError(f"format {form.name!r}: {missing}")


def _check_beside(form: Format, target: Path) -> None:
    """Raise OptionError where a file that is written beside ``target`` is there without it: it is something else's."""
    for ending in form.beside:
        other = target.with_suffix(ending)
        if other.exists() and not target.exists():
            raise OptionError(
                f"{other} is there and not of this export, which would overwrite it: choose another name, such as "
                f"{target.with_name(f'{target.stem}.{form.name}{form.ending}')}"
            )


def _write(form: Format, job: Job, path: Path, sizes: Sequence[Size]) -> float:
    """Write the file and run it on images of ``sizes``: the largest error."""
    try:
        form.write(job, path)
        return _largest_error(job, form.open(path), sizes)
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters, formats' libraries and networks of others raise anything
        reason = first_line(error).rstrip(".")
        advice = "a fixed size or another format" if form.fixed and not job.size else "another format"
        raise ExportError(
            f"{job.subject.facts['network']} cannot be written as {form.name}: {reason:.200}. Try {advice}."
        ) from error


def _sizes(window: int, *, multiples: bool) -> list[Size]:
    """Sizes to check with: small and large, odd, below the window, and a single row of pixels."""
    if multiples:
        return [(rows * window, columns * window) for rows, columns in ((1, 1), (3, 2), (4, 7))]
    side = max(window, 8)
    return [
        (side, 2 * side),
        (side - 1, side - 1),
        (3 * side + 1, 2 * side - 1),
        (1, side + 5),
        (5 * side - 3, 6 * side),
    ]


def _largest_error(job: Job, run: Run, sizes: Sequence[Size]) -> float:
    """The largest difference of the file's results; raises ExportError where it is too large."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for height, width in sizes:
        batch = 1 if job.size or height > 1 else 2
        x = _image(batch, height, width, generator)
        error = _difference(run(x), job.subject(x))
        if not error <= TOLERANCE[job.precision]:  # not a number either
            raise ExportError(
                f"the file for {job.subject.facts['network']} is wrong for an image of {width}x{height} pixels, by "
                f"{error:.2g}; it was removed. Try another format, or a fixed size."
            )
        worst = max(worst, error)
    return worst


def _image(batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Something like photographs, (B, 3, h, w) in [0, 1]: white noise drives trained networks beyond all bounds."""
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return (smooth + 0.02 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def _difference(y: Tensor, expected: Tensor) -> float:
    if y.shape != expected.shape:
        return float("inf")
    return float(((y - expected).abs() / expected.abs().clamp(min=1)).max())


def _put(path: Path, target: Path) -> tuple[Path, ...]:
    """Move a file to ``target``, after those that stand beside it; return it first."""
    written = sorted(path.parent.iterdir(), key=lambda file: file == path)
    places = [target if file == path else target.with_name(file.name) for file in written]
    for file, place in zip(written, places, strict=True):
        flush_file(file)
        os.replace(file, place)
    flush_directory(target.parent)
    return tuple(reversed(places))
