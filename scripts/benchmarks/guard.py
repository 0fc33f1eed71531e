"""Measure the guard against garbage (docs/upscaling.md): how far outputs deviate, what it replaces, what it costs.

    python scripts/benchmarks/guard.py distribution --photos ../shared/data/photos --every 5
    python scripts/benchmarks/guard.py files ../shared/data/cases/*.png --weights safmn-x2 safmnpp_x4.pth -o out
    python scripts/benchmarks/guard.py flat
    python scripts/benchmarks/guard.py cost

``distribution``: how far blocks of 8x8 LR pixels deviate, as a multiple of the default bounds, in photographs, spoilt
photographs, drawings and patterns. Blocks above the tolerance of the weights are replaced. ``files``: what the guard
replaces in files. ``flat``: how many of 729 flat colours come out wrong with and without the guard. ``cost``: the
guard's share of the upscaling time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run without installing the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import drawings

from safmn.errors import UserError, exit_status
from safmn.imaging import imresize, list_images, mod_crop, read_rgb, write_image
from safmn.inference.guard import Guard, excess
from safmn.inference.upscaler import Upscaler
from safmn.system.console import say, table
from safmn.weights import zoo

SIDE = 384  # largest width and height of the part of a photograph that is used
DRAWINGS = 64


# Images


def photographs(folders: list[Path], every: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and pixels, uint8 (H, W, 3), of every ``every``-th image of each folder, cut to SIDE pixels."""
    for folder in folders:
        for path in list_images(folder)[::every]:
            yield path.name, read_rgb(path)[:SIDE, :SIDE]


