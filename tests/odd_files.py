"""Write unusual image files, byte by byte where libraries only write the usual variants.

``BROWSER`` and ``OTHERS`` map file names to functions that write the file. A browser can show the files in ``BROWSER``.
The functions in ``OTHERS`` return the pixels that a viewer must show.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms
from skimage import data

from safmn.imaging.boxes import with_code_points

Array = np.ndarray[Any, np.dtype[Any]]

HEIGHT, WIDTH = 24, 36
PHOTO = np.ascontiguousarray(cv2.resize(data.astronaut(), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
GREY = PHOTO[..., 1].copy()
RAMP = np.broadcast_to(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, WIDTH)).copy()
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" tiff:Orientation="%d">'
    b"<dc:creator><rdf:Seq><rdf:li>Somebody</rdf:li></rdf:Seq></dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>"
    b'<?xpacket end="w"?>'
)
NOTES = bytes(range(256)) * 3  # a camera's notes in its maker's own format

Write = Callable[[Path], Any]
BROWSER: dict[str, Write] = {}
OTHERS: dict[str, Write] = {}


def other(name: str) -> Callable[[Write], Write]:
    """Return a decorator that adds a function to ``OTHERS``."""
    return lambda write: OTHERS.setdefault(name, write)


# Building blocks


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def rows(pixels: Array, bits: int) -> bytes:
    """Return unfiltered PNG rows, compressed."""
    if bits == 16:
        lines = pixels.astype(">u2").reshape(len(pixels), -1).view(np.uint8)
    elif bits == 8:
        lines = pixels.reshape(len(pixels), -1)
    else:
        spread = np.unpackbits(pixels[..., None].astype(np.uint8), axis=-1)[..., -bits:]
        lines = np.packbits(spread.reshape(len(pixels), -1), axis=1)
    return zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))


def png(
    pixels: Array, *, colour: int, bits: int = 8, before: Sequence[bytes] = (), after: Sequence[bytes] = ()
) -> bytes:
    """Return a PNG file of any colour type and depth, with extra chunks before and after the pixels."""
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, colour, 0, 0, 0)
    content = chunk(b"IDAT", rows(pixels, bits))
    parts = (chunk(b"IHDR", header), *before, content, *after, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(
    *, orientation: int | None = None, order: str = "<", interoperability: bytes | None = None, size: int = 24
) -> bytes:
    """Return EXIF data like that of a camera: maker's notes, values of rare types, an interoperability directory."""
    lines = [(271, 2, 7, b"Camera\0"), (282, 5, 1, struct.pack(order + "II", 72, 1))]
    lines += [(283, 5, 1, struct.pack(order + "II", 72, 1)), (296, 3, 1, struct.pack(order + "H", 2))]
    if orientation:
        lines.append((274, 3, 1, struct.pack(order + "H", orientation)))
    details = [
        (33434, 5, 1, struct.pack(order + "II", 1, 250)),
        (36864, 7, 4, b"0232"),
        (37380, 10, 1, struct.pack(order + "ii", -2, 3)),
        (37500, 7, len(NOTES), NOTES),
        (40961, 3, 1, struct.pack(order + "H", 65535 if interoperability else 1)),
        (40962, 4, 1, struct.pack(order + "I", WIDTH)),
        (40963, 3, 1, struct.pack(order + "H", size)),
        (42034, 5, 4, struct.pack(order + "8I", 24, 1, 70, 1, 28, 10, 4, 1)),
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    main = directory([*lines, (34665, 4, 1, bytes(4))], 8, order)
    below_at = 8 + len(main)
    extra = [(40965, 4, 1, struct.pack(order + "I", 0))] if interoperability else []
    below = directory(details + extra, below_at, order)
    rules_at = below_at + len(below)
    if interoperability:
        extra = [(40965, 4, 1, struct.pack(order + "I", rules_at))]
        below = directory(details + extra, below_at, order)
    rules = directory([(1, 2, 4, interoperability + b"\0")], rules_at, order) if interoperability else b""
    main = directory([*lines, (34665, 4, 1, struct.pack(order + "I", below_at))], 8, order)
    return head + main + below + rules


def directory(lines: Sequence[tuple[int, int, int, bytes]], place: int, order: str, following: int = 0) -> bytes:
    """Return a TIFF directory (IFD) for an offset in a file."""
    free, values, table = place + 2 + 12 * len(lines) + 4, b"", b""
    for tag, kind, count, value in sorted(lines):
        table += struct.pack(order + "HHI", tag, kind, count)
        if len(value) <= 4:
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack(order + "I", free + len(values))
            values += value + b"\0" * (len(value) % 2)
    return struct.pack(order + "H", len(lines)) + table + struct.pack(order + "I", following) + values


@dataclass
class Frame:
    """A frame of a GIF: palette indices at a position on the canvas."""

    pixels: Array
    left: int = 0
    top: int = 0
    disposal: int = 0
    transparent: int | None = None
    delay: int = 10


def gif(
    frames: Sequence[Frame], palette: Array, size: tuple[int, int], *, background: int = 0, loop: int | None = 0
) -> bytes:
    """Return a GIF file with uncompressed pixels."""
    bits = max(2, int(len(palette) - 1).bit_length())
    table = palette.tobytes().ljust(3 * 2**bits, b"\0")
    out = b"GIF89a" + struct.pack("<HHBBB", *size, 0xF0 | (bits - 1), background, 0) + table
    if loop is not None:
        out += b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loop) + b"\0"
    for frame in frames:
        flags = frame.disposal << 2 | (frame.transparent is not None)
        out += b"\x21\xf9\x04" + struct.pack("<BHBB", flags, frame.delay, frame.transparent or 0, 0)
        height, width = frame.pixels.shape
        out += b"\x2c" + struct.pack("<HHHHB", frame.left, frame.top, width, height, 0) + bytes([bits])
        out += b"".join(bytes([len(part)]) + part for part in _blocks(_codes(frame.pixels.ravel(), bits))) + b"\0"
    return out + b"\x3b"


