"""What a film says of itself beyond its pictures, and films that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from repeater import repeated
from skimage import data

from safmn.errors import DataError
from safmn.inference.films.video import probe, upscale_video

av: Any = pytest.importorskip("av")
Array = np.ndarray[Any, np.dtype[Any]]


def photo() -> Array:
    """Strong colours, uint8 (32, 48, 3)."""
    image = cv2.resize(data.astronaut(), (48, 32), interpolation=cv2.INTER_AREA)
    image[:16, :24] = (220, 40, 30)
    return np.ascontiguousarray(image)


def write_film(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    matrix: int = 2,
    aspect: Fraction | None = None,
    frames: int = 4,
) -> None:
    """Pictures that do not move; ``matrix`` as in H.273."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
        stream.codec_context.colorspace = matrix
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(photo(), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix if matrix in (1, 9) else None)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def first_picture(path: Path) -> Any:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "matrix", "written"),
    [
        ("a.mov", "png", "rgb24", 0, 1),
        ("a.mkv", "libx264rgb", "rgb24", 0, 1),
        ("a.mp4", "libx264", "yuv420p", 1, 1),
        ("a.mp4", "libx264", "yuv420p", 2, 2),
        ("a.mp4", "libx264", "yuv420p10le", 9, 9),
    ],
)
def test_colours_are_tagged_as_they_are_converted(
    name: str, codec: str, pix_fmt: str, matrix: int, written: int, tmp_path: Path
) -> None:
    write_film(tmp_path / name, codec, pix_fmt, matrix=matrix)
    before = first_picture(tmp_path / name)
    assert int(before.colorspace) == matrix
    upscale_video(tmp_path / name, tmp_path / f"larger {name}", repeated)
    after = first_picture(tmp_path / f"larger {name}")
    assert int(after.colorspace) == written
    corner = (slice(4, 12), slice(4, 20))  # of one colour
    colour = after.to_ndarray(format="rgb24")[8:24, 8:40].mean((0, 1))
    assert np.allclose(colour, before.to_ndarray(format="rgb24")[corner].mean((0, 1)), atol=4)


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_keep_their_shape(turned: bool, tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", aspect=Fraction(16, 11))
    if turned:
        rotate_film(tmp_path / "a.mp4")
    upscale_video(tmp_path / "a.mp4", tmp_path / "b.mp4", repeated)
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == (Fraction(11, 16) if turned else Fraction(16, 11))
        assert (stream.width, stream.height) == ((64, 96) if turned else (96, 64))


def test_films_do_not_get_darker(tmp_path: Path) -> None:
    if not hasattr(av.video.reformatter.Interpolation, "ACCURATE_RND"):
        pytest.skip("this release of PyAV converts fast only")
    write_film(tmp_path / "in.mkv", "ffv1")
    pictures = []

    def upscale(image: Array) -> Array:
        pictures.append(image)
        return repeated(image)

    upscale_video(tmp_path / "in.mkv", tmp_path / "out.mp4", upscale)
    assert np.abs(np.mean(pictures, axis=(0, 1, 2)) - photo().mean(axis=(0, 1))).max() < 0.6


def rotate_film(path: Path) -> None:
    """Set the matrix in the track header of an MP4 file to a quarter turn (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version and flags, times and so on, reserved, layer
    one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
    assert content[place : place + 4] == one
    content[place : place + 20] = zero + one + zero + (-(1 << 16)).to_bytes(4, "big", signed=True) + zero
    path.write_bytes(content)


def test_a_film_cut_before_its_first_picture(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mkv")
    content = (tmp_path / "a.mkv").read_bytes()
    start = content.index(b"\x1f\x43\xb6\x75")  # the first cluster of Matroska
    (tmp_path / "cut.mkv").write_bytes(content[: start + 40])
    doors: list[Callable[[], object]] = [
        lambda: probe(tmp_path / "cut.mkv"),
        lambda: upscale_video(tmp_path / "cut.mkv", tmp_path / "b.mkv", repeated),
    ]
    for door in doors:
        with pytest.raises(DataError, match=r"cut\.mkv: its pictures cannot be decoded"):
            door()
    assert not (tmp_path / "b.mkv").exists()
