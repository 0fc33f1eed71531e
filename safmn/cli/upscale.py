"""``safmn upscale``: upscale images, folders and films with a network."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safmn.errors import EXIT_FAILED, OptionError, exit_status, status_after
from safmn.inference.choices import (
    BACKEND_MODULES,
    CLEAN_WEIGHTS,
    DEINTERLACE,
    MAX_PIXELS,
    PRECISIONS,
    unknown_backend,
)
from safmn.inference.file_jobs import FileJob, Plan, plan
from safmn.inference.sharding import Shard, find_shard, part_of
from safmn.inference.sources import add_arguments, load_named, show_choices
from safmn.system.console import ArgumentParser, log_warnings_to_stderr, say, say_line

if TYPE_CHECKING:
    from safmn.inference.file_run import Run
    from safmn.inference.films.codecs import FilmOptions


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    p = ArgumentParser(
        prog="safmn upscale",
        description="Upscale images, animations and films. Existing outputs are kept, so an interrupted run can be "
        "resumed with the same command. Exit status: 0 done; 1 some inputs failed (named at the end); 2 a wrong "
        "argument; 130 or 143 after Ctrl-C or SIGTERM.",
    )
    p.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders (with their subfolders) or patterns")
    p.add_argument("-o", "--output", required=True, metavar="OUT", help="output folder, or file for a single input")
    add_arguments(p, default="x2, with weights that suit each image")
    p.add_argument(
        "--scale", type=int, metavar="S", help="the weights' scale, for those that serve several; otherwise a check"
    )
    p.add_argument(
        "--tile",
        default="auto",
        metavar="auto|N|0",
        help="tile width in input pixels; 0: no tiling (default: auto)",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps (default: auto)")
    p.add_argument("--precision", default="fp32", choices=PRECISIONS, help="(default: fp32)")
    p.add_argument(
        "--backend",
        default="auto",
        help=f"back end: {', '.join(BACKEND_MODULES)} (default: auto, the fastest one installed)",
    )
    p.add_argument("--ensemble", action="store_true", help="average over 8 flips and rotations (8 times the work)")
    p.add_argument("--full-frame-semantics", action="store_true", help="pool as published on odd sizes; no tiling")
    p.add_argument(
        "--no-guard", action="store_true", help="keep the network's output also where it is garbage (default: bicubic)"
    )
    p.add_argument("--format", metavar="EXT", help="png, jpg, webp, tif, avif, ... (default: the input's format)")
    p.add_argument(
        "--quality",
        type=int,
        default=95,
        metavar="Q",
        help="for JPEG, WebP (100: lossless) and AVIF (default: 95)",
    )
    film = p.add_argument_group("films", "how the frames are encoded; sound and everything else are kept")
    film.add_argument(
        "--codec",
        metavar="C",
        help="h264, hevc, av1, vp9, prores, ffv1, or an encoder of FFmpeg, such as "
        "h264_nvenc (default: h264; vp9 in .webm; hevc for more than 8 bits)",
    )
    film.add_argument("--crf", type=float, metavar="N", help="quality on the encoder's scale, lower is better")
    film.add_argument("--preset", metavar="P", help="trades speed for size; names of the encoder (default: medium)")
    film.add_argument("--pix-fmt", metavar="F", help="such as yuv420p10le for 10 bits (default: the film's bit depth)")
    film.add_argument(
        "--deinterlace",
        default="auto",
        choices=DEINTERLACE,
        help="deinterlace with bwdif; auto: frames marked as interlaced; all; off (default: auto)",
    )
    p.add_argument("--compare", action="store_true", help="also write OUTPUT_compare.png: bicubic and the result")
    p.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    p.add_argument(
        "--shard",
        metavar="I/N",
        help="do only part I of N of the files, divided by size (default: the part of this process under "
        "torchrun or srun, otherwise all)",
    )
    p.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse larger inputs (default: %(default)s)",
    )
    p.add_argument("--debug", action="store_true", help="show the whole traceback of an error in your own code")
    return p


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``safmn upscale`` and return its exit status."""
    log_warnings_to_stderr()
    show_choices()
    options = parser().parse_args(argv)
    if not 1 <= options.quality <= 100:
        raise OptionError(f"--quality {options.quality}: choose 1 to 100")
    if options.max_pixels < 1:
        raise OptionError(f"--max-pixels {options.max_pixels}: choose 1 or more")
    if options.backend not in BACKEND_MODULES:
        raise unknown_backend(options.backend, BACKEND_MODULES)
    tile = options.tile if options.tile == "auto" else _number(options.tile)
    shard = find_shard(options.shard)
    planned = plan(options.inputs, options.output, image_format=options.format, compare=options.compare)
    if shard.count > 1:
        total = len(planned.jobs)
        planned = _own_part(planned, shard)
        say(f"part {shard} ({shard.source}): {len(planned.jobs)} of {total} files")
    return _upscale(options, tile, planned, shard)


