"""Layers around a network that was converted for ncnn, so that its graph pads and crops by itself.

A network wants sides that are multiples of its window. Two ways to give it such sides are here:

- :func:`any_size` takes images of every size, from 1x1. It needs a new ncnn (tried: 1.0.20261020); 1.0.20250916 and
  older ones refuse to load the file.
- :func:`for_tiles` uses nothing but the layers that Upscayl's engine is built with, in their older forms (of 2023). It
  takes images whose sides are not below the window, and fails with a status for smaller ones.

The text format of ``.param`` files: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

MAGIC = "7767517"
INPUT, OUTPUT = "in0", "out0"
"""Blob names that pnnx gives."""
TILED_INPUT, TILED_OUTPUT = "data", "output"
"""Blob names that realesrgan-ncnn-vulkan and Upscayl ask for."""
UPSCAYL_LAYERS = frozenset(
    {
        "BinaryOp",
        "Clip",
        "Concat",
        "Convolution",
        "ConvolutionDepthWise",
        "Crop",
        "Deconvolution",
        "Eltwise",
        "Flatten",
        "GELU",
        "InnerProduct",
        "Input",
        "Interp",
        "LayerNorm",
        "MemoryData",
        "Padding",
        "Permute",
        "PixelShuffle",
        "Pooling",
        "PReLU",
        "Reduction",
        "ReLU",
        "Reorg",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Split",
        "Swish",
    }
)
"""What Upscayl's engine is built with (the options of its CMakeLists.txt, 2026)."""


