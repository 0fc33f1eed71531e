"""Films: ``safmn upscale`` against FFmpeg and the network chained by hand, on films that this script makes.

    python scripts/benchmarks/benchmark_films.py [--frames 60] [--size 320 180] [--weights safmn-x2]

- "photographic" moves slowly over a photograph, with noise, so every frame differs everywhere.
- "screen" is a recording of a screen: a photograph beside text that is typed, a blinking cursor and a clock.
- "drawing" shows each of its pictures for three frames, as drawn films do.
- "titles" shows cards of text, each for a second.

The sides:

- "by hand" is ``ffmpeg -i FILM (raw frames) | network | ffmpeg (encode)``: one loop over the raw frames with the same
  upscaler, in one process, with FFmpeg in two others.
- "every frame" is what ``safmn upscale`` does, but computes every frame anew.
- "ours" is ``safmn upscale``: what did not change is not computed again.

What counts are the decoded frames: an encoder such as H.264 keeps most of what does not change, and refines some of it.
The halo of SAFMN is 130 pixels, so a change in a small film reaches all of it.

Rounds are interleaved. "equal" says whether the frames of "ours" have the same pixels as those of "every frame".
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package

from benchmark_harness import argument_parser, use_threads
from safmn.data.bundled_photos import photo_folder
from safmn.errors import exit_status
from safmn.imaging import imresize, read_rgb
from safmn.inference.films.video import FilmOptions, upscale_video
from safmn.inference.unchanged import Frames
from safmn.inference.upscaler import Upscaler
from safmn.system.console import say, table

Array = np.ndarray[Any, np.dtype[Any]]
FILMS = ("photographic", "screen", "drawing", "titles")
RATE = 25
ENCODER = ["-c:v", "libx264", "-preset", "medium", "-crf", "18", "-pix_fmt", "yuv420p"]


def photograph(name: str, height: int, width: int) -> Array:
    """Return a photograph of scikit-image, reduced until it is a little larger than asked for."""
    photo = read_rgb(photo_folder() / name)
    reduced: Array = imresize(photo, max(height / photo.shape[0], width / photo.shape[1]) * 1.2)
    return reduced


def photographic(count: int, height: int, width: int) -> Iterator[Array]:
    """Yield frames of a slow pan over a photograph, with noise."""
    photo, rng = photograph("motorcycle_left.png", height, width), np.random.default_rng(0)
    for number in range(count):
        top = number * (photo.shape[0] - height) // max(count - 1, 1)
        left = number * (photo.shape[1] - width) // max(count - 1, 1)
        frame = photo[top : top + height, left : left + width] + rng.normal(0, 3, (height, width, 3))
        yield frame.clip(0, 255).round().astype(np.uint8)


def screen(count: int, height: int, width: int) -> Iterator[Array]:
    """Yield frames of a screen on which text is typed."""
    page = np.full((height, width, 3), 245, np.uint8)
    photo = photograph("astronaut.png", height // 2, width // 3)[: height // 2, : width // 3]
    page[: photo.shape[0], width - photo.shape[1] :] = photo
    text = "The quick brown fox jumps over the lazy dog. " * (1 + count // 40)
    for number in range(count):
        frame = page.copy()
        for line, start in enumerate(range(0, number, 40)):
            cv2.putText(frame, text[start : min(start + 40, number)], (8, 24 + 20 * line), 0, 0.4, (20, 20, 20))
        if number // 12 % 2:
            frame[height - 40 : height - 26, 12:14] = 0  # the cursor
        clock = f"{number // RATE // 60:02d}:{number // RATE % 60:02d}"
        cv2.putText(frame, clock, (width - 60, height - 8), 0, 0.4, (90, 20, 20))
        yield frame


def drawing(count: int, height: int, width: int) -> Iterator[Array]:
    """Yield frames of a drawn film: each picture is shown three times."""
    for number in range(count):
        picture = number // 3
        frame = np.full((height, width, 3), (150, 200, 235), np.uint8)
        cv2.ellipse(frame, (width // 3, height), (width // 2, height // 3), 0, 0, 360, (90, 160, 80), -1, cv2.LINE_AA)
        x = int(width * (0.2 + 0.5 * picture / max(count // 3, 1)))
        cv2.circle(frame, (x, height // 2), height // 8, (230, 90, 60), -1, cv2.LINE_AA)
        cv2.circle(frame, (x, height // 2), height // 8, (30, 30, 30), 2, cv2.LINE_AA)
        yield frame


def titles(count: int, height: int, width: int) -> Iterator[Array]:
    """Yield frames of titles: white text on a dark ground, another card each second."""
    for number in range(count):
        frame = np.full((height, width, 3), (16, 18, 24), np.uint8)
        for line in range(3):
            place = (width // 5, height * (2 + line) // 6)
            text = f"Part {number // RATE + 1}, line {line + 1}"
            cv2.putText(frame, text, place, cv2.FONT_HERSHEY_DUPLEX, height / 480, (235, 235, 235), 1, cv2.LINE_AA)
        yield frame


def write_film(path: Path, frames: Iterator[Array], height: int, width: int) -> None:
    """Encode frames with FFmpeg."""
    size = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(RATE), "-i", "-"]
    command = ["ffmpeg", "-v", "error", "-y", *size, *ENCODER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
        assert encoder.stdin is not None
        for frame in frames:
            encoder.stdin.write(frame.tobytes())
        encoder.stdin.close()


def by_hand(film: Path, target: Path, upscaler: Upscaler, height: int, width: int) -> None:
    """Chain FFmpeg, the network and FFmpeg through pipes."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    reading = ["ffmpeg", "-v", "error", "-i", str(film), *raw, "-"]
    size = ["-s", f"{width * upscaler.scale}x{height * upscaler.scale}", "-r", str(RATE), "-i", "-"]
    writing = ["ffmpeg", "-v", "error", "-y", *raw, *size, *ENCODER, str(target)]
    with (
        subprocess.Popen(reading, stdout=subprocess.PIPE) as decoder,
        subprocess.Popen(writing, stdin=subprocess.PIPE) as encoder,
    ):
        assert decoder.stdout is not None
        assert encoder.stdin is not None
        while len(content := decoder.stdout.read(height * width * 3)) == height * width * 3:
            frame = np.frombuffer(content, np.uint8).reshape(height, width, 3).copy()
            encoder.stdin.write(upscaler(frame).tobytes())
        encoder.stdin.close()


