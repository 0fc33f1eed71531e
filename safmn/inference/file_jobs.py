"""Plan which files ``safmn upscale`` reads and where it writes the results."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safmn.errors import DataError
from safmn.inference.choices import READABLE, WRITABLE
from safmn.inference.films.kinds import TARGETS, VIDEO_SUFFIXES, is_film
from safmn.system.files import TEMPORARY, check_name

# An output with one of these suffixes is taken as a file name, not as a folder, even if the format cannot be written.
_FILE_SUFFIXES = (*READABLE, *VIDEO_SUFFIXES, ".heic", ".heif", ".jxl", ".j2k", ".ico", ".psd", ".svg", ".pdf")


@dataclass(frozen=True)
class FileJob:
    """One file to read and one to write.

    Attributes:
        source: the input file.
        target: the output file.
        is_film: whether the source is a film.
    """

    source: Path
    target: Path
    is_film: bool = False

    @property
    def comparison(self) -> Path:
        """Path of the side-by-side picture. It includes the target's suffix, so a.jpg and a.png get different ones."""
        return self.target.with_name(f"{self.target.name}_compare.png")


@dataclass(frozen=True)
class Plan:
    """The jobs of one run, and the inputs that are left out.

    Attributes:
        jobs: in the order of the inputs; the files of a folder are sorted by name.
        refused: a message for each file whose output path is already taken and for each folder that cannot be read.
        ignored: files in folders that are neither images nor films.
    """

    jobs: tuple[FileJob, ...]
    refused: tuple[str, ...]
    ignored: tuple[Path, ...]


def plan(
    inputs: Sequence[str], output: str | os.PathLike[str], *, image_format: str | None = None, compare: bool = False
) -> Plan:
    """Find all input files and name their outputs.

    Args:
        inputs: files, folders (with their subfolders) and patterns (``**`` for any depth).
        output: a folder, created if needed, that keeps the tree of each input folder; or, for a single input file, the
            file to write.
        image_format: suffix for images, with or without the dot. None keeps each input's suffix if it can be written,
            and takes PNG otherwise.
        compare: whether side-by-side pictures are also written.

    Raises:
        DataError: an input does not exist or would be overwritten, there is nothing to upscale, ``image_format`` is
            unknown or contradicts the output's suffix, or ``output`` cannot be written.
    """
    output = Path(output)
    suffix = _suffix(image_format)
    unreadable: list[str] = []
    found = [item for given in inputs for item in _expand(given, output, unreadable)]
    films = {path for path, _, named in found if _is_film(path, named)}
    is_known = {path: path in films or path.suffix.lower() in READABLE for path, _, _ in found}
    ignored = [path for path, _, named in found if not named and not is_known[path]]
    kept = list(dict.fromkeys((path, place) for path, place, named in found if named or is_known[path]))
    if not kept:
        raise DataError(f"{', '.join(inputs)}: there are no images and no films")
    single = len(kept) == 1 and len(inputs) == 1 and not Path(inputs[0]).is_dir()
    if not output.is_dir() and output.suffix.lower() in _FILE_SUFFIXES:
        if not single:
            raise DataError(f"{output} is the name of a file; several outputs need a folder")
        jobs = [_named(kept[0][0], output, suffix, is_film=kept[0][0] in films)]
    else:
        jobs = [
            FileJob(
                path, output / place.with_suffix(_target_suffix(path, suffix, is_film=path in films)), path in films
            )
            for path, place in kept
        ]
    for job in jobs:
        check_name(job.target)
    _check_writable(output if jobs[0].target != output else output.parent)
    real = _RealPaths()
    _check_inputs(jobs, compare, real)
    jobs, refused = _distinct(jobs, compare, real)
    return Plan(tuple(jobs), (*refused, *unreadable), tuple(ignored))


def _is_film(path: Path, named: bool) -> bool:
    """Return whether a file is a film. A file with an image suffix never is."""
    return path.suffix.lower() not in READABLE and is_film(path, named=named)


def _named(source: Path, target: Path, suffix: str | None, *, is_film: bool) -> FileJob:
    """Return the job for an output file that the user named, or raise DataError if it cannot be written."""
    if suffix not in (None, target.suffix.lower()):
        raise DataError(f"{target}: its suffix and --format {suffix} differ; leave one out")
    job = FileJob(source, target, is_film)
    possible = tuple(TARGETS if is_film else WRITABLE)
    if target.suffix.lower() not in possible:
        raise DataError(f"{source} cannot be written as {target}; choose {', '.join(possible)}")
    return job


