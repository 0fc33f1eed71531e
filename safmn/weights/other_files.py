"""Identify files that are not weights: failed downloads, archives, models for other programs."""

from __future__ import annotations

from pathlib import Path

_HEAD = 1024
_COMPRESSED = "unpack it and use the file inside."
_PROGRAM = "is for another program. Use the .pth or .safetensors file that it was made from."
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull, or download the file."),
    (b"\x1f\x8b", f"compressed with gzip: {_COMPRESSED}"),
    (b"BZh", f"compressed with bzip2: {_COMPRESSED}"),
    (b"\xfd7zXZ\0", f"compressed with xz: {_COMPRESSED}"),
    (b"(\xb5/\xfd", f"compressed with zstd: {_COMPRESSED}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7-Zip archive: {_COMPRESSED}"),
    (b"Rar!", f"a RAR archive: {_COMPRESSED}"),
    (b"PK\x05\x06", "an empty zip archive."),
    (b"GGUF", f"a GGUF model, which {_PROGRAM}"),
    (b"7767517", f"an ncnn network description, which {_PROGRAM}"),
    (b"\x89HDF", f"an HDF5 file (for example from Keras), which {_PROGRAM}"),
    (b"\x93NUMPY", "a NumPy array without names."),
    (b"\x89PNG", "a PNG image."),
    (b"\xff\xd8\xff", "a JPEG image."),
    (b"%PDF", "a PDF document."),
    (b"\x7fELF", "a program or a library."),
)


def what_it_is(path: Path) -> str | None:
    """Return a phrase that completes "not a weight file, but ..."; None if the content is unknown.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for beginning, sentence in _BEGINNINGS:
        if head.startswith(beginning):
            return sentence
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, probably from a failed download. Download the file again."
    if head[257:262] == b"ustar":
        return (
            "a tar archive. Unpack it and use the file inside. If PyTorch before 0.1.10 wrote it, save the weights "
            "again with a newer PyTorch."
        )
    if _is_onnx(head) or path.suffix.lower() == ".onnx":
        return f"an ONNX model, which {_PROGRAM}"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite model, which {_PROGRAM}"
    if head and not head.strip(b"\0"):
        return "only zero bytes, from an interrupted download or copy. Download or copy the file again."
    if text[:1] in (b"{", b"["):
        return "text (for example JSON)."
    return None


def _is_onnx(head: bytes) -> bool:
    """Return whether this is a ModelProto of onnx.proto: its version (field 1), usually followed by field 2."""
    return head[:1] == b"\x08" and 1 <= head[1] <= 32 and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")