def _codes(indices: Array, bits: int) -> bytes:
    """Return LZW codes without compression: the table is cleared before codes become longer."""
    codes: list[int] = []
    for start in range(0, len(indices), 2**bits - 2):
        codes += [2**bits, *indices[start : start + 2**bits - 2].tolist()]
    codes.append(2**bits + 1)
    stream = "".join(format(code, f"0{bits + 1}b")[::-1] for code in codes)
    stream = stream.ljust(-(-len(stream) // 8) * 8, "0")
    return bytes(int(stream[start : start + 8][::-1], 2) for start in range(0, len(stream), 8))


def _blocks(content: bytes) -> list[bytes]:
    return [content[start : start + 255] for start in range(0, len(content), 255)]


@dataclass
class Part:
    """A frame of an APNG or WebP: RGBA pixels at a position on the canvas."""

    pixels: Array
    left: int = 0
    top: int = 0
    clear: int = 0  # disposal; APNG: 0 none, 1 background, 2 previous; WebP: 0 none, 1 background
    over: bool = True  # blend over the canvas instead of replacing its pixels
    delay: int = 100


def apng(parts: Sequence[Part], size: tuple[int, int], *, before: Sequence[bytes] = ()) -> bytes:
    """Return an animated PNG of RGBA frames."""
    number, out = 0, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 6, 0, 0, 0))
    out += b"".join(before) + chunk(b"acTL", struct.pack(">II", len(parts), 0))
    for index, part in enumerate(parts):
        height, width = part.pixels.shape[:2]
        place = struct.pack(">IIIII", number, width, height, part.left, part.top)
        out += chunk(b"fcTL", place + struct.pack(">HHBB", part.delay, 1000, part.clear, part.over))
        number += 1
        content = rows(part.pixels, 8)
        if index == 0:
            out += chunk(b"IDAT", content)
        else:
            out += chunk(b"fdAT", struct.pack(">I", number) + content)
            number += 1
    return out + chunk(b"IEND", b"")