def _own_part(planned: Plan, shard: Shard) -> Plan:
    """Return the plan of this process. The first one also reports what no process does."""
    own = tuple(part_of(planned.jobs, shard))
    return replace(planned, jobs=own) if shard.index == 0 else Plan(own, (), ())


def _upscale(options: argparse.Namespace, tile: int | Literal["auto"], planned: Plan, shard: Shard) -> int:
    from safmn.inference.file_run import Run
    from safmn.inference.films.codecs import FilmOptions
    from safmn.inference.suited import Suited
    from safmn.inference.upscaler import Upscaler
    from safmn.system import memory
    from safmn.system.signals import sigterm_as_ctrl_c

    film = FilmOptions(options.codec, options.crf, options.preset, options.pix_fmt, options.deinterlace)
    _check_films(film, planned.jobs)
    memory.keep_heap_small()

    def build(weights: Any, scale: int | None) -> Upscaler:
        return Upscaler(
            weights,
            scale=scale,
            tile=tile,
            device=_device(options.device, shard),
            precision=options.precision,
            backend=options.backend,
            self_ensemble=options.ensemble,
            full_frame_semantics=options.full_frame_semantics,
            guard=not options.no_guard,
        )

    suited = None
    if options.opt or options.imports:
        network = load_named(
            options.weights,
            options.opt,
            overrides=options.force_yml,
            imports=options.imports,
            tolerant=options.tolerant,
        )
        upscaler = build(network, options.scale)
    elif options.weights:
        upscaler = build(options.weights, options.scale)
    else:
        suited = Suited(lambda name: build(name, options.scale if name == CLEAN_WEIGHTS else None))
        upscaler = suited.clean
    run = Run(upscaler, options.quality, options.max_pixels, options.compare, options.overwrite, film, suited=suited)
    run.failures.extend(planned.refused)
    try:
        with _without_pillow_limit(), sigterm_as_ctrl_c():
            run.all(planned.jobs)
    except KeyboardInterrupt as interrupt:
        say("interrupted; run the same command again to resume")
        return status_after(interrupt)
    return _summarise(run, planned.ignored)


def _device(wanted: str, shard: Shard) -> str:
    """Return the device; with several processes on a machine, ``auto`` and ``cuda`` are this process's GPU."""
    import torch

    gpus = torch.cuda.device_count()
    if shard.local_rank is None or gpus < 2 or wanted not in ("auto", "cuda"):
        return wanted
    return f"cuda:{shard.local_rank % gpus}"


def _check_films(film: FilmOptions, jobs: Sequence[FileJob]) -> None:
    """Raise OptionError before any work if a film cannot be written with these options. Defaults need no check."""
    from safmn.inference.films import codecs as film_codecs
    from safmn.inference.films import source as film_source

    if film == film_codecs.FilmOptions(deinterlace=film.deinterlace):
        return
    for suffix in dict.fromkeys(job.target.suffix.lower() for job in jobs if job.is_film):
        film_source.av_module()
        film_codecs.check(film, suffix)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise OptionError(f"--tile {text}: choose auto, a number of pixels, or 0") from error


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Disable Pillow's pixel limit within the block. Ours is checked when a file is opened and is configurable."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _summarise(run: Run, ignored: Sequence[Path]) -> int:
    say(f"{run.done} upscaled, {run.kept} kept, {len(run.failures)} failed, {len(ignored)} ignored")
    if run.uncompared:
        say("--compare does not apply to films and animations")
    for path in ignored:
        say_line(f"ignored {path}: neither an image nor a film")
    for message in run.failures:
        say_line(f"failed  {message}")
    return EXIT_FAILED if run.failures else 0