def _check_writable(folder: Path) -> None:
    """Raise DataError before any work if every output would fail because the folder cannot be written."""
    folder = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"outputs cannot be written to {folder}: it is {'read-only' if folder.is_dir() else 'a file'}")


def _suffix(image_format: str | None) -> str | None:
    if image_format is None:
        return None
    suffix = "." + image_format.lower().removeprefix(".")
    if suffix not in WRITABLE:
        raise DataError(f"cannot write the format {image_format!r}; choose {', '.join(s[1:] for s in WRITABLE)}")
    return suffix


def _target_suffix(source: Path, wanted: str | None, *, is_film: bool) -> str:
    own = source.suffix.lower()
    if is_film:
        return source.suffix if own in TARGETS else ".mkv"
    return wanted or (source.suffix if own in WRITABLE else ".png")


def _expand(given: str, output: Path, unreadable: list[str]) -> Iterator[tuple[Path, Path, bool]]:
    """Yield (file, path below the output folder, whether the user named this file) for each file of an input."""
    if os.path.isdir(given):
        yield from _walk(Path(given), output, unreadable)
    elif os.path.exists(given):
        yield Path(given), Path(Path(given).name), True
    else:
        matches = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []
        if not matches:
            raise DataError(f"{given}: there is no such file or folder, and no file matches it as a pattern")
        base = _fixed_part(given)
        excluded = output.resolve()
        inside = base.resolve() in excluded.parents  # an output folder that contains the inputs excludes none of them
        for match in map(Path, matches):
            if match.is_file() and not (inside and excluded in match.resolve().parents):
                yield match, match.relative_to(base), False


def _fixed_part(pattern: str) -> Path:
    """Return the folders at the beginning of a pattern, up to the first wildcard."""
    parts = []
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _walk(folder: Path, output: Path, unreadable: list[str]) -> Iterator[tuple[Path, Path, bool]]:
    """Yield all files below a folder, sorted, following links. Hidden files and the output folder are left out.

    Args:
        unreadable: receives a message for each folder that cannot be read.
    """
    seen = {output.resolve(), folder.resolve()}

    def is_new(place: Path) -> bool:
        real = place.resolve()
        return real not in seen and not seen.add(real)  # type: ignore[func-returns-value]

    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename}: the folder cannot be read ({error.strerror})")

    for current, folders, names in os.walk(folder, onerror=note, followlinks=True):
        here = Path(current)
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and is_new(here / name)]
        for name in sorted(names):
            if not name.startswith((".", TEMPORARY)):
                yield here / name, (here / name).relative_to(folder), False


class _RealPaths:
    """Resolves links in paths, in each folder only once: a library has many files in few folders."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}
        self._known: dict[Path, Path] = {}

    def __call__(self, path: Path) -> Path:
        """Return what ``path.resolve()`` returns."""
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = path.resolve() if _is_special(path) else Path(self._folder(path), path.name)
        return found

    def _folder(self, path: Path) -> str:
        folder = os.path.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return self._folders[folder]


def _is_special(path: Path) -> bool:
    """Return whether the last part of a path may stand for another one."""
    return path.name in ("", "..") or path.is_symlink()


def _check_inputs(jobs: Sequence[FileJob], compare: bool, real: _RealPaths) -> None:
    sources = {real(job.source): job.source for job in jobs}
    for job in jobs:
        for target in (job.target, job.comparison) if compare else (job.target,):
            source = sources.get(real(target))
            if source is not None:
                raise DataError(f"{job.source} would be written over the input {source}; choose another -o")


def _distinct(jobs: Sequence[FileJob], compare: bool, real: _RealPaths) -> tuple[list[FileJob], list[str]]:
    """Return the first job for each output file, and a message for each other one.

    A file that keeps its suffix takes precedence over one that is converted to it.
    """
    comparisons = {real(job.comparison): job for job in jobs if compare and not job.is_film}
    taken: dict[Path, FileJob] = {}
    refused = []
    for job in sorted(jobs, key=lambda job: job.source.suffix != job.target.suffix):
        target = real(job.target)
        first = comparisons.get(target) or taken.setdefault(target, job)
        if first is not job and real(first.source) != real(job.source):  # the same file given twice needs no message
            kind = "comparison" if target in comparisons else "output"
            refused.append(
                f"{job.source}: {job.target} is the {kind} of {first.source}; upscale this file into another folder"
            )
    return [job for job in jobs if taken.get(real(job.target)) is job], refused