def animated_webp(parts: Sequence[Part], size: tuple[int, int]) -> bytes:
    """Return an animated WebP of lossless frames; their positions must be even."""

    def riff(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    def three(value: int) -> bytes:
        return value.to_bytes(3, "little")

    body = riff(b"VP8X", b"\x12\0\0\0" + three(size[0] - 1) + three(size[1] - 1))
    body += riff(b"ANIM", b"\x20\x40\x80\xff" + struct.pack("<H", 0))
    for part in parts:
        stream = io.BytesIO()
        Image.fromarray(part.pixels).save(stream, "WEBP", lossless=True, exact=True)
        content = stream.getvalue()[12:]
        if content[:4] == b"VP8X":
            content = content[18:]
        height, width = part.pixels.shape[:2]
        head = three(part.left // 2) + three(part.top // 2) + three(width - 1) + three(height - 1) + three(part.delay)
        body += riff(b"ANMF", head + bytes([(not part.over) << 1 | part.clear]) + content)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def profile(kind: str) -> bytes:
    """Return a colour profile far from sRGB in its curve or primaries, so that losing it is visible."""
    white = (0.3127, 0.3290)
    if kind == "grey":
        return bytes(imagecodecs.cms_profile("gray", whitepoint=white, gamma=1.0))
    if kind == "swapped":  # red and green are swapped
        return bytes(
            imagecodecs.cms_profile("rgb", whitepoint=white, primaries=(0.30, 0.60, 0.64, 0.33, 0.15, 0.06), gamma=2.2)
        )
    return bytes(imagecodecs.cms_profile(kind))


RGBA = np.dstack([PHOTO, RAMP])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# Still images that a browser shows


def _png_files() -> None:
    def register(name: str, content: Callable[[], bytes]) -> None:
        BROWSER[name] = lambda path: path.write_bytes(content())

    gamma = {f"gamma{g}": [chunk(b"gAMA", struct.pack(">I", g))] for g in (100000, 45455, 55556, 30000)}
    red_green = struct.pack(">8I", 31270, 32900, 30000, 60000, 64000, 33000, 15000, 6000)
    adobe = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    stated = {
        **gamma,
        "chromaticities": [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", red_green)],
        "adobe": [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", adobe)],
        "chromaticities_alone": [chunk(b"cHRM", adobe)],
        "srgb": [chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 45455))],
        "cicp_p3": [chunk(b"cICP", bytes([12, 13, 0, 1]))],
        "cicp_2020": [chunk(b"cICP", bytes([9, 1, 0, 1]))],
        "cicp_linear": [chunk(b"cICP", bytes([1, 8, 0, 1]))],
        "cicp_pq": [chunk(b"cICP", bytes([9, 16, 0, 1]))],
        "icc_swapped": [chunk(b"iCCP", b"x\0\0" + zlib.compress(profile("swapped")))],
        "icc_and_gamma": [
            chunk(b"iCCP", b"x\0\0" + zlib.compress(profile("swapped"))),
            chunk(b"gAMA", struct.pack(">I", 100000)),
        ],
        "cicp_and_icc": [
            chunk(b"cICP", bytes([1, 8, 0, 1])),
            chunk(b"iCCP", b"x\0\0" + zlib.compress(profile("swapped"))),
        ],
    }
    for name, before in stated.items():
        register(f"rgb8_{name}.png", lambda before=before: png(PHOTO, colour=2, before=before))
        register(
            f"rgb16_{name}.png", lambda before=before: png(PHOTO.astype("u2") * 257, colour=2, bits=16, before=before)
        )
    for name in ("gamma100000", "cicp_linear"):
        register(f"grey8_{name}.png", lambda name=name: png(GREY, colour=0, before=stated[name]))
        register(
            f"greyalpha8_{name}.png", lambda name=name: png(np.dstack([GREY, RAMP]), colour=4, before=stated[name])
        )
        register(
            f"palette_{name}.png",
            lambda name=name: png(
                PHOTO[..., 0] >> 4,
                colour=3,
                bits=4,
                before=[*stated[name], chunk(b"PLTE", np.random.default_rng(0).bytes(48))],
            ),
        )
    grey_icc = [chunk(b"iCCP", b"x\0\0" + zlib.compress(profile("grey")))]
    register("grey8_icc.png", lambda: png(GREY, colour=0, before=grey_icc))
    register("greyalpha8_icc.png", lambda: png(np.dstack([GREY, RAMP]), colour=4, before=grey_icc))
    for bits in (1, 2, 4, 16):
        deep = (GREY.astype("u4") * 257 >> (16 - bits)).astype("u2")
        register(f"grey{bits}.png", lambda deep=deep, bits=bits: png(deep, colour=0, bits=bits))
    key = chunk(b"tRNS", struct.pack(">H", int(GREY[3, 3])))
    register("grey8_key.png", lambda: png(GREY, colour=0, before=[key]))
    register("rgb8_key.png", lambda: png(PHOTO, colour=2, before=[chunk(b"tRNS", struct.pack(">3H", *PHOTO[3, 3]))]))
    register(
        "palette_alpha.png",
        lambda: png(
            PHOTO[..., 0] >> 4,
            colour=3,
            bits=4,
            before=[chunk(b"PLTE", np.random.default_rng(1).bytes(48)), chunk(b"tRNS", bytes(range(0, 256, 17)))],
        ),
    )
    register("rgba16.png", lambda: png(RGBA.astype("u2") * 257, colour=6, bits=16))
    register("greyalpha16.png", lambda: png(np.dstack([GREY, RAMP]).astype("u2") * 257, colour=4, bits=16))
    for orientation in range(2, 9):
        data_ = exif(orientation=orientation, order="<>"[orientation % 2])
        register(f"exif{orientation}.png", lambda data_=data_: png(PHOTO, colour=2, before=[chunk(b"eXIf", data_)]))
        register(
            f"exif{orientation}_16.png",
            lambda data_=data_: png(PHOTO.astype("u2") * 257, colour=2, bits=16, before=[chunk(b"eXIf", data_)]),
        )
    turned = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % 6)
    register("xmp_orientation.png", lambda: png(PHOTO, colour=2, before=[turned]))
    register("physical.png", lambda: png(PHOTO, colour=2, before=[chunk(b"pHYs", struct.pack(">IIB", 11811, 5906, 1))]))


def _jpeg_files() -> None:
    def register(name: str, pixels: Array, mode: str | None = None, **options: Any) -> None:
        def write(path: Path) -> None:
            image = Image.fromarray(pixels)
            (image.convert(mode) if mode else image).save(path, "JPEG", quality=95, subsampling=0, **options)

        BROWSER[name] = write

    for orientation in range(2, 9):
        block = b"Exif\0\0" + exif(orientation=orientation, order="<>"[orientation % 2])
        register(f"exif{orientation}.jpg", PHOTO, exif=block)
    register("xmp_orientation.jpg", PHOTO, xmp=XMP % 6)
    register("xmp_and_exif.jpg", PHOTO, xmp=XMP % 6, exif=b"Exif\0\0" + exif(orientation=6))
    register("xmp_against_exif.jpg", PHOTO, xmp=XMP % 3, exif=b"Exif\0\0" + exif(orientation=8))
    register("xmp_beside_exif.jpg", PHOTO, xmp=XMP % 8, exif=b"Exif\0\0" + exif())
    register("swapped.jpg", PHOTO, icc_profile=profile("swapped"))
    register("adobe_rgb.jpg", PHOTO, icc_profile=profile("adobergb"))
    register("r03.jpg", PHOTO, exif=b"Exif\0\0" + exif(interoperability=b"R03"))
    register("grey_icc.jpg", GREY, icc_profile=profile("grey"))
    register("grey_with_rgb_icc.jpg", GREY, icc_profile=SRGB)
    register("cmyk.jpg", PHOTO, mode="CMYK")
    register("progressive.jpg", PHOTO, progressive=True)
    register("dpi.jpg", PHOTO, dpi=(300, 150))


def _other_stills() -> None:
    def register(name: str, pixels: Array, **options: Any) -> None:
        BROWSER[name] = lambda path: Image.fromarray(pixels).save(path, **options)

    for orientation in (1, 3, 6, 7):
        block = exif(orientation=orientation)
        register(f"exif{orientation}.webp", PHOTO, lossless=True, exif=block)
        register(f"turned{orientation}.avif", PHOTO, quality=95, subsampling="4:4:4", exif=block)
    register("icc.webp", PHOTO, lossless=True, icc_profile=profile("swapped"))
    register("xmp_orientation.webp", PHOTO, lossless=True, xmp=XMP % 6)
    register("alpha.webp", RGBA, lossless=True, exact=True)
    register("icc.avif", PHOTO, quality=95, subsampling="4:4:4", icc_profile=profile("swapped"))
    register("alpha.avif", RGBA, quality=95, subsampling="4:4:4")
    register("grey.avif", GREY, quality=95)
    register("premultiplied.avif", RGBA, quality=95, subsampling="4:4:4", alpha_premultiplied=True)
    for bits in (8, 10, 12):
        for name, primaries, transfer in (
            ("srgb", 1, 13),
            ("p3", 12, 13),
            ("2020", 9, 1),
            ("linear", 1, 8),
            ("709", 1, 1),
            ("pq", 9, 16),
        ):
            depth = PHOTO if bits == 8 else (PHOTO.astype("u4") * 257 >> (16 - bits)).astype("u2")

            def write(
                path: Path, depth: Array = depth, bits: int = bits, primaries: int = primaries, transfer: int = transfer
            ) -> None:
                content = imagecodecs.avif_encode(depth, level=90, bitspersample=bits, pixelformat="444")
                path.write_bytes(with_code_points(bytes(content), (primaries, transfer)))

            BROWSER[f"{name}_{bits}.avif"] = write
    register("rgb.bmp", PHOTO)
    register("still.gif", PHOTO)


def _moving() -> None:
    palette = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 255], [250, 250, 0]], np.uint8)
    full = np.tile(np.array([[1, 1, 2], [2, 3, 1]], np.uint8).repeat(4, 0).repeat(4, 1), (3, 3))  # 24 x 36
    size = (full.shape[1], full.shape[0])
    small = np.full((8, 8), 3, np.uint8)
    holes = small.copy()
    holes[2:6, 2:6] = 0
    for disposal in range(4):
        for clear in (None, 0):
            frames = [
                Frame(full, disposal=1),
                Frame(holes, 4, 4, disposal=disposal, transparent=clear),
                Frame(small, 20, 10, disposal=disposal, transparent=clear),
                Frame(holes, 2, 14, transparent=clear),
            ]
            name = f"disposal{disposal}_{'opaque' if clear is None else 'holes'}.gif"
            BROWSER[name] = lambda path, frames=frames: path.write_bytes(gif(frames, palette, size))
    first = [Frame(holes, 4, 4, disposal=2, transparent=0), Frame(full, disposal=2), Frame(small, 2, 2)]
    BROWSER["first_is_small.gif"] = lambda path: path.write_bytes(gif(first, palette, size, background=2))
    BROWSER["small_still.gif"] = lambda path: path.write_bytes(gif([Frame(small, 2, 2)], palette, size, background=2))
    opaque = [Frame(full, disposal=2), Frame(small, 4, 4)]
    BROWSER["background.gif"] = lambda path: path.write_bytes(gif(opaque, palette, size, background=2))
    opaque_then_clear = [Frame(full, disposal=2), Frame(np.where(full == 1, 0, full), transparent=0)]
    BROWSER["opaque_then_alpha.gif"] = lambda path: path.write_bytes(gif(opaque_then_clear, palette, size))
    piece = np.dstack([PHOTO[:8, :12], np.tile(np.linspace(0, 255, 12).astype(np.uint8), (8, 1))])
    solid = np.dstack([PHOTO, np.full_like(GREY, 255)])
    for clear in (0, 1, 2):
        for over in (False, True):
            parts = [Part(solid), Part(piece, 4, 4, clear, over), Part(piece, 20, 12, clear, over), Part(piece, 8, 8)]
            name = f"clear{clear}_{'over' if over else 'source'}"
            BROWSER[f"{name}.apng"] = lambda path, parts=parts: path.write_bytes(apng(parts, size))
            if clear < 2:
                BROWSER[f"{name}.webp"] = lambda path, parts=parts: path.write_bytes(animated_webp(parts, size))
    parts = [Part(solid), Part(piece, 4, 4)]
    before = [chunk(b"gAMA", struct.pack(">I", 100000))]
    BROWSER["gamma.apng"] = lambda path: path.write_bytes(apng(parts, size, before=before))
    turned = [chunk(b"eXIf", exif(orientation=6))]
    BROWSER["turned.apng"] = lambda path: path.write_bytes(apng(parts, size, before=turned))


