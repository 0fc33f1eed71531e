"""What can be chosen for upscaling and export, as plain names.

The commands show these names and check them. This module therefore imports neither torch nor what the names stand for.
"""

from __future__ import annotations

from collections.abc import Iterable

from safmn.errors import OptionError, did_you_mean

DEFAULT_WEIGHTS = CLEAN_WEIGHTS = "safmn-x2"
REAL_WEIGHTS = "safmn-x2-real"
"""For noisy and compressed pictures; of the same scale as those for clean ones."""
PRECISIONS = ("fp32", "bf16", "fp16")
MAX_PIXELS = 2**28
"""Images with more pixels (268 million) are refused unless a larger limit is given."""

BACKEND_MODULES = {
    "auto": "auto",
    "compile": "torch_backends",
    "cuda-graphs": "torch_backends",
    "eager": "torch_backends",
    "native": "native_backend",
    "onnxruntime": "onnx_backends",
    "openvino": "openvino_backend",
    "tensorrt": "onnx_backends",
    "triton": "triton_backend",
}
"""Back ends, each with its module in :mod:`safmn.inference.backends`."""

DEINTERLACE = ("auto", "all", "off")
WRITABLE = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
"""Suffixes of images that can be written, with Pillow's name of the format."""
READABLE = (*WRITABLE, ".jfif", ".jpe", ".jp2", ".tga", ".dib", ".pnm", ".pbm", ".mpo", ".heic", ".heif", ".hif")
"""Suffixes of files that are taken for images."""

EXPORT_FORMATS = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "ncnn": ".param",
    "torch": ".pt",
    "tflite": ".tflite",
    "coreml": ".mlpackage",
}
"""Formats of exported networks, each with the ending of its files."""
UPSCAYL = "upscayl"
EXPORT_PRECISIONS = (*PRECISIONS, "int8")
EXPORT_PROFILES = (UPSCAYL,)
"""Programs with rules of their own that a file can be exported for."""


def unknown_backend(name: str, known: Iterable[str]) -> OptionError:
    """Return the error that says that no back end has this name."""
    known = list(known)
    return OptionError(f"no back end {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