def ours(film: Path, target: Path, upscale: Callable[[Array], Array]) -> str:
    """Upscale a film as ``safmn upscale`` does; return a digest of the frames before they are encoded."""
    digest = hashlib.sha256()

    def noted(frame: Array) -> Array:
        result = upscale(frame)
        digest.update(result)
        return result

    upscale_video(film, target, noted, options=FilmOptions(crf=18))
    return digest.hexdigest()


def cpu_seconds() -> float:
    """Return the CPU time so far of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(film: Path, folder: Path, upscaler: Upscaler, size: tuple[int, int], rounds: int) -> list[list[str]]:
    """Return the rows of the table for one film."""
    digests: dict[str, str] = {}
    unchanged = [0.0]

    def reusing() -> None:
        frames = Frames(upscaler, lambda finding: None)
        digests["ours"] = ours(film, folder / "ours.mp4", frames)
        unchanged[0] = frames.unchanged

    def every() -> None:
        digests["every frame"] = ours(film, folder / "every.mp4", upscaler)

    sides = {
        "by hand": lambda: by_hand(film, folder / "hand.mp4", upscaler, *size),
        "every frame": every,
        "ours": reusing,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began, before = time.perf_counter(), cpu_seconds()
            side()
            taken[name].append((time.perf_counter() - began, cpu_seconds() - before))
    import av

    with av.open(str(film)) as container:
        count = container.streams.video[0].frames
    rows, first = [], None
    for name, values in taken.items():
        elapsed, computed = (statistics.median(each) for each in zip(*values, strict=True))
        first = first or (elapsed, computed)
        equal = "" if name != "ours" else "yes" if digests["ours"] == digests["every frame"] else "NO"
        reused = f"{unchanged[0]:.0%}" if name == "ours" else ""
        row = [film.stem, name, f"{count / elapsed:.2f}", f"{first[0] / elapsed:.2f}x", f"{computed:.1f}"]
        rows.append([*row, f"{first[1] / computed:.2f}x", reused, equal])
    return rows


@exit_status
def main() -> int:
    """Measure; return the exit status."""
    parser = argument_parser(__doc__)
    parser.set_defaults(rounds=3, warmup=0)
    parser.add_argument("--frames", type=int, default=60, help="frames of each film")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 360), metavar=("W", "H"), help="size of the films")
    parser.add_argument("--films", nargs="+", choices=FILMS, default=list(FILMS))
    parser.add_argument("--weights", default="safmn-x2")
    arguments = parser.parse_args()
    if not shutil.which("ffmpeg"):
        sys.exit("the program ffmpeg is not installed; it is the other side of this comparison")
    use_threads(arguments.threads)
    width, height = arguments.size
    upscaler = Upscaler(arguments.weights, device="cpu")
    upscaler(next(photographic(1, height, width)))  # chooses the back end
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in arguments.films:
            film = Path(folder, f"{name}.mp4")
            write_film(film, globals()[name](arguments.frames, height, width), height, width)
            rows += measure(film, Path(folder), upscaler, (height, width), arguments.rounds)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    say(f"{arguments.frames} frames of {width}x{height}, {arguments.weights}, {processors} processors")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    columns = ["film", "side", "frames/s", "factor", "CPU s", "factor in CPU time", "not computed", "equal"]
    say(table(columns, rows))
    say(f"peak memory of this process: {peak / 2**20:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
