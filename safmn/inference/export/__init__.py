"""Networks as files for other programs.

>>> export_network(safmn.load_network("safmn-x2"), "safmn_x2.onnx")
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from safmn.errors import OptionError, UserError, did_you_mean, first_line
from safmn.inference.export.formats import FORMATS, ExportError, Format, Job, Size
from safmn.inference.export.graph import subject_of
from safmn.inference.export.profiles import UPSCAYL, check_name, note
from safmn.inference.export.verification import TOLERANCE, Checked, verify
from safmn.system.files import TEMPORARY, flush_directory, flush_file, replace

__all__ = ["FORMATS", "TOLERANCE", "UPSCAYL", "ExportError", "Exported", "export_network", "format_of"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: the one that was asked for first.
        sizes: (height, width) of the images that the file was checked with; empty where its runtime is not installed.
        error: its largest difference to the network on them, relative to the larger of the value and 1; None where it
            was not checked.
        notes: what else a user should know, a line each.
    """

    files: tuple[Path, ...]
    sizes: tuple[Size, ...]
    error: float | None
    notes: tuple[str, ...] = ()


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
    profile: str | None = None,
) -> Exported:
    """Write a network to a file that other programs run, and check that file against the network.

    The file takes RGB, (B, 3, h, w) float32 in [0, 1], of every size, and pads and crops as :class:`safmn.Upscaler`
    does.

    Args:
        network: of :func:`safmn.load_network`.
        output: is complete and right, or stays as it was; also the files that some formats write beside it.
        format: "onnx", "openvino", "ncnn" or "torch"; None: the one that the ending of ``output`` stands for.
        size: (height, width) of the only input that the file shall take; None: every size.
        precision: "fp32", "fp16" (the weights; in ONNX and TorchScript the arithmetic too), "bf16" (TorchScript).
        profile: "upscayl": an ncnn file for Upscayl, for sides of at least the network's window. None: for every
            program.

    Raises:
        OptionError: an argument is wrong, or a package is missing (the message says which).
        ExportError: the network cannot be written in this format, or the file gave other results than the network.
    """
    form = format_of(format, output)
    _check(form, size, precision, profile)
    target = Path(output)
    job = Job(subject_of(network), precision, size, profile)
    if profile:
        check_name(target, job.subject.scale)
    _check_beside(form, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=TEMPORARY) as folder:
        path = Path(folder) / target.with_suffix(form.ending).name  # libraries know formats by lower-case endings
        checked = _write(form, job, path)
        files = _put(path, target)
    notes = (note(getattr(network, "halo", None)),) if profile else ()
    return Exported(files, checked.sizes, checked.error, checked.notes + notes)


def _check(form: Format, size: Size | None, precision: str, profile: str | None) -> None:
    """Raise OptionError where the format cannot be written so."""
    if profile is not None and profile not in form.profiles:
        known = f"known: {', '.join(form.profiles)}" if form.profiles else "there are none"
        raise OptionError(f"profile {profile!r}: {form.name} files have no such; {known}")
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


def _write(form: Format, job: Job, path: Path) -> Checked:
    """Write the file and check it."""
    try:
        form.write(job, path)
        return verify(form, job, path)
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters, formats' libraries and networks of others raise anything
        reason = first_line(error).rstrip(".")
        advice = "a fixed size or another format" if form.fixed and not job.size else "another format"
        raise ExportError(
            f"{job.subject.facts['network']} cannot be written as {form.name}: {reason:.200}. Try {advice}."
        ) from error


def _put(path: Path, target: Path) -> tuple[Path, ...]:
    """Move a file to ``target``, after those that stand beside it; return it first."""
    written = sorted(path.parent.iterdir(), key=lambda file: file == path)
    places = [target if file == path else target.with_name(file.name) for file in written]
    for file, place in zip(written, places, strict=True):
        flush_file(file)
        replace(file, place)
    flush_directory(target.parent)
    return tuple(reversed(places))
