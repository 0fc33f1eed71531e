"""Export networks to files for other programs.

>>> export_network(safmn.load_network("safmn-x2"), "safmn_x2.onnx")
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path

from torch import nn

from safmn.errors import OptionError, UserError, did_you_mean, first_line
from safmn.inference.choices import UPSCAYL
from safmn.inference.export.formats import (
    ExportError,
    Format,
    Job,
    Ncnn,
    Onnx,
    OpenVinoIR,
    Size,
    TorchScript,
)
from safmn.inference.export.graph import subject_of
from safmn.inference.export.phone_formats import CoreML, LiteRT
from safmn.inference.export.profiles import check_name, note
from safmn.inference.export.verification import TOLERANCE, Checked, verify
from safmn.system.files import TEMPORARY, flush_directory, flush_file, replace

__all__ = ["FORMATS", "TOLERANCE", "UPSCAYL", "ExportError", "Exported", "export_network", "format_of"]

FORMATS: dict[str, Format] = {
    form.name: form for form in (Onnx(), OpenVinoIR(), Ncnn(), TorchScript(), LiteRT(), CoreML())
}

_MULTIPLE = 16  # pixels: sides that networks with pools or windows of 2, 4, 8 and 16 take


@dataclass(frozen=True)
class Exported:
    """The files of an export, and the result of the check.

    Attributes:
        files: the written files; the requested one is first.
        sizes: (height, width) of the images that the file was checked with; empty if its runtime is not installed.
        error: largest difference from the network's results on them, relative to the larger of the value and 1; None
            if the file was not checked.
        notes: further lines for the user.
    """

    files: tuple[Path, ...]
    sizes: tuple[Size, ...]
    error: float | None
    notes: tuple[str, ...] = ()


def format_of(name: str | None, output: str | os.PathLike[str]) -> Format:
    """Return the format called ``name``, or, if that is None, the format with the ending of ``output``.

    Raises:
        OptionError: there is no such format, or ``output`` does not have its ending.
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
    """Write a network to a file for other programs, and check the file against the network.

    The file takes RGB images of any size, (B, 3, h, w) float32 in [0, 1], and pads and crops like
    :class:`safmn.Upscaler`.

    Args:
        network: a network from :func:`safmn.load_network`.
        output: the file to write. It and the files that some formats write beside it are replaced only if all of them
            are complete and pass the check.
        format: "onnx", "openvino", "ncnn", "torch", "tflite" or "coreml"; None: the format with the ending of
            ``output``.
        size: (height, width) of the only input that the file accepts; None: any size, which "tflite" and "coreml"
            files cannot do.
        precision: "fp32", "fp16" (the weights; in ONNX, TorchScript and Core ML also the arithmetic), "bf16"
            (TorchScript) or "int8" (the dense convolutions of an ONNX file).
        profile: "upscayl": an ncnn file for Upscayl, for sides not below the network's window. None: a file for any
            program.

    Raises:
        OptionError: an argument is wrong, or a package is missing (the message says which).
        ExportError: the network cannot be written in this format, or the file's results differ from the network's.
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
        path = Path(folder) / target.with_suffix(form.ending).name  # libraries recognise lower-case endings only
        checked = _write(form, job, path)
        files = _put(path, target)
    notes = (note(getattr(network, "halo", None)),) if profile else ()
    return Exported(files, checked.sizes, checked.error, checked.notes + notes)


def _check(form: Format, size: Size | None, precision: str, profile: str | None) -> None:
    """Raise OptionError if the format does not support an argument, or a package is missing."""
    if profile is not None and profile not in form.profiles:
        known = f"known: {', '.join(form.profiles)}" if form.profiles else "there are none"
        raise OptionError(f"profile {profile!r}: {form.name} files have no such profile; {known}")
    if precision not in form.precisions:
        raise OptionError(f"precision {precision!r}: {form.name} files can be {', '.join(form.precisions)}")
    if size and (not form.fixed or min(size) < 1):
        raise OptionError(
            f"size {size}: both sides must be at least 1" if form.fixed else f"{form.name} files take no fixed size"
        )
    if not size and not form.any_size:
        raise OptionError(f"{form.name} files take images of one size: give it (--size WIDTHxHEIGHT)")
    missing = form.missing()
    if missing:
        raise OptionError(f"format {form.name!r}: {missing}")


def _check_beside(form: Format, target: Path) -> None:
    """Raise OptionError if a file that would be written beside ``target`` exists, but ``target`` does not.

    Such a file is not from an earlier export.
    """
    if target.is_dir() and not (target / "Manifest.json").is_file():  # every Core ML package has one
        raise OptionError(f"{target} is a folder that no export wrote: choose another name")
    for ending in form.beside:
        other = target.with_suffix(ending)
        if other.exists() and not target.exists():
            raise OptionError(
                f"{other} exists and is not part of an export, but would be overwritten: choose another name, such as "
                f"{target.with_name(f'{target.stem}.{form.name}{form.ending}')}"
            )


def _write(form: Format, job: Job, path: Path) -> Checked:
    """Write the file and check it; turn errors of libraries into ExportError."""
    try:
        notes = form.write(job, path)
        checked = verify(form, job, path)
        return replace_fields(checked, notes=notes + checked.notes)
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters, runtimes and foreign networks raise anything
        reason = first_line(error).split(" Please feel free")[0].rstrip(".")
        raise ExportError(
            f"{job.subject.facts['network']} cannot be written as {form.name}: {reason:.200}. {_advice(form, job.size)}"
        ) from error


def _advice(form: Format, size: Size | None) -> str:
    """Return what to try after a format refused a network at a size, (height, width), or at any size."""
    if size is None and form.fixed:
        return "Try a fixed size, for example --size 256x256, or another format."
    if size is not None and any(side % _MULTIPLE for side in size):
        height, width = (-(-side // _MULTIPLE) * _MULTIPLE for side in size)
        return f"Try sides that are multiples of {_MULTIPLE}, for example --size {width}x{height}, or another format."
    return "Try another format."


def _put(path: Path, target: Path) -> tuple[Path, ...]:
    """Move the file at ``path`` to ``target``, its companion files first; return the new paths, ``target`` first."""
    written = sorted(path.parent.iterdir(), key=lambda file: file == path)
    places = [target if file == path else target.with_name(file.name) for file in written]
    for file, place in zip(written, places, strict=True):
        for part in [file, *file.rglob("*")]:  # a format may be a folder
            if part.is_file():
                flush_file(part)
        if file.is_dir() and place.is_dir():  # a rename cannot replace a folder
            old = path.parent / "old"
            replace(place, old)
            try:
                replace(file, place)
            except OSError:
                replace(old, place)
                raise
        else:
            replace(file, place)
    flush_directory(target.parent)
    return tuple(reversed(places))
