"""Quantise convolutions of an ONNX file to 8 bits, and measure the loss.

ONNX Runtime's static quantisation (QDQ) is applied to the dense convolutions between features. The first and the last
convolution, depthwise and 1x1 convolutions, norms, activations and sums stay in float32. docs/export.md has the loss of
each kind. Before, the ranges of a convolution's input channels are made equal (equal_ranges.py).

Activations have 8 bits and weights 7. With 8 bits for both, sums of two products overflow 16 bits on x86 processors
without VNNI. Their results would then differ from those of other processors, by as much as the quantisation error.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safmn.data.drawing import KINDS
from safmn.imaging import imresize, read_rgb
from safmn.inference.export.equal_ranges import equalise
from safmn.inference.onnx_graph import INPUT, OUTPUT
from safmn.inference.optimize import IMAGE_CHANNELS
from safmn.inference.samples import made_up_photographs
from safmn.metrics import psnr
from safmn.value_types import Array

LIMIT = 0.035
"""Largest mean loss in dB on the calibration photographs; it corresponds to about 0.05 dB on Set5."""
SIDE = 64
"""Side of the calibration images in LR pixels, for files that accept any size."""
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""Files of scikit-image's data folder."""
DRAWINGS = ("flat", "edges", "gradient", "text", "icons", "screen", "chart", "halftone")
"""Kinds of drawings; two images of each."""


@dataclass(frozen=True)
class Calibration:
    """Images for choosing the ranges of the activations and for measuring the loss.

    Attributes:
        inputs: (1, 3, h, w) float32 in [0, 1].
        photographs: (LR input, GT image as uint8 (H, W, 3)) for each image that has a GT.
        text: description for the user.
    """

    inputs: list[Array]
    photographs: list[tuple[Array, Array]]
    text: str


@dataclass(frozen=True)
class Outcome:
    """Result of a quantisation.

    Attributes:
        layers: names of the quantised convolutions. Empty if none can be quantised; then no file was written.
        kept: names of the convolutions that stay in float32 because the loss would be too large.
        loss: mean loss in dB over the calibration photographs.
    """

    layers: tuple[str, ...]
    kept: tuple[str, ...]
    loss: float