def spoilers() -> dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]:
    """Return functions by name that spoil an LR image: uint8 (h, w, 3) to the same."""

    def jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(10, 60))])[1]
        return np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])

    def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.clip(image + rng.normal(0, rng.uniform(5, 40), image.shape), 0, 255).astype(np.uint8)

    def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 3)))

    def contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.clip(rng.uniform(1.5, 3) * (image - 128.0) + 128, 0, 255).astype(np.uint8)

    def saturation(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        grey = image.mean(axis=2, keepdims=True)
        return np.clip(grey + rng.uniform(1.5, 4) * (image - grey), 0, 255).astype(np.uint8)

    return {"jpeg": jpeg, "noise": noise, "blur": blur, "contrast": contrast, "saturation": saturation}


def patterns() -> Iterator[tuple[str, np.ndarray]]:
    """Yield chequers, stripes, noise, dots, rings and a halftone, uint8 (96, 96, 3), with their names."""
    y, x = np.indices((96, 96))
    rng = np.random.default_rng(0)
    made = {f"chequers of {k}": ((y // k + x // k) % 2) * 255.0 for k in (1, 2, 3, 8)}
    made |= {f"stripes of {k}": (x // k % 2) * 255.0 for k in (1, 2, 3)}
    made["noise of two values"] = (rng.random((96, 96)) < 0.5) * 255.0
    made["dots"] = (rng.random((96, 96)) < 0.05) * 255.0
    made["rings"] = 127.5 + 127.5 * np.cos(((y - 48) ** 2 + (x - 48) ** 2) / 35)
    made["halftone"] = (rng.permutation(64).reshape(8, 8)[y % 8, x % 8] < x * 64 / 96) * 255.0
    for name, grey in made.items():
        yield name, np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def groups(arguments: argparse.Namespace, scale: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield group, name and pixels, uint8 (h, w, 3), of all LR images."""
    for number, (name, photo) in enumerate(photographs(arguments.photos, arguments.every)):
        hr = mod_crop(photo, scale)
        lr = imresize(hr, 1 / scale)
        yield "photographs", name, lr
        rng = np.random.default_rng(number)
        chosen = list(spoilers().items())[number % 5 :][:1]
        for kind, spoil in chosen:
            yield kind, name, spoil(lr, rng)
    for number in range(DRAWINGS):
        yield "drawings", f"{drawings.KINDS[number % 4].__name__} {number}", drawings.drawing(number)
    yield from (("patterns", name, image) for name, image in patterns())


# Measurements


def distribution(arguments: argparse.Namespace) -> None:
    """Print how far blocks deviate: one row for each set of weights and group of images."""
    rows = []
    for weights in arguments.weights:
        upscaler = Upscaler(weights, device="cpu", guard=False, tile=0)
        tolerance = _tolerance(upscaler)
        found: dict[str, list[tuple[float, str, np.ndarray]]] = {}
        for group, name, lr in groups(arguments, upscaler.scale):
            degree = _excess(upscaler, lr)
            found.setdefault(group, []).append((float(degree.max()), name, degree))
        for group, images in found.items():
            blocks = np.concatenate([degree.ravel() for _, _, degree in images])
            worst = max(images, key=lambda image: image[0])
            touched = sum(image[0] > tolerance for image in images)
            quantiles = [f"{value:.2f}" for value in np.quantile(blocks, (0.999, 0.9999))]
            rows.append([Path(weights).stem, f"{tolerance:.2f}", group, len(images), len(blocks), *quantiles])
            rows[-1] += [f"{worst[0]:.2f}", worst[1], touched]
            say(" ".join(map(str, rows[-1])))
    header = ["weights", "tolerance", "images", "count", "blocks", "99.9 %", "99.99 %", "largest", "which", "touched"]
    say(table(header, rows))


def _excess(upscaler: Upscaler, lr: np.ndarray) -> np.ndarray:
    output = upscaler(lr, report=lambda finding: None)
    return excess(_batch(lr), _batch(output), upscaler.scale).numpy()


def _batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


def _tolerance(upscaler: Upscaler) -> float:
    return upscaler._current_engine().guard.tolerance


def files(arguments: argparse.Namespace) -> None:
    """Upscale files with and without the guard and print what it replaced; with -o, also write both."""
    rows = []
    for weights in arguments.weights:
        upscaler, bare = (Upscaler(weights, device="cpu", guard=guard, tile=0) for guard in (True, False))
        for path in arguments.files:
            image, said = read_rgb(path), []
            try:
                pair = bare(image, report=lambda finding: None), upscaler(image, report=said.append)
            except UserError as error:
                rows.append([Path(weights).stem, path.name, str(error)])
                continue
            rows.append([Path(weights).stem, path.name, str(said[0]) if said else "untouched"])
            if arguments.output:
                write_image(arguments.output / f"{path.stem}_{Path(weights).stem}.png", np.hstack(pair))
    say(table(["weights", "file", "guard"], rows))


def flat(arguments: argparse.Namespace) -> None:
    """Print how many of 9^3 flat colours deviate, with one image for each."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    rows = []
    for weights in arguments.weights:
        for side in arguments.sides:
            for guard in (False, True):
                upscaler = Upscaler(weights, device="cpu", guard=guard, tile=0)
                worst, mesh = [], []
                for start in range(0, len(colours), 27):
                    some = colours[start : start + 27, None, None]
                    output = upscaler(
                        np.broadcast_to(some, (len(some), side, side, 3)).copy(), report=lambda finding: None
                    )
                    error = output.astype(int) - some
                    cells = error.reshape(len(some), side // 8, 8 * upscaler.scale, side // 8, 8 * upscaler.scale, 3)
                    worst += [*np.abs(cells.mean(axis=(2, 4))).max(axis=(1, 2, 3))]
                    mesh += [*np.abs(error).mean(axis=(1, 2)).max(axis=1)]
                over = [sum(value > bound for value in worst) for bound in (2, 4, 16, 40)]
                row = [
                    Path(weights).stem,
                    side,
                    "on" if guard else "off",
                    *over,
                    f"{max(worst):.1f}",
                    f"{max(mesh):.1f}",
                ]
                rows.append(row)
                say(" ".join(map(str, row)))
    say(table(["weights", "side", "guard", "> 2", "> 4", "> 16", "> 40", "largest", "largest mean |error|"], rows))


def cost(arguments: argparse.Namespace) -> None:
    """Print the guard's share of CPU time, for an image without garbage; medians of interleaved runs."""
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    small = rng.integers(60, 190, (32, 48, 3), dtype=np.uint8)
    rows = []
    for weights in arguments.weights:
        for height, width in arguments.sizes:
            image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
            upscalers = [Upscaler(weights, device="cpu", guard=guard) for guard in (True, False)]
            times: list[list[float]] = [[], []]
            for _ in range(arguments.rounds + 1):
                for upscaler, own in zip(upscalers, times, strict=True):
                    start = time.process_time()
                    output = upscaler(image)
                    own.append(time.process_time() - start)
            alone = []
            guard = Guard(upscalers[0].network, scale=upscalers[0].scale, device=torch.device("cpu"), name=weights)
            for _ in range(arguments.rounds):
                start = time.process_time()
                assert not guard.find(_batch(image), _batch(output)).any()
                alone.append(time.process_time() - start)
            on, off = (statistics.median(own[1:]) for own in times)
            share = statistics.median(alone) / off
            rows.append([weights, f"{width}x{height}", f"{off:.2f}", f"{on / off - 1:+.1%}", f"{share:.1%}"])
    say(table(["weights", "input", "seconds without", "on against off", "guard alone"], rows))


def _size(text: str) -> tuple[int, int]:
    """Return height and width of a size such as "384x256", which has the width first."""
    width, height = text.split("x")
    return int(height), int(width)


@exit_status
def main() -> int:
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for work in (distribution, files, flat, cost):
        command = commands.add_parser(work.__name__, help=work.__doc__)
        command.set_defaults(work=work)
        command.add_argument("--weights", nargs="+", default=list(zoo.entries()), help="default: those of safmn zoo")
        command.add_argument("--threads", type=int, default=1)
        if work is distribution:
            command.add_argument("--photos", nargs="+", type=Path, default=[], help="folders of photographs")
            command.add_argument("--every", type=int, default=1, help="use every EVERY-th photograph")
        if work is files:
            command.add_argument("files", nargs="+", type=Path)
            command.add_argument("-o", "--output", type=Path, help="folder for pictures: without guard, with guard")
        if work is flat:
            command.add_argument("--sides", nargs="+", type=int, default=[64], help="image sizes, multiples of 8")
        if work is cost:
            command.add_argument("--rounds", type=int, default=9)
            command.add_argument("--sizes", nargs="+", type=_size, default=[(256, 384), (720, 1280)], metavar="WxH")
    arguments = parser.parse_args()
    arguments.work(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