_png_files()
_jpeg_files()
_other_stills()
_moving()


# TIFF and other files, with the pixels that a viewer must show


def tiff(name: str, pixels: Array, shown: Array, **options: Any) -> None:
    """Add a TIFF file to ``OTHERS``; ``shown`` are the pixels that a viewer must show."""

    def write(path: Path) -> Array:
        tifffile.imwrite(path, pixels, metadata=None, **options)
        return shown

    OTHERS[name] = write


def _bits(values: Array, bits: int) -> Array:
    return (values.astype("u4") * 257 >> (16 - bits)).astype("u2" if bits > 8 else "u1")


def _shown(values: Array, bits: int) -> Array:
    """Return values of ``bits`` bits scaled to 8 bits."""
    return np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)


def _tiff_files() -> None:
    for bits in (1, 2, 4, 8, 10, 12, 14, 16):
        grey = _bits(GREY, bits)
        wide = {} if bits in (8, 16) else {"bitspersample": bits}
        stored = grey.astype(bool) if bits == 1 else grey
        wide = {} if bits == 1 else wide
        for compression in (None, "lzw", "zlib", "zstd", "packbits") if bits in (8, 16) else (None,):
            name = f"grey{bits}_{compression}.tif"
            tiff(name, stored, _shown(grey, bits), photometric="minisblack", compression=compression, **wide)
        white = ~stored if bits == 1 else (2**bits - 1 - grey).astype(grey.dtype)
        tiff(f"white_is_zero{bits}.tif", white, _shown(grey, bits), photometric="miniswhite", **wide)
        if bits < 8 or bits in (8, 16):
            continue
        rgb = _bits(PHOTO, bits)
        tiff(f"rgb{bits}.tif", rgb, _shown(rgb, bits), photometric="rgb", **wide)
    for kind in ("u1", "u2"):
        white = np.iinfo(kind).max
        rgb = PHOTO.astype(kind) * (white // 255)
        alpha = (RAMP.astype(kind) * (white // 255))[..., None]
        cmyk = white - np.concatenate([rgb, np.full_like(alpha, white)], axis=2)
        multiplied = np.rint(rgb * (alpha / white)).astype(kind)
        for planes in ("contig", "separate"):

            def laid(pixels: Array, planes: str = planes) -> Array:
                return pixels if planes == "contig" else np.moveaxis(pixels, -1, 0).copy()

            options: dict[str, Any] = {"planarconfig": planes}
            tag = f"{kind}_{planes}"
            tiff(f"rgb_{tag}.tif", laid(rgb), PHOTO, photometric="rgb", **options)
            tiff(
                f"rgb_{tag}_tiled.tif", laid(rgb), PHOTO, photometric="rgb", tile=(16, 16), compression="lzw", **options
            )
            tiff(
                f"rgb_{tag}_predictor.tif",
                laid(rgb),
                PHOTO,
                photometric="rgb",
                compression="zlib",
                predictor=True,
                **options,
            )
            tiff(f"cmyk_{tag}.tif", laid(cmyk), PHOTO, photometric="separated", **options)
            for extra, colours, shown in (
                ("unspecified", rgb, PHOTO),
                ("assocalpha", multiplied, RGBA),
                ("unassalpha", rgb, RGBA),
            ):
                pixels = np.concatenate([colours, alpha], axis=2)
                tiff(f"{extra}_{tag}.tif", laid(pixels), shown, photometric="rgb", extrasamples=[extra], **options)
            pixels = np.concatenate([cmyk, alpha], axis=2)
            tiff(
                f"cmyk_alpha_{tag}.tif",
                laid(pixels),
                RGBA,
                photometric="separated",
                extrasamples=["unassalpha"],
                **options,
            )
            pixels = np.concatenate([rgb, alpha // 2, alpha], axis=2)
            extras = ["unspecified", "unassalpha"]
            tiff(f"two_extras_{tag}.tif", laid(pixels), RGBA, photometric="rgb", extrasamples=extras, **options)
        grey_alpha = np.concatenate([rgb[..., 1:2], alpha], axis=2)
        tiff(
            f"grey_alpha_{kind}.tif",
            grey_alpha,
            np.dstack([GREY, RAMP]),
            photometric="minisblack",
            planarconfig="contig",
            extrasamples=["unassalpha"],
        )
        for orientation in range(2, 9):
            turns = {2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (3, 0), 7: (1, 1), 8: (1, 0)}
            count, mirrored = turns[orientation]
            shown = np.rot90(PHOTO, count)
            shown = shown[:, ::-1] if mirrored else shown
            tag_ = [(274, "H", 1, orientation, True)]
            tiff(f"turned{orientation}_{kind}.tif", rgb, shown, photometric="rgb", extratags=tag_)
    for kind in ("f2", "f4", "f8"):
        unit = (PHOTO / 255).astype(kind)
        tiff(f"float_{kind}.tif", unit, PHOTO, photometric="rgb", compression="zlib", predictor=kind != "f2")
        tiff(f"float255_{kind}.tif", PHOTO.astype(kind), PHOTO, photometric="rgb")
    tiff("float65535.tif", PHOTO.astype("f4") * 257, PHOTO, photometric="rgb")
    tiff("float_grey.tif", (GREY / 255).astype("f4"), GREY, photometric="minisblack")
    table = np.random.default_rng(2).integers(0, 256, (3, 256)).astype(np.uint16)
    tiff("palette.tif", GREY, table.T[GREY].astype(np.uint8), photometric="palette", colormap=table * 257)


_tiff_files()


@other("big_endian.tif")
def _(path: Path) -> Array:
    tifffile.imwrite(path, PHOTO.astype(">u2") * 257, photometric="rgb", byteorder=">", metadata=None)
    return PHOTO


@other("bigtiff.tif")
def _(path: Path) -> Array:
    tifffile.imwrite(path, PHOTO, photometric="rgb", bigtiff=True, metadata=None)
    return PHOTO


@other("thumbnail_first.tif")
def _(path: Path) -> Array:
    """Write a small page that is marked as a reduced image, then the image."""
    with tifffile.TiffWriter(path) as file:
        file.write(PHOTO[::4, ::4].copy(), photometric="rgb", subfiletype=1, metadata=None)
        file.write(PHOTO, photometric="rgb", metadata=None)
    return PHOTO


@other("unmarked_thumbnail_first.tif")
def _(path: Path) -> Array:
    with tifffile.TiffWriter(path) as file:
        file.write(PHOTO[::4, ::4].copy(), photometric="rgb", metadata=None)
        file.write(PHOTO, photometric="rgb", metadata=None)
    return PHOTO


@other("pyramid.tif")
def _(path: Path) -> Array:
    with tifffile.TiffWriter(path) as file:
        file.write(PHOTO, photometric="rgb", subifds=1, metadata=None)
        file.write(PHOTO[::2, ::2].copy(), photometric="rgb", subfiletype=1, metadata=None)
    return PHOTO


@other("pages.tif")
def _(path: Path) -> Array:
    with tifffile.TiffWriter(path) as file:
        for step in range(3):
            file.write(np.roll(PHOTO, step, 1), photometric="rgb", metadata=None)
    return PHOTO


@other("fax.tif")
def _(path: Path) -> Array:
    image = Image.fromarray(GREY).convert("1")
    image.save(path, compression="group4")
    return np.array(image.convert("L"))


@other("deep.jp2")
def _(path: Path) -> Array:
    path.write_bytes(imagecodecs.jpeg2k_encode(_bits(PHOTO, 12), level=0, bitspersample=12, codecformat="jp2"))
    return PHOTO


@other("deep.pgm")
def _(path: Path) -> Array:
    path.write_bytes(b"P5\n36 24\n4095\n" + _bits(GREY, 12).astype(">u2").tobytes())
    return GREY


def lab_tiff(path: Path, bits: int, signed: bool) -> Array:
    """Write a photograph as L*a*b*; return the photograph."""
    image = imagecodecs.cms_transform(
        PHOTO.astype("u2") * 257,
        imagecodecs.cms_profile("srgb"),
        imagecodecs.cms_profile("lab4"),
        colorspace="rgb",
        outcolorspace="lab",
        outdtype=np.uint16,
    ).astype(float)
    lightness, a, b = image[..., 0] / 655.35, image[..., 1] / 257 - 128, image[..., 2] / 257 - 128
    step = 2 ** (bits - 8)
    if signed:
        planes = [lightness * (2**bits - 1) / 100, a * step % 2**bits, b * step % 2**bits]
    else:
        planes = [lightness * (255 if bits == 8 else 0xFF00) / 100, (a + 128) * step, (b + 128) * step]
    stored = np.rint(np.stack(planes, -1)).astype(f"u{bits // 8}")
    tifffile.imwrite(path, stored, photometric="cielab" if signed else "icclab", metadata=None)
    return PHOTO


for _bits_, _signed in ((8, True), (16, True), (8, False), (16, False)):
    OTHERS[f"lab{_bits_}_{'cie' if _signed else 'icc'}.tif"] = lambda path, bits=_bits_, signed=_signed: lab_tiff(
        path, bits, signed
    )


for _compression in ("jpeg", None, "lzw"):

    def _ycbcr(path: Path, compression: str | None = _compression) -> Array:
        image = Image.fromarray(PHOTO)
        if compression == "jpeg":
            options = {"compression": "jpeg", "compressionargs": {"level": 98}, "subsampling": (1, 1)}
            tifffile.imwrite(path, PHOTO, photometric="rgb", metadata=None, **options)
        else:
            stored = np.array(image.convert("YCbCr"))
            tags = [(532, "2I", 6, (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1), True), (530, "H", 2, (1, 1), True)]
            tifffile.imwrite(path, stored, photometric="ycbcr", compression=compression, extratags=tags, metadata=None)
        return PHOTO

    OTHERS[f"ycbcr_{_compression}.tif"] = _ycbcr
