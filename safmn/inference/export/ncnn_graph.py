"""Add layers to a network that was converted for ncnn, so that its graph pads and crops by itself.

The sides of a network's input must be multiples of its window. There are two ways to pad to such sides:

- :func:`any_size` takes images of any size, from 1x1. It needs a recent ncnn (tested: 1.0.20261020); 1.0.20250916 and
  older versions refuse to load the file.
- :func:`for_tiles` uses only layers that Upscayl's engine is built with, in their older forms (of 2023). It takes
  images whose sides are not below the window; for smaller ones ncnn returns an error status.

The text format of ``.param`` files: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

MAGIC = "7767517"
INPUT, OUTPUT = "in0", "out0"
"""Names that pnnx gives to the input and output blobs."""
TILED_INPUT, TILED_OUTPUT = "data", "output"
"""Names of the input and output blobs that realesrgan-ncnn-vulkan and Upscayl expect."""
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
"""The layers that Upscayl's engine is built with (options in its CMakeLists.txt, 2026)."""


@dataclass(frozen=True)
class Layer:
    """One line of a ``.param`` file.

    Attributes:
        kind: type of the layer, such as "Convolution".
        name: a name that is unique in the file.
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
    """Return the graph with mirrored padding to multiples of ``window`` before it and a crop after it.

    Args:
        param: the ``.param`` file from pnnx, from ``in0`` to ``out0``.
        scale: output pixels per input pixel, along each side.
        window: the sides of the network's input must be multiples of this.
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
    """Like :func:`any_size`, for sides of at least ``window`` pixels, with older layers, from ``data`` to ``output``.

    These crops take their size from a second blob, which is made by pooling and enlarging. If a side is below the
    window, mirrored padding would read outside of the image. The layer ``guard`` prevents that: its result then has no
    pixels, which is an error in ncnn.

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
    """Replace a reciprocal square root by a power, a layer that Upscayl has; return other layers unchanged."""
    if (layer.kind, layer.parameters) != ("UnaryOp", "0=6"):
        return layer
    return replace(layer, kind="BinaryOp", parameters="0=6 1=1 2=-0.5")


def _mirrored(source: str, window: int) -> tuple[list[Layer], str]:
    """Return layers that extend an image by mirroring at its lower and right end, enough for the next multiple.

    Appending the mirrored end to n pixels gives 2n - 1 pixels, and mirroring these again continues the pattern. If the
    image is not below the window, one step is enough; what later steps append is cropped away.

    Args:
        source: name of the input blob.
        window: the sides are extended to at least the next multiple of this.

    Returns:
        The layers, and the name of their output blob.
    """
    layers: list[Layer] = []
    blob = source
    for axis, side, pads in ((1, "h", "0=0 1=1 2=0 3=0"), (2, "w", "0=0 1=0 2=0 3=1")):
        new = (f"{side}{number}" for number in itertools.count())
        layers.append(Layer("Padding", f"{side}_repeated", (blob,), (next(new),), f"{pads} 4=1"))
        repeated, blob = layers[-1].outputs[0], next(new)  # a single pixel is doubled; longer sides do not change
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
    """Return the parameters of a crop whose bounds are expressions; ``0w`` is the width of its first input."""
    return f'19="{starts}" 20="{ends}" 21="{axes}"'


def _parsed(param: str) -> list[Layer]:
    """Parse the layers of a ``.param`` file; the first is the input."""
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
    """Return the layers with some blobs renamed."""

    def renamed(blobs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(blob, blob) for blob in blobs)

    return [replace(layer, inputs=renamed(layer.inputs), outputs=renamed(layer.outputs)) for layer in layers]


def _text(layers: list[Layer]) -> str:
    """Return the ``.param`` file of the layers."""
    blobs = sum(len(layer.outputs) for layer in layers)
    return "\n".join([MAGIC, f"{len(layers)} {blobs}", *map(str, layers)]) + "\n"