@dataclass(frozen=True)
class Layer:
    """One line of a ``.param`` file.

    Attributes:
        kind: such as "Convolution".
        name: unique in the file.
        inputs, outputs: names of blobs; each blob is written once and read once.
        parameters: the rest of the line.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: str = ""

    def __str__(self) -> str:
        counts = f"{len(self.inputs)} {len(self.outputs)}"
        return " ".join([self.kind, self.name, counts, *self.inputs, *self.outputs, self.parameters]).rstrip()


def any_size(param: str, scale: int, window: int) -> str:
    """The graph with mirrored padding to multiples of ``window`` before it and a crop behind it.

    Args:
        param: what pnnx wrote: from ``in0`` to ``out0``.
        scale: output pixels per input pixel, along each side.
        window: what the sides of the network's input must be multiples of.
    """
    if window == 1:
        return param
    first, *rest = _renamed(_parsed(param), {INPUT: "net_in", OUTPUT: "net_out"})
    padding, padded = _mirrored("image", window)
    grid = ",".join(f"*(//(+(1{side},{window - 1}),{window}),{window})" for side in "hw")
    return _text(
        [
            replace(first, outputs=(INPUT,)),
            Layer("Split", "copies", (INPUT,), ("image", "size", "out_size")),
            *padding,
            Layer("Crop", "to_window", (padded, "size"), ("net_in",), _crop("0,0", grid, "1,2")),
            *rest,
            Layer(
                "Crop",
                "to_size",
                ("net_out", "out_size"),
                (OUTPUT,),
                _crop("0,0", f"*(1h,{scale}),*(1w,{scale})", "1,2"),
            ),
        ]
    )


def for_tiles(param: str, scale: int, window: int) -> str:
    """The same for images of at least ``window`` pixels along each side, in old layers, from ``data`` to ``output``.

    A crop takes its size from another blob here. That is made by pooling and enlarging. The layer ``guard`` has no
    pixels left, which is an error in ncnn, where a side is below the window: mirrored padding would read elsewhere.

    Raises:
        ValueError: the network needs a layer that Upscayl's engine lacks.
    """
    first, *rest = _renamed(_parsed(param), {INPUT: "net_in", OUTPUT: "net_out"})
    rest = [_power_of_root(layer) for layer in rest]
    missing = {layer.kind for layer in rest} - UPSCAYL_LAYERS
    if missing:
        raise ValueError(f"Upscayl's engine lacks the layer {min(missing)}")
    pad = window - 1
    return _text(
        [
            replace(first, outputs=(TILED_INPUT,)),
            Layer("Split", "copies", (TILED_INPUT,), ("image", "checked", "size", "out_size")),
            Layer("Interp", "guard", ("checked",), ("cells",), f"0=1 1={1 / window} 2={1 / window}"),
            Layer("Reduction", "zero", ("cells",), ("nothing",), "0=0 1=0 2=0.0 -23303=2,1,2 4=1 5=1"),
            Layer("Padding", "mirrored", ("image",), ("wide",), f"0=0 1={pad} 2=0 3={pad} 4=2"),
            Layer("BinaryOp", "with_guard", ("wide", "nothing"), ("guarded",), "0=0"),
            Layer("Pooling", "windows", ("size",), ("counted",), f"0=0 1={window} 2={window}"),
            Layer("Interp", "grid", ("counted",), ("window_size",), f"0=1 1={window}.0 2={window}.0"),
            Layer("Crop", "to_window", ("guarded", "window_size"), ("net_in",)),
            *rest,
            Layer("Interp", "enlarged", ("out_size",), ("enlarged_size",), f"0=1 1={scale}.0 2={scale}.0"),
            Layer("Crop", "to_size", ("net_out", "enlarged_size"), (TILED_OUTPUT,)),
        ]
    )


def _power_of_root(layer: Layer) -> Layer:
    """One over the square root as a power, in a layer that Upscayl has; other layers as they are."""
    if (layer.kind, layer.parameters) != ("UnaryOp", "0=6"):
        return layer
    return replace(layer, kind="BinaryOp", parameters="0=6 1=1 2=-0.5")


def _mirrored(source: str, window: int) -> tuple[list[Layer], str]:
    """Layers that continue an image at its lower and right end, mirrored, to at least ``window`` more or less pixels.

    Appending the mirrored end to n pixels makes 2n - 1, of which the next mirroring is again a continuation. Where
    the image is not below the window once is enough; what later steps append is cropped away.

    Returns:
        The layers, and the blob that they end in.
    """
    layers: list[Layer] = []
    blob = source
    for axis, side, pads in ((1, "h", "0=0 1=1 2=0 3=0"), (2, "w", "0=0 1=0 2=0 3=1")):
        new = (f"{side}{number}" for number in itertools.count())
        layers.append(Layer("Padding", f"{side}_repeated", (blob,), (next(new),), f"{pads} 4=1"))
        repeated, blob = layers[-1].outputs[0], next(new)  # a single pixel is doubled, all else stays as it was
        layers.append(
            Layer("Crop", f"{side}_doubled", (repeated,), (blob,), _crop("0", f"max(-(0{side},1),2)", str(axis)))
        )
        length = 2
        while length < window:
            kept, read, end, turned, longer = (next(new) for _ in range(5))
            last = _crop(f"max(-(0{side},{window}),0)", f"-(0{side},1)", str(axis))
            layers += [
                Layer("Split", f"{side}_copies{length}", (blob,), (kept, read)),
                Layer("Crop", f"{side}_end{length}", (read,), (end,), last),
                Layer("Flip", f"{side}_turned{length}", (end,), (turned,), f"-23300=1,{axis}"),
                Layer("Concat", f"{side}_longer{length}", (kept, turned), (longer,), f"0={axis}"),
            ]
            blob, length = longer, 2 * length - 1
    return layers, blob


def _crop(starts: str, ends: str, axes: str) -> str:
    """Parameters of a crop whose bounds are expressions; ``0w`` is the width of its first input."""
    return f'19="{starts}" 20="{ends}" 21="{axes}"'


def _parsed(param: str) -> list[Layer]:
    """The layers of a ``.param`` file; the first is the input."""
    magic, _, *lines = param.splitlines()
    if magic != MAGIC:
        raise ValueError(f"a .param file begins with {MAGIC}, not {magic:.20}")
    layers = []
    for line in lines:
        kind, name, inputs, outputs, *rest = line.split()
        split = int(inputs)
        blobs = rest[: split + int(outputs)]
        layers.append(
            Layer(kind, name, tuple(blobs[:split]), tuple(blobs[split:]), " ".join(rest[split + int(outputs) :]))
        )
    return layers


def _renamed(layers: list[Layer], names: dict[str, str]) -> list[Layer]:
    """The layers with other names for some blobs."""

    def renamed(blobs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(blob, blob) for blob in blobs)

    return [replace(layer, inputs=renamed(layer.inputs), outputs=renamed(layer.outputs)) for layer in layers]


def _text(layers: list[Layer]) -> str:
    """The ``.param`` file of the layers."""
    blobs = sum(len(layer.outputs) for layer in layers)
    return "\n".join([MAGIC, f"{len(layers)} {blobs}", *map(str, layers)]) + "\n"
