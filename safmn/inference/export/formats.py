"""The file formats: how to write each of them, and how to run a file to check it."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safmn.errors import UserError
from safmn.inference.backends.base import package_missing
from safmn.inference.backends.openvino_backend import openvino_core
from safmn.inference.choices import UPSCAYL
from safmn.inference.export.graph import AnySize, FixedSize, Subject, in_simple_operations, with_explicit_padding
from safmn.inference.export.ncnn_graph import INPUT as NCNN_INPUT
from safmn.inference.export.ncnn_graph import OUTPUT as NCNN_OUTPUT
from safmn.inference.export.ncnn_graph import TILED_INPUT, TILED_OUTPUT, any_size, for_tiles
from safmn.inference.export.quantize import LIMIT, calibration_images, quantise
from safmn.inference.onnx_graph import INPUT, OPSET, OUTPUT, folded, onnx_bytes
from safmn.inference.optimize import InHalf, for_trace, with_precision

Run = Callable[[Tensor], Tensor]
Size = tuple[int, int]
"""Height and width."""


class ExportError(UserError):
    """Raised if a network cannot be written in a format, or the written file is wrong."""


@dataclass(frozen=True)
class Job:
    """A network and how to write it.

    Attributes:
        subject: the network.
        precision: "fp32", "fp16", "bf16" or "int8".
        size: (height, width) of the only input that the file accepts; None for any size.
        profile: the program that the file is for, if that program has special rules; None for any program.
    """

    subject: Subject
    precision: str
    size: Size | None = None
    profile: str | None = None

    @property
    def smallest(self) -> int:
        """Smallest side of an image that the file accepts."""
        least = self.subject.smallest if self.subject.smallest > self.subject.window else 1
        return max(self.subject.window if self.profile else 1, least)

    @property
    def facts(self) -> dict[str, str]:
        """Metadata for the file."""
        facts = self.subject.facts | {"precision": self.precision}
        if self.size:
            (height, width), scale = self.size, self.subject.scale
            facts["input"] = facts["input"].replace("batch, 3, height, width", f"1, 3, {height}, {width}")
            shape = f"batch, 3, {scale} * height, {scale} * width"
            facts["output"] = facts["output"].replace(shape, f"1, 3, {scale * height}, {scale * width}")
        return facts

    @property
    def example(self) -> Tensor:
        """Input for tracing: of the given size, or, for any size, of one that is not a multiple of the window."""
        side = self.subject.usual
        return torch.rand(1, 3, *(self.size or (side + 3, 2 * side + 5)))


class Format(ABC):
    """A file format.

    Attributes:
        name: the name that users give.
        ending: ending of the file that the user names.
        beside: endings of the companion files.
        packages: packages needed for writing, each with this package's extra that installs it.
        runtime: the same for running the file. Without it, the file is written but not checked.
        precisions: precisions that can be written.
        fixed: whether a file can be written for a single size.
        any_size: whether a file can be written for any size.
        profiles: programs with special rules for which a file can be written.
    """

    name: str
    ending: str
    beside: tuple[str, ...] = ()
    packages: tuple[tuple[str, str], ...] = ()
    runtime: tuple[str, str] | None = None
    precisions: tuple[str, ...] = ("fp32", "fp16")
    fixed = False
    any_size = True
    profiles: tuple[str, ...] = ()

    @classmethod
    def missing(cls) -> str | None:
        """Return a sentence that says what to install to write a file; None if nothing is missing."""
        problems = [package_missing(package, extra) for package, extra in cls.packages]
        return next((problem for problem in problems if problem), None)

    @classmethod
    def runtime_missing(cls) -> str | None:
        """Return a sentence that says what to install to run a file; None if nothing is missing."""
        return package_missing(*cls.runtime) if cls.runtime else None

    @abstractmethod
    def write(self, job: Job, path: Path) -> tuple[str, ...]:
        """Write ``path`` and its companion files, in a folder that contains nothing else; return notes for users."""

    @abstractmethod
    def open(self, path: Path) -> Run:
        """Load a written file and return a function from (B, 3, h, w) to (B, 3, h * scale, w * scale)."""


class Onnx(Format):
    """ONNX."""

    name = "onnx"
    ending = ".onnx"
    packages = (("onnx", "onnx"),)
    runtime = ("onnxruntime", "onnx")
    precisions = ("fp32", "fp16", "int8")
    fixed = True

    def write(self, job: Job, path: Path) -> tuple[str, ...]:
        """See :class:`Format`."""
        onnx = importlib.import_module("onnx")
        graph = in_simple_operations(job.subject.network)
        if job.precision == "fp16":
            graph = InHalf(graph, torch.float16)
        model = onnx.load_from_string(_serialised(job, graph))
        facts = job.facts | {"opset": str(OPSET)}
        notes: tuple[str, ...] = ()
        if job.precision == "int8":
            model, quantised, notes = _in_8_bits(job, model)
            facts |= quantised
        model.producer_name, _, model.producer_version = job.facts["producer"].partition(" ")
        onnx.helper.set_model_props(model, facts)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        return notes

    def open(self, path: Path) -> Run:
        """See :class:`Format`."""
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


class OpenVinoIR(Format):
    """OpenVINO IR: .xml with the graph, .bin with the weights. "fp16" applies to the stored weights only."""

    name = "openvino"
    ending = ".xml"
    beside = (".bin",)
    packages = (("openvino", "openvino"), ("onnx", "openvino"))
    fixed = True

    def write(self, job: Job, path: Path) -> tuple[str, ...]:
        """See :class:`Format`."""
        openvino = importlib.import_module("openvino")
        model = openvino_core().read_model(_serialised(job, in_simple_operations(job.subject.network)))
        for key, value in job.facts.items():
            model.set_rt_info(value, ["safmn", key])
        openvino.save_model(model, str(path), compress_to_fp16=job.precision == "fp16")
        return ()

    def open(self, path: Path) -> Run:
        """See :class:`Format`."""
        core = openvino_core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
        return lambda x: torch.from_numpy(compiled(x.numpy())[0].copy())


class Ncnn(Format):
    """ncnn, converted by pnnx: .param with the layers, .bin with the weights, and .json with the metadata."""

    name = "ncnn"
    ending = ".param"
    beside = (".bin", ".json")
    packages = (("pnnx", "ncnn"),)
    runtime = ("ncnn", "ncnn")
    profiles = (UPSCAYL,)

    def write(self, job: Job, path: Path) -> tuple[str, ...]:
        """See :class:`Format`."""
        self._convert(job, path)
        framed = for_tiles if job.profile else any_size
        scale, window = job.subject.scale, job.subject.window
        path.write_bytes(framed(path.read_text(encoding="utf-8"), scale, window).encode())
        inward, outward = (TILED_INPUT, TILED_OUTPUT) if job.profile else (NCNN_INPUT, NCNN_OUTPUT)
        sizes = f", sides of at least {job.smallest}" if job.smallest > 1 else ""
        facts = job.facts | {
            "input": f"{inward}: (3, height, width){sizes}, RGB, values in [0, 1]",
            "output": f"{outward}: " + job.facts["output"].replace("batch, ", ""),
            "profile": job.profile or "",
        }
        path.with_suffix(".json").write_bytes(json.dumps(facts, indent=2).encode() + b"\n")
        return ()

    def _convert(self, job: Job, path: Path) -> None:
        """Write ``.param`` and ``.bin`` of the network itself, for multiples of its window."""
        program = importlib.import_module("pnnx").EXEC_PATH
        side = job.subject.usual
        with tempfile.TemporaryDirectory() as folder:  # pnnx leaves seven files
            small, large = [1, 3, 2 * side, 3 * side], [1, 3, 5 * side, 4 * side]
            _traced(in_simple_operations(job.subject.network), torch.rand(small)).save(f"{folder}/model.pt")
            shapes = [f"inputshape={small}".replace(" ", ""), f"inputshape2={large}".replace(" ", "")]
            command = [program, "model.pt", *shapes, f"fp16={int(job.precision == 'fp16')}"]
            result = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace")
            unknown = re.findall(r"^ignore (\S+)", result.stderr + result.stdout, re.MULTILINE)
            if result.returncode or unknown:
                raise ExportError(
                    f"{job.subject.facts['network']} cannot be converted for ncnn: pnnx "
                    + (f"does not know {unknown[0]}" if unknown else f"failed with status {result.returncode}")
                    + "; use onnx."
                )
            shutil.copyfile(f"{folder}/model.ncnn.param", path)
            shutil.copyfile(f"{folder}/model.ncnn.bin", path.with_suffix(".bin"))

    def open(self, path: Path) -> Run:
        """See :class:`Format`."""
        ncnn = importlib.import_module("ncnn")
        net = ncnn.Net()
        net.opt.use_vulkan_compute = False
        net.opt.num_threads = torch.get_num_threads()
        for option, value in NCNN_OPTIONS.items():
            setattr(net.opt, option, value)
        if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
            raise ExportError(
                f"ncnn cannot read {path.name}, which pnnx wrote: ncnn lacks a layer. Update ncnn or use onnx."
            )

        def run(x: Tensor) -> Tensor:
            return torch.stack([self._image(net, image) for image in x.contiguous().numpy()])

        return run

    def _image(self, net: Any, image: np.ndarray[Any, Any]) -> Tensor:
        """Run the network on one image, (3, h, w)."""
        ncnn = importlib.import_module("ncnn")
        with net.create_extractor() as extractor:
            # Copy to ncnn's own layout: it misreads the array's layout if the number of pixels is odd.
            extractor.input(net.input_names()[0], ncnn.Mat(image).clone())
            status, result = extractor.extract(net.output_names()[0])
            if status:
                raise ExportError(f"ncnn failed with status {status}")
            return torch.from_numpy(np.array(result))


class TorchScript(Format):
    """TorchScript, which C++ (libtorch) and Python load without this package.

    ``torch.export`` is not used: it treats images narrower than two windows as special cases (a pooled map of one
    cell), so its program refuses them, and only Python can load it.
    """

    name = "torch"
    ending = ".pt"
    precisions = ("fp32", "fp16", "bf16")

    def write(self, job: Job, path: Path) -> tuple[str, ...]:
        """See :class:`Format`."""
        subject, side = job.subject, 2 * job.subject.usual
        network = with_precision(for_trace(subject.network), job.precision)
        traced = _traced(network, torch.rand(1, 3, side, side))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.script(AnySize(traced, subject.scale, subject.window))
        with path.open("wb") as file:  # a path that is not ASCII fails in torch's own code on Windows
            torch.jit.save(script, file, _extra_files={METADATA: json.dumps(job.facts)})
        return ()

    def open(self, path: Path) -> Run:
        """See :class:`Format`."""
        with path.open("rb") as file:
            network = torch.jit.load(file)

        def run(x: Tensor) -> Tensor:
            with torch.no_grad():
                y: Tensor = network(x)
            return y

        return run


def _traced(network: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """Return the network as TorchScript, for all inputs whose sides are multiples of its window."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # tracing assumes such sides
        traced: torch.jit.ScriptModule = torch.jit.trace(network, example, check_trace=False)
    return traced