def quantise(source: Path, target: Path, scale: int, calibration: Calibration) -> Outcome:
    """Quantise as many convolutions of the float32 file ``source`` as :data:`LIMIT` allows, and write ``target``.

    If all of them together lose more, each is measured separately, and those with the smallest loss are chosen.
    """
    candidates = _candidates(source)
    if not candidates:
        return Outcome((), (), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        equal = Path(folder, "equal.onnx")
        write_equalised(source, equal, candidates, calibration)
        trial = Trial(equal, Path(folder), scale, calibration)
        layers = candidates
        loss = trial.loss(layers)
        if loss > LIMIT:
            alone = {name: max(trial.loss([name]), 0.0) for name in candidates}
            layers = _cheapest(alone)
            while layers and (loss := trial.loss(layers)) > LIMIT:
                layers = layers[:-1]
        if layers:
            trial.write(layers, target)
    return Outcome(tuple(layers), tuple(name for name in candidates if name not in layers), loss)


def write_equalised(source: Path, target: Path, layers: Sequence[str], calibration: Calibration) -> None:
    """Write ``source`` to ``target`` with equal ranges for the input channels of ``layers``; see :func:`equalise`."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(str(source))
    equalise(model, layers, calibration.inputs)
    onnx.save(model, str(target))


def _cheapest(losses: dict[str, float]) -> list[str]:
    """Return the layers with the smallest losses, as many as lose at most :data:`LIMIT` in sum."""
    names = sorted(losses, key=lambda name: losses[name])
    sums = np.cumsum([losses[name] for name in names])
    return names[: int((sums <= LIMIT).sum())]


def _candidates(source: Path) -> list[str]:
    """Return the names of the dense convolutions between features, in the order of the graph."""
    graph = importlib.import_module("onnx").load(str(source)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shuffled = {name for node in graph.node if node.op_type == "DepthToSpace" for name in node.input}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and len(shapes.get(node.input[1], ())) == 4]

    def dense(node: Any) -> bool:
        outward, inward, *kernel = shapes[node.input[1]]  # of a depthwise convolution, ``inward`` is 1
        return inward > IMAGE_CHANNELS and outward > 3 and max(kernel) > 1 and node.output[0] not in shuffled

    return [node.name for node in convolutions[:-1] if dense(node)]


class Trial:
    """Quantises sets of layers and measures the loss of each."""

    def __init__(self, source: Path, folder: Path, scale: int, calibration: Calibration) -> None:
        self.source = source
        self.folder = folder
        self.scale = scale
        self.calibration = calibration
        self.best = self._psnr(source)

    def loss(self, layers: Sequence[str]) -> float:
        """Return the loss in dB with these layers in 8 bits."""
        target = self.folder / "trial.onnx"
        self.write(layers, target)
        return self.best - self._psnr(target)

    def write(self, layers: Sequence[str], target: Path) -> None:
        """Write a file with these layers in 8 bits."""
        tool = importlib.import_module("onnxruntime.quantization")
        root, quiet = logging.getLogger(), _WithoutAdvice()
        root.addFilter(quiet)
        try:
            tool.quantize_static(
                str(self.source),
                str(target),
                _Reader(self.calibration.inputs),
                quant_format=tool.QuantFormat.QDQ,
                calibrate_method=tool.CalibrationMethod.MinMax,
                activation_type=tool.QuantType.QUInt8,
                weight_type=tool.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                op_types_to_quantize=["Conv"],  # others would be calibrated, too
                nodes_to_quantize=list(layers),
            )
        finally:
            root.removeFilter(quiet)

    def _psnr(self, path: Path) -> float:
        """Return the mean PSNR (Y channel, dB) against the GT images."""
        runtime = importlib.import_module("onnxruntime")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        values = []
        for lr, gt in self.calibration.photographs:
            image = session.run([OUTPUT], {INPUT: lr})[0][0].clip(0, 1).transpose(1, 2, 0)  # (H, W, 3)
            values.append(psnr((image * 255).round().astype(np.uint8), gt, crop=self.scale, y=True))
        return float(np.mean(values))


class _Reader:
    """Passes the calibration images to ONNX Runtime."""

    def __init__(self, inputs: Sequence[Array]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next image; None after the last one."""
        image = next(self._left, None)
        return None if image is None else {INPUT: image}


class _WithoutAdvice(logging.Filter):
    """Drops ONNX Runtime's advice to optimise the graph first, which has no effect here."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        return "pre-processing before quantization" not in record.getMessage()


def calibration_images(scale: int, size: tuple[int, int] | None) -> Calibration:
    """Return photographs and drawings, shrunk by ``scale`` (MATLAB's bicubic).

    Args:
        scale: the network's scale.
        size: (height, width) of the LR images; None for squares of :data:`SIDE`.
    """
    height, width = size or (SIDE, SIDE)
    high, wide = height * scale, width * scale
    photographs = [_fitted(image, high, wide) for image in _photographs()]
    made_up = made_up_photographs(high, wide)[:1].numpy()[0].transpose(1, 2, 0)
    gts = [*photographs, (made_up * 255).round().astype(np.uint8)]
    rng = np.random.default_rng(0)
    drawings = [_fitted(KINDS[kind][0](rng, max(high, wide)), high, wide) for kind in DRAWINGS for _ in range(2)]
    pairs = [(_input(imresize(gt, 1 / scale)), gt) for gt in gts]
    damaged = made_up_photographs(height, width)[1:].numpy()  # noise and JPEG's blocks, for networks that restore
    inputs = [lr for lr, _ in pairs] + [image[None] for image in damaged]
    inputs += [_input(imresize(drawing, 1 / scale)) for drawing in drawings]
    text = f"{len(photographs)} photographs, {1 + len(damaged)} made-up photographs, {len(drawings)} drawings"
    return Calibration(inputs, pairs, text)


def _photographs() -> list[Array]:
    """Return the photographs of scikit-image; none if it is not installed."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "data"
    return [read_rgb(folder / name) for name in PHOTOGRAPHS if (folder / name).is_file()]


def _fitted(image: Array, height: int, width: int) -> Array:
    """Return the centre of an image; an image that is too small is extended by mirroring."""
    rows, columns = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    image = np.pad(image, ((0, rows), (0, columns), (0, 0)), "symmetric")
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _input(image: Array) -> Array:
    """Convert (h, w, 3) uint8 to (1, 3, h, w) float32 in [0, 1]."""
    return np.ascontiguousarray((image.astype(np.float32) / 255).transpose(2, 0, 1)[None])
