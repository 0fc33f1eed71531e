"""Process the files of ``safmn upscale`` in order, with reading, computing and writing in parallel."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from safmn.errors import DataError, UserError
from safmn.imaging import imresize
from safmn.inference import pictures
from safmn.inference.file_jobs import FileJob
from safmn.inference.file_progress import FileBar
from safmn.inference.films.animation import Animation, read_animation, write_animation
from safmn.inference.films.video import Film, FilmOptions, probe, upscale_video
from safmn.inference.guard import Finding
from safmn.inference.parallel import Parallel
from safmn.inference.pictures import Picture, read_picture, write_picture
from safmn.inference.side_by_side import comparison
from safmn.inference.suited import Suited
from safmn.inference.unchanged import Frames
from safmn.inference.upscaler import Upscaler
from safmn.system.files import flush_directory
from safmn.system.prefetch import prefetch
from safmn.value_types import Array

Content: TypeAlias = "Picture | Animation | Film"

logger = logging.getLogger(__name__)

_WRITERS = 8  # threads: each waits for the disk most of the time
_WAITING = 2**25  # output pixels that wait for being written; the last output may wait in any case
_WHOLE = 0.95  # share of the stated frames that a complete film has: some files state a few that are not shown


@dataclass
class Run:
    """Upscales files. The next file is read and the previous ones written while the network computes.

    Small images are computed several at once; see :class:`Parallel`.

    Attributes:
        upscaler: the network.
        quality: quality of lossy image files, 1 to 100.
        max_pixels: the largest input that is accepted.
        compare: whether to write side-by-side pictures of still images.
        overwrite: whether to replace existing outputs.
        film: how films are encoded.
        watch: receives the part of all files that is done, 0 to 1.
        suited: chooses the weights of each file, at the same scale; None: ``upscaler`` does all.
        done: number of outputs written.
        kept: number of outputs left as they were.
        uncompared: number of films and animations, which get no side-by-side picture, if ``compare``.
        failures: a message for each file that failed.
    """

    upscaler: Upscaler
    quality: int
    max_pixels: int
    compare: bool
    overwrite: bool
    film: FilmOptions = field(default_factory=FilmOptions)
    watch: Callable[[float], None] | None = None
    suited: Suited | None = None
    done: int = 0
    kept: int = 0
    uncompared: int = 0
    failures: list[str] = field(default_factory=list)

    def all(self, jobs: Sequence[FileJob]) -> None:
        """Do all jobs and add a message to ``failures`` for each that fails."""
        todo = [job for job in jobs if self._is_due(job.target) or self._is_comparison_due(job)]
        self.kept = len(jobs) - len(todo)
        self.uncompared = sum(self.compare and job.is_film for job in jobs)
        with (
            FileBar(len(todo), self.watch) as bar,
            ThreadPoolExecutor(_WRITERS, "safmn-write") as writer,
            Parallel() as parallel,
            contextlib.closing(prefetch(self._read(todo))) as contents,
        ):
            pending: deque[_Pending] = deque()
            for job, content in contents:
                bar.start(job)
                if isinstance(content, Animation):
                    self.uncompared += self.compare
                    if not self._is_due(job.target):
                        self.kept += 1
                        bar.finish(f"{job.target}: kept")
                        continue
                pending.append(self._one(job, content, bar, writer, parallel, alone=len(todo) == 1))
                while len(pending) > 1 and self._are_many(pending, parallel.threads):
                    self._finish(pending.popleft(), bar)
            while pending:
                self._finish(pending.popleft(), bar)
        for folder in {job.target.parent for job in todo if job.target.parent.is_dir()}:
            flush_directory(folder)

    def _are_many(self, pending: Collection[_Pending], threads: int) -> bool:
        """Return whether so many outputs are computed or wait for being written that the first must be finished."""
        pixels = sum(each.pixels for each in pending) * self.upscaler.scale**2
        return pixels > _WAITING or len(pending) > 2 * threads + _WRITERS

    def _is_due(self, output: Path) -> bool:
        return self.overwrite or not output.exists()

    def _is_comparison_due(self, job: FileJob) -> bool:
        return self.compare and not job.is_film and self._is_due(job.comparison)

    def _read(self, jobs: Sequence[FileJob]) -> Iterator[tuple[FileJob, Content | Exception]]:
        for job in jobs:
            try:
                yield job, self._content(job)
            except (UserError, OSError) as error:
                yield job, error

    def _content(self, job: FileJob) -> Content:
        with pictures.decoding(job.source):
            if job.is_film:
                return probe(job.source)
            animation = read_animation(job.source, max_pixels=self.max_pixels)
            return animation or read_picture(job.source, max_pixels=self.max_pixels)

    def _one(
        self,
        job: FileJob,
        content: Content | Exception,
        bar: FileBar,
        writer: ThreadPoolExecutor,
        parallel: Parallel,
        *,
        alone: bool,
    ) -> _Pending:
        """Compute one output. ``writer`` writes still images; films and animations are written as they are computed.

        ``alone``: it is the only one of the run.
        """
        started = time.perf_counter()
        result: Future[str] = Future()
        try:
            if isinstance(content, Exception):
                raise content
            if not isinstance(content, Film):
                pictures.check_size(job.target, *(side * self.upscaler.scale for side in content.size))
            if isinstance(content, Picture):
                return self._picture(job, content, bar, writer, parallel, alone=alone)
            parallel.settle()
            frames = self._film(job, content, bar) if isinstance(content, Film) else self._frames(job, content, bar)
            result.set_result(f"{frames}, {time.perf_counter() - started:.1f} s")
        except (UserError, OSError) as error:
            result.set_exception(error)
        return _Pending(job, result.result)

    def _picture(
        self,
        job: FileJob,
        picture: Picture,
        bar: FileBar,
        writer: ThreadPoolExecutor,
        parallel: Parallel,
        *,
        alone: bool,
    ) -> _Pending:
        """Compute a still image, now or, if it is small, in another thread; see :meth:`_one`."""
        started = time.perf_counter()
        count = math.prod(picture.size)
        upscaler = self.suited.for_picture(job.source, picture.pixels) if self.suited else self.upscaler

        def computed(progress: Callable[[float], None] | None) -> Future[str]:
            found = _Found(job.source)
            pixels = upscaler(picture.pixels, progress=progress, report=found.note)
            found.warn()
            return writer.submit(self._write, job, picture, pixels, started)

        if parallel.takes(upscaler, count):
            later = parallel.start(lambda: computed(None))
            return _Pending(job, lambda: later.result().result(), count)
        parallel.settle()
        if alone:
            upscaler.expect(count)
        return _Pending(job, computed(bar.advance).result, count)

    def _write(self, job: FileJob, original: Picture, pixels: Array, started: float) -> str:
        """Write an image and return a line with its sizes and the time. Runs in the writer's thread."""
        picture = original.enlarged(pixels)
        try:
            self._write_files(job, original, picture)
        except MemoryError as error:
            raise DataError(f"{job.target}: out of memory while writing it") from error
        height, width = original.pixels.shape[:2]
        size = f"{width}x{height} -> {pixels.shape[1]}x{pixels.shape[0]}"
        return f"{size}, {time.perf_counter() - started:.1f} s"

    def _write_files(self, job: FileJob, original: Picture, picture: Picture) -> None:
        if self._is_comparison_due(job):
            self._write_comparison(job, original, picture)
        if self._is_due(job.target):
            write_picture(job.target, picture, quality=self.quality, flush_folder=False)

    def _write_comparison(self, job: FileJob, original: Picture, picture: Picture) -> None:
        """Write bicubic beside our result, both upright."""
        small, ours = (pictures.to_rgb8(p.upright().pixels) for p in (original, picture))
        name = f"{type(self.upscaler.network).__name__} x{self.upscaler.scale}"
        panels = {"bicubic": imresize(small, self.upscaler.scale), name: ours}
        write_picture(job.comparison, Picture(comparison(panels, width=640)))

    def _for_frames(self, job: FileJob, kind: str) -> Upscaler:
        return self.suited.for_frames(job.source, kind) if self.suited else self.upscaler

    def _frames(self, job: FileJob, animation: Animation, bar: FileBar) -> str:
        total = len(animation.durations)
        found = _Found(job.source)
        upscale = Frames(self._for_frames(job, "an animation"), found.note)
        frames = (upscale(frame, progress=lambda part: bar.advance(part / total)) for frame in animation.frames())
        write_animation(job.target, frames, animation, quality=self.quality)
        found.warn(total)
        return _counted(total, upscale)

    def _film(self, job: FileJob, film: Film, bar: FileBar) -> str:
        done = 0

        def on_frame() -> None:
            nonlocal done
            done += 1
            bar.advance(1 / film.frames if film.frames else 0)
            bar.note(f"frame {done}/{film.frames or '?'}")

        found = _Found(job.source)
        upscale = Frames(self._for_frames(job, "a film"), found.note)
        written = upscale_video(job.source, job.target, upscale, options=self.film, on_frame=on_frame)
        found.warn(done)
        damage = written.damage
        if damage is None and film.counted and done < _WHOLE * film.frames:
            damage = f"only {done} of {film.frames} frames could be read: the file is cut or damaged"
        if damage is not None:
            raise DataError(f"{job.source}: {damage}; the frames that could be read are in {job.target}")
        return _counted(done, upscale)

    def _finish(self, pending: _Pending, bar: FileBar) -> None:
        """Wait until an output is written, then count it or add its error to ``failures``."""
        try:
            message = pending.result()
        except (UserError, OSError) as error:
            text = str(error)
            self.failures.append(text if str(pending.job.source) in text else f"{pending.job.source}: {text}")
            bar.finish(f"failed {self.failures[-1]}")
        else:
            self.done += 1
            bar.finish(f"{pending.job.target}: {message}")