NCNN_OPTIONS = {"use_fp16_packed": False, "use_fp16_storage": False, "use_fp16_arithmetic": False}
"""Options for the check, which is to test the file, not the 16-bit arithmetic that ncnn uses on some processors."""
METADATA = "metadata.json"
"""Name of the metadata inside a TorchScript file."""


def _in_8_bits(job: Job, model: Any) -> tuple[Any, dict[str, str], tuple[str, ...]]:
    """Return the quantised model, its metadata, and notes for the user."""
    onnx = importlib.import_module("onnx")
    scale = job.subject.scale
    calibration = calibration_images(scale, job.size)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, str(source))
        outcome = quantise(source, target, scale, calibration)
        if not outcome.layers:
            reason = f"each loses more than {LIMIT} dB" if outcome.kept else "it has none"
            raise ExportError(
                f"{job.subject.facts['network']} cannot have dense convolutions in 8 bits: {reason}. Use fp16."
            )
        model = onnx.load(str(target))
    facts = {"int8_layers": " ".join(outcome.layers), "int8_calibration": calibration.text}
    count = len(outcome.layers) + len(outcome.kept)
    note = (
        f"{len(outcome.layers)} of {count} dense convolutions in 8 bits, calibrated on {calibration.text}: loses "
        f"{outcome.loss:.2f} dB on {len(calibration.photographs)} photographs"
    )
    kept = f"in float32, because they lose too much: {', '.join(outcome.kept)}"
    return model, facts, (note, kept) if outcome.kept else (note,)


def _serialised(job: Job, graph: nn.Module) -> bytes:
    """Return the serialised ONNX graph of a job."""
    subject, size = job.subject, job.size
    if size is None:
        return onnx_bytes(AnySize(graph, subject.scale, subject.window), job.example, dynamic=True)
    if min(size) <= subject.window:
        graph = with_explicit_padding(graph)
    return folded(onnx_bytes(FixedSize(graph, subject.scale, subject.window, size), job.example, dynamic=False))
