"""File formats for phones: LiteRT (TensorFlow Lite) and Core ML. Their files accept images of one size."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safmn.inference.export.formats import Format, Job, Run
from safmn.inference.export.graph import FixedSize, in_simple_operations
from safmn.inference.onnx_graph import INPUT, OUTPUT

SIGNATURE = "serving_default"
"""Name of the function in a LiteRT file; the converter chooses it."""


class LiteRT(Format):
    """LiteRT (TensorFlow Lite): ``.tflite``, converted by litert-torch."""

    name = "tflite"
    ending = ".tflite"
    packages = (("litert_torch", "litert"),)
    runtime = ("ai_edge_litert", "litert")
    precisions = ("fp32",)
    fixed = True
    any_size = False

    def write(self, job: Job, path: Path) -> tuple[str, ...]:
        """See :class:`Format`."""
        with _quiet():
            converter = importlib.import_module("litert_torch")
            converter.convert(_of_one_size(job), (job.example,)).export(str(path))
        return ()

    def open(self, path: Path) -> Run:
        """See :class:`Format`."""
        tool = importlib.import_module("ai_edge_litert.interpreter")
        interpreter = tool.Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
        function = interpreter.get_signature_runner(SIGNATURE)
        (argument,) = function.get_input_details()
        return lambda x: torch.from_numpy(next(iter(function(**{argument: x.numpy()}).values())))


class CoreML(Format):
    """Core ML: ``.mlpackage`` (a folder), an ML program for iOS 16 and macOS 13, converted by coremltools."""

    name = "coreml"
    ending = ".mlpackage"
    packages = (("coremltools", "coreml"),)
    fixed = True
    any_size = False

    def write(self, job: Job, path: Path) -> tuple[str, ...]:
        """See :class:`Format`."""
        with _quiet(), torch.no_grad():
            tool = importlib.import_module("coremltools")
            precision = tool.precision.FLOAT16 if job.precision == "fp16" else tool.precision.FLOAT32
            model = tool.convert(
                torch.jit.trace(_of_one_size(job), job.example, check_trace=False),
                inputs=[tool.TensorType(name=INPUT, shape=tuple(job.example.shape))],
                outputs=[tool.TensorType(name=OUTPUT)],
                convert_to="mlprogram",
                minimum_deployment_target=tool.target.iOS16,
                compute_precision=precision,
                skip_model_load=True,
            )
            for key, value in job.facts.items():
                model.user_defined_metadata[key] = value
            model.save(str(path))
        return ()

    @classmethod
    def runtime_missing(cls) -> str | None:
        """See :class:`Format`. Core ML is part of macOS."""
        return None if sys.platform == "darwin" else "Core ML runs only on macOS; export there to have the file checked"

    def open(self, path: Path) -> Run:
        """See :class:`Format`."""
        model = importlib.import_module("coremltools").models.MLModel(str(path))

        def run(x: Tensor) -> Tensor:
            made: dict[str, Any] = model.predict({INPUT: x.numpy()})
            return torch.from_numpy(made[OUTPUT])

        return run


def _of_one_size(job: Job) -> nn.Module:
    """Return the network with padding and cropping for the size of the job."""
    assert job.size is not None  # the formats here are checked to have one
    subject = job.subject
    return FixedSize(in_simple_operations(subject.network), subject.scale, subject.window, job.size).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the converters' progress and advice. Errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(before)