def _counted(frames: int, upscale: Frames) -> str:
    """Return the number of frames in words, and how much of them was not computed."""
    unchanged = f" ({upscale.unchanged:.0%} unchanged)" if upscale.unchanged >= 0.01 else ""
    return f"{frames} frames{unchanged}"


@dataclass(frozen=True)
class _Pending:
    """An output that is being computed or written.

    Attributes:
        job: its files.
        result: waits until it is written, and returns a line about it or raises its error.
        pixels: LR pixels of a still image.
    """

    job: FileJob
    result: Callable[[], str]
    pixels: int = 0


class _Found:
    """Collects the guard's findings in the frames of one file, for one warning per file."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._findings: list[Finding] = []

    def note(self, finding: Finding) -> None:
        """Add the finding of one frame."""
        self._findings.append(finding)

    def warn(self, frames: int = 1) -> None:
        """Log a warning if there are findings.

        Args:
            frames: number of frames in the file.
        """
        if not self._findings:
            return
        worst = max(self._findings, key=lambda finding: sum(finding.pixels))
        where = "" if frames == 1 else f"{len(self._findings)} of {frames} frames, the worst: "
        advice = "; --no-guard keeps the network's output" if worst.replaced else ""
        logger.warning("%s: %s%s%s.", self._source, where, worst, advice)
